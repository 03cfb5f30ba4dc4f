//! The ways to make a model smaller or faster, and the settings that each has beyond those that all share.

mod blocks;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use blocks::{Algorithm, BlockFormat, BlockScales, BlockType, MX_BLOCK, WeightOnlyOptions};

/// How a model is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Approach {
    /// Integers with ranges that are found beforehand, from samples.
    #[default]
    Static,
    /// Integer products whose activations find their range at run time.
    Dynamic,
    /// Weights in few bits, by blocks; everything computes on floats.
    WeightOnly,
    /// IEEE binary16.
    Float16,
    /// bfloat16: the upper half of a float32.
    Bfloat16,
}

impl Approach {
    /// Whether ranges have to be calibrated.
    pub fn needs_ranges(self) -> bool {
        self == Approach::Static
    }

    /// Whether it is half precision, of which nodes of all kinds have a form.
    pub fn is_half(self) -> bool {
        matches!(self, Approach::Float16 | Approach::Bfloat16)
    }
}

impl fmt::Display for Approach {
    /// As in settings: `weight-only`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Approach::Static => "static",
            Approach::Dynamic => "dynamic",
            Approach::WeightOnly => "weight-only",
            Approach::Float16 => "float16",
            Approach::Bfloat16 => "bfloat16",
        })
    }
}

/// What shares a scale of an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// Each row along the last axis: a token of a sequence, a sample of a batch.
    #[default]
    Token,
    /// The whole tensor.
    Tensor,
}

/// What the two products of an attention, of activations both, compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionProducts {
    /// 8-bit integers: queries, keys and values with a scale each, the softmax by row.
    #[default]
    Int8,
    /// Floats.
    Float,
}

/// What the products of LSTMs compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LstmProducts {
    /// 8-bit integers, in ONNX Runtime's DynamicQuantizeLSTM: X has one range for all steps and samples of a run, and the hidden
    /// states of all samples have one anew in each step.
    #[default]
    Int8,
    /// Floats: weights are stored in 8 bits.
    Float,
}

/// Settings of [`Approach::Dynamic`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct DynamicOptions {
    /// What shares a scale of an activation.
    pub granularity: Granularity,
    /// What the products of attention compute on.
    pub attention: AttentionProducts,
    /// What the products of LSTMs compute on.
    pub lstm: LstmProducts,
}

/// What computes on half-precision weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// Operators in half precision, but for those that need more.
    Half,
    /// Operators in float32, behind a Cast of the weights.
    Float32,
}

/// Settings of [`Approach::Float16`] and [`Approach::Bfloat16`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct HalfOptions {
    /// Whether inputs and outputs become half-precision too.
    pub io: bool,
    /// What operators compute in: half for float16, float32 for bfloat16 unless set, for which ONNX Runtime has no
    /// operators on CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute: Option<Compute>,
}

impl HalfOptions {
    /// What operators compute in.
    pub fn compute(&self, approach: Approach) -> Compute {
        let usual = if approach == Approach::Bfloat16 { Compute::Float32 } else { Compute::Half };
        self.compute.unwrap_or(usual)
    }
}

/// An exception whose approach has no form of any node that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoForm {
    /// The exception, by its criteria.
    pub exception: String,
    /// How many nodes it is about.
    pub nodes: usize,
    /// Its approach.
    pub approach: Approach,
    /// The name of one of the nodes: a product, if there is one.
    pub node: String,
    /// That node's operator.
    pub op: String,
    /// Why that node can't have the approach.
    pub why: String,
    /// What could have it.
    pub help: &'static str,
}

impl fmt::Display for NoForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NoForm { exception, nodes, approach, node, op, why, help } = self;
        write!(
            f,
            "{exception}: none of the {nodes} nodes that it matches can be {approach}: \"{node}\" ({op}) {why}\nhelp: {help}"
        )
    }
}

