//! The command `quantize`: its arguments ([`scheme`]), the job, and what it says in the end ([`summary`]).

mod preset;
pub mod rounding;
mod scheme;
mod summary;
mod warnings;
mod without_ranges;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use narrowbit_data::{Dataset, Fill, Split};
use narrowbit_import::onnx;
use narrowbit_ir::{Model, ValueId};
use narrowbit_quant::approach::{Approach, BlockFormat};
use narrowbit_quant::encodings::{Applied, Encoding, Encodings, Given};
use narrowbit_quant::equalize::Equalized;
use narrowbit_quant::fill::Rates;
use narrowbit_quant::gptq::Report;
use narrowbit_quant::options::{GraphForm, Matcher, QuantOptions};
use narrowbit_quant::plan::{self, Layout, Stale};
use narrowbit_quant::quantize::{self, NodeFate, Seen};
use narrowbit_quant::ranges::Ranges;
use narrowbit_quant::target::{self, Fitted};
use narrowbit_tensor::Tensor;
use scheme::Decided;
pub use scheme::{SchemeArgs, repeated};
use summary::{text, unasked};

use crate::args::{FloatType, Floats, Global, Threads};
use crate::check::Check;
use crate::commands::calibrate::{Job, MaskArgs};
use crate::data::DataArgs;
use crate::measure::{Outcome, When};
use crate::runs::{Runs, repeated_text};
use crate::{interrupt, measure, model, output};

/// Quantize a float model to int8, or to the format of another --approach
///
/// Cleans the graph, calibrates it on --data (or takes --ranges), puts QuantizeLinear and DequantizeLinear nodes
/// where integers pay, and writes a standard ONNX model. Then runs the written file on the first samples (64 at
/// most, 4 of a large model) and says what was lost.
///
/// --approach dynamic, weight-only, float16 and bfloat16 need no samples; with --data they say what was lost, too, and
/// weight-only rounds weights of up to 4 bits by them (--weight-rounding). An exception in --config may name an approach
/// for its nodes (`[[override]]` with `approach`): a mixture needs samples if any of it is static.
#[derive(Debug, Args)]
pub struct Quantize {
    /// The float model (.onnx)
    model: PathBuf,
    /// Where to write the quantized model (.onnx)
    #[arg(short, long, value_name = "OUT.onnx")]
    output: PathBuf,
    /// Ranges from `narrowbit calibrate`, instead of --data, or beside it: biases and weights then go by the samples
    #[arg(long, value_name = "RANGES.json")]
    ranges: Option<PathBuf>,
    /// Scales, zero points, ranges and types of tensors from another tool's file: Vitis' quant_info.json, AIMET's
    /// encodings, ONNX Runtime's TensorQuantOverrides; samples or ranges are needed only for tensors that it leaves out
    #[arg(long, value_name = "FILE.json")]
    encodings: Option<PathBuf>,
    /// The form of the quantized graph [default: qdq]
    #[arg(long, value_enum)]
    format: Option<Format>,
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

/// The form of a quantized graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// QuantizeLinear and DequantizeLinear around float operators: what every runtime reads
    Qdq,
    /// QLinearConv, QLinearMatMul and friends; static
    Qoperator,
    /// ONNX Runtime's MatMulNBits; weight-only
    Matmulnbits,
}

/// What an error of the check begins with.
const UNCHECKED: &str = "the quantized model can't be compared with the float one, so it was not written (--no-check writes it all the same)";

/// Scales and types from a file.
#[derive(Default)]
struct Taken {
    given: Option<Encodings>,
    /// What was chosen with other settings, and is not taken.
    stale: Stale,
}

/// A quantized model with what the summary says of it.
struct Made {
    fates: Vec<NodeFate>,
    /// The calibration, where there was one.
    ranges: Option<Ranges>,
    check: Option<Check>,
    warnings: Vec<String>,
    /// What became of the entries of another tool's file.
    encodings: Option<Applied>,
    equalized: Option<Equalized>,
    /// What activations were multiplied by to fill their codes.
    rates: Rates,
    /// Activations with a scale per channel.
    by_channel: usize,
    /// Samples per run of the calibration, where it took place here.
    batch: Option<usize>,
    /// What rounding by samples did, where it took place.
    rounding: Option<Report>,
}

