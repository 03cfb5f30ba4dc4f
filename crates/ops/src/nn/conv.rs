//! Conv: n-dimensional convolution with groups, strides, dilations and pads.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, ChannelAxis, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole, check_size};
use narrowbit_tensor::Tensor;

use super::real::{Packed, Real, with_real};
use super::window::{Window, WindowAttrs};
use crate::support::show;

/// `Y[n, m, o] = B[m] + Σ_{c, k} W[m, c, k] · X[n, g(m)·C/group + c, o·stride + k·dilation − pad]`.
///
/// Inputs: X `[N, C, D1, …]`, W `[M, C/group, k1, …]`, optional B `[M]`, all of one
/// floating-point type; output `[N, M, O1, …]`. Source: ONNX operator Conv (1, 11, 22).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conv {
    /// Kernel, strides, dilations, pads.
    pub window: WindowAttrs,
    /// The number of groups that input and output channels are divided into.
    pub group: usize,
}

/// Makes a Conv.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Conv { window: WindowAttrs::take(attrs)?, group: take_group(attrs)? }))
}

/// Takes `group`, at least 1.
pub(super) fn take_group(attrs: &mut AttrMap) -> Result<usize, OpError> {
    let group = attrs.int_or("group", 1)?;
    let ok = usize::try_from(group).ok().filter(|&g| g > 0);
    ok.ok_or_else(|| OpError::attribute("group", format!("is {group}, must be at least 1")))
}

/// The extents of a convolution with everything resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvShape {
    /// The batch size.
    pub batch: usize,
    /// Input channels, all groups together.
    pub c: usize,
    /// Output channels, all groups together.
    pub m: usize,
    /// The spatial geometry.
    pub window: Window,
}

impl ConvShape {
    /// The output's shape.
    pub fn output(&self) -> Vec<usize> {
        [&[self.batch, self.m], &self.window.output[..]].concat()
    }
}

impl Conv {
    /// Resolves the extents for shapes of X and W.
    ///
    /// # Errors
    /// When X, W and the attributes contradict each other.
    pub fn resolve(&self, x: &[usize], w: &[usize]) -> Result<ConvShape, OpError> {
        let (&[batch, c, ref input @ ..], &[m, per_group, ref kernel @ ..]) = (x, w) else {
            return Err(OpError::shape(format!("X of shape {x:?} and W of shape {w:?} need at least 2 axes")));
        };
        check_channels(c, m, per_group, self.group, x, w)?;
        let window = self.window.resolve(input, &self.window.kernel_of(kernel)?)?;
        Ok(ConvShape { batch, c, m, window })
    }

    /// Multiply-accumulates for shapes of X and W; `None` where they don't fit together.
    pub fn macs(&self, x: &[usize], w: &[usize]) -> Option<u64> {
        let s = self.resolve(x, w).ok()?;
        let per_output = (s.c / self.group).checked_mul(s.window.taps())?;
        let outputs = s.batch.checked_mul(s.m)?.checked_mul(s.window.positions())?;
        u64::try_from(outputs.checked_mul(per_output)?).ok()
    }
}

/// Checks the channels of a convolution.
pub(super) fn check_channels(
    c: usize,
    m: usize,
    per_group: usize,
    group: usize,
    x: &[usize],
    w: &[usize],
) -> Result<(), OpError> {
    if per_group.checked_mul(group) != Some(c) || !m.is_multiple_of(group) || x.len() != w.len() {
        let message = format!("X of shape {x:?} and W of shape {w:?} don't fit together in {group} groups");
        return Err(OpError::shape(message));
    }
    Ok(())
}

/// Infers `[N, M, …]` of a convolution whose output channels are `m`; `spatial` gives the rest.
pub(super) fn infer_conv(
    cx: &InferCx,
    m: impl Fn(&[Dim]) -> Dim,
    spatial: impl Fn(&[Dim], &[Dim]) -> Result<Vec<Dim>, OpError>,
) -> Result<Vec<Fact>, OpError> {
    cx.get(0)?;
    cx.get(1)?;
    let dtype = cx.dtype(0).or_else(|| cx.dtype(1));
    let shape = match (cx.shape(0), cx.shape(1)) {
        (Some(x), Some(w)) if x.len() != w.len() || x.len() < 2 => {
            let message = format!("X of shape {} and W of shape {} don't fit together", show(x), show(w));
            return Err(OpError::shape(message));
        }
        (Some(x), Some(w)) => Some([vec![x[0].clone(), m(w)], spatial(&x[2..], &w[2..])?].concat()),
        (None, Some(w)) if w.len() >= 2 => Some([vec![Dim::Unknown, m(w)], vec![Dim::Unknown; w.len() - 2]].concat()),
        (Some(x), None) if x.len() >= 2 => {
            let unknown = vec![Dim::Unknown; x.len() - 2];
            Some([vec![x[0].clone(), Dim::Unknown], spatial(&x[2..], &unknown)?].concat())
        }
        _ => None,
    };
    Ok(vec![Fact::tensor(dtype, shape)])
}

