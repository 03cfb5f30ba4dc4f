//! Size: the number of elements of the input.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::factors;

/// The number of elements as a scalar of i64. Source: ONNX Size.
#[derive(Debug, Clone, Copy)]
pub struct Size;

/// Makes a Size; it has no attributes.
///
/// # Errors
/// None.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Size))
}

impl Op for Size {
    fn name(&self) -> &str {
        "Size"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let n = cx.get(0)?.shape().map(factors::product);
        if let Some(n) = n.as_ref().and_then(|n| n.as_known()) {
            return Ok(vec![Fact::constant(Tensor::scalar(n))]);
        }
        Ok(vec![Fact::tensor(Some(DType::I64), Some(Vec::new())).with_dims(n.map(|n| vec![n]))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        Ok(vec![Tensor::scalar(cx.get(0)?.len() as i64)])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}
