use super::{Histogram, Range};
use crate::scheme::ActivationScheme;

/// The clipping whose quantized distribution diverges least from the recorded one.
///
/// As in TensorRT's calibrator (Migacz, "8-bit Inference with TensorRT", GTC 2017): the distribution of
/// magnitudes is cut at each candidate, the tail is added to the last bin, the cut distribution is
/// spread over the quantization levels, and the candidate of least Kullback-Leibler divergence wins.
/// A tensor without negative values spends all levels on one side when the scheme is asymmetric.
pub fn range(h: &Histogram, full: Range, scheme: &ActivationScheme) -> Range {
    let one_sided = !scheme.symmetric && (full.min >= 0.0 || full.max <= 0.0);
    let levels = if one_sided { 256 } else { 128 };
    let magnitudes = fold(h);
    let used = magnitudes.iter().rposition(|&c| c > 0.0).map_or(0, |p| p + 1);
    let cut = best_cut(&magnitudes[..used], levels).unwrap_or(used);
    let limit = if cut == used { full.min.abs().max(full.max.abs()) } else { cut as f64 * h.width() };
    Range { min: full.min.max(-limit), max: full.max.min(limit) }
}

/// Counts by magnitude. Exact zeros need no level of their own and would drown the rest (half of
/// ReLU's outputs are zero), so the first bin is given the count of its neighbour at the most.
fn fold(h: &Histogram) -> Vec<f64> {
    let counts = h.counts();
    let half = counts.len() / 2;
    let mut out: Vec<f64> = (0..half).map(|i| (counts[half + i] + counts[half - 1 - i]) as f64).collect();
    out[0] = out[0].min(out[1]);
    out
}

/// How far the tables' divergences may be from the definition's: both sum some thousand terms of the
/// order of the total times 40 at most, rounded to 1e-16 each, and divide by the total.
const ROUNDING: f64 = 1e-9;

/// The number of bins, `levels` at least, whose cut diverges least; the first of equals.
///
/// Tables find the candidates, and the definition decides between those that rounding could exchange.
fn best_cut(counts: &[f64], levels: usize) -> Option<usize> {
    if counts.len() < levels {
        return None;
    }
    let tables = Tables::new(counts, levels);
    let found: Vec<f64> = (levels..=counts.len()).map(|n| tables.divergence(n)).collect();
    let least = found.iter().copied().fold(f64::INFINITY, f64::min);
    let close = (levels..).zip(found).filter(|(_, d)| *d <= least + ROUNDING);
    close.map(|(n, _)| (n, divergence(counts, n, levels))).min_by(|a, b| a.1.total_cmp(&b.1)).map(|(n, _)| n)
}

/// Sums by bin and by run of bins, so that a candidate costs one lookup per level:
/// Σ p·ln(p/q) over a level is Σ p·ln p − S·ln(S/filled), where S is the level's count.
struct Tables<'a> {
    counts: &'a [f64],
    levels: usize,
    /// The count before each bin, exact.
    before: Vec<f64>,
    /// Σ c·ln c before each bin.
    entropy: Vec<f64>,
    /// S·ln(S/filled) of the run from each bin, by the run's length less one: a level of n bins in
    /// `levels` has ⌊n/levels⌋ bins or one more.
    runs: Vec<Vec<f64>>,
}

impl Tables<'_> {
    fn new(counts: &[f64], levels: usize) -> Tables<'_> {
        let running = |f: &dyn Fn(f64) -> f64| {
            let sums = counts.iter().scan(0.0, |sum, &c| {
                *sum += f(c);
                Some(*sum)
            });
            std::iter::once(0.0).chain(sums).collect::<Vec<f64>>()
        };
        let before = running(&|c| c);
        let filled = running(&|c| if c > 0.0 { 1.0 } else { 0.0 });
        let entropy = running(&|c| if c > 0.0 { c * c.ln() } else { 0.0 });
        let run = |length: usize| {
            let from = |a: usize| {
                let sum = before[a + length] - before[a];
                if sum > 0.0 { sum * (sum / (filled[a + length] - filled[a])).ln() } else { 0.0 }
            };
            (0..=counts.len() - length).map(from).collect()
        };
        let runs = (1..=counts.len().div_ceil(levels)).map(run).collect();
        Tables { counts, levels, before, entropy, runs }
    }

    /// [`divergence`], up to rounding.
    fn divergence(&self, n: usize) -> f64 {
        let total = self.before[self.counts.len()];
        let (kept, last) = (self.before[n], self.counts[n - 1]);
        if kept == 0.0 {
            return f64::INFINITY;
        }
        let mut terms = self.entropy[n];
        // The ends are ⌊level · n / levels⌋, without a division for each.
        let (whole, part) = (n / self.levels, n % self.levels);
        let (mut start, mut carried) = (0, 0);
        for _ in 0..self.levels {
            carried += part;
            let more = usize::from(carried >= self.levels);
            carried -= more * self.levels;
            terms -= self.runs[whole + more - 1][start];
            start += whole + more;
        }
        terms += match total - kept {
            0.0 => 0.0,
            tail if last > 0.0 => {
                let first = (self.levels - 1) * n / self.levels;
                let filled = self.counts[first..n].iter().filter(|&&c| c > 0.0).count() as f64;
                let q = (kept - self.before[first]) / filled;
                (last + tail) * ((last + tail) / q).ln() - last * (last / q).ln()
            }
            tail => tail * tail.max(1.0).ln(),
        };
        terms / total + (kept / total).ln()
    }
}

