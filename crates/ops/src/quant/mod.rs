//! Quantization operators of ONNX: QuantizeLinear, QLinearConv, MatMulInteger and the like.

crate::registry::operators! {}
