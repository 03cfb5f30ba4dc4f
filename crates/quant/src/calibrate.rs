//! Runs a float model on samples and records what its tensors hold.

use std::collections::BTreeMap;

use narrowbit_ir::{Graph, ValueId};
use narrowbit_kernels::{Exec, calibrate as kernels};
use narrowbit_runtime::{Options, RunError, Session, View};
use narrowbit_tensor::{DType, Tensor};

use crate::observe::{Stats, Summary};
use crate::ranges::{Ranges, graph_hash};

/// A model with observers on some of its values.
pub struct Calibrator {
    session: Session,
    names: BTreeMap<ValueId, String>,
    ranges: Ranges,
    histograms: bool,
}

/// What calibration found wrong with one sample.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// The model can't be run.
    #[error("sample {sample}: {error}")]
    Run {
        /// The sample, counted from 0.
        sample: u64,
        /// What happened.
        #[source]
        error: RunError,
    },
    /// The session could not be made.
    #[error(transparent)]
    Session(#[from] RunError),
}

impl Calibrator {
    /// Puts observers on `values` of `graph` (floats; others are passed over). Histograms are kept for the
    /// methods that need them. `ranges` is an empty record, or the one to resume.
    ///
    /// # Errors
    /// When the session can't be made.
    pub fn new(
        graph: &Graph,
        values: &[ValueId],
        histograms: bool,
        threads: usize,
        mut ranges: Ranges,
    ) -> Result<Calibrator, CalibrateError> {
        let names: BTreeMap<ValueId, String> = values.iter().map(|&v| (v, graph.value(v).name.clone())).collect();
        let options = Options { threads, observe: names.keys().copied().collect() };
        let session = Session::new(graph.clone(), options)?;
        ranges.graph = graph_hash(graph);
        for name in names.values() {
            ranges.tensors.entry(name.clone()).or_insert_with(|| Stats::new(histograms));
        }
        Ok(Calibrator { session, names, ranges, histograms })
    }

    /// Runs one sample (or batch: its rows count as one sample in the moving average) and records it.
    /// Gives the model's outputs.
    ///
    /// # Errors
    /// When the model can't be run on it; the record is then of no use.
    pub fn add(&mut self, inputs: &[Tensor], samples: u64) -> Result<Vec<Tensor>, CalibrateError> {
        let Calibrator { session, names, ranges, histograms } = self;
        let exec = session.exec();
        let outputs = session.run_observed(inputs, &mut |v, view: View| {
            let Some(stats) = names.get(&v).and_then(|n| ranges.tensors.get_mut(n)) else { return Ok(()) };
            if view.dtype != DType::F32 {
                return Ok(());
            }
            let values = view.slice::<f32>().map_err(|e| e.to_string())?;
            record(exec, stats, values, *histograms).map_err(|e| e.to_string())
        });
        let outputs = outputs.map_err(|error| CalibrateError::Run { sample: ranges.samples, error })?;
        ranges.samples += samples;
        Ok(outputs)
    }

    /// The record so far.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// Gives up the session and keeps the record.
    pub fn into_ranges(self) -> Ranges {
        self.ranges
    }

    /// Bytes that the record takes, however many samples pass.
    pub fn record_bytes(&self) -> usize {
        let each = if self.histograms { crate::observe::BINS * 8 } else { 0 };
        self.names.len() * (each + size_of::<Stats>())
    }
}

fn record(
    exec: &Exec,
    stats: &mut Stats,
    values: &[f32],
    histograms: bool,
) -> Result<(), narrowbit_kernels::KernelError> {
    // Mostly the histogram covers the values already: one pass will do.
    if let (Some(h), Some(_), true) = (&mut stats.histogram, stats.extremes, histograms) {
        let (low, _) = h.geometry();
        if let Some((min, max)) = kernels::histogram_within(exec, values, (low, -low), h.counts_mut())? {
            stats.add_summary(&summary(values.len(), 0, (min, max)));
            return Ok(());
        }
    }
    let r = kernels::min_max(exec, values);
    let summary = summary(values.len(), r.nan + r.infinite, (r.min, r.max));
    stats.add_summary(&summary);
    let Some(h) = stats.histogram.as_mut().filter(|_| histograms && summary.count > 0) else { return Ok(()) };
    h.cover(summary.min.abs().max(summary.max.abs()));
    let (low, _) = h.geometry();
    kernels::histogram(exec, values, (low, -low), false, h.counts_mut())?;
    Ok(())
}

/// Which zero of two comes first depends on threads and lanes: −0 becomes 0.
fn summary(len: usize, non_finite: u64, (min, max): (f32, f32)) -> Summary {
    Summary { count: len as u64 - non_finite, non_finite, min: min + 0.0, max: max + 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_as_the_plain_definition_does() {
        let exec = Exec::new(narrowbit_kernels::Isa::detect(), 2);
        let mut x = 1u64;
        let values: Vec<f32> = (0..10_001)
            .map(|i| {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let v = (x >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
                if i % 997 == 0 { f32::NAN } else { v * 2f32.powi(i % 25 - 12) }
            })
            .collect();
        let (mut fast, mut plain) = (Stats::new(true), Stats::new(true));
        for part in values.chunks(1000) {
            record(&exec, &mut fast, part, true).unwrap();
            plain.add_sample(part);
        }
        assert_eq!(fast, plain);
    }
}