impl Quantize {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        let mut options = self.options()?;
        if self.show_config {
            let text =
                if global.json { serde_json::to_string_pretty(&options)? + "\n" } else { toml::to_string(&options)? };
            output::print(&text)?;
            return Ok(ExitCode::SUCCESS);
        }
        output::check_writable(&self.output)?;
        model::check_apart(&self.model, &self.output, "the float model", "int8.onnx")?;
        interrupt::install();
        let start = Instant::now();
        let mut model = model::load_runnable(&self.model)?;
        let smoothed = model::prepare(&mut model, &options)?;
        let fitted = self.fit(&mut options, &model)?;
        model::raise_for_mixture(&mut model, &options)?;
        let unreadable = target::unreadable(&options, &model.graph, is_qoperator(&options));
        // Before anything is written, so that who needs another runtime can stop here.
        unreadable.iter().for_each(|text| output::note(format_args!("warning: {text}")));
        let mut made = match needs_ranges(&model, &options)? {
            true => self.with_ranges(&mut model, &options)?,
            false => self.without_ranges(&mut model, &options)?,
        };
        // Decisions, which the file tells of and `config` gives back.
        options.rates = std::mem::take(&mut made.rates);
        describe(&mut model, made.ranges.as_ref(), &options)?;
        let staged = onnx::stage(&model, &self.output, &onnx::SaveOptions::default())?;
        // Neither the float weights nor the file that they are mapped from are needed any more.
        drop(model);
        let seconds = start.elapsed().as_secs_f64();
        let check = made.check.take();
        let inputs = check.as_ref().and_then(Check::inputs);
        let error = match check {
            Some(check) => Some(check.run(staged.load()?, self.threads.threads).context(UNCHECKED)?),
            None => None,
        };
        staged.commit()?;
        let speed = self.speed(inputs, &made.fates, &options, start.elapsed().as_secs_f64())?;
        let mut summary = self.summary(global, &options, made, error, seconds)?;
        summary.smoothed = smoothed;
        summary.adapted = fitted.adapted;
        summary.warnings.extend(fitted.notes);
        if global.json {
            summary.warnings.extend(unreadable);
        }
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

    /// Makes the settings such that the target, if there is one, runs the file.
    fn fit(&self, options: &mut QuantOptions, model: &Model) -> Result<Fitted> {
        let qoperator = is_qoperator(options);
        let fitted = target::fit(options, &model.graph, qoperator)?;
        if let Some(target) = options.target {
            target.check_opset(model.opset().max(quantize::opset(options)))?;
        }
        Ok(fitted)
    }

    /// Refuses early what could only fail after the calibration; `eight` is whether all types are integers of 8 bits.
    fn check_form(&self, model: &Model, options: &QuantOptions, eight: bool, opset: i64) -> Result<()> {
        if is_qoperator(options) && !eight {
            bail!("--format qoperator has operators for int8 and uint8 only\nhelp: --format qdq holds every type");
        }
        model::check_opset(model, opset)
    }

    /// Scales and types of tensors from another tool's file, or from our own.
    fn given(&self, model: &Model, layout: &Layout, options: &QuantOptions) -> Result<Taken> {
        let decided = self.scheme.decided()?;
        if let Some(decided) = &decided {
            let named = || decided.path.display().to_string();
            decided.decisions.check(&model.graph, layout).with_context(named)?;
        }
        match (&self.encodings, decided.filter(|d| !d.given.tensors.is_empty())) {
            (Some(_), Some(_)) => bail!(
                "both --encodings and --config have scales of tensors\nhelp: take \"tensors\" out of the configuration, or leave --encodings away"
            ),
            (Some(path), None) => Ok(Taken { given: Some(Encodings::load(path)?), ..Taken::default() }),
            (None, Some(Decided { mut given, settings, .. })) => {
                let stale = plan::take_stale(&mut given, (&model.graph, layout), &settings, options)?;
                Ok(Taken { given: Some(given), stale })
            }
            (None, None) => Ok(Taken::default()),
        }
    }

