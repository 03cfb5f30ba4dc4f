//! From sums of products to the weights of an attention, as integers or floats.

use super::Factor;
use super::coded::Coded;
use crate::integer::exponentials_or_zeros;
use crate::math::Divisor;
use crate::panel::pack::Columns;
use crate::panel::target::{Out, Rounding};
pub(super) use crate::reduce::CHAINS as GROUP;
use crate::simd::{Kernel, Simd, low_bits};

/// Scratch as integers.
pub(super) fn integers(words: &[f32]) -> &[i32] {
    // SAFETY: both have the size and alignment of a word, and all bits mean a number of either.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) }
}

/// Sums of products of a block of rows: panel after panel as tiles leave them, or in dense rows.
#[derive(Clone, Copy)]
pub(super) struct Scores {
    /// The words of the sums.
    pub data: *const f32,
    pub columns: Columns,
    pub rows: usize,
    /// Words between dense rows.
    pub dense: Option<usize>,
}

impl Scores {
    /// Where the columns of a panel of row `i` are.
    #[inline(always)]
    pub fn panel(&self, i: usize, panel: usize) -> *const f32 {
        let at = match self.dense {
            Some(pitch) => i * pitch + panel * self.columns.nr,
            None => self.rows * panel * self.columns.nr + i * self.columns.width(panel),
        };
        self.data.wrapping_add(at)
    }
}

/// A softmax of rows of scores whose results are rounded to u8, or stay floats.
pub(super) struct Soften<'a> {
    pub scores: Scores,
    /// By column: what is added to its sums; as many as there are columns in memory.
    pub offsets: &'a [i32],
    pub scale: f32,
    pub factor: Factor,
    /// The first row's mask, and the elements from one to the next.
    pub mask: Option<(*const f32, usize)>,
    /// Scratch for a row, in whole groups.
    pub row: &'a mut [f32],
    pub out: Out,
    /// Elements between rows of the results; what follows the columns is set to 0 where they are integers.
    pub pitch: usize,
    /// Whether rows without a number as their weights are rows of zeros.
    pub guarded: bool,
    /// By row: what is added to its sums; becomes the sum of its integers.
    pub terms: &'a mut [i32],
    /// By row: takes its greatest weight; the weights are then rounded as parts of it.
    pub scales: Option<&'a mut [f32]>,
    /// Set where scores are codes on their way here; then `row` has room for [`coded::ROWS`].
    pub coded: Option<Coded<'a>>,
}

impl Kernel for Soften<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        if let Some(coded) = self.coded {
            return self.coded_rows(s, &coded);
        }
        if let Some(scales) = self.scales.take() {
            return self.parts_of_greatest(s, scales);
        }
        for i in 0..self.scores.rows {
            // SAFETY: whoever made `self` vouches for its pointers and lengths.
            unsafe {
                let peak = match self.mask {
                    Some((mask, step)) => self.read::<S, true>(s, i, mask.wrapping_add(i * step)),
                    None => self.read::<S, false>(s, i, std::ptr::null()),
                };
                let total = exponentials_or_zeros(s, self.row, s.splat(s.hmax(peak)), self.guarded);
                let factor = s.splat(1.0 / total);
                if self.out.int_format().is_none() {
                    self.scale(s, i, factor);
                    continue;
                }
                self.terms[i] = self.write(s, i, self.row, |e| s.mul(e, factor));
            }
        }
    }
}

impl Soften<'_> {
    /// Reads row `i` as floats into the scratch, −∞ after it, and returns the greatest by lane.
    #[inline(always)]
    pub(super) unsafe fn read<S: Simd, const MASKED: bool>(&mut self, s: S, i: usize, mask: *const f32) -> S::F {
        let (columns, term, scale) = (self.scores.columns, s.splat_i(self.terms[i]), s.splat(self.scale));
        self.row[columns.n..].fill(f32::NEG_INFINITY);
        let (factor, offsets, row) = (self.factor, self.offsets.as_ptr(), self.row.as_mut_ptr());
        let divisor = if let Factor::Div(by) = factor { Divisor::new(by, self.scale) } else { None };
        let mut peak = s.splat(f32::NEG_INFINITY);
        for panel in 0..columns.count() {
            let (sums, first, valid) = (self.scores.panel(i, panel), panel * columns.nr, columns.valid(panel));
            let mut j = 0;
            // SAFETY: sums and offsets are whole vectors; the mask has `n` columns, the scratch is in whole groups.
            unsafe {
                while j < valid {
                    let column = first + j;
                    let x = s.add_i(s.to_bits(s.load(sums.add(j))), s.load_i32_n(offsets.add(column), S::LANES));
                    let mut v = s.mul(s.to_f32(s.add_i(x, term)), scale);
                    match (factor, divisor) {
                        (Factor::None, _) => {}
                        (Factor::Mul(by), _) => v = s.mul(v, s.splat(by)),
                        (Factor::Div(_), Some(divisor)) => v = divisor.divide(s, v),
                        (Factor::Div(by), None) => v = s.div(v, s.splat(by)),
                    }
                    if valid - j >= S::LANES {
                        if MASKED {
                            v = s.add(v, s.load(mask.add(column)));
                        }
                        s.store(row.add(column), v);
                        peak = s.max(peak, v);
                    } else {
                        let bits = low_bits(valid - j);
                        if MASKED {
                            v = s.add(v, s.load_bits(mask.add(column), bits));
                        }
                        s.store_bits(row.add(column), v, bits);
                        peak = s.max(peak, s.load(row.add(column)));
                    }
                    j += S::LANES;
                }
            }
        }
        peak
    }

    /// Writes row `i` of the results: the row of exponentials times `factor`.
    #[inline(always)]
    unsafe fn scale<S: Simd>(&self, s: S, i: usize, factor: S::F) {
        let (n, to) = (self.scores.columns.n, self.out.data.cast::<f32>().wrapping_add(i * self.pitch));
        for j in (0..n).step_by(S::LANES) {
            // SAFETY: the scratch is in whole groups, and so is the row of the results.
            unsafe { s.store(to.add(j), s.mul(s.load(self.row.as_ptr().add(j)), factor)) };
        }
    }

    /// Rounds what `weight` makes of a row of exponentials to row `i` of the results, and returns the sum of the integers.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd>(&self, s: S, i: usize, row: &[f32], weight: impl Fn(S::F) -> S::F) -> i32 {
        let (rounding, n) = (Rounding::new(s, &self.out), self.scores.columns.n);
        let (row, to) = (row.as_ptr(), self.out.data.wrapping_add(i * self.pitch));
        let mut total = s.splat_i(0);
        let mut lanes = [0i32; GROUP];
        let mut j = 0;
        // SAFETY: the scratch and the row of the results are at least `n` long, vectors have at most `GROUP` lanes.
        unsafe {
            while j + S::LANES <= n {
                let codes = rounding.apply(s, weight(s.load(row.add(j))));
                s.store_low8_n(to.add(j), codes, S::LANES);
                total = s.add_i(total, codes);
                j += S::LANES;
            }
            s.store_i32_n(lanes.as_mut_ptr(), total, S::LANES);
            let mut sum = lanes.iter().fold(0i32, |sum, &x| sum.wrapping_add(x));
            if j < n {
                let codes = rounding.apply(s, weight(s.load(row.add(j))));
                s.store_low8_n(to.add(j), codes, n - j);
                s.store_i32_n(lanes.as_mut_ptr(), codes, S::LANES);
                sum = lanes[..n - j].iter().fold(sum, |sum, &x| sum.wrapping_add(x));
            }
            to.add(n).write_bytes(0, self.pitch - n);
            sum
        }
    }
}
