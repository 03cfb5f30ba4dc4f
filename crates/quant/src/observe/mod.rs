//! What calibration records of a tensor: constant memory however many samples pass,
//! everything that any method needs from one pass, exactly mergeable.

mod distribution;
mod entropy;
mod histogram;
mod means;
mod method;
mod mse;
mod peak;
mod peaks;
mod percentile;
mod positions;
mod spread;

use serde::{Deserialize, Serialize};

pub use distribution::scale as distribution_scale;
pub use histogram::{BINS, Histogram, Saved as SavedHistogram};
pub use means::Means;
pub(crate) use means::sums as channel_sums;
pub use method::{Method, Range};
pub use peak::Peak;
pub use peaks::Peaks;
pub use positions::{BatchPositions, Positions};
pub use spread::Spread;

/// How far a new sample moves the moving average of minimum and maximum
/// (`averaging_constant` of PyTorch and ONNX Runtime).
pub const AVERAGING_CONSTANT: f64 = 0.01;

/// The record of one tensor.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stats {
    /// Finite elements seen.
    pub count: u64,
    /// Elements seen that were NaN or infinite; they enter nothing else.
    pub non_finite: u64,
    /// The least and the greatest finite element; `None` before the first.
    pub extremes: Option<(f32, f32)>,
    /// The moving average of each sample's extremes.
    pub average: MovingAverage,
    /// The moving average of each sample's greatest magnitude.
    pub peak: Peak,
    /// Counts by value, where the calibration kept them.
    pub histogram: Option<Histogram>,
    /// Fix positions by batch, where the calibration searched them.
    pub positions: Option<Positions>,
    /// Sums by channel, where the calibration kept them.
    pub means: Option<Means>,
    /// Extremes by channel, where the calibration kept them.
    pub spread: Option<Spread>,
    /// The moving average of each sample's greatest magnitude by channel, where the calibration kept it.
    pub peaks: Option<Peaks>,
}

/// The moving average of per-sample minima and maxima, in a form that concatenates.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MovingAverage {
    /// Samples seen.
    samples: u64,
    /// Extremes of the first sample, which starts the average.
    first: [f64; 2],
    /// The average now.
    now: [f64; 2],
}

impl MovingAverage {
    fn add(&mut self, min: f32, max: f32) {
        let x = [f64::from(min), f64::from(max)];
        if self.samples == 0 {
            (self.first, self.now) = (x, x);
        } else {
            for (now, x) in self.now.iter_mut().zip(x) {
                *now += AVERAGING_CONSTANT * (x - *now);
            }
        }
        self.samples = self.samples.saturating_add(1);
    }

    /// The average over the samples of `self` followed by those of `next`.
    ///
    /// A sequence started by x₁ gives x₁ the weight m^(n−1), where in the longer one it has
    /// (1−m)·m^(n−1): the difference m^n·x₁ is taken back.
    fn concat(&self, next: &MovingAverage) -> MovingAverage {
        match (self.samples, next.samples) {
            (_, 0) => *self,
            (0, _) => *next,
            (_, n) => {
                let fade = (1.0 - AVERAGING_CONSTANT).powf(n as f64);
                let mix = |i: usize| fade * self.now[i] + next.now[i] - fade * next.first[i];
                MovingAverage { samples: self.samples.saturating_add(n), first: self.first, now: [mix(0), mix(1)] }
            }
        }
    }

    /// Whether it can be the average of some float32 extremes: what a file claims may not.
    pub(crate) fn is_sound(&self) -> bool {
        let limit = f64::from(f32::MAX);
        // Concatenation subtracts, so the order of minimum and maximum holds up to rounding only.
        let range =
            |[lo, hi]: [f64; 2]| lo.abs() <= limit && hi.abs() <= limit && lo <= hi + 1e-6 * hi.abs().max(lo.abs());
        range(self.first) && range(self.now)
    }

    /// The averaged minimum and maximum; `None` before the first sample.
    pub fn range(&self) -> Option<(f64, f64)> {
        (self.samples > 0).then_some((self.now[0], self.now[1]))
    }
}

impl Stats {
    /// An empty record, with or without a histogram.
    pub fn new(histogram: bool) -> Stats {
        Stats { histogram: histogram.then(Histogram::default), ..Stats::default() }
    }

    /// Records one sample's values of the tensor.
    pub fn add_sample(&mut self, values: &[f32]) {
        let summary = Summary { positions: self.positions(values), ..Summary::of(values) };
        self.add_summary(&summary);
        if let (Some(h), true) = (&mut self.histogram, summary.count > 0) {
            h.add(values);
        }
    }

    /// The positions that values ask for, where the record has any.
    fn positions(&self, values: &[f32]) -> Option<BatchPositions> {
        let s = Summary::of(values);
        self.positions.as_ref().filter(|_| s.count > 0).map(|p| BatchPositions::of(values, s.min, s.max, p.bits()))
    }

