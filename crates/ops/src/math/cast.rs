//! Cast and CastLike: conversion between all element types.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor, minifloat};

/// How numbers are rounded to float8e8m0, the type of powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RoundMode {
    /// Away from zero.
    #[default]
    Up,
    /// Toward zero.
    Down,
    /// To the nearest, ties up.
    Nearest,
}

/// The attributes that Cast and CastLike share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Whether values beyond the range of a float8 type become its greatest value instead of infinity or NaN.
    pub saturate: bool,
    /// How numbers are rounded to float8e8m0.
    pub round_mode: RoundMode,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { saturate: true, round_mode: RoundMode::Up }
    }
}

impl Rules {
    fn take(attrs: &mut AttrMap) -> Result<Rules, OpError> {
        let round_mode = match attrs.string("round_mode")?.as_deref() {
            None | Some("up") => RoundMode::Up,
            Some("down") => RoundMode::Down,
            Some("nearest") => RoundMode::Nearest,
            Some(other) => {
                return Err(OpError::attribute(
                    "round_mode",
                    format!("is {other:?}, not \"up\", \"down\" or \"nearest\""),
                ));
            }
        };
        Ok(Rules { saturate: attrs.int_or("saturate", 1)? != 0, round_mode })
    }

    fn attrs(self) -> AttrMap {
        let mode = match self.round_mode {
            RoundMode::Up => None,
            RoundMode::Down => Some("down"),
            RoundMode::Nearest => Some("nearest"),
        };
        AttrMap::new().with_unless("saturate", i64::from(self.saturate), 1).with_opt("round_mode", mode)
    }
}

/// Converts each element to the type `to` by ONNX's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast {
    /// The output's element type.
    pub to: DType,
    /// Saturation and rounding.
    pub rules: Rules,
}

/// Converts each element to the type of input 1 by ONNX's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CastLike {
    /// Saturation and rounding.
    pub rules: Rules,
}

/// Makes a Cast from its attributes `to`, `saturate` and `round_mode`.
///
/// # Errors
/// When an attribute is missing or wrong.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let code = attrs.int("to")?.ok_or_else(|| OpError::attribute("to", "is missing"))?;
    let to = DType::from_onnx(code).ok_or_else(|| OpError::attribute("to", format!("is {code}, no element type")))?;
    Ok(Arc::new(Cast { to, rules: Rules::take(attrs)? }))
}

/// Makes a CastLike from its attributes `saturate` and `round_mode`.
///
/// # Errors
/// When an attribute is wrong.
pub fn build_like(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(CastLike { rules: Rules::take(attrs)? }))
}

/// Converts a tensor to another element type by the rules of ONNX's Cast.
///
/// Integers wrap to narrower integers; floating-point numbers are truncated toward zero, what an
/// integer of 32 or 64 bits can't hold becomes its nearest value (ONNX leaves it undefined).
///
/// # Errors
/// For complex types and for strings that are no numbers.
pub fn cast(x: &Tensor, to: DType, rules: Rules) -> Result<Tensor, OpError> {
    use DType::*;
    let shape = x.shape();
    let y = match (x.dtype(), to) {
        (a, b) if a == b => x.clone(),
        (Complex64 | Complex128, _) | (_, Complex64 | Complex128) => {
            return Err(OpError::Unsupported(format!("a cast from {} to {to}", x.dtype())));
        }
        (String, d) => parse(x, d, rules)?,
        (_, String) => Tensor::from_strings(shape, texts(x)?)?,
        (_, Bool) => Tensor::from_bools(shape, x.to_f64s()?.into_iter().map(|v| v != 0.0).collect())?,
        // Straight from the integer: a detour over f64 would round twice.
        (I64, F32) => Tensor::new(shape, x.slice::<i64>()?.iter().map(|&v| v as f32).collect())?,
        (U64, F32) => Tensor::new(shape, x.slice::<u64>()?.iter().map(|&v| v as f32).collect())?,
        (a, d) if !a.is_float() && d.is_int() => Tensor::from_i64s(d, shape, &x.to_i64s()?)?,
        (_, d) => from_floats(shape, &x.to_f64s()?, d, rules)?,
    };
    Ok(y)
}

fn from_floats(shape: &[usize], x: &[f64], to: DType, rules: Rules) -> Result<Tensor, OpError> {
    let codes = |f: &dyn Fn(f64) -> u8| x.iter().map(|&v| f(v)).collect::<Vec<u8>>();
    Ok(match to {
        DType::F8E8M0 => Tensor::from_bytes(to, shape, codes(&|v| encode_e8m0(v, rules)))?,
        DType::F4E2M1 => Tensor::from_codes(to, shape, &codes(&encode_f4))?,
        d if d.is_minifloat() => Tensor::from_bytes(to, shape, codes(&|v| encode_f8(d, v, rules.saturate)))?,
        d if d.is_float() => Tensor::from_f64s(d, shape, x)?,
        DType::U64 => Tensor::new(shape, x.iter().map(|&v| v as u64).collect())?,
        DType::U32 => Tensor::new(shape, x.iter().map(|&v| v as u32).collect())?,
        DType::I32 => Tensor::new(shape, x.iter().map(|&v| v as i32).collect())?,
        d => Tensor::from_i64s(d, shape, &x.iter().map(|&v| v as i64).collect::<Vec<_>>())?,
    })
}

