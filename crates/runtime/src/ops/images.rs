//! Convolutions as the kernels take them, of images: 1-D ones are images of one row, 3-D ones the planes of their volumes.

use std::borrow::Cow;
use std::ops::Range;

use narrowbit_kernels::KernelError;
use narrowbit_kernels::conv::{Conv2dParams, Conv3dParams, Taps};
use narrowbit_kernels::panel::{Pixels, Rows};

use crate::kernel::BuildCx;
use crate::weights::Form;

/// A window along one axis.
#[derive(Clone, Copy)]
pub(super) struct Along {
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    /// Before and behind the image.
    pub pads: [usize; 2],
}

impl Along {
    /// Along an axis of extent 1.
    pub const ONE: Along = Along { kernel: 1, stride: 1, dilation: 1, pads: [0; 2] };
}

/// A window over up to two dimensions, completed with a first one of extent 1.
pub(super) struct Window {
    pub kernel: [usize; 2],
    pub strides: [usize; 2],
    pub dilations: [usize; 2],
    /// Top, left, bottom, right.
    pub pads: [usize; 4],
}

impl Window {
    fn new(down: Along, across: Along) -> Window {
        Window {
            kernel: [down.kernel, across.kernel],
            strides: [down.stride, across.stride],
            dilations: [down.dilation, across.dilation],
            pads: [down.pads[0], across.pads[0], down.pads[1], across.pads[1]],
        }
    }
}

/// Height and width of images `[n, c, h, w]` or `[n, c, w]`.
pub(super) fn plane(shape: &[usize]) -> [usize; 2] {
    match shape {
        [_, _, w] => [1, *w],
        [_, _, h, w] => [*h, *w],
        _ => [0, 0],
    }
}

/// The window along each axis of `x` `[n, c, …]`, with weights `w` and results `y`; `None` where attributes are no such window.
pub(super) fn axes(cx: &BuildCx, x: &[usize], w: &[usize], y: &[usize], transposed: bool) -> Option<Vec<Along>> {
    let n = x.len().checked_sub(2).filter(|_| w.len() == x.len() && y.len() == x.len())?;
    let list = |name: &str, len: usize, default: i64| -> Option<Vec<usize>> {
        let v = cx.list(name).unwrap_or_else(|| vec![default; len]);
        v.into_iter().map(|v| usize::try_from(v).ok()).collect::<Option<Vec<usize>>>().filter(|v| v.len() == len)
    };
    let (strides, dilations) = (list("strides", n, 1)?, list("dilations", n, 1)?);
    let auto = cx.node.op.attrs().string("auto_pad").ok()?.unwrap_or_default();
    // The pads of a transposed convolution follow from the result where its extent is given.
    let (adjust, fixed) = match transposed {
        true => (list("output_padding", n, 0)?, cx.list("output_shape").is_some() || auto.starts_with("SAME")),
        false => (vec![0; n], false),
    };
    let given = if matches!(auto.as_str(), "" | "NOTSET") { list("pads", 2 * n, 0)? } else { vec![0; 2 * n] };
    let along = |i: usize| {
        let (kernel, stride, dilation) = (w[i + 2], strides[i], dilations[i]);
        let pads = match auto.as_str() {
            upper if fixed => {
                let full = x[i + 2].checked_sub(1)?.checked_mul(stride)?.checked_add(adjust[i])?;
                let full = kernel.checked_sub(1)?.checked_mul(dilation)?.checked_add(full)?.checked_add(1)?;
                let total = full.saturating_sub(y[i + 2]);
                let less = total / 2;
                if upper == "SAME_UPPER" { [less, total - less] } else { [total - less, less] }
            }
            "" | "NOTSET" | "VALID" => [given[i], given[n + i]],
            // With the output known, the padding is what the last window lacks.
            same => {
                let steps = y[i + 2].checked_sub(1)?.checked_mul(stride)?;
                let reach = kernel.checked_sub(1)?.checked_mul(dilation)?.checked_add(steps)?.checked_add(1)?;
                let total = reach.saturating_sub(x[i + 2]);
                let begin = if same == "SAME_LOWER" { total.div_ceil(2) } else { total / 2 };
                [begin, total - begin]
            }
        };
        Some(Along { kernel, stride, dilation, pads })
    };
    (0..n).map(along).collect()
}

/// The window over up to two dimensions.
pub(super) fn window(cx: &BuildCx, x: &[usize], w: &[usize], y: &[usize], transposed: bool) -> Option<Window> {
    match axes(cx, x, w, y, transposed)?[..] {
        [across] => Some(Window::new(Along::ONE, across)),
        [down, across] => Some(Window::new(down, across)),
        _ => None,
    }
}

