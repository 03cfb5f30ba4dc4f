//! The arguments that name a scheme, a number format or a part of one.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use narrowbit_quant::approach::{Approach, BlockType};
use narrowbit_quant::options::{FixedRanges, QuantOptions};
use narrowbit_quant::scheme::{Formula, NumberFormat, Preset, Statistic};

/// A type of activations.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ActivationArg {
    /// −128 … 127
    Int8,
    /// 0 … 255
    Uint8,
    /// −32768 … 32767
    Int16,
    /// 0 … 65535
    Uint16,
    /// 8-bit float up to 448
    #[value(name = "fp8_e4m3")]
    Fp8E4m3,
    /// 8-bit float up to 57344
    #[value(name = "fp8_e5m2")]
    Fp8E5m2,
}

impl From<ActivationArg> for NumberFormat {
    fn from(a: ActivationArg) -> NumberFormat {
        match a {
            ActivationArg::Int8 => NumberFormat::Int8,
            ActivationArg::Uint8 => NumberFormat::Uint8,
            ActivationArg::Int16 => NumberFormat::Int16,
            ActivationArg::Uint16 => NumberFormat::Uint16,
            ActivationArg::Fp8E4m3 => NumberFormat::Fp8E4m3,
            ActivationArg::Fp8E5m2 => NumberFormat::Fp8E5m2,
        }
    }
}

/// A type of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightArg {
    /// −128 … 127
    Int8,
    /// 0 … 255
    Uint8,
    /// −8 … 7
    Int4,
    /// 0 … 15 with a zero point
    Uint4,
    /// −2 … 1, weight-only
    Int2,
    /// 0 … 3 with a zero point, weight-only
    Uint2,
    /// −32768 … 32767, static
    Int16,
    /// 8-bit float up to 448
    #[value(name = "fp8_e4m3")]
    Fp8E4m3,
    /// 8-bit float up to 57344
    #[value(name = "fp8_e5m2")]
    Fp8E5m2,
    /// 4-bit float up to 6, weight-only
    Fp4,
    /// OCP Microscaling: 32 fp8_e4m3 and a power of two, weight-only
    #[value(name = "mxfp8_e4m3")]
    Mxfp8E4m3,
    /// OCP Microscaling: 32 fp8_e5m2 and a power of two, weight-only
    #[value(name = "mxfp8_e5m2")]
    Mxfp8E5m2,
    /// OCP Microscaling: 32 fp4 and a power of two, weight-only
    Mxfp4,
    /// OCP Microscaling: 32 int8 and a power of two, weight-only
    Mxint8,
    /// Sixteen quantiles of the normal distribution, weight-only
    Nf4,
}

impl WeightArg {
    /// The type of the blocks of weight-only quantization.
    pub fn blocks(self) -> Result<BlockType> {
        Ok(match self {
            WeightArg::Int8 => BlockType::Int8,
            WeightArg::Uint8 => BlockType::Uint8,
            WeightArg::Int4 => BlockType::Int4,
            WeightArg::Uint4 => BlockType::Uint4,
            WeightArg::Int2 => BlockType::Int2,
            WeightArg::Uint2 => BlockType::Uint2,
            WeightArg::Fp8E4m3 => BlockType::Fp8E4m3,
            WeightArg::Fp8E5m2 => BlockType::Fp8E5m2,
            WeightArg::Fp4 => BlockType::Fp4,
            WeightArg::Nf4 => BlockType::Nf4,
            WeightArg::Mxfp8E4m3 => BlockType::Mxfp8E4m3,
            WeightArg::Mxfp8E5m2 => BlockType::Mxfp8E5m2,
            WeightArg::Mxfp4 => BlockType::Mxfp4,
            WeightArg::Mxint8 => BlockType::Mxint8,
            WeightArg::Int16 => {
                bail!("--approach weight-only has no blocks of that type\nhelp: int16 is for --approach static")
            }
        })
    }

