//! Max and average pooling of images and volumes with their channels last; vectors run over the channels.

use std::ops::Range;

use super::block::{Input, Quant, integers};
use crate::buffer::SharedMut;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::panel::{Kind, Out, Rounding, Target};
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "pool nhwc";

/// Multiply-free steps (element times tap) that one task takes at least.
const GRAIN: usize = 1 << 15;
/// Channels of a task where rows are few.
const CHANNELS: usize = 256;
/// Elements that 32-bit sums of 8-bit integers hold.
const MAX_WINDOW: usize = 1 << 23;

/// The depth of a pooling of volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolDepth {
    /// Planes of a volume.
    pub len: usize,
    /// Window depth.
    pub window: usize,
    /// Step along the depth.
    pub stride: usize,
    /// Padding before and after.
    pub pads: [usize; 2],
    /// Step within the window.
    pub dilation: usize,
    /// Output depth.
    pub out: usize,
}

impl PoolDepth {
    /// That of images.
    pub const ONE: PoolDepth = PoolDepth { len: 1, window: 1, stride: 1, pads: [0; 2], dilation: 1, out: 1 };
}

/// Shape of a pooling of NHWC images, or of volumes; the caller works out `out` (floor or ceil).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolNhwcParams {
    /// Images.
    pub n: usize,
    /// Image height.
    pub h: usize,
    /// Image width.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Window height and width.
    pub window: [usize; 2],
    /// Steps down and across.
    pub strides: [usize; 2],
    /// Padding at the top, left, bottom, right.
    pub pads: [usize; 4],
    /// Steps within the window.
    pub dilations: [usize; 2],
    /// Output height and width.
    pub out: [usize; 2],
    /// What volumes have besides.
    pub depth: PoolDepth,
}

/// A window along one axis.
#[derive(Clone, Copy)]
struct Along {
    len: usize,
    window: usize,
    stride: usize,
    dilation: usize,
    pads: [usize; 2],
    out: usize,
}

impl Along {
    fn check(&self) -> Result {
        let some = self.window > 0 && self.stride > 0 && self.dilation > 0;
        require(NAME, some, "window, stride and dilation must be above 0")?;
        product(NAME, &[self.window, self.dilation, 64])?;
        product(NAME, &[self.out.max(1), self.stride, 64])?;
        require(NAME, self.pads[0].max(self.pads[1]) < isize::MAX as usize / 64, "the padding is too large")
    }

    /// Taps of output position `o` that lie in the image.
    #[inline(always)]
    fn taps(&self, o: usize) -> Range<usize> {
        self.taps_within(o, self.pads[0], self.pads[0] + self.len)
    }

    /// Taps whose place in the padded line is in `from..to`.
    #[inline(always)]
    fn taps_within(&self, o: usize, from: usize, to: usize) -> Range<usize> {
        let start = o * self.stride;
        let first = |place: usize| place.saturating_sub(start).div_ceil(self.dilation).min(self.window);
        first(from)..first(to).max(first(from))
    }

    /// Elements of the window at an output position that count.
    #[inline(always)]
    fn count(&self, o: usize, include_pad: bool) -> usize {
        if include_pad {
            return self.taps_within(o, 0, self.len + self.pads[0] + self.pads[1]).len();
        }
        self.taps(o).len()
    }

    /// The place in the image of a tap that lies in it.
    #[inline(always)]
    fn place(&self, o: usize, tap: usize) -> usize {
        (o * self.stride + tap * self.dilation).wrapping_sub(self.pads[0])
    }
}

impl PoolNhwcParams {
    /// One window over all pixels of `n` images of `c` channels (ONNX `GlobalAveragePool`).
    pub fn whole([n, pixels, c]: [usize; 3]) -> PoolNhwcParams {
        PoolNhwcParams {
            n,
            h: 1,
            w: pixels,
            c,
            window: [1, pixels.max(1)],
            strides: [1, 1],
            pads: [0; 4],
            dilations: [1, 1],
            out: [1, 1],
            depth: PoolDepth::ONE,
        }
    }

    /// The windows along depth, height and width.
    #[inline(always)]
    fn axes(&self) -> [Along; 3] {
        let PoolDepth { len, window, stride, pads, dilation, out } = self.depth;
        let plane = |i: usize| Along {
            len: [self.h, self.w][i],
            window: self.window[i],
            stride: self.strides[i],
            dilation: self.dilations[i],
            pads: [self.pads[i], self.pads[i + 2]],
            out: self.out[i],
        };
        [Along { len, window, stride, dilation, pads, out }, plane(0), plane(1)]
    }

    fn check(&self, x: usize, y: usize) -> Result {
        let axes = self.axes();
        let [d, h, w] = axes.map(|a| a.len);
        let [od, oh, ow] = axes.map(|a| a.out);
        exact(NAME, "x", x, product(NAME, &[self.n, d, h, w, self.c])?)?;
        exact(NAME, "y", y, product(NAME, &[self.n, od, oh, ow, self.c])?)?;
        axes.iter().try_for_each(Along::check)?;
        let elements = product(NAME, &axes.map(|a| a.window.min(a.len)))?;
        require(NAME, elements < MAX_WINDOW, "the window has over eight million elements")
    }

