//! The arguments that say what is quantized, and how.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use narrowbit_quant::approach::{Algorithm, Approach, AttentionProducts, BlockScales, Compute, Granularity};
use narrowbit_quant::encodings::Encodings;
use narrowbit_quant::observe::Method;
use narrowbit_quant::options::{Override, QuantOptions, WeightRounding};
use narrowbit_quant::scheme::Preset;
use narrowbit_quant::target::Target;

use super::preset::{ActivationArg, PresetArgs, WeightArg};
use crate::commands::config::Decisions;

/// How the model is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ApproachArg {
    /// Integers throughout, with ranges calibrated on samples
    Static,
    /// Integer products whose activations find their range at run time; needs no samples
    Dynamic,
    /// Weights in 2 to 8 bits by blocks, computing on floats; needs no samples
    WeightOnly,
    /// Half precision, LayerNormalization, Softmax and their like in float32; needs no samples
    Float16,
    /// Weights in bfloat16, computing in float32; needs no samples
    Bfloat16,
}

impl From<ApproachArg> for Approach {
    fn from(a: ApproachArg) -> Approach {
        match a {
            ApproachArg::Static => Approach::Static,
            ApproachArg::Dynamic => Approach::Dynamic,
            ApproachArg::WeightOnly => Approach::WeightOnly,
            ApproachArg::Float16 => Approach::Float16,
            ApproachArg::Bfloat16 => Approach::Bfloat16,
        }
    }
}

/// What shares a scale of an activation.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum GranularityArg {
    /// Each row along the last axis
    Token,
    /// The whole tensor: what other runtimes have fused kernels for
    Tensor,
}

/// What the two products of attention compute on.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AttentionArg {
    /// 8-bit integers: queries, keys and values with a scale each, the softmax with one by row
    Int8,
    /// Floats
    Float,
}

/// How the scale of a block of weights is chosen.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AlgorithmArg {
    /// The least scale at which nothing saturates; mx types: the one of their specification
    Rtn,
    /// The least squared error of the block; mx types: among three powers of two
    Mse,
    /// Half-quadratic quantization of the zero point
    Hqq,
}

/// How the codes of weights are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoundingArg {
    /// Each weight to the nearest value
    Nearest,
    /// So that outputs err least on the samples: the error of each weight is handed on to those that are not rounded yet
    Gptq,
}

/// The type of the scales of blocks.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum BlockScalesArg {
    /// float32
    F32,
    /// Powers of two in a byte
    E8m0,
}

/// What computes on half-precision weights.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ComputeArg {
    /// Operators in half precision where that is enough
    Half,
    /// Operators in float32
    Float32,
}

/// How ranges are chosen.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum MethodArg {
    /// mse where most products are convolutions and activations have 8 bits, minmax elsewhere
    Auto,
    /// The extremes
    Minmax,
    /// The moving average of each sample's extremes
    MovingAverage,
    /// All but the rarest values, see --percentile
    Percentile,
    /// For each tensor the percentile with the least mean squared error
    PercentileSearch,
    /// The least Kullback-Leibler divergence
    Entropy,
    /// The least mean squared error; with --scheme vitis-dpu as diffs
    Mse,
    /// fp8: values spread as the format's own are
    Distribution,
    /// Powers of two: the least squared error of each batch
    Diffs,
    /// The moving average of each sample's greatest magnitude, momentum 0.9
    MovingPeak,
}

/// A runtime.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TargetArg {
    /// This one, which runs all that it writes
    Narrowbit,
    /// ONNX Runtime 1.31 on CPUs
    Onnxruntime,
    /// OpenVINO 2026.4 on CPUs
    Openvino,
    /// TensorRT 10.15: symmetric, int8, fp8_e4m3, blocks of int4
    Tensorrt,
}

impl From<TargetArg> for Target {
    fn from(t: TargetArg) -> Target {
        match t {
            TargetArg::Narrowbit => Target::Narrowbit,
            TargetArg::Onnxruntime => Target::Onnxruntime,
            TargetArg::Openvino => Target::Openvino,
            TargetArg::Tensorrt => Target::Tensorrt,
        }
    }
}

