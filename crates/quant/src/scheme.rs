//! Number formats and the formulas that turn a range into scale and zero point.

use narrowbit_tensor::DType;
use serde::{Deserialize, Serialize};

use crate::observe::Range;

/// An 8-bit integer type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum IntType {
    /// −128 … 127.
    Int8,
    /// 0 … 255.
    Uint8,
}

impl IntType {
    /// The tensor element type.
    pub fn dtype(self) -> DType {
        match self {
            IntType::Int8 => DType::I8,
            IntType::Uint8 => DType::U8,
        }
    }

    /// The least and the greatest code in use. `symmetric` int8 leaves out −128, so that the codes of
    /// x and −x differ only in sign; `reduced` halves the range (7 bits), so that products of pairs do
    /// not overflow the 16-bit intermediates of x86 before VNNI (the ranges of ONNX Runtime's quantizer).
    pub fn code_range(self, symmetric: bool, reduced: bool) -> (i32, i32) {
        match (self, symmetric, reduced) {
            (IntType::Int8, false, false) => (-128, 127),
            (IntType::Int8, true, false) => (-127, 127),
            (IntType::Int8, _, true) => (-64, 64),
            (IntType::Uint8, _, false) => (0, 255),
            (IntType::Uint8, _, true) => (0, 127),
        }
    }
}

/// How activations are represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ActivationScheme {
    /// The integer type.
    #[serde(rename = "type")]
    pub int: IntType,
    /// Whether zero has the middle code (0 for int8, 128 for uint8).
    pub symmetric: bool,
    /// Whether only 7 bits are used.
    pub reduce_range: bool,
}

impl Default for ActivationScheme {
    /// Asymmetric uint8: one side of VNNI's and AMX's fastest product, and no code is lost on ReLU outputs.
    fn default() -> ActivationScheme {
        ActivationScheme { int: IntType::Uint8, symmetric: false, reduce_range: false }
    }
}

/// How weights are represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WeightScheme {
    /// The integer type.
    #[serde(rename = "type")]
    pub int: IntType,
    /// Whether the zero point is in the middle.
    pub symmetric: bool,
    /// Whether each output channel has a scale of its own.
    pub per_channel: bool,
    /// Whether only 7 bits are used.
    pub reduce_range: bool,
}

impl Default for WeightScheme {
    /// Symmetric int8 with a scale per output channel.
    fn default() -> WeightScheme {
        WeightScheme { int: IntType::Int8, symmetric: true, per_channel: true, reduce_range: false }
    }
}

/// Scale and zero point: `x ≈ (code − zero_point) · scale`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScalePoint {
    /// The step between codes, in the tensor's unit; positive and finite.
    pub scale: f32,
    /// The code of zero.
    pub zero_point: i32,
}

impl ActivationScheme {
    /// The least and the greatest code in use.
    pub fn code_range(&self) -> (i32, i32) {
        self.int.code_range(self.symmetric, self.reduce_range)
    }

    /// Scale and zero point for a range.
    pub fn qparams(&self, range: Range) -> ScalePoint {
        qparams(range, self.int, self.symmetric, self.code_range())
    }
}

impl WeightScheme {
    /// The least and the greatest code in use.
    pub fn code_range(&self) -> (i32, i32) {
        self.int.code_range(self.symmetric, self.reduce_range)
    }

    /// Scale and zero point for a range.
    pub fn qparams(&self, range: Range) -> ScalePoint {
        qparams(range, self.int, self.symmetric, self.code_range())
    }
}

/// Scale and zero point as ONNX Runtime's quantizer computes them (`quant_utils.compute_scale_zp`): in `f64`, the range
/// widened to hold zero, `scale = (max − min)/(qmax − qmin)`, `zero_point = round(qmin − min/scale)`;
/// symmetric: `scale = 2·max(|min|, |max|)/(qmax − qmin)` around the middle code. A range too small to
/// have a scale gets scale 1.
fn qparams(range: Range, int: IntType, symmetric: bool, (qmin, qmax): (i32, i32)) -> ScalePoint {
    let (lo, hi) = (range.min.min(0.0), range.max.max(0.0));
    let (lo, hi) = if symmetric { (-lo.abs().max(hi.abs()), lo.abs().max(hi.abs())) } else { (lo, hi) };
    let middle = match int {
        IntType::Int8 => 0,
        IntType::Uint8 => (qmax + 1) / 2,
    };
    // Around 128, codes 1 … 255 are symmetric; around 64, codes 0 … 127 nearly so.
    let steps = match (symmetric, int) {
        (true, IntType::Uint8) => 2 * (qmax - middle),
        _ => qmax - qmin,
    };
    let scale = (hi - lo) / f64::from(steps);
    if !scale.is_finite() || scale < f64::from(f32::MIN_POSITIVE) {
        return ScalePoint { scale: 1.0, zero_point: if symmetric { middle } else { qmin.max(0) } };
    }
    // The zero point belongs to the scale that is stored, which is the rounded one.
    let scale = scale as f32;
    let zero_point = match symmetric {
        true => middle,
        false => {
            (f64::from(qmin) - lo / f64::from(scale)).round_ties_even().clamp(f64::from(qmin), f64::from(qmax)) as i32
        }
    };
    ScalePoint { scale, zero_point }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(int: IntType, symmetric: bool, min: f64, max: f64) -> ScalePoint {
        ActivationScheme { int, symmetric, reduce_range: false }.qparams(Range { min, max })
    }

    #[test]
    fn computes_scale_and_zero_point_of_each_kind() {
        assert_eq!(of(IntType::Uint8, false, 0.0, 255.0), ScalePoint { scale: 1.0, zero_point: 0 });
        assert_eq!(of(IntType::Uint8, false, -128.0, 127.0), ScalePoint { scale: 1.0, zero_point: 128 });
        assert_eq!(of(IntType::Int8, false, -128.0, 127.0), ScalePoint { scale: 1.0, zero_point: 0 });
        assert_eq!(of(IntType::Int8, true, -3.0, 127.0), ScalePoint { scale: 1.0, zero_point: 0 });
        assert_eq!(of(IntType::Uint8, true, -127.0, 3.0), ScalePoint { scale: 1.0, zero_point: 128 });
    }

    #[test]
    fn widens_the_range_to_hold_zero() {
        assert_eq!(of(IntType::Uint8, false, 2.0, 10.0).zero_point, 0);
        assert_eq!(of(IntType::Uint8, false, -10.0, -2.0).zero_point, 255);
    }

    #[test]
    fn gives_scale_one_where_there_is_no_range() {
        assert_eq!(of(IntType::Uint8, false, 0.0, 0.0), ScalePoint { scale: 1.0, zero_point: 0 });
        assert_eq!(of(IntType::Int8, true, 0.0, 0.0), ScalePoint { scale: 1.0, zero_point: 0 });
    }

    #[test]
    fn keeps_to_seven_bits_when_reduced() {
        let s = ActivationScheme { int: IntType::Uint8, symmetric: false, reduce_range: true };
        assert_eq!(s.qparams(Range { min: 0.0, max: 127.0 }), ScalePoint { scale: 1.0, zero_point: 0 });
    }
}
