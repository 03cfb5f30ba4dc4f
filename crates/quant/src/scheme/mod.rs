//! Number formats, the formulas that turn a range into scale and zero point, and presets that bring them together
//! as other tools do.

mod formats;
mod formulas;
mod presets;
pub mod quantizeml;
mod rounding;
pub mod vitis;

use serde::{Deserialize, Serialize};

pub use formats::NumberFormat;
pub use formulas::Formula;
pub use presets::Preset;
pub use rounding::{Quotient, Rounding};
pub use vitis::Statistic;

use crate::observe::{Method, Range};

/// How activations are represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct ActivationScheme {
    /// The element type.
    #[serde(rename = "type")]
    pub format: NumberFormat,
    /// Whether zero has the middle code (0 for signed types, 128 for uint8).
    pub symmetric: bool,
    /// Whether one bit less is used.
    pub reduce_range: bool,
    /// Bits of codes that are narrower than their type, the sign among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u8>,
    /// Whose arithmetic gives scale and zero point.
    #[serde(skip_serializing_if = "is_default")]
    pub formula: Formula,
}

impl Default for ActivationScheme {
    /// Asymmetric uint8: one side of VNNI's and AMX's fastest product, and no code is lost on ReLU outputs.
    fn default() -> ActivationScheme {
        ActivationScheme {
            format: NumberFormat::Uint8,
            symmetric: false,
            reduce_range: false,
            bits: None,
            formula: Formula::default(),
        }
    }
}

/// How weights are represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct WeightScheme {
    /// The element type.
    #[serde(rename = "type")]
    pub format: NumberFormat,
    /// Whether the zero point is in the middle.
    pub symmetric: bool,
    /// Whether each output channel has a scale of its own.
    pub per_channel: bool,
    /// Whether one bit less is used.
    pub reduce_range: bool,
    /// Bits of codes that are narrower than their type, the sign among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u8>,
    /// Whose arithmetic gives scales, zero points and codes.
    #[serde(skip_serializing_if = "is_default")]
    pub formula: Formula,
}

impl Default for WeightScheme {
    /// Symmetric int8 with a scale per output channel.
    fn default() -> WeightScheme {
        WeightScheme {
            format: NumberFormat::Int8,
            symmetric: true,
            per_channel: true,
            reduce_range: false,
            bits: None,
            formula: Formula::default(),
        }
    }
}

fn is_default<T: Default + PartialEq>(x: &T) -> bool {
    *x == T::default()
}

/// Scale and zero point: `x ≈ (code − zero_point) · scale`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScalePoint {
    /// The step between codes, in the tensor's unit; positive and finite.
    pub scale: f32,
    /// The code of zero.
    pub zero_point: i32,
}

/// Why a scheme means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchemeError {
    /// One side is made of integers and the other of floats.
    #[error(
        "weights of {weights} can't be multiplied with activations of {activations}: both must be integers, or both fp8\nhelp: give --weights and --activations together"
    )]
    Mix {
        /// The weights' format.
        weights: &'static str,
        /// The activations' format.
        activations: &'static str,
    },
    /// The bits do not fit the type.
    #[error("{bits} bits: codes of {format} have 2 to {most}\nhelp: leave the bits away to use all of the type")]
    Bits {
        /// The bits asked for.
        bits: u8,
        /// The type.
        format: &'static str,
        /// The bits of the type.
        most: usize,
    },
    /// The register for sums has no such width.
    #[error("a buffer of {0} bits: it has 8 to 32\nhelp: leave --buffer-bits away for 32")]
    Buffer(u8),
    /// Only fixed point has integer forms of the functions that replace Softmax and LayerNormalization.
    #[error(
        "--shiftmax and --layer-mad replace functions that --scheme quantizeml can't compute; other schemes leave them exact\nhelp: leave them away, or give --scheme quantizeml"
    )]
    Functions,
    /// fp8 has neither zero points nor bits to leave out.
    #[error("{0} has no range to reduce and no bits to leave out\nhelp: leave --reduce-range and the bits away")]
    Float(&'static str),
    /// Dynamic products multiply bytes.
    #[error(
        "dynamic products have weights of int8 or uint8, not {0}\nhelp: --approach static or weight-only have others"
    )]
    Dynamic(&'static str),
    /// Static quantization does not take the type for activations.
    #[error(
        "activations can't be {0}\nhelp: use int8 or uint8 with --activation-bits for narrower codes, or int16, uint16, fp8_e4m3, fp8_e5m2"
    )]
    Activations(&'static str),
    /// A range method is not for the scheme.
    #[error("the range method {method} {problem}\nhelp: {help}")]
    Method {
        /// The method.
        method: &'static str,
        /// Why not, as a predicate.
        problem: &'static str,
        /// What to do.
        help: &'static str,
    },
    /// A formula knows other types only.
    #[error("the formula {formula} is not defined for {format}\nhelp: {help}")]
    Formula {
        /// The formula.
        formula: &'static str,
        /// The type.
        format: &'static str,
        /// What it is defined for.
        help: &'static str,
    },
}

