//! Runs a float model on samples and records what its tensors hold.

use std::collections::BTreeMap;

use narrowbit_ir::{Graph, ValueId};
use narrowbit_kernels::{Exec, calibrate as kernels};
use narrowbit_runtime::{Float, Options, RunError, Session};
use narrowbit_tensor::Tensor;

use crate::observe::{BatchPositions, Histogram, Means, Peaks, Positions, Spread, Stats, Summary};
use crate::ranges::{Ranges, graph_hash};

mod lanes;
pub mod mask;
mod same;

/// A model with observers on some of its values.
pub struct Calibrator {
    session: Session,
    /// The observed values, in a fixed order, with the tensors that their records are for.
    observed: BTreeMap<ValueId, Observed>,
    ranges: Ranges,
    histograms: bool,
    /// The bits of codes whose fix positions are searched in each batch.
    positions: Option<u8>,
    /// The input whose zeros mark positions that are not observed.
    mask: Option<usize>,
}

/// The axis of the channels of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelAxis {
    /// The second, as of images.
    Second,
    /// The last, as of rows.
    Last,
}

/// What is recorded of a value by channel: its extremes, and perhaps its means and peaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByChannel {
    /// Where the channels are.
    pub axis: ChannelAxis,
    /// Whether the means are recorded too.
    pub means: bool,
    /// Whether the moving average of the magnitudes is.
    pub peaks: bool,
}

/// A value whose elements are recorded.
struct Observed {
    /// Its place among the observed values.
    place: usize,
    /// The tensors with these elements; the first one's record is kept, the others' are copies of it.
    names: Vec<String>,
    /// What is recorded by channel.
    channels: Option<ByChannel>,
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

/// Samples that are run at once, as one batch: the model's inputs, and how many samples they hold.
pub type Batch = (Vec<Tensor>, u64);

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
        ranges: Ranges,
    ) -> Result<Calibrator, CalibrateError> {
        Calibrator::with_channels(graph, values, &BTreeMap::new(), histograms, threads, ranges)
    }

    /// As [`Calibrator::new`], and keeps the sums and extremes of some of the values by channel.
    ///
    /// # Errors
    /// As [`Calibrator::new`].
    pub fn with_channels(
        graph: &Graph,
        values: &[ValueId],
        channels: &BTreeMap<ValueId, ByChannel>,
        histograms: bool,
        threads: usize,
        mut ranges: Ranges,
    ) -> Result<Calibrator, CalibrateError> {
        let mut observed: BTreeMap<ValueId, Observed> = BTreeMap::new();
        for (v, at) in same::representatives(graph, values) {
            // The same elements in another order have other channels.
            let axis = channels.get(&v).copied();
            let at = if axis.is_some() { v } else { at };
            let entry = observed.entry(at).or_insert_with(|| Observed { place: 0, names: Vec::new(), channels: None });
            entry.channels = entry.channels.or(axis);
            entry.names.push(graph.value(v).name.clone());
        }
        observed.values_mut().enumerate().for_each(|(i, o)| o.place = i);
        let options = Options { threads, observe: observed.keys().copied().collect() };
        let session = Session::new(graph.clone(), options)?;
        ranges.graph = graph_hash(graph);
        for name in observed.values().flat_map(|o| &o.names) {
            ranges.tensors.entry(name.clone()).or_insert_with(|| Stats::new(histograms));
        }
        for o in observed.values().filter(|o| o.channels.is_some()) {
            let new = o.names.iter().filter_map(|n| ranges.tensors.get(n)).all(|s| s.count == 0 && s.non_finite == 0);
            let means = o.channels.is_some_and(|c| c.means).then(Means::default);
            let peaks = o.channels.is_some_and(|c| c.peaks).then(Peaks::default);
            for n in o.names.iter().filter(|_| new) {
                let empty = (means.clone(), Some(Spread::default()), peaks.clone());
                ranges.tensors.entry(n.clone()).and_modify(|s| (s.means, s.spread, s.peaks) = empty);
            }
        }
        Ok(Calibrator { session, observed, ranges, histograms, positions: None, mask: None })
    }

    /// Searches the fix positions of codes of `bits` in each batch too ([`crate::scheme::vitis`]). Records that have
    /// samples without positions already do not get any.
    pub fn with_positions(mut self, bits: u8) -> Calibrator {
        self.positions = Some(bits);
        for stats in self.ranges.tensors.values_mut().filter(|s| s.count == 0 && s.non_finite == 0) {
            stats.positions = Some(Positions::new(bits));
        }
        self
    }

    /// Multiplies floats in another arithmetic: ranges of bfloat16 products are within 2⁻⁹ of the exact ones and take half
    /// the time, where the processor multiplies them.
    ///
    /// # Errors
    /// The instruction set has no bfloat16.
    pub fn with_float(mut self, float: Float) -> Result<Calibrator, CalibrateError> {
        if float != Float::F32 {
            self.session = self.session.with_float(float)?;
        }
        Ok(self)
    }

    /// Leaves positions out where an input of the model, `[samples, positions]`, is 0: padding says nothing of the values
    /// that count. Values are matched by shape ([`mask`]); those without such an axis are recorded whole.
    #[must_use]
    pub fn with_mask(mut self, input: usize) -> Calibrator {
        self.mask = Some(input);
        self
    }

    /// Runs the batches and records them, several at a time where that is faster; each counts as one sample in the
    /// moving average. `seen` gets each batch with the model's outputs. The record, and the order in which `seen`
    /// gets the batches, are those of running one after the other.
    ///
    /// # Errors
    /// The first error of `batches`, or when the model can't be run on one; the record is then of no use.
    pub fn add<E: From<CalibrateError> + Send>(
        &mut self,
        batches: impl Iterator<Item = Result<Batch, E>> + Send,
        seen: impl FnMut(Batch, Vec<Tensor>),
    ) -> Result<(), E> {
        lanes::run(self, batches, seen)
    }

    /// The record.
    pub fn into_ranges(mut self) -> Ranges {
        for o in self.observed.values() {
            let Some((first, copies)) = o.names.split_first() else { continue };
            let Some(stats) = self.ranges.tensors.get(first).cloned() else { continue };
            self.ranges.tensors.extend(copies.iter().map(|n| (n.clone(), stats.clone())));
        }
        self.ranges
    }

    /// Bytes that the record takes, however many samples pass.
    pub fn record_bytes(&self) -> usize {
        let each = if self.histograms { crate::observe::BINS * 8 } else { 0 };
        self.ranges.tensors.len() * (each + size_of::<Stats>())
    }
}

