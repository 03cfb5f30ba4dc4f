//! Weights of an attention as parts of the greatest one of their row, which need no sum before they are rounded: from
//! scores to integers in two passes.

use super::Factor;
use super::weights::{GROUP, Soften};
use crate::math::polynomial;
use crate::reduce::sum_of_chains;
use crate::simd::{Simd, low_bits};

/// 255 · 2ᶠ for |f| ≤ 1/2 to 2.8e-6 of it, and exactly 255 for 0. Minimax, fitted for this: an error of 0.0007 steps.
const PARTS: [f32; 5] =
    [255.0, 255.0 * 0.693_124_2, 255.0 * 0.240_240_99, 255.0 * 0.055_906_426, 255.0 * 0.009_582_853];

/// Columns of most panels.
const WIDE: usize = 32;

/// What is the same for a row.
struct Row<S: Simd> {
    peak: S::F,
    step: S::F,
    to: *mut u8,
}

/// Sums of a row's parts, in chains that do not depend on the tier, and of its codes, by lane.
struct Sums<S: Simd> {
    totals: [S::F; GROUP],
    codes: S::I,
}

impl<S: Simd> Row<S> {
    /// `n` results from `column` on, of scores `x`.
    ///
    /// # Safety
    /// The row of the results has them.
    #[inline(always)]
    unsafe fn part(&self, s: S, sums: &mut Sums<S>, x: S::F, column: usize, n: usize) {
        // NaN passes. What is less makes no difference to a sum of 255 or more.
        let power = s.max(s.splat(-126.0), s.mul(s.sub(x, self.peak), self.step));
        let whole = s.round_even(power);
        let part = s.scale_exp(polynomial(s, s.sub(power, whole), PARTS), whole);
        let chain = if S::LANES == GROUP { 0 } else { column % GROUP / S::LANES };
        sums.totals[chain] = s.add(sums.totals[chain], part);
        let code = s.to_i32(part);
        // SAFETY: passed on to the caller.
        unsafe { s.store_low8_n(self.to.wrapping_add(column), code, n) };
        sums.codes = s.add_i(sums.codes, code);
    }
}