/// The divergence KL(P ‖ Q) of the distribution cut at `n` bins from its quantization to `levels`;
/// infinite where nothing is left of it.
fn divergence(counts: &[f64], n: usize, levels: usize) -> f64 {
    let tail: f64 = counts[n..].iter().sum();
    let total: f64 = counts.iter().sum();
    let mut sum_q = 0.0;
    let mut log_terms = 0.0;
    for level in 0..levels {
        let bins = level * n / levels..(level + 1) * n / levels;
        let filled = counts[bins.clone()].iter().filter(|&&c| c > 0.0).count();
        if filled == 0 {
            continue;
        }
        let q = counts[bins.clone()].iter().sum::<f64>() / filled as f64;
        sum_q += q * filled as f64;
        for i in bins {
            if counts[i] > 0.0 {
                let p = counts[i] + if i == n - 1 { tail } else { 0.0 };
                log_terms += p * (p / q).ln();
            }
        }
    }
    if sum_q == 0.0 {
        return f64::INFINITY;
    }
    // The tail may fall on an empty last bin, where Q has nothing: give it the smallest count.
    if counts[n - 1] == 0.0 && tail > 0.0 {
        log_terms += tail * tail.max(1.0).ln();
    }
    // KL of the normalised distributions, with Σp = total and Σq as added up.
    log_terms / total + (sum_q / total).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::ActivationScheme;

    #[test]
    fn clips_a_long_thin_tail() {
        let mut h = Histogram::default();
        // Laplace-like bulk within ±1, a handful of outliers at 40.
        let v: Vec<f32> =
            (1..20_000).map(|i| -(i as f32 / 20_000.0).ln() * if i % 2 == 0 { 0.1 } else { -0.1 }).collect();
        h.add(&v);
        h.add(&[40.0, -39.0]);
        let full = Range { min: -39.0, max: 40.0 };
        let r = range(&h, full, &ActivationScheme::default());
        assert!(r.max < 10.0 && r.max > 0.2, "{r:?}");
    }

    /// Counts of several shapes: a bell, one with gaps, one far from zero.
    fn shapes() -> Vec<Vec<f64>> {
        let bell = |i: usize| (1e6 * (-(i as f64 / 150.0).powi(2)).exp()).floor();
        let mut x = 5u64;
        let mut noise = || {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 33) as f64 % 7.0
        };
        vec![
            (0..2048).map(bell).collect(),
            (0..1311).map(|i| if i % 3 == 0 { bell(i) } else { 0.0 }).collect(),
            (0..700).map(|_| noise()).collect(),
            (0..900).map(|i| if i < 600 { 0.0 } else { bell(i - 600) }).collect(),
            vec![3.0; 128],
        ]
    }

    #[test]
    fn finds_the_cut_of_the_definition_by_tables() {
        for (k, counts) in shapes().iter().enumerate() {
            for levels in [128, 256] {
                let exact = |n| divergence(counts, n, levels);
                let plain = (levels..=counts.len()).min_by(|&a, &b| exact(a).total_cmp(&exact(b)));
                assert_eq!(best_cut(counts, levels), plain, "shape {k}, {levels} levels");
                if counts.len() < levels {
                    continue;
                }
                let tables = Tables::new(counts, levels);
                for n in levels..=counts.len() {
                    let (a, b) = (tables.divergence(n), exact(n));
                    assert!(a == b || (a - b).abs() < ROUNDING / 10.0, "shape {k}, {levels} levels, {n}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn never_cuts_everything_off() {
        let mut h = Histogram::default();
        h.add(&[5.0; 1000]);
        let r = range(&h, Range { min: 5.0, max: 5.0 }, &ActivationScheme::default());
        assert!(r.max >= 5.0 - h.width(), "{r:?}");
    }

    #[test]
    fn keeps_a_uniform_distribution_whole() {
        let mut h = Histogram::default();
        let v: Vec<f32> = (0..50_000).map(|i| i as f32 / 50_000.0).collect();
        h.add(&v);
        let r = range(&h, Range { min: 0.0, max: 0.99998 }, &ActivationScheme::default());
        assert!(r.max > 0.95, "{r:?}");
    }
}
