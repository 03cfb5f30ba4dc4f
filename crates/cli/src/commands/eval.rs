use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use narrowbit_data::{Batch, Dataset, Fill, LabelKind, Split};
use narrowbit_tensor::Tensor;
use serde::Serialize;

use crate::args::{Global, Products, Threads};
use crate::data::{self, DataArgs};
use crate::fixed::IntegerArgs;
use crate::metrics::{Deviation, Figures, Meter, Metric, Score, correlation, embeddings, ranks};
use crate::model::Runner;
use crate::runs::Runs;
use crate::{interrupt, output};

/// Measure a model on labelled data, or its agreement with a reference model
///
/// With labels (in the data or by --labels): top-k for class indices, mIoU and pixel accuracy for masks,
/// correlation and MSE for scores. With --pair: the cosine of the embeddings of two data sets against scores.
/// With --reference: how far the outputs are from another model's.
#[derive(Debug, Args)]
pub struct Eval {
    /// The model (.onnx)
    model: PathBuf,
    /// The metric; by default all that fit the labels
    #[arg(long, value_enum, value_name = "METRIC")]
    metric: Option<Metric>,
    /// Exit with 1 when the metric is worse than this (shares from 0 to 1)
    #[arg(long, value_name = "VALUE", requires = "metric")]
    target: Option<f64>,
    /// A second data set: row i of both form a pair whose cosine is compared with label i
    #[arg(long, value_name = "PATH", requires = "labels")]
    pair: Option<PathBuf>,
    /// Compare the outputs with those of this model
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,
    /// The value of mask pixels that do not count
    #[arg(long, value_name = "CLASS", default_value_t = 255)]
    ignore: i64,
    /// Which output of the model to measure, by name; by default the first
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// Run node by node on the reference operators, exactly as ONNX defines them (slow)
    #[arg(long, conflicts_with_all = ["float", "integer_only"])]
    interpret: bool,
    #[command(flatten)]
    integer: IntegerArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    float: Products,
    #[command(flatten)]
    threads: Threads,
}

/// What was measured.
#[derive(Serialize)]
struct Summary {
    model: PathBuf,
    samples: usize,
    scores: Vec<Score>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agreement: Option<Agreement>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
}

#[derive(Serialize)]
struct Agreement {
    reference: PathBuf,
    /// Share of samples whose highest output is at the same place.
    top1: f64,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Serialize)]
struct Target {
    value: f64,
    met: bool,
}

