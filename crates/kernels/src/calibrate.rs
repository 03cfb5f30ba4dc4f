//! One-pass statistics of activations: ranges, histograms, moments.

use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

use crate::buffer::SharedMut;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::reduce::{CHAINS, sum_of_chains};
use crate::simd::{Kernel, Simd, low_bits};

/// Elements of one part of a pass; parts do not depend on the number of threads.
const CHUNK: usize = 1 << 15;
/// Most bins of a histogram: f32 counts up to here exactly.
pub const MAX_BINS: usize = 1 << 20;

/// Range of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Smallest finite value; +∞ when there is none.
    pub min: f32,
    /// Largest finite value; −∞ when there is none.
    pub max: f32,
    /// NaN elements.
    pub nan: u64,
    /// Infinite elements.
    pub infinite: u64,
}

impl Range {
    /// The range of no element.
    pub const EMPTY: Range = Range { min: f32::INFINITY, max: f32::NEG_INFINITY, nan: 0, infinite: 0 };

    /// The range of both.
    pub fn merge(self, other: Range) -> Range {
        Range {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            nan: self.nan + other.nan,
            infinite: self.infinite + other.infinite,
        }
    }
}

/// Sums of a tensor, over its finite elements.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Moments {
    /// Finite elements.
    pub count: u64,
    /// Σ x
    pub sum: f64,
    /// Σ x²
    pub sum_square: f64,
    /// Largest |x|; 0 when there is no finite element.
    pub abs_max: f32,
}

/// Elements that a histogram did not count in a bin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Outside {
    /// Below the range.
    pub below: u64,
    /// Above the range.
    pub above: u64,
    /// NaN.
    pub nan: u64,
}

/// Runs `work` on each chunk of `x`; the results, in order.
fn chunked<T: Send + Copy>(exec: &Exec, x: &[f32], empty: T, work: &(dyn Fn(&[f32]) -> T + Sync)) -> Vec<T> {
    let parts = x.len().div_ceil(CHUNK);
    let mut results = vec![empty; parts];
    let out = SharedMut::new(&mut results);
    exec.pool().run(parts, &|i| {
        let chunk = &x[i * CHUNK..((i + 1) * CHUNK).min(x.len())];
        // SAFETY: each part owns its result.
        unsafe { out.slice(i, 1)[0] = work(chunk) };
    });
    results
}

/// Smallest and largest finite value, and how many are not finite.
pub fn min_max(exec: &Exec, x: &[f32]) -> Range {
    let parts = chunked(exec, x, Range::EMPTY, &|chunk| exec.isa().dispatch(MinMax { x: chunk }));
    parts.into_iter().fold(Range::EMPTY, Range::merge)
}

/// 0 for −0: which of the two is found first depends on the lanes.
#[inline(always)]
fn unsigned_zero(x: f32) -> f32 {
    x + 0.0
}

struct MinMax<'a> {
    x: &'a [f32],
}

impl Kernel for MinMax<'_> {
    type Out = Range;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Range {
        let (none, all) = (s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY));
        let (mut low, mut high) = (none, all);
        let mut range = Range::EMPTY;
        let mut i = 0;
        while i < self.x.len() {
            let bits = low_bits((self.x.len() - i).min(S::LANES));
            // SAFETY: `bits` ends at the slice's end.
            let v = unsafe { s.load_bits(self.x.as_ptr().add(i), bits) };
            let finite = s.lt(s.abs(v), none);
            let good = s.mask_bits(finite) & bits;
            if good == low_bits(S::LANES) {
                low = s.min(v, low);
                high = s.max(v, high);
            } else {
                // The last lanes, or a tensor that is broken: one by one.
                let nan = s.mask_bits(s.unordered(v, v)) & bits;
                range.nan += u64::from(nan.count_ones());
                range.infinite += u64::from((bits & !good & !nan).count_ones());
                let end = (i + S::LANES).min(self.x.len());
                for &v in self.x[i..end].iter().filter(|v| v.is_finite()) {
                    range.min = range.min.min(v);
                    range.max = range.max.max(v);
                }
            }
            i += S::LANES;
        }
        range.min = unsigned_zero(range.min.min(s.hmin(low)));
        range.max = unsigned_zero(range.max.max(s.hmax(high)));
        range
    }
}