    /// Calls `body(output row, channels)` for parts of the result, in parallel; rows are counted over all images and planes.
    fn parts(&self, exec: &Exec, body: &(dyn Fn(usize, Range<usize>) + Sync)) {
        let axes = self.axes();
        let rows = self.n * axes[0].out * axes[1].out;
        if rows * axes[2].out * self.c == 0 {
            return;
        }
        let step = if rows < 4 * exec.threads() { CHANNELS } else { self.c };
        let across = self.c.div_ceil(step);
        let window: usize = axes.iter().map(|a| a.window.min(a.len).max(1)).product();
        let work = (axes[2].out * step.min(self.c)).saturating_mul(window);
        exec.split(rows * across, GRAIN / work + 1, &|range| {
            for index in range {
                let (row, part) = (index / across, index % across);
                body(row, part * step..self.c.min((part + 1) * step));
            }
        });
    }

    /// The image, plane and line of an output row.
    #[inline(always)]
    fn place(&self, row: usize) -> [usize; 3] {
        let (oh, od) = (self.out[0], self.depth.out);
        [row / oh / od, row / oh % od, row % oh]
    }

    /// The taps of the output pixel `ox` of a row: the first element in `image`, and how planes, rows and columns go on.
    #[inline(always)]
    fn window(&self, [image, oz, oy]: [usize; 3], ox: usize, channel: usize) -> Window {
        let [depth, down, across] = self.axes();
        let (planes, rows, columns) = (depth.taps(oz), down.taps(oy), across.taps(ox));
        let empty = planes.is_empty() || rows.is_empty() || columns.is_empty();
        let place = |axis: Along, o: usize, taps: &Range<usize>| if empty { 0 } else { axis.place(o, taps.start) };
        let [z, y, x] = [place(depth, oz, &planes), place(down, oy, &rows), place(across, ox, &columns)];
        let line = self.w * self.c;
        Window {
            first: (((image * depth.len + z) * self.h + y) * self.w + x) * self.c + channel,
            planes: if empty { 0 } else { planes.len() },
            rows: rows.len(),
            columns: columns.len(),
            steps: [depth.dilation * self.h * line, down.dilation * line, across.dilation * self.c],
        }
    }
}

/// Places of the taps of one output: `first + plane · steps[0] + row · steps[1] + column · steps[2]`.
struct Window {
    first: usize,
    planes: usize,
    rows: usize,
    columns: usize,
    steps: [usize; 3],
}

impl Window {
    #[inline(always)]
    fn each(&self, mut body: impl FnMut(usize)) {
        for p in 0..self.planes {
            for r in 0..self.rows {
                let line = self.first + p * self.steps[0] + r * self.steps[1];
                for c in 0..self.columns {
                    body(line + c * self.steps[2]);
                }
            }
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for i8 {}
    impl Sealed for f32 {}
}

/// An element of a maximum: u8, i8 or f32.
pub trait PoolElement: sealed::Sealed + Copy + Send + Sync + PartialOrd + 'static {
    /// What an empty window gives.
    const LOWEST: Self;
}
impl PoolElement for u8 {
    const LOWEST: u8 = 0;
}
impl PoolElement for i8 {
    const LOWEST: i8 = i8::MIN;
}
impl PoolElement for f32 {
    const LOWEST: f32 = f32::NEG_INFINITY;
}

/// Largest value of each window; padding does not count (ONNX `MaxPool`). A NaN is skipped.
///
/// # Errors
/// The parameters are invalid or a slice has another length than the shape.
pub fn max_pool2d_nhwc<T: PoolElement>(exec: &Exec, p: &PoolNhwcParams, x: &[T], y: &mut [T]) -> Result {
    p.check(x.len(), y.len())?;
    let out = SharedMut::new(y);
    p.parts(exec, &|row, channels| {
        exec.isa().dispatch(MaxRow { p, x, row, channels, out });
    });
    Ok(())
}

/// The channels of one output row; no other task writes them.
struct MaxRow<'a, T> {
    p: &'a PoolNhwcParams,
    x: &'a [T],
    row: usize,
    channels: Range<usize>,
    out: SharedMut<T>,
}

impl<T: PoolElement> Kernel for MaxRow<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (p, place, ow) = (self.p, self.p.place(self.row), self.p.out[1]);
        for ox in 0..ow {
            let window = p.window(place, ox, self.channels.start);
            let at = (self.row * ow + ox) * p.c + self.channels.start;
            // SAFETY: the task owns these channels of the row.
            let y = unsafe { self.out.slice(at, self.channels.len()) };
            let mut done = 0;
            // A block of 64 lets the compiler keep the maxima in registers.
            let (blocks, rest) = y.as_chunks_mut::<64>();
            for y in blocks {
                *y = maxima(self.x, &window, done);
                done += 64;
            }
            let (blocks, rest) = rest.as_chunks_mut::<16>();
            for y in blocks {
                *y = maxima(self.x, &window, done);
                done += 16;
            }
            for (i, y) in rest.iter_mut().enumerate() {
                [*y] = maxima(self.x, &window, done + i);
            }
        }
    }
}

