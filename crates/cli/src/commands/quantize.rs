use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use narrowbit_data::Split;
use narrowbit_import::onnx;
use narrowbit_ir::Model;
use narrowbit_quant::observe::Method;
use narrowbit_quant::options::{Matcher, Override, QuantOptions};
use narrowbit_quant::plan::Layout;
use narrowbit_quant::quantize::{self, NodeFate};
use narrowbit_quant::ranges::Ranges;
use narrowbit_quant::scheme::IntType;
use narrowbit_tensor::Tensor;
use serde::Serialize;

use crate::args::{Global, Threads};
use crate::check::{Check, Loss};
use crate::commands::calibrate::Job;
use crate::data::DataArgs;
use crate::measure::{Outcome, Speed, When};
use crate::{interrupt, measure, model, output};

/// Quantize a float model to int8
///
/// Cleans the graph, calibrates it on --data (or takes --ranges), puts QuantizeLinear and DequantizeLinear nodes
/// where integers pay, and writes a standard ONNX model. Then runs the written file on the first samples (64 at
/// most, 4 of a large model) and says what was lost.
#[derive(Debug, Args)]
pub struct Quantize {
    /// The float model (.onnx)
    model: PathBuf,
    /// Where to write the quantized model (.onnx)
    #[arg(short, long, value_name = "OUT.onnx")]
    output: PathBuf,
    /// Ranges from `narrowbit calibrate`, instead of --data
    #[arg(long, value_name = "RANGES.json")]
    ranges: Option<PathBuf>,
    /// The form of the quantized graph
    #[arg(long, value_enum, default_value_t = Format::Qdq)]
    format: Format,
    /// Exit with 1 when a Conv, Gemm or MatMul stays float without having been asked to
    #[arg(long)]
    strict: bool,
    /// Do not run the quantized model to measure its error
    #[arg(long)]
    no_check: bool,
    /// Time the quantized model beside the float one, in turns, and say where int8 does not pay
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true,
          default_value_t = When::Auto, default_missing_value = "yes")]
    measure: When,
    /// Print the settings as resolved from defaults, --config and flags, and stop
    #[arg(long)]
    show_config: bool,
    #[command(flatten)]
    scheme: SchemeArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    threads: Threads,
}

/// The form of a quantized graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// QuantizeLinear and DequantizeLinear around float operators: what every runtime reads
    Qdq,
    /// QLinearConv, QLinearMatMul and friends
    Qoperator,
}

/// An 8-bit integer type.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum IntArg {
    /// −128 … 127
    Int8,
    /// 0 … 255
    Uint8,
}

impl From<IntArg> for IntType {
    fn from(i: IntArg) -> IntType {
        match i {
            IntArg::Int8 => IntType::Int8,
            IntArg::Uint8 => IntType::Uint8,
        }
    }
}

/// How ranges are chosen.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum MethodArg {
    /// The extremes
    Minmax,
    /// The moving average of each sample's extremes
    MovingAverage,
    /// All but the rarest values, see --percentile
    Percentile,
    /// The least Kullback-Leibler divergence
    Entropy,
    /// The least mean squared error
    Mse,
}

