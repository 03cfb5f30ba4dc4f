//! 3-D convolution as a sum of 2-D ones over the window's depth.

use std::borrow::Cow;
use std::ops::Range;

use super::{Axis, Conv2dParams, ConvEpilogue, ConvWeights, NAME, conv2d_run, window_count};
use crate::activation::Activation;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;

/// Output channels of a group for which a panel's columns are well filled.
const FULL: usize = 16;

/// Shape of a 3-D convolution: `slice` describes one plane of depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv3dParams {
    /// The planes: batch, channels, height, width, window and so on.
    pub slice: Conv2dParams,
    /// Input depth.
    pub d: usize,
    /// Window depth.
    pub kd: usize,
    /// Step along the depth.
    pub stride: usize,
    /// Zeros before and after.
    pub pads: [usize; 2],
    /// Step within the window.
    pub dilation: usize,
}

impl Conv3dParams {
    /// Checks the shape and computes output depth, height and width.
    ///
    /// # Errors
    /// As [`Conv2dParams::output`].
    pub fn output(&self) -> Result<[usize; 3]> {
        let [oh, ow] = self.slice.output()?;
        let od = window_count(self.d, self.pads[0], self.pads[1], self.kd, self.stride, self.dilation)?;
        product(NAME, &[self.slice.n, self.slice.c, self.d, self.slice.h, self.slice.w])?;
        product(NAME, &[self.slice.n, self.slice.oc, od, oh, ow])?;
        Ok([od, oh, ow])
    }

    /// The same results as those of a convolution of images: one for each depth of the result, whose channels are, group by
    /// group, those of the planes that the window meets there, one plane behind another. [`Conv3dParams::by_plane`] has its
    /// weights. Where windows have several planes, groups of few output channels are multiplied together: an infinity in one of
    /// them may become NaN in the others.
    ///
    /// # Errors
    /// As [`Conv2dParams::output`]; or there are no channels.
    pub fn planes(&self) -> Result<Conv2dParams> {
        let ([od, ..], s) = (self.output()?, self.slice);
        require(NAME, s.c > 0 && s.oc > 0, "there are no channels")?;
        let (n, c, groups) = (product(NAME, &[s.n, od])?, product(NAME, &[s.c, self.kd])?, self.groups());
        let planes = Conv2dParams { n, c, groups, ..s };
        planes.output()?;
        Ok(planes)
    }

    /// The groups of [`Conv3dParams::planes`].
    pub(crate) fn groups(&self) -> usize {
        self.slice.groups / self.merged(self.kd)
    }

    /// How many groups are multiplied together where windows have so many planes.
    fn merged(&self, planes: usize) -> usize {
        let s = &self.slice;
        let each = s.oc / s.groups;
        let fits = |&r: &usize| s.groups.is_multiple_of(r) && r * each <= FULL;
        if planes == 1 { 1 } else { (1..=FULL).rev().find(fits).unwrap_or(1) }
    }

    /// The convolution without the outer planes of its window that meet the volume nowhere, with as much less padding, and the
    /// planes that are left: as [`Conv2dParams::seen_taps`].
    pub fn seen_planes(&self) -> (Conv3dParams, Range<usize>) {
        let Ok([out, ..]) = self.output() else { return (*self, 0..self.kd) };
        let (stride, dilation) = (self.stride, self.dilation);
        let axis = Axis { len: self.d, out, before: self.pads[0], window: self.kd, stride, dilation };
        let Some((seen, after)) = axis.seen() else { return (*self, 0..self.kd) };
        let pads = [self.pads[0] - seen.start * dilation, after];
        (Conv3dParams { kd: seen.len(), pads, ..*self }, seen)
    }

