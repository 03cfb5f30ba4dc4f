//! From a range to scale and zero point, as each tool computes it: operation by operation, in its precision.

use serde::{Deserialize, Serialize};

use super::{NumberFormat, Quotient, Rounding, ScalePoint, quantizeml, vitis};
use crate::observe::Range;

/// Whose arithmetic gives scales, zero points and the codes of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Formula {
    /// ONNX Runtime's, with the zero point of the scale that is stored, all 255 codes of symmetric uint8, and a
    /// dead channel given the layer's largest scale.
    #[default]
    Narrowbit,
    /// `compute_scale_zp` and `quantize_nparray` of ONNX Runtime's `quant_utils`.
    Onnxruntime,
    /// Intel Neural Compressor on TensorFlow: `generate_quantized_weight_node`, and the guide's row TensorFlow.
    Tensorflow,
    /// The guide's row IPEX, with the codes of PyTorch, which IPEX quantizes weights with.
    Ipex,
    /// MXNet's `quantize_v2` and `dequantize`, measured: steps of `max|x|/127.5` and `max/255.5`, where the guide has
    /// 127 and 255.
    Mxnet,
    /// `_calculate_qparams` of PyTorch's observers, `quantize_per_tensor` and `quantize_per_channel`.
    Pytorch,
    /// `get_q_params` and `get_quantize_fun` of Intel Neural Compressor's JAX part.
    IncJax,
    /// TensorFlow Lite's converter.
    Tflite,
    /// The formulas that Intel Neural Compressor's guide prints, taken literally.
    IncDoc,
    /// Vitis AI: scales are powers of two.
    Vitis,
    /// QuantizeML: powers of two for activations, 8-bit scales for weights.
    Quantizeml,
}

impl Formula {
    /// The least and the greatest code in use.
    pub fn code_range(self, format: NumberFormat, symmetric: bool, reduced: bool, bits: Option<u8>) -> (i32, i32) {
        match self {
            // calculate_qmin_qmax of torch.ao.quantization.utils: floor(min/2) to floor(max/2).
            Formula::Pytorch if bits.is_none() && format.is_signed() && !format.is_float() => {
                let (lo, hi) = format.type_range();
                if reduced { (lo / 2, hi / 2) } else { (lo, hi) }
            }
            Formula::IncJax | Formula::IncDoc | Formula::Vitis | Formula::Quantizeml => {
                format.code_range(false, reduced, bits)
            }
            _ => format.code_range(symmetric, reduced, bits),
        }
    }

    /// What a weight is divided by to get its code, and how the quotient is rounded.
    pub fn quotient(self) -> (Quotient, Rounding) {
        match self {
            Formula::Tensorflow => (Quotient::Scaled, Rounding::HalfEven),
            Formula::Mxnet => (Quotient::Factor, Rounding::HalfEven),
            Formula::Pytorch | Formula::Ipex => (Quotient::Inverse, Rounding::HalfEven),
            Formula::Tflite | Formula::Vitis => (Quotient::Divided, Rounding::HalfAway),
            _ => (Quotient::Divided, Rounding::HalfEven),
        }
    }

    /// What must be said of every model that is made with the formula.
    pub fn warning(self) -> Option<&'static str> {
        Some(match self {
            Formula::IncDoc => {
                "inc-doc takes the printed formulas of a guide literally, with their mistakes: asymmetric int8 uses half of its codes, symmetric uint8 saturates above half of the range; use it for comparison only"
            }
            Formula::Vitis => {
                "a DPU rounds activations half up, QuantizeLinear half to even: codes of this file differ from the DPU's by one, and only where a value lies exactly halfway between two codes of which the lower is even; weights and biases have the DPU's codes"
            }
            Formula::Quantizeml => {
                "QuantizeML rounds the shifts of activations half up, QuantizeLinear half to even: codes differ by one where a value lies exactly halfway between two codes"
            }
            _ => return None,
        })
    }

    /// Whether codes of weights are those that QuantizeLinear gives.
    pub fn is_plain(self) -> bool {
        self.quotient() == (Quotient::Divided, Rounding::HalfEven)
    }

    /// Scale and zero point for a range, with codes from `codes.0` to `codes.1`.
    pub(super) fn point(self, r: Range, format: NumberFormat, symmetric: bool, codes: (i32, i32)) -> ScalePoint {
        if let Some(most) = format.float_max() {
            return float(self, r, most);
        }
        match self {
            Formula::Narrowbit => narrowbit(r, format, symmetric, codes),
            Formula::Onnxruntime => onnxruntime(r, symmetric, codes),
            Formula::Tensorflow | Formula::Ipex if symmetric => one_sided(r, format, codes.1 as f32),
            Formula::Mxnet if symmetric => one_sided(r, format, codes.1 as f32 + 0.5),
            Formula::Tensorflow | Formula::Ipex | Formula::Mxnet => onnxruntime(r, false, codes),
            Formula::Pytorch => pytorch(r, format, symmetric, codes),
            Formula::IncJax => inc_jax(r, symmetric, codes),
            Formula::Tflite => tflite(r, symmetric, codes),
            Formula::IncDoc => inc_doc(r, format, symmetric),
            Formula::Vitis => vitis::point(r, vitis::bits_of(codes)),
            Formula::Quantizeml => quantizeml::point(r, codes),
        }
    }
}

