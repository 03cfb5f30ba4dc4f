//! The check at the end of a quantization: the written file beside the float model, on a few samples.

use anyhow::{Context, Result};
use narrowbit_data::Dataset;
use narrowbit_ir::{Fact, Graph, Model, TensorType, ValueType};
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;
use serde::Serialize;

use crate::macs;
use crate::metrics::{Deviation, Figures, Meter, Metric, Score};
use crate::model;
use crate::runs::Runs;

/// Samples that the error is measured on at the most.
const MOST: usize = 64;
/// … and at the least, where there are so many.
const LEAST: usize = 4;
/// Multiply-accumulates that the check may take, unless that is less than [`LEAST`] samples: a tenth of a second
/// or so. The same model is checked on as many samples on any machine.
const MACS: u64 = 4_000_000_000;
/// Bytes of inputs and outputs that are kept at the most, above one batch.
const BYTES: usize = 32 << 20;

/// The first batches of a calibration, with what the float model made of them.
#[derive(Default)]
pub struct Kept {
    batches: Vec<KeptBatch>,
    samples: usize,
    bytes: usize,
    /// Samples to keep; `None` until the first batch shows what one costs.
    limit: Option<usize>,
}

/// One batch.
struct KeptBatch {
    /// Of the samples and of those that fill the batch up.
    inputs: Vec<Tensor>,
    /// Of the samples alone.
    outputs: Vec<Tensor>,
    samples: usize,
}

impl Kept {
    /// Nothing yet, or nothing ever.
    pub fn new(keep: bool) -> Kept {
        Kept { limit: (!keep).then_some(0), ..Kept::default() }
    }

    /// Keeps a batch of so many samples, `rows` with those that fill it up, as long as there is room; `outputs` are of the
    /// samples alone.
    pub fn offer(&mut self, graph: &Graph, inputs: Vec<Tensor>, outputs: Vec<Tensor>, (samples, rows): (usize, usize)) {
        let limit = *self.limit.get_or_insert_with(|| limit(graph, &inputs, rows));
        if self.samples >= limit || self.is_full() {
            return;
        }
        self.bytes += inputs.iter().chain(&outputs).map(|t| t.bytes().len()).sum::<usize>();
        self.samples += samples;
        self.batches.push(KeptBatch { inputs, outputs, samples });
    }

    /// Whether no more batches would be kept.
    pub fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.samples >= limit) || self.bytes >= BYTES
    }
}

/// How many samples the check may take, one batch of which is `inputs`.
fn limit(graph: &Graph, inputs: &[Tensor], samples: usize) -> usize {
    let fact = |t: &Tensor| Fact { ty: ValueType::Tensor(TensorType::of(t)), ..Fact::default() };
    let facts = graph.inputs().iter().copied().zip(inputs.iter().map(fact)).collect();
    affordable(macs::of_graph(graph, &facts) / samples.max(1) as u64)
}

/// Samples of so many multiply-accumulates each.
fn affordable(macs: u64) -> usize {
    usize::try_from(MACS / macs.max(1)).unwrap_or(MOST).clamp(LEAST, MOST)
}

/// How far the quantized model's outputs are from the float model's.
#[derive(Serialize)]
pub struct Loss {
    /// Samples compared.
    pub samples: usize,
    /// Elements of their outputs: detectors may find nothing.
    pub elements: u64,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
    /// Metrics of the float model on these samples, where there are labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub float: Vec<Score>,
    /// Metrics of the quantized model on these samples, where there are labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub quantized: Vec<Score>,
}

/// What the written file is held against.
pub struct Check {
    kept: Kept,
    runs: Runs,
    labels: Option<Labels>,
}

struct Labels {
    float: Meter,
    quantized: Meter,
    /// One tensor for each kept batch.
    batches: Vec<Tensor>,
}

impl Check {
    /// A check on what was kept of `runs` over the samples of `dataset`; `None` where nothing was.
    pub fn new(kept: Kept, dataset: &Dataset, runs: Runs) -> Result<Option<Check>> {
        if kept.batches.is_empty() {
            return Ok(None);
        }
        let labels = labels(&kept, dataset)?;
        Ok(Some(Check { kept, runs, labels }))
    }

    /// The inputs of the first batch.
    pub fn inputs(&self) -> Option<Vec<Tensor>> {
        self.kept.batches.first().map(|b| b.inputs.clone())
    }

    /// The inputs of all batches.
    pub fn all_inputs(&self) -> Vec<Vec<Tensor>> {
        self.kept.batches.iter().map(|b| b.inputs.clone()).collect()
    }

    /// Runs the model, which was loaded from its file as any user would load it, on the samples.
    pub fn run(mut self, written: Model, threads: usize) -> Result<Loss> {
        let session = Session::new(written.graph, Options { threads, ..Options::default() })?;
        let mut deviation = Deviation::default();
        for (i, KeptBatch { inputs, outputs, samples }) in self.kept.batches.iter().enumerate() {
            let got = self.runs.outputs(session.run(&model::fed(session.graph(), inputs)?)?, *samples)?;
            outputs.iter().zip(&got).try_for_each(|(e, g)| deviation.add(e, g))?;
            // Labels that do not fit the outputs are for something else: the summary goes without.
            self.labels = self.labels.take().and_then(|l| l.add(i, outputs, &got));
        }
        let scores = self.labels.map(|l| (l.float.scores(), l.quantized.scores()));
        let (float, quantized) = scores.unwrap_or_default();
        Ok(Loss {
            samples: self.kept.samples,
            elements: deviation.len(),
            figures: deviation.figures(),
            float,
            quantized,
        })
    }
}

impl Labels {
    /// With the outputs of both models for batch `i`; `None` where the labels do not fit them.
    fn add(mut self, i: usize, float: &[Tensor], quantized: &[Tensor]) -> Option<Labels> {
        let labels = self.batches.get(i)?;
        self.float.add(float.first()?, labels).ok()?;
        self.quantized.add(quantized.first()?, labels).ok()?;
        Some(self)
    }
}

fn labels(kept: &Kept, dataset: &Dataset) -> Result<Option<Labels>> {
    let Some(found) = dataset.labels() else { return Ok(None) };
    let meter = || Meter::new(Metric::defaults(found.kind()), found.kind(), 255);
    let mut batches = Vec::new();
    let mut at = 0;
    for batch in &kept.batches {
        batches.push(dataset.batch(at..at + batch.samples)?.labels.context("the labels ended early")?);
        at += batch.samples;
    }
    Ok(Some(Labels { float: meter()?, quantized: meter()?, batches }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(kept: &mut Kept, samples: usize) {
        let t = Tensor::new([samples, 2], vec![0f32; samples * 2]).expect("a tensor");
        kept.offer(&Graph::new("empty"), vec![t.clone()], vec![t], (samples, samples));
    }

    #[test]
    fn keeps_the_first_samples_only() {
        let mut kept = Kept::new(true);
        (0..5).for_each(|_| offer(&mut kept, 20));
        assert_eq!((kept.samples, kept.batches.len()), (80, 4));
        let mut none = Kept::new(false);
        offer(&mut none, 20);
        assert!(none.batches.is_empty());
    }

    #[test]
    fn takes_fewer_samples_of_a_larger_model() {
        assert_eq!(affordable(0), MOST);
        assert_eq!(affordable(1_000_000), MOST);
        assert_eq!(affordable(300_000_000), 13);
        assert_eq!(affordable(17_500_000_000), LEAST);
    }
}
