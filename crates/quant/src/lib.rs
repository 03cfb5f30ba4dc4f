//! Calibration, the quantization plan, and the graph with explicit QuantizeLinear and
//! DequantizeLinear nodes.
//!
//! The order of a job: [`quantize::layout`] says what to observe, a [`calibrate::Calibrator`] records it in
//! [`ranges::Ranges`], [`quantize::quantize`] chooses scales and rewrites the graph.
#![forbid(unsafe_code)]

pub mod approach;
pub mod calibrate;
pub mod check;
mod dynamic;
pub mod encodings;
pub mod equalize;
pub mod explain;
pub mod fill;
pub mod gptq;
mod half;
mod mean_shift;
pub mod mixture;
pub mod observe;
pub mod op_types;
pub mod options;
mod parallel;
pub mod plan;
pub mod qdq;
pub mod qoperator;
pub mod quantize;
pub mod ranges;
pub mod scheme;
mod select;
pub mod target;
mod weight_only;