/// Merges the range of each channel of `[outer, channels, inner]` into `ranges`.
///
/// # Errors
/// A slice has another length than the shape.
pub fn channel_min_max(exec: &Exec, x: &[f32], [outer, c, inner]: [usize; 3], ranges: &mut [Range]) -> Result {
    const NAME: &str = "channel_min_max";
    exact(NAME, "x", x.len(), product(NAME, &[outer, c, inner])?)?;
    exact(NAME, "ranges", ranges.len(), c)?;
    if x.is_empty() {
        return Ok(());
    }
    let out = SharedMut::new(ranges);
    if inner == 1 {
        exec.split(c, 64, &|range| {
            // SAFETY: each task owns its channels.
            let ranges = unsafe { out.slice(range.start, range.len()) };
            exec.isa().dispatch(Columns { x: &x[range.start..], step: c, rows: outer, ranges });
        });
        return Ok(());
    }
    exec.split(c, CHUNK / (outer * inner) + 1, &|range| {
        for channel in range {
            // SAFETY: each task owns its channels.
            let target = unsafe { &mut out.slice(channel, 1)[0] };
            for o in 0..outer {
                let x = &x[(o * c + channel) * inner..][..inner];
                *target = target.merge(exec.isa().dispatch(MinMax { x }));
            }
        }
    });
    Ok(())
}

/// Ranges of neighbouring columns of a matrix with `step` columns.
struct Columns<'a> {
    x: &'a [f32],
    step: usize,
    rows: usize,
    ranges: &'a mut [Range],
}

impl Kernel for Columns<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.ranges.len();
        let mut i = 0;
        while i < columns {
            let n = (columns - i).min(S::LANES);
            let bits = low_bits(n);
            let infinity = s.splat(f32::INFINITY);
            let (mut low, mut high) = (infinity, s.splat(f32::NEG_INFINITY));
            for row in 0..self.rows {
                // SAFETY: `n` columns are left in each row.
                let v = unsafe { s.load_bits(self.x.as_ptr().add(row * self.step + i), bits) };
                let finite = s.lt(s.abs(v), infinity);
                if s.mask_bits(finite) & bits != bits {
                    for (k, range) in self.ranges[i..i + n].iter_mut().enumerate() {
                        let v = self.x[row * self.step + i + k];
                        range.nan += u64::from(v.is_nan());
                        range.infinite += u64::from(v.is_infinite());
                    }
                }
                low = s.select(finite, s.min(v, low), low);
                high = s.select(finite, s.max(v, high), high);
            }
            let (mut lows, mut highs) = ([0f32; 16], [0f32; 16]);
            // SAFETY: at most 16 lanes.
            unsafe {
                s.store(lows.as_mut_ptr(), low);
                s.store(highs.as_mut_ptr(), high);
            }
            for (k, range) in self.ranges[i..i + n].iter_mut().enumerate() {
                range.min = unsigned_zero(range.min.min(lows[k]));
                range.max = unsigned_zero(range.max.max(highs[k]));
            }
            i += n;
        }
    }
}

/// Sum, sum of squares and largest magnitude, the same bits on every tier. Parts of 256 elements are summed in
/// f32 and added in f64, so the error does not grow with the length.
pub fn moments(exec: &Exec, x: &[f32]) -> Moments {
    let parts = chunked(exec, x, Moments::default(), &|chunk| {
        chunk.chunks(256).fold(Moments::default(), |total, x| add(total, exec.isa().dispatch(Sums { x })))
    });
    parts.into_iter().fold(Moments::default(), add)
}

