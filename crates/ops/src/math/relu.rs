//! Relu: `max(x, 0)`, element by element.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use crate::support::{infer_same, map_numeric};

/// `y = max(x, 0)`; any signed numeric type, output of the same type and shape.
#[derive(Debug, Clone, Copy)]
pub struct Relu;

/// Makes a Relu; it has no attributes.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Relu))
}

impl Op for Relu {
    fn name(&self) -> &str {
        "Relu"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        // NaN stays NaN, as in ONNX Runtime and numpy's maximum.
        Ok(vec![map_numeric(cx.get(0)?, |x| if x < 0.0 { 0.0 } else { x }, |x| x.max(0))?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Arithmetic { same_scale: false }
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}
