//! And, Or, Xor and Not on booleans, with broadcasting.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::broadcast::{infer_elementwise, map2_bool};
use crate::support::infer_same;

/// A function of two booleans, broadcast together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logic {
    /// `a && b`
    And,
    /// `a || b`
    Or,
    /// `a != b`
    Xor,
}

impl Logic {
    /// Makes the operator; it has no attributes.
    pub fn build(self, _opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
        Ok(Arc::new(self))
    }
}

fn boolean(cx: &EvalCx, i: usize) -> Result<Tensor, OpError> {
    match cx.get(i)?.dtype() {
        DType::Bool => Ok(cx.get(i)?.clone()),
        d => Err(OpError::input(i, d.name(), "bool")),
    }
}

impl Op for Logic {
    fn name(&self) -> &str {
        match self {
            Logic::And => "And",
            Logic::Or => "Or",
            Logic::Xor => "Xor",
        }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![infer_elementwise(cx, Some(DType::Bool))?])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (boolean(cx, 0)?, boolean(cx, 1)?);
        let y = match self {
            Logic::And => map2_bool(&a, &b, |x: u8, y: u8| x != 0 && y != 0),
            Logic::Or => map2_bool(&a, &b, |x: u8, y: u8| x != 0 || y != 0),
            Logic::Xor => map2_bool(&a, &b, |x: u8, y: u8| (x != 0) != (y != 0)),
        };
        Ok(vec![y?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

/// `y = !x` on booleans.
#[derive(Debug, Clone, Copy)]
pub struct Not;

/// Makes a Not; it has no attributes.
pub fn build_not(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Not))
}

impl Op for Not {
    fn name(&self) -> &str {
        "Not"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = boolean(cx, 0)?;
        Ok(vec![Tensor::from_bools(x.shape(), x.bools()?.into_iter().map(|b| !b).collect())?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}