fn add(a: Moments, b: Moments) -> Moments {
    Moments {
        count: a.count + b.count,
        sum: a.sum + b.sum,
        sum_square: a.sum_square + b.sum_square,
        abs_max: a.abs_max.max(b.abs_max),
    }
}

struct Sums<'a> {
    x: &'a [f32],
}

impl Kernel for Sums<'_> {
    type Out = Moments;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Moments {
        let zero = s.splat(0.0);
        let (mut sum, mut square, mut peak) = ([zero; CHAINS], [zero; CHAINS], zero);
        let mut count = 0;
        for x in self.x.chunks(CHAINS) {
            // Element `i` belongs to chain `i % 16` on every tier.
            for v in 0..CHAINS / S::LANES {
                let at = v * S::LANES;
                let bits = low_bits(x.len().saturating_sub(at).min(S::LANES));
                // SAFETY: `bits` ends at the chunk's end, and holds no lane beyond it.
                let x = unsafe { s.load_bits(x.as_ptr().wrapping_add(at), bits) };
                let finite = s.lt(s.abs(x), s.splat(f32::INFINITY));
                count += u64::from((s.mask_bits(finite) & bits).count_ones());
                let x = s.select(finite, x, zero);
                sum[v] = s.add(sum[v], x);
                square[v] = s.mul_add(x, x, square[v]);
                peak = s.max(s.abs(x), peak);
            }
        }
        let (sum, square) = (sum_of_chains(s, sum), sum_of_chains(s, square));
        Moments { count, sum: f64::from(sum), sum_square: f64::from(square), abs_max: s.hmax(peak) }
    }
}

/// Adds to `bins` how many elements fall in each of `bins.len()` equal parts of
/// `low ..= high`: element x in bin `⌊(x − low) · (bins / (high − low))⌋`, in f32 (exactly where zero is
/// an edge of a bin and their width a power of two), `high` itself in the last. With `absolute`, |x| is counted instead of x.
///
/// # Errors
/// The range is empty or not finite, or there are no bins or over [`MAX_BINS`].
pub fn histogram(exec: &Exec, x: &[f32], range: (f32, f32), absolute: bool, bins: &mut [u64]) -> Result<Outside> {
    let scale = Scale::new(bins.len(), range, absolute)?;
    Ok(count(exec, x, scale, bins).outside)
}

/// As [`histogram`], and the least and the greatest element from the same pass, where all elements lie between
/// `low` and `high`, the ends excluded. Where not, nothing is counted and the answer is `None`.
///
/// # Errors
/// As [`histogram`].
pub fn histogram_within(exec: &Exec, x: &[f32], range: (f32, f32), bins: &mut [u64]) -> Result<Option<(f32, f32)>> {
    let scale = Scale::new(bins.len(), range, false)?;
    let mut counts = vec![0; bins.len()];
    let Counted { outside, min, max } = count(exec, x, scale, &mut counts);
    if x.is_empty() || outside != Outside::default() || min <= range.0 || max >= range.1 {
        return Ok(None);
    }
    bins.iter_mut().zip(counts).for_each(|(bin, count)| *bin += count);
    Ok(Some((min, max)))
}

/// Which bin a value falls in.
#[derive(Clone, Copy)]
struct Scale {
    low: f32,
    high: f32,
    /// Bins per unit.
    factor: f32,
    absolute: bool,
    /// Zero is an edge and the width a power of two, so that x · factor is exact: subtracting `low` first would
    /// round small values into a neighbouring bin.
    aligned: bool,
    bins: usize,
}

impl Scale {
    fn new(bins: usize, (low, high): (f32, f32), absolute: bool) -> Result<Scale> {
        const NAME: &str = "histogram";
        require(NAME, (1..=MAX_BINS).contains(&bins), "there must be 1 to 1048576 bins")?;
        let factor = bins as f32 / (high - low);
        let good = low < high && factor.is_finite() && factor > 0.0;
        require(NAME, good, "the range must be finite and not empty")?;
        let aligned = (low * factor).fract() == 0.0 && factor.to_bits() << 9 == 0;
        Ok(Scale { low, high, factor, absolute, aligned, bins })
    }

