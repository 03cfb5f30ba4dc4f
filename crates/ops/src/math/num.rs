//! Arithmetic in each element type exactly as ONNX defines it: integers wrap,
//! half types are computed in `f32` and rounded once, NaN propagates through max and min.

use half::{bf16, f16};
use narrowbit_tensor::Element;
use num_traits::Float;

/// A numeric element of at least one byte.
pub(crate) trait Num: Element + PartialOrd {
    /// Whether this is a floating-point type: division by zero is defined.
    const FLOAT: bool;
    const ZERO: Self;
    const ONE: Self;
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    /// The quotient, toward zero for integers; the divisor of integers must not be 0.
    fn over(self, other: Self) -> Self;
    /// The remainder with the sign of the divisor; the divisor of integers must not be 0.
    fn modulo(self, other: Self) -> Self;
    /// The remainder with the sign of the dividend (C's `fmod`); the divisor of integers must not be 0.
    fn fmod(self, other: Self) -> Self;
    /// Rounded to nearest; integers: truncated, the nearest value where it does not fit.
    fn from_f64(x: f64) -> Self;
    fn to_f64(self) -> f64;

    fn is_nan(self) -> bool {
        self.partial_cmp(&self).is_none()
    }

    fn larger(self, other: Self) -> Self {
        if self > other || self.is_nan() { self } else { other }
    }

    fn smaller(self, other: Self) -> Self {
        if self < other || self.is_nan() { self } else { other }
    }
}

macro_rules! int {
    ($($t:ty),*) => { $(impl Num for $t {
        const FLOAT: bool = false;
        const ZERO: $t = 0;
        const ONE: $t = 1;
        fn plus(self, o: $t) -> $t { self.wrapping_add(o) }
        fn minus(self, o: $t) -> $t { self.wrapping_sub(o) }
        fn times(self, o: $t) -> $t { self.wrapping_mul(o) }
        fn over(self, o: $t) -> $t { if o == 0 { 0 } else { self.wrapping_div(o) } }
        #[allow(unused_comparisons)]
        fn modulo(self, o: $t) -> $t {
            let r = self.fmod(o);
            if r != 0 && (r < 0) != (o < 0) { r.wrapping_add(o) } else { r }
        }
        fn fmod(self, o: $t) -> $t { if o == 0 { 0 } else { self.wrapping_rem(o) } }
        fn from_f64(x: f64) -> $t { x as $t }
        fn to_f64(self) -> f64 { self as f64 }
    })* };
}
int!(i8, u8, i16, u16, i32, u32, i64, u64);

/// The floored remainder of floats with ONNX's special cases (those of Python's `%`).
fn float_modulo<T: Float>(a: T, b: T) -> T {
    let r = a % b;
    if r.is_zero() {
        return if b.is_sign_negative() { T::neg_zero() } else { T::zero() };
    }
    if (r < T::zero()) != (b < T::zero()) { r + b } else { r }
}

macro_rules! float {
    ($($t:ty),*) => { $(impl Num for $t {
        const FLOAT: bool = true;
        const ZERO: $t = 0.0;
        const ONE: $t = 1.0;
        fn plus(self, o: $t) -> $t { self + o }
        fn minus(self, o: $t) -> $t { self - o }
        fn times(self, o: $t) -> $t { self * o }
        fn over(self, o: $t) -> $t { self / o }
        fn modulo(self, o: $t) -> $t { float_modulo(self, o) }
        fn fmod(self, o: $t) -> $t { self % o }
        fn from_f64(x: f64) -> $t { x as $t }
        fn to_f64(self) -> f64 { f64::from(self) }
    })* };
}
float!(f32, f64);

macro_rules! half_float {
    ($($t:ty),*) => { $(impl Num for $t {
        const FLOAT: bool = true;
        const ZERO: $t = <$t>::ZERO;
        const ONE: $t = <$t>::ONE;
        fn plus(self, o: $t) -> $t { <$t>::from_f32(self.to_f32() + o.to_f32()) }
        fn minus(self, o: $t) -> $t { <$t>::from_f32(self.to_f32() - o.to_f32()) }
        fn times(self, o: $t) -> $t { <$t>::from_f32(self.to_f32() * o.to_f32()) }
        fn over(self, o: $t) -> $t { <$t>::from_f32(self.to_f32() / o.to_f32()) }
        fn modulo(self, o: $t) -> $t { <$t>::from_f32(float_modulo(self.to_f32(), o.to_f32())) }
        fn fmod(self, o: $t) -> $t { <$t>::from_f32(self.to_f32() % o.to_f32()) }
        fn from_f64(x: f64) -> $t { <$t>::from_f64(x) }
        fn to_f64(self) -> f64 { <$t>::to_f64(self) }
    })* };
}
half_float!(f16, bf16);

