//! Weights by blocks: their codes, scales and algorithms.

use std::fmt;

use narrowbit_tensor::DType;
use serde::{Deserialize, Serialize};

use super::ApproachError;

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
    /// fp8 with 5 exponent and 2 mantissa bits, maximum 57344.
    #[serde(rename = "fp8_e5m2")]
    Fp8E5m2,
    /// fp4 with 2 exponent bits and 1 mantissa bit, maximum 6.
    Fp4,
    /// Sixteen quantiles of the normal distribution (QLoRA, Dettmers et al. 2023).
    Nf4,
    /// OCP Microscaling: fp8 e4m3, 32 of which share a power of two.
    #[serde(rename = "mxfp8_e4m3")]
    Mxfp8E4m3,
    /// OCP Microscaling: fp8 e5m2, 32 of which share a power of two.
    #[serde(rename = "mxfp8_e5m2")]
    Mxfp8E5m2,
    /// OCP Microscaling: fp4 e2m1, 32 of which share a power of two.
    Mxfp4,
    /// OCP Microscaling: −127/64 … 127/64 in steps of 1/64, 32 of which share a power of two.
    Mxint8,
}

/// The accuracy level of MatMulNBits at which a runtime may round rows to int8 (com.microsoft.MatMulNBits).
const INT8_LEVEL: i64 = 4;

/// Elements of a block of OCP Microscaling (OCP MX Specification 1.0, section 5.2).
pub const MX_BLOCK: usize = 32;

impl BlockType {
    /// The tensor element type of the codes; those of NF4 are places in a table.
    pub fn dtype(self) -> DType {
        match self {
            BlockType::Int8 | BlockType::Mxint8 => DType::I8,
            BlockType::Uint8 => DType::U8,
            BlockType::Int4 => DType::I4,
            BlockType::Uint4 | BlockType::Nf4 => DType::U4,
            BlockType::Int2 => DType::I2,
            BlockType::Uint2 => DType::U2,
            BlockType::Fp8E4m3 | BlockType::Mxfp8E4m3 => DType::F8E4M3Fn,
            BlockType::Fp8E5m2 | BlockType::Mxfp8E5m2 => DType::F8E5M2,
            BlockType::Fp4 | BlockType::Mxfp4 => DType::F4E2M1,
        }
    }

    /// The least and the greatest code of the integer types.
    pub fn code_range(self) -> Option<(i32, i32)> {
        match self {
            BlockType::Nf4 => None,
            _ => self.dtype().int_range().map(|(lo, hi)| (lo as i32, hi as i32)),
        }
    }

    /// The exponent of the greatest power of two among the elements of a Microscaling format (OCP MX Specification 1.0,
    /// section 5.3: `emax`); `None` for other types.
    pub fn mx_exponent(self) -> Option<i32> {
        Some(match self {
            BlockType::Mxfp8E4m3 => 8,
            BlockType::Mxfp8E5m2 => 15,
            BlockType::Mxfp4 => 2,
            BlockType::Mxint8 => 0,
            _ => return None,
        })
    }

    /// How scales are chosen unless the user says otherwise: those of a Microscaling format are its definition's.
    pub fn usual_algorithm(self) -> Algorithm {
        if self.mx_exponent().is_some() { Algorithm::Rtn } else { Algorithm::Mse }
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
            BlockType::Fp8E5m2 => "fp8_e5m2",
            BlockType::Fp4 => "fp4",
            BlockType::Nf4 => "nf4",
            BlockType::Mxfp8E4m3 => "mxfp8_e4m3",
            BlockType::Mxfp8E5m2 => "mxfp8_e5m2",
            BlockType::Mxfp4 => "mxfp4",
            BlockType::Mxint8 => "mxint8",
        })
    }
}

/// How the scale of a block is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Algorithm {
    /// Round to nearest: the least scale at which nothing saturates; of Microscaling formats the definition's,
    /// `2^(⌊log2 max|x|⌋ − emax)`, at which values above the greatest element saturate.
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

