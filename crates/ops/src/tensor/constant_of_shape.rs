//! ConstantOfShape: a tensor of one repeated value.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::{moves, params};

/// A tensor of the shape that input 0 gives, filled with one value. Source: ONNX ConstantOfShape.
#[derive(Debug, Clone)]
pub struct ConstantOfShape {
    /// The value, a tensor of one element; an f32 zero where absent.
    pub value: Option<Tensor>,
}

/// Makes a ConstantOfShape from `value`.
///
/// # Errors
/// When the attribute is no tensor of one element.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let value = attrs.tensor("value")?;
    if value.as_ref().is_some_and(|v| v.len() != 1) {
        return Err(OpError::attribute("value", "is not a tensor of one element"));
    }
    Ok(Arc::new(ConstantOfShape { value }))
}

impl ConstantOfShape {
    /// The value that fills the output, a tensor of one element.
    pub fn fill(&self) -> Tensor {
        self.value.clone().unwrap_or_else(|| Tensor::scalar(0f32))
    }
}

impl Op for ConstantOfShape {
    fn name(&self) -> &str {
        "ConstantOfShape"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        cx.get(0)?;
        let fill = self.fill();
        let shape = params::shape_input(cx, 0)?;
        let n = match shape.as_deref() {
            Some([]) => Some(1),
            Some([Dim::Known(n)]) => usize::try_from(*n).ok().filter(|&n| n <= Fact::MAX_DIMS),
            _ => None,
        };
        let dims =
            n.filter(|_| fill.dtype().is_int()).and_then(|n| Some(vec![Dim::Known(*fill.to_i64s().ok()?.first()?); n]));
        Ok(vec![Fact::tensor(Some(fill.dtype()), shape).with_dims(dims)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let shape = params::extents(&cx.get(0)?.to_i64s()?)?;
        Ok(vec![moves::broadcast_to(&self.fill().reshaped(vec![1; shape.len()])?, &shape)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_opt("value", self.value.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    fn eval(shape: Vec<i64>) -> Result<Vec<Tensor>, OpError> {
        let d = Datum::Tensor(Tensor::vector(shape));
        ConstantOfShape { value: None }.eval(&EvalCx::new(&[Some(&d)], 1))
    }

    #[test]
    fn refuses_shapes_that_are_negative_or_too_large() {
        assert_eq!(eval(vec![2, 1]).unwrap()[0].to_f64s().unwrap(), [0.0, 0.0]);
        assert_eq!(eval(vec![1 << 60, 0]).unwrap()[0].len(), 0);
        assert!(eval(vec![-1]).is_err());
        assert!(matches!(eval(vec![1 << 40]), Err(OpError::TooLarge { .. })));
        assert!(eval(vec![1 << 40, 1 << 40]).is_err());
    }
}