/// With saturation, infinities become the greatest finite value in every float8 type.
fn encode_f8(to: DType, x: f64, saturate: bool) -> u8 {
    let x = x as f32;
    let x = if saturate && x.is_infinite() { f32::MAX.copysign(x) } else { x };
    minifloat::encode(to, x, saturate)
}

/// fp4 has no NaN: it becomes −0, as in the node tests (ONNX leaves it open).
fn encode_f4(x: f64) -> u8 {
    const NEGATIVE_ZERO: u8 = 0b1000;
    if x.is_nan() { NEGATIVE_ZERO } else { minifloat::encode(DType::F4E2M1, x as f32, true) }
}

/// The exponent of `x` in float8e8m0, rounded as asked for; 255 is NaN.
/// Negative numbers, which ONNX leaves unspecified, become NaN.
fn encode_e8m0(x: f64, rules: Rules) -> u8 {
    const NAN: u8 = 255;
    const BIAS: i64 = 127;
    if x.is_nan() || x < 0.0 {
        return NAN;
    }
    // Values of f32 and half types are normal in f64: what is subnormal there is below the range anyway.
    let (mut exponent, fraction) = ((x.to_bits() >> 52) as i64 - 1023, x.to_bits() & ((1 << 52) - 1));
    exponent += match rules.round_mode {
        RoundMode::Up => i64::from(fraction != 0),
        RoundMode::Down => 0,
        RoundMode::Nearest => i64::from(fraction >> 51 == 1),
    };
    match (exponent + BIAS, rules.saturate) {
        (code @ 0..=254, _) => code as u8,
        (code, true) => code.clamp(0, 254) as u8,
        (_, false) => NAN,
    }
}

/// Each element as text: integers in decimal, floating-point numbers without exponent, shortest that reads back the same.
fn texts(x: &Tensor) -> Result<Vec<String>, OpError> {
    let special = |v: f64| match v {
        v if v.is_nan() => Some("NaN"),
        f64::INFINITY => Some("INF"),
        f64::NEG_INFINITY => Some("-INF"),
        _ => None,
    };
    Ok(match x.dtype() {
        DType::F64 => x.to_f64s()?.into_iter().map(|v| special(v).map_or_else(|| v.to_string(), Into::into)).collect(),
        d if d.is_float() => {
            let text = |&v: &f32| special(v.into()).map_or_else(|| v.to_string(), Into::into);
            x.to_f32s()?.iter().map(text).collect()
        }
        DType::Bool => x.bools()?.into_iter().map(|b| if b { "1" } else { "0" }.into()).collect(),
        DType::U64 => x.slice::<u64>()?.iter().map(u64::to_string).collect(),
        _ => x.to_i64s()?.into_iter().map(|v| v.to_string()).collect(),
    })
}

fn parse(x: &Tensor, to: DType, rules: Rules) -> Result<Tensor, OpError> {
    let strings = x.strings()?;
    let number = |s: &String| {
        // Rust reads ONNX's special names INF, +INF, -INF and NaN in any case.
        s.trim().parse::<f64>().map_err(|_| OpError::Value(format!("the string {s:?} is no number")))
    };
    let whole = |s: &String| s.trim().parse::<i128>().map(|v| v as i64).or_else(|_| number(s).map(|v| v as i64));
    match to {
        DType::Bool => {
            let values = strings.iter().map(|s| number(s).map(|v| v != 0.0)).collect::<Result<Vec<_>, _>>()?;
            Ok(Tensor::from_bools(x.shape(), values)?)
        }
        // Straight to f32: a detour over f64 would round twice.
        DType::F32 => {
            let one = |s: &String| s.trim().parse::<f32>().or_else(|_| number(s).map(|v| v as f32));
            Ok(Tensor::new(x.shape(), strings.iter().map(one).collect::<Result<Vec<_>, _>>()?)?)
        }
        d if d.is_int() => {
            Ok(Tensor::from_i64s(d, x.shape(), &strings.iter().map(whole).collect::<Result<Vec<_>, _>>()?)?)
        }
        d => from_floats(x.shape(), &strings.iter().map(number).collect::<Result<Vec<_>, _>>()?, d, rules),
    }
}

