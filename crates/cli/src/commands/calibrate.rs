use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use clap::Args;
use narrowbit_data::{Dataset, Fill, Split};
use narrowbit_ir::{Graph, Model, ValueId};
use narrowbit_quant::approach::Approach;
use narrowbit_quant::calibrate::{ByChannel, Calibrator, mask};
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::plan::Layout;
use narrowbit_quant::quantize;
use narrowbit_quant::ranges::Ranges;
use narrowbit_quant::target;
use serde::Serialize;

use crate::args::{Floats, Global, Threads};
use crate::check::Kept;
use crate::commands::quantize::{SchemeArgs, repeated};
use crate::data::{self, DataArgs};
use crate::runs::{Runs, repeated_text};
use crate::{interrupt, model, output};

/// Run a float model on samples and record the ranges of its tensors
///
/// The record holds what every method needs (extremes, moving average, histogram), in memory that does not
/// grow with the number of samples. `quantize --ranges` reads it, on this machine or another. Records of
/// several shards are put together with --merge.
#[derive(Debug, Args)]
pub struct Calibrate {
    /// The float model (.onnx)
    model: PathBuf,
    /// Where to write the ranges (.json)
    #[arg(short, long, value_name = "RANGES.json")]
    output: PathBuf,
    /// Add the samples of these ranges files, in this order, before those of --data
    #[arg(long, value_name = "RANGES.json", num_args = 1..)]
    merge: Vec<PathBuf>,
    /// Go on where the output file stopped: samples that it has seen are passed over
    #[arg(long, conflicts_with = "merge")]
    resume: bool,
    /// Record extremes and averages only: faster, but no histogram for percentile, entropy and mse
    #[arg(long)]
    no_histograms: bool,
    #[command(flatten)]
    mask: MaskArgs,
    #[command(flatten)]
    float: Floats,
    #[command(flatten)]
    scheme: SchemeArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    threads: Threads,
}

/// Which positions of a sequence count.
#[derive(Debug, Clone, Args)]
pub struct MaskArgs {
    /// The input, [samples, positions], whose zeros mark padding: such positions are not recorded; `off` records all
    /// [default: attention_mask, if the model has it]
    #[arg(long, value_name = "INPUT", help_heading = "Data")]
    mask: Option<String>,
}

impl MaskArgs {
    /// The place of the mask among the inputs, if there is one.
    pub fn input(&self, graph: &Graph) -> Result<Option<usize>> {
        let named = |name: &str| graph.inputs().iter().position(|&v| graph.value(v).name == name);
        match self.mask.as_deref() {
            Some("off") => Ok(None),
            None => Ok(named(mask::USUAL_NAME)),
            Some(name) => match named(name) {
                Some(i) => {
                    let shape = graph.value(graph.inputs()[i]).ty.tensor().and_then(|t| t.shape.as_ref());
                    if let Some(rank) = shape.map(|s| s.len()).filter(|&rank| rank != 2) {
                        bail!(
                            "--mask: input \"{name}\" has {rank} axes, a mask has two: samples and positions\nhelp: name the input whose zeros mark padding, or leave --mask away"
                        );
                    }
                    Ok(Some(i))
                }
                None => {
                    let inputs: Vec<&str> = graph.inputs().iter().map(|&v| graph.value(v).name.as_str()).collect();
                    bail!("--mask: the model has no input \"{name}\"\nhelp: it has {}", inputs.join(", "))
                }
            },
        }
    }
}

#[derive(Serialize)]
struct Summary {
    model: PathBuf,
    ranges: PathBuf,
    samples: u64,
    /// Samples that were run again to fill up runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    repeated: Option<u64>,
    tensors: usize,
    histograms: bool,
    random: bool,
    non_finite: Vec<String>,
}

