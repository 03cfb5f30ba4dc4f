//! The table: what each target does with each feature, and where that is known from.
//!
//! ONNX Runtime and OpenVINO are measured: `crates/cli/tests/it/targets.rs` writes a file for each row and runs it in both
//! where they are installed, so that a row that no longer holds is a test that fails. TensorRT needs an NVIDIA GPU; its
//! column is what its documentation says.

use super::{Change, Feature, Target, Verdict};
use crate::approach::BlockType::{
    Fp4, Fp8E4m3 as BlockFp8, Fp8E5m2 as BlockE5m2, Int2, Int4, Int8 as BlockInt8, Mxfp4, Mxfp8E4m3, Mxfp8E5m2, Mxint8,
    Nf4, Uint2, Uint4, Uint8 as BlockUint8,
};
use crate::scheme::NumberFormat as N;
use Feature::{Activations, Blocks, NBits, Weights};
use Verdict::{Adapt, Note, Refuse, Runs, Slow};

/// A target, as it is known.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    /// The target.
    pub target: Target,
    /// Name and version.
    pub name: &'static str,
    /// The last operator set that it reads, if it minds.
    pub opset: Option<i64>,
    /// Where the column is from.
    pub source: &'static str,
}

/// The targets with limits.
pub const PROFILES: [Profile; 3] = [
    Profile {
        target: Target::Onnxruntime,
        name: "ONNX Runtime 1.31.1",
        opset: Some(26),
        source: "measured on its CPU execution provider with its default session",
    },
    Profile {
        target: Target::Openvino,
        name: "OpenVINO 2026.4.1",
        opset: None,
        source: "measured on its CPU plugin in float32",
    },
    Profile {
        target: Target::Tensorrt,
        name: "TensorRT 10.15",
        opset: Some(24),
        source: "docs/operators.md of onnx-tensorrt, and NVIDIA's guide to quantized types",
    },
];

/// One feature, in the order of [`Target::LIMITED`].
#[derive(Debug, Clone, Copy)]
pub struct Row(pub Feature, pub [Verdict; 3]);

const ALL: [Verdict; 3] = [Runs; 3];

const FLOAT_16: &str = "computes products of 16-bit codes in float32";
const FP8_ROUNDS: &str =
    "computes products of fp8 in float32 and rounds the codes in another way: outputs differ by a step here and there";
const NO_FP8_MATMUL: &str = "makes QLinearMatMul of them, which has no kernel, when it optimizes";
const NO_FP8_CONV: &str = "makes QLinearConv and MaxPool of them, which have no kernel, when it optimizes";
const FP8_HELP: &str = "quantize other operators only (--op-types Gemm), or leave --target away and set the session option session.disable_quant_qdq to 1";
const TRT_TYPES: &str = "knows int8, int4, fp8 e4m3 and fp4 only";
const TRT_ZERO: &str = "has no zero points";
const TRT_HELP: &str = "use int8 (the default with this target) or fp8_e4m3";
const TRT_BLOCKS: &str = "has blocks of int4 only";
const TRT_BLOCK_HELP: &str = "use --weights int4";
const NO_MS: &str = "does not have ONNX Runtime's own operators";
const QDQ_HELP: &str = "leave --format away: qdq is read everywhere";
const NO_QLINEAR: &str = "does not import QLinearConv and the like";
const DYNAMIC_HELP: &str = "use --approach static";
const ORT_ROUNDED: &str =
    "rounds the activations of a dequantized product of blocks to 8 bits by default, and those of MatMulNBits not";
const ORT_TWO_BITS: &str = "gives wrong results for 2-bit blocks behind DequantizeLinear when it optimizes";
const ORT_FP4: &str = "has no DequantizeLinear for them";
const ORT_FP4_HELP: &str = "use --weights nf4, int4 or mxfp8_e4m3";
const ORT_CONV: &str = "computes a convolution on integers only between QuantizeLinear nodes";
const ORT_CHANNELS: &str = "computes convolutions of such activations on floats";
const TRT_CHANNELS: &str = "quantizes activations by tensor";
const OV_JOINED: &str = "joins such codes with constants wrongly when it optimizes";
const OV_JOINED_INT8: &str = "computes convolutions of int8 codes behind a Concat wrongly";
const OV_TRANSPOSED: &str = "computes transposed convolutions wrongly whose weights have zero points";
const OV_LSTM: &str = "computes DynamicQuantizeLSTM on floats, without the roundings that it is defined by";
const OV_RAGGED: &str = "takes only blocks that divide the depth";
const OV_RAGGED_HELP: &str = "use --weights nf4 or int4, or a --block that divides it";
const OV_TWO_BITS: &str = "does not read 2-bit types";
const OV_ROUNDED: &str =
    "rounds the activations of products of blocks to 8 bits unless DYNAMIC_QUANTIZATION_GROUP_SIZE is set to 0";

