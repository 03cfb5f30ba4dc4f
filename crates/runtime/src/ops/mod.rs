//! Operator → kernel: one builder per family, chosen once per plan. What has no fast kernel for its
//! types runs on the reference implementation, under the name `reference`.

mod attention;
mod blocks;
mod coded;
mod conv;
mod dynamic_lstm;
mod elementwise;
mod finish;
mod grid_sample;
mod group_attention;
mod images;
mod int_attention;
mod int_transpose;
mod integer;
mod integer_binary;
mod layout;
mod matmul;
mod movement;
mod norm;
mod pad;
mod phases;
mod pool;
mod qlinear;
mod quantize;
mod recurrent;
mod reduce;
mod reference;
mod resize;
mod rotary;
mod scatter;
mod stack;
mod table;

pub use layout::{LAYOUT_CHANGE, change_layout};
pub use table::lookup;

use narrowbit_ir::Node;

use crate::error::StepError;
use crate::fuse::Fusion;
use crate::kernel::{BuildCx, Built};

/// What a builder gives: nothing where it has no kernel for these types.
pub type Maybe = Result<Option<Built>, StepError>;

/// Whether the first output is the first input under another shape.
pub fn is_alias(node: &Node) -> bool {
    match node.op.name() {
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity" => true,
        "Dropout" => node.output(1).is_none() && node.input(2).is_none(),
        _ => false,
    }
}

/// The kernel of a node.
pub fn build(cx: &BuildCx) -> Result<Built, StepError> {
    Ok(match fast(cx)? {
        Some(built) => built,
        None => reference::build(cx),
    })
}

/// The kernel of a fusion, where there is one.
pub fn fused(cx: &BuildCx, f: &Fusion) -> Maybe {
    match cx.node.op.name() {
        _ if f.ints.is_some() => integer::build(cx, f),
        _ if f.attention.is_some() => attention::build(cx, f),
        "Conv" | "ConvTranspose" => conv::build(cx, f),
        "MatMul" | "Gemm" => matmul::build(cx, f),
        "MatMulNBits" => blocks::build(cx, f),
        _ => Ok(None),
    }
}

fn fast(cx: &BuildCx) -> Maybe {
    let alone = Fusion { output: cx.node.output(0), ..Fusion::default() };
    match cx.node.op.name() {
        "Conv" | "ConvTranspose" => conv::build(cx, &alone),
        "MatMul" | "Gemm" => matmul::build(cx, &alone),
        "MatMulNBits" => blocks::build(cx, &alone),
        "LayerNormalization"
        | "RMSNormalization"
        | "InstanceNormalization"
        | "GroupNormalization"
        | "BatchNormalization"
        | "Softmax"
        | "LogSoftmax" => norm::build(cx),
        "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" => pool::build(cx),
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceL2" | "ReduceSumSquare" => reduce::build(cx),
        "CumSum" => reduce::running(cx),
        "ArgMax" | "ArgMin" => reduce::places(cx),
        "ScatterElements" | "Scatter" | "ScatterND" => scatter::build(cx),
        "GatherND" => scatter::gather(cx),
        "Transpose" | "Concat" | "Slice" | "Split" | "Gather" | "Expand" | "Tile" | "Where" | "GatherElements"
        | "DepthToSpace" | "SpaceToDepth" => movement::build(cx),
        "LSTM" | "GRU" => recurrent::build(cx),
        "DynamicQuantizeLSTM" => dynamic_lstm::build(cx),
        "Pad" => pad::build(cx),
        "Resize" | "Upsample" => resize::build(cx),
        "GridSample" => grid_sample::build(cx),
        "RotaryEmbedding" => rotary::build(cx),
        "GroupQueryAttention" => group_attention::build(cx),
        "QuantizeLinear" | "DequantizeLinear" => quantize::build(cx),
        "DynamicQuantizeLinear" => quantize::dynamic(cx),
        "DynamicQuantizeRows" => quantize::dynamic_rows(cx),
        "QLinearAdd" | "QLinearMul" => Ok(qlinear::binary(cx)),
        "QLinearSoftmax" => Ok(qlinear::softmax(cx)),
        "QLinearGlobalAveragePool" => Ok(qlinear::global_average_pool(cx)),
        _ => elementwise::build(cx),
    }
}
