//! CumSum and CumProd: running sums and products along an axis.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::axes::{Along, resolve};
use super::num::{Num, with_num};
use crate::support::infer_same;

/// Running sums or products along the axis that input 1 gives; numeric types, output of the same type and shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cumulate {
    /// Products instead of sums.
    pub product: bool,
    /// Whether an element's own value is left out.
    pub exclusive: bool,
    /// Whether it runs from the last element to the first.
    pub reverse: bool,
}

impl Cumulate {
    /// Makes the operator from its attributes `exclusive` and `reverse`.
    ///
    /// # Errors
    /// When an attribute is no integer.
    pub fn build(product: bool, _opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
        Ok(Arc::new(Cumulate { product, exclusive: attrs.flag("exclusive")?, reverse: attrs.flag("reverse")? }))
    }

    fn apply<T: Num>(self, x: &Tensor, axis: usize) -> Result<Tensor, OpError> {
        let along = Along::new(x.shape(), axis);
        let mut y = x.slice::<T>()?.into_owned();
        if y.is_empty() {
            return Ok(x.clone());
        }
        for start in along.lines() {
            let mut acc = if self.product { T::ONE } else { T::ZERO };
            let mut step = |i: usize| {
                let next = if self.product { acc.times(y[i]) } else { acc.plus(y[i]) };
                y[i] = if self.exclusive { acc } else { next };
                acc = next;
            };
            if self.reverse {
                along.line(start).rev().for_each(&mut step)
            } else {
                along.line(start).for_each(&mut step)
            }
        }
        Ok(Tensor::new(x.shape(), y)?)
    }
}

impl Op for Cumulate {
    fn name(&self) -> &str {
        if self.product { "CumProd" } else { "CumSum" }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let axis = match cx.get(1)?.to_i64s()?.as_slice() {
            [a] => resolve(*a, x.rank())?,
            other => return Err(OpError::Shape(format!("the axis in input 1 has {} elements, not 1", other.len()))),
        };
        Ok(vec![with_num!(x.dtype(), 0, T => self.apply::<T>(x, axis))?])
    }

    fn attrs(&self) -> AttrMap {
        let attrs = AttrMap::new().with_unless("exclusive", i64::from(self.exclusive), 0);
        attrs.with_unless("reverse", i64::from(self.reverse), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_in_both_directions_with_and_without_the_own_element() {
        let x = Tensor::new([2, 3], vec![1i32, 2, 3, 4, 5, 6]).unwrap();
        let run = |exclusive, reverse, axis| {
            let op = Cumulate { product: false, exclusive, reverse };
            op.apply::<i32>(&x, axis).unwrap().to_i64s().unwrap()
        };
        assert_eq!(run(false, false, 1), [1, 3, 6, 4, 9, 15]);
        assert_eq!(run(true, false, 1), [0, 1, 3, 0, 4, 9]);
        assert_eq!(run(false, true, 1), [6, 5, 3, 15, 11, 6]);
        assert_eq!(run(false, false, 0), [1, 2, 3, 5, 7, 9]);
    }
}