const fn adapt_trt_activations(change: Change) -> [Verdict; 3] {
    [Runs, Runs, Adapt(change, TRT_ZERO)]
}

/// The table.
pub const ROWS: &[Row] = &[
    Row(Activations(N::Uint8), [Runs, Runs, Adapt(Change::SymmetricInt8Activations, TRT_TYPES)]),
    Row(Activations(N::Int8), ALL),
    Row(Activations(N::Int16), [Note(FLOAT_16), Note(FLOAT_16), Refuse(TRT_TYPES, TRT_HELP)]),
    Row(Activations(N::Uint16), [Note(FLOAT_16), Note(FLOAT_16), Refuse(TRT_TYPES, TRT_HELP)]),
    Row(Activations(N::Fp8E4m3), [Runs, Note(FP8_ROUNDS), Runs]),
    Row(Activations(N::Fp8E5m2), [Runs, Note(FP8_ROUNDS), Refuse(TRT_TYPES, TRT_HELP)]),
    Row(Feature::Fp8Conv, [Refuse(NO_FP8_CONV, FP8_HELP), Runs, Runs]),
    Row(Feature::Fp8MatMul, [Refuse(NO_FP8_MATMUL, FP8_HELP), Runs, Runs]),
    Row(Feature::ActivationZeroPoints, adapt_trt_activations(Change::SymmetricActivations)),
    Row(Weights(N::Int8), ALL),
    Row(Weights(N::Uint8), [Runs, Runs, Adapt(Change::SymmetricInt8Weights, TRT_TYPES)]),
    Row(Weights(N::Int16), [Note(FLOAT_16), Note(FLOAT_16), Refuse(TRT_TYPES, TRT_HELP)]),
    Row(Weights(N::Uint16), [Note(FLOAT_16), Note(FLOAT_16), Refuse(TRT_TYPES, TRT_HELP)]),
    Row(Weights(N::Int4), [Runs, Runs, Refuse(TRT_BLOCKS, "use --approach weight-only")]),
    Row(Weights(N::Uint4), [Runs, Runs, Refuse(TRT_BLOCKS, "use --approach weight-only --weights int4")]),
    Row(Weights(N::Fp8E4m3), ALL),
    Row(Weights(N::Fp8E5m2), [Runs, Runs, Refuse(TRT_TYPES, TRT_HELP)]),
    Row(Feature::WeightZeroPoints, adapt_trt_activations(Change::SymmetricWeights)),
    Row(Feature::Int32Biases, [Runs, Runs, Adapt(Change::FloatBiases, "does not dequantize int32")]),
    Row(Feature::JoinedCodes, [Runs, Adapt(Change::FloatOutputs, OV_JOINED), Runs]),
    Row(Feature::JoinedInt8, [Runs, Adapt(Change::Uint8Activations, OV_JOINED_INT8), Runs]),
    Row(Feature::JoinedPositions, [Runs, Refuse(OV_JOINED_INT8, "use another --scheme, or leave --target away"), Runs]),
    Row(Feature::TransposedZeroPoints, [Runs, Adapt(Change::SymmetricInt8Weights, OV_TRANSPOSED), Runs]),
    Row(Feature::FloatOutputs, [Slow(Change::IntegerOutputs, ORT_CONV), Runs, Runs]),
    Row(
        Feature::ChannelActivations,
        [Slow(Change::TensorActivations, ORT_CHANNELS), Runs, Adapt(Change::TensorActivations, TRT_CHANNELS)],
    ),
    Row(Feature::Tables, [Runs, Runs, Adapt(Change::FloatTables, "does not gather int8")]),
    Row(Feature::QOperators, [Runs, Refuse(NO_QLINEAR, QDQ_HELP), Refuse(NO_QLINEAR, QDQ_HELP)]),
    Row(
        Feature::DynamicTensor,
        [Runs, Runs, Refuse("has no DynamicQuantizeLinear and no MatMulInteger", DYNAMIC_HELP)],
    ),
    Row(
        Feature::DynamicToken,
        [
            Runs,
            Adapt(Change::DynamicTensor, "does not import QuantizeLinear by blocks"),
            Refuse("has no DynamicQuantizeLinear and no MatMulInteger", DYNAMIC_HELP),
        ],
    ),
    Row(Feature::DynamicLstm, [Runs, Adapt(Change::FloatLstm, OV_LSTM), Adapt(Change::FloatLstm, NO_MS)]),
    Row(Blocks(BlockInt8), blocks(Refuse(TRT_BLOCKS, TRT_BLOCK_HELP))),
    Row(Blocks(BlockUint8), blocks(Refuse(TRT_BLOCKS, TRT_BLOCK_HELP))),
    Row(Blocks(Int4), blocks(Runs)),
    Row(Blocks(Uint4), blocks(Adapt(Change::Int4, TRT_ZERO))),
    Row(Blocks(Int2), TWO_BITS),
    Row(Blocks(Uint2), TWO_BITS),
    Row(Blocks(BlockFp8), [Runs, Runs, Refuse(TRT_BLOCKS, TRT_BLOCK_HELP)]),
    Row(Blocks(BlockE5m2), [Runs, Runs, Refuse(TRT_BLOCKS, TRT_BLOCK_HELP)]),
    Row(Blocks(Fp4), [Refuse(ORT_FP4, ORT_FP4_HELP), Runs, Refuse(TRT_BLOCKS, TRT_BLOCK_HELP)]),
    Row(Blocks(Mxfp8E4m3), [Runs, Runs, Refuse(TRT_BLOCKS, TRT_BLOCK_HELP)]),
    Row(Blocks(Mxfp8E5m2), [Runs, Runs, Refuse(TRT_BLOCKS, TRT_BLOCK_HELP)]),
    Row(Blocks(Mxfp4), [Refuse(ORT_FP4, ORT_FP4_HELP), Runs, Refuse(TRT_BLOCKS, TRT_BLOCK_HELP)]),
    Row(Blocks(Mxint8), blocks(Refuse(TRT_BLOCKS, TRT_BLOCK_HELP))),
    Row(
        Feature::PowerScales,
        [Adapt(Change::FloatScales, "has no DequantizeLinear for them"), Runs, Refuse(TRT_BLOCKS, TRT_BLOCK_HELP)],
    ),
    Row(Blocks(Nf4), [Runs, Runs, Refuse(TRT_BLOCKS, TRT_BLOCK_HELP)]),
    Row(Feature::ShortBlocks, [Runs, Runs, Adapt(Change::Block128, "takes blocks of 64 and 128 for int4")]),
    Row(Feature::RaggedCodes, [Runs, Adapt(Change::NBits, OV_RAGGED), Runs]),
    Row(Feature::RaggedFloats, [Runs, Refuse(OV_RAGGED, OV_RAGGED_HELP), Runs]),
    Row(NBits(BlockInt8), N_BITS),
    Row(NBits(BlockUint8), N_BITS),
    Row(NBits(Mxint8), N_BITS),
    Row(NBits(Int4), N_BITS),
    Row(NBits(Uint4), N_BITS),
    Row(NBits(Int2), N_BITS),
    Row(NBits(Uint2), N_BITS),
    Row(Feature::HalfWeights, ALL),
    Row(Feature::Float16, ALL),
    Row(Feature::Bfloat16, [Adapt(Change::Float32Operators, "has no operators of bfloat16 on CPUs"), Runs, Runs]),
];

