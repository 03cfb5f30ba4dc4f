//! Calibration, the quantization plan, and the graph with explicit QuantizeLinear and
//! DequantizeLinear nodes.
#![forbid(unsafe_code)]

pub mod observe;
pub mod options;
pub mod plan;
pub mod qdq;
pub mod scheme;