impl ActivationScheme {
    /// The least and the greatest code in use.
    pub fn code_range(&self) -> (i32, i32) {
        self.formula.code_range(self.format, self.symmetric, self.reduce_range, self.bits)
    }

    /// Scale and zero point for a range.
    pub fn qparams(&self, range: Range) -> ScalePoint {
        let point = self.formula.point(range, self.format, self.symmetric, self.code_range());
        match self.formula {
            Formula::Tensorflow if self.symmetric && self.format == NumberFormat::Int8 => {
                ScalePoint { scale: formulas::handed_on(range, self.code_range().1 as f32), ..point }
            }
            _ => point,
        }
    }

    /// The scheme for one tensor: TensorFlow, IPEX and MXNet take uint8 where no value is negative, QuantizeML
    /// unsigned codes of less than 8 bits behind a ReLU.
    pub fn of_tensor(self, range: Range, behind_relu: bool) -> ActivationScheme {
        let unsigned = match self.formula {
            Formula::Tensorflow | Formula::Ipex | Formula::Mxnet => self.symmetric && range.min >= 0.0,
            Formula::Quantizeml => behind_relu && self.bits.is_some_and(|b| b < 8),
            _ => false,
        };
        let format = match self.format {
            NumberFormat::Int8 if unsigned => NumberFormat::Uint8,
            f => f,
        };
        ActivationScheme { format, ..self }
    }

    /// Whether a QuantizeLinear of the type lets codes out that are not in use.
    pub fn needs_clip(&self) -> bool {
        self.bits.is_some() && self.code_range() != self.format.type_range()
    }

    /// Checks that a range method is for such a scheme.
    ///
    /// # Errors
    /// Distribution is for fp8, entropy for integers, diffs for powers of two.
    pub fn check_method(&self, method: Method) -> Result<(), SchemeError> {
        let fp8 = self.format.is_float();
        let (method, problem, help) = match method {
            Method::Distribution if !fp8 => {
                ("distribution", "is for fp8 only", "give --activations fp8_e4m3 or another method")
            }
            Method::Entropy if fp8 => {
                ("entropy", "counts levels, which fp8 has not", "use minmax, mse or distribution")
            }
            Method::Diffs if self.formula != Formula::Vitis => {
                ("diffs", "is for scales that are powers of two", "give --scheme vitis-dpu or another method")
            }
            _ => return Ok(()),
        };
        Err(SchemeError::Method { method, problem, help })
    }

    /// Checks what does not depend on a model.
    ///
    /// # Errors
    /// When the bits do not fit the type, or the type is none for activations.
    pub fn check(&self) -> Result<(), SchemeError> {
        self.check_type()?;
        check_formula(self.formula, self.format, self.symmetric)
    }

    /// As [`ActivationScheme::check`], for scales that are given: the formula is not asked.
    pub(crate) fn check_type(&self) -> Result<(), SchemeError> {
        if matches!(self.format, NumberFormat::Int4 | NumberFormat::Uint4) {
            return Err(SchemeError::Activations(self.format.name()));
        }
        check(self.format, self.bits, self.reduce_range)
    }
}

impl WeightScheme {
    /// The least and the greatest code in use.
    pub fn code_range(&self) -> (i32, i32) {
        self.formula.code_range(self.format, self.symmetric, self.reduce_range, self.bits)
    }

