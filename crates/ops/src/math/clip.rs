//! Clip: limits each element to a range.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::num::{Num, with_num};
use crate::support::infer_same;

/// `y = min(max, max(min, x))`; any numeric type, output of the same type and shape. NaN stays NaN.
///
/// The bounds are attributes until opset 10, optional scalar inputs 1 and 2 from opset 11 on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// The lower bound where it is an attribute.
    pub min: Option<f32>,
    /// The upper bound where it is an attribute.
    pub max: Option<f32>,
}

/// Makes a Clip from its attributes `min` and `max`, which only files before opset 11 have.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Clip { min: attrs.float("min")?, max: attrs.float("max")? }))
}

impl Clip {
    fn apply<T: Num>(self, cx: &EvalCx, x: &Tensor) -> Result<Tensor, OpError> {
        let low = bound::<T>(cx, 1, self.min)?;
        let high = bound::<T>(cx, 2, self.max)?;
        let clip = |&v: &T| {
            let v = if low.is_some_and(|l| v < l) { low.unwrap_or(v) } else { v };
            if high.is_some_and(|h| v > h) { high.unwrap_or(v) } else { v }
        };
        Ok(Tensor::new(x.shape(), x.slice::<T>()?.iter().map(clip).collect())?)
    }
}

fn bound<T: Num>(cx: &EvalCx, i: usize, attr: Option<f32>) -> Result<Option<T>, OpError> {
    let Some(t) = cx.opt(i) else { return Ok(attr.map(|v| T::from_f64(v.into()))) };
    match t.slice::<T>()?.as_ref() {
        [v] => Ok(Some(*v)),
        other => Err(OpError::Shape(format!("the bound in input {i} has {} elements, not 1", other.len()))),
    }
}

impl Op for Clip {
    fn name(&self) -> &str {
        "Clip"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        Ok(vec![with_num!(x.dtype(), 0, T => self.apply::<T>(cx, x))?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Arithmetic { same_scale: false }
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_opt("min", self.min).with_opt("max", self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    #[test]
    fn takes_bounds_from_attributes_and_inputs() {
        let x = Datum::Tensor(Tensor::vector(vec![-9f32, 0.5, 9.0, f32::NAN]));
        let old = Clip { min: Some(0.0), max: Some(6.0) }.eval(&EvalCx::new(&[Some(&x)], 1)).unwrap();
        assert_eq!(old[0].to_f32s().unwrap()[..3], [0.0, 0.5, 6.0]);
        assert!(old[0].to_f32s().unwrap()[3].is_nan());
        let high = Datum::Tensor(Tensor::scalar(1f32));
        let new = Clip { min: None, max: None };
        let y = new.eval(&EvalCx::new(&[Some(&x), None, Some(&high)], 1)).unwrap();
        assert_eq!(y[0].to_f32s().unwrap()[..3], [-9.0, 0.5, 1.0]);
    }

    #[test]
    fn refuses_bounds_that_are_no_scalars() {
        let x = Datum::Tensor(Tensor::vector(vec![1f32, 2.0]));
        assert!(Clip { min: None, max: None }.eval(&EvalCx::new(&[Some(&x), Some(&x)], 1)).is_err());
    }
}