const fn blocks(tensorrt: Verdict) -> [Verdict; 3] {
    [Adapt(Change::NBits, ORT_ROUNDED), Note(OV_ROUNDED), tensorrt]
}

const TWO_BITS: [Verdict; 3] =
    [Adapt(Change::NBits, ORT_TWO_BITS), Adapt(Change::NBits, OV_TWO_BITS), Refuse(TRT_BLOCKS, TRT_BLOCK_HELP)];
const N_BITS: [Verdict; 3] = [Runs, Note(OV_ROUNDED), Refuse(NO_MS, "leave --format away, and use --weights int4")];

/// What a target does with a feature. What the table does not name is not known to run.
pub(super) fn verdict(target: Target, feature: Feature) -> Verdict {
    let unknown = Refuse("has not been tried", "leave --target away, and try it");
    let Some(column) = Target::LIMITED.iter().position(|&t| t == target) else { return Runs };
    ROWS.iter().find(|r| r.0 == feature).map_or(unknown, |r| r.1[column])
}

/// The types of blocks that the table has rows for.
#[cfg(test)]
pub(super) const BLOCKS: [crate::approach::BlockType; 14] = [
    BlockInt8, BlockUint8, Int4, Uint4, Int2, Uint2, BlockFp8, BlockE5m2, Fp4, Nf4, Mxfp8E4m3, Mxfp8E5m2, Mxfp4, Mxint8,
];
