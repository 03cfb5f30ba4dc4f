//! Scores that are rounded to codes on their way to the softmax, as tools write them that quantize every operator.

use super::weights::{GROUP, Soften};
use crate::error::{Result, at_least, require, span};
use crate::integer::exponentials_or_zeros;
use crate::panel::stage::CodeSum;
use crate::simd::{Simd, low_bits};

const NAME: &str = "integer attention";
/// Rows whose sums grow side by side: each waits for its own last addition.
pub(super) const ROWS: usize = 8;

/// A rounding to 8-bit codes: `saturate(round_half_even(v · inverse) + zero)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounded {
    /// Whether codes are i8, else u8.
    pub signed: bool,
    /// One over the scale.
    pub inverse: f32,
    /// The zero point.
    pub zero: i32,
    /// What a step is worth to whoever reads the codes as floats.
    pub scale: f32,
}

/// What codes of the product are to the mask and the softmax.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// `(code − zero point) · scale`.
    Scaled,
    /// `clamp(round_half_even((code − zero point) · ratio), low, high) · scale + offset`: a table that has this form needs
    /// no look-up. An offset of −0 adds nothing.
    Linear {
        /// Steps that a step becomes.
        ratio: f32,
        /// The bounds of the steps.
        bounds: [f32; 2],
        /// What a step is worth.
        scale: f32,
        /// What no steps are worth.
        offset: f32,
    },
    /// By the bits of the code.
    Table(&'a [f32; 256]),
}

/// A mask of codes, `[batch, heads, queries, keys]`; a stride of 0 repeats.
#[derive(Clone, Copy, Debug)]
pub struct CodeMask<'a> {
    /// The codes, by their bits.
    pub data: &'a [u8],
    /// Whether they are i8, else u8.
    pub signed: bool,
    /// Elements from one batch entry, head and query row to the next; keys are contiguous.
    pub strides: [usize; 3],
    /// How scores and mask are added.
    pub sum: CodeSum,
    /// What the mask's codes are multiplied by.
    pub ratio: f32,
}

/// A softmax of codes: `e · steps / sum(e)` with `e = table[greatest code of the row − code]`, the sum taken in f32 from
/// left to right (QLinearSoftmax).
#[derive(Clone, Copy, Debug)]
pub struct CodeWeights<'a> {
    /// Exponentials of the distance from the greatest code.
    pub table: &'a [f32; 256],
    /// Steps of the weights that make up 1.
    pub steps: f32,
}

/// What scores are before the softmax: the product rounded, a value for each code, a mask, another rounding.
#[derive(Clone, Copy, Debug)]
pub struct CodedScores<'a> {
    /// The rounding of the scaled product.
    pub product: Rounded,
    /// What its codes become.
    pub values: Values<'a>,
    /// A mask of codes; one of floats is the attention's own.
    pub mask: Option<CodeMask<'a>>,
    /// The rounding of the sum.
    pub sum: Option<Rounded>,
    /// A softmax of the last codes; without one it is that of floats. Then values, or those of the sum, must be whole
    /// numbers at most 255 apart.
    pub weights: Option<CodeWeights<'a>>,
}

impl CodedScores<'_> {
    pub(super) fn check(&self, [batch, heads, queries, keys]: [usize; 4], masked: bool) -> Result {
        let Some(mask) = &self.mask else { return Ok(()) };
        require(NAME, !masked, "there are masks of floats and of codes")?;
        let [b, h, r] = mask.strides;
        at_least(NAME, "mask", mask.data.len(), span(NAME, &[(batch, b), (heads, h), (queries, r), (keys, 1)])?)
    }
}

/// [`CodedScores`] of a block of rows.
#[derive(Clone, Copy)]
pub(super) struct Coded<'a> {
    scores: &'a CodedScores<'a>,
    /// The first row's mask of codes, and the elements from one to the next.
    mask: (*const u8, usize),
}

impl<'a> Coded<'a> {
    pub fn new(scores: &'a CodedScores<'a>, batch: usize, head: usize, first: usize) -> Self {
        let place = |m: &CodeMask<'_>| {
            let [b, h, r] = m.strides;
            (m.data.as_ptr().wrapping_add(batch * b + head * h + first * r), r)
        };
        Coded { scores, mask: scores.mask.as_ref().map_or((std::ptr::null(), 0), place) }
    }
}

