//! Vitis AI's fix positions: every scale is a power of two, `x ≈ code / 2^fp`.
//!
//! Source: `vai_q_pytorch` with its default configuration for a DPU (`method: diffs`, `scale_type: poweroftwo`,
//! `per_channel: false`, `symmetry: true`), as the project's specification states it.

use serde::{Deserialize, Serialize};

use super::{Rounding, ScalePoint};
use crate::observe::Range;

/// The greatest fix position of codes of at most 8 bits (`nndct_max_fix_position`).
pub const MAX_POSITION: i32 = 12;
/// The greatest fix position of wider codes.
pub const MAX_POSITION_WIDE: i32 = 15;
/// The least fix position: scales stay normal floats.
const MIN_POSITION: i32 = -100;
/// The position where there is nothing to represent.
const POSITION_OF_ZERO: i32 = 18;
/// How many positions the search tries.
pub const SCOPE: usize = 5;

/// How one position comes from those of the batches (`calib_statistic_method`).
///
/// Vitis' quantizer for DPUs knows the mode of positions only (`TORCHQuantizer.do_scan`); its general one takes the
/// statistic of scales (`PerTensorQuantAlgo.act_scale_stats`), whose mean, and whose median of an even number, are no powers
/// of two. Here these two are of positions, so that scales stay powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Statistic {
    /// The most frequent one; the least of equals.
    #[default]
    Modal,
    /// The greatest scale: the coarsest step, with which the fewest values saturate.
    Max,
    /// The mean, rounded half to even.
    Mean,
    /// The median; the lower one of two, as in PyTorch.
    Median,
}

/// The bits of codes in a range, the sign among them.
pub fn bits_of((qmin, qmax): (i32, i32)) -> u8 {
    (1..=16).find(|&b| qmax - qmin < 1i32 << b).unwrap_or(16)
}

/// The position that just holds a range, without a search (scope 1): `⌊log2(1/step)⌋` with
/// `step = max(min/lb, max/ub)`, `lb = −2^(b−1) − 0.5`, `ub = 2^(b−1) − 0.5`; 18 where there is nothing.
pub fn first_position(r: Range, bits: u8) -> i32 {
    let most = 2f64.powi(i32::from(bits) - 1);
    let step = (r.min / (-most - 0.5)).max(r.max / (most - 0.5));
    if step < f64::from(f32::MIN_POSITIVE) {
        return POSITION_OF_ZERO;
    }
    exponent(1.0 / step).max(MIN_POSITION)
}

/// `⌊log2 x⌋` of a positive normal number, exactly.
fn exponent(x: f64) -> i32 {
    (x.to_bits() >> 52 & 0x7ff) as i32 - 1023
}

/// The limit of positions for a width.
pub fn limited(position: i32, bits: u8) -> i32 {
    position.clamp(MIN_POSITION, if bits <= 8 { MAX_POSITION } else { MAX_POSITION_WIDE })
}

/// Scale and zero point of the position that holds a range.
pub(super) fn point(r: Range, bits: u8) -> ScalePoint {
    ScalePoint { scale: scale_of(limited(first_position(r, bits), bits)), zero_point: 0 }
}

/// The scale of a position, `2^−fp`.
pub fn scale_of(position: i32) -> f32 {
    2f32.powi(-position)
}

/// The position of a scale that is a power of two.
pub fn position_of(scale: f32) -> i32 {
    -exponent(f64::from(scale))
}

/// The range that codes of a position hold: [`first_position`] of it is that position.
pub fn range_of(position: i32, bits: u8) -> Range {
    let (most, unit) = (2f64.powi(i32::from(bits) - 1), f64::from(scale_of(position)));
    Range { min: -most * unit, max: (most - 1.0) * unit }
}

/// The search `diffs`: of the position that just holds the extremes and the next four, the one of least
/// `Σ (x − Q_fp(x))²`; the first of equals.
pub fn diffs(values: &[f32], extremes: Range, bits: u8, rounding: Rounding) -> i32 {
    let first = first_position(extremes, bits);
    if first == POSITION_OF_ZERO && extremes.min == 0.0 && extremes.max == 0.0 {
        return first;
    }
    let most = 2f64.powi(i32::from(bits) - 1);
    let mut errors = [0f64; SCOPE];
    for (i, error) in errors.iter_mut().enumerate() {
        let (up, down) = (2f64.powi(first + i as i32), 2f64.powi(-first - i as i32));
        let miss = |x: f64| x - rounding.round(x * up).clamp(-most, most - 1.0) * down;
        *error = values.iter().filter(|x| x.is_finite()).map(|&x| miss(f64::from(x)).powi(2)).sum();
    }
    let best = (1..SCOPE).fold(0, |best, i| if errors[i] < errors[best] { i } else { best });
    first + best as i32
}

