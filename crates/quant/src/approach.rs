//! The ways to make a model smaller or faster, and the settings that each has beyond those that all share.

use std::fmt;

use narrowbit_tensor::DType;
use serde::{Deserialize, Serialize};

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

/// Settings of [`Approach::Dynamic`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct DynamicOptions {
    /// What shares a scale of an activation.
    pub granularity: Granularity,
}

/// The codes of weights that are quantized by blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BlockType {
    /// −128 … 127 around 0.
    Int8,
    /// 0 … 255 with a zero point.
    Uint8,
    /// −8 … 7 around 0.
    #[default]
    Int4,
    /// 0 … 15 with a zero point.
    Uint4,
    /// −2 … 1 around 0.
    Int2,
    /// 0 … 3 with a zero point.
    Uint2,
    /// fp8 with 4 exponent and 3 mantissa bits, no infinity, maximum 448.
    #[serde(rename = "fp8_e4m3")]
    Fp8E4m3,
    /// Sixteen quantiles of the normal distribution (QLoRA, Dettmers et al. 2023).
    Nf4,
}

impl BlockType {
    /// The tensor element type of the codes; those of NF4 are places in a table.
    pub fn dtype(self) -> DType {
        match self {
            BlockType::Int8 => DType::I8,
            BlockType::Uint8 => DType::U8,
            BlockType::Int4 => DType::I4,
            BlockType::Uint4 | BlockType::Nf4 => DType::U4,
            BlockType::Int2 => DType::I2,
            BlockType::Uint2 => DType::U2,
            BlockType::Fp8E4m3 => DType::F8E4M3Fn,
        }
    }

    /// The least and the greatest code of the integer types.
    pub fn code_range(self) -> Option<(i32, i32)> {
        match self {
            BlockType::Fp8E4m3 | BlockType::Nf4 => None,
            _ => self.dtype().int_range().map(|(lo, hi)| (lo as i32, hi as i32)),
        }
    }

    /// Whether codes are unsigned, and each block has a zero point.
    pub fn has_zero_point(self) -> bool {
        matches!(self, BlockType::Uint8 | BlockType::Uint4 | BlockType::Uint2)
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BlockType::Int8 => "int8",
            BlockType::Uint8 => "uint8",
            BlockType::Int4 => "int4",
            BlockType::Uint4 => "uint4",
            BlockType::Int2 => "int2",
            BlockType::Uint2 => "uint2",
            BlockType::Fp8E4m3 => "fp8_e4m3",
            BlockType::Nf4 => "nf4",
        })
    }
}

/// How the scale of a block is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Algorithm {
    /// Round to nearest: the least scale at which nothing saturates.
    Rtn,
    /// The scale with the least squared error of the block, saturating where that pays.
    #[default]
    Mse,
    /// Half-quadratic quantization: the zero point that makes the error sparse (Badri and Shaji 2023).
    Hqq,
}

/// How weights by blocks are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BlockFormat {
    /// A blocked DequantizeLinear before the operator (ONNX opset 21; 25 for two bits).
    #[default]
    Qdq,
    /// ONNX Runtime's operators `com.microsoft.MatMulNBits` and `GatherBlockQuantized`.
    Matmulnbits,
}

/// Settings of [`Approach::WeightOnly`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct WeightOnlyOptions {
    /// The codes.
    #[serde(rename = "type")]
    pub codes: BlockType,
    /// Elements along the summed axis that share a scale: a power of two from 16 to 4096.
    pub block: usize,
    /// How scales are chosen.
    pub algorithm: Algorithm,
    /// How the weights are written.
    pub format: BlockFormat,
}

impl Default for WeightOnlyOptions {
    /// 5 bits per weight, which cost transformers less than a point.
    fn default() -> WeightOnlyOptions {
        WeightOnlyOptions {
            codes: BlockType::default(),
            block: 32,
            algorithm: Algorithm::default(),
            format: BlockFormat::default(),
        }
    }
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
    /// The operator set of the model is too old.
    #[error("the model has opset {0}, but this needs {1}\nhelp: `narrowbit convert` or the exporter can raise it")]
    Opset(i64, i64),
}

impl WeightOnlyOptions {
    /// Checks that these settings can be written.
    ///
    /// # Errors
    /// When they contradict each other.
    pub fn check(&self) -> Result<(), ApproachError> {
        if !self.block.is_power_of_two() || !(16..=4096).contains(&self.block) {
            return Err(ApproachError::Block(self.block));
        }
        let integers = self.codes.code_range().is_some();
        if self.format == BlockFormat::Matmulnbits && !integers {
            return Err(ApproachError::Codes(self.codes));
        }
        if self.algorithm == Algorithm::Hqq && !integers {
            return Err(ApproachError::NoZeroPoint(self.codes));
        }
        Ok(())
    }

    /// The first operator set that can hold these weights.
    pub fn opset(&self) -> i64 {
        match (self.format, self.codes) {
            (BlockFormat::Qdq, BlockType::Int2 | BlockType::Uint2) => 25,
            (BlockFormat::Qdq, _) => 21,
            (BlockFormat::Matmulnbits, _) => 13,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_blocks_and_codes_that_no_file_can_hold() {
        let of = |codes, block, algorithm, format| WeightOnlyOptions { codes, block, algorithm, format }.check();
        assert_eq!(of(BlockType::Int4, 32, Algorithm::Hqq, BlockFormat::Matmulnbits), Ok(()));
        assert_eq!(of(BlockType::Int4, 24, Algorithm::Rtn, BlockFormat::Qdq), Err(ApproachError::Block(24)));
        assert_eq!(of(BlockType::Int4, 8, Algorithm::Rtn, BlockFormat::Qdq), Err(ApproachError::Block(8)));
        let fp8 = of(BlockType::Fp8E4m3, 32, Algorithm::Rtn, BlockFormat::Matmulnbits);
        assert_eq!(fp8, Err(ApproachError::Codes(BlockType::Fp8E4m3)));
        let nf4 = of(BlockType::Nf4, 32, Algorithm::Hqq, BlockFormat::Qdq);
        assert_eq!(nf4, Err(ApproachError::NoZeroPoint(BlockType::Nf4)));
    }

    #[test]
    fn knows_the_codes_and_the_operator_set_of_each_type() {
        assert_eq!(BlockType::Int2.code_range(), Some((-2, 1)));
        assert_eq!(BlockType::Uint4.code_range(), Some((0, 15)));
        assert_eq!(BlockType::Nf4.code_range(), None);
        let of = |codes| WeightOnlyOptions { codes, ..WeightOnlyOptions::default() }.opset();
        assert_eq!((of(BlockType::Int4), of(BlockType::Uint2)), (21, 25));
    }
}