/// A [`Rounded`] in vectors; gives steps, without the zero point.
#[derive(Clone, Copy)]
struct Rounder<S: Simd> {
    inverse: S::F,
    low: S::F,
    high: S::F,
}

impl<S: Simd> Rounder<S> {
    #[inline(always)]
    fn new(s: S, r: Rounded) -> Self {
        let (low, high) = if r.signed { (-128, 127) } else { (0, 255) };
        let bound = |x: i64| s.splat((x - i64::from(r.zero)) as f32);
        Rounder { inverse: s.splat(r.inverse), low: bound(low), high: bound(high) }
    }

    /// NaN gives the smallest value: `max` passes its second operand on.
    #[inline(always)]
    fn steps(&self, s: S, v: S::F) -> S::F {
        s.round_even(s.max(s.min(self.high, s.mul(v, self.inverse)), self.low))
    }
}

/// The arithmetic of a row, in vectors.
struct Arithmetic<'a, S: Simd> {
    product: Rounder<S>,
    scale: S::F,
    zero: S::I,
    values: Values<'a>,
    mask: Option<(CodeSum, S::F)>,
    sum: Option<(Rounder<S>, S::F)>,
}

impl<'a, S: Simd> Arithmetic<'a, S> {
    #[inline(always)]
    fn new(s: S, c: &CodedScores<'a>) -> Self {
        Arithmetic {
            product: Rounder::new(s, c.product),
            scale: s.splat(c.product.scale),
            zero: s.splat_i(c.product.zero),
            values: c.values,
            mask: c.mask.map(|m| (m.sum, s.splat(m.ratio))),
            sum: c.sum.map(|r| (Rounder::new(s, r), s.splat(r.scale))),
        }
    }

    /// Values from scaled sums of products and their mask.
    #[inline(always)]
    fn apply(&self, s: S, v: S::F, mask: S::F) -> S::F {
        let steps = self.product.steps(s, v);
        let v = match self.values {
            Values::Scaled => s.mul(steps, self.scale),
            Values::Linear { ratio, bounds: [low, high], scale, offset } => {
                let steps = s.round_even(s.mul(steps, s.splat(ratio)));
                let steps = s.max(s.min(steps, s.splat(high)), s.splat(low));
                s.add(s.mul(steps, s.splat(scale)), s.splat(offset))
            }
            Values::Table(table) => s.look_up_byte(table, s.add_i(s.to_i32(steps), self.zero)),
        };
        let v = match self.mask {
            None => s.add(v, mask),
            Some((sum, ratio)) if sum.first => {
                s.mul_add(v, s.splat(sum.ratio), s.mul_add(mask, ratio, s.splat(sum.fixed)))
            }
            Some((sum, ratio)) => s.mul_add(mask, ratio, s.mul_add(v, s.splat(sum.ratio), s.splat(sum.fixed))),
        };
        match self.sum {
            Some((rounder, scale)) => s.mul(rounder.steps(s, v), scale),
            None => v,
        }
    }
}