/// What is quantized, and how.
#[derive(Debug, Clone, Args)]
pub struct SchemeArgs {
    /// Settings from a TOML or JSON file (see --show-config); flags take precedence
    #[arg(long, value_name = "FILE", help_heading = "Quantization")]
    config: Option<PathBuf>,
    /// The integer type of activations [default: uint8]
    #[arg(long, value_enum, value_name = "TYPE", help_heading = "Quantization")]
    activations: Option<IntArg>,
    /// The integer type of weights [default: int8]
    #[arg(long, value_enum, value_name = "TYPE", help_heading = "Quantization")]
    weights: Option<IntArg>,
    /// Give zero the middle code in activations too
    #[arg(long, help_heading = "Quantization")]
    symmetric: bool,
    /// Let weights have a zero point
    #[arg(long, help_heading = "Quantization")]
    asymmetric_weights: bool,
    /// One scale per weight tensor instead of one per output channel
    #[arg(long, help_heading = "Quantization")]
    per_tensor: bool,
    /// Use 7 bits for weights, for x86 processors without VNNI
    #[arg(long, help_heading = "Quantization")]
    reduce_range: bool,
    /// How ranges are chosen [default: minmax]
    #[arg(long, value_enum, value_name = "METHOD", help_heading = "Quantization")]
    method: Option<MethodArg>,
    /// The share of values that --method percentile keeps [default: 99.999]
    #[arg(long, value_name = "PERCENT", help_heading = "Quantization")]
    percentile: Option<f64>,
    /// Quantize only these operator types
    #[arg(long, value_name = "A,B", value_delimiter = ',', help_heading = "Quantization")]
    op_types: Vec<String>,
    /// Keep nodes float whose name matches this glob (repeatable)
    #[arg(long, value_name = "GLOB", help_heading = "Quantization")]
    exclude: Vec<String>,
    /// Keep nodes float whose name matches this regular expression (repeatable)
    #[arg(long, value_name = "REGEX", help_heading = "Quantization")]
    exclude_regex: Vec<String>,
    /// Keep nodes of this operator type float (repeatable)
    #[arg(long, value_name = "TYPE", help_heading = "Quantization")]
    exclude_type: Vec<String>,
    /// Keep the first Conv, Gemm or MatMul float
    #[arg(long, help_heading = "Quantization")]
    keep_first: bool,
    /// Keep the last Conv, Gemm or MatMul float
    #[arg(long, help_heading = "Quantization")]
    keep_last: bool,
    /// Keep embedding tables in 32 bits
    #[arg(long, help_heading = "Quantization")]
    float_embeddings: bool,
}

impl SchemeArgs {
    /// Flags over the file over the defaults.
    pub fn resolve(&self) -> Result<QuantOptions> {
        let mut o = match &self.config {
            Some(path) => read_config(path)?,
            None => QuantOptions::default(),
        };
        if let Some(t) = self.activations {
            o.activations.int = t.into();
        }
        if let Some(t) = self.weights {
            o.weights.int = t.into();
        }
        o.activations.symmetric |= self.symmetric;
        o.weights.symmetric &= !self.asymmetric_weights;
        o.weights.per_channel &= !self.per_tensor;
        o.weights.reduce_range |= self.reduce_range;
        o.keep_first |= self.keep_first;
        o.keep_last |= self.keep_last;
        o.embeddings &= !self.float_embeddings;
        if !self.op_types.is_empty() {
            o.op_types.clone_from(&self.op_types);
        }
        o.method = self.method(o.method)?;
        o.overrides.extend(self.exclusions());
        Ok(o)
    }

    fn method(&self, before: Method) -> Result<Method> {
        let percentile = self.percentile.unwrap_or(99.999);
        if !(percentile > 50.0 && percentile <= 100.0) {
            bail!("--percentile must be above 50 and at most 100, not {percentile}");
        }
        Ok(match self.method {
            None if self.percentile.is_some() => Method::Percentile(percentile),
            None => before,
            Some(MethodArg::Minmax) => Method::Minmax,
            Some(MethodArg::MovingAverage) => Method::MovingAverage,
            Some(MethodArg::Percentile) => Method::Percentile(percentile),
            Some(MethodArg::Entropy) => Method::Entropy,
            Some(MethodArg::Mse) => Method::Mse,
        })
    }

    fn exclusions(&self) -> impl Iterator<Item = Override> {
        let float = || Override { float: Some(true), ..Override::default() };
        let names = self.exclude.iter().map(move |g| Override { name: Some(g.clone()), ..float() });
        let regexes = self.exclude_regex.iter().map(move |r| Override { regex: Some(r.clone()), ..float() });
        let types = self.exclude_type.iter().map(move |t| Override { op_type: Some(t.clone()), ..float() });
        names.chain(regexes).chain(types)
    }
}

