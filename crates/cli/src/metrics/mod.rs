//! Quality measures, each from a stream of batches in constant memory (rank correlations keep one number
//! per sample).

mod classes;
mod error;
mod masks;
mod scores;

use anyhow::{Result, bail};
use clap::ValueEnum;
use narrowbit_data::LabelKind;
use narrowbit_tensor::Tensor;
use serde::Serialize;

pub use error::{Deviation, Figures};
pub use scores::{correlation, embeddings, ranks};

/// A quality measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Share of samples whose label has the highest output
    Top1,
    /// Share of samples whose label is among the five highest outputs
    Top5,
    /// Mean over the classes of intersection over union of predicted and labelled pixels
    Miou,
    /// Share of pixels with the right class
    PixelAcc,
    /// Rank correlation of outputs (or of the cosine of two embeddings, with --pair) with the labels
    Spearman,
    /// Linear correlation of outputs (or of the cosine of two embeddings, with --pair) with the labels
    Pearson,
    /// Mean squared error of the outputs against the labels
    Mse,
}

impl Metric {
    /// The name in output.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Top1 => "top1",
            Metric::Top5 => "top5",
            Metric::Miou => "miou",
            Metric::PixelAcc => "pixel-acc",
            Metric::Spearman => "spearman",
            Metric::Pearson => "pearson",
            Metric::Mse => "mse",
        }
    }

    /// Whether more is better.
    pub fn higher_is_better(self) -> bool {
        self != Metric::Mse
    }

    /// What fits labels of a kind.
    pub fn defaults(kind: LabelKind) -> Vec<Metric> {
        match kind {
            LabelKind::Class => vec![Metric::Top1, Metric::Top5],
            LabelKind::Mask => vec![Metric::Miou, Metric::PixelAcc],
            LabelKind::Score => vec![Metric::Pearson, Metric::Spearman, Metric::Mse],
        }
    }

    fn kind(self) -> LabelKind {
        match self {
            Metric::Top1 | Metric::Top5 => LabelKind::Class,
            Metric::Miou | Metric::PixelAcc => LabelKind::Mask,
            _ => LabelKind::Score,
        }
    }
}

/// A measured value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Score {
    /// The measure.
    pub metric: Metric,
    /// Its value: a share for counts, a correlation, or a squared unit.
    pub value: f64,
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.metric {
            Metric::Top1 | Metric::Top5 | Metric::PixelAcc => {
                write!(f, "{} {:.2} %", self.metric.name(), self.value * 100.0)
            }
            _ => write!(f, "{} {:.4}", self.metric.name(), self.value),
        }
    }
}

/// Collects what some metrics need from batches of outputs and labels.
#[derive(Debug)]
pub struct Meter {
    metrics: Vec<Metric>,
    classes: classes::Counts,
    masks: masks::Confusion,
    scores: scores::Pairs,
}

impl Meter {
    /// A meter for metrics that all fit one kind of labels.
    pub fn new(metrics: Vec<Metric>, kind: LabelKind, ignore: i64) -> Result<Meter> {
        if let Some(m) = metrics.iter().find(|m| m.kind() != kind) {
            let labels = match kind {
                LabelKind::Class => "class indices",
                LabelKind::Mask => "masks",
                LabelKind::Score => "scores",
            };
            let fitting: Vec<&str> = Metric::defaults(kind).into_iter().map(Metric::name).collect();
            bail!(
                "the labels are {labels}, which {} can't be measured on\nhelp: use one of {}",
                m.name(),
                fitting.join(", ")
            );
        }
        Ok(Meter {
            metrics,
            classes: Default::default(),
            masks: masks::Confusion::new(ignore),
            scores: Default::default(),
        })
    }

    /// Adds a batch: the model's outputs for `labels.shape()[0]` samples.
    pub fn add(&mut self, output: &Tensor, labels: &Tensor) -> Result<()> {
        match self.metrics.first().map(|m| m.kind()) {
            Some(LabelKind::Class) => self.classes.add(output, labels),
            Some(LabelKind::Mask) => self.masks.add(output, labels),
            Some(LabelKind::Score) => self.scores.add(output, labels),
            None => Ok(()),
        }
    }

    /// The values over all that was added.
    pub fn scores(&self) -> Vec<Score> {
        let value = |m: Metric| match m {
            Metric::Top1 => self.classes.top1(),
            Metric::Top5 => self.classes.top5(),
            Metric::Miou => self.masks.miou(),
            Metric::PixelAcc => self.masks.pixel_accuracy(),
            Metric::Pearson => self.scores.pearson(),
            Metric::Spearman => self.scores.spearman(),
            Metric::Mse => self.scores.mse(),
        };
        self.metrics.iter().map(|&metric| Score { metric, value: value(metric) }).collect()
    }
}