fn abs_max(r: Range) -> f32 {
    (r.min.abs().max(r.max.abs())) as f32
}

/// fp8: the greatest magnitude gets the greatest code, `scale = max(|min|, |max|)/fp8_max`, no zero point.
///
/// Source: `get_scale` of Intel Neural Compressor's JAX part, in f32. A range that is zero, or too small for
/// a scale, gets scale 1.
fn float(formula: Formula, r: Range, most: f32) -> ScalePoint {
    let scale = match formula {
        Formula::IncJax => abs_max(r) / most,
        // f64: a range that a method computed has more bits than f32.
        _ => (r.min.abs().max(r.max.abs()) / f64::from(most)) as f32,
    };
    ScalePoint { scale: if scale.is_normal() { scale } else { 1.0 }, zero_point: 0 }
}

/// As ONNX Runtime's quantizer, in `f64`, the range widened to hold zero, `scale = (max − min)/(qmax − qmin)`,
/// `zero_point = round(qmin − min/scale)`; symmetric: `scale = 2·max(|min|, |max|)/(qmax − qmin)` around the
/// middle code. A range too small to have a scale gets scale 1.
fn narrowbit(r: Range, format: NumberFormat, symmetric: bool, (qmin, qmax): (i32, i32)) -> ScalePoint {
    let (lo, hi) = (r.min.min(0.0), r.max.max(0.0));
    let (lo, hi) = if symmetric { (-lo.abs().max(hi.abs()), lo.abs().max(hi.abs())) } else { (lo, hi) };
    let middle = if format.is_signed() { 0 } else { (qmax + 1) / 2 };
    // Around 128, codes 1 … 255 are symmetric; around 64, codes 0 … 127 nearly so.
    let steps = if symmetric && !format.is_signed() { 2 * (qmax - middle) } else { qmax - qmin };
    let scale = (hi - lo) / f64::from(steps);
    if !scale.is_finite() || scale < f64::from(f32::MIN_POSITIVE) {
        return ScalePoint { scale: 1.0, zero_point: if symmetric { middle } else { qmin.max(0) } };
    }
    // The zero point belongs to the scale that is stored, which is the rounded one.
    let scale = scale as f32;
    let zero = (f64::from(qmin) - lo / f64::from(scale)).round_ties_even();
    let zero_point = if symmetric { middle } else { clamp(zero, (qmin, qmax)) };
    ScalePoint { scale, zero_point }
}

/// `compute_scale_zp` of ONNX Runtime's `quant_utils`: f64, the zero point from the scale before it is rounded.
fn onnxruntime(r: Range, symmetric: bool, (qmin, qmax): (i32, i32)) -> ScalePoint {
    let (lo, hi) = (r.min.min(0.0), r.max.max(0.0));
    let most = lo.abs().max(hi.abs());
    let (lo, hi) = if symmetric { (-most, most) } else { (lo, hi) };
    let scale = (hi - lo) / f64::from(qmax - qmin);
    if !scale.is_finite() || scale < f64::from(f32::MIN_POSITIVE) {
        return ScalePoint { scale: 1.0, zero_point: 0.clamp(qmin, qmax) };
    }
    let zero = match symmetric {
        true => (f64::from(qmin) + f64::from(qmax)) / 2.0,
        false => f64::from(qmin) - lo / scale,
    };
    ScalePoint { scale: scale as f32, zero_point: clamp(zero.round_ties_even(), (qmin, qmax)) }
}

