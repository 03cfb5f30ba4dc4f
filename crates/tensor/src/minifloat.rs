//! Codes of the floating-point types of at most 8 bits.
//!
//! Encoding rounds to nearest, ties to even, as ONNX's Cast and QuantizeLinear
//! ask; formats and special values are those of the ONNX page "Float stored in
//! 8 bits" and of the OCP formats that it names.

use crate::DType;

/// How a format spends its codes.
#[derive(Debug, Clone, Copy)]
struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    max: f64,
    special: Special,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Special {
    /// Infinity and NaN as in IEEE.
    Ieee,
    /// No infinity; NaN is all ones (both signs).
    Fn,
    /// One zero; NaN is the code of negative zero.
    Fnuz,
    /// Neither infinity nor NaN.
    Finite,
}

fn format(dtype: DType) -> Option<Format> {
    use Special::*;
    let f =
        |exponent_bits, mantissa_bits, bias, max, special| Format { exponent_bits, mantissa_bits, bias, max, special };
    Some(match dtype {
        DType::F8E4M3Fn => f(4, 3, 7, 448.0, Fn),
        DType::F8E4M3Fnuz => f(4, 3, 8, 240.0, Fnuz),
        DType::F8E5M2 => f(5, 2, 15, 57344.0, Ieee),
        DType::F8E5M2Fnuz => f(5, 2, 16, 57344.0, Fnuz),
        DType::F4E2M1 => f(2, 1, 1, 6.0, Finite),
        _ => return None,
    })
}

/// The greatest finite value of a minifloat type; `None` for other types.
pub fn max_value(dtype: DType) -> Option<f32> {
    match dtype {
        DType::F8E8M0 => Some(2f32.powi(127)),
        _ => format(dtype).map(|f| f.max as f32),
    }
}

/// The code of `x`, rounded to nearest even.
///
/// Beyond the greatest value: that value where `saturate`, else infinity or NaN
/// (fp4 has neither and always saturates). Not a minifloat type: 0.
pub fn encode(dtype: DType, x: f32, saturate: bool) -> u8 {
    if dtype == DType::F8E8M0 {
        return encode_e8m0(x);
    }
    let Some(f) = format(dtype) else { return 0 };
    let width = 1 + f.exponent_bits + f.mantissa_bits;
    let sign = (x.is_sign_negative() as u8) << (width - 1);
    let nan = match f.special {
        Special::Fnuz => 0x80,
        Special::Finite => (1 << (width - 1)) - 1,
        Special::Ieee | Special::Fn => sign | 0x7f,
    };
    if x.is_nan() {
        return nan;
    }
    let magnitude = round_to(f64::from(x.abs()), &f);
    let code = if magnitude > f.max {
        match (saturate, f.special) {
            (true, Special::Fnuz) if x.is_infinite() => return nan,
            (true, _) | (false, Special::Finite) => pack(f.max, &f),
            (false, Special::Ieee) => ((1 << f.exponent_bits) - 1) << f.mantissa_bits,
            (false, Special::Fn | Special::Fnuz) => return nan,
        }
    } else {
        pack(magnitude, &f)
    };
    if code == 0 && f.special == Special::Fnuz { 0 } else { sign | code }
}

/// The value of a code; NaN for a type that is no minifloat.
pub fn decode(dtype: DType, code: u8) -> f32 {
    if dtype == DType::F8E8M0 {
        return if code == 255 { f32::NAN } else { 2f64.powi(i32::from(code) - 127) as f32 };
    }
    let Some(f) = format(dtype) else { return f32::NAN };
    let width = 1 + f.exponent_bits + f.mantissa_bits;
    let negative = code >> (width - 1) & 1 == 1;
    let body = u32::from(code) & ((1 << (width - 1)) - 1);
    let (exponent, mantissa) = (body >> f.mantissa_bits, body & ((1 << f.mantissa_bits) - 1));
    let top = exponent == (1 << f.exponent_bits) - 1;
    let magnitude = match f.special {
        Special::Fnuz if negative && body == 0 => return f32::NAN,
        Special::Fn if body == (1 << (width - 1)) - 1 => f32::NAN,
        Special::Ieee if top && mantissa == 0 => f32::INFINITY,
        Special::Ieee if top => f32::NAN,
        _ => value(exponent, mantissa, &f),
    };
    if negative { -magnitude } else { magnitude }
}