impl Calibrate {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        interrupt::install();
        output::check_writable(&self.output)?;
        let mut model = model::load_runnable(&self.model)?;
        let mut options = self.scheme.resolve()?;
        if !options.uses(Approach::Static) {
            bail!("this approach needs no ranges\nhelp: run `narrowbit quantize` right away");
        }
        model::prepare(&mut model, &options)?;
        if options.is_mixture() {
            // A target may have another form, which older operator sets have.
            target::fit(&mut options, &model.graph, false)?;
            model::raise_for_mixture(&mut model, &options)?;
        }
        quantize::prepare(&mut model, &options)?;
        if options.is_mixture() && !quantize::is_static(&quantize::layout(&model, &options)?) {
            bail!(
                "no node is static with these settings, so that none needs ranges\nhelp: run `narrowbit quantize` right away"
            );
        }
        let mut start = Ranges { graph: narrowbit_quant::ranges::graph_hash(&model.graph), ..Ranges::default() };
        for path in &self.merge {
            start.merge(&Ranges::load(path)?).with_context(|| path.display().to_string())?;
        }
        let only_merge = !self.merge.is_empty() && self.data.data.is_none() && self.data.random.is_none();
        let (ranges, stopped) = if only_merge { (start, false) } else { self.observe(&model, &options, start)? };
        ranges.save(&self.output)?;
        if stopped {
            bail!(
                "stopped by Ctrl-C after {} samples; {} holds them, --resume goes on from there",
                ranges.samples,
                self.output.display()
            );
        }
        self.report(global, &ranges)?;
        Ok(ExitCode::SUCCESS)
    }

    fn observe(&self, model: &Model, options: &QuantOptions, start: Ranges) -> Result<(Ranges, bool)> {
        let resumed = self.resume && self.output.exists();
        let start = if resumed { Ranges::load(&self.output)? } else { start };
        let skip = if resumed { start.samples } else { 0 };
        if resumed {
            start.check(&model.graph)?;
        }
        let dataset = self.data.open(&model.graph, Split::Calibration)?;
        let layout = quantize::layout(model, options)?;
        let channels = quantize::channels(&model.graph, &layout, options);
        // The ranges serve settings that round convolutions everywhere as well.
        let rounded = QuantOptions { float_outputs: false, ..options.clone() };
        let also = quantize::layout(model, &rounded)?.observed(&model.graph);
        let job = Job {
            threads: self.threads.threads,
            runs: self.data.calibration_runs(&model.graph, &dataset, options)?,
            histograms: !self.no_histograms,
            positions: options.position_bits(),
            channels,
            also,
            mask: self.mask.input(&model.graph)?,
            float: self.float,
            skip,
            keep: false,
        };
        let done = job.run(model, &layout, &dataset, start)?;
        Ok((done.ranges, done.stopped))
    }

    fn report(&self, global: &Global, ranges: &Ranges) -> Result<()> {
        let bad = ranges.tensors.iter().filter(|(_, s)| s.non_finite > 0).map(|(n, _)| n.clone()).collect();
        let summary = Summary {
            model: self.model.clone(),
            ranges: self.output.clone(),
            samples: ranges.samples,
            repeated: Some(ranges.repeated).filter(|&n| n > 0),
            tensors: ranges.tensors.len(),
            histograms: ranges.tensors.values().all(|s| s.histogram.is_some()),
            random: ranges.random,
            non_finite: bad,
        };
        if global.json {
            return output::json(&summary);
        }
        let mut text = format!(
            "{} tensors over {} samples, ranges in {}\n",
            summary.tensors,
            summary.samples,
            self.output.display()
        );
        if let Some(n) = summary.repeated {
            text.push_str(&format!("note: {}\n", repeated_text(n)));
        }
        if let Some(first) = summary.non_finite.first() {
            text.push_str(&format!(
                "warning: {} tensors held NaN or infinity, \"{first}\" first\n",
                summary.non_finite.len()
            ));
        }
        text.push_str(&format!(
            "next: narrowbit quantize {} --ranges {}{} -o {}\n",
            self.model.display(),
            self.output.display(),
            repeated(std::env::args().skip(2)),
            self.model.with_extension("int8.onnx").display()
        ));
        output::print(&text)
    }
}

