//! DeformConv: a convolution whose taps are displaced by an input.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, ChannelAxis, EvalCx, Fact, InferCx, Op, OpError, QuantRole, check_size};
use narrowbit_tensor::Tensor;

use super::conv::{ConvShape, bias_of, check_channels, infer_conv, take_group};
use super::real::Packed;
use super::stats::floats;
use super::window::WindowAttrs;

/// `Y[n, m, o] = B[m] + Σ_{c, k} W[m, c, k] · mask[n, k, o] · X[n, c, o·stride + k·dilation − pad + offset[n, k, o]]`,
/// X read by bilinear interpolation, 0 outside.
///
/// Inputs: X `[N, C, H, W]`, W `[M, C/group, kh, kw]`, offset `[N, offset_group·kh·kw·2, oh, ow]`
/// (row, column), optional B `[M]`, optional mask `[N, offset_group·kh·kw, oh, ow]`; one
/// floating-point type; two spatial axes. Source: ONNX operator DeformConv (19, 22).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeformConv {
    /// Kernel, strides, dilations, pads.
    pub window: WindowAttrs,
    /// The number of groups that input and output channels are divided into.
    pub group: usize,
    /// The number of groups of input channels that share offsets.
    pub offset_group: usize,
}

/// Makes a DeformConv.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let groups = attrs.int_or("offset_group", 1)?;
    let offset_group = usize::try_from(groups).ok().filter(|&g| g > 0);
    let problem = || OpError::attribute("offset_group", format!("is {groups}, must be at least 1"));
    Ok(Arc::new(DeformConv {
        offset_group: offset_group.ok_or_else(problem)?,
        group: take_group(attrs)?,
        window: WindowAttrs::take(attrs)?,
    }))
}

impl DeformConv {
    /// Resolves the extents for shapes of X and W.
    ///
    /// # Errors
    /// When X, W and the attributes contradict each other, or there are not two spatial axes.
    pub fn resolve(&self, x: &[usize], w: &[usize]) -> Result<ConvShape, OpError> {
        let (&[batch, c, h, wide], &[m, per_group, kh, kw]) = (x, w) else {
            return Err(OpError::Unsupported(format!(
                "DeformConv of X of shape {x:?} and W of shape {w:?}: two spatial axes only"
            )));
        };
        check_channels(c, m, per_group, self.group, x, w)?;
        if c % self.offset_group != 0 {
            return Err(OpError::shape(format!(
                "{c} channels can't be divided into {} offset groups",
                self.offset_group
            )));
        }
        let window = self.window.resolve(&[h, wide], &self.window.kernel_of(&[kh, kw])?)?;
        Ok(ConvShape { batch, c, m, window })
    }
}

impl Op for DeformConv {
    fn name(&self) -> &str {
        "DeformConv"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let kernel = |w: &[narrowbit_ir::Dim]| match self.window.kernel_shape.len() {
            0 => w.to_vec(),
            _ => self.window.kernel_shape.iter().map(|&k| k.into()).collect(),
        };
        infer_conv(cx, |w| w[0].clone(), |x, w| self.window.infer(x, &kernel(w)))
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, w, offset) = (cx.get(0)?, cx.get(1)?, cx.get(2)?);
        let s = self.resolve(x.shape(), w.shape())?;
        let bias = bias_of(cx.opt(3), s.m)?;
        let n_out = check_size(x.dtype(), &s.output())?;
        let (taps, positions) = (s.window.taps(), s.window.positions());
        let maps = self.offset_group.saturating_mul(taps);
        let expect = |i: usize, t: &Tensor, maps: usize| match t.shape() {
            &[b, k, oh, ow] if b == s.batch && k == maps && s.window.output == [oh, ow] => Ok(()),
            found => Err(OpError::shape(format!(
                "input {i} has shape {found:?}, expected [{}, {maps}, {:?}]",
                s.batch, s.window.output
            ))),
        };
        expect(2, offset, maps.saturating_mul(2))?;
        let (xs, ws, offsets) = (floats(cx, 0)?, floats(cx, 1)?, floats(cx, 2)?);
        let mask = match cx.opt(4) {
            Some(t) => expect(4, t, maps).and_then(|()| floats(cx, 4))?,
            None => vec![1.0; if n_out == 0 { 0 } else { s.batch * maps * positions }],
        };
        let mut y = vec![0.0; n_out];
        let (c, m) = (s.c / self.group, s.m / self.group);
        let cols = c.saturating_mul(taps);
        y.chunks_exact_mut(positions.max(1)).enumerate().for_each(|(i, out)| out.fill(bias[i % s.m]));
        let sampler = Sampler { s: &s, offsets: &offsets, mask: &mask, groups: self.offset_group };
        for g in 0..if n_out == 0 || cols == 0 { 0 } else { self.group } {
            let packed = Packed::new(m, cols, |r, k| ws[(g * m + r) * cols + k]);
            let mut patch = vec![0.0; cols];
            for n in 0..s.batch {
                for o in 0..positions {
                    sampler.patch(&xs, n, g * c, o, &mut patch);
                    packed.mul(&patch, |_, r, sum| y[(n * s.m + g * m + r) * positions + o] += sum);
                }
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), s.output(), &y)?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Weighted { data: 0, weight: 1, bias: Some(3), channel: ChannelAxis::Front(0) }
    }

    fn attrs(&self) -> AttrMap {
        self.window.put(AttrMap::new()).with_unless("group", self.group as i64, 1).with_unless(
            "offset_group",
            self.offset_group as i64,
            1,
        )
    }
}

