//! Quantization operators of ONNX: QuantizeLinear, QLinearConv, MatMulInteger and the like.

pub mod conv_integer;
pub mod dequantize_linear;
pub mod dynamic_quantize_linear;
pub mod matmul_integer;
pub(crate) mod params;
pub(crate) mod product;
pub mod qlinear_conv;
pub mod qlinear_matmul;
pub mod quantize_linear;
pub mod window;

crate::registry::operators! {
    "ConvInteger" => conv_integer::build,
    "DequantizeLinear" => dequantize_linear::build,
    "DynamicQuantizeLinear" => dynamic_quantize_linear::build,
    "MatMulInteger" => matmul_integer::build,
    "QLinearConv" => qlinear_conv::build,
    "QLinearMatMul" => qlinear_matmul::build,
    "QuantizeLinear" => quantize_linear::build,
}