/// A calibration of a sanitized model, for all commands that need one.
pub struct Job {
    /// Threads to compute with; 0 for one per core.
    pub threads: usize,
    /// Samples per run.
    pub runs: Runs,
    /// Whether to keep histograms.
    pub histograms: bool,
    /// The bits of codes whose fix positions are searched in each batch, if a scheme asks for them.
    pub positions: Option<u8>,
    /// The values of which a record by channel is kept.
    pub channels: BTreeMap<ValueId, ByChannel>,
    /// Values to observe beside those of the layout.
    pub also: Vec<ValueId>,
    /// The input whose zeros mark positions that are not recorded.
    pub mask: Option<usize>,
    /// How floats are multiplied.
    pub float: Floats,
    /// Samples at the start to pass over: the record has them already.
    pub skip: u64,
    /// Whether to keep the first samples, to check the quantized model with.
    pub keep: bool,
}

/// What a calibration gives.
pub struct Done {
    /// The record.
    pub ranges: Ranges,
    /// Whether Ctrl-C ended it early.
    pub stopped: bool,
    /// What the float model made of the first samples.
    pub kept: Kept,
}

impl Job {
    /// Runs the model on the samples and records what the plan needs.
    pub fn run(&self, model: &Model, layout: &Layout, dataset: &Dataset, mut start: Ranges) -> Result<Done> {
        let mut observed = layout.observed(&model.graph);
        observed.extend(&self.also);
        observed.sort_unstable();
        observed.dedup();
        start.random |= dataset.is_random();
        let source = dataset.path().display().to_string();
        if !start.data.contains(&source) {
            start.data.push(source);
        }
        let calibrator =
            Calibrator::with_channels(&model.graph, &observed, &self.channels, self.histograms, self.threads, start)?;
        let mut calibrator = match self.positions {
            Some(bits) => calibrator.with_positions(bits),
            None => calibrator,
        };
        if let Some(mask) = self.mask {
            calibrator = calibrator.with_mask(mask);
        }
        let mut calibrator = calibrator.with_float(self.float.arithmetic())?;
        tracing::info!(
            "the records of {} tensors take {}",
            observed.len(),
            output::bytes(calibrator.record_bytes() as u64)
        );
        let bar = output::progress("calibrating", dataset.len());
        bar.inc(self.skip);
        let mut kept = Kept::new(self.keep);
        let stopped = AtomicBool::new(false);
        let skip = usize::try_from(self.skip).unwrap_or(usize::MAX);
        let going_on = |_: &_| {
            let stop = interrupt::requested();
            stopped.fetch_or(stop, Ordering::Relaxed);
            !stop
        };
        // A range that no sample has is worse than samples that count twice: what fills the last run up is real.
        let filled = AtomicU64::new(0);
        let batches = self.runs.batches(dataset, skip, Fill::First).take_while(going_on).map(|batch| {
            let batch = batch?;
            let samples = batch.indices.len() as u64;
            filled.fetch_add(batch.filled as u64, Ordering::Relaxed);
            anyhow::Ok((data::tensors(batch), samples))
        });
        calibrator.add(batches, |(inputs, samples), outputs| {
            bar.inc(samples);
            let n = samples as usize;
            // What does not show its samples is no output to be compared.
            if let Ok(outputs) = self.runs.outputs(outputs, n) {
                kept.offer(&model.graph, inputs, outputs, (n, self.runs.rows(n)));
            }
        })?;
        bar.finish_and_clear();
        let mut ranges = calibrator.into_ranges();
        ranges.repeated += filled.into_inner();
        Ok(Done { ranges, stopped: stopped.into_inner(), kept })
    }
}
