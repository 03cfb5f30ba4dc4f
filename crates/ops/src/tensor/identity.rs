//! Identity: the input itself.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Datum, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

/// `y = x`; any tensor, sequence or optional. Source: ONNX Identity.
#[derive(Debug, Clone, Copy)]
pub struct Identity;

/// Makes an Identity; it has no attributes.
///
/// # Errors
/// None.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Identity))
}

impl Op for Identity {
    fn name(&self) -> &str {
        "Identity"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![cx.get(0)?.clone()])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        Ok(vec![cx.get(0)?.clone()])
    }

    fn eval_data(&self, cx: &EvalCx) -> Result<Vec<Datum>, OpError> {
        Ok(vec![cx.datum(0).ok_or(OpError::MissingInput(0))?.clone()])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_sequences_and_optionals_on() {
        for d in [Datum::Sequence(vec![Tensor::scalar(1i64).into()]), Datum::Optional(None)] {
            assert_eq!(Identity.eval_data(&EvalCx::new(&[Some(&d)], 1)).unwrap()[0], d);
            assert!(Identity.eval(&EvalCx::new(&[Some(&d)], 1)).is_err());
        }
    }
}