impl Soften<'_> {
    /// Rounds all rows to u8: `round_half_even(255 · exp(score − greatest))`, and tells each row's greatest weight.
    #[inline(always)]
    pub(super) fn parts_of_greatest<S: Simd>(&mut self, s: S, scales: &mut [f32]) {
        let log2_e = std::f32::consts::LOG2_E;
        // Where scores are multiples of sums, the greatest sum is that of the greatest score, and what a row's own zero
        // points add to all of them takes itself off.
        let step = match self.factor {
            Factor::None => self.scale,
            Factor::Mul(by) => self.scale * by,
            Factor::Div(by) => self.scale / by,
        };
        let plain = self.mask.is_none() && step > 0.0 && step.is_finite();
        for (i, greatest) in scales.iter_mut().enumerate() {
            // SAFETY: whoever made `self` vouches for its pointers and lengths.
            let (total, codes) = unsafe {
                match self.mask {
                    None if plain => {
                        let peak = self.greatest_sum(s, i);
                        self.parts::<S, true>(s, i, peak, step * log2_e)
                    }
                    None => {
                        let peak = self.read::<S, false>(s, i, std::ptr::null());
                        self.parts::<S, false>(s, i, peak, log2_e)
                    }
                    Some((mask, step)) => {
                        let peak = self.read::<S, true>(s, i, mask.wrapping_add(i * step));
                        self.parts::<S, false>(s, i, peak, log2_e)
                    }
                }
            };
            (self.terms[i], *greatest) = (codes, 255.0 / total);
            if total.is_nan() {
                // SAFETY: as above.
                unsafe { self.out.data.wrapping_add(i * self.pitch).write_bytes(0, self.pitch) };
                (self.terms[i], *greatest) = (0, if self.guarded { 1.0 } else { f32::NAN });
            }
        }
    }

    /// A vector of row `i`'s sums, with what belongs to their columns, or of its scores in the scratch; −∞ behind the last
    /// column.
    ///
    /// # Safety
    /// `sums` are whole vectors, and so is the scratch, which holds −∞ behind the last column.
    #[inline(always)]
    unsafe fn score<S: Simd, const SUMS: bool>(&self, s: S, sums: *const f32, column: usize, n: usize) -> S::F {
        let row = self.row.as_ptr().wrapping_add(column).cast_mut();
        // SAFETY: passed on to the caller.
        unsafe {
            if !SUMS {
                return s.load(row);
            }
            let offsets = s.load_i32_n(self.offsets.as_ptr().add(column), S::LANES);
            let x = s.to_f32(s.add_i(s.to_bits(s.load(sums)), offsets));
            if n == S::LANES {
                return x;
            }
            s.store_bits(row, x, low_bits(n));
            s.load(row)
        }
    }

    /// The greatest of row `i`'s sums, by lane.
    ///
    /// # Safety
    /// As [`Soften::score`].
    #[inline(always)]
    unsafe fn greatest_sum<S: Simd>(&mut self, s: S, i: usize) -> S::F {
        let columns = self.scores.columns;
        self.row[columns.n..].fill(f32::NEG_INFINITY);
        let mut peak = s.splat(f32::NEG_INFINITY);
        for panel in 0..columns.count() {
            let (sums, first, valid) = (self.scores.panel(i, panel), panel * columns.nr, columns.valid(panel));
            // A length that the compiler knows, for all panels but the last.
            if valid == WIDE {
                for j in (0..WIDE).step_by(S::LANES) {
                    // SAFETY: passed on to the caller.
                    let x = unsafe { self.score::<S, true>(s, sums.wrapping_add(j), first + j, S::LANES) };
                    peak = s.max(peak, x);
                }
                continue;
            }
            for j in (0..valid).step_by(S::LANES) {
                // SAFETY: passed on to the caller.
                let x = unsafe { self.score::<S, true>(s, sums.wrapping_add(j), first + j, (valid - j).min(S::LANES)) };
                peak = s.max(peak, x);
            }
        }
        peak
    }

    /// Row `i` of the results, from scores whose exponents of 2 are `(score − peak) · step`. Returns the sum before the
    /// rounding, in an order that does not depend on the tier, and that of the integers.
    ///
    /// # Safety
    /// As [`Soften::score`].
    #[inline(always)]
    unsafe fn parts<S: Simd, const SUMS: bool>(&self, s: S, i: usize, peak: S::F, step: f32) -> (f32, i32) {
        let (columns, to) = (self.scores.columns, self.out.data.wrapping_add(i * self.pitch));
        let row = Row { peak: s.splat(s.hmax(peak)), step: s.splat(step), to };
        let mut sums = Sums { totals: [s.splat(0.0); GROUP], codes: s.splat_i(0) };
        for panel in 0..columns.count() {
            let (from, first, valid) = (self.scores.panel(i, panel), panel * columns.nr, columns.valid(panel));
            // SAFETY: passed on to the caller.
            unsafe {
                if valid == WIDE {
                    for j in (0..WIDE).step_by(S::LANES) {
                        let x = self.score::<S, SUMS>(s, from.wrapping_add(j), first + j, S::LANES);
                        row.part(s, &mut sums, x, first + j, S::LANES);
                    }
                    continue;
                }
                for j in (0..valid).step_by(S::LANES) {
                    let n = (valid - j).min(S::LANES);
                    let x = self.score::<S, SUMS>(s, from.wrapping_add(j), first + j, n);
                    row.part(s, &mut sums, x, first + j, n);
                }
            }
        }
        let mut lanes = [0i32; GROUP];
        // SAFETY: vectors have at most `GROUP` lanes, and rows of results `pitch` bytes.
        unsafe {
            s.store_i32_n(lanes.as_mut_ptr(), sums.codes, S::LANES);
            to.wrapping_add(columns.n).write_bytes(0, self.pitch - columns.n);
        }
        let codes = lanes.iter().fold(0i32, |sum, &x| sum.wrapping_add(x));
        (sum_of_chains(s, sums.totals), codes)
    }
}