/// Runs `$body` with `$T` bound to the Rust type of a numeric dtype of at least one
/// byte; other types are an [`OpError::Input`](narrowbit_ir::OpError::Input) at input `$index`.
macro_rules! with_num {
    ($dtype:expr, $index:expr, $T:ident => $body:expr) => {{
        macro_rules! arm {
            ($t:ty) => {{
                type $T = $t;
                $body
            }};
        }
        match $dtype {
            narrowbit_tensor::DType::F32 => arm!(f32),
            narrowbit_tensor::DType::F64 => arm!(f64),
            narrowbit_tensor::DType::F16 => arm!(half::f16),
            narrowbit_tensor::DType::Bf16 => arm!(half::bf16),
            narrowbit_tensor::DType::I8 => arm!(i8),
            narrowbit_tensor::DType::U8 => arm!(u8),
            narrowbit_tensor::DType::I16 => arm!(i16),
            narrowbit_tensor::DType::U16 => arm!(u16),
            narrowbit_tensor::DType::I32 => arm!(i32),
            narrowbit_tensor::DType::U32 => arm!(u32),
            narrowbit_tensor::DType::I64 => arm!(i64),
            narrowbit_tensor::DType::U64 => arm!(u64),
            d => Err(narrowbit_ir::OpError::input($index, d.name(), "a number of at least 8 bits")),
        }
    }};
}
pub(crate) use with_num;

/// As [`with_num`] for integers only.
macro_rules! with_int {
    ($dtype:expr, $index:expr, $T:ident => $body:expr) => {{
        macro_rules! arm {
            ($t:ty) => {{
                type $T = $t;
                $body
            }};
        }
        match $dtype {
            narrowbit_tensor::DType::I8 => arm!(i8),
            narrowbit_tensor::DType::U8 => arm!(u8),
            narrowbit_tensor::DType::I16 => arm!(i16),
            narrowbit_tensor::DType::U16 => arm!(u16),
            narrowbit_tensor::DType::I32 => arm!(i32),
            narrowbit_tensor::DType::U32 => arm!(u32),
            narrowbit_tensor::DType::I64 => arm!(i64),
            narrowbit_tensor::DType::U64 => arm!(u64),
            d => Err(narrowbit_ir::OpError::input($index, d.name(), "an integer of at least 8 bits")),
        }
    }};
}
pub(crate) use with_int;

/// A floating-point type in which functions are computed: `f32` or `f64`.
pub(crate) trait Real: Float + Element {
    fn of(x: f64) -> Self;
    fn erf(self) -> Self;
    /// Rounded to an integer, ties to even.
    fn round_even(self) -> Self;
}

impl Real for f32 {
    fn of(x: f64) -> f32 {
        x as f32
    }

    fn erf(self) -> f32 {
        libm::erff(self)
    }

    fn round_even(self) -> f32 {
        self.round_ties_even()
    }
}

impl Real for f64 {
    fn of(x: f64) -> f64 {
        x
    }

    fn erf(self) -> f64 {
        libm::erf(self)
    }

    fn round_even(self) -> f64 {
        self.round_ties_even()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_integers_and_divides_toward_zero() {
        assert_eq!(100i8.plus(100), -56);
        assert_eq!((-7i32).over(2), -3);
        assert_eq!(i64::MIN.over(-1), i64::MIN);
        assert_eq!((-7i32).modulo(3), 2);
        assert_eq!((-7i32).fmod(3), -1);
        assert_eq!(7i32.modulo(-3), -2);
    }

    #[test]
    fn keeps_special_cases_of_float_modulo() {
        assert_eq!((-7.5f32).modulo(2.0), 0.5);
        assert!(0f32.modulo(-2.0).is_sign_negative());
        assert!(1f32.modulo(0.0).is_nan());
        assert_eq!(3f32.modulo(f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert_eq!(3f32.modulo(f32::INFINITY), 3.0);
    }

    #[test]
    fn propagates_nan_through_max_and_min() {
        assert!(Num::is_nan(f32::NAN.larger(1.0)) && Num::is_nan(1f32.larger(f32::NAN)));
        assert!(Num::is_nan(f32::NAN.smaller(1.0)) && Num::is_nan(1f32.smaller(f32::NAN)));
    }
}
