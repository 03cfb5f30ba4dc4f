//! Operators of ONNX that ONNX Runtime also has in its own domain, unchanged.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::support::DOMAIN;

/// An operator of ONNX's domain under ONNX Runtime's.
#[derive(Debug, Clone)]
pub struct Renamed(pub Arc<dyn Op>);

/// Makes a Trilu.
pub fn build_trilu(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Renamed(crate::tensor::trilu::build(14, attrs)?)))
}

impl Op for Renamed {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        self.0.infer(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        self.0.eval(cx)
    }

    fn quant(&self) -> QuantRole {
        self.0.quant()
    }

    fn attrs(&self) -> AttrMap {
        self.0.attrs()
    }
}