/// What is quantized, and how.
#[derive(Debug, Clone, Args)]
pub struct SchemeArgs {
    /// Settings from a TOML or JSON file (see --show-config and `narrowbit config`); flags take precedence
    #[arg(short, long, value_name = "FILE", help_heading = "Quantization")]
    config: Option<PathBuf>,
    #[command(flatten)]
    preset: PresetArgs,
    /// How the model is quantized [default: static]
    #[arg(long, value_enum, help_heading = "Quantization")]
    approach: Option<ApproachArg>,
    /// The runtime that the file is for: what it can't run is refused, or replaced by what it can
    #[arg(long, value_enum, value_name = "RUNTIME", help_heading = "Quantization")]
    target: Option<TargetArg>,
    /// The type of activations [default: uint8]
    #[arg(long, value_enum, value_name = "TYPE", help_heading = "Quantization")]
    activations: Option<ActivationArg>,
    /// The type of weights [default: int8; weight-only: int4]
    #[arg(long, value_enum, value_name = "TYPE", help_heading = "Quantization")]
    weights: Option<WeightArg>,
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
    /// How ranges are chosen [default: auto]
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
    /// Keep the first Conv, Gemm or MatMul float [default: no; yes with --activations fp8_e4m3 or fp8_e5m2]
    #[arg(long, value_name = "yes|no", hide_possible_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "yes",
          value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Quantization")]
    keep_first: Option<bool>,
    /// Keep the last Conv, Gemm or MatMul float, unless it is the only one left [default: no; yes with --activations fp8_e4m3 or
    /// fp8_e5m2]
    #[arg(long, value_name = "yes|no", hide_possible_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "yes",
          value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Quantization")]
    keep_last: Option<bool>,
    /// Keep depthwise convolutions float, unless there is nothing else [default: no; yes with --activations fp8_e4m3 or fp8_e5m2]
    #[arg(long, value_name = "yes|no", hide_possible_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "yes",
          value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Quantization")]
    keep_depthwise: Option<bool>,
    /// Keep embedding tables in 32 bits
    #[arg(long, help_heading = "Quantization")]
    float_embeddings: bool,
    /// Whether convolutions hand on floats where no integer node follows, and round once, behind a function such as HardSwish
    /// or SiLU and constant factors and offsets; no: each rounds its sums, the form that ONNX Runtime computes on integers [default: yes; no with --target
    /// onnxruntime, --scheme or --format qoperator]
    #[arg(long, value_name = "yes|no", hide_possible_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "yes",
          value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Quantization")]
    float_outputs: Option<bool>,
    /// Whether what a depthwise convolution reads may have a scale per channel, where that is much finer (int8)
    /// [default: yes; no with --float-outputs=no and --target onnxruntime or tensorrt]
    #[arg(long, value_name = "yes|no", hide_possible_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "yes",
          value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Quantization")]
    channel_activations: Option<bool>,
    /// Whether to divide channels that stand out behind a normalisation between it and the weights that follow, exactly;
    /// static, dynamic [default: yes; no with --scheme]
    #[arg(long, value_name = "yes|no", hide_possible_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "yes",
          value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Quantization")]
    smooth: Option<bool>,
    /// How weights are rounded, with the scales that are chosen; gptq needs samples (--data): static, weight-only [default: with
    /// samples gptq for fp8 and up to 4 bits; else, and with --scheme, nearest]
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Quantization")]
    weight_rounding: Option<RoundingArg>,
    /// What shares a scale of an activation: dynamic [default: token]
    #[arg(long, value_enum, value_name = "WHAT", help_heading = "Quantization")]
    granularity: Option<GranularityArg>,
    /// What the two products of attention compute on, the softmax between them on floats: dynamic [default: int8]
    #[arg(long, value_enum, value_name = "WHAT", help_heading = "Quantization")]
    attention: Option<AttentionArg>,
    /// Weights that share a scale, a power of two from 16 on: weight-only [default: 32]
    #[arg(long, value_name = "N", help_heading = "Quantization")]
    block: Option<usize>,
    /// How the scale of a block is chosen: weight-only [default: mse; mx types: rtn]
    #[arg(long, value_enum, value_name = "NAME", help_heading = "Quantization")]
    algorithm: Option<AlgorithmArg>,
    /// The type of the scales of mx types: weight-only [default: f32, which ONNX Runtime reads; mxfp4: e8m0]
    #[arg(long, value_enum, value_name = "TYPE", help_heading = "Quantization")]
    block_scales: Option<BlockScalesArg>,
    /// What MatMulNBits asks of a runtime: 4 allows int8 products of rows rounded to 8 bits by blocks, 1 float32 products, 0
    /// says nothing; weight-only with --format matmulnbits [default: 4; weights of 8 bits: 0]
    #[arg(long, value_name = "0-4", value_parser = clap::value_parser!(i64).range(0..=4), help_heading = "Quantization")]
    accuracy_level: Option<i64>,
    /// Make inputs and outputs half precision too: float16, bfloat16
    #[arg(long, help_heading = "Quantization")]
    io_float16: bool,
    /// What operators compute in [default: half; bfloat16: float32]
    #[arg(long, value_enum, value_name = "WHAT", help_heading = "Quantization")]
    compute: Option<ComputeArg>,
}

