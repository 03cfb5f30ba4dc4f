use serde::{Deserialize, Serialize};

use super::{Stats, distribution, entropy, mse, percentile};
use crate::scheme::{ActivationScheme, Formula, Statistic, vitis};

/// How a range is chosen from what calibration has recorded.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Method {
    /// [`Method::Mse`] for networks of convolutions in 8 bits whose calibration kept histograms, [`Method::Minmax`] for others:
    /// [`crate::plan::Layout::method`].
    #[default]
    Auto,
    /// The extremes.
    Minmax,
    /// The moving average of each sample's extremes.
    MovingAverage,
    /// Cuts off the given share of elements in percent: 99.999 leaves out one in 100,000,
    /// half of them on each side.
    Percentile(f64),
    /// The percentile, of those that are usual, with the least mean squared error: one for each tensor.
    PercentileSearch,
    /// The clipping with the least Kullback-Leibler divergence of the distribution after quantization
    /// (the TensorRT method).
    Entropy,
    /// The clipping with the least mean squared error; with Vitis AI's powers of two the same as [`Method::Diffs`], as there.
    Mse,
    /// The fp8 scale that spreads the values as the format's own are spread (ONNX Runtime's).
    Distribution,
    /// The power of two with the least squared error in each batch, over batches by a statistic (Vitis AI's).
    Diffs,
    /// The moving average of each sample's greatest magnitude, with a momentum of 0.9 (QuantizeML's).
    MovingPeak,
}

impl Method {
    /// Whether the method needs a histogram; what [`Method::Auto`] stands for may.
    pub fn needs_histogram(self) -> bool {
        !matches!(self, Method::Auto | Method::Minmax | Method::MovingAverage | Method::Diffs | Method::MovingPeak)
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
    /// The range that a method gives, for the codes of `scheme`; `None` when nothing finite was
    /// seen, or the method needs a histogram or positions that were not kept. `search` is whether [`Method::Diffs`]
    /// and Vitis' [`Method::Mse`] search: Vitis does not for a model's inputs. A record is of no network:
    /// [`Method::Auto`] gives the extremes.
    pub fn range(
        &self,
        method: Method,
        scheme: &ActivationScheme,
        statistic: Statistic,
        search: bool,
    ) -> Option<Range> {
        let (min, max) = self.extremes.map(|(a, b)| (f64::from(a), f64::from(b)))?;
        let full = Range { min, max };
        let cut = |r: Range| Range { min: r.min.max(min), max: r.max.min(max) };
        match method {
            // Whatever the formula is called for: the positions are those of batches. For scales that are powers of two,
            // Vitis' quantizer searches by every method but maxmin (`PowerofTwoQuantPerTensorAlgo.calibrate`): mse is diffs.
            Method::Minmax | Method::Diffs | Method::Mse if scheme.formula == Formula::Vitis => {
                let positions = self.positions.as_ref()?;
                let bits = vitis::bits_of(scheme.code_range());
                let found = positions.position(search && method != Method::Minmax, statistic)?;
                (positions.bits() == bits).then(|| vitis::range_of(vitis::limited(found, bits), bits))
            }
            Method::Diffs => None,
            Method::MovingPeak => self.peak.value().map(|p| Range { min: -f64::from(p), max: p.into() }),
            Method::Distribution => self.histogram.as_ref().and_then(|h| distribution::range(h, scheme.format)),
            Method::Auto | Method::Minmax => Some(full),
            Method::MovingAverage => self.average.range().map(|(min, max)| Range { min, max }),
            Method::Percentile(p) => self.histogram.as_ref().map(|h| cut(percentile::range(h, p))),
            Method::PercentileSearch => self.histogram.as_ref().map(|h| percentile::search(h, full, scheme)),
            Method::Entropy => self.histogram.as_ref().map(|h| cut(entropy::range(h, full, scheme))),
            Method::Mse => self.histogram.as_ref().map(|h| cut(mse::range(h, full, scheme))),
        }
    }
}
