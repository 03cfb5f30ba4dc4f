//! Integer-only execution of a quantized graph.
//!
//! [`lower`] walks a graph with QuantizeLinear and DequantizeLinear nodes and shows, node by node, that everything
//! between the first of the ones and the last of the others is integer arithmetic: products summed up in 32 bits, a
//! multiplication by a mantissa of few bits, a rounding shift. What it finds is a [`Proof`] to read and a [`Program`]
//! to run; the program's code knows no floating-point type (`tests/no_floats.rs` reads it). [`FixedModel`] puts the
//! program between what a model does before its first QuantizeLinear and after its last DequantizeLinear.
//!
//! The QDQ graph stays the single source of truth: the program gives its codes, bit for bit with
//! [`Rounding::HalfEven`]; with [`Rounding::HalfUp`], what fixed-point hardware does, codes differ where a value lies
//! exactly halfway between two. What the graph computes on floats of 24 bits, the program computes exactly: the rare value that
//! those 24 bits move onto or across a border differs by one code.
#![forbid(unsafe_code)]

mod dyadic;
mod lower;
mod model;
mod proof;
mod run;
mod value;

pub use dyadic::Dyadic;
pub use lower::{LowerError, Lowered, Options, Output, Shapes, lower};
pub use model::{FixedError, FixedModel};
pub use proof::{Proof, ProofRow};
pub use run::{Data, Program, Rounding, RunError};
pub use value::Unit;