fn read_config(path: &Path) -> Result<QuantOptions> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let parsed = if json {
        serde_json::from_str(&text).map_err(anyhow::Error::from)
    } else {
        toml::from_str(&text).map_err(anyhow::Error::from)
    };
    parsed.map_err(|e| {
        let problem = e.to_string();
        let (path, problem) = (path.display(), problem.trim_end());
        anyhow!("{path}: {problem}\nhelp: `narrowbit quantize … --show-config` prints every setting")
    })
}

/// What a quantization gave.
#[derive(Serialize)]
pub struct Summary {
    model: PathBuf,
    output: PathBuf,
    /// Nodes that compute on integers, and all nodes of the cleaned graph.
    pub integer_nodes: usize,
    nodes: usize,
    /// Why the others do not: number of nodes by operator and reason.
    float: Vec<FloatGroup>,
    /// Bytes on disk.
    pub bytes_before: u64,
    /// Bytes on disk.
    pub bytes_after: u64,
    /// The error of the outputs on the first calibration samples.
    pub error: Option<Loss>,
    /// The time of a run beside the float model's, where it was measured.
    speed: Option<Speed>,
    samples: u64,
    random: bool,
    seconds: f64,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    node_list: Vec<NodeFate>,
}

/// Nodes that stay float for one reason.
#[derive(Serialize)]
struct FloatGroup {
    op: String,
    reason: &'static str,
    why: String,
    count: usize,
    example: String,
}

/// Below this ratio answers begin to differ visibly.
const POOR_SQNR: f64 = 15.0;
/// What an error of the check begins with.
const UNCHECKED: &str = "the quantized model can't be compared with the float one, so it was not written (--no-check writes it all the same)";