impl Eval {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        interrupt::install();
        let runner = match self.integer.integer_only {
            true => Runner::Integer(Box::new(self.integer.load(&self.model, self.threads.threads)?)),
            false => Runner::new(&self.model, self.threads.threads, self.interpret, self.float)?,
        };
        let chosen = self.chosen(&runner)?;
        let dataset = self.data.open(runner.graph(), Split::Test)?;
        let (scores, agreement) = match &self.pair {
            Some(pair) => (self.pairs(&runner, chosen, &dataset, pair)?, None),
            None => self.measure(&runner, chosen, &dataset)?,
        };
        let target = self.target.zip(scores.first()).map(|(value, s)| {
            let met = if s.metric.higher_is_better() { s.value >= value } else { s.value <= value };
            Target { value, met }
        });
        let failed = target.as_ref().is_some_and(|t| !t.met);
        let summary = Summary { model: self.model.clone(), samples: dataset.len(), scores, agreement, target };
        if global.json {
            output::json(&summary)?;
        } else {
            output::print(&text(&summary))?;
        }
        Ok(if failed { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }

    fn chosen(&self, runner: &Runner) -> Result<usize> {
        let names = runner.output_names();
        match &self.output {
            None => Ok(0),
            Some(name) => names
                .iter()
                .position(|n| n == name)
                .with_context(|| format!("the model has no output \"{name}\"\nhelp: it has {}", names.join(", "))),
        }
    }

    fn measure(&self, runner: &Runner, chosen: usize, dataset: &Dataset) -> Result<(Vec<Score>, Option<Agreement>)> {
        let mut meter = self.meter(dataset)?;
        let reference = match &self.reference {
            Some(path) => Some(Runner::new(path, self.threads.threads, self.interpret, Products::default())?),
            None if meter.is_none() => bail!(
                "{}: the data has no labels\nhelp: give them with --labels FILE, or compare with another model by --reference MODEL",
                dataset.path().display()
            ),
            None => None,
        };
        let mut deviation = Deviation::default();
        let mut same = 0usize;
        let runs = self.data.runs(runner.graph(), dataset)?;
        each_batch(dataset, &runs, |batch| {
            let labels = batch.labels.clone();
            let n = batch.indices.len();
            let inputs = data::tensors(batch);
            let out = pick(runs.outputs(runner.run(&inputs)?, n)?, chosen)?;
            if let (Some(meter), Some(labels)) = (&mut meter, labels) {
                meter.add(&out, &labels)?;
            }
            if let Some(r) = &reference {
                let expected = r.run(&inputs).with_context(|| self.reference_name())?;
                let expected = pick(runs.outputs(expected, n)?, chosen)?;
                deviation.add(&expected, &out)?;
                same += agreeing(&expected, &out, n)?;
            }
            Ok(())
        })?;
        let agreement = self.reference.clone().map(|reference| Agreement {
            reference,
            top1: same as f64 / dataset.len() as f64,
            figures: deviation.figures(),
        });
        Ok((meter.map(|m| m.scores()).unwrap_or_default(), agreement))
    }

    /// What an error of the reference begins with: its inputs are those of the model.
    fn reference_name(&self) -> String {
        format!("the reference {}", self.reference.as_deref().unwrap_or(Path::new("")).display())
    }

    fn meter(&self, dataset: &Dataset) -> Result<Option<Meter>> {
        let Some(labels) = dataset.labels() else { return Ok(None) };
        let metrics = self.metric.map_or_else(|| Metric::defaults(labels.kind()), |m| vec![m]);
        Meter::new(metrics, labels.kind(), self.ignore).map(Some)
    }

    /// Scores of the cosine between the embeddings of two data sets.
    fn pairs(&self, runner: &Runner, chosen: usize, first: &Dataset, pair: &Path) -> Result<Vec<Score>> {
        let second = self.data.open_path(pair.to_owned(), runner.graph(), Split::Test)?;
        if first.len() != second.len() {
            bail!("{} has {} samples, --pair has {}", first.path().display(), first.len(), second.len());
        }
        let Some(labels) = first.labels().filter(|l| l.kind() == LabelKind::Score) else {
            bail!("--pair needs scores as labels\nhelp: give them with --labels FILE");
        };
        let a = self.embed(runner, chosen, first)?;
        let b = self.embed(runner, chosen, &second)?;
        let cosines: Vec<f64> = a.iter().zip(&b).map(|(a, b)| cosine(a, b)).collect();
        let labels = labels.read(0, first.len())?.to_f64s()?;
        let value = |m: Metric| match m {
            Metric::Spearman => Ok(correlation(&ranks(&cosines), &ranks(&labels))),
            Metric::Pearson => Ok(correlation(&cosines, &labels)),
            other => bail!("{} can't be measured on pairs\nhelp: use spearman or pearson", other.name()),
        };
        let metrics = self.metric.map_or_else(|| vec![Metric::Spearman, Metric::Pearson], |m| vec![m]);
        metrics.into_iter().map(|metric| Ok(Score { metric, value: value(metric)? })).collect()
    }

    fn embed(&self, runner: &Runner, chosen: usize, dataset: &Dataset) -> Result<Vec<Vec<f64>>> {
        let mut all = Vec::new();
        let runs = self.data.runs(runner.graph(), dataset)?;
        each_batch(dataset, &runs, |batch| {
            let n = batch.indices.len();
            let mask = batch.inputs.iter().find(|(n, _)| n.contains("mask")).map(|(_, t)| t);
            let mask = mask.map(|t| t.first_of_axis(0, n)).transpose()?;
            let out = pick(runs.outputs(runner.run(&data::tensors(batch))?, n)?, chosen)?;
            all.extend(embeddings(&out, mask.as_ref())?);
            Ok(())
        })?;
        Ok(all)
    }
}

fn each_batch(dataset: &Dataset, runs: &Runs, mut f: impl FnMut(Batch) -> Result<()>) -> Result<()> {
    let bar = output::progress("evaluating", dataset.len());
    for batch in runs.batches(dataset, 0, Fill::Last) {
        if interrupt::requested() {
            bail!("stopped by Ctrl-C after {} of {} samples", bar.position(), dataset.len());
        }
        let batch = batch?;
        let n = batch.indices.len() as u64;
        f(batch)?;
        bar.inc(n);
    }
    bar.finish_and_clear();
    Ok(())
}

fn pick(mut outputs: Vec<Tensor>, i: usize) -> Result<Tensor> {
    if i < outputs.len() { Ok(outputs.swap_remove(i)) } else { bail!("the model has no outputs") }
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Samples whose highest output is at the same place in both.
fn agreeing(a: &Tensor, b: &Tensor, n: usize) -> Result<usize> {
    let (a, b) = (a.to_f32s()?, b.to_f32s()?);
    let row = (a.len() / n.max(1)).max(1);
    let best = |v: &[f32]| v.iter().enumerate().fold(0, |best, (i, x)| if *x > v[best] { i } else { best });
    Ok(a.chunks(row).zip(b.chunks(row)).filter(|(a, b)| best(a) == best(b)).count())
}

fn text(s: &Summary) -> String {
    let mut out = format!("{} on {} samples\n", s.model.display(), s.samples);
    for score in &s.scores {
        out.push_str(&format!("  {score}\n"));
    }
    if let Some(a) = &s.agreement {
        out.push_str(&format!(
            "  against {}: same top-1 {:.2} %, SQNR {}, cosine {:.6}, max error {:.3e}\n",
            a.reference.display(),
            a.top1 * 100.0,
            output::decibels(a.figures.sqnr_db),
            a.figures.cosine,
            a.figures.max_error
        ));
    }
    if let Some(t) = &s.target {
        out.push_str(&format!("  target {}: {}\n", t.value, if t.met { "met" } else { "missed" }));
    }
    out
}