/// The bias as `f64`, checked to have `m` elements.
pub(super) fn bias_of(bias: Option<&Tensor>, m: usize) -> Result<Vec<f64>, OpError> {
    match bias {
        None => Ok(vec![0.0; m]),
        Some(b) if b.shape() == [m] => Ok(b.to_f64s()?),
        Some(b) => Err(OpError::shape(format!("the bias has shape {:?}, the output has {m} channels", b.shape()))),
    }
}

impl Op for Conv {
    fn name(&self) -> &str {
        "Conv"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let known = |i: usize, a: usize| cx.shape(i).and_then(|s| s.get(a)).and_then(Dim::as_usize);
        if let (Some(c), Some(m), Some(per)) = (known(0, 1), known(1, 0), known(1, 1))
            && (per.checked_mul(self.group) != Some(c) || !m.is_multiple_of(self.group))
        {
            let message = format!("X has {c} channels, W {m} times {per}: they don't fit in {} groups", self.group);
            return Err(OpError::shape(message));
        }
        infer_conv(cx, |w| w[0].clone(), |x, w| self.window.infer(x, &self.kernel_dims(w)))
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, w) = (cx.get(0)?, cx.get(1)?);
        let shape = self.resolve(x.shape(), w.shape())?;
        let bias = bias_of(cx.opt(2), shape.m)?;
        with_real!(x, 0, T => {
            let y = eval::<T>(&x.slice::<T>()?, &w.slice::<T>()?, &bias, &shape, self.group, x)?;
            Ok(vec![Tensor::new(shape.output(), y)?])
        })
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Weighted { data: 0, weight: 1, bias: Some(2), channel: ChannelAxis::Front(0) }
    }

    fn attrs(&self) -> AttrMap {
        self.window.put(AttrMap::new()).with_unless("group", self.group as i64, 1)
    }
}

impl Conv {
    fn kernel_dims(&self, weight: &[Dim]) -> Vec<Dim> {
        match self.window.kernel_shape.len() {
            0 => weight.to_vec(),
            _ => self.window.kernel_shape.iter().map(|&k| k.into()).collect(),
        }
    }
}

/// How many values of a patch matrix are made at a time.
const PATCH_VALUES: usize = 1 << 15;

fn eval<T: Real>(
    x: &[T],
    w: &[T],
    bias: &[f64],
    s: &ConvShape,
    group: usize,
    tensor: &Tensor,
) -> Result<Vec<T>, OpError> {
    let n_out = check_size(tensor.dtype(), &s.output())?;
    let (c, m) = (s.c / group, s.m / group);
    let (taps, positions) = (s.window.taps(), s.window.positions());
    let (plane, cols) = (s.window.input.iter().product::<usize>(), c.saturating_mul(taps));
    let mut y = vec![T::put(0.0); n_out];
    for (i, out) in y.chunks_exact_mut(positions.max(1)).enumerate() {
        out.fill(T::put(bias[i % s.m]));
    }
    if n_out == 0 || cols == 0 {
        return Ok(y);
    }
    for g in 0..group {
        let packed = Packed::new(m, cols, |r, k| w[(g * m + r) * cols + k].get());
        for n in 0..s.batch {
            let x = &x[(n * s.c + g * c) * plane..][..c * plane];
            let y = &mut y[(n * s.m + g * m) * positions..][..m * positions];
            let bias = &bias[g * m..][..m];
            let mut first = 0;
            patches(x, &s.window, c, PATCH_VALUES.div_ceil(cols), |block| {
                packed.mul(block, |i, r, sum| y[r * positions + first + i] = T::put(sum + bias[r]));
                first += block.len() / cols;
            });
        }
    }
    Ok(y)
}