    /// Records one sample's summary, where the histogram is filled by the caller.
    pub fn add_summary(&mut self, s: &Summary) {
        self.count = self.count.saturating_add(s.count);
        self.non_finite = self.non_finite.saturating_add(s.non_finite);
        if s.count == 0 {
            return;
        }
        self.average.add(s.min, s.max);
        self.peak.add(s.min.abs().max(s.max.abs()));
        match (&mut self.positions, s.positions) {
            (Some(all), Some(batch)) => all.add(batch),
            // Positions of a part of the samples would speak for all of them.
            _ => self.positions = None,
        }
        match (&mut self.means, &s.means) {
            (Some(all), Some(batch)) => all.merge(batch),
            _ => self.means = None,
        }
        match (&mut self.spread, &s.spread) {
            (Some(all), Some(batch)) => all.merge(batch),
            _ => self.spread = None,
        }
        match (&mut self.peaks, &s.spread) {
            (Some(all), Some(batch)) => all.add(batch),
            _ => self.peaks = None,
        }
        let (lo, hi) = self.extremes.unwrap_or((s.min, s.max));
        self.extremes = Some((lo.min(s.min), hi.max(s.max)));
    }

    /// Adds the record of samples that came after those of `self`.
    pub fn merge(&mut self, next: &Stats) {
        self.count = self.count.saturating_add(next.count);
        self.non_finite = self.non_finite.saturating_add(next.non_finite);
        self.average = self.average.concat(&next.average);
        self.peak = self.peak.concat(&next.peak);
        self.extremes = match (self.extremes, next.extremes) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
        self.histogram = match (self.histogram.take(), &next.histogram) {
            (Some(mut a), Some(b)) => {
                a.merge(b);
                Some(a)
            }
            // A histogram of a part of the samples would speak for all of them.
            _ => None,
        };
        self.positions = match (self.positions.take(), &next.positions) {
            (Some(mut a), Some(b)) if a.bits() == b.bits() => {
                a.merge(b);
                Some(a)
            }
            _ => None,
        };
        self.means = match (self.means.take(), &next.means) {
            (Some(mut a), Some(b)) => {
                a.merge(b);
                Some(a)
            }
            _ => None,
        };
        self.peaks = match (&self.peaks, &next.peaks) {
            (Some(a), Some(b)) => Some(a.concat(b)),
            _ => None,
        };
        self.spread = match (self.spread.take(), &next.spread) {
            (Some(mut a), Some(b)) => {
                a.merge(b);
                Some(a)
            }
            _ => None,
        };
    }
}

/// What quantizing recorded values costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The mean squared error, in the tensor's unit squared.
    pub mse: f64,
    /// Signal to quantization noise, in decibels.
    pub sqnr_db: f64,
    /// The share of values beyond the codes.
    pub saturated: f64,
}

/// One sample's extremes of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Finite elements.
    pub count: u64,
    /// NaN and infinite elements.
    pub non_finite: u64,
    /// The least finite element; +∞ where there is none.
    pub min: f32,
    /// The greatest finite element; −∞ where there is none.
    pub max: f32,
    /// The fix positions that the sample asks for, where they were searched.
    pub positions: Option<BatchPositions>,
    /// The sums by channel, where they are kept.
    pub means: Option<Means>,
    /// The extremes by channel, where they are kept.
    pub spread: Option<Spread>,
}

impl Summary {
    /// The summary of no elements.
    pub const EMPTY: Summary = Summary {
        count: 0,
        non_finite: 0,
        min: f32::INFINITY,
        max: f32::NEG_INFINITY,
        positions: None,
        means: None,
        spread: None,
    };

    /// The summary of `values`.
    pub fn of(values: &[f32]) -> Summary {
        let finite = values.iter().copied().filter(|v| v.is_finite());
        let (count, min, max) =
            finite.fold((0, f32::INFINITY, f32::NEG_INFINITY), |(n, a, b), v| (n + 1, f32::min(a, v), f32::max(b, v)));
        Summary { count, non_finite: values.len() as u64 - count, min, max, positions: None, means: None, spread: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(i: usize) -> Vec<f32> {
        (0..50).map(|k| ((i * 31 + k * 7) % 23) as f32 / 3.0 - 2.0 - i as f32 * 0.1).collect()
    }

    fn record(range: std::ops::Range<usize>) -> Stats {
        let mut s = Stats::new(true);
        range.for_each(|i| s.add_sample(&sample(i)));
        s
    }

    #[test]
    fn merges_to_the_record_of_all_samples() {
        let all = record(0..20);
        let mut parts = record(0..7);
        parts.merge(&record(7..12));
        parts.merge(&record(12..20));
        assert_eq!(parts.extremes, all.extremes);
        assert_eq!(parts.histogram, all.histogram);
        let (a, b) = (parts.average.range().unwrap(), all.average.range().unwrap());
        // The same sum in another order: a few ulp of f64.
        assert!((a.0 - b.0).abs() < 1e-12 && (a.1 - b.1).abs() < 1e-12, "{a:?} {b:?}");
    }

    #[test]
    fn passes_over_nan_and_infinity_and_counts_them() {
        let mut s = Stats::new(true);
        s.add_sample(&[f32::NAN, 1.0, f32::INFINITY]);
        s.add_sample(&[f32::NAN]);
        assert_eq!((s.count, s.non_finite, s.extremes), (1, 3, Some((1.0, 1.0))));
    }

    #[test]
    fn drops_a_histogram_that_would_cover_only_a_part() {
        let mut a = record(0..2);
        let mut b = Stats::new(false);
        b.add_sample(&sample(3));
        a.merge(&b);
        assert_eq!(a.histogram, None);
    }
}
