//! QuantizeML's number systems: FixedPoint (`x ≈ v · 2^−frac`) and QFloat (FixedPoint times a scale).
//!
//! Source: QuantizeML 0.8.1, `tensors/fixed_point.py`, `tensors/qfloat.py`, `layers/quantizers`. A *bit width*
//! counts the sign, *value bits* do not: 8 signed bits are 7 value bits.

use super::ScalePoint;
use crate::observe::Range;

/// The least scale of a weight.
const MIN_SCALE: f32 = 1e-6;
/// The bits of a scale's mantissa (`scale_bits`).
const SCALE_BITS: i32 = 8;
/// Fraction bits stay where 2^−frac is a normal float.
const MOST_FRAC: i32 = 100;

/// `⌈log2 x⌉` as TensorFlow computes it, `⌈ln(x)/ln(2)⌉` in f32: some powers of two come out one too high
/// (2⁻¹³ gives −12), and numbers within an ulp above one come out as that power.
///
/// TensorFlow's vector code has another last bit of the logarithm than its scalar code, which is taken here.
pub fn ceil_log2(x: f32) -> i32 {
    let ln = f64::from(x).ln() as f32;
    let exponent = (ln / std::f32::consts::LN_2).ceil();
    if exponent.is_finite() { exponent as i32 } else { 0 }
}

/// `FixedPoint.max_frac_bits`: as many fraction bits as leave room for the range; `clamp` keeps them to the
/// value bits.
pub fn max_frac_bits(value_bits: i32, range: f32, clamp: bool) -> i32 {
    let frac = value_bits - ceil_log2(range);
    let frac = if clamp { frac.min(value_bits) } else { frac };
    frac.clamp(-MOST_FRAC, MOST_FRAC)
}

/// The value bits of codes in a range: of `-2^n … 2^n − 1` or `0 … 2^n − 1`.
pub fn value_bits((_, qmax): (i32, i32)) -> i32 {
    32 - qmax.leading_zeros() as i32
}

/// An activation (OutputQuantizer): the position of the fraction that just holds the range.
pub(super) fn point(r: Range, codes: (i32, i32)) -> ScalePoint {
    let range = r.min.abs().max(r.max.abs()) as f32;
    ScalePoint { scale: 2f32.powi(-max_frac_bits(value_bits(codes), range, true)), zero_point: 0 }
}

/// A weight's scale (`QFloat.optimal_scales`): `max|w|/(2^value_bits − 1)`, 1e-6 at the least. Codes are
/// `round_half_even(w / scale)`.
pub fn weight_scale(r: Range, codes: (i32, i32)) -> f32 {
    let range = r.min.abs().max(r.max.abs()) as f32;
    let most = ((1i64 << value_bits(codes)) - 1) as f32;
    (range / most).max(MIN_SCALE)
}

/// The scale that integers multiply by (`QFloat.quantize_scales`): 8 bits, `frac = 8 − ⌈log2 scale⌉`,
/// rounded half to even and saturated at 255; given back as a float.
pub fn quantized_scale(scale: f32) -> f32 {
    let frac = max_frac_bits(SCALE_BITS, scale, false);
    let mantissa = (scale * 2f32.powi(frac)).round_ties_even().min((1 << SCALE_BITS) as f32 - 1.0);
    mantissa * 2f32.powi(-frac)
}

/// The codes of a bias (AlignedWeightQuantizer with 8 bits) in units of the product's fraction: 7 value bits
/// at `min(max_frac_bits(max|b|/scale), frac)` fraction bits, shifted up to `frac`, those of the input.
///
/// `bias` has one element per output channel, `scales` and `fracs` as many or one in all: a depthwise convolution's input
/// may have a position for each channel.
pub fn bias_codes(bias: &[f32], scales: &[f32], fracs: &[i32]) -> Vec<i32> {
    const VALUE_BITS: i32 = 7;
    let range = bias.iter().fold(0f32, |m, b| m.max(b.abs()));
    let code = |(i, &b): (usize, &f32)| {
        let scale = scales.get(i).or(scales.first()).copied().unwrap_or(1.0);
        let frac = fracs.get(i).or(fracs.first()).copied().unwrap_or_default();
        let own = max_frac_bits(VALUE_BITS, range / scale, true).min(frac);
        let v = (b / scale * 2f32.powi(own)).round_ties_even().clamp(-128.0, 127.0);
        let shifted = f64::from(v) * 2f64.powi(frac - own);
        shifted.clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32
    };
    bias.iter().enumerate().map(code).collect()
}

/// The fraction bits of a scale that is a power of two.
pub fn frac_of(scale: f32) -> i32 {
    super::vitis::position_of(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_as_tensorflow_does_even_where_that_is_odd() {
        assert_eq!([0.6, 1.0, 1.5, 7.0, 8.0].map(ceil_log2), [0, 0, 1, 3, 3]);
        assert_eq!(ceil_log2(2f32.powi(-13)), -12);
        assert_eq!(ceil_log2(0.0), 0);
    }

    #[test]
    fn reproduces_the_table_of_pi() {
        // FixedPoint.quantize(π, value_bits=8) of the guide: frac 6, 201.
        let frac = max_frac_bits(8, std::f32::consts::PI, true);
        assert_eq!((frac, (std::f32::consts::PI * 2f32.powi(frac)).round_ties_even()), (6, 201.0));
    }

    #[test]
    fn keeps_eight_bits_of_a_scale() {
        for s in [0.0123f32, 1.0, 3.7e-5, 0.49999] {
            let q = quantized_scale(s);
            // Half a unit of eight bits, of which the leading one is used.
            assert!((q / s - 1.0).abs() <= 1.0 / 256.0 + 1e-6, "{s}: {q}");
        }
        assert_eq!(quantized_scale(0.5), 0.498_046_88); // ⌈log2⌉ is −1: 256 saturates at 255.
    }

    #[test]
    fn aligns_a_bias_with_the_product() {
        let codes = bias_codes(&[0.5, -0.25], &[0.01, 0.02], &[5]);
        // 0.5/0.01 = 50 has one fraction bit in seven; 2^5 is the product's unit.
        assert_eq!(codes, [50 << 5, -(25 << 4)]);
    }
}