/// Of a command line's words those that say how to quantize, as a command that goes on would repeat them.
pub fn repeated(words: impl Iterator<Item = String>) -> String {
    let known = SchemeArgs::augment_args(clap::Command::new(""));
    let find = |word: &str| {
        known.get_arguments().find(|a| match word.strip_prefix("--") {
            Some(long) => a.get_long() == long.split('=').next(),
            None => {
                word.strip_prefix('-').and_then(|short| short.chars().next()).is_some_and(|c| a.get_short() == Some(c))
            }
        })
    };
    let (mut out, mut words) = (String::new(), words);
    while let Some(word) = words.next() {
        let Some(arg) = find(&word) else { continue };
        // `-w4` and `--scheme=x` hold their value.
        let whole = word.contains('=') || !word.starts_with("--") && word.len() > 2;
        let follows = arg.get_action().takes_values() && !arg.is_require_equals_set() && !whole;
        for word in [Some(word), words.by_ref().take(follows.into()).next()].into_iter().flatten() {
            let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "-_=.,/:+%".contains(c));
            out.push(' ');
            out.push_str(&if plain { word } else { format!("'{}'", word.replace('\'', r"'\''")) });
        }
    }
    out
}

/// What a file of `narrowbit config` holds beside settings.
pub struct Decided {
    /// The file.
    pub path: PathBuf,
    /// Of nodes and tensors.
    pub decisions: Decisions,
    /// Scales and types of tensors, and biases.
    pub given: Encodings,
    /// The settings that these were chosen with.
    pub settings: QuantOptions,
}

impl SchemeArgs {
    /// Flags over the file over the preset over the defaults.
    pub fn resolve(&self) -> Result<QuantOptions> {
        let (mut o, exceptions) = match &self.config {
            Some(path) => read_config(path, self.preset.preset())?,
            None => (self.preset.preset().map(Preset::options).unwrap_or_default(), Vec::new()),
        };
        if let Some(a) = self.approach {
            o.approach = a.into();
        }
        self.check_flags(&o)?;
        o.target = self.target.map(Target::from).or(o.target);
        if let Some(t) = self.activations {
            o.activations.format = t.into();
        }
        match self.weights {
            Some(t) if o.approach == Approach::WeightOnly => o.weight_only.take_type(t.blocks()?),
            Some(t) => o.weights.format = t.format(o.approach)?,
            None => {}
        }
        let fp8 = o.approach == Approach::Static && o.activations.format.is_float();
        if fp8 && o.scheme.is_none() && self.config.is_none() {
            // Four bits of each number are too few for a picture's 256 steps, whose values all have one sign, for weights
            // whose errors the means of such activations add up, and for the scores that a decision compares.
            (o.keep_first, o.keep_last, o.bias_correction) = (true, true, true);
            // No kernel multiplies these in fp8: to round what they read is error for nothing.
            o.keep_depthwise = true;
        }
        self.preset.apply(&mut o);
        self.resolve_approach(&mut o);
        o.activations.symmetric |= self.symmetric;
        o.weights.symmetric &= !self.asymmetric_weights;
        o.weights.per_channel &= !self.per_tensor;
        o.weights.reduce_range |= self.reduce_range;
        o.keep_first = self.keep_first.unwrap_or(o.keep_first);
        o.keep_last = self.keep_last.unwrap_or(o.keep_last);
        o.keep_depthwise = self.keep_depthwise.unwrap_or(o.keep_depthwise);
        o.embeddings &= !self.float_embeddings;
        o.smooth = self.smooth.unwrap_or(o.smooth);
        o.float_outputs = self.float_outputs.unwrap_or(o.float_outputs);
        o.channel_activations = self.channel_activations.unwrap_or(o.channel_activations);
        if !self.op_types.is_empty() {
            o.op_types.clone_from(&self.op_types);
        }
        match self.weight_rounding {
            Some(RoundingArg::Nearest) => o.weight_rounding = Some(WeightRounding::Nearest),
            Some(RoundingArg::Gptq) => o.weight_rounding = Some(WeightRounding::Gptq),
            None => {}
        }
        o.method = self.method(o.method)?;
        o.fill_overrides(&exceptions)?;
        o.overrides.extend(self.exclusions());
        self.preset.check_heeded(&o)?;
        Ok(o)
    }