/// The codes of a bias in units of the product, `2^−product` with `product = fp_w + fp_i`: 8 bits at the position that
/// `diffs` finds and the shifter reaches, rounded half away from zero. `cut` is `product − fp_o`.
pub fn bias_codes(bias: &[f32], product: i32, cut: i32) -> Vec<i32> {
    const BITS: u8 = 8;
    let range = bias.iter().fold(Range { min: 0.0, max: 0.0 }, |r, &b| r.union(Range { min: b.into(), max: b.into() }));
    let found = limited(diffs(bias, range, BITS, Rounding::HalfAway), BITS);
    let output = Some(product - cut);
    let own = Positions { input: product, weight: 0, bias: Some(found), output }.corrected().bias.unwrap_or(found);
    let code = |&b: &f32| {
        let code = Rounding::HalfAway.round(f64::from(b) * 2f64.powi(own)).clamp(-128.0, 127.0);
        let shifted = Rounding::HalfUp.round(code * 2f64.powi(product - own));
        shifted.clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32
    };
    bias.iter().map(code).collect()
}

/// The position of a bias of 8 bits whose codes stand in units of the product, `2^−product`: the finest one that holds all of
/// them exactly, as the position that [`bias_codes`] has found does; `None` where there is none.
pub fn bias_position(codes: &[i32], product: i32) -> Option<i32> {
    let fits = |&shift: &i32| {
        codes.iter().all(|&c| {
            let code = i64::from(c) >> shift;
            code << shift == i64::from(c) && (-128..=127).contains(&code)
        })
    };
    (0..=16).find(fits).map(|shift| product - shift)
}

/// The checks of the DPU's shifter on a product, and the positions that pass them: `shift_cut = fp_w + fp_i −
/// fp_o` must lie in 0 … 16, or fp_o moves; `shift_bias = fp_w + fp_i − fp_b` in
/// `min(0, −(24 − (8 + shift_cut))) … 16`, or fp_b moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// Of the data operand.
    pub input: i32,
    /// Of the weight.
    pub weight: i32,
    /// Of the bias, if there is one.
    pub bias: Option<i32>,
    /// Of the output, if it is quantized.
    pub output: Option<i32>,
}

impl Positions {
    /// The positions after both corrections; those that pass already stay.
    pub fn corrected(self) -> Positions {
        let product = self.weight + self.input;
        let output = self.output.map(|o| product - (product - o).clamp(0, 16));
        let cut = product - output.unwrap_or(product);
        let least = (-(24 - (8 + cut))).min(0);
        let bias = self.bias.map(|b| product - (product - b).clamp(least, 16));
        Positions { output, bias, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(min: f64, max: f64) -> Range {
        Range { min, max }
    }

    #[test]
    fn finds_the_position_that_holds_a_range() {
        assert_eq!(first_position(range(-1.0, 1.0), 8), 6);
        assert_eq!(first_position(range(0.0, 127.49 / 128.0), 8), 7);
        assert_eq!(first_position(range(0.0, 0.0), 8), 18);
        for position in -20..30 {
            for bits in [4, 8, 16] {
                assert_eq!(first_position(range_of(position, bits), bits), position);
            }
        }
    }

    #[test]
    fn trades_an_outlier_for_a_finer_step() {
        let mut values: Vec<f32> = (0..4000).map(|i| (i as f32 / 4000.0 - 0.5) * 0.9).collect();
        values.push(1.1);
        let r = range(-0.45, 1.1f32.into());
        assert_eq!((first_position(r, 8), diffs(&values, r, 8, Rounding::HalfUp)), (6, 7));
        assert_eq!(diffs(&[0.0; 4], range(0.0, 0.0), 8, Rounding::HalfUp), 18);
    }

    #[test]
    fn finds_the_position_of_a_bias_in_its_codes() {
        // 8 bits at position 6 hold 1.9; the product has position 12.
        let codes = bias_codes(&[1.9, -0.5, 0.015_625], 12, 7);
        assert_eq!((codes.as_slice(), bias_position(&codes, 12)), ([122 << 6, -32 << 6, 1 << 6].as_slice(), Some(6)));
        // 8 bits of the product's own position, and what no position of 8 bits holds.
        assert_eq!(bias_position(&[-128, 3, 127], 9), Some(9));
        assert_eq!(bias_position(&[129, 2], 9), None);
        assert_eq!(bias_position(&[0, 0], 9), Some(9));
    }

    #[test]
    fn moves_positions_that_the_shifter_can_not_reach() {
        let p = Positions { input: 8, weight: 12, bias: Some(2), output: Some(2) }.corrected();
        assert_eq!((p.output, p.bias), (Some(4), Some(4)));
        let p = Positions { input: 1, weight: 1, bias: Some(20), output: Some(5) }.corrected();
        assert_eq!((p.output, p.bias), (Some(2), Some(18)));
        let fine = Positions { input: 6, weight: 7, bias: Some(9), output: Some(5) };
        assert_eq!(fine.corrected(), fine);
    }
}
