use super::{Histogram, Range, mse};
use crate::scheme::ActivationScheme;

/// The shares that [`search`] tries, in percent.
const SHARES: [f64; 10] = [100.0, 99.9999, 99.999, 99.995, 99.99, 99.95, 99.9, 99.5, 99.0, 98.0];

/// Of the ranges that keep [`SHARES`] of the elements, the one that costs the least squared error under the recorded
/// distribution; the widest of equals. `full` are the exact extremes.
pub fn search(h: &Histogram, full: Range, scheme: &ActivationScheme) -> Range {
    let cut = |r: Range| Range { min: r.min.max(full.min), max: r.max.min(full.max) };
    let tried = SHARES.iter().map(|&p| cut(range(h, p))).map(|r| (mse::cost(h, r, scheme), r));
    tried.fold((f64::INFINITY, full), |best, t| if t.0 < best.0 { t } else { best }).1
}

/// The range that leaves out `100 − percent` percent of the elements, half of them on each side.
/// Positions within a bin are interpolated.
pub fn range(h: &Histogram, percent: f64) -> Range {
    let tail = h.total() as f64 * (100.0 - percent.clamp(0.0, 100.0)) / 200.0;
    let counts = h.counts();
    let low = cut(counts.iter().copied(), tail);
    let high = cut(counts.iter().rev().copied(), tail);
    let bins = counts.len() as f64;
    Range { min: h.edge(0) + low * h.width(), max: h.edge(0) + (bins - high) * h.width() }
}

/// How many bins, fractions included, hold `tail` elements.
fn cut(counts: impl Iterator<Item = u64>, tail: f64) -> f64 {
    let mut seen = 0.0;
    for (i, c) in counts.enumerate() {
        let c = c as f64;
        if c > 0.0 && seen + c >= tail {
            return i as f64 + ((tail - seen) / c).max(0.0);
        }
        seen += c;
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_half_of_the_share_on_each_side() {
        let mut h = Histogram::default();
        let v: Vec<f32> = (0..100_000).map(|i| i as f32 / 100_000.0 * 2.0 - 1.0).collect();
        h.add(&v);
        let r = range(&h, 90.0);
        // One bin is 2/4096 wide for magnitudes up to 1.
        assert!((r.min + 0.9).abs() < 1e-3 && (r.max - 0.9).abs() < 1e-3, "{r:?}");
    }

    #[test]
    fn searches_the_share_that_costs_the_least() {
        let scheme = ActivationScheme::default();
        // One outlier in 10,000 that costs less clipped than a step 40 times as wide for all others.
        let mut values: Vec<f32> = (0..10_000).map(|i| i as f32 / 10_000.0).collect();
        let full = |max: f64| Range { min: 0.0, max };
        let mut h = Histogram::default();
        h.add(&values);
        assert!(search(&h, full(0.9999), &scheme).max > 0.98, "a flat end costs more cut off than it gains");
        values.extend([2.0; 3]);
        values.push(3.0);
        let mut h = Histogram::default();
        h.add(&values);
        let found = search(&h, full(3.0), &scheme);
        let held = |r: Range| Range { min: r.min.max(0.0), max: r.max.min(3.0) };
        let costs = SHARES.map(|p| mse::cost(&h, held(range(&h, p)), &scheme));
        let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(mse::cost(&h, found, &scheme) <= least);
    }

    #[test]
    fn leaves_out_a_lone_outlier() {
        let mut h = Histogram::default();
        h.add(&vec![0.5; 99_999]);
        h.add(&[100.0]);
        assert!(range(&h, 99.99).max < 1.0);
        assert!(range(&h, 100.0).max >= 100.0);
    }
}