    /// The type of the weights of products.
    pub fn format(self, approach: Approach) -> Result<NumberFormat> {
        if approach == Approach::Dynamic && !matches!(self, WeightArg::Int8 | WeightArg::Uint8) {
            bail!(
                "--approach dynamic has weights of int8 or uint8\nhelp: --approach weight-only stores narrower ones, --approach static has others"
            );
        }
        Ok(match self {
            WeightArg::Int8 => NumberFormat::Int8,
            WeightArg::Uint8 => NumberFormat::Uint8,
            WeightArg::Int4 => NumberFormat::Int4,
            WeightArg::Uint4 => NumberFormat::Uint4,
            WeightArg::Int16 => NumberFormat::Int16,
            WeightArg::Fp8E4m3 => NumberFormat::Fp8E4m3,
            WeightArg::Fp8E5m2 => NumberFormat::Fp8E5m2,
            WeightArg::Int2
            | WeightArg::Uint2
            | WeightArg::Fp4
            | WeightArg::Nf4
            | WeightArg::Mxfp8E4m3
            | WeightArg::Mxfp8E5m2
            | WeightArg::Mxfp4
            | WeightArg::Mxint8 => {
                bail!(
                    "products have no weights of that type\nhelp: --approach weight-only stores int2, uint2, fp4, nf4 and the mx types"
                )
            }
        })
    }
}

/// A tool to quantize as.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PresetArg {
    /// Intel Neural Compressor on TensorFlow: symmetric, uint8 where nothing is negative
    Tensorflow,
    /// PyTorch's MinMax observers: asymmetric uint8, weights of max/127.5
    Pytorch,
    /// Intel Extension for PyTorch: symmetric, uint8 where nothing is negative
    Ipex,
    /// MXNet: symmetric, uint8 where nothing is negative
    Mxnet,
    /// ONNX Runtime's quantize_static: asymmetric int8, one scale per weight
    Onnxruntime,
    /// Intel Neural Compressor on JAX: fp8 e4m3, softmax fixed to 0 … 1
    IncJaxFp8,
    /// Intel Neural Compressor on JAX: asymmetric int8
    IncJaxInt8,
    /// Vitis AI for a DPU: powers of two, searched per batch
    VitisDpu,
    /// QuantizeML: fixed point with 8-bit scales
    Quantizeml,
    /// TensorFlow Lite's converter: asymmetric int8
    Tflite,
    /// The printed formulas of Intel Neural Compressor's guide, mistakes included; for comparison only
    IncDoc,
}

impl From<PresetArg> for Preset {
    fn from(p: PresetArg) -> Preset {
        match p {
            PresetArg::Tensorflow => Preset::Tensorflow,
            PresetArg::Pytorch => Preset::Pytorch,
            PresetArg::Ipex => Preset::Ipex,
            PresetArg::Mxnet => Preset::Mxnet,
            PresetArg::Onnxruntime => Preset::Onnxruntime,
            PresetArg::IncJaxFp8 => Preset::IncJaxFp8,
            PresetArg::IncJaxInt8 => Preset::IncJaxInt8,
            PresetArg::VitisDpu => Preset::VitisDpu,
            PresetArg::Quantizeml => Preset::Quantizeml,
            PresetArg::Tflite => Preset::Tflite,
            PresetArg::IncDoc => Preset::IncDoc,
        }
    }
}

/// How one power of two comes from those of the batches.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum StatisticArg {
    /// The most frequent one
    Modal,
    /// The greatest scale: the coarsest step
    Max,
    /// The mean of positions, rounded
    Mean,
    /// The median of positions
    Median,
}

impl From<StatisticArg> for Statistic {
    fn from(s: StatisticArg) -> Statistic {
        match s {
            StatisticArg::Modal => Statistic::Modal,
            StatisticArg::Max => Statistic::Max,
            StatisticArg::Mean => Statistic::Mean,
            StatisticArg::Median => Statistic::Median,
        }
    }
}

/// Whose outputs have a fixed range.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FixedArg {
    /// None
    Off,
    /// Softmax: 0 … 1
    Softmax,
    /// Softmax, Sigmoid, HardSigmoid: 0 … 1; Tanh: −1 … 1
    All,
}

