use super::{Histogram, Range};

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
    fn leaves_out_a_lone_outlier() {
        let mut h = Histogram::default();
        h.add(&vec![0.5; 99_999]);
        h.add(&[100.0]);
        assert!(range(&h, 99.99).max < 1.0);
        assert!(range(&h, 100.0).max >= 100.0);
    }
}
