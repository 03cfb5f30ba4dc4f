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
    let cut = (levels..=used)
        .map(|n| (n, divergence(&magnitudes[..used], n, levels)))
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map_or(used, |(n, _)| n);
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

/// The divergence KL(P ‖ Q) of the distribution cut at `n` bins from its quantization to `levels`.
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

    #[test]
    fn keeps_a_uniform_distribution_whole() {
        let mut h = Histogram::default();
        let v: Vec<f32> = (0..50_000).map(|i| i as f32 / 50_000.0).collect();
        h.add(&v);
        let r = range(&h, Range { min: 0.0, max: 0.99998 }, &ActivationScheme::default());
        assert!(r.max > 0.95, "{r:?}");
    }
}
