//! Weights rounded by samples: whether, and with which.

use anyhow::{Result, bail};
use narrowbit_data::{Dataset, Fill};
use narrowbit_quant::approach::Approach;
use narrowbit_quant::gptq::{MEMORY, Report, Rounder, RoundingError, Samples};
use narrowbit_quant::options::{QuantOptions, WeightRounding};
use narrowbit_runtime::Float;
use narrowbit_tensor::Tensor;

use super::Quantize;
use crate::runs::Runs;
use crate::{data, interrupt, output};

/// The samples of a data set, as runs of the model.
pub struct Passes<'a> {
    /// The samples.
    pub dataset: &'a Dataset,
    /// Samples per run.
    pub runs: &'a Runs,
}

impl Samples for Passes<'_> {
    fn runs(&self) -> usize {
        self.dataset.len().div_ceil(self.runs.size)
    }

    fn pass(
        &mut self,
        (number, of): (usize, usize),
        run: &mut dyn FnMut(&[Tensor]) -> Result<(), RoundingError>,
    ) -> Result<(), RoundingError> {
        let what = if of > 1 { format!("rounding {}/{of}", number + 1) } else { "rounding".to_owned() };
        let bar = output::progress(&what, self.dataset.len());
        for batch in self.runs.batches(self.dataset, 0, Fill::First) {
            if self.stopped() {
                return Err(RoundingError::Stopped);
            }
            let batch = batch.map_err(|e| RoundingError::Samples(Box::new(e)))?;
            let samples = batch.indices.len() as u64;
            run(&data::tensors(batch))?;
            bar.inc(samples);
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn stopped(&self) -> bool {
        interrupt::requested()
    }
}

impl Quantize {
    /// Whether weights are rounded by samples.
    ///
    /// # Errors
    /// When that is asked for and there are none.
    pub(super) fn rounds(&self, options: &QuantOptions) -> Result<bool> {
        if !options.rounds_by_samples() {
            return Ok(false);
        }
        let asked = self.scheme.asks_for_rounding();
        match (&self.data.data, self.data.random) {
            (Some(_), _) => Ok(true),
            // Random samples say nothing of inputs that go together.
            (None, Some(_)) => Ok(asked),
            (None, None) if asked => bail!(
                "--weight-rounding gptq needs samples: it weighs the errors of weights by what the model reads{}\nhelp: give samples with --data DATA, or leave --weight-rounding out",
                if self.ranges.is_some() { ", which ranges do not tell" } else { "" }
            ),
            (None, None) => Ok(false),
        }
    }

    /// Runs `work` with a rounder over the samples, if weights are rounded by them.
    pub(super) fn with_rounder<T>(
        &self,
        samples: Option<(&Dataset, &Runs)>,
        (mask, float): (Option<usize>, Float),
        work: impl FnOnce(Option<&mut Rounder>) -> Result<T>,
    ) -> Result<T> {
        let Some((dataset, runs)) = samples else { return work(None) };
        let mut passes = Passes { dataset, runs };
        work(Some(&mut Rounder { samples: &mut passes, mask, float, memory: MEMORY }))
    }
}

/// What a configuration asks for that can't be done without samples.
pub(super) fn unmet(options: &QuantOptions, rounds: bool) -> Option<String> {
    let asked = options.weight_rounding == Some(WeightRounding::Gptq);
    let fits = options.uses(Approach::Static) || options.uses(Approach::WeightOnly);
    (asked && !rounds && fits).then(|| {
        "weights are rounded to the nearest: the configuration says gptq, which needs samples (--data DATA)".to_owned()
    })
}

/// A line about each weight that was rounded to the nearest all the same.
pub(super) fn left(report: Option<&Report>) -> Vec<String> {
    let all = report.map_or(&[][..], |r| &r.left[..]);
    let one =
        |l: &narrowbit_quant::gptq::Left| format!("the weight of \"{}\" is rounded to the nearest: {}", l.node, l.why);
    let more = all.len().saturating_sub(3);
    let more = (more > 0).then(|| format!("{more} more weights are rounded to the nearest (--json names them)"));
    all.iter().take(3).map(one).chain(more).collect()
}
