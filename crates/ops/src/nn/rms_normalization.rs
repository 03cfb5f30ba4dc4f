//! RMSNormalization: the last axes divided by their root mean square.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::layer_normalization::{resolve_axis, scale_and_shift};
use super::stats::{floats, take_stash_type};

/// `Y = X / sqrt(mean(X²) + epsilon) · scale`, the mean over the axes from `axis` on.
///
/// Inputs: X of any shape, scale that broadcasts to it; floating-point types, the output
/// has the scale's. Source: ONNX operator RMSNormalization (23).
#[derive(Debug, Clone, PartialEq)]
pub struct RmsNormalization {
    /// The first normalised axis; counted from the back where negative.
    pub axis: i64,
    /// Added to the mean square.
    pub epsilon: f32,
    /// The type that the file asks intermediate results to have; here they are `f64`.
    pub stash_type: DType,
}

/// Makes an RMSNormalization.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(RmsNormalization {
        axis: attrs.int_or("axis", -1)?,
        epsilon: attrs.float_or("epsilon", 1e-5)?,
        stash_type: take_stash_type(attrs)?,
    }))
}

impl Op for RmsNormalization {
    fn name(&self) -> &str {
        "RMSNormalization"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        cx.get(0)?;
        if let Some(x) = cx.shape(0) {
            resolve_axis(self.axis, x.len())?;
        }
        Ok(vec![Fact::tensor(cx.dtype(1).or(cx.dtype(0)), cx.shape(0).map(<[_]>::to_vec))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let axis = resolve_axis(self.axis, x.rank())?;
        let (mut y, scale) = (floats(cx, 0)?, floats(cx, 1)?);
        let size = x.shape()[axis..].iter().fold(1usize, |n, &d| n.saturating_mul(d));
        for row in y.chunks_exact_mut(size.max(1)) {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / size as f64;
            let inverse = 1.0 / (mean + f64::from(self.epsilon)).sqrt();
            row.iter_mut().for_each(|v| *v *= inverse);
        }
        scale_and_shift(&mut y, x.shape(), (&scale, cx.get(1)?.shape()), None)?;
        Ok(vec![Tensor::from_f64s(cx.get(1)?.dtype(), x.shape(), &y)?])
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
    use crate::nn::testing::{assert_close, run, tensor};

    #[test]
    fn divides_by_the_root_mean_square() {
        let op = RmsNormalization { axis: -1, epsilon: 0., stash_type: DType::F32 };
        let y = run(&op, &[Some(&tensor([1, 2], &[1., 7.])), Some(&tensor([2], &[1., 2.]))], 1).unwrap();
        // The root mean square is 5; the result is rounded once.
        assert_close(&y[0], &[0.2, 2.8], 1e-6);
    }

    #[test]
    fn refuses_scales_that_do_not_broadcast() {
        let op = RmsNormalization { axis: -1, epsilon: 0., stash_type: DType::F32 };
        assert!(run(&op, &[Some(&tensor([1, 2], &[3., 4.])), Some(&tensor([3], &[1.; 3]))], 1).is_err());
    }
}
