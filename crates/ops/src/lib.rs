//! The operators, one file each: attributes, shape inference, reference
//! evaluation, quantization role; and the registry that lists them all.
//!
//! An operator is a struct with its attributes that implements
//! [`narrowbit_ir::Op`], a constructor, and one line in the list of its group.
#![forbid(unsafe_code)]

pub mod control;
pub mod functions;
pub mod math;
pub mod microsoft;
pub mod nn;
pub mod quant;
pub mod support;
pub mod tensor;

mod registry;

pub use registry::{Entry, Registry, entries};
