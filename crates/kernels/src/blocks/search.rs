//! Scales around zero of blocks of weights: the least at which nothing saturates, or those with the least squared error.
//!
//! A lane is a block: all tiers, and plain code block by block, round each operation alike, and so give the same bits.

use crate::error::{Result, at_least, require, span};
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "search for scales";
/// Partial sums of the errors of a block.
const SUMS: usize = 8;
/// Rows whose codes are turned into columns at a time, and most lanes.
const TILE: usize = 16;

/// What is tried. `full` is the least scale around zero at which nothing saturates, 1 where it is not a normal float.
#[derive(Clone, Copy, Debug)]
pub struct ScaleSearch<'a> {
    /// The least and the greatest code, on both sides of 0.
    pub range: (i32, i32),
    /// Shares of `full` that are tried after it; the first of the best ones is taken.
    pub shares: &'a [f32],
    /// How often the best scale is replaced by the optimum for its codes, `Σ x·q / Σ q²`, at most: as long as the error falls.
    pub refinements: usize,
}

/// Chooses a scale for each of `columns` blocks of `rows` weights, and rounds the weights: `x[row · ld + column]` to
/// `codes[column · pitch + row]`, in two's complement.
///
/// The error of a scale is `Σ (x − q·scale)²`, `q = round_half_even(x · (1 / scale))` in the range, added up in
/// eight sums by row.
///
/// # Errors
/// A slice is too short, rows or columns overlap, or the range does not hold 0, or has more than 22 bits.
pub fn search_scales(
    isa: Isa,
    (x, ld): (&[f32], usize),
    [rows, columns]: [usize; 2],
    search: ScaleSearch<'_>,
    scales: &mut [f32],
    (codes, pitch): (&mut [u8], usize),
) -> Result {
    let (low, high) = search.range;
    require(NAME, (-(1 << 22)..0).contains(&low) && (1..1 << 22).contains(&high), "the codes are not around zero")?;
    at_least(NAME, "x", x.len(), span(NAME, &[(rows, ld), (columns, 1)])?)?;
    at_least(NAME, "codes", codes.len(), span(NAME, &[(columns, pitch), (rows, 1)])?)?;
    at_least(NAME, "scales", scales.len(), columns)?;
    require(NAME, rows > 0 && (rows == 1 || ld >= columns) && (columns <= 1 || pitch >= rows), "blocks overlap")?;
    let job = Job { x: x.as_ptr(), ld, rows, columns, search, scales, codes: codes.as_mut_ptr(), pitch };
    isa.dispatch(job);
    Ok(())
}

struct Job<'a> {
    x: *const f32,
    ld: usize,
    rows: usize,
    columns: usize,
    search: ScaleSearch<'a>,
    scales: &'a mut [f32],
    codes: *mut u8,
    pitch: usize,
}

impl Kernel for Job<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for first in (0..self.columns).step_by(S::LANES) {
            let lanes = (self.columns - first).min(S::LANES);
            let blocks = Lanes {
                x: self.x.wrapping_add(first),
                ld: self.ld,
                rows: self.rows,
                bits: low_bits(lanes),
                low: s.splat(self.search.range.0 as f32),
                high: s.splat(self.search.range.1 as f32),
            };
            // SAFETY: the lengths were checked; `lanes` columns are left.
            unsafe {
                let scale = blocks.scale(s, &self.search);
                s.store_bits(self.scales.as_mut_ptr().add(first), scale, blocks.bits);
                blocks.write(s, scale, lanes, self.codes.add(first * self.pitch), self.pitch);
            }
        }
    }
}

/// As many blocks as there are lanes.
#[derive(Clone, Copy)]
struct Lanes<S: Simd> {
    x: *const f32,
    ld: usize,
    rows: usize,
    /// The lanes that count; the others hold zeros.
    bits: u32,
    low: S::F,
    high: S::F,
}

impl<S: Simd> Lanes<S> {
    #[inline(always)]
    unsafe fn row(&self, s: S, i: usize) -> S::F {
        // SAFETY: the caller vouches for the rows and the lanes.
        unsafe { s.load_bits(self.x.add(i * self.ld), self.bits) }
    }

    /// Rounds to the nearest code, half to even; both bounds are small.
    #[inline(always)]
    fn round(&self, s: S, v: S::F) -> S::F {
        // 1.5 · 2²³: where the last bit of a float is worth 1.
        let magic = s.splat(12_582_912.0);
        s.sub(s.add(s.min(s.max(v, self.low), self.high), magic), magic)
    }

