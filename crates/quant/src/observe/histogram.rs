//! A histogram that needs no range beforehand, merges exactly and does not depend on the order of its input.

use serde::{Deserialize, Serialize};

/// Bins of a histogram; half of them on each side of zero.
pub const BINS: usize = 4096;
const HALF: usize = BINS / 2;
/// The exponent of the smallest half range: everything below is one bin.
const MIN_EXPONENT: i32 = -60;

/// Counts of values in [`BINS`] equal bins over `[-2^e, 2^e)`.
///
/// `e` is the least exponent that covers all values so far: when a larger one comes, pairs of bins are
/// merged until it fits. Merging pairs commutes with counting, so the result depends only on the values,
/// not on their order or on how they were spread over shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    exponent: i32,
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { exponent: MIN_EXPONENT, counts: vec![0; BINS] }
    }
}

impl Histogram {
    /// The number of values counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |n, &c| n.saturating_add(c))
    }

    /// The counts, from the most negative bin on.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The width of each bin, in the values' unit.
    pub fn width(&self) -> f64 {
        2f64.powi(self.exponent) / HALF as f64
    }

    /// The lower edge of bin `i`.
    pub fn edge(&self, i: usize) -> f64 {
        (i as f64 - HALF as f64) * self.width()
    }

    /// Makes room for values of magnitude up to `max_abs`, which must be finite.
    pub fn cover(&mut self, max_abs: f32) {
        let needed = exponent_above(max_abs);
        while self.exponent < needed {
            self.halve(needed);
        }
    }

    /// The lower edge of the first bin and the bin width, as `f32` (both are exact powers of two times
    /// small integers), for kernels that count into [`Histogram::counts_mut`].
    pub fn geometry(&self) -> (f32, f32) {
        (-(2f32.powi(self.exponent)), 2f32.powi(self.exponent - HALF.trailing_zeros() as i32))
    }

    /// The counts to add to; call [`Histogram::cover`] first.
    pub fn counts_mut(&mut self) -> &mut [u64] {
        &mut self.counts
    }

    /// Counts finite values; others are passed over.
    pub fn add(&mut self, values: &[f32]) {
        let max = values.iter().filter(|v| v.is_finite()).fold(0f32, |m, v| m.max(v.abs()));
        self.cover(max);
        let (_, width) = self.geometry();
        for &v in values.iter().filter(|v| v.is_finite()) {
            // Exact: the width is a power of two.
            let bin = (v / width).floor() as i64 + HALF as i64;
            self.counts[bin.clamp(0, BINS as i64 - 1) as usize] += 1;
        }
    }

    /// Adds all that another histogram has counted.
    pub fn merge(&mut self, other: &Histogram) {
        let mut other = other.clone();
        let to = self.exponent.max(other.exponent);
        self.grow(to);
        other.grow(to);
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a = a.saturating_add(*b));
    }

    fn grow(&mut self, to: i32) {
        while self.exponent < to {
            self.halve(to);
        }
    }

    /// Doubles the range once, or jumps to `to` while nothing is counted.
    fn halve(&mut self, to: i32) {
        if self.counts.iter().all(|&c| c == 0) {
            self.exponent = to;
            return;
        }
        let mut out = vec![0u64; BINS];
        for (i, pair) in self.counts.chunks_exact(2).enumerate() {
            out[HALF / 2 + i] = pair[0].saturating_add(pair[1]);
        }
        self.counts = out;
        self.exponent += 1;
    }
}

/// The least exponent `e` with `max_abs < 2^e`, in the range that bins can have in `f32`.
fn exponent_above(max_abs: f32) -> i32 {
    if max_abs == 0.0 || !max_abs.is_finite() {
        return MIN_EXPONENT;
    }
    let bits = max_abs.to_bits();
    // A subnormal's exponent field is 0, which is below the least exponent anyway.
    ((bits >> 23) as i32 - 127 + 1).clamp(MIN_EXPONENT, 127)
}

/// The form in files: counts without leading and trailing zeros.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    exponent: i32,
    first: usize,
    counts: Vec<u64>,
}

impl From<&Histogram> for Saved {
    fn from(h: &Histogram) -> Saved {
        let first = h.counts.iter().position(|&c| c > 0).unwrap_or(0);
        let end = h.counts.iter().rposition(|&c| c > 0).map_or(0, |p| p + 1);
        Saved { exponent: h.exponent, first, counts: h.counts[first..end.max(first)].to_vec() }
    }
}

impl TryFrom<Saved> for Histogram {
    type Error = String;

    fn try_from(s: Saved) -> Result<Histogram, String> {
        if !(MIN_EXPONENT..=127).contains(&s.exponent) {
            return Err(format!("exponent {} is out of range", s.exponent));
        }
        let end = s.first.checked_add(s.counts.len()).filter(|&e| e <= BINS);
        let end = end.ok_or_else(|| format!("more than {BINS} bins"))?;
        let mut counts = vec![0; BINS];
        counts[s.first..end].copy_from_slice(&s.counts);
        Ok(Histogram { exponent: s.exponent, counts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize) -> Vec<f32> {
        let mut x = 7u64;
        let mut next = || {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..n).map(|i| next() * 2f32.powi((i % 19) as i32 - 9)).collect()
    }

    #[test]
    fn counts_the_same_in_any_order_and_sharding() {
        let v = values(5000);
        let mut all = Histogram::default();
        all.add(&v);
        let mut back = Histogram::default();
        v.iter().rev().for_each(|x| back.add(&[*x]));
        assert_eq!(all, back);
        let (mut a, mut b) = (Histogram::default(), Histogram::default());
        a.add(&v[..1234]);
        b.add(&v[1234..]);
        b.merge(&a);
        assert_eq!(all, b);
        assert_eq!(all.total(), 5000);
    }

    #[test]
    fn puts_values_into_the_bin_that_holds_them() {
        let mut h = Histogram::default();
        h.add(&[-1.0, 0.0, 0.999, f32::NAN, f32::INFINITY]);
        assert_eq!(h.total(), 3);
        for (i, &c) in h.counts().iter().enumerate().filter(|(_, c)| **c > 0) {
            let (lo, hi) = (h.edge(i), h.edge(i + 1));
            assert!([-1.0, 0.0, 0.999f32 as f64].iter().any(|&x| lo <= x && x < hi), "bin {i} [{lo}, {hi}) has {c}");
        }
        // 1.0 itself is counted, so the range is [-2, 2).
        assert_eq!(h.width(), 4.0 / BINS as f64);
    }

    #[test]
    fn survives_saving_and_refuses_bad_files() {
        let mut h = Histogram::default();
        h.add(&values(100));
        let saved = Saved::from(&h);
        assert_eq!(Histogram::try_from(saved.clone()), Ok(h));
        assert!(Histogram::try_from(Saved { first: usize::MAX, ..saved.clone() }).is_err());
        assert!(Histogram::try_from(Saved { exponent: 4000, ..saved }).is_err());
        assert_eq!(Histogram::try_from(Saved::from(&Histogram::default())), Ok(Histogram::default()));
    }
}
