//! Flatten: a matrix of everything before an axis by everything from it on.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::{Tensor, shape};

use super::factors;

/// `y[d0·…·d(axis−1), d(axis)·…]`, the elements of the input in the same order; any type.
///
/// Source: ONNX Flatten.
#[derive(Debug, Clone, Copy)]
pub struct Flatten {
    /// The first axis of the second extent, in `[-rank, rank]`.
    pub axis: i64,
}

/// Makes a Flatten from `axis`, 1 by default.
///
/// # Errors
/// When the attribute is no integer.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Flatten { axis: attrs.int_or("axis", 1)? }))
}

impl Flatten {
    /// The axis counted from the front.
    ///
    /// # Errors
    /// When it is outside of `[-rank, rank]`.
    pub fn axis(&self, rank: usize) -> Result<usize, OpError> {
        let a = if self.axis < 0 { self.axis.saturating_add(rank as i64) } else { self.axis };
        usize::try_from(a)
            .ok()
            .filter(|&a| a <= rank)
            .ok_or_else(|| OpError::shape(format!("axis {} is outside of [-{rank}, {rank}]", self.axis)))
    }
}

impl Op for Flatten {
    fn name(&self) -> &str {
        "Flatten"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let shape = match x.shape() {
            Some(s) => {
                let (a, b) = s.split_at(self.axis(s.len())?);
                vec![factors::product(a), factors::product(b)]
            }
            None => super::params::unknown(2),
        };
        Ok(vec![Fact::tensor(x.dtype(), Some(shape))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let (a, b) = x.shape().split_at(self.axis(x.rank())?);
        Ok(vec![x.reshaped([shape::count(a)?, shape::count(b)?])?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("axis", self.axis, 1)
    }
}