    /// Scale and zero point for a range.
    pub fn qparams(&self, range: Range) -> ScalePoint {
        let point = self.formula.point(self.nudged(range), self.format, self.symmetric, self.code_range());
        match self.formula {
            // XLA makes a multiplication of the division of a vector by a constant.
            Formula::IncJax if self.per_channel && self.symmetric => {
                let most = self.format.float_max().unwrap_or(self.code_range().1 as f32);
                let scale = (range.min.abs().max(range.max.abs()) as f32) * (1.0 / most);
                ScalePoint { scale: if scale.is_normal() { scale } else { 1.0 }, ..point }
            }
            // The scale that integers multiply by has 8 bits; codes come from the exact one.
            Formula::Quantizeml if !self.format.is_float() => {
                ScalePoint { scale: quantizeml::quantized_scale(self.divisor(range, point)), ..point }
            }
            _ => point,
        }
    }

    /// What values are divided by to get codes, for [`Formula::quotient`].
    pub fn divisor(&self, range: Range, point: ScalePoint) -> f32 {
        match (self.formula, self.formula.quotient().0) {
            _ if self.format.is_float() => point.scale,
            (Formula::Quantizeml, _) => quantizeml::weight_scale(range, self.code_range()),
            (_, Quotient::Scaled | Quotient::Factor) => {
                let r = self.nudged(range);
                let most = r.min.abs().max(r.max.abs()) as f32;
                if most > 0.0 { most } else { 1.0 }
            }
            _ => point.scale,
        }
    }

    /// Intel Neural Compressor on TensorFlow widens the ranges of channels to 1e-4.
    fn nudged(&self, r: Range) -> Range {
        const EPSILON: f32 = 1e-4;
        if self.formula == Formula::Tensorflow && self.per_channel && r.min.abs().max(r.max.abs()) < EPSILON.into() {
            return Range { min: (-EPSILON).into(), max: EPSILON.into() };
        }
        r
    }

    /// The code of a weight; saturated at the ends of the type, or where codes are narrower at theirs.
    pub fn code(&self, x: f32, divisor: f32, zero_point: i32) -> i32 {
        let (qmin, qmax) = if self.bits.is_some() { self.code_range() } else { self.format.type_range() };
        let (quotient, rounding) = self.formula.quotient();
        let q = rounding.round(f64::from(quotient.of(x, divisor, self.code_range().1))) + f64::from(zero_point);
        q.clamp(f64::from(qmin), f64::from(qmax)) as i32
    }

    /// Checks that a dynamic product can multiply such weights: bytes.
    ///
    /// # Errors
    /// When the type is another one, or [`WeightScheme::check`] refuses the scheme.
    pub fn check_dynamic(&self) -> Result<(), SchemeError> {
        match self.format {
            NumberFormat::Int8 | NumberFormat::Uint8 => self.check(),
            other => Err(SchemeError::Dynamic(other.name())),
        }
    }

    /// Checks what does not depend on a model.
    ///
    /// # Errors
    /// When the bits do not fit the type, or the formula does not know it.
    pub fn check(&self) -> Result<(), SchemeError> {
        check(self.format, self.bits, self.reduce_range)?;
        check_formula(self.formula, self.format, self.symmetric)
    }
}

fn check(format: NumberFormat, bits: Option<u8>, reduced: bool) -> Result<(), SchemeError> {
    if format.is_float() && (bits.is_some() || reduced) {
        return Err(SchemeError::Float(format.name()));
    }
    let most = format.dtype().bits();
    match bits {
        Some(bits) if !(2..=most).contains(&usize::from(bits)) => {
            Err(SchemeError::Bits { bits, format: format.name(), most })
        }
        _ => Ok(()),
    }
}

fn check_formula(formula: Formula, format: NumberFormat, symmetric: bool) -> Result<(), SchemeError> {
    let integer = !format.is_float();
    let (name, ok, help) = match formula {
        Formula::Vitis => ("vitis", integer && format.is_signed() && symmetric, "symmetric int8 or int16"),
        Formula::Quantizeml => ("quantizeml", integer && symmetric, "symmetric integers, with bits for narrower ones"),
        Formula::IncDoc => {
            ("inc-doc", matches!(format, NumberFormat::Int8 | NumberFormat::Uint8), "the guide has int8 and uint8 only")
        }
        _ => return Ok(()),
    };
    if ok { Ok(()) } else { Err(SchemeError::Formula { formula: name, format: format.name(), help }) }
}