/// The record of an observed value.
fn stats<'a>(ranges: &'a mut Ranges, o: &Observed) -> Option<&'a mut Stats> {
    ranges.tensors.get_mut(o.names.first()?)
}

/// Adds the summaries of one batch, by place.
fn record(ranges: &mut Ranges, observed: &BTreeMap<ValueId, Observed>, summaries: &[Summary], samples: u64) {
    for o in observed.values() {
        if let (Some(stats), Some(s)) = (stats(ranges, o), summaries.get(o.place)) {
            stats.add_summary(s);
        }
    }
    ranges.samples += samples;
}

/// Adds what histograms have counted, by place.
fn count(ranges: &mut Ranges, observed: &BTreeMap<ValueId, Observed>, histograms: &[Histogram]) {
    for o in observed.values() {
        let histogram = stats(ranges, o).and_then(|s| s.histogram.as_mut());
        if let (Some(h), Some(more)) = (histogram, histograms.get(o.place)) {
            h.merge(more);
        }
    }
}

/// Sums up one sample's values of a tensor, and counts them in a histogram, if there is one.
fn observe(
    exec: &Exec,
    values: &[f32],
    histogram: Option<&mut Histogram>,
    positions: Option<u8>,
) -> Result<Summary, narrowbit_kernels::KernelError> {
    let mut summary = extremes(exec, values, histogram)?;
    if let Some(bits) = positions.filter(|_| summary.count > 0) {
        summary.positions = Some(BatchPositions::of(values, summary.min, summary.max, bits));
    }
    Ok(summary)
}

fn extremes(
    exec: &Exec,
    values: &[f32],
    histogram: Option<&mut Histogram>,
) -> Result<Summary, narrowbit_kernels::KernelError> {
    let Some(h) = histogram else {
        let r = kernels::min_max(exec, values);
        return Ok(summary(values.len(), r.nan + r.infinite, (r.min, r.max)));
    };
    // Mostly the histogram covers the values already: one pass will do.
    let (low, _) = h.geometry();
    if let Some((min, max)) = kernels::histogram_within(exec, values, (low, -low), h.counts_mut())? {
        return Ok(summary(values.len(), 0, (min, max)));
    }
    let r = kernels::min_max(exec, values);
    let summary = summary(values.len(), r.nan + r.infinite, (r.min, r.max));
    if summary.count > 0 {
        h.cover(summary.min.abs().max(summary.max.abs()));
        let (low, _) = h.geometry();
        kernels::histogram(exec, values, (low, -low), false, h.counts_mut())?;
    }
    Ok(summary)
}

/// Which zero of two comes first depends on threads and lanes: −0 becomes 0.
fn summary(len: usize, non_finite: u64, (min, max): (f32, f32)) -> Summary {
    Summary {
        count: len as u64 - non_finite,
        non_finite,
        min: min + 0.0,
        max: max + 0.0,
        positions: None,
        means: None,
        spread: None,
    }
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
        let record = || Stats { positions: Some(Positions::new(8)), ..Stats::new(true) };
        let (mut fast, mut plain) = (record(), record());
        for part in values.chunks(1000) {
            let summary = observe(&exec, part, fast.histogram.as_mut(), Some(8)).unwrap();
            fast.add_summary(&summary);
            plain.add_sample(part);
        }
        assert_eq!(fast, plain);
    }
}
