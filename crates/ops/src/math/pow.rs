//! Pow: `a ^ b` with broadcasting.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::broadcast::{output_shape, zip_with};
use super::num::{Num, with_num};
use crate::support::broadcast_all;

/// `y = a ^ b`, broadcast together; the exponent may have another numeric type, the output has the base's.
/// Two integers: exact, wrapping around; otherwise computed in `f64` and rounded (truncated) once.
#[derive(Debug, Clone, Copy)]
pub struct Pow;

/// Makes a Pow; it has no attributes.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Pow))
}

fn apply<T: Num>(a: &Tensor, b: &Tensor) -> Result<Tensor, OpError> {
    let out = output_shape(a, b, a.dtype())?;
    let base = a.slice::<T>()?;
    let y = if !T::FLOAT && b.dtype().is_int() {
        let e = b.to_i64s()?;
        zip_with((&base, a.shape()), (&e, b.shape()), &out, power)
    } else {
        let e = b.to_f64s()?;
        zip_with((&base, a.shape()), (&e, b.shape()), &out, |x, e| T::from_f64(x.to_f64().powf(e)))
    };
    Ok(Tensor::new(out, y)?)
}

/// By squaring, wrapping; a negative exponent gives the reciprocal, truncated.
fn power<T: Num>(x: T, e: i64) -> T {
    if e < 0 {
        return T::from_f64(x.to_f64().powf(e as f64));
    }
    let (mut base, mut e, mut y) = (x, e as u64, T::ONE);
    while e > 0 {
        if e & 1 == 1 {
            y = y.times(base);
        }
        base = base.times(base);
        e >>= 1;
    }
    y
}

impl Op for Pow {
    fn name(&self) -> &str {
        "Pow"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::tensor(cx.dtype(0), broadcast_all(cx)?)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(1)?);
        Ok(vec![with_num!(a.dtype(), 0, T => apply::<T>(a, b))?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raises_integers_exactly() {
        assert_eq!(power(3i64, 39), 4_052_555_153_018_976_267);
        assert_eq!(power(2i32, 32), 0);
        assert_eq!(power(2i32, -1), 0);
        assert_eq!(power(-1i32, -3), -1);
        assert_eq!(power(5u8, 0), 1);
    }
}
