//! IsInf and IsNaN.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

/// Whether each element of a floating-point tensor is NaN.
#[derive(Debug, Clone, Copy)]
pub struct IsNaN;

/// Whether each element of a floating-point tensor is infinite, of the signs asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsInf {
    /// Whether −∞ counts.
    pub negative: bool,
    /// Whether +∞ counts.
    pub positive: bool,
}

/// Makes an IsNaN; it has no attributes.
pub fn build_nan(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(IsNaN))
}

/// Makes an IsInf from its attributes `detect_negative` and `detect_positive`.
pub fn build_inf(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let negative = attrs.int_or("detect_negative", 1)? != 0;
    Ok(Arc::new(IsInf { negative, positive: attrs.int_or("detect_positive", 1)? != 0 }))
}

fn infer(cx: &InferCx) -> Result<Vec<Fact>, OpError> {
    cx.get(0)?;
    Ok(vec![Fact::tensor(Some(DType::Bool), cx.shape(0).map(<[_]>::to_vec))])
}

fn eval(cx: &EvalCx, f: impl Fn(f64) -> bool) -> Result<Vec<Tensor>, OpError> {
    let x = cx.get(0)?;
    if !x.dtype().is_float() {
        return Err(OpError::input(0, x.dtype().name(), "a floating-point type"));
    }
    Ok(vec![Tensor::from_bools(x.shape(), x.to_f64s()?.into_iter().map(f).collect())?])
}

impl Op for IsNaN {
    fn name(&self) -> &str {
        "IsNaN"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        eval(cx, f64::is_nan)
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

impl Op for IsInf {
    fn name(&self) -> &str {
        "IsInf"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        eval(cx, |x| self.negative && x == f64::NEG_INFINITY || self.positive && x == f64::INFINITY)
    }

    fn attrs(&self) -> AttrMap {
        let flags = AttrMap::new().with_unless("detect_negative", i64::from(self.negative), 1);
        flags.with_unless("detect_positive", i64::from(self.positive), 1)
    }
}
