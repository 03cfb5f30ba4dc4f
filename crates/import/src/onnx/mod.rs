//! ONNX files: [`load`] and [`parse`] read them, [`save`] and [`to_bytes`] write them.
//!
//! Initializers are slices of the memory-mapped file, external data included, and are
//! never copied unless the file stores them in protobuf's typed fields. Values that a
//! subgraph takes from its surroundings become explicit inputs, see [`narrowbit_ir::Body`];
//! the operator registry learns their number from the integer attribute [`CAPTURES`].
//!
//! A file is hostile until it is checked: lengths, offsets, extents and nesting are
//! verified before memory is taken.

mod attr;
mod datum;
mod error;
mod graph;
mod inline;
mod model;
#[rustfmt::skip]
#[allow(unreachable_pub)]
pub(crate) mod proto;
mod scope;
mod source;
mod supported;
mod tensor;
mod types;
mod wire;
mod write;

#[cfg(test)]
mod round_trip;
#[cfg(test)]
mod tests;

pub use datum::{DatumKind, parse_datum, parse_tensor};
pub use error::ImportError;
pub use inline::inline_functions;
pub use model::{NEWEST_OPSET, OLDEST_OPSET, ReadOptions, external_files, load, load_with, parse, parse_with};
pub use supported::{MissingOperator, MissingOperators, check_supported};
pub use write::{ExportError, ExternalData, SaveOptions, Staged, ir_version_of, save, stage, to_bytes};

/// The attribute that tells an operator's constructor how many captured values its subgraphs have.
///
/// They are the last inputs of the node and, in the same order, of each subgraph.
pub const CAPTURES: &str = "__captures";

/// Where a node's `overload` (of the function that it calls) is kept among its extra attributes.
pub const OVERLOAD: &str = "__overload";

/// Where a node's device configurations are kept, encoded, among its extra attributes.
pub const DEVICES: &str = "__device_configurations";