/// A convolution of images.
pub(super) struct Images {
    /// Without what of the window meets only padding.
    pub p: Conv2dParams,
    /// The taps that are left of the window.
    pub taps: Taps,
    volumes: Option<Volumes>,
}

/// Volumes whose planes are the images' channels.
struct Volumes {
    whole: Conv3dParams,
    seen: Conv3dParams,
    /// The planes that are left of the window.
    planes: Range<usize>,
}

impl Images {
    /// That of a Conv of `x` `[n, c, …]` and weights `w` to `y`, over one to three axes; `None` for others.
    pub fn of(cx: &BuildCx, x: &[usize], w: &[usize], y: &[usize]) -> Option<Images> {
        // Nothing to multiply may have windows of any size.
        if w.contains(&0) {
            return None;
        }
        match axes(cx, x, w, y, false)?[..] {
            [across] => Images::flat(cx, (x, w, y), Window::new(Along::ONE, across)),
            [down, across] => Images::flat(cx, (x, w, y), Window::new(down, across)),
            [depth, down, across] => Images::deep(cx, (x, w, y), depth, Window::new(down, across)),
            _ => None,
        }
    }

    fn flat(cx: &BuildCx, (x, w, y): (&[usize], &[usize], &[usize]), window: Window) -> Option<Images> {
        let (p, taps) = params(cx, &window, (x, plane(x)), w).seen_taps();
        (p.output().ok()? == plane(y)).then_some(Images { p, taps, volumes: None })
    }

    fn deep(cx: &BuildCx, (x, w, y): (&[usize], &[usize], &[usize]), depth: Along, window: Window) -> Option<Images> {
        let (slice, taps) = params(cx, &window, (x, [x[3], x[4]]), w).seen_taps();
        let Along { kernel: kd, stride, dilation, pads } = depth;
        // The weights are cut by plane first, by tap then.
        let whole = Conv3dParams { slice, d: x[2], kd, stride, pads, dilation };
        let (seen, planes) = whole.seen_planes();
        let p = seen.planes().ok().filter(|_| seen.output().is_ok_and(|out| out == y[2..]))?;
        Some(Images { p, taps, volumes: Some(Volumes { whole, seen, planes }) })
    }

    /// The volumes whose planes are the channels; `None` for images.
    pub fn volumes(&self) -> Option<Conv3dParams> {
        self.volumes.as_ref().map(|v| v.seen)
    }

    /// Whether volumes are images as they stand in memory, plane by plane: what knows images alone takes them, too.
    pub fn stand_in_place(&self) -> bool {
        self.volumes.as_ref().is_none_or(|v| (v.seen.kd, v.seen.stride, v.seen.pads) == (1, 1, [0; 2]))
    }

    /// The weights of the convolution of images, of those of the operator; `none` is what counts as none for an output channel.
    pub fn cut<'a, T: Copy>(&self, w: &'a [T], none: impl Fn(usize) -> T) -> Result<Cow<'a, [T]>, KernelError> {
        let Some(v) = &self.volumes else { return Ok(self.taps.cut(w)) };
        match self.taps.cut(w) {
            Cow::Borrowed(w) => v.whole.by_plane(w, &v.planes, none),
            Cow::Owned(w) => Ok(Cow::Owned(v.whole.by_plane(&w, &v.planes, none)?.into_owned())),
        }
    }

    /// What the packed weights are known by.
    pub fn form(&self, name: &'static str) -> Form {
        Form::of(name, &self.taps, self.volumes.as_ref().filter(|v| v.planes.len() < v.whole.kd).map(|v| &v.planes))
    }
}

/// What a kernel reads: the first one of `parts` where there are `volumes`.
pub(super) fn pixels<'a>(parts: &'a [Rows<'a>], volumes: Option<&'a Conv3dParams>) -> Pixels<'a> {
    match (volumes, parts.first()) {
        (Some(volumes), Some(&x)) => Pixels::Planes(x, volumes),
        _ => Pixels::Parts(parts),
    }
}

fn params(cx: &BuildCx, window: &Window, (x, [h, wd]): (&[usize], [usize; 2]), w: &[usize]) -> Conv2dParams {
    Conv2dParams {
        n: x[0],
        c: x[1],
        h,
        w: wd,
        oc: w[0],
        kh: window.kernel[0],
        kw: window.kernel[1],
        strides: window.strides,
        pads: window.pads,
        dilations: window.dilations,
        groups: cx.int("group", 1).max(1) as usize,
    }
}