/// The type of the scales of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BlockScales {
    /// float32.
    F32,
    /// Powers of two in 8 bits (ONNX opset 24), for Microscaling formats.
    E8m0,
}

/// Settings of [`Approach::WeightOnly`](super::Approach::WeightOnly).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Given", rename_all = "kebab-case")]
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
    /// The type of the scales where it is not the usual one ([`WeightOnlyOptions::scales`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scales: Option<BlockScales>,
    /// The accuracy that MatMulNBits asks of a runtime, where it is not the usual one ([`WeightOnlyOptions::accuracy_level`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy_level: Option<i64>,
}

impl WeightOnlyOptions {
    /// Takes another type, and its algorithm where the one of before belongs to another kind of types.
    pub fn take_type(&mut self, codes: BlockType) {
        if self.codes.usual_algorithm() != codes.usual_algorithm() {
            self.algorithm = codes.usual_algorithm();
        }
        self.codes = codes;
    }
}

/// [`WeightOnlyOptions`] as a file gives them: what is left out depends on the type.
#[derive(Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct Given {
    #[serde(rename = "type")]
    codes: BlockType,
    block: usize,
    algorithm: Option<Algorithm>,
    format: BlockFormat,
    scales: Option<BlockScales>,
    accuracy_level: Option<i64>,
}

impl Default for Given {
    fn default() -> Given {
        let WeightOnlyOptions { codes, block, format, scales, accuracy_level, .. } = WeightOnlyOptions::default();
        Given { codes, block, algorithm: None, format, scales, accuracy_level }
    }
}

impl From<Given> for WeightOnlyOptions {
    fn from(g: Given) -> WeightOnlyOptions {
        WeightOnlyOptions {
            codes: g.codes,
            block: g.block,
            algorithm: g.algorithm.unwrap_or(g.codes.usual_algorithm()),
            format: g.format,
            scales: g.scales,
            accuracy_level: g.accuracy_level,
        }
    }
}

