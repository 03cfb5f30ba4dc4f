//! Functions of one number without attributes: Abs, Acos … Tanh.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::{DType, Tensor};

use super::num::Real;
use crate::support::infer_same;

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $f:expr;)*) => {
        /// A function applied to each element; floating-point types (Abs, Neg and Sign also integers),
        /// output of the same type and shape. The formulas are those of the ONNX operators of the same names.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Unary { $($(#[$doc])* $name,)* }

        impl Unary {
            fn title(self) -> &'static str {
                match self { $(Unary::$name => stringify!($name),)* }
            }

            fn function<T: Real>(self) -> fn(T) -> T {
                match self { $(Unary::$name => $f,)* }
            }
        }
    };
}

functions! {
    /// `|x|`
    Abs = |x| x.abs();
    /// `arccos(x)`
    Acos = |x| x.acos();
    /// `arcosh(x)`
    Acosh = |x| x.acosh();
    /// `arcsin(x)`
    Asin = |x| x.asin();
    /// `arsinh(x)`
    Asinh = |x| x.asinh();
    /// `arctan(x)`
    Atan = |x| x.atan();
    /// `artanh(x)`
    Atanh = |x| x.atanh();
    /// The least integer not below x.
    Ceil = |x| x.ceil();
    /// `cos(x)`
    Cos = |x| x.cos();
    /// `cosh(x)`
    Cosh = |x| x.cosh();
    /// The error function.
    Erf = |x| x.erf();
    /// `e^x`
    Exp = |x| x.exp();
    /// The greatest integer not above x.
    Floor = |x| x.floor();
    /// `x * max(0, min(1, x / 6 + 0.5))`
    HardSwish = |x| x * clamp(x * T::of(1.0 / 6.0) + T::of(0.5), T::zero(), T::one());
    /// The natural logarithm.
    Log = |x| x.ln();
    /// `x * tanh(ln(1 + e^x))`
    Mish = |x| x * softplus(x).tanh();
    /// `-x`
    Neg = |x| -x;
    /// `1 / x`
    Reciprocal = |x| x.recip();
    /// Rounded to an integer, ties to even.
    Round = |x| x.round_even();
    /// `1 / (1 + e^-x)`
    Sigmoid = |x| sigmoid(x);
    /// −1, 0 or 1; NaN stays NaN.
    Sign = |x| if x > T::zero() { T::one() } else if x < T::zero() { -T::one() } else { x };
    /// `sin(x)`
    Sin = |x| x.sin();
    /// `sinh(x)`
    Sinh = |x| x.sinh();
    /// `ln(1 + e^x)`
    Softplus = |x| softplus(x);
    /// `x / (1 + |x|)`
    Softsign = |x| x / (T::one() + x.abs());
    /// The square root.
    Sqrt = |x| x.sqrt();
    /// `tan(x)`
    Tan = |x| x.tan();
    /// `tanh(x)`
    Tanh = |x| x.tanh();
}

/// `1 / (1 + e^-x)`.
pub(crate) fn sigmoid<T: Real>(x: T) -> T {
    (T::one() + (-x).exp()).recip()
}

/// `ln(1 + e^x)` without overflow.
fn softplus<T: Real>(x: T) -> T {
    // `Float::max` would drop a NaN.
    let positive = if x < T::zero() { T::zero() } else { x };
    positive + (-x.abs()).exp().ln_1p()
}

/// `min(high, max(low, x))`; NaN stays NaN.
pub(crate) fn clamp<T: PartialOrd>(x: T, low: T, high: T) -> T {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// Maps each element of a floating-point tensor: `f64` in its own precision, all others through `f32`.
///
/// # Errors
/// For other types.
pub(crate) fn map_real(x: &Tensor, f: impl Fn(f32) -> f32, g: impl Fn(f64) -> f64) -> Result<Tensor, OpError> {
    match x.dtype() {
        DType::F64 => Ok(Tensor::new(x.shape(), x.slice::<f64>()?.iter().map(|&v| g(v)).collect())?),
        d if d.is_float() => Ok(Tensor::from_f32s(d, x.shape(), x.to_f32s()?.iter().map(|&v| f(v)).collect())?),
        d => Err(OpError::input(0, d.name(), "a floating-point type")),
    }
}

impl Unary {
    /// Makes the operator; it has no attributes.
    pub fn build(self, _opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
        Ok(Arc::new(self))
    }

    /// On integers: Abs, Neg and Sign, wrapping.
    fn map_ints(self, x: &Tensor) -> Result<Tensor, OpError> {
        let f: fn(i64) -> i64 = match (self, x.dtype().is_signed_int()) {
            (Unary::Abs, true) => i64::wrapping_abs,
            (Unary::Abs, false) => |v| v,
            (Unary::Neg, _) => i64::wrapping_neg,
            (Unary::Sign, true) => i64::signum,
            (Unary::Sign, false) => |v| i64::from(v != 0),
            _ => return Err(OpError::input(0, x.dtype().name(), "a floating-point type")),
        };
        let y: Vec<i64> = x.to_i64s()?.into_iter().map(f).collect();
        Ok(Tensor::from_i64s(x.dtype(), x.shape(), &y)?)
    }
}

impl Op for Unary {
    fn name(&self) -> &str {
        self.title()
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let y = if x.dtype().is_int() {
            self.map_ints(x)
        } else {
            map_real(x, self.function::<f32>(), self.function::<f64>())
        };
        Ok(vec![y?])
    }

    fn quant(&self) -> QuantRole {
        match self {
            Unary::Sigmoid | Unary::Tanh | Unary::HardSwish => QuantRole::Arithmetic { same_scale: false },
            _ => QuantRole::Float,
        }
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    fn run(op: Unary, x: Tensor) -> Result<Tensor, OpError> {
        Ok(op.eval(&EvalCx::new(&[Some(&Datum::Tensor(x))], 1))?.remove(0))
    }

    #[test]
    fn rounds_ties_to_even() {
        let y = run(Unary::Round, Tensor::vector(vec![0.5f32, 1.5, 2.5, -0.5, -1.5])).unwrap();
        assert_eq!(y.to_f64s().unwrap(), [0.0, 2.0, 2.0, 0.0, -2.0]);
    }

    #[test]
    fn stays_finite_where_the_plain_formula_overflows() {
        // Within one unit in the last place of the exact values: the functions round once or twice.
        let y = run(Unary::Softplus, Tensor::vector(vec![-200f32, 0.0, 200.0])).unwrap();
        assert_eq!(y.to_f32s().unwrap().as_ref(), [0.0, 2f32.ln(), 200.0]);
        assert_eq!(run(Unary::Sigmoid, Tensor::scalar(-200f32)).unwrap(), Tensor::scalar(0f32));
    }

    #[test]
    fn takes_integers_only_where_onnx_does() {
        assert_eq!(run(Unary::Abs, Tensor::scalar(-128i8)), Ok(Tensor::scalar(-128i8)));
        assert_eq!(run(Unary::Sign, Tensor::scalar(u64::MAX)), Ok(Tensor::scalar(1u64)));
        assert!(run(Unary::Exp, Tensor::scalar(1i32)).is_err());
        assert!(run(Unary::Abs, Tensor::from_bools([1], vec![true]).unwrap()).is_err());
    }
}
