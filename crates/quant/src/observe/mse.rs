use narrowbit_tensor::minifloat;

use super::{Histogram, Range};
use crate::scheme::{ActivationScheme, NumberFormat};

/// The clipping of least mean squared quantization error under the recorded distribution.
///
/// Searches the share of the full range that is kept, first for both ends together, then for each end
/// alone (asymmetric schemes).
pub fn range(h: &Histogram, full: Range, scheme: &ActivationScheme) -> Range {
    let full = Range { min: full.min.min(0.0), max: full.max.max(0.0) };
    let at = |lo: f64, hi: f64| Range { min: full.min * lo, max: full.max * hi };
    let cells = cells(h);
    let cost = |lo: f64, hi: f64, limit: f64| error(&cells, h.width(), at(lo, hi), scheme, limit);
    // The least of equals. From the full range down, so that what cuts off too much is soon known to.
    let best = |cost: &dyn Fn(f64, f64) -> f64| {
        let shares = (1..=100).rev().map(|i| f64::from(i) / 100.0);
        let better = |best: (f64, f64), share: f64| {
            let cost = cost(share, best.1);
            if cost <= best.1 { (share, cost) } else { best }
        };
        shares.fold((1.0, f64::INFINITY), better).0
    };
    let both = best(&|s, limit| cost(s, s, limit));
    if scheme.symmetric || full.min == 0.0 || full.max == 0.0 {
        return at(both, both);
    }
    let hi = best(&|s, limit| cost(both, s, limit));
    let lo = best(&|s, limit| cost(s, hi, limit));
    at(lo, hi)
}

/// The summed squared error of a range under the recorded distribution.
pub fn cost(h: &Histogram, r: Range, scheme: &ActivationScheme) -> f64 {
    error(&cells(h), h.width(), r, scheme, f64::INFINITY)
}

/// The middle and the count of each bin that is not empty, the greatest magnitudes first: what is cut off costs most.
fn cells(h: &Histogram) -> Vec<(f64, f64)> {
    let half = h.width() / 2.0;
    let counts = h.counts().iter().enumerate().filter(|(_, c)| **c > 0);
    let mut cells: Vec<(f64, f64)> = counts.map(|(i, &c)| (h.edge(i) + half, c as f64)).collect();
    cells.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
    cells
}

/// The summed squared error of quantizing the recorded distribution to `r`; where that is above `limit`,
/// any number above it.
fn error(cells: &[(f64, f64)], width: f64, r: Range, scheme: &ActivationScheme, limit: f64) -> f64 {
    let (qmin, qmax) = scheme.code_range();
    let q = scheme.qparams(r);
    let (step, zero) = (f64::from(q.scale), f64::from(q.zero_point));
    if scheme.format.is_float() {
        return float_error(cells, width, q.scale, scheme.format, limit);
    }
    let mut sum = 0.0;
    for &(x, count) in cells {
        let code = (round(x / step) + zero).clamp(qmin as f64, qmax as f64);
        let miss = x - (code - zero) * step;
        // Within a bin values vary by width²/12; where a bin spans several steps the rounding error is step²/12.
        let inner =
            if width < step { miss * miss + width * width / 12.0 } else { (step * step / 12.0).max(clip(miss, step)) };
        sum += count * inner;
        if sum > limit {
            break;
        }
    }
    sum
}

/// As [`error`], for fp8 with the given scale.
fn float_error(cells: &[(f64, f64)], width: f64, scale: f32, format: NumberFormat, limit: f64) -> f64 {
    let step = f64::from(scale);
    let value = |x: f64| {
        let code = minifloat::encode(format.dtype(), (x / step) as f32, true);
        f64::from(minifloat::decode(format.dtype(), code)) * step
    };
    let mut sum = 0.0;
    for &(x, count) in cells {
        sum += count * ((x - value(x)).powi(2) + width * width / 12.0);
        if sum > limit {
            break;
        }
    }
    sum
}

/// `x.round_ties_even()`, which is a call of the C library where the target has no instruction for it.
fn round(x: f64) -> f64 {
    /// Adding it leaves no bit for fractions.
    const SHIFT: f64 = 6755399441055744.0; // 1.5 · 2^52
    if x.abs() < 1e15 { (x + SHIFT) - SHIFT } else { x.round_ties_even() }
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
    fn rounds_half_to_even() {
        for x in [0.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.4999, 254.5, 255.50001, 1e14 + 0.5, -1e15, 1e300] {
            assert_eq!(round(x), f64::round_ties_even(x), "{x}");
        }
    }

    #[test]
    fn keeps_a_range_that_is_used() {
        let mut h = Histogram::default();
        h.add(&(0..20_000).map(|i| (i % 1000) as f32 / 500.0 - 1.0).collect::<Vec<_>>());
        let r = range(&h, Range { min: -1.0, max: 0.998 }, &ActivationScheme::default());
        assert!(r.max > 0.9 && r.min < -0.9, "{r:?}");
    }
}
