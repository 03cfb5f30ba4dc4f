//! Roundings to 8-bit integers: the format at the end of an epilogue, and one in its midst.

use crate::simd::Simd;

/// The 8-bit integers that a product is rounded to before a residual is added to it, and how the two are added:
/// `saturate(round_half_even(v · inverse) + zero)` comes first.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    inverse: f32,
    /// The bounds of the codes, less the zero point.
    low: f32,
    high: f32,
    sum: Sum,
}

#[derive(Clone, Copy, Debug)]
enum Sum {
    /// `(code − zero) · scale + residual`: what a DequantizeLinear and an Add do.
    Floats { scale: f32 },
    /// In units of the result: what a QLinearAdd does.
    Codes { sum: CodeSum, zero: f32 },
}

/// A sum of a stage's codes and those of the residual, as they are, in units of the result's codes:
/// `fma(a, ratio of a, fma(b, ratio of b, fixed))` (QLinearAdd). The residual has its ratio in the place of its scale,
/// and 0 as its zero point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeSum {
    /// Of the stage's codes: their scale over that of the result.
    pub ratio: f32,
    /// The result's zero point, less those of both in units of the result.
    pub fixed: f32,
    /// Whether the stage is a, else b.
    pub first: bool,
}

fn bounds(signed: bool, zero: i32) -> (f32, f32) {
    let (low, high) = if signed { (-128, 127) } else { (0, 255) };
    let bound = |x: i64| (x - i64::from(zero)) as f32;
    (bound(low), bound(high))
}

impl Stage {
    /// A QuantizeLinear and a DequantizeLinear, for i8 if `signed`, else u8. `inverse` is one over the scale, or 1 where
    /// the product's own factors have it.
    pub fn new(signed: bool, inverse: f32, scale: f32, zero: i32) -> Stage {
        let (low, high) = bounds(signed, zero);
        Stage { inverse, low, high, sum: Sum::Floats { scale } }
    }

    /// Whether values come as steps: the product's factors have the inverse.
    pub(super) fn is_in_steps(&self) -> bool {
        self.inverse == 1.0
    }

    /// Whether the residual's codes are added as they are.
    pub(super) fn adds_codes(&self) -> bool {
        matches!(self.sum, Sum::Codes { .. })
    }

    /// As [`Stage::new`], before a sum of codes.
    pub fn of_codes(signed: bool, inverse: f32, zero: i32, sum: CodeSum) -> Stage {
        let (low, high) = bounds(signed, zero);
        Stage { inverse, low, high, sum: Sum::Codes { sum, zero: zero as f32 } }
    }
}

/// How results become 8-bit integers: `saturate(round_half_even(v · inverse) + zero)`.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // Kernels of x86-64 alone round so in registers.
pub(crate) struct IntFormat {
    /// Whether they are i8, else u8.
    pub signed: bool,
    pub inverse: f32,
    pub zero: i32,
}

impl IntFormat {
    /// The highest code.
    #[cfg(target_arch = "x86_64")]
    pub fn highest(&self) -> i32 {
        if self.signed { 127 } else { 255 }
    }
}

/// A [`Stage`] in vectors.
#[derive(Clone, Copy)]
pub(super) struct Steps<S: Simd> {
    inverse: S::F,
    low: S::F,
    high: S::F,
    /// Of the codes: their scale, or ratio.
    scale: S::F,
    zero: S::F,
    fixed: S::F,
    /// Whether a sum of codes follows, and whether this is its first operand.
    codes: bool,
    first: bool,
}

impl<S: Simd> Steps<S> {
    #[inline(always)]
    pub fn new(s: S, stage: Stage) -> Self {
        let (scale, zero, fixed, codes, first) = match stage.sum {
            Sum::Floats { scale } => (scale, 0.0, 0.0, false, false),
            Sum::Codes { sum, zero } => (sum.ratio, zero, sum.fixed, true, sum.first),
        };
        let (low, high, inverse) = (s.splat(stage.low), s.splat(stage.high), s.splat(stage.inverse));
        let (scale, zero, fixed) = (s.splat(scale), s.splat(zero), s.splat(fixed));
        Steps { inverse, low, high, scale, zero, fixed, codes, first }
    }

    /// The sum of `v`, rounded, and `r` steps of `unit`.
    #[inline(always)]
    pub fn sum(&self, s: S, v: S::F, r: S::F, unit: S::F) -> S::F {
        let steps = self.rounded(s, self.in_steps(s, v));
        if self.codes { self.code_sum(s, steps, r, unit) } else { self.float_sum(s, steps, r, unit) }
    }

    /// Floats as steps.
    #[inline(always)]
    pub fn in_steps(&self, s: S, v: S::F) -> S::F {
        s.mul(v, self.inverse)
    }

    /// Whole steps within the bounds. NaN gives the smallest, as [`super::Rounding::apply`] does.
    #[inline(always)]
    pub fn rounded(&self, s: S, v: S::F) -> S::F {
        s.to_f32(s.to_i32(s.max(s.min(self.high, v), self.low)))
    }

    /// As DequantizeLinear and Add.
    #[inline(always)]
    pub fn float_sum(&self, s: S, steps: S::F, r: S::F, unit: S::F) -> S::F {
        s.add(s.mul(steps, self.scale), s.mul(r, unit))
    }

    /// As QLinearAdd, in units of its result.
    #[inline(always)]
    pub fn code_sum(&self, s: S, steps: S::F, r: S::F, unit: S::F) -> S::F {
        let code = s.add(steps, self.zero);
        match self.first {
            true => s.mul_add(code, self.scale, s.mul_add(r, unit, self.fixed)),
            false => s.mul_add(r, unit, s.mul_add(code, self.scale, self.fixed)),
        }
    }
}
