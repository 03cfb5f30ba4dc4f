//! The arguments that say what is quantized, and how.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use narrowbit_quant::observe::Method;
use narrowbit_quant::options::{Override, QuantOptions};
use narrowbit_quant::scheme::{NumberFormat, Preset};

use super::preset::{ActivationArg, PresetArgs};

/// A type of weights.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum WeightArg {
    /// −128 … 127
    Int8,
    /// 0 … 255
    Uint8,
    /// −8 … 7
    Int4,
    /// 0 … 15
    Uint4,
    /// −32768 … 32767
    Int16,
    /// 8-bit float up to 448
    #[value(name = "fp8_e4m3")]
    Fp8E4m3,
    /// 8-bit float up to 57344
    #[value(name = "fp8_e5m2")]
    Fp8E5m2,
}

impl From<WeightArg> for NumberFormat {
    fn from(w: WeightArg) -> NumberFormat {
        match w {
            WeightArg::Int8 => NumberFormat::Int8,
            WeightArg::Uint8 => NumberFormat::Uint8,
            WeightArg::Int4 => NumberFormat::Int4,
            WeightArg::Uint4 => NumberFormat::Uint4,
            WeightArg::Int16 => NumberFormat::Int16,
            WeightArg::Fp8E4m3 => NumberFormat::Fp8E4m3,
            WeightArg::Fp8E5m2 => NumberFormat::Fp8E5m2,
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
    /// fp8: values spread as the format's own are
    Distribution,
    /// Powers of two: the least squared error of each batch
    Diffs,
    /// The moving average of each sample's greatest magnitude, momentum 0.9
    MovingPeak,
}

/// What is quantized, and how.
#[derive(Debug, Clone, Args)]
pub struct SchemeArgs {
    /// Settings from a TOML or JSON file (see --show-config); flags take precedence
    #[arg(long, value_name = "FILE", help_heading = "Quantization")]
    config: Option<PathBuf>,
    #[command(flatten)]
    preset: PresetArgs,
    /// The type of activations [default: uint8]
    #[arg(long, value_enum, value_name = "TYPE", help_heading = "Quantization")]
    activations: Option<ActivationArg>,
    /// The type of weights [default: int8]
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
    /// Flags over the file over the preset over the defaults.
    pub fn resolve(&self) -> Result<QuantOptions> {
        let mut o = match &self.config {
            Some(path) => read_config(path, self.preset.preset())?,
            None => self.preset.preset().map(Preset::options).unwrap_or_default(),
        };
        if let Some(t) = self.activations {
            o.activations.format = t.into();
        }
        if let Some(t) = self.weights {
            o.weights.format = t.into();
        }
        self.preset.apply(&mut o);
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

fn read_config(path: &Path, preset: Option<Preset>) -> Result<QuantOptions> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    // Once as it is, for errors that tell the line, and once above what the preset says.
    let parsed = if json {
        let plain = serde_json::from_str::<QuantOptions>(&text).and_then(|_| serde_json::from_str(&text));
        plain.map_err(anyhow::Error::from)
    } else {
        let plain = toml::from_str::<QuantOptions>(&text).and_then(|_| toml::from_str(&text));
        plain.map_err(anyhow::Error::from)
    };
    let whole = parsed.and_then(|text| QuantOptions::from_json(text, preset).map_err(anyhow::Error::from));
    whole.map_err(|e| {
        let problem = e.to_string();
        let (path, problem) = (path.display(), problem.trim_end());
        anyhow!("{path}: {problem}\nhelp: `narrowbit quantize … --show-config` prints every setting")
    })
}
