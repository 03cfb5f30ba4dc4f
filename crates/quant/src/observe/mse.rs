use super::{Histogram, Range};
use crate::scheme::ActivationScheme;

/// The clipping of least mean squared quantization error under the recorded distribution.
///
/// Searches the share of the full range that is kept, first for both ends together, then for each end
/// alone (asymmetric schemes).
pub fn range(h: &Histogram, full: Range, scheme: &ActivationScheme) -> Range {
    let full = Range { min: full.min.min(0.0), max: full.max.max(0.0) };
    let at = |lo: f64, hi: f64| Range { min: full.min * lo, max: full.max * hi };
    let cost = |lo: f64, hi: f64| error(h, at(lo, hi), scheme);
    let best = |f: &dyn Fn(f64) -> f64| {
        let shares = (1..=100).map(|i| f64::from(i) / 100.0);
        shares.map(|s| (s, f(s))).min_by(|a, b| a.1.total_cmp(&b.1)).map_or(1.0, |b| b.0)
    };
    let both = best(&|s| cost(s, s));
    if scheme.symmetric || full.min == 0.0 || full.max == 0.0 {
        return at(both, both);
    }
    let hi = best(&|s| cost(both, s));
    let lo = best(&|s| cost(s, hi));
    at(lo, hi)
}

/// The summed squared error of quantizing the recorded distribution to `r`.
fn error(h: &Histogram, r: Range, scheme: &ActivationScheme) -> f64 {
    let (qmin, qmax) = scheme.code_range();
    let q = scheme.qparams(r);
    let (step, zero) = (f64::from(q.scale), f64::from(q.zero_point));
    let width = h.width();
    let mut sum = 0.0;
    for (i, &c) in h.counts().iter().enumerate().filter(|(_, c)| **c > 0) {
        let x = h.edge(i) + width / 2.0;
        let code = ((x / step).round_ties_even() + zero).clamp(qmin as f64, qmax as f64);
        let miss = x - (code - zero) * step;
        // Within a bin values vary by width²/12; where a bin spans several steps the rounding error is step²/12.
        let inner =
            if width < step { miss * miss + width * width / 12.0 } else { (step * step / 12.0).max(clip(miss, step)) };
        sum += c as f64 * inner;
    }
    sum
}

/// The squared miss where it is more than rounding.
fn clip(miss: f64, step: f64) -> f64 {
    if miss.abs() > step { miss * miss } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_an_outlier_that_costs_more_than_it_is_worth() {
        let mut h = Histogram::default();
        h.add(&(0..2_000_000).map(|i| (i % 1000) as f32 / 1000.0).collect::<Vec<_>>());
        h.add(&[8.0]);
        let r = range(&h, Range { min: 0.0, max: 8.0 }, &ActivationScheme::default());
        assert!(r.max < 4.0 && r.max > 0.9, "{r:?}");
    }

    #[test]
    fn keeps_a_range_that_is_used() {
        let mut h = Histogram::default();
        h.add(&(0..20_000).map(|i| (i % 1000) as f32 / 500.0 - 1.0).collect::<Vec<_>>());
        let r = range(&h, Range { min: -1.0, max: 0.998 }, &ActivationScheme::default());
        assert!(r.max > 0.9 && r.min < -0.9, "{r:?}");
    }
}
