//! LpNormalization: vectors along an axis divided by their norm.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::layer_normalization::resolve_axis;
use super::lp_pool::norm;
use super::stats::floats;
use crate::support::infer_same;

/// `Y = X / ‖X‖p` along `axis`, 0 where the norm is 0.
///
/// Input of any shape and floating-point type. Source: ONNX operator LpNormalization (1, 22).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LpNormalization {
    /// The axis; counted from the back where negative.
    pub axis: i64,
    /// The norm's order, 1 or 2.
    pub p: i64,
}

/// Makes an LpNormalization.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let (axis, p) = (attrs.int_or("axis", -1)?, attrs.int_or("p", 2)?);
    match p {
        1 | 2 => Ok(Arc::new(LpNormalization { axis, p })),
        _ => Err(OpError::attribute("p", format!("is {p}, must be 1 or 2"))),
    }
}

impl Op for LpNormalization {
    fn name(&self) -> &str {
        "LpNormalization"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        if let Some(x) = cx.shape(0) {
            resolve_axis(self.axis, x.len())?;
        }
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let axis = resolve_axis(self.axis, x.rank())?;
        let mut y = floats(cx, 0)?;
        if !x.is_empty() {
            let (n, inner) = (x.shape()[axis], x.shape()[axis + 1..].iter().product::<usize>());
            for block in y.chunks_exact_mut(n * inner) {
                for i in 0..inner {
                    let length = norm(block[i..].iter().step_by(inner).copied(), self.p);
                    let divide = |v: &mut f64| *v = if length == 0.0 { 0.0 } else { *v / length };
                    block[i..].iter_mut().step_by(inner).for_each(divide);
                }
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("axis", self.axis, -1).with_unless("p", self.p, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    #[test]
    fn divides_by_norms_and_keeps_zeros() {
        let x = tensor([2, 2], &[3., 0., -4., 0.]);
        let y = run(&LpNormalization { axis: 0, p: 2 }, &[Some(&x)], 1).unwrap();
        assert_eq!(f32s(&y[0]), [0.6, 0., -0.8, 0.]);
        let y = run(&LpNormalization { axis: -1, p: 1 }, &[Some(&x)], 1).unwrap();
        assert_eq!(f32s(&y[0]), [1., 0., -1., 0.]);
    }

    #[test]
    fn refuses_other_orders_and_axes() {
        assert!(build(22, &mut AttrMap::new().with("p", 3i64)).is_err());
        assert!(run(&LpNormalization { axis: 1, p: 2 }, &[Some(&tensor([1], &[1.]))], 1).is_err());
    }
}
