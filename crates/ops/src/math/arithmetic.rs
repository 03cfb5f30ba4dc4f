//! Add, Sub, Mul and Div with broadcasting.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::broadcast::{combine_dims, infer_elementwise, map2, same_dtype};
use super::num::{Num, with_num};

/// `y = a ∘ b`, element by element, broadcast together; both of one numeric type, which is the output's.
/// Integers wrap around; integer division rounds toward zero and its divisor must not be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
}

impl Arithmetic {
    /// Makes the operator; it has no attributes.
    pub fn build(self, _opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
        Ok(Arc::new(self))
    }

    fn apply<T: Num>(self, a: &Tensor, b: &Tensor) -> Result<Tensor, OpError> {
        match self {
            Arithmetic::Add => map2(a, b, T::plus),
            Arithmetic::Sub => map2(a, b, T::minus),
            Arithmetic::Mul => map2(a, b, T::times),
            Arithmetic::Div => {
                refuse_zero::<T>(b)?;
                map2(a, b, T::over)
            }
        }
    }
}

/// Integers have no result for a division by zero.
///
/// # Errors
/// When `divisor` is of an integer type and holds a zero.
pub(crate) fn refuse_zero<T: Num>(divisor: &Tensor) -> Result<(), OpError> {
    if !T::FLOAT && divisor.slice::<T>()?.contains(&T::ZERO) {
        return Err(OpError::Value("integer division by zero: input 1 has an element 0".into()));
    }
    Ok(())
}

impl Op for Arithmetic {
    fn name(&self) -> &str {
        match self {
            Arithmetic::Add => "Add",
            Arithmetic::Sub => "Sub",
            Arithmetic::Mul => "Mul",
            Arithmetic::Div => "Div",
        }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let f = match self {
            Arithmetic::Add => Dim::add,
            Arithmetic::Sub => Dim::sub,
            Arithmetic::Mul => Dim::mul,
            Arithmetic::Div => Dim::div,
        };
        Ok(vec![infer_elementwise(cx, None)?.with_dims(combine_dims(cx, f))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(1)?);
        same_dtype(a, b)?;
        Ok(vec![with_num!(a.dtype(), 0, T => self.apply::<T>(a, b))?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Arithmetic { same_scale: false }
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;
    use narrowbit_tensor::DType;

    fn run(op: Arithmetic, a: Tensor, b: Tensor) -> Result<Tensor, OpError> {
        let (a, b) = (Datum::Tensor(a), Datum::Tensor(b));
        Ok(op.eval(&EvalCx::new(&[Some(&a), Some(&b)], 1))?.remove(0))
    }

    #[test]
    fn computes_integers_with_wrap_around() {
        let t = |v: &[u8]| Tensor::vector(v.to_vec());
        assert_eq!(run(Arithmetic::Add, t(&[200, 1]), t(&[100])), Ok(t(&[44, 101])));
        assert_eq!(run(Arithmetic::Sub, t(&[1]), t(&[2])), Ok(t(&[255])));
        let i = |v: &[i32]| Tensor::vector(v.to_vec());
        assert_eq!(run(Arithmetic::Div, i(&[-7, 7]), i(&[2])), Ok(i(&[-3, 3])));
    }

    #[test]
    fn refuses_integer_division_by_zero_and_mixed_types() {
        let one = Tensor::scalar(1i64);
        assert!(matches!(run(Arithmetic::Div, one.clone(), Tensor::scalar(0i64)), Err(OpError::Value(_))));
        assert!(run(Arithmetic::Add, one, Tensor::scalar(1f32)).is_err());
        assert_eq!(run(Arithmetic::Div, Tensor::scalar(1f32), Tensor::scalar(0f32)), Ok(Tensor::scalar(f32::INFINITY)));
    }

    #[test]
    fn carries_symbols_through_shape_arithmetic() {
        let n = Fact::tensor(Some(DType::I64), Some(vec![Dim::Known(1)])).with_dims(Some(vec![Dim::sym("n")]));
        let two = Fact::constant(Tensor::scalar(2i64));
        let out = Arithmetic::Mul.infer(&InferCx::new(&[Some(&n), Some(&two)], 1)).unwrap();
        assert_eq!(out[0].dims, Some(vec![Dim::Known(2).mul(&Dim::sym("n"))]));
        let huge = Fact::constant(Tensor::vector(vec![i32::MAX]));
        let one = Fact::constant(Tensor::vector(vec![1i32]));
        let out = Arithmetic::Add.infer(&InferCx::new(&[Some(&huge), Some(&one)], 1)).unwrap();
        assert_eq!(out[0].dims, Some(vec![Dim::Unknown]));
    }
}