/// Unfolds `c` planes into patches of `c`·taps values, one per output position, and hands
/// them over in blocks of `block` patches.
fn patches<T: Real>(x: &[T], window: &Window, c: usize, block: usize, mut f: impl FnMut(&[f64])) {
    let (taps, step) = (window.taps(), window.step());
    let plane = x.len() / c;
    let mut buffer = Vec::with_capacity(block.min(window.positions()) * c * taps);
    window.walk(|_, _, runs| {
        let at = buffer.len();
        buffer.resize(at + c * taps, 0.0);
        let patch = &mut buffer[at..];
        for (x, out) in x.chunks_exact(plane.max(1)).zip(patch.chunks_exact_mut(taps)) {
            for run in runs {
                let values = x[run.offset..].iter().step_by(step);
                out[run.kernel..][..run.len].iter_mut().zip(values).for_each(|(o, v)| *o = v.get());
            }
        }
        if buffer.len() == block * c * taps {
            f(&buffer);
            buffer.clear();
        }
    });
    if !buffer.is_empty() {
        f(&buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    #[test]
    fn convolves_with_pads_groups_and_bias() {
        let conv = Conv { window: WindowAttrs { pads: vec![1, 1], ..WindowAttrs::default() }, group: 2 };
        let x = tensor([1, 2, 3], &[1., 2., 3., 10., 20., 30.]);
        let w = tensor([2, 1, 3], &[1., 0., -1., 1., 1., 1.]);
        let y = run(&conv, &[Some(&x), Some(&w), Some(&tensor([2], &[0.5, -1.0]))], 1).unwrap();
        assert_eq!(y[0].shape(), [1, 2, 3]);
        assert_eq!(f32s(&y[0]), [-1.5, -1.5, 2.5, 29., 59., 49.]);
    }

    #[test]
    fn matches_a_direct_sum_in_two_dimensions() {
        let conv = Conv {
            window: WindowAttrs {
                pads: vec![1, 2, 0, 1],
                strides: vec![2, 1],
                dilations: vec![1, 2],
                ..WindowAttrs::default()
            },
            group: 1,
        };
        let (xs, ws) = ([2, 3, 5, 6], [6, 3, 3, 2]);
        let values = |n: usize, k: usize| (0..n).map(|i| ((i * k) % 13) as f32 - 6.0).collect::<Vec<_>>();
        let (x, w) = (values(180, 5), values(108, 7));
        let y = run(&conv, &[Some(&tensor(xs, &x)), Some(&tensor(ws, &w))], 1).unwrap();
        let s = conv.resolve(&xs, &ws).unwrap();
        assert_eq!(s.output(), [2, 6, 2, 7]);
        let mut expected = Vec::new();
        for (n, m, oy, ox) in (0..2 * 6 * 2 * 7).map(|i| (i / 84, i / 14 % 6, i / 7 % 2, i % 7)) {
            let mut sum = 0.0;
            for (c, ky, kx) in (0..18).map(|i| (i / 6, i / 2 % 3, i % 2)) {
                let (iy, ix) = (2 * oy + ky, ox + 2 * kx);
                if (1..6).contains(&iy) && (2..8).contains(&ix) {
                    sum += x[((n * 3 + c) * 5 + iy - 1) * 6 + ix - 2] * w[((m * 3 + c) * 3 + ky) * 2 + kx];
                }
            }
            expected.push(sum);
        }
        assert_eq!(f32s(&y[0]), expected);
        assert_eq!(conv.macs(&xs, &ws), Some(168 * 18));
    }

    #[test]
    fn keeps_attributes_through_a_round_trip() {
        let given = AttrMap::new().with("strides", vec![1i64, 1]).with("group", 3i64).with("auto_pad", "SAME_UPPER");
        let op = build(13, &mut given.clone()).unwrap();
        assert_eq!(format!("{:?}", op.attrs()), format!("{given:?}"));
    }

    #[test]
    fn refuses_channels_and_kernels_that_do_not_fit() {
        let conv = Conv { window: WindowAttrs::default(), group: 1 };
        let (x, w) = (tensor([1, 2, 3], &[0.0; 6]), tensor([1, 1, 2], &[0.0; 2]));
        assert!(run(&conv, &[Some(&x), Some(&w)], 1).is_err());
        assert!(run(&conv, &[Some(&x)], 1).is_err());
        let w = tensor([1, 2, 4], &[0.0; 8]);
        assert!(run(&conv, &[Some(&x), Some(&w)], 1).is_err());
        let int = Tensor::new([1, 2, 3], vec![0i32; 6]).unwrap();
        assert!(run(&conv, &[Some(&int), Some(&tensor([1, 2, 1], &[0.0; 2]))], 1).is_err());
    }
}