impl Quantize {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        let options = self.scheme.resolve()?;
        if self.show_config {
            let text =
                if global.json { serde_json::to_string_pretty(&options)? + "\n" } else { toml::to_string(&options)? };
            output::print(&text)?;
            return Ok(ExitCode::SUCCESS);
        }
        interrupt::install();
        let start = Instant::now();
        let mut model = model::load_runnable(&self.model)?;
        model::sanitize(&mut model)?;
        let layout = quantize::layout(&model, &options)?;
        let (ranges, check) = self.ranges(&model, &layout, &options)?;
        let unmatched = unmatched(&model, &options)?;
        let (_, fates) = quantize::quantize(&mut model, layout, &ranges, &options, &self.threads.exec()?)?;
        if self.format == Format::Qoperator {
            narrowbit_quant::qoperator::convert(&mut model)?;
        }
        describe(&mut model, &ranges, &options)?;
        let staged = onnx::stage(&model, &self.output, &onnx::SaveOptions::default())?;
        // Neither the float weights nor the file that they are mapped from are needed any more.
        drop(model);
        let seconds = start.elapsed().as_secs_f64();
        let inputs = check.as_ref().and_then(Check::inputs);
        let error = match check {
            Some(check) => Some(check.run(staged.load()?, self.threads.threads).context(UNCHECKED)?),
            None => None,
        };
        staged.commit()?;
        let speed = self.speed(inputs, &fates, start.elapsed().as_secs_f64())?;
        let mut summary = self.summary(global, &ranges, fates, error, seconds, unmatched)?;
        summary.warnings.extend(speed.warning());
        let skipped = matches!(speed, Outcome::TooSlow);
        summary.speed = speed.measured();
        let strict = self.strict && summary.float.iter().any(unasked);
        if global.json {
            output::json(&summary)?;
        } else {
            output::print(&text(&summary, &self.data, skipped))?;
        }
        Ok(if strict { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }

    /// The ranges, and what is needed to check the result, where samples are given.
    fn ranges(&self, model: &Model, layout: &Layout, options: &QuantOptions) -> Result<(Ranges, Option<Check>)> {
        if let Some(path) = &self.ranges {
            if self.data.data.is_some() || self.data.random.is_some() {
                bail!("give either --ranges or samples (--data, --random), not both");
            }
            return Ok((Ranges::load(path)?, None));
        }
        let dataset = self.data.open(&model.graph, Split::Calibration)?;
        let overridden = options.overrides.iter().filter_map(|o| o.method);
        let job = Job {
            threads: self.threads.threads,
            batch: self.data.batch,
            histograms: overridden.chain([options.method]).any(Method::needs_histogram),
            skip: 0,
            keep: !self.no_check,
        };
        let done = job.run(model, layout, &dataset, Ranges::default())?;
        if done.stopped {
            bail!("stopped by Ctrl-C; nothing was written\nhelp: `narrowbit calibrate` can be resumed");
        }
        Ok((done.ranges, Check::new(done.kept, &dataset)?))
    }

    /// Times the written model beside the float one, after `seconds` of work; `inputs` are those of the check, if
    /// there was one.
    fn speed(&self, inputs: Option<Vec<Tensor>>, fates: &[NodeFate], seconds: f64) -> Result<Outcome> {
        // Who does not want the model run for its error does not want it run unasked.
        if self.measure == When::No || self.measure == When::Auto && self.no_check {
            return Ok(Outcome::NotAsked);
        }
        let integer = fates.iter().filter(|f| f.integer).map(|f| f.node.clone()).collect();
        let beside = (self.measure == When::Auto).then_some(seconds);
        let job = measure::Job { integer, inputs, threads: self.threads.threads, beside };
        match job.run(&self.model, &self.output) {
            Ok(outcome) => Ok(outcome),
            Err(e) if self.measure == When::Auto => {
                tracing::warn!("the speed was not measured: {e:#}");
                Ok(Outcome::NotAsked)
            }
            Err(e) => Err(e.context(format!("{} is written, but its speed can't be measured", self.output.display()))),
        }
    }

    fn summary(
        &self,
        global: &Global,
        ranges: &Ranges,
        fates: Vec<NodeFate>,
        error: Option<Loss>,
        seconds: f64,
        unmatched: Vec<String>,
    ) -> Result<Summary> {
        let mut warnings = unmatched;
        if ranges.random {
            warnings.push("the ranges come from random samples: the accuracy of this model means nothing".to_owned());
        }
        if let Some(e) = error.as_ref().filter(|e| e.figures.sqnr_db < POOR_SQNR) {
            warnings.push(format!(
                "the outputs differ strongly from the float model's (SQNR {}): do not ship this before looking at `narrowbit compare`",
                output::decibels(e.figures.sqnr_db)
            ));
        }
        Ok(Summary {
            model: self.model.clone(),
            output: self.output.clone(),
            integer_nodes: fates.iter().filter(|f| f.integer).count(),
            nodes: fates.len(),
            float: groups(&fates),
            bytes_before: model::size_on_disk(&self.model)?,
            bytes_after: model::size_on_disk(&self.output)?,
            error,
            speed: None,
            samples: ranges.samples,
            random: ranges.random,
            seconds,
            warnings,
            node_list: if global.json || global.verbose > 0 { fates } else { Vec::new() },
        })
    }
}

/// A warning for each exception that is about no node of the model.
fn unmatched(model: &Model, options: &QuantOptions) -> Result<Vec<String>> {
    let matcher = Matcher::new(&options.overrides)?;
    let idle = matcher.unmatched(&model.graph);
    Ok(idle.into_iter().map(|o| format!("{o} matches no node of the cleaned graph")).collect())
}

/// Operators that integers pay for.
const PRODUCTS: [&str; 4] = ["Conv", "ConvTranspose", "Gemm", "MatMul"];

/// Whether a reason is a loss that nobody asked for.
fn unasked(g: &FloatGroup) -> bool {
    PRODUCTS.contains(&g.op.as_str())
        && !matches!(g.reason, "excluded" | "type-not-selected" | "edge-layer" | "not-float-data")
}

fn groups(fates: &[NodeFate]) -> Vec<FloatGroup> {
    let mut by: BTreeMap<(&str, &'static str), FloatGroup> = BTreeMap::new();
    for f in fates {
        let (Some(reason), Some(why)) = (f.reason, &f.why) else { continue };
        let new = || FloatGroup { op: f.op.clone(), reason, why: why.clone(), count: 0, example: f.node.clone() };
        by.entry((&f.op, reason)).or_insert_with(new).count += 1;
    }
    let mut all: Vec<FloatGroup> = by.into_values().collect();
    all.sort_by_key(|g| std::cmp::Reverse(g.count));
    all
}

/// Says in the file how it was made, so that it can be made again.
fn describe(model: &mut Model, ranges: &Ranges, options: &QuantOptions) -> Result<()> {
    model.producer_name = "narrowbit".into();
    model.producer_version = env!("CARGO_PKG_VERSION").into();
    model.set_metadata("narrowbit.version", env!("CARGO_PKG_VERSION"));
    model.set_metadata("narrowbit.quantize", serde_json::to_string(options)?);
    let data: Vec<&str> =
        ranges.data.iter().map(|d| Path::new(d).file_name().and_then(|n| n.to_str()).unwrap_or(d)).collect();
    model.set_metadata("narrowbit.calibration", format!("{} samples of {}", ranges.samples, data.join(", ")));
    if ranges.random {
        model.set_metadata("narrowbit.warning", "calibrated on random samples: accuracy is undefined");
    }
    Ok(())
}

/// Groups by what keeps them float, products first: those are the ones that cost speed.
fn by_reason(groups: &[FloatGroup]) -> Vec<(&str, Vec<&FloatGroup>)> {
    let mut out: Vec<(&str, Vec<&FloatGroup>)> = Vec::new();
    for g in groups.iter().filter(|g| g.reason != "not-float-data") {
        match out.iter_mut().find(|(why, _)| *why == g.why) {
            Some((_, all)) => all.push(g),
            None => out.push((&g.why, vec![g])),
        }
    }
    out.sort_by_key(|(_, all)| !all.iter().any(|g| PRODUCTS.contains(&g.op.as_str())));
    out
}

fn text(s: &Summary, data: &DataArgs, skipped: bool) -> String {
    let mut out = format!("{} → {}\n", s.model.display(), s.output.display());
    out.push_str(&format!("  nodes   {} of {} compute on integers\n", s.integer_nodes, s.nodes));
    for (why, groups) in by_reason(&s.float) {
        let count: usize = groups.iter().map(|g| g.count).sum();
        let ops: Vec<String> = groups.iter().map(|g| format!("{} {}", g.count, g.op)).collect();
        out.push_str(&format!("          {count} float, {why}:\n            {}\n", ops.join(", ")));
    }
    let ratio = s.bytes_after as f64 / s.bytes_before.max(1) as f64;
    out.push_str(&format!(
        "  size    {} → {} ({:.0} %)\n",
        output::bytes(s.bytes_before),
        output::bytes(s.bytes_after),
        ratio * 100.0
    ));
    if let Some(e) = &s.error {
        out.push_str(&format!(
            "  error   SQNR {}, cosine {:.5}, max {:.3e} on {} calibration samples\n",
            output::decibels(e.figures.sqnr_db),
            e.figures.cosine,
            e.figures.max_error,
            e.samples
        ));
        for (f, q) in e.float.iter().zip(&e.quantized) {
            out.push_str(&format!("  metric  {f} float, {q} int8, on the same samples\n"));
        }
    }
    if let Some(speed) = &s.speed {
        out.push_str(&speed.text());
    } else if skipped {
        out.push_str(
            "  speed   not measured, because it takes more than a tenth of the time (--measure does it all the same)\n",
        );
    }
    out.push_str(&format!("  time    {:.1} s for {} calibration samples and all else\n", s.seconds, s.samples));
    s.warnings.iter().for_each(|w| out.push_str(&format!("warning: {w}\n")));
    let path = data.data.as_deref().unwrap_or(Path::new("DATA")).display();
    let preprocess = data.preprocess.preprocess.as_ref().map(|p| format!(" --preprocess {}", p.display()));
    let (model, output, preprocess) = (s.model.display(), s.output.display(), preprocess.unwrap_or_default());
    out.push_str(&format!("next: narrowbit compare {model} {output} --data {path}{preprocess}\n"));
    out
}