impl Soften<'_> {
    /// All rows, a few at a time.
    #[inline(always)]
    pub(super) fn coded_rows<S: Simd>(mut self, s: S, coded: &Coded<'_>) {
        let pitch = self.scores.columns.n.next_multiple_of(GROUP);
        let row = std::mem::take(&mut self.row);
        let (rows, mask) = row.split_at_mut(ROWS * pitch);
        let arithmetic = Arithmetic::new(s, coded.scores);
        for first in (0..self.scores.rows).step_by(ROWS) {
            let count = ROWS.min(self.scores.rows - first);
            for (i, row) in rows.chunks_exact_mut(pitch).enumerate().take(count) {
                // SAFETY: whoever made `self` vouches for its pointers and lengths.
                unsafe {
                    let mask = self.mask_of(s, coded, first + i, mask);
                    let peak = self.read_coded(s, &arithmetic, first + i, row, mask);
                    match coded.scores.weights {
                        Some(w) => exponentials_of_codes(s, row, w.table, s.splat(s.hmax(peak))),
                        None => {
                            let peak = s.splat(s.hmax(peak));
                            let factor = s.splat(1.0 / exponentials_or_zeros(s, row, peak, self.guarded));
                            self.terms[first + i] = self.write(s, first + i, row, |e| s.mul(e, factor));
                        }
                    }
                }
            }
            let Some(weights) = coded.scores.weights else { continue };
            let sums = sums(rows, pitch, self.scores.columns.n, count);
            let steps = s.splat(weights.steps);
            for (i, row) in rows.chunks_exact(pitch).enumerate().take(count) {
                let sum = s.splat(sums[i]);
                // SAFETY: as above.
                self.terms[first + i] = unsafe { self.write(s, first + i, row, |e| s.div(s.mul(e, steps), sum)) };
            }
        }
    }

    /// The mask of row `i` as floats, in `scratch` where it is made of codes; null without one.
    #[inline(always)]
    unsafe fn mask_of<S: Simd>(&self, s: S, coded: &Coded<'_>, i: usize, scratch: &mut [f32]) -> *const f32 {
        let Some(mask) = coded.scores.mask else {
            return self.mask.map_or(std::ptr::null(), |(mask, step)| mask.wrapping_add(i * step));
        };
        let (from, to) = (coded.mask.0.wrapping_add(i * coded.mask.1), scratch.as_mut_ptr());
        for j in (0..self.scores.columns.n).step_by(S::LANES) {
            let n = S::LANES.min(self.scores.columns.n - j);
            // SAFETY: the mask has `columns.n` codes in each row, the scratch whole groups.
            unsafe {
                let codes = if mask.signed { s.load_i8_n(from.add(j).cast(), n) } else { s.load_u8_n(from.add(j), n) };
                s.store(to.add(j), s.to_f32(codes));
            }
        }
        to
    }

    /// Reads row `i` as values into `row`, −∞ after it, and returns the greatest by lane.
    #[inline(always)]
    unsafe fn read_coded<S: Simd>(
        &self,
        s: S,
        arithmetic: &Arithmetic<'_, S>,
        i: usize,
        row: &mut [f32],
        mask: *const f32,
    ) -> S::F {
        let (columns, term, scale) = (self.scores.columns, s.splat_i(self.terms[i]), s.splat(self.scale));
        row[columns.n..].fill(f32::NEG_INFINITY);
        let (offsets, row) = (self.offsets.as_ptr(), row.as_mut_ptr());
        let mut peak = s.splat(f32::NEG_INFINITY);
        for panel in 0..columns.count() {
            let (sums, first, valid) = (self.scores.panel(i, panel), panel * columns.nr, columns.valid(panel));
            for j in (0..valid).step_by(S::LANES) {
                let (column, bits) = (first + j, low_bits(S::LANES.min(valid - j)));
                // SAFETY: sums and offsets are whole vectors; the mask has `n` columns, the row whole groups.
                unsafe {
                    let x = s.add_i(s.to_bits(s.load(sums.add(j))), s.load_i32_n(offsets.add(column), S::LANES));
                    let v = s.mul(s.to_f32(s.add_i(x, term)), scale);
                    // Adding −0 changes nothing.
                    let m = if mask.is_null() { s.splat(-0.0) } else { s.load_bits(mask.add(column), bits) };
                    s.store_bits(row.add(column), arithmetic.apply(s, v, m), bits);
                    peak = s.max(peak, s.load(row.add(column)));
                }
            }
        }
        peak
    }
}

/// Replaces a row of codes by their exponentials, what follows them by anything.
#[inline(always)]
fn exponentials_of_codes<S: Simd>(s: S, row: &mut [f32], table: &[f32; 256], peak: S::F) {
    for x in row.chunks_exact_mut(S::LANES) {
        // SAFETY: a whole vector.
        unsafe {
            let distance = s.to_i32(s.sub(peak, s.load(x.as_ptr())));
            s.store(x.as_mut_ptr(), s.look_up_byte(table, distance));
        }
    }
}

/// The sums of the first `n` of each of `count` rows, from left to right.
#[inline(always)]
fn sums(rows: &[f32], pitch: usize, n: usize, count: usize) -> [f32; ROWS] {
    // Where there are fewer, the last one is added up again: what is not there costs as much.
    let rows: [&[f32]; ROWS] = std::array::from_fn(|i| &rows[i.min(count - 1) * pitch..][..n]);
    let mut sums = [0f32; ROWS];
    for j in 0..n {
        for (sum, row) in sums.iter_mut().zip(rows) {
            *sum += row[j];
        }
    }
    sums
}