    /// The settings, the form of the graph among them.
    fn options(&self) -> Result<QuantOptions> {
        let mut options = self.scheme.resolve()?;
        if self.float.float != FloatType::F32 && (self.ranges.is_some() || !options.uses(Approach::Static)) {
            bail!("--float is how the float model is calibrated, and nothing is calibrated here\nhelp: leave it out");
        }
        let (statically, by_blocks) = (options.uses(Approach::Static), options.uses(Approach::WeightOnly));
        match self.format {
            None => {}
            Some(Format::Matmulnbits) if by_blocks => options.weight_only.format = BlockFormat::Matmulnbits,
            Some(Format::Qdq) if statically || by_blocks => {
                if by_blocks {
                    options.weight_only.format = BlockFormat::Qdq;
                }
                if statically {
                    options.form = GraphForm::Qdq;
                }
            }
            // A QLinearConv makes integers.
            Some(Format::Qoperator) if statically => {
                (options.form, options.float_outputs) = (GraphForm::Qoperator, false)
            }
            Some(_) => bail!(
                "--format has no such form for this approach\nhelp: qdq and qoperator are for static, qdq and matmulnbits for weight-only"
            ),
        }
        Ok(options)
    }

    fn with_ranges(&self, model: &mut Model, options: &QuantOptions) -> Result<Made> {
        let equalized = quantize::prepare(model, options)?;
        let layout = quantize::layout(model, options)?;
        let Taken { given, stale } = self.given(model, &layout, options)?;
        let opset = options.least_opset().max(given.as_ref().map_or(0, Encodings::least_opset));
        let eight = options.is_8_bit_integer() && given.as_ref().is_none_or(Encodings::is_8_bit_integer);
        self.check_form(model, options, eight, opset)?;
        let rounds = self.rounds(options)?;
        let corrects = quantize::corrects_activations(&model.graph, &layout, options);
        let dataset = self.dataset(model, rounds, corrects)?;
        let runs = dataset.as_ref().map(|d| self.data.calibration_runs(&model.graph, d, options)).transpose()?;
        let (ranges, check) = self.ranges(
            model,
            &layout,
            options,
            given.as_ref().zip(Some(&stale)),
            dataset.as_ref().zip(runs.as_ref()),
        )?;
        let mut warnings = unmatched(model, options)?;
        warnings.extend(rounding::unmet(options, rounds));
        warnings.extend(options.warnings().into_iter().map(str::to_owned));
        warnings.extend(warnings::blank_inputs(&model.graph, &ranges));
        let exec = self.threads.exec()?;
        let none = Encodings::default();
        let samples = dataset.as_ref().zip(runs.as_ref()).filter(|_| rounds);
        let mask = self.mask.input(&model.graph)?;
        let inputs = check.as_ref().map_or(Vec::new(), Check::all_inputs);
        let (plan, fates, applied, rounding) =
            self.with_rounder(samples, (mask, self.float.arithmetic()), |rounder| {
                let given = given.as_ref().unwrap_or(&none);
                let seen = Seen { rounder, inputs: &inputs, mask };
                Ok(quantize::quantize_with(model, layout, &ranges, given, options, seen, &exec)?)
            })?;
        let check = check.filter(|_| !self.no_check);
        warnings.extend(plan.layout.others.warnings().iter().cloned());
        warnings.extend(rounding::left(rounding.as_ref()));
        warnings.extend(warnings::first_float(&fates, options));
        warnings.extend(warnings::narrow_register(&model.graph, options));
        model::raise_opset(model, opset)?;
        if is_qoperator(options) {
            narrowbit_quant::qoperator::convert(model)?;
        }
        let kept = given.as_ref().is_some_and(|g| !g.biases.is_empty());
        if corrects && dataset.is_none() && !kept {
            let help = "give samples (--data) beside them, or --correct-activations=no";
            let from = if self.ranges.is_some() { "ranges" } else { "scales" };
            warnings.push(format!(
                "biases of convolutions do not take up what rounding activations adds in the mean, which {from} do not tell ({help})"
            ));
        }
        if options.bias_correction && ranges.tensors.is_empty() && !kept {
            let file = if self.encodings.is_some() { "--encodings" } else { "--config" };
            warnings.push(format!(
                "biases are not corrected: that takes the means of samples (give samples (--data) or ranges beside {file})"
            ));
        }
        warnings.extend(chosen_anew(&stale));
        if ranges.repeated > 0 {
            warnings.push(repeated_text(ranges.repeated));
        }
        // Without samples there is no calibration to tell of.
        let ranges = Some(ranges).filter(|r| given.is_none() || !r.tensors.is_empty());
        Ok(Made {
            fates,
            ranges,
            check,
            warnings,
            encodings: given.map(|_| without_stale(applied, &stale)),
            equalized,
            by_channel: plan.channel_scales.len(),
            rates: plan.rates,
            batch: runs.filter(|_| self.ranges.is_none()).map(|r| r.size),
            rounding,
        })
    }