struct Sampler<'a> {
    s: &'a ConvShape,
    offsets: &'a [f64],
    mask: &'a [f64],
    groups: usize,
}

impl Sampler<'_> {
    /// The masked samples of output position `o` for the channels from `first` on.
    fn patch(&self, xs: &[f64], n: usize, first: usize, o: usize, patch: &mut [f64]) {
        let w = &self.s.window;
        let (taps, positions) = (w.taps(), w.positions());
        let plane = w.input[0] * w.input[1];
        let per_group = self.s.c / self.groups;
        for (i, out) in patch.iter_mut().enumerate() {
            let (channel, k) = (first + i / taps, i % taps);
            // The map of this channel's offset group and kernel element.
            let map = (n * self.groups + channel / per_group) * taps + k;
            let at = |axis: usize, out: usize, tap: usize| {
                (out * w.strides[axis] + tap * w.dilations[axis]) as f64 - w.begins[axis] as f64
                    + self.offsets[(2 * map + axis) * positions + o]
            };
            let y = at(0, o / w.output[1], k / w.kernel[1]);
            let x = at(1, o % w.output[1], k % w.kernel[1]);
            let values = &xs[(n * self.s.c + channel) * plane..][..plane];
            *out = self.mask[map * positions + o] * interpolate(values, w.input[0], w.input[1], y, x);
        }
    }
}

/// Bilinear interpolation with zeros outside of the plane.
fn interpolate(plane: &[f64], height: usize, width: usize, y: f64, x: f64) -> f64 {
    if !(y > -1.0 && x > -1.0 && y < height as f64 && x < width as f64) {
        return 0.0;
    }
    let (y0, x0) = (y.floor(), x.floor());
    let value = |y: f64, x: f64| {
        let inside = y >= 0.0 && x >= 0.0 && y < height as f64 && x < width as f64;
        if inside { plane[y as usize * width + x as usize] } else { 0.0 }
    };
    let (ly, lx) = (y - y0, x - x0);
    value(y0, x0) * (1.0 - ly) * (1.0 - lx)
        + value(y0, x0 + 1.0) * (1.0 - ly) * lx
        + value(y0 + 1.0, x0) * ly * (1.0 - lx)
        + value(y0 + 1.0, x0 + 1.0) * ly * lx
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    #[test]
    fn samples_displaced_taps() {
        let op = build(19, &mut AttrMap::new()).unwrap();
        let (x, w) = (tensor([1, 1, 1, 3], &[1., 2., 4.]), tensor([1, 1, 1, 2], &[1., 10.]));
        // Taps of both outputs: the first moved right by 1/2, the second not at all.
        let offset = tensor([1, 4, 1, 2], &[0., 0., 0.5, 0.5, 0., 0., 0., 0.]);
        let mask = tensor([1, 2, 1, 2], &[1., 1., 1., 0.5]);
        let y = run(&*op, &[Some(&x), Some(&w), Some(&offset), None, Some(&mask)], 1).unwrap();
        assert_eq!(f32s(&y[0]), [21.5, 23.]);
    }

    #[test]
    fn refuses_offsets_of_another_shape() {
        let op = build(19, &mut AttrMap::new()).unwrap();
        let (x, w) = (tensor([1, 1, 1, 3], &[0.; 3]), tensor([1, 1, 1, 2], &[0.; 2]));
        let offset = tensor([1, 2, 1, 2], &[0.; 4]);
        assert!(run(&*op, &[Some(&x), Some(&w), Some(&offset)], 1).is_err());
    }
}