    /// The bins that values of `min ..= max` fall in.
    fn used(self, min: f32, max: f32) -> std::ops::Range<usize> {
        // The formula of `bin`, whose every step keeps the order of values.
        let bin = |v: f32| {
            let v = v.clamp(self.low, self.high);
            let bin = match self.aligned {
                true => (v * self.factor).floor() - self.low * self.factor,
                false => ((v - self.low) * self.factor).floor(),
            };
            (bin as usize).min(self.bins - 1)
        };
        if min > max { 0..0 } else { bin(min)..bin(max) + 1 }
    }

    /// The bin of each lane: 0 … bins − 1, or one of the [`EXTRA`].
    #[inline(always)]
    fn bin<S: Simd>(self, s: S, v: S::F) -> S::F {
        let (low, high, factor) = (s.splat(self.low), s.splat(self.high), s.splat(self.factor));
        let n = self.bins as f32;
        let bin = match self.aligned {
            true => s.sub(s.floor(s.mul(v, factor)), s.splat(self.low * self.factor)),
            false => s.floor(s.mul(s.sub(v, low), factor)),
        };
        let bin = s.min(bin, s.splat(n - 1.0));
        let bin = s.select(s.lt(v, low), s.splat(n), bin);
        let bin = s.select(s.lt(high, v), s.splat(n + 1.0), bin);
        s.select(s.unordered(v, v), s.splat(n + 2.0), bin)
    }
}

/// What a count found beside the bins.
struct Counted {
    outside: Outside,
    /// The least element that is a number, infinities included.
    min: f32,
    /// The greatest.
    max: f32,
}

fn count(exec: &Exec, x: &[f32], scale: Scale, bins: &mut [u64]) -> Counted {
    let none = Counted { outside: Outside::default(), min: f32::INFINITY, max: f32::NEG_INFINITY };
    let total = Mutex::new((bins, none));
    // Few parts: each has its own counters to add up.
    let grain = x.len().div_ceil(2 * exec.threads()).max(2 * CHUNK);
    exec.split(x.len(), grain, &|range| {
        with_counters((scale.bins + EXTRA) * WAYS, |counts| {
            for part in x[range.clone()].chunks(PART) {
                let Part { min, max, zeros } = exec.isa().dispatch(Count { x: part, scale, counts });
                let mut guard = total.lock().unwrap_or_else(PoisonError::into_inner);
                let (bins, found) = &mut *guard;
                let (inside, extra) = counts.split_at_mut(scale.bins * WAYS);
                let used = scale.used(min, max);
                let inside = inside[used.start * WAYS..used.end * WAYS].chunks_exact_mut(WAYS);
                bins[used].iter_mut().zip(inside).for_each(|(bin, ways)| *bin += take(ways));
                if zeros > 0 {
                    bins_of_zero(scale, bins, &mut found.outside, zeros);
                }
                let mut extra = extra.chunks_exact_mut(WAYS).map(take);
                let mut next = || extra.next().unwrap_or_default();
                found.outside.below += next();
                found.outside.above += next();
                found.outside.nan += next();
                (found.min, found.max) = (found.min.min(min), found.max.max(max));
            }
        });
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner).1
}

/// Counts `zeros` zeros where they belong.
fn bins_of_zero(scale: Scale, bins: &mut [u64], outside: &mut Outside, zeros: u64) {
    match scale.used(0.0, 0.0).next() {
        _ if scale.low > 0.0 => outside.below += zeros,
        _ if scale.high < 0.0 => outside.above += zeros,
        bin => bin.into_iter().for_each(|bin| bins[bin] += zeros),
    }
}

/// The sum of a bin's counters, which are left at zero.
fn take(ways: &mut [u16]) -> u64 {
    let sum = ways.iter().map(|&c| u64::from(c)).sum();
    ways.fill(0);
    sum
}

/// Lends this thread's counters, `len` zeros; `body` leaves them at zero. They are kept, because
/// clearing them for each tensor would cost as much as counting a small one.
fn with_counters(len: usize, body: impl FnOnce(&mut [u16])) {
    thread_local! {
        static COUNTERS: Cell<Vec<u16>> = const { Cell::new(Vec::new()) };
    }
    // A panic in `body` drops the vector: the next call starts with a new one.
    let mut counters = COUNTERS.take();
    if counters.len() < len {
        counters.resize(len, 0);
    }
    body(&mut counters[..len]);
    COUNTERS.set(counters);
}

/// Counters beyond the bins: below, above, NaN.
const EXTRA: usize = 3;
/// Counters of each bin, side by side: neighbouring elements, which often fall in the same bin, take turns and do
/// not wait for each other.
const WAYS: usize = 4;
/// Elements of a part: few enough that no counter overflows, even where all fall in one bin.
const PART: usize = 1 << 17;
/// Elements whose bins are computed before they are counted: the one is vector work, the other is not.
const BLOCK: usize = 1024;

struct Count<'a> {
    x: &'a [f32],
    scale: Scale,
    /// `WAYS` for each of the bins and of `EXTRA`.
    counts: &'a mut [u16],
}