/// Settings that contradict each other or can't be written as a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApproachError {
    /// A block of another length.
    #[error("a block has {0} elements\nhelp: the runtimes that read blocks know powers of two from 16 to 4096")]
    Block(usize),
    /// MatMulNBits has integers only.
    #[error(
        "MatMulNBits holds integers of 2, 4 and 8 bits, not {0}\nhelp: leave out --format matmulnbits, or choose int4"
    )]
    Codes(BlockType),
    /// HQQ moves a zero point, which these codes have not.
    #[error("hqq looks for a zero point, which {0} does not have\nhelp: use --algorithm mse")]
    NoZeroPoint(BlockType),
    /// A Microscaling format with a block of another length.
    #[error("a block of {0} has 32 elements, not {1}\nhelp: leave out --block")]
    MxBlock(BlockType, usize),
    /// Scales that are powers of two, of codes whose scales are not.
    #[error(
        "scales of e8m0 belong to blocks of Microscaling formats behind DequantizeLinear\nhelp: leave out --block-scales, or use --weights mxfp8_e4m3 and the like without --format matmulnbits"
    )]
    Scales,
    /// An accuracy level that the operator does not know.
    #[error(
        "MatMulNBits knows the accuracy levels 0 to 4, not {0}\nhelp: 4 allows 8-bit rows, 0 leaves it to the runtime"
    )]
    AccuracyLevel(i64),
    /// An accuracy level for DequantizeLinear.
    #[error(
        "a dequantized weight has no accuracy level: that is an attribute of MatMulNBits\nhelp: add --format matmulnbits"
    )]
    NoAccuracyLevel,
    /// DynamicQuantizeLinear has one format.
    #[error(
        "at run time activations become asymmetric uint8: DynamicQuantizeLinear has no other format\nhelp: leave out --activations, --symmetric and the like, or calibrate (--approach static)"
    )]
    Activations,
    /// Weights of a dynamic product with a type that it does not take.
    #[error(
        "ConvInteger of other runtimes takes one weight zero point\nhelp: leave out --asymmetric-weights, or add --per-tensor"
    )]
    ConvZeroPoints,
    /// An operator type that half precision is not for.
    #[error("op-types: \"{0}\" is not written in half precision\nhelp: these are: {1}")]
    HalfType(String, String),
    /// Half-precision inputs of operators that compute in float32.
    #[error("inputs and outputs stay float32 where operators compute in float32\nhelp: add --compute half")]
    HalfIo,
    /// An exception that contradicts itself.
    #[error(
        "{0} has both float = true and approach = \"{1}\"\nhelp: leave one of them out; a later exception counts before an earlier one"
    )]
    FloatApproach(String, Approach),
    /// Activations of a format that dynamic products do not have, in an exception.
    #[error(
        "{0} has approach = \"dynamic\" and a format of activations: DynamicQuantizeLinear has no other than asymmetric uint8\nhelp: leave \"activations\" out of it, or make it static"
    )]
    DynamicActivations(String),
    /// An exception whose approach has no form of any node that it is about.
    #[error("{0}")]
    NoForm(Box<NoForm>),
    /// Inputs and outputs in half precision, where only some nodes are.
    #[error(
        "inputs and outputs of a mixture stay float32: half precision is the approach of some nodes only\nhelp: leave out \"io\" of [half], or make a half precision the approach of the whole job"
    )]
    MixedIo,
    /// QLinear operators beside other forms.
    #[error(
        "--format qoperator is a form of static quantization alone, and this is a mixture of approaches\nhelp: leave it out: QuantizeLinear and DequantizeLinear hold every mixture"
    )]
    MixedForm,
    /// Fixed-point hardware runs nothing else.
    #[error(
        "--scheme {0} is for hardware that computes on fixed point alone, and an exception has approach = \"{1}\"\nhelp: make those nodes float (float = true), or take another scheme"
    )]
    MixedFixed(&'static str, Approach),
    /// The operator set of the model is too old.
    #[error("the model has opset {0}, but this needs {1}\nhelp: `narrowbit convert` or the exporter can raise it")]
    Opset(i64, i64),
}