    /// The sum of a function of each row.
    #[inline(always)]
    unsafe fn sum(&self, s: S, term: impl Fn(S::F) -> S::F) -> S::F {
        let mut sums = [s.splat(0.0); SUMS];
        let whole = self.rows - self.rows % SUMS;
        // SAFETY: passed on to the caller.
        unsafe {
            for i in (0..whole).step_by(SUMS) {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = s.add(*sum, term(self.row(s, i + j)));
                }
            }
            let mut rest = s.splat(0.0);
            for i in whole..self.rows {
                rest = s.add(rest, term(self.row(s, i)));
            }
            s.add(sums.into_iter().fold(s.splat(0.0), |all, sum| s.add(all, sum)), rest)
        }
    }

    #[inline(always)]
    unsafe fn error(&self, s: S, scale: S::F) -> S::F {
        let inverse = s.div(s.splat(1.0), scale);
        let term = |v: S::F| {
            let d = s.sub(v, s.mul(self.round(s, s.mul(v, inverse)), scale));
            s.mul(d, d)
        };
        // SAFETY: passed on to the caller.
        unsafe { self.sum(s, term) }
    }

    /// `a` where `scale` is a normal, finite float.
    #[inline(always)]
    fn where_usable(&self, s: S, scale: S::F, a: S::F, b: S::F) -> S::F {
        let a = s.select(s.lt(scale, s.splat(f32::INFINITY)), a, b);
        // Not `lt`: a NaN is not usable.
        s.select(s.lt(s.splat(f32::MIN_POSITIVE.next_down()), scale), a, b)
    }

    /// The scale that puts the extremes on the outer codes.
    #[inline(always)]
    unsafe fn full(&self, s: S) -> S::F {
        let (mut least, mut most) = (s.splat(0.0), s.splat(0.0));
        for i in 0..self.rows {
            // SAFETY: passed on to the caller.
            let v = unsafe { self.row(s, i) };
            (least, most) = (s.min(v, least), s.max(v, most));
        }
        let full = s.max(s.div(least, self.low), s.div(most, self.high));
        self.where_usable(s, full, full, s.splat(1.0))
    }

    #[inline(always)]
    unsafe fn scale(&self, s: S, search: &ScaleSearch<'_>) -> S::F {
        // SAFETY: passed on to the caller.
        let full = unsafe { self.full(s) };
        if search.shares.is_empty() && search.refinements == 0 {
            return full;
        }
        // SAFETY: as above.
        let (mut best, mut least) = (full, unsafe { self.error(s, full) });
        let infinity = s.splat(f32::INFINITY);
        for &share in search.shares {
            let scale = s.mul(full, s.splat(share));
            // SAFETY: as above.
            let error = self.where_usable(s, scale, unsafe { self.error(s, scale) }, infinity);
            let better = s.lt(error, least);
            (best, least) = (s.select(better, scale, best), s.select(better, error, least));
        }
        // 1 where the error still falls.
        let mut active = s.splat(1.0);
        for _ in 0..search.refinements {
            let inverse = s.div(s.splat(1.0), best);
            // SAFETY: as above.
            let (scale, error) = unsafe {
                let product = self.sum(s, |v| s.mul(v, self.round(s, s.mul(v, inverse))));
                let square = self.sum(s, |v| {
                    let q = self.round(s, s.mul(v, inverse));
                    s.mul(q, q)
                });
                let scale = s.div(product, square);
                (scale, self.where_usable(s, scale, self.error(s, scale), infinity))
            };
            let error = s.select(s.lt(s.splat(0.0), active), error, infinity);
            let better = s.lt(error, least);
            (best, least) = (s.select(better, scale, best), s.select(better, error, least));
            active = s.select(better, active, s.splat(0.0));
            if s.mask_bits(better) == 0 {
                break;
            }
        }
        best
    }

    /// Writes the codes, by column.
    #[inline(always)]
    unsafe fn write(&self, s: S, scale: S::F, lanes: usize, codes: *mut u8, pitch: usize) {
        let inverse = s.div(s.splat(1.0), scale);
        let mut tile = [0u8; TILE * TILE];
        for first in (0..self.rows).step_by(TILE) {
            let rows = (self.rows - first).min(TILE);
            // SAFETY: the tile has 16 rows of as many lanes; the caller vouches for the columns.
            unsafe {
                for i in 0..rows {
                    let q = self.round(s, s.mul(self.row(s, first + i), inverse));
                    s.store_low8_n(tile.as_mut_ptr().add(i * TILE), s.to_i32(q), S::LANES);
                }
                s.transpose_bytes(tile.as_ptr(), TILE, rows, lanes, codes.add(first), pitch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    /// The definition, block by block.
    fn reference(x: &[f32], search: &ScaleSearch<'_>) -> (f32, Vec<u8>) {
        let (low, high) = (search.range.0 as f32, search.range.1 as f32);
        let usable = |s: &f32| s.is_finite() && *s >= f32::MIN_POSITIVE;
        let round = |v: f32| v.clamp(low, high).round_ties_even();
        let sum = |term: &dyn Fn(f32) -> f32| {
            let (mut sums, whole) = ([0f32; SUMS], x.len() / SUMS * SUMS);
            x[..whole].iter().enumerate().for_each(|(i, &v)| sums[i % SUMS] += term(v));
            sums.iter().sum::<f32>() + x[whole..].iter().map(|&v| term(v)).sum::<f32>()
        };
        let error = |scale: f32| {
            let inverse = 1.0 / scale;
            sum(&|v| (v - round(v * inverse) * scale).powi(2))
        };
        let extremes = x.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
        let full = Some((extremes.0 / low).max(extremes.1 / high)).filter(usable).unwrap_or(1.0);
        let mut best = (error(full), full);
        for scale in search.shares.iter().map(|s| full * s).filter(usable) {
            let e = error(scale);
            best = if e < best.0 { (e, scale) } else { best };
        }
        for _ in 0..search.refinements {
            let inverse = 1.0 / best.1;
            let scale = sum(&|v| v * round(v * inverse)) / sum(&|v| round(v * inverse).powi(2));
            let e = if usable(&scale) { error(scale) } else { f32::INFINITY };
            if e >= best.0 {
                break;
            }
            best = (e, scale);
        }
        let codes = x.iter().map(|v| round(v * (1.0 / best.1)) as i32 as u8).collect();
        (best.1, codes)
    }

    #[test]
    fn finds_the_bits_of_plain_code_on_every_tier() {
        let mut random = Random::new(91);
        let shares: Vec<f32> = (1..=20).map(|i| 1.0 - 0.5 * i as f32 / 20.0).collect();
        for (rows, columns, range) in [(32, 64, (-8, 7)), (16, 5, (-2, 1)), (45, 17, (-128, 127)), (1, 1, (-8, 7))] {
            let mut x: Vec<f32> = random.vec(rows * columns).into_iter().map(|v| v * v * v).collect();
            // A block of zeros, one of the least floats, and one that overflows.
            for (column, by) in [(0, 0.0), (1, 1e-42), (3, 3e38)] {
                x.iter_mut().skip(column).step_by(columns).for_each(|v| *v *= if column < columns { by } else { 1.0 });
            }
            for refinements in [0, 3] {
                for shares in [&shares[..], &[]] {
                    let search = ScaleSearch { range, shares, refinements };
                    for exec in execs() {
                        let mut x = Guarded::new(&x);
                        let (mut scales, mut codes) = (vec![0.0; columns], vec![0; rows * columns]);
                        let to = (&mut codes[..], rows);
                        search_scales(exec.isa(), (x.get(), columns), [rows, columns], search, &mut scales, to)
                            .unwrap();
                        for c in 0..columns {
                            let block: Vec<f32> = x.get().iter().skip(c).step_by(columns).copied().collect();
                            let (scale, want) = reference(&block, &search);
                            assert_eq!(scales[c].to_bits(), scale.to_bits(), "{rows} {c} {range:?} {exec:?}");
                            assert_eq!(codes[c * rows..][..rows], want, "{rows} {c} {range:?} {exec:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn refuses_slices_that_are_too_short_and_codes_on_one_side() {
        let run = |x: usize, scales: usize, codes: usize, range: (i32, i32)| {
            let search = ScaleSearch { range, shares: &[], refinements: 0 };
            let (x, mut scales, mut codes) = (vec![1.0; x], vec![0.0; scales], vec![0; codes]);
            search_scales(Isa::detect(), (&x, 3), [2, 3], search, &mut scales, (&mut codes, 2))
        };
        assert!(run(6, 3, 6, (-8, 7)).is_ok());
        assert!(run(5, 3, 6, (-8, 7)).is_err());
        assert!(run(6, 2, 6, (-8, 7)).is_err());
        assert!(run(6, 3, 5, (-8, 7)).is_err());
        assert!(run(6, 3, 6, (0, 15)).is_err());
    }
}