impl From<FixedArg> for FixedRanges {
    fn from(f: FixedArg) -> FixedRanges {
        match f {
            FixedArg::Off => FixedRanges::Off,
            FixedArg::Softmax => FixedRanges::Softmax,
            FixedArg::All => FixedRanges::All,
        }
    }
}

/// A named scheme, and what varies within one.
#[derive(Debug, Clone, Args)]
pub struct PresetArgs {
    /// Quantize as another tool does: its formulas, rounding, types and range method, which other flags override
    #[arg(long, value_enum, value_name = "NAME", help_heading = "Quantization")]
    scheme: Option<PresetArg>,
    /// Bits of the codes of weights, in a wider type
    #[arg(short = 'w', long, value_name = "BITS", help_heading = "Quantization")]
    weight_bits: Option<u8>,
    /// Bits of the codes of activations, in a wider type
    #[arg(short = 'a', long, value_name = "BITS", help_heading = "Quantization")]
    activation_bits: Option<u8>,
    /// Bits of the codes of the first product's weights [default: as the others']
    #[arg(short = 'i', long, value_name = "BITS", help_heading = "Quantization")]
    input_bits: Option<u8>,
    /// Bits of the register in which fixed-point hardware sums up and saturates: `check` and --integer-only heed it
    /// [default: 32]
    #[arg(short = 'b', long, value_name = "BITS", help_heading = "Quantization")]
    buffer_bits: Option<u8>,
    /// One position of the fraction per activation instead of one for each channel of images (--scheme quantizeml)
    #[arg(long, help_heading = "Quantization")]
    per_tensor_activations: bool,
    /// Put a softmax of powers of two (QuantizeML's Shiftmax) in the place of attention's Softmax, so that integers reach past it
    /// (--scheme quantizeml) [default: no]
    #[arg(long, value_enum, value_name = "YES|NO", num_args = 0..=1, require_equals = true,
          default_missing_value = "yes", help_heading = "Quantization")]
    shiftmax: Option<Switch>,
    /// Put a normalization by the mean magnitude (QuantizeML's LayerMadNormalization) in the place of LayerNormalization, so that
    /// integers reach past it (--scheme quantizeml): scales are multiplied by √(2/π), which fits normally distributed values; the
    /// model may need retuning, as QuantizeML's documentation says of its layer: look at the accuracy [default: no]
    #[arg(long, value_enum, value_name = "YES|NO", num_args = 0..=1, require_equals = true,
          default_missing_value = "yes", help_heading = "Quantization")]
    layer_mad: Option<Switch>,
    /// How one power of two comes from those of the batches [default: modal]
    #[arg(long, value_enum, value_name = "NAME", help_heading = "Quantization")]
    statistic: Option<StatisticArg>,
    /// Whose outputs have the range of their function, whatever calibration saw [default: off]
    #[arg(long, value_enum, value_name = "WHICH", help_heading = "Quantization")]
    fixed_ranges: Option<FixedArg>,
    /// Even out the channel ranges between convolutions before calibrating [default: no; vitis-dpu: yes]
    #[arg(long, value_enum, value_name = "YES|NO", num_args = 0..=1, require_equals = true,
          default_missing_value = "yes", help_heading = "Quantization")]
    equalize: Option<Switch>,
    /// Multiply what is rounded until it fills its codes, and divide the weights behind [default: no; quantizeml: yes]
    #[arg(long, value_enum, value_name = "YES|NO", num_args = 0..=1, require_equals = true,
          default_missing_value = "yes", help_heading = "Quantization")]
    cross_layer_equalization: Option<Switch>,
    /// Let biases take up the mean error of rounded weights [default: no; vitis-dpu, and fp8 without a scheme: yes]
    #[arg(long, value_enum, value_name = "YES|NO", num_args = 0..=1, require_equals = true,
          default_missing_value = "yes", help_heading = "Quantization")]
    bias_correction: Option<Switch>,
    /// Let biases of convolutions take up what rounding activations adds in the mean, measured on the first samples of
    /// --data: ranges and configurations alone don't tell it [default: yes; with --scheme: no]
    #[arg(long, value_enum, value_name = "YES|NO", num_args = 0..=1, require_equals = true,
          default_missing_value = "yes", help_heading = "Quantization")]
    correct_activations: Option<Switch>,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Do it
    Yes,
    /// Do not
    No,
}

