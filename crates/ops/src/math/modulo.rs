//! Mod: the remainder of a division, floored or truncated.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::arithmetic::refuse_zero;
use super::broadcast::{combine_dims, infer_elementwise, map2, same_dtype};
use super::num::{Num, with_num};

/// `y = a - floor(a / b) * b`, or with `fmod` `a - trunc(a / b) * b`; broadcast together, one numeric type.
/// The divisor of integers must not be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mod {
    /// Whether the result has the sign of the dividend (C's `fmod`) instead of the divisor's.
    pub fmod: bool,
}

/// Makes a Mod from its attribute `fmod`.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Mod { fmod: attrs.flag("fmod")? }))
}

impl Mod {
    fn apply<T: Num>(self, a: &Tensor, b: &Tensor) -> Result<Tensor, OpError> {
        refuse_zero::<T>(b)?;
        map2(a, b, if self.fmod { T::fmod } else { T::modulo })
    }
}

impl Op for Mod {
    fn name(&self) -> &str {
        "Mod"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let known = |a: &Dim, b: &Dim| match (a, b) {
            (Dim::Known(a), Dim::Known(b)) if *b != 0 => Dim::Known(if self.fmod { a.fmod(*b) } else { a.modulo(*b) }),
            _ => Dim::Unknown,
        };
        Ok(vec![infer_elementwise(cx, None)?.with_dims(combine_dims(cx, known))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(1)?);
        same_dtype(a, b)?;
        Ok(vec![with_num!(a.dtype(), 0, T => self.apply::<T>(a, b))?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("fmod", i64::from(self.fmod), 0)
    }
}
