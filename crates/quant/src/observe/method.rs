use serde::{Deserialize, Serialize};

use super::{Stats, entropy, mse, percentile};
use crate::scheme::ActivationScheme;

/// How a range is chosen from what calibration has recorded.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Method {
    /// The extremes.
    #[default]
    Minmax,
    /// The moving average of each sample's extremes.
    MovingAverage,
    /// Cuts off the given share of elements in percent: 99.999 leaves out one in 100,000,
    /// half of them on each side.
    Percentile(f64),
    /// The clipping with the least Kullback-Leibler divergence of the distribution after quantization
    /// (the TensorRT method).
    Entropy,
    /// The clipping with the least mean squared error.
    Mse,
}

impl Method {
    /// Whether the method needs a histogram.
    pub fn needs_histogram(self) -> bool {
        !matches!(self, Method::Minmax | Method::MovingAverage)
    }
}

/// A range of values to be represented, in the tensor's unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// The least value.
    pub min: f64,
    /// The greatest value.
    pub max: f64,
}

impl Range {
    /// The least range that holds both.
    pub fn union(self, other: Range) -> Range {
        Range { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

impl Stats {
    /// The range that a method gives, for the integers of `scheme`; `None` when nothing finite was
    /// seen or the method needs a histogram that was not kept.
    pub fn range(&self, method: Method, scheme: &ActivationScheme) -> Option<Range> {
        let (min, max) = self.extremes.map(|(a, b)| (f64::from(a), f64::from(b)))?;
        let full = Range { min, max };
        let cut = |r: Range| Range { min: r.min.max(min), max: r.max.min(max) };
        match method {
            Method::Minmax => Some(full),
            Method::MovingAverage => self.average.range().map(|(min, max)| Range { min, max }),
            Method::Percentile(p) => self.histogram.as_ref().map(|h| cut(percentile::range(h, p))),
            Method::Entropy => self.histogram.as_ref().map(|h| cut(entropy::range(h, full, scheme))),
            Method::Mse => self.histogram.as_ref().map(|h| cut(mse::range(h, full, scheme))),
        }
    }
}