impl PresetArgs {
    /// The preset, if one is named.
    pub fn preset(&self) -> Option<Preset> {
        self.scheme.map(Preset::from)
    }

    /// Whether any of them is given.
    pub fn is_given(&self) -> bool {
        let bits = self.weight_bits.or(self.activation_bits).or(self.input_bits).or(self.buffer_bits);
        self.scheme.is_some()
            || bits.is_some()
            || self.statistic.is_some()
            || self.fixed_ranges.is_some()
            || self.shiftmax.is_some()
            || self.layer_mad.is_some()
            || self.equalize.is_some()
            || self.cross_layer_equalization.is_some()
            || self.bias_correction.is_some()
            || self.correct_activations.is_some()
    }

    /// Refuses flags that would change nothing with the options that became of all: who gives them expects something.
    pub fn check_heeded(&self, o: &QuantOptions) -> Result<()> {
        let fixed = matches!(o.activations.formula, Formula::Quantizeml | Formula::Vitis);
        let idle = [
            (
                self.statistic.is_some() && o.position_bits().is_none(),
                "--statistic",
                "--scheme vitis-dpu with --method diffs",
            ),
            (
                self.per_tensor_activations && o.activations.formula != Formula::Quantizeml,
                "--per-tensor-activations",
                "--scheme quantizeml; --channel-activations=no is for the others",
            ),
            (
                self.cross_layer_equalization == Some(Switch::Yes) && !fixed,
                "--cross-layer-equalization",
                "--scheme quantizeml and vitis-dpu, whose steps are powers of two",
            ),
        ];
        match idle.into_iter().find(|i| i.0) {
            Some((_, flag, help)) => bail!("{flag} changes nothing here\nhelp: it is for {help}"),
            None => Ok(()),
        }
    }

    /// Puts the flags above the options.
    pub fn apply(&self, o: &mut QuantOptions) {
        if let Some(bits) = self.weight_bits {
            o.weights.format = with_room(o.weights.format, bits);
            o.weights.bits = Some(bits);
        }
        if let Some(bits) = self.activation_bits {
            o.activations.format = with_room(o.activations.format, bits);
            o.activations.bits = Some(bits);
        }
        o.buffer_bits = self.buffer_bits.or(o.buffer_bits);
        o.input_weight_bits = self.input_bits.or(o.input_weight_bits);
        o.per_tensor_activations |= self.per_tensor_activations;
        if let Some(s) = self.statistic {
            o.statistic = s.into();
        }
        if let Some(s) = self.shiftmax {
            o.shiftmax = s == Switch::Yes;
        }
        if let Some(s) = self.layer_mad {
            o.layer_mad = s == Switch::Yes;
        }
        if let Some(s) = self.equalize {
            o.equalize = s == Switch::Yes;
        }
        if let Some(s) = self.cross_layer_equalization {
            o.cross_layer_equalization = s == Switch::Yes;
            // Rates that a configuration has are those of the equalization.
            o.rates = if s == Switch::Yes { std::mem::take(&mut o.rates) } else { Default::default() };
        }
        if let Some(s) = self.bias_correction {
            o.bias_correction = s == Switch::Yes;
        }
        if let Some(s) = self.correct_activations {
            o.correct_activations = s == Switch::Yes;
        }
        if let Some(f) = self.fixed_ranges {
            o.fixed_ranges = f.into();
        }
    }
}

/// The type of 8 bits, or of 16 where codes need them.
fn with_room(format: NumberFormat, bits: u8) -> NumberFormat {
    match format {
        NumberFormat::Int8 if bits > 8 => NumberFormat::Int16,
        NumberFormat::Uint8 if bits > 8 => NumberFormat::Uint16,
        f => f,
    }
}
