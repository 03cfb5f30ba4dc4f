//! 3-D convolution as a sum of 2-D ones over the window's depth.

use super::{Conv2dParams, ConvEpilogue, ConvWeights, NAME, conv2d_run, window_count};
use crate::activation::Activation;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;

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