    /// Whether a flag asks for weights that are rounded by samples.
    pub fn asks_for_rounding(&self) -> bool {
        self.weight_rounding == Some(RoundingArg::Gptq)
    }

    /// What the file holds beside settings, if it was made by `narrowbit config`.
    pub fn decided(&self) -> Result<Option<Decided>> {
        let json = |p: &&PathBuf| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        let Some(path) = self.config.as_ref().filter(json) else { return Ok(None) };
        let named = || path.display().to_string();
        let mut all = serde_json::from_str(&std::fs::read_to_string(path).with_context(named)?).with_context(named)?;
        let Some(decisions) = Decisions::take(&mut all).with_context(named)? else { return Ok(None) };
        let given = decisions.encodings().with_context(named)?;
        let settings = match decisions.settings() {
            Some(settings) => settings.clone(),
            None => read_config(path, None)?.0,
        };
        Ok(Some(Decided { path: path.clone(), decisions, given, settings }))
    }

    /// Settings of one approach.
    fn resolve_approach(&self, o: &mut QuantOptions) {
        match self.granularity {
            Some(GranularityArg::Token) => o.dynamic.granularity = Granularity::Token,
            Some(GranularityArg::Tensor) => o.dynamic.granularity = Granularity::Tensor,
            None => {}
        }
        match self.attention {
            Some(AttentionArg::Int8) => o.dynamic.attention = AttentionProducts::Int8,
            Some(AttentionArg::Float) => o.dynamic.attention = AttentionProducts::Float,
            None => {}
        }
        o.weight_only.block = self.block.unwrap_or(o.weight_only.block);
        match self.algorithm {
            Some(AlgorithmArg::Rtn) => o.weight_only.algorithm = Algorithm::Rtn,
            Some(AlgorithmArg::Mse) => o.weight_only.algorithm = Algorithm::Mse,
            Some(AlgorithmArg::Hqq) => o.weight_only.algorithm = Algorithm::Hqq,
            None => {}
        }
        match self.block_scales {
            Some(BlockScalesArg::F32) => o.weight_only.scales = Some(BlockScales::F32),
            Some(BlockScalesArg::E8m0) => o.weight_only.scales = Some(BlockScales::E8m0),
            None => {}
        }
        o.weight_only.accuracy_level = self.accuracy_level.or(o.weight_only.accuracy_level);
        o.half.io |= self.io_float16;
        match self.compute {
            Some(ComputeArg::Half) => o.half.compute = Some(Compute::Half),
            Some(ComputeArg::Float32) => o.half.compute = Some(Compute::Float32),
            None => {}
        }
    }

    /// Refuses flags that no approach of these settings has a use for: who gives them expects another one.
    fn check_flags(&self, o: &QuantOptions) -> Result<()> {
        use Approach::{Bfloat16, Dynamic, Float16, Static, WeightOnly};
        let all: [(bool, &str, &[Approach]); 23] = [
            (self.preset.is_given(), "--scheme and its like", &[Static]),
            (self.activations.is_some(), "--activations", &[Static]),
            (self.symmetric, "--symmetric", &[Static]),
            (self.method.is_some(), "--method", &[Static]),
            (self.percentile.is_some(), "--percentile", &[Static]),
            (self.weights.is_some(), "--weights", &[Static, Dynamic, WeightOnly]),
            (self.asymmetric_weights, "--asymmetric-weights", &[Static, Dynamic]),
            (self.per_tensor, "--per-tensor", &[Static, Dynamic]),
            (self.reduce_range, "--reduce-range", &[Static, Dynamic]),
            (
                self.keep_first.is_some() || self.keep_last.is_some(),
                "--keep-first and --keep-last",
                &[Static, Dynamic, WeightOnly],
            ),
            (self.keep_depthwise.is_some(), "--keep-depthwise", &[Static]),
            (self.smooth.is_some(), "--smooth", &[Static, Dynamic]),
            (self.float_outputs.is_some(), "--float-outputs", &[Static]),
            (self.channel_activations.is_some(), "--channel-activations", &[Static]),
            (self.weight_rounding.is_some(), "--weight-rounding", &[Static, WeightOnly]),
            (self.granularity.is_some(), "--granularity", &[Dynamic]),
            (self.attention.is_some(), "--attention", &[Dynamic]),
            (self.block.is_some(), "--block", &[WeightOnly]),
            (self.algorithm.is_some(), "--algorithm", &[WeightOnly]),
            (self.block_scales.is_some(), "--block-scales", &[WeightOnly]),
            (self.accuracy_level.is_some(), "--accuracy-level", &[WeightOnly]),
            (self.io_float16, "--io-float16", &[Float16, Bfloat16]),
            (self.compute.is_some(), "--compute", &[Float16, Bfloat16]),
        ];
        let approaches = o.approaches();
        let idle = all.into_iter().find(|(given, _, fits)| *given && !fits.iter().any(|a| approaches.contains(a)));
        let Some((_, flag, fits)) = idle else { return Ok(()) };
        let listed = |all: &[Approach]| all.iter().map(Approach::to_string).collect::<Vec<_>>().join(", ");
        bail!("{flag} has no meaning for --approach {}\nhelp: it is for {}", listed(&approaches), listed(fits))
    }