/// What a part has beside its counts.
struct Part {
    /// The least element that is a number.
    min: f32,
    /// The greatest.
    max: f32,
    /// Zeros, which are counted here and not in a bin.
    zeros: u64,
}

impl Kernel for Count<'_> {
    type Out = Part;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Part {
        let Count { x, scale, counts } = self;
        assert!(counts.len() >= (scale.bins + EXTRA) * WAYS && x.len() <= PART);
        let ways = s.splat(WAYS as f32);
        let mut zeros = 0;
        let (mut min, mut max) = (s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY));
        // Room for the lanes beyond a last block that is no multiple of them.
        let mut cells = [0i32; BLOCK + 16];
        for block in x.chunks(BLOCK) {
            let (mut i, mut kept) = (0, 0);
            while i < block.len() {
                let len = (block.len() - i).min(S::LANES);
                // SAFETY: `len` elements are left; up to 16 lanes beyond `i < BLOCK` fit in `cells`; a prefetch may
                // lie beyond the end.
                unsafe {
                    let p = block.as_ptr().add(i);
                    s.prefetch(p.wrapping_add(BLOCK));
                    let v = if len == S::LANES { s.load(p) } else { s.load_bits(p, low_bits(len)) };
                    let v = if scale.absolute { s.abs(v) } else { v };
                    if len == S::LANES {
                        (min, max) = (s.min(v, min), s.max(v, max));
                    } else {
                        for &v in &block[i..] {
                            let v = s.splat(if scale.absolute { v.abs() } else { v });
                            (min, max) = (s.min(v, min), s.max(v, max));
                        }
                    }
                    let cell = s.to_i32(s.mul(scale.bin(s, v), ways));
                    // Only zeros are less than the least subnormal. They come by the half behind a ReLU.
                    let zero = s.mask_bits(s.lt(s.abs(v), s.splat(f32::from_bits(1)))) & low_bits(len);
                    zeros += u64::from(zero.count_ones());
                    kept += s.store_i32_of(cells.as_mut_ptr().add(kept), cell, low_bits(len) & !zero);
                }
                i += S::LANES;
            }
            let (groups, rest) = cells[..kept].as_chunks::<WAYS>();
            for group in groups {
                for (way, &cell) in group.iter().enumerate() {
                    // SAFETY: `Scale::bin` gives 0 … bins − 1 or one of `EXTRA` for any float, and `counts` has
                    // `WAYS` counters for each, as asserted above.
                    unsafe { *counts.get_unchecked_mut(cell as usize + way) += 1 };
                }
            }
            rest.iter().for_each(|&cell| counts[cell as usize] += 1);
        }
        Part { min: unsigned_zero(s.hmin(min)), max: unsigned_zero(s.hmax(max)), zeros }
    }
}

#[cfg(test)]
mod tests;