/// Checks that activations and weights can be multiplied.
///
/// # Errors
/// When one is made of integers and the other of floats, or one of them is impossible by itself.
pub fn check_pair(activations: &ActivationScheme, weights: &WeightScheme) -> Result<(), SchemeError> {
    activations.check()?;
    weights.check()?;
    if activations.format.is_float() != weights.format.is_float() {
        let (weights, activations) = (weights.format.name(), activations.format.name());
        return Err(SchemeError::Mix { weights, activations });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(format: NumberFormat, symmetric: bool, min: f64, max: f64) -> ScalePoint {
        ActivationScheme { format, symmetric, ..ActivationScheme::default() }.qparams(Range { min, max })
    }

    #[test]
    fn computes_scale_and_zero_point_of_each_kind() {
        use NumberFormat::{Int8, Uint8};
        assert_eq!(of(Uint8, false, 0.0, 255.0), ScalePoint { scale: 1.0, zero_point: 0 });
        assert_eq!(of(Uint8, false, -128.0, 127.0), ScalePoint { scale: 1.0, zero_point: 128 });
        assert_eq!(of(Int8, false, -128.0, 127.0), ScalePoint { scale: 1.0, zero_point: 0 });
        assert_eq!(of(Int8, true, -3.0, 127.0), ScalePoint { scale: 1.0, zero_point: 0 });
        assert_eq!(of(Uint8, true, -127.0, 3.0), ScalePoint { scale: 1.0, zero_point: 128 });
    }

    #[test]
    fn widens_the_range_to_hold_zero() {
        assert_eq!(of(NumberFormat::Uint8, false, 2.0, 10.0).zero_point, 0);
        assert_eq!(of(NumberFormat::Uint8, false, -10.0, -2.0).zero_point, 255);
    }

    #[test]
    fn gives_scale_one_where_there_is_no_range() {
        assert_eq!(of(NumberFormat::Uint8, false, 0.0, 0.0), ScalePoint { scale: 1.0, zero_point: 0 });
        assert_eq!(of(NumberFormat::Int8, true, 0.0, 0.0), ScalePoint { scale: 1.0, zero_point: 0 });
    }

    #[test]
    fn keeps_to_seven_bits_when_reduced() {
        let s = ActivationScheme { reduce_range: true, ..ActivationScheme::default() };
        assert_eq!(s.qparams(Range { min: 0.0, max: 127.0 }), ScalePoint { scale: 1.0, zero_point: 0 });
    }

    #[test]
    fn refuses_a_mix_of_integers_and_floats() {
        let fp8 = ActivationScheme { format: NumberFormat::Fp8E4m3, ..ActivationScheme::default() };
        assert!(matches!(check_pair(&fp8, &WeightScheme::default()), Err(SchemeError::Mix { .. })));
        let weights = WeightScheme { format: NumberFormat::Fp8E5m2, ..WeightScheme::default() };
        assert_eq!(check_pair(&fp8, &weights), Ok(()));
    }

    #[test]
    fn refuses_bits_that_the_type_does_not_have() {
        let wide = WeightScheme { bits: Some(9), ..WeightScheme::default() };
        assert!(matches!(wide.check(), Err(SchemeError::Bits { most: 8, .. })));
        let narrow = WeightScheme { format: NumberFormat::Fp8E4m3, bits: Some(4), ..WeightScheme::default() };
        assert_eq!(narrow.check(), Err(SchemeError::Float("fp8_e4m3")));
        let int4 = ActivationScheme { format: NumberFormat::Int4, ..ActivationScheme::default() };
        assert_eq!(int4.check(), Err(SchemeError::Activations("int4")));
        let vitis = ActivationScheme { formula: Formula::Vitis, ..ActivationScheme::default() };
        assert!(matches!(vitis.check(), Err(SchemeError::Formula { .. })));
    }

    #[test]
    fn reads_settings_that_older_versions_wrote() {
        let old = r#"{"type":"uint8","symmetric":false,"reduce-range":false}"#;
        assert_eq!(serde_json::from_str::<ActivationScheme>(old).unwrap(), ActivationScheme::default());
        assert_eq!(serde_json::to_string(&ActivationScheme::default()).unwrap(), old);
    }
}