    fn method(&self, before: Method) -> Result<Method> {
        let percentile = self.percentile.unwrap_or(99.999);
        if !(percentile > 50.0 && percentile <= 100.0) {
            bail!("--percentile must be above 50 and at most 100, not {percentile}");
        }
        Ok(match self.method {
            None if self.percentile.is_some() => Method::Percentile(percentile),
            None => before,
            Some(MethodArg::Auto) => Method::Auto,
            Some(MethodArg::Minmax) => Method::Minmax,
            Some(MethodArg::MovingAverage) => Method::MovingAverage,
            Some(MethodArg::Percentile) => Method::Percentile(percentile),
            Some(MethodArg::PercentileSearch) => Method::PercentileSearch,
            Some(MethodArg::Entropy) => Method::Entropy,
            Some(MethodArg::Mse) => Method::Mse,
            Some(MethodArg::Distribution) => Method::Distribution,
            Some(MethodArg::Diffs) => Method::Diffs,
            Some(MethodArg::MovingPeak) => Method::MovingPeak,
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

/// Refuses a scheme beside decisions that were made with another one: the file has every setting, so that only what it leaves at
/// its default would come of the scheme.
fn refuse_other_scheme(all: &serde_json::Value, preset: Option<Preset>) -> Result<()> {
    let own: Option<Preset> = all.get("scheme").cloned().map(serde_json::from_value).transpose()?;
    let Some(asked) = preset.filter(|p| Some(*p) != own) else { return Ok(()) };
    let name = |p: Preset| serde_json::to_value(p).ok().and_then(|v| Some(v.as_str()?.to_owned())).unwrap_or_default();
    let own = own.map_or("without --scheme".to_owned(), |p| format!("with --scheme {}", name(p)));
    bail!(
        "these decisions were made {own}, and --scheme {} would change them by half\nhelp: leave --scheme away, or quantize without this file (with --data)",
        name(asked)
    )
}

/// The settings of a file, over a preset where there is one, and its exceptions as they stand there.
fn read_config(path: &Path, preset: Option<Preset>) -> Result<(QuantOptions, Vec<serde_json::Value>)> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let read = || -> Result<(QuantOptions, Vec<serde_json::Value>)> {
        let mut all: serde_json::Value = if json { serde_json::from_str(&text)? } else { toml::from_str(&text)? };
        let decisions = if json { Decisions::take(&mut all)? } else { None };
        // As it is, for errors that tell the line, and for numbers that JSON does not have.
        let plain: Option<QuantOptions> = match &decisions {
            Some(_) => refuse_other_scheme(&all, preset).map(|()| None)?,
            None if json => Some(serde_json::from_str(&text)?),
            None => Some(toml::from_str(&text)?),
        };
        let exceptions = all.get("override").and_then(|o| o.as_array()).cloned().unwrap_or_default();
        let mut options = match plain.filter(|p| preset.or(p.scheme).is_none()) {
            Some(plain) => plain,
            None => QuantOptions::from_json(all, preset)?,
        };
        options.overrides.extend(decisions.iter().flat_map(Decisions::overrides));
        Ok((options, exceptions))
    };
    read().map_err(|e| {
        let problem = e.to_string();
        let (path, problem) = (path.display(), problem.trim_end());
        let help = if problem.contains("\nhelp: ") {
            ""
        } else {
            "\nhelp: `narrowbit quantize … --show-config` prints every setting"
        };
        anyhow!("{path}: {problem}{help}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_what_says_how_to_quantize() {
        let line = "calibrate m.onnx --data d.npz --scheme vitis-dpu -o r.json --shiftmax -w 4 -a8 --equalize=no --exclude /a/*b --symmetric --threads 2";
        let words = line.split(' ').map(str::to_owned);
        assert_eq!(
            repeated(words),
            " --scheme vitis-dpu --shiftmax -w 4 -a8 --equalize=no --exclude '/a/*b' --symmetric"
        );
        assert_eq!(repeated(std::iter::once("--scheme".to_owned())), " --scheme");
    }
}
