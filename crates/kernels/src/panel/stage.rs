//! Roundings to 8-bit integers: the format at the end of an epilogue, and one in its midst.

use crate::simd::Simd;

/// `saturate(round_half_even(v / scale) + zero)`, read again as `(code − zero) · scale`: what a QuantizeLinear and a
/// DequantizeLinear do that stand between a product and the sum it goes into.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    scale: f32,
    /// The bounds of the codes, less the zero point.
    low: f32,
    high: f32,
}

impl Stage {
    /// For i8 if `signed`, else u8.
    pub fn new(signed: bool, scale: f32, zero: i32) -> Stage {
        let (low, high) = if signed { (-128, 127) } else { (0, 255) };
        let bound = |x: i64| (x - i64::from(zero)) as f32;
        Stage { scale, low: bound(low), high: bound(high) }
    }
}

/// How results become 8-bit integers: `saturate(round_half_even(v · inverse) + zero)`.
#[derive(Clone, Copy)]
pub(crate) struct IntFormat {
    /// Whether they are i8, else u8.
    pub signed: bool,
    pub inverse: f32,
    pub zero: i32,
}

impl IntFormat {
    /// The highest code.
    pub fn highest(&self) -> i32 {
        if self.signed { 127 } else { 255 }
    }
}

/// A [`Stage`] in vectors.
#[derive(Clone, Copy)]
pub(super) struct Steps<S: Simd> {
    scale: S::F,
    inverse: S::F,
    low: S::F,
    high: S::F,
}

impl<S: Simd> Steps<S> {
    #[inline(always)]
    pub fn new(s: S, stage: Stage) -> Self {
        let (low, high) = (s.splat(stage.low), s.splat(stage.high));
        Steps { scale: s.splat(stage.scale), inverse: s.splat(1.0 / stage.scale), low, high }
    }

    /// NaN gives the smallest value, as [`super::Rounding::apply`] does.
    #[inline(always)]
    pub fn apply(&self, s: S, v: S::F) -> S::F {
        let v = s.min(self.high, s.mul(v, self.inverse));
        s.mul(s.to_f32(s.to_i32(s.max(v, self.low))), self.scale)
    }
}