impl Default for WeightOnlyOptions {
    /// 5 bits per weight, which cost transformers less than a point.
    fn default() -> WeightOnlyOptions {
        WeightOnlyOptions {
            codes: BlockType::default(),
            block: 32,
            algorithm: Algorithm::default(),
            format: BlockFormat::default(),
            scales: None,
            accuracy_level: None,
        }
    }
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
        let mx = self.codes.mx_exponent().is_some();
        if self.algorithm == Algorithm::Hqq && (!integers || mx) {
            return Err(ApproachError::NoZeroPoint(self.codes));
        }
        if mx && self.block != MX_BLOCK {
            return Err(ApproachError::MxBlock(self.codes, self.block));
        }
        if self.scales == Some(BlockScales::E8m0) && (!mx || self.format == BlockFormat::Matmulnbits) {
            return Err(ApproachError::Scales);
        }
        if let Some(level) = self.accuracy_level {
            if !(0..=INT8_LEVEL).contains(&level) {
                return Err(ApproachError::AccuracyLevel(level));
            }
            if self.format != BlockFormat::Matmulnbits {
                return Err(ApproachError::NoAccuracyLevel);
            }
        }
        Ok(())
    }

    /// The accuracy that MatMulNBits asks of a runtime (its attribute `accuracy_level`): 4 allows it to round rows to int8 by
    /// blocks, 0 says nothing. Beside the error of codes of up to 4 bits that of 8-bit rows does not count; beside that of
    /// 8-bit codes it does.
    pub fn accuracy_level(&self) -> i64 {
        let usual = if self.codes.dtype().bits() <= 4 { INT8_LEVEL } else { 0 };
        self.accuracy_level.unwrap_or(usual)
    }

    /// The type of the scales. Those of fp4 Microscaling are a byte, because the runtimes that read fp4 read them; those of
    /// the other formats are floats unless asked for, because ONNX Runtime reads no others.
    pub fn scales(&self) -> BlockScales {
        let usual = match (self.codes, self.format) {
            (BlockType::Mxfp4, BlockFormat::Qdq) => BlockScales::E8m0,
            _ => BlockScales::F32,
        };
        self.scales.unwrap_or(usual)
    }

    /// The first operator set that can hold these weights.
    pub fn opset(&self) -> i64 {
        match (self.format, self.codes) {
            (BlockFormat::Qdq, BlockType::Int2 | BlockType::Uint2) => 25,
            (BlockFormat::Qdq, _) if self.scales() == BlockScales::E8m0 => 24,
            (BlockFormat::Qdq, BlockType::Fp4 | BlockType::Mxfp4) => 23,
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
        let of = |codes, block, algorithm, format| {
            WeightOnlyOptions { codes, block, algorithm, format, ..WeightOnlyOptions::default() }.check()
        };
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
        assert_eq!((of(BlockType::Fp4), of(BlockType::Mxfp8E4m3), of(BlockType::Mxfp4)), (23, 21, 24));
    }

    #[test]
    fn refuses_what_no_microscaling_format_is() {
        let of = |codes, block, scales| WeightOnlyOptions { codes, block, scales, ..WeightOnlyOptions::default() };
        let mx = of(BlockType::Mxint8, 32, Some(BlockScales::E8m0));
        assert_eq!(mx.check(), Ok(()));
        let long = of(BlockType::Mxfp4, 64, None).check();
        assert_eq!(long, Err(ApproachError::MxBlock(BlockType::Mxfp4, 64)));
        let hqq = WeightOnlyOptions { algorithm: Algorithm::Hqq, ..mx }.check();
        assert_eq!(hqq, Err(ApproachError::NoZeroPoint(BlockType::Mxint8)));
        let nbits = WeightOnlyOptions { format: BlockFormat::Matmulnbits, ..mx };
        assert_eq!(nbits.check(), Err(ApproachError::Scales));
        assert_eq!(WeightOnlyOptions { scales: None, ..nbits }.check(), Ok(()));
        assert_eq!(of(BlockType::Int8, 32, Some(BlockScales::E8m0)).check(), Err(ApproachError::Scales));
    }

    #[test]
    fn allows_rounded_rows_where_codes_are_coarser() {
        let of = |codes, format, accuracy_level| WeightOnlyOptions {
            codes,
            format,
            accuracy_level,
            ..WeightOnlyOptions::default()
        };
        let nbits = |codes, level| of(codes, BlockFormat::Matmulnbits, level);
        let usual = [BlockType::Int2, BlockType::Uint4, BlockType::Int8].map(|c| nbits(c, None).accuracy_level());
        assert_eq!(usual, [4, 4, 0]);
        assert_eq!(nbits(BlockType::Int4, Some(0)).accuracy_level(), 0);
        assert_eq!(nbits(BlockType::Int8, Some(4)).check(), Ok(()));
        assert_eq!(nbits(BlockType::Int8, Some(5)).check(), Err(ApproachError::AccuracyLevel(5)));
        let qdq = of(BlockType::Int4, BlockFormat::Qdq, Some(0)).check();
        assert_eq!(qdq, Err(ApproachError::NoAccuracyLevel));
    }

    #[test]
    fn takes_the_algorithm_that_belongs_to_the_type_from_a_file_that_names_none() {
        let read = |text: &str| serde_json::from_str::<WeightOnlyOptions>(text);
        assert_eq!(read("{}").unwrap(), WeightOnlyOptions::default());
        assert_eq!(read(r#"{"type":"mxfp4"}"#).unwrap().algorithm, Algorithm::Rtn);
        let all = r#"{"type":"mxfp8_e5m2","block":32,"algorithm":"mse","format":"qdq","scales":"e8m0"}"#;
        assert_eq!(serde_json::to_string(&read(all).unwrap()).unwrap(), all);
        assert!(read(r#"{"blocks":32}"#).is_err());
    }
}