/// The guide's rows TensorFlow and IPEX, symmetric, in f32: int8 `max(|rmin|, |rmax|)/127`, uint8
/// `max(rmin, rmax)/255` for values that are not negative; MXNet's alike, with half a step more. No range: scale of a range of 1, as Intel Neural
/// Compressor widens it.
fn one_sided(r: Range, format: NumberFormat, steps: f32) -> ScalePoint {
    let most = if format.is_signed() { abs_max(r) } else { r.min.max(r.max).max(0.0) as f32 };
    let most = if most > 0.0 { most } else { 1.0 };
    ScalePoint { scale: (most / steps).max(f32::MIN_POSITIVE), zero_point: 0 }
}

/// The scale of an activation that TensorFlow's `QuantizeV2` has quantized in mode SCALED to int8: it hands on the range
/// `n/(n/max)`, which is not always max, and whoever dequantizes divides that by n.
pub(super) fn handed_on(r: Range, steps: f32) -> f32 {
    let most = abs_max(r);
    let most = if most > 0.0 { most } else { 1.0 };
    ((steps / (steps / most)) / steps).max(f32::MIN_POSITIVE)
}

/// `_calculate_qparams` of PyTorch's `UniformQuantizationObserverBase`, in f32: the range widened to hold zero;
/// symmetric: `scale = max(−min, max)/((qmax − qmin)/2)`, zero point 0 (128 of quint8); else
/// `scale = (max − min)/(qmax − qmin)`, `zero_point = qmin − round(min/scale)`. A scale is at least f32's epsilon.
fn pytorch(r: Range, format: NumberFormat, symmetric: bool, (qmin, qmax): (i32, i32)) -> ScalePoint {
    let (lo, hi) = ((r.min.min(0.0)) as f32, (r.max.max(0.0)) as f32);
    if symmetric {
        let scale = (-lo).max(hi) / ((qmax - qmin) as f32 / 2.0);
        let middle = if format.is_signed() { 0 } else { (format.type_range().1 + 1) / 2 };
        return ScalePoint { scale: scale.max(f32::EPSILON), zero_point: middle };
    }
    let scale = ((hi - lo) / (qmax - qmin) as f32).max(f32::EPSILON);
    let zero = f64::from(qmin) - f64::from((lo / scale).round_ties_even());
    ScalePoint { scale, zero_point: clamp(zero, (qmin, qmax)) }
}

/// `get_q_params` of Intel Neural Compressor's JAX part, in f32: symmetric `scale = max|x|/127`; else
/// `scale = (max − min)/255`, `zero_point = round(−128 − min/scale)`.
///
/// There the range need not hold zero, and the zero point may lie outside the type; ONNX can't carry that, so
/// such a range is widened to zero. A range of one point (scale 0 there, and the layer stays float) gets scale 1.
fn inc_jax(r: Range, symmetric: bool, (qmin, qmax): (i32, i32)) -> ScalePoint {
    let (lo, hi) = (r.min as f32, r.max as f32);
    if symmetric {
        let scale = abs_max(r) / qmax as f32;
        return ScalePoint { scale: if scale.is_normal() { scale } else { 1.0 }, zero_point: 0 };
    }
    let affine = |lo: f32, hi: f32| {
        let scale = (hi - lo) / (qmax as f32 - qmin as f32);
        (scale, (qmin as f32 - lo / scale).round_ties_even())
    };
    let (mut scale, mut zero) = affine(lo, hi);
    if !(zero >= qmin as f32 && zero <= qmax as f32) {
        (scale, zero) = affine(lo.min(0.0), hi.max(0.0));
    }
    if !scale.is_normal() {
        return ScalePoint { scale: 1.0, zero_point: 0 };
    }
    ScalePoint { scale, zero_point: clamp(f64::from(zero), (qmin, qmax)) }
}

/// TensorFlow Lite's converter (`getNudgedScaleAndZeroPoint` of its `FakeQuantSupport.cc`): the range
/// widened to hold zero, `scale = (max − min)/(qmax − qmin)`, the zero point from the end of the range that gives
/// the smaller error, rounded half away from zero. Symmetric: `scale = max|x|/127`.
fn tflite(r: Range, symmetric: bool, (qmin, qmax): (i32, i32)) -> ScalePoint {
    let most = abs_max(r);
    let (lo, hi) = if symmetric { (-most, most) } else { (r.min.min(0.0) as f32, r.max.max(0.0) as f32) };
    // The scale that is stored comes from f32, the zero point from f64.
    let stored = (hi - lo) / (qmax as f32 - qmin as f32);
    let (lo, hi, least, greatest) = (f64::from(lo), f64::from(hi), f64::from(qmin), f64::from(qmax));
    let scale = (hi - lo) / (greatest - least);
    if !stored.is_normal() {
        return ScalePoint { scale: 1.0, zero_point: 0.clamp(qmin, qmax) };
    }
    let (from_min, from_max) = (least - lo / scale, greatest - hi / scale);
    let (min_error, max_error) = (least.abs() + (lo / scale).abs(), greatest.abs() + (hi / scale).abs());
    let zero = if min_error < max_error { from_min } else { from_max };
    ScalePoint { scale: stored, zero_point: clamp(Rounding::HalfAway.round(zero), (qmin, qmax)) }
}

