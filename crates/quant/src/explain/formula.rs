//! The formulas of [`Formula`] as text, with the numbers of one range in them.

use crate::observe::Range;
use crate::scheme::{Formula, NumberFormat, Quotient, Rounding, ScalePoint};

/// What a scale is explained by.
pub(super) struct Case {
    pub formula: Formula,
    pub format: NumberFormat,
    pub symmetric: bool,
    /// The least and the greatest code.
    pub codes: (i32, i32),
    pub range: Range,
    pub point: ScalePoint,
    /// Whether the codes are rounded as those of weights, not by QuantizeLinear.
    pub weight: bool,
}

impl Case {
    /// Scale, zero point, codes and what they stand for.
    pub fn lines(&self) -> Vec<String> {
        let ScalePoint { scale, zero_point } = self.point;
        let mut lines = self.scale();
        lines.push(self.code());
        lines.push(match self.format.is_float() {
            true => "x ≈ code · scale".to_owned(),
            false => format!("x ≈ (code − {zero_point}) · {scale:e}"),
        });
        lines
    }

    fn scale(&self) -> Vec<String> {
        let ScalePoint { scale, zero_point } = self.point;
        let (min, max) = (self.range.min, self.range.max);
        let (lo, hi) = self.codes;
        let absmax = min.abs().max(max.abs());
        let middle = || format!("zero_point = {zero_point}, the code in the middle");
        if let Some(most) = self.format.float_max() {
            return vec![format!("scale = max(|min|, |max|) / {most} = {absmax:.6} / {most} = {scale:e}")];
        }
        match (self.formula, self.symmetric) {
            (Formula::Narrowbit, true) => {
                // Half of the codes, the middle one not counted where that has no partner: 127, or 7.5 for −8 … 7.
                let half = (absmax / f64::from(scale) * 1000.0).round() / 1000.0;
                let (below, above) = (min.abs(), max.abs());
                let scale =
                    format!("scale = max(|min|, |max|) / {half} = max({below:.6}, {above:.6}) / {half} = {scale:e}");
                vec![scale, middle()]
            }
            (Formula::Narrowbit, false) => self.affine("round(qmin − min / scale)"),
            (Formula::Onnxruntime, true) | (Formula::Tflite, true) => vec![
                format!("scale = 2 · max(|min|, |max|) / (qmax − qmin) = 2 · {absmax:.6} / ({hi} − {lo}) = {scale:e}"),
                middle(),
            ],
            (Formula::Onnxruntime | Formula::Tensorflow | Formula::Ipex | Formula::Mxnet, false) => {
                self.affine("round(qmin − min / scale), the scale before it is rounded to float32")
            }
            (Formula::Tensorflow | Formula::Ipex | Formula::Mxnet, true) => {
                let steps = f64::from(hi) + if self.formula == Formula::Mxnet { 0.5 } else { 0.0 };
                let (what, most) = match self.format.is_signed() {
                    true => ("max(|min|, |max|)", absmax),
                    false => ("max(min, max, 0)", min.max(max).max(0.0)),
                };
                vec![format!("scale = {what} / {steps} = {most:.6} / {steps} = {scale:e}"), "zero_point = 0".to_owned()]
            }
            (Formula::Pytorch, true) => {
                let most = (-min).max(max).max(0.0);
                vec![
                    format!(
                        "scale = max(−min, max) / ((qmax − qmin) / 2) = {most:.6} / (({hi} − {lo}) / 2) = {scale:e}, at least 2⁻²³"
                    ),
                    middle(),
                ]
            }
            (Formula::Pytorch, false) => self.affine("qmin − round(min / scale)"),
            (Formula::IncJax, true) => {
                vec![format!("scale = max|x| / qmax = {absmax:.6} / {hi} = {scale:e}"), "zero_point = 0".to_owned()]
            }
            (Formula::IncJax, false) => vec![
                format!(
                    "scale = (max − min) / (qmax − qmin) = ({max:.6} − {min:.6}) / ({hi} − {lo}) = {scale:e}, the range widened to hold 0 only where the zero point would be no code"
                ),
                format!("zero_point = round(qmin − min / scale) = {zero_point}"),
            ],
            (Formula::Tflite, false) => {
                self.affine("round_half_away(qmin − min / scale), or qmax − max / scale where that errs less")
            }
            (Formula::IncDoc, symmetric) => {
                let ends = self.format.type_range();
                let steps = if self.format.is_signed() { ends.1 } else { ends.1 - ends.0 };
                let (what, size) = if symmetric { ("max|x|", absmax) } else { ("|max − min|", (max - min).abs()) };
                vec![
                    format!("scale = {what} / {steps} = {size:.6} / {steps} = {scale:e}, as the guide prints it"),
                    match symmetric {
                        true => middle(),
                        false => format!("zero_point = round({} − min / scale) = {zero_point}", ends.0),
                    },
                ]
            }
            (Formula::Vitis | Formula::Quantizeml, _) => {
                let exponent = scale.log2();
                let power = if exponent.fract() == 0.0 {
                    format!("2^{exponent}")
                } else {
                    // QuantizeML's scales of weights have mantissas of 8 bits.
                    let shift = 8 - exponent.ceil() as i32;
                    format!("{} · 2^{}", (f64::from(scale) * 2f64.powi(shift)).round(), -shift)
                };
                vec![
                    format!("scale = {power} = {scale:e}, for {min:.6} … {max:.6} in codes {lo} … {hi}"),
                    format!("zero_point = {zero_point}"),
                ]
            }
        }
    }

    /// A range widened to hold 0, shared out among all codes.
    fn affine(&self, zero: &str) -> Vec<String> {
        let ScalePoint { scale, zero_point } = self.point;
        let (lo, hi) = self.codes;
        let (low, high) = (self.range.min.min(0.0), self.range.max.max(0.0));
        vec![
            format!(
                "scale = (max − min) / (qmax − qmin) = ({high:.6} − {low:.6}) / ({hi} − {lo}) = {scale:e}, the range widened to hold 0"
            ),
            format!("zero_point = {zero} = round({lo} − {low:.6} / {scale:e}) = {zero_point}"),
        ]
    }

    fn code(&self) -> String {
        let (lo, hi) = self.codes;
        if self.format.is_float() {
            return format!("code = {}(x / scale), the nearest, ties to even", self.format.name());
        }
        let (quotient, rounding) = match self.weight {
            true => self.formula.quotient(),
            false => (Quotient::Divided, Rounding::HalfEven),
        };
        let quotient = match quotient {
            Quotient::Divided => "x / scale",
            Quotient::Inverse => "x · (1 / scale)",
            Quotient::Scaled => "x · qmax / max|x|",
            Quotient::Factor => "x · ((qmax + ½) / max|x|)",
        };
        let round = if rounding == Rounding::HalfAway { "round_half_away" } else { "round_half_even" };
        format!("code = clamp({round}({quotient}) + zero_point, {lo}, {hi})")
    }
}
