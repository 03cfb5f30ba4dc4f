//! Optional, OptionalHasElement, OptionalGetElement: values that may be absent.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Datum, EvalCx, Fact, InferCx, Op, OpError, TensorType, ValueType};
use narrowbit_tensor::{DType, Tensor};

use super::support::tensors;

/// The input as an optional, or an empty optional of a type where there is no input (ONNX Optional 15).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Optional {
    /// The type of the element, for an empty optional.
    pub element: Option<ValueType>,
}

/// Makes an Optional.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Optional { element: attrs.value_type("type")? }))
}

impl Op for Optional {
    fn name(&self) -> &str {
        "Optional"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let element = cx.opt(0).map(|f| f.ty.clone()).or_else(|| self.element.clone()).unwrap_or_default();
        Ok(vec![Fact { ty: ValueType::Optional(Box::new(element)), ..Fact::default() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        tensors(self.eval_data(cx)?)
    }

    fn eval_data(&self, cx: &EvalCx) -> Result<Vec<Datum>, OpError> {
        // Deeper nesting has no meaning in ONNX, and could be made deeper than the stack by a loop.
        if let Some(Datum::Optional(_)) = cx.datum(0) {
            return Err(OpError::input(0, "an optional", "a tensor or a sequence"));
        }
        Ok(vec![Datum::Optional(cx.datum(0).cloned().map(Box::new))])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_opt("type", self.element.clone())
    }
}

/// Whether the input is present and not an empty optional: a boolean scalar (ONNX OptionalHasElement 15, 18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionalHasElement;

/// Makes an OptionalHasElement.
pub fn build_has(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(OptionalHasElement))
}

impl Op for OptionalHasElement {
    fn name(&self) -> &str {
        "OptionalHasElement"
    }

    fn infer(&self, _: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact { ty: ValueType::Tensor(TensorType::new(DType::Bool, vec![])), ..Fact::default() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let has = !matches!(cx.datum(0), None | Some(Datum::Optional(None)));
        Ok(vec![Tensor::from_bools([], vec![has])?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

/// The element of an optional; a tensor or sequence is its own element (ONNX OptionalGetElement 15, 18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionalGetElement;

/// Makes an OptionalGetElement.
pub fn build_get(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(OptionalGetElement))
}

impl Op for OptionalGetElement {
    fn name(&self) -> &str {
        "OptionalGetElement"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let ty = match &cx.get(0)?.ty {
            ValueType::Optional(t) => (**t).clone(),
            t => t.clone(),
        };
        Ok(vec![Fact { ty, ..Fact::default() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        tensors(self.eval_data(cx)?)
    }

    fn eval_data(&self, cx: &EvalCx) -> Result<Vec<Datum>, OpError> {
        match cx.datum(0).ok_or(OpError::MissingInput(0))? {
            Datum::Optional(Some(d)) => Ok(vec![(**d).clone()]),
            Datum::Optional(None) => Err(OpError::Value("the optional is empty".into())),
            other => Ok(vec![other.clone()]),
        }
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_empty_from_full() {
        let has = |d: Option<&Datum>| {
            let ins = [d];
            OptionalHasElement.eval(&EvalCx::new(&ins, 1)).unwrap()[0].bools().unwrap()[0]
        };
        let full = Datum::Optional(Some(Box::new(Datum::Tensor(Tensor::scalar(1f32)))));
        assert!(has(Some(&full)));
        assert!(!has(Some(&Datum::Optional(None))));
        assert!(!has(None));
    }

    #[test]
    fn refuses_the_element_of_an_empty_optional() {
        let empty = Datum::Optional(None);
        assert!(OptionalGetElement.eval_data(&EvalCx::new(&[Some(&empty)], 1)).is_err());
    }
}
