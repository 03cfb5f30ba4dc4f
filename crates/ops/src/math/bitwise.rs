//! BitwiseAnd, BitwiseOr, BitwiseXor, BitwiseNot and BitShift on integers.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{Element, Tensor};
use num_traits::PrimInt;

use super::broadcast::{infer_elementwise, map2, same_dtype};
use super::num::with_int;
use crate::support::infer_same;

/// A function of the bits of two integers of one type, broadcast together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bitwise {
    /// `a & b`
    And,
    /// `a | b`
    Or,
    /// `a ^ b`
    Xor,
}

impl Bitwise {
    /// Makes the operator; it has no attributes.
    pub fn build(self, _opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
        Ok(Arc::new(self))
    }

    fn apply<T: PrimInt + Element>(self, a: &Tensor, b: &Tensor) -> Result<Tensor, OpError> {
        match self {
            Bitwise::And => map2(a, b, |x: T, y: T| x & y),
            Bitwise::Or => map2(a, b, |x: T, y: T| x | y),
            Bitwise::Xor => map2(a, b, |x: T, y: T| x ^ y),
        }
    }
}

impl Op for Bitwise {
    fn name(&self) -> &str {
        match self {
            Bitwise::And => "BitwiseAnd",
            Bitwise::Or => "BitwiseOr",
            Bitwise::Xor => "BitwiseXor",
        }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![infer_elementwise(cx, None)?])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(1)?);
        same_dtype(a, b)?;
        Ok(vec![with_int!(a.dtype(), 0, T => self.apply::<T>(a, b))?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

/// `y = !x`: each bit of an integer inverted.
#[derive(Debug, Clone, Copy)]
pub struct BitwiseNot;

/// Makes a BitwiseNot; it has no attributes.
pub fn build_not(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(BitwiseNot))
}

impl Op for BitwiseNot {
    fn name(&self) -> &str {
        "BitwiseNot"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let y: Vec<i64> = x.to_i64s()?.into_iter().map(|v| !v).collect();
        match x.dtype() {
            d if d.is_int() => Ok(vec![Tensor::from_i64s(d, x.shape(), &y)?]),
            d => Err(OpError::input(0, d.name(), "an integer type")),
        }
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

/// `y = a << b` or `a >> b` on integers of one type, broadcast together. Shifts outside of the
/// type's width shift everything out; shifts right of signed types are arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitShift {
    /// Whether bits move toward the most significant end.
    pub left: bool,
}

/// Makes a BitShift from its attribute `direction`.
///
/// # Errors
/// When the direction is neither LEFT nor RIGHT.
pub fn build_shift(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    match attrs.string("direction")?.as_deref() {
        Some("LEFT") => Ok(Arc::new(BitShift { left: true })),
        Some("RIGHT") => Ok(Arc::new(BitShift { left: false })),
        Some(other) => Err(OpError::attribute("direction", format!("is {other:?}, not LEFT or RIGHT"))),
        None => Err(OpError::attribute("direction", "is missing")),
    }
}

impl BitShift {
    fn apply<T: PrimInt + Element>(self, a: &Tensor, b: &Tensor) -> Result<Tensor, OpError> {
        let bits = T::zero().count_zeros();
        map2(a, b, |x: T, n: T| match (n.to_u32().filter(|&n| n < bits), self.left) {
            (Some(n), true) => x.unsigned_shl(n),
            (Some(n), false) => x >> n as usize,
            (None, false) if x < T::zero() => !T::zero(),
            (None, _) => T::zero(),
        })
    }
}

impl Op for BitShift {
    fn name(&self) -> &str {
        "BitShift"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![infer_elementwise(cx, None)?])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(1)?);
        same_dtype(a, b)?;
        Ok(vec![with_int!(a.dtype(), 0, T => self.apply::<T>(a, b))?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with("direction", if self.left { "LEFT" } else { "RIGHT" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_out_everything_beyond_the_width() {
        let shift = |left, a: i8, b: i8| {
            let y = BitShift { left }.apply::<i8>(&Tensor::scalar(a), &Tensor::scalar(b)).unwrap();
            y.to_i64s().unwrap()[0]
        };
        assert_eq!(shift(true, 1, 7), -128);
        assert_eq!(shift(true, 1, 8), 0);
        assert_eq!(shift(false, -128, 9), -1);
        assert_eq!(shift(false, -128, -1), -1);
        assert_eq!(shift(false, 64, 6), 1);
    }

    #[test]
    fn refuses_unknown_directions() {
        assert!(build_shift(11, &mut AttrMap::new()).is_err());
        assert!(build_shift(11, &mut AttrMap::new().with("direction", "UP")).is_err());
    }
}