    /// The weights of some planes of the window, `[oc, planes · c / groups, kh, kw]` with the groups of
    /// [`Conv3dParams::planes`], of all of them, `[oc, c / groups, kd, kh, kw]` (ONNX `Conv`). `none` is the weight of an output
    /// channel for what another group reads.
    ///
    /// # Errors
    /// The parameters are invalid, `w` has another length, or the window has other planes.
    pub fn by_plane<'a, T: Copy>(
        &self,
        w: &'a [T],
        planes: &Range<usize>,
        none: impl Fn(usize) -> T,
    ) -> Result<Cow<'a, [T]>> {
        let s = &self.slice;
        let (one, channels) = (s.weight_len()?, s.c / s.groups);
        exact(NAME, "weights", w.len(), product(NAME, &[one, self.kd])?)?;
        require(NAME, planes.end <= self.kd, "the window has fewer planes")?;
        if self.kd == 1 && planes.len() == 1 || one == 0 {
            return Ok(Cow::Borrowed(w));
        }
        let (taps, merged) = (s.kh * s.kw, self.merged(planes.len()));
        let mut out = Vec::with_capacity(product(NAME, &[one, planes.len(), merged])?);
        for (channel, of_channels) in w.chunks_exact(channels * self.kd * taps).enumerate() {
            let before = channel / (s.oc / s.groups) % merged;
            let fill = |groups: usize| std::iter::repeat_n(none(channel), groups * channels * taps);
            for plane in planes.clone() {
                out.extend(fill(before));
                let windows = of_channels.chunks_exact(self.kd * taps);
                windows.for_each(|window| out.extend_from_slice(&window[plane * taps..][..taps]));
                out.extend(fill(merged - 1 - before));
            }
        }
        Ok(Cow::Owned(out))
    }
}

/// Convolves `x` `[n, c, d, h, w]` into `y` `[n, oc, od, oh, ow]`. `weights` holds one
/// packed 2-D window per depth step, made by [`super::conv2d_prepack`] from
/// `w[.., .., step, .., ..]`.
///
/// # Errors
/// The parameters are invalid, a slice has another length, or the epilogue asks for a
/// residual or accumulation, which this path does not support.
pub fn conv3d_run(
    exec: &Exec,
    p: &Conv3dParams,
    x: &[f32],
    weights: &[ConvWeights],
    epilogue: &ConvEpilogue<'_>,
    y: &mut [f32],
) -> Result {
    let [od, oh, ow] = p.output()?;
    let s = p.slice;
    exact(NAME, "window planes", weights.len(), p.kd)?;
    exact(NAME, "x", x.len(), s.n * s.c * p.d * s.h * s.w)?;
    exact(NAME, "y", y.len(), s.n * s.oc * od * oh * ow)?;
    let plain = epilogue.residual.is_none() && !epilogue.accumulate;
    require(NAME, plain, "residual and accumulation are not supported in 3-D")?;
    let (plane_in, plane_out) = (s.h * s.w, oh * ow);
    let one = Conv2dParams { n: 1, ..s };
    let mut image = vec![0.0; s.c * plane_in];
    let mut out = vec![0.0; s.oc * plane_out];
    for n in 0..s.n {
        for z in 0..od {
            out.fill(0.0);
            let steps: Vec<(usize, usize)> = (0..p.kd)
                .map(|step| (step, (z * p.stride + step * p.dilation).wrapping_sub(p.pads[0])))
                .filter(|&(_, depth)| depth < p.d)
                .collect();
            for (i, &(step, depth)) in steps.iter().enumerate() {
                for c in 0..s.c {
                    let from = ((n * s.c + c) * p.d + depth) * plane_in;
                    image[c * plane_in..][..plane_in].copy_from_slice(&x[from..][..plane_in]);
                }
                // The last step adds the bias and applies the activation.
                let part = if i + 1 == steps.len() {
                    ConvEpilogue { accumulate: i > 0, ..*epilogue }
                } else {
                    ConvEpilogue { accumulate: i > 0, ..ConvEpilogue::default() }
                };
                conv2d_run(exec, &one, &image, &weights[step], &part, &mut out)?;
            }
            if steps.is_empty() {
                fill_bias(&mut out, plane_out, epilogue.bias, epilogue.activation);
            }
            for o in 0..s.oc {
                let to = ((n * s.oc + o) * od + z) * plane_out;
                y[to..][..plane_out].copy_from_slice(&out[o * plane_out..][..plane_out]);
            }
        }
    }
    Ok(())
}

/// A window that only sees padding gives `act(bias)`.
fn fill_bias(out: &mut [f32], plane: usize, bias: Option<&[f32]>, activation: Activation) {
    for (o, values) in out.chunks_mut(plane.max(1)).enumerate() {
        values.fill(activation.apply(crate::isa::Scalar::new(), bias.map_or(0.0, |b| b[o])));
    }
}
