//! Helpers for tests: where fixtures lie, comparison with tolerances, the ONNX conformance runner.
//!
//! Unpublished: nothing that ships depends on it.
#![forbid(unsafe_code)]

pub mod compare;
pub mod conformance;
pub mod graphs;
pub mod hostile;
pub mod paths;
pub mod random;