    /// The samples, where there are any; `rounds` says that weights are rounded by them, `corrects` that biases are corrected.
    fn dataset(&self, model: &Model, rounds: bool, corrects: bool) -> Result<Option<Dataset>> {
        let given = self.data.data.is_some() || self.data.random.is_some();
        let serve = match self.data.data {
            Some(_) => rounds || corrects,
            // What random samples say has to be asked for.
            None => rounds && self.scheme.asks_for_rounding(),
        };
        if self.ranges.is_some() && given && !serve {
            bail!(
                "give either --ranges or samples (--data, --random), not both\nhelp: beside ranges, --data is for --weight-rounding gptq and --correct-activations (of convolutions)"
            );
        }
        given.then(|| self.data.open(&model.graph, Split::Calibration)).transpose()
    }

    /// The ranges, and what is needed to check the result, where samples are given.
    fn ranges(
        &self,
        model: &Model,
        layout: &Layout,
        options: &QuantOptions,
        given: Option<(&Encodings, &Stale)>,
        samples: Option<(&Dataset, &Runs)>,
    ) -> Result<(Ranges, Option<Check>)> {
        if let (Some((given, stale)), None, None) = (given, &self.ranges, samples) {
            check_complete(model, layout, given, stale)?;
            return Ok((Ranges::default(), None));
        }
        if let Some(path) = &self.ranges {
            let ranges = Ranges::load(path)?;
            ranges.check(&model.graph)?;
            let keeps = !self.no_check || options.correct_activations;
            let Some((dataset, runs)) = samples.filter(|_| keeps) else { return Ok((ranges, None)) };
            // The samples that a calibration on them would have kept.
            return Ok((ranges, self.float_outputs(model, dataset, runs.clone(), Fill::First)?));
        }
        let opened;
        let (dataset, runs) = match samples {
            Some((dataset, runs)) => (dataset, runs.clone()),
            None => {
                // Says what to give.
                opened = self.data.open(&model.graph, Split::Calibration)?;
                (&opened, self.data.calibration_runs(&model.graph, &opened, options)?)
            }
        };
        let job = Job {
            threads: self.threads.threads,
            runs,
            histograms: quantize::needs_histograms(&model.graph, layout, options),
            positions: options.position_bits(),
            channels: quantize::channels(&model.graph, layout, options),
            also: Vec::new(),
            mask: self.mask.input(&model.graph)?,
            float: self.float,
            skip: 0,
            keep: !self.no_check || options.correct_activations,
        };
        let done = job.run(model, layout, dataset, Ranges::default())?;
        if done.stopped {
            bail!("stopped by Ctrl-C; nothing was written\nhelp: `narrowbit calibrate` can be resumed");
        }
        Ok((done.ranges, Check::new(done.kept, dataset, job.runs)?))
    }

    /// Times the written model beside the float one, after `seconds` of work; `inputs` are those of the check, if
    /// there was one.
    fn speed(
        &self,
        inputs: Option<Vec<Tensor>>,
        fates: &[NodeFate],
        options: &QuantOptions,
        seconds: f64,
    ) -> Result<Outcome> {
        // Who does not want the model run for its error does not want it run unasked.
        if self.measure == When::No || self.measure == When::Auto && self.no_check {
            return Ok(Outcome::NotAsked);
        }
        let integer = fates.iter().filter(|f| f.integer).map(|f| f.node.clone()).collect();
        let beside = (self.measure == When::Auto).then_some(seconds);
        let format = summary::format_name(options);
        let job = measure::Job { integer, format, inputs, threads: self.threads.threads, beside };
        match job.run(&self.model, &self.output) {
            Ok(outcome) => Ok(outcome),
            Err(e) if self.measure == When::Auto => {
                tracing::warn!("the speed was not measured: {e:#}");
                Ok(Outcome::NotAsked)
            }
            Err(e) => Err(e.context(format!("{} is written, but its speed can't be measured", self.output.display()))),
        }
    }
}

