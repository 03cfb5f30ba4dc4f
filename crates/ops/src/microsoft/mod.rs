//! Operators of the `com.microsoft` domain that ONNX Runtime writes.

pub mod activation;
pub(crate) mod attend;
pub mod attention;
pub mod bias_add;
pub mod embed_layer_norm;
pub mod fused_conv;
pub mod fused_gemm;
pub mod fused_matmul;
pub mod gather_block_quantized;
pub mod gelu;
pub mod group_query_attention;
pub mod layer_norm;
pub mod matmul_integer_to_float;
pub mod matmul_nbits;
pub mod qgemm;
pub mod qlinear_binary;
pub mod qlinear_concat;
pub mod qlinear_pool;
pub mod qlinear_reduce_mean;
pub mod qlinear_softmax;
pub mod qlinear_unary;
pub mod qlinear_where;
pub mod renamed;
pub mod rotary_embedding;
pub mod skip_layer_norm;
pub(crate) mod support;

use crate::quant::{dequantize_linear, qlinear_conv, quantize_linear};

crate::registry::operators! { domain "com.microsoft":
    "Attention" => attention::build,
    "BiasAdd" => bias_add::build,
    "BiasGelu" => gelu::build_bias,
    "BiasSplitGelu" => gelu::build_split,
    "DequantizeLinear" => dequantize_linear::build_microsoft,
    "DynamicQuantizeLSTM" => crate::nn::recurrent::build_dynamic_lstm,
    "DynamicQuantizeMatMul" => matmul_integer_to_float::build_dynamic,
    "EmbedLayerNormalization" => embed_layer_norm::build,
    "FastGelu" => gelu::build_fast,
    "FusedConv" => fused_conv::build,
    "FusedGemm" => fused_gemm::build,
    "FusedMatMul" => fused_matmul::build,
    "GatherBlockQuantized" => gather_block_quantized::build,
    "Gelu" => gelu::build,
    "GroupQueryAttention" => group_query_attention::build,
    "LayerNormalization" => layer_norm::build,
    "MatMulIntegerToFloat" => matmul_integer_to_float::build,
    "MatMulNBits" => matmul_nbits::build,
    "MultiHeadAttention" => attention::build_multi_head,
    "NhwcMaxPool" => qlinear_pool::build_max,
    "QAttention" => attention::build_quantized,
    "QGemm" => qgemm::build,
    "QLinearAdd" => qlinear_binary::build_add,
    "QLinearAveragePool" => qlinear_pool::build_average,
    "QLinearConcat" => qlinear_concat::build,
    "QLinearConv" => qlinear_conv::build_microsoft,
    "QLinearGlobalAveragePool" => qlinear_pool::build_global,
    "QLinearLeakyRelu" => qlinear_unary::build_leaky_relu,
    "QLinearMul" => qlinear_binary::build_mul,
    "QLinearReduceMean" => qlinear_reduce_mean::build,
    "QLinearSigmoid" => qlinear_unary::build_sigmoid,
    "QLinearSoftmax" => qlinear_softmax::build,
    "QLinearWhere" => qlinear_where::build,
    "QuantizeLinear" => quantize_linear::build_microsoft,
    "QuickGelu" => gelu::build_quick,
    "RotaryEmbedding" => rotary_embedding::build,
    "SimplifiedLayerNormalization" => layer_norm::build_simplified,
    "SkipLayerNormalization" => skip_layer_norm::build,
    "SkipSimplifiedLayerNormalization" => skip_layer_norm::build_simplified,
    "Trilu" => renamed::build_trilu,
}

/// Operators that ONNX Runtime puts into ONNX's own domain though ONNX does not define them there.
pub(crate) mod onnx_domain {
    use super::layer_norm;

    crate::registry::operators! {
        "SimplifiedLayerNormalization" => layer_norm::build_simplified_onnx,
    }
}