fn value(exponent: u32, mantissa: u32, f: &Format) -> f32 {
    let fraction = f64::from(mantissa) / f64::from(1u32 << f.mantissa_bits);
    let v = match exponent {
        0 => fraction * 2f64.powi(1 - f.bias),
        e => (1.0 + fraction) * 2f64.powi(e as i32 - f.bias),
    };
    v as f32
}

/// The magnitude rounded to the format's grid, its exponent unbounded above.
fn round_to(magnitude: f64, f: &Format) -> f64 {
    if magnitude == 0.0 || magnitude.is_infinite() {
        return magnitude;
    }
    // f32 magnitudes are normal in f64, so its exponent field is exact.
    let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(1 - f.bias);
    let step = 2f64.powi(exponent - f.mantissa_bits as i32);
    (magnitude / step).round_ties_even() * step
}

/// The code (without sign) of a magnitude that the format holds exactly.
fn pack(magnitude: f64, f: &Format) -> u8 {
    let exponent = (magnitude.to_bits() >> 52) as i32 - 1023;
    if magnitude == 0.0 || exponent < 1 - f.bias {
        return (magnitude / 2f64.powi(1 - f.bias - f.mantissa_bits as i32)) as u8;
    }
    let mantissa = ((magnitude / 2f64.powi(exponent) - 1.0) * f64::from(1u32 << f.mantissa_bits)) as u8;
    (((exponent + f.bias) as u8) << f.mantissa_bits) | mantissa
}

fn encode_e8m0(x: f32) -> u8 {
    if x.is_nan() || x < 0.0 {
        return 255;
    }
    // The nearest power of two; a tie (mantissa exactly one half) goes up.
    let bits = x.to_bits();
    // Subnormals lie between 2^-127 (code 0, half of the field's unit) and 2^-126.
    let up = if bits >> 23 == 0 { u32::from(bits >= 0x60_0000) } else { bits >> 22 & 1 };
    ((bits >> 23) + up).min(254) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [DType; 6] =
        [DType::F8E4M3Fn, DType::F8E4M3Fnuz, DType::F8E5M2, DType::F8E5M2Fnuz, DType::F4E2M1, DType::F8E8M0];

    #[test]
    fn encodes_every_decoded_code_to_itself() {
        for dtype in ALL {
            for code in 0..(1u32 << dtype.bits()) {
                let code = code as u8;
                let v = decode(dtype, code);
                if v.is_nan() {
                    assert!(decode(dtype, encode(dtype, v, true)).is_nan(), "{dtype} {code:#x}");
                } else if v.is_finite() {
                    assert_eq!(encode(dtype, v, true), code, "{dtype} {code:#x} = {v}");
                }
            }
        }
    }

    #[test]
    fn rounds_to_the_nearest_code_with_ties_to_even() {
        for dtype in ALL {
            if dtype == DType::F8E8M0 {
                continue;
            }
            let half = 1u32 << (dtype.bits() - 1);
            let grid: Vec<(u8, f32)> =
                (0..half).map(|c| (c as u8, decode(dtype, c as u8))).filter(|(_, v)| v.is_finite()).collect();
            for pair in grid.windows(2) {
                let ((a, lo), (b, hi)) = (pair[0], pair[1]);
                let mid = (lo + hi) / 2.0;
                assert_eq!(encode(dtype, mid, true), if a % 2 == 0 { a } else { b }, "{dtype} tie {mid}");
                assert_eq!(encode(dtype, mid.next_down(), true), a);
                assert_eq!(encode(dtype, mid.next_up(), true), b);
            }
        }
    }

    #[test]
    fn saturates_or_overflows_as_asked() {
        assert_eq!(decode(DType::F8E4M3Fn, encode(DType::F8E4M3Fn, 1e9, true)), 448.0);
        assert!(decode(DType::F8E4M3Fn, encode(DType::F8E4M3Fn, 1e9, false)).is_nan());
        assert_eq!(decode(DType::F8E5M2, encode(DType::F8E5M2, -1e9, true)), -57344.0);
        assert_eq!(decode(DType::F8E5M2, encode(DType::F8E5M2, 1e9, false)), f32::INFINITY);
        assert_eq!(encode(DType::F8E4M3Fnuz, -0.0, true), 0);
        // 448..464 rounds down to 448, from 464 on it would be 480.
        assert_eq!(decode(DType::F8E4M3Fn, encode(DType::F8E4M3Fn, 463.9, false)), 448.0);
    }
}