fn infer(cx: &InferCx, to: Option<DType>) -> Result<Vec<Fact>, OpError> {
    let x = cx.get(0)?;
    let fact = Fact::tensor(to, x.shape().map(<[_]>::to_vec));
    // Symbols stand for extents, which every integer type of 32 bits or more is taken to hold.
    let wide = matches!(to, Some(DType::I32 | DType::I64 | DType::U32 | DType::U64));
    let whole = x.dtype().is_some_and(DType::is_int);
    Ok(vec![fact.with_dims(if wide && whole { x.dims.clone() } else { None })])
}

impl Op for Cast {
    fn name(&self) -> &str {
        "Cast"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer(cx, Some(self.to))
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        Ok(vec![cast(cx.get(0)?, self.to, self.rules)?])
    }

    fn attrs(&self) -> AttrMap {
        self.rules.attrs().with("to", i64::from(self.to.to_onnx()))
    }
}

impl Op for CastLike {
    fn name(&self) -> &str {
        "CastLike"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer(cx, cx.get(1)?.dtype())
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        Ok(vec![cast(cx.get(0)?, cx.get(1)?.dtype(), self.rules)?])
    }

    fn attrs(&self) -> AttrMap {
        self.rules.attrs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(x: &Tensor, dtype: DType) -> Tensor {
        cast(x, dtype, Rules::default()).unwrap()
    }

    #[test]
    fn wraps_integers_and_truncates_floats() {
        assert_eq!(to(&Tensor::scalar(200i16), DType::I8), Tensor::scalar(-56i8));
        assert_eq!(to(&Tensor::scalar(-1.9f32), DType::I32), Tensor::scalar(-1i32));
        assert_eq!(to(&Tensor::scalar(u64::MAX), DType::F32), Tensor::scalar(u64::MAX as f32));
        assert_eq!(to(&Tensor::vector(vec![9f32, -9.0]), DType::I4).to_i64s().unwrap(), [-7, 7]);
        let b = to(&Tensor::vector(vec![0f32, -0.0, 0.5, f32::NAN]), DType::Bool);
        assert_eq!(b.bools().unwrap(), [false, false, true, true]);
    }

    #[test]
    fn goes_through_strings_and_back() {
        let s = to(&Tensor::vector(vec![1.5f32, f32::NEG_INFINITY, 1e-7, 3.0]), DType::String);
        assert_eq!(s.strings().unwrap(), ["1.5", "-INF", "0.0000001", "3"]);
        assert_eq!(to(&s, DType::F32).to_f32s().unwrap().as_ref(), [1.5, f32::NEG_INFINITY, 1e-7, 3.0]);
        let s = Tensor::from_strings([3], vec!["100.5".into(), "1E2".into(), "-7".into()]).unwrap();
        assert_eq!(to(&s, DType::I64).to_i64s().unwrap(), [100, 100, -7]);
        let words = Tensor::from_strings([1], vec!["Hello".into()]).unwrap();
        assert!(cast(&words, DType::F32, Rules::default()).is_err());
    }

    #[test]
    fn saturates_float8_only_where_asked() {
        let x = Tensor::vector(vec![1e6f32, f32::INFINITY, f32::NEG_INFINITY]);
        let y = to(&x, DType::F8E4M3Fnuz).to_f64s().unwrap();
        assert_eq!(y, [240.0, 240.0, -240.0]);
        let rules = Rules { saturate: false, ..Rules::default() };
        assert!(cast(&x, DType::F8E4M3Fn, rules).unwrap().to_f64s().unwrap().iter().all(|v| v.is_nan()));
        let y = cast(&x, DType::F8E5M2, rules).unwrap().to_f64s().unwrap();
        assert_eq!(y, [f64::INFINITY, f64::INFINITY, f64::NEG_INFINITY]);
    }

    #[test]
    fn rounds_powers_of_two_as_asked() {
        let code = |x: f64, saturate, round_mode| encode_e8m0(x, Rules { saturate, round_mode });
        assert_eq!(code(1.1, true, RoundMode::Up), 128);
        assert_eq!(code(1.1, true, RoundMode::Down), 127);
        assert_eq!(code(1.5, true, RoundMode::Nearest), 128);
        assert_eq!(code(1.49, true, RoundMode::Nearest), 127);
        assert_eq!(code(0.0, true, RoundMode::Up), 0);
        assert_eq!(code(0.0, false, RoundMode::Nearest), 255);
        assert_eq!(code(f64::INFINITY, true, RoundMode::Up), 254);
        assert_eq!(code(f64::INFINITY, false, RoundMode::Nearest), 255);
        assert_eq!(code(2f64.powi(-140), true, RoundMode::Up), 0);
    }

    #[test]
    fn refuses_wrong_attributes() {
        assert!(build(13, &mut AttrMap::new()).is_err());
        assert!(build(13, &mut AttrMap::new().with("to", 99i64)).is_err());
        assert!(build(24, &mut AttrMap::new().with("to", 24i64).with("round_mode", "odd")).is_err());
    }
}