/// Maxima of `N` channels from `offset` on.
#[inline(always)]
fn maxima<T: PoolElement, const N: usize>(x: &[T], window: &Window, offset: usize) -> [T; N] {
    let mut best = [T::LOWEST; N];
    window.each(
        #[inline(always)]
        |at| {
            if let Some(x) = x[at + offset..].first_chunk::<N>() {
                for i in 0..N {
                    best[i] = if x[i] > best[i] { x[i] } else { best[i] };
                }
            }
        },
    );
    best
}

/// What the sum of a window is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divisor {
    /// The elements inside the image.
    Inside,
    /// The elements inside the padded image.
    Padded,
    /// Nothing: the sum itself, for a scale that has the divisor in it.
    One,
}

/// Mean of each window (ONNX `AveragePool`): `(Σ q − elements · zero point) · scale / divisor`, the sum being exact for
/// integers.
///
/// # Errors
/// The parameters are invalid or a slice has another length than the shape.
pub fn avg_pool2d_nhwc(exec: &Exec, p: &PoolNhwcParams, divisor: Divisor, x: Quant<'_>, mut y: Target<'_>) -> Result {
    p.check(x.len(), y.len())?;
    y.require_results(NAME)?;
    let (x, out) = (x.input(), y.shared());
    p.parts(exec, &|row, channels| {
        exec.isa().dispatch(MeanRow { p, x, row, channels, divisor, out });
    });
    Ok(())
}

/// Mean of each channel: `[n, pixels, c]` to `[n, c]` (ONNX `GlobalAveragePool`).
///
/// # Errors
/// A slice has another length than the shape.
pub fn global_avg_pool_nhwc(exec: &Exec, x: Quant<'_>, shape: [usize; 3], y: Target<'_>) -> Result {
    avg_pool2d_nhwc(exec, &PoolNhwcParams::whole(shape), Divisor::Inside, x, y)
}

/// The channels of one output row; no other task writes them.
struct MeanRow<'a> {
    p: &'a PoolNhwcParams,
    x: Input,
    row: usize,
    channels: Range<usize>,
    divisor: Divisor,
    out: Out,
}

impl Kernel for MeanRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.x.kind {
            Kind::F32 => self.row(
                s,
                #[inline(always)]
                |window, offset, n| {
                    let mut sum = s.splat(0.0);
                    window.each(
                        #[inline(always)]
                        |at| {
                            // SAFETY: `check` and `Window` keep the tap in the image.
                            let x = unsafe { s.load_bits(self.x.data.cast::<f32>().add(at + offset), low_bits(n)) };
                            sum = s.add(sum, x);
                        },
                    );
                    sum
                },
            ),
            Kind::U8 => self.integer_row::<S, false>(s),
            Kind::I8 => self.integer_row::<S, true>(s),
            // `Quant` has none.
            Kind::Bf16 | Kind::I32 => {}
        }
    }
}

impl MeanRow<'_> {
    #[inline(always)]
    fn integer_row<S: Simd, const SIGNED: bool>(&self, s: S) {
        let scale = s.splat(self.x.scale);
        self.row(
            s,
            #[inline(always)]
            |window, offset, n| {
                let elements = (window.planes * window.rows * window.columns) as i32;
                let mut sum = s.splat_i(elements.wrapping_mul(self.x.zero).wrapping_neg());
                window.each(
                    #[inline(always)]
                    |at| {
                        // SAFETY: `check` and `Window` keep the tap in the image.
                        sum = s.add_i(sum, unsafe { integers::<S, SIGNED>(s, self.x.data.add(at + offset), n) });
                    },
                );
                s.mul(s.to_f32(sum), scale)
            },
        );
    }

    #[inline(always)]
    fn row<S: Simd>(&self, s: S, sum: impl Fn(&Window, usize, usize) -> S::F) {
        let (p, place, ow) = (self.p, self.p.place(self.row), self.p.out[1]);
        let (rounding, axes) = (Rounding::new(s, &self.out), p.axes());
        let count = |axis: usize, o: usize| match self.divisor {
            Divisor::One => 1,
            divisor => axes[axis].count(o, divisor == Divisor::Padded),
        };
        let outer = count(0, place[1]) * count(1, place[2]);
        for ox in 0..ow {
            let window = p.window(place, ox, self.channels.start);
            let divisor = s.splat((outer * count(2, ox)) as f32);
            let at = (self.row * ow + ox) * p.c + self.channels.start;
            let (mut i, len) = (0, self.channels.len());
            // SAFETY: the task owns these channels of the row.
            unsafe {
                while i + S::LANES <= len {
                    self.out.put(s, &rounding, at + i, s.div(sum(&window, i, S::LANES), divisor), S::LANES);
                    i += S::LANES;
                }
                if i < len {
                    self.out.put(s, &rounding, at + i, s.div(sum(&window, i, len - i), divisor), len - i);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