/// The formulas of Intel Neural Compressor's "Quantization" guide, section "Quantization Fundamentals", as
/// printed. Asymmetric int8 uses half of its codes (it divides by 127), symmetric uint8 saturates above half of
/// the range (zero is 128, and max|x| would be 383).
fn inc_doc(r: Range, format: NumberFormat, symmetric: bool) -> ScalePoint {
    let ends = format.type_range();
    let steps = f64::from(if format.is_signed() { ends.1 } else { ends.1 - ends.0 });
    let size = if symmetric { r.min.abs().max(r.max.abs()) } else { (r.max - r.min).abs() };
    let scale = size / steps;
    if !scale.is_finite() || scale < f64::from(f32::MIN_POSITIVE) {
        return ScalePoint { scale: 1.0, zero_point: 0 };
    }
    let zero = match (symmetric, format.is_signed()) {
        (true, true) => 0.0,
        (true, false) => f64::from((ends.1 + 1) / 2),
        // The guide does not say how a zero point is rounded; as everywhere else.
        (false, _) => (f64::from(ends.0) - r.min / scale).round_ties_even(),
    };
    ScalePoint { scale: scale as f32, zero_point: clamp(zero, ends) }
}

fn clamp(zero: f64, (qmin, qmax): (i32, i32)) -> i32 {
    zero.clamp(f64::from(qmin), f64::from(qmax)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(f: Formula, format: NumberFormat, symmetric: bool, min: f64, max: f64) -> ScalePoint {
        f.point(Range { min, max }, format, symmetric, f.code_range(format, symmetric, false, None))
    }

    #[test]
    fn takes_the_guide_literally_with_its_traps() {
        // Trap 1: the top of the range has code −1.
        let p = point(Formula::IncDoc, NumberFormat::Int8, false, 0.0, 1.0);
        assert_eq!((1.0 / f64::from(p.scale)).round() as i32 + p.zero_point, -1);
        // Trap 2: it would have code 383.
        let p = point(Formula::IncDoc, NumberFormat::Uint8, true, -1.0, 1.0);
        assert_eq!((1.0 / f64::from(p.scale)).round() as i32 + p.zero_point, 383);
    }

    #[test]
    fn widens_a_range_whose_zero_point_onnx_can_not_carry() {
        let p = point(Formula::IncJax, NumberFormat::Int8, false, 5.0, 6.0);
        assert_eq!((p.scale, p.zero_point), (6.0 / 255.0, -128));
    }

    #[test]
    fn gives_every_formula_a_usable_scale_without_a_range() {
        use Formula::*;
        let all = [Narrowbit, Onnxruntime, Tensorflow, Ipex, Mxnet, Pytorch, IncJax, Tflite, IncDoc, Vitis, Quantizeml];
        for f in all {
            for format in [NumberFormat::Int8, NumberFormat::Uint8, NumberFormat::Fp8E4m3] {
                for symmetric in [false, true] {
                    for x in [0.0, 1e-44, 1e38, -1e38] {
                        let p = point(f, format, symmetric, f64::min(x, 0.0), f64::max(x, 0.0));
                        assert!(p.scale.is_normal() && p.scale > 0.0, "{f:?} {format:?} {symmetric} {x}: {p:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn gives_the_greatest_magnitude_the_greatest_fp8_value() {
        let p = point(Formula::Narrowbit, NumberFormat::Fp8E4m3, true, -448.0, 3.0);
        assert_eq!(p, ScalePoint { scale: 1.0, zero_point: 0 });
        let p = point(Formula::IncJax, NumberFormat::Fp8E4m3, true, 0.0, 1.0);
        // a_scale of a softmax in the guide's log.
        assert_eq!(p.scale, 1.0 / 448.0);
    }
}