/// Checks that a file has an entry for all that would need samples otherwise.
fn check_complete(model: &Model, layout: &Layout, given: &Encodings, stale: &Stale) -> Result<()> {
    let graph = &model.graph;
    let known = |e: &Encoding| !e.values.contains(&Given::Nothing);
    let has = |v: &ValueId| graph.constant(*v).is_some() || given.tensors.get(&graph.value(*v).name).is_some_and(known);
    let missing: Vec<&str> = layout
        .groups()
        .filter(|g| !g.iter().any(has))
        .filter_map(|g| g.first())
        .map(|&v| graph.value(v).name.as_str())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = listed(&missing);
    if !stale.settings.is_empty() {
        bail!(
            "the scales that --config has for {names} were chosen with other settings ({})\nhelp: give samples for these (--data DATA), or ranges (--ranges), or leave the settings, and the flags that change them, as they were",
            stale.settings.join(", ")
        );
    }
    let file = if given.own { "--config" } else { "--encodings" };
    bail!("{file} has no scales for {names}\nhelp: give samples for these (--data DATA), or ranges (--ranges)")
}

/// Up to ten names.
fn listed<T: AsRef<str>>(names: &[T]) -> String {
    let some = names.iter().take(10).map(|n| format!("\"{}\"", n.as_ref())).collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(10);
    if more > 0 { format!("{some} and {more} more") } else { some }
}

/// Says which scales of a configuration were not taken, and why.
fn chosen_anew(stale: &Stale) -> Option<String> {
    let (names, settings) = (listed(&stale.tensors), stale.settings.join(", "));
    let text = || format!("scales chosen anew, because settings of --config have changed ({settings}): {names}");
    (!stale.tensors.is_empty()).then(text)
}

/// What became of entries, without those that are told of as stale.
fn without_stale(mut applied: Applied, stale: &Stale) -> Applied {
    applied.without.retain(|name| !stale.tensors.contains(name));
    applied
}

/// Whether any node is static, for which ranges have to be there.
fn needs_ranges(model: &Model, options: &QuantOptions) -> Result<bool> {
    match options.is_mixture() {
        true => Ok(quantize::is_static(&quantize::layout(model, options)?)),
        false => Ok(options.approach.needs_ranges()),
    }
}

/// Whether integers are written in operators of their own.
fn is_qoperator(options: &QuantOptions) -> bool {
    options.form == GraphForm::Qoperator
}

/// A warning for each exception that is about no node of the model.
fn unmatched(model: &Model, options: &QuantOptions) -> Result<Vec<String>> {
    let matcher = Matcher::new(&options.overrides)?;
    let idle = matcher.unmatched(&model.graph);
    Ok(idle.into_iter().map(|o| format!("{o} matches no node of the cleaned graph")).collect())
}

/// Says in the file how it was made, so that it can be made again.
fn describe(model: &mut Model, ranges: Option<&Ranges>, options: &QuantOptions) -> Result<()> {
    model.producer_name = "narrowbit".into();
    model.producer_version = env!("CARGO_PKG_VERSION").into();
    model.set_metadata("narrowbit.version", env!("CARGO_PKG_VERSION"));
    model.set_metadata("narrowbit.quantize", serde_json::to_string(options)?);
    let Some(ranges) = ranges else { return Ok(()) };
    let data: Vec<&str> =
        ranges.data.iter().map(|d| Path::new(d).file_name().and_then(|n| n.to_str()).unwrap_or(d)).collect();
    let again = if ranges.repeated > 0 {
        format!(", {} of them again to fill runs up", ranges.repeated)
    } else {
        String::new()
    };
    model.set_metadata("narrowbit.calibration", format!("{} samples of {}{again}", ranges.samples, data.join(", ")));
    let random = ranges.random.then_some("calibrated on random samples: accuracy is undefined");
    let warnings: Vec<&str> = random.into_iter().chain(options.warnings()).collect();
    if !warnings.is_empty() {
        model.set_metadata("narrowbit.warning", warnings.join("; "));
    }
    Ok(())
}
