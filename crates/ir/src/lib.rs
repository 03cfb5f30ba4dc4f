//! The graph: nodes with operators, typed values, a constant pool.
//!
//! [`Graph`] is edited only through [`Patch`]; [`Graph::verify`] checks its
//! invariants; [`infer`](infer::infer) computes types and shapes with symbolic
//! dimensions; [`interp`] runs it exactly as ONNX defines each operator.
//! Operators implement [`Op`] and live in the crate above.
#![forbid(unsafe_code)]

mod attr;
mod datum;
mod dim;
mod fact;
mod graph;
mod ids;
pub mod infer;
pub mod interp;
mod model;
mod op;
mod part;
mod patch;
pub mod text;
mod verify;

pub use attr::{Attr, AttrMap};
pub use datum::Datum;
pub use dim::Dim;
pub use fact::{Fact, TensorType, ValueType};
pub use graph::{Def, Graph, Node, Use, Value, ValueNote};
pub use ids::{ConstId, NodeId, ValueId};
pub use model::{Function, Model};
pub use op::{
    Body, ChannelAxis, EvalCx, InferCx, NodeError, Op, OpError, OpSource, Opaque, QuantRole, check_limit, check_size,
};
pub use patch::{Patch, PatchError};
pub use verify::VerifyError;
