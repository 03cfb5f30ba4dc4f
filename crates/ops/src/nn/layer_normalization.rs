//! LayerNormalization: the last axes normalised together.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor, shape};

use super::stats::{floats, moments, take_stash_type};
use crate::support::infer_same;

/// `Y = (X − mean) / sqrt(var + epsilon) · Scale + B`, mean and variance over the axes from `axis` on.
///
/// Inputs: X of any shape, Scale and optional B that broadcast to the normalised axes, one
/// floating-point type. Outputs: Y as X; optionally Mean and InvStdDev of `stash_type`, with
/// extent 1 along the normalised axes. Source: ONNX operator LayerNormalization (17).
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNormalization {
    /// The first normalised axis; counted from the back where negative.
    pub axis: i64,
    /// Added to the variance.
    pub epsilon: f32,
    /// The type of Mean and InvStdDev.
    pub stash_type: DType,
}

/// Makes a LayerNormalization.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(LayerNormalization {
        axis: attrs.int_or("axis", -1)?,
        epsilon: attrs.float_or("epsilon", 1e-5)?,
        stash_type: take_stash_type(attrs)?,
    }))
}

/// The first normalised axis of a tensor of this rank.
pub(super) fn resolve_axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    shape::axis(axis, rank)
        .ok_or_else(|| OpError::attribute("axis", format!("is {axis}, out of range for a tensor of {rank} axes")))
}

/// Multiplies rows by a scale and adds a bias, both broadcast to `x_shape`.
pub(super) fn scale_and_shift(
    y: &mut [f64],
    x_shape: &[usize],
    scale: (&[f64], &[usize]),
    bias: Option<(&[f64], &[usize])>,
) -> Result<(), OpError> {
    let offsets = |s: &[usize]| match shape::broadcast(s, x_shape) {
        Ok(to) if to == x_shape => Ok(shape::broadcast_strides(s, x_shape)),
        _ => Err(OpError::shape(format!("a parameter of shape {s:?} does not broadcast to X of shape {x_shape:?}"))),
    };
    let strides = offsets(scale.1)?;
    shape::offsets(x_shape, &strides).zip(y.iter_mut()).for_each(|(i, v)| *v *= scale.0[i]);
    if let Some((values, s)) = bias {
        let strides = offsets(s)?;
        shape::offsets(x_shape, &strides).zip(y.iter_mut()).for_each(|(i, v)| *v += values[i]);
    }
    Ok(())
}

impl Op for LayerNormalization {
    fn name(&self) -> &str {
        "LayerNormalization"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let mut outs = infer_same(cx)?;
        let stats = match cx.shape(0) {
            None => None,
            Some(x) => {
                let axis = resolve_axis(self.axis, x.len())?;
                let extent = |(i, d): (usize, &Dim)| if i < axis { d.clone() } else { Dim::Known(1) };
                Some(x.iter().enumerate().map(extent).collect::<Vec<_>>())
            }
        };
        outs.extend(vec![Fact::tensor(Some(self.stash_type), stats); 2]);
        Ok(outs)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let axis = resolve_axis(self.axis, x.rank())?;
        let (mut y, scale) = (floats(cx, 0)?, floats(cx, 1)?);
        let size = x.shape()[axis..].iter().fold(1usize, |n, &d| n.saturating_mul(d));
        let (mut means, mut inverses) = (Vec::new(), Vec::new());
        for row in y.chunks_exact_mut(size.max(1)) {
            let (mean, var) = moments(row.iter().copied());
            let inverse = 1.0 / (var + f64::from(self.epsilon)).sqrt();
            row.iter_mut().for_each(|v| *v = (*v - mean) * inverse);
            means.push(mean);
            inverses.push(inverse);
        }
        let bias = if cx.opt(2).is_some() { Some(floats(cx, 2)?) } else { None };
        let bias = bias.as_deref().zip(cx.opt(2).map(Tensor::shape));
        scale_and_shift(&mut y, x.shape(), (&scale, cx.get(1)?.shape()), bias)?;
        let mut outs = vec![Tensor::from_f64s(x.dtype(), x.shape(), &y)?];
        if cx.n_outputs() > 1 {
            let stats = [&x.shape()[..axis], &vec![1; x.rank() - axis]].concat();
            // Rows without elements have no statistics.
            let rows = shape::count(&stats)?;
            means.resize(rows, f64::NAN);
            inverses.resize(rows, f64::NAN);
            outs.push(Tensor::from_f64s(self.stash_type, stats.clone(), &means)?);
            outs.push(Tensor::from_f64s(self.stash_type, stats, &inverses)?);
        }
        Ok(outs)
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("axis", self.axis, -1).with_unless("epsilon", self.epsilon, 1e-5).with_unless(
            "stash_type",
            i64::from(self.stash_type.to_onnx()),
            1,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    #[test]
    fn normalises_rows_and_gives_their_statistics() {
        let op = LayerNormalization { axis: 1, epsilon: 0., stash_type: DType::F32 };
        let x = tensor([2, 2], &[1., 3., 10., 18.]);
        let (scale, bias) = (tensor([2], &[1., 2.]), tensor([1], &[0.5]));
        let y = run(&op, &[Some(&x), Some(&scale), Some(&bias)], 3).unwrap();
        assert_eq!(f32s(&y[0]), [-0.5, 2.5, -0.5, 2.5]);
        assert_eq!((y[1].shape(), f32s(&y[1]), f32s(&y[2])), (&[2usize, 1][..], vec![2., 14.], vec![1., 0.25]));
    }

    #[test]
    fn refuses_axes_out_of_range_and_scales_that_do_not_broadcast() {
        let x = tensor([2, 2], &[1., 3., 10., 18.]);
        let eval = |axis, scale: &Tensor| {
            run(&LayerNormalization { axis, epsilon: 0., stash_type: DType::F32 }, &[Some(&x), Some(scale)], 1)
        };
        assert!(eval(2, &tensor([2], &[1., 1.])).is_err());
        assert!(eval(-1, &tensor([3], &[1.; 3])).is_err());
        assert!(eval(-1, &tensor([1, 2, 2], &[1.; 4])).is_err());
    }
}
