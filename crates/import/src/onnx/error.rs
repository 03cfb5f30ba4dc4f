use std::path::PathBuf;

use narrowbit_ir::NodeError;

use super::model::{NEWEST_OPSET, OLDEST_OPSET};

/// Why a model file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The file, or its external data, could not be opened.
    #[error("{}: {source}\nhelp: check the path; external data must lie in the model's folder", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are no ONNX model.
    #[error(
        "{file}: not a readable ONNX file ({problem})\nhelp: check that the file is complete; Git LFS pointers and HTML pages look like this too"
    )]
    NotOnnx {
        /// The file.
        file: String,
        /// What the decoder said.
        problem: String,
    },
    /// The operator set is too old or too new.
    #[error(
        "{file}: opset {version} of ONNX is not supported; narrowbit reads {OLDEST_OPSET} to {NEWEST_OPSET}\nhelp: convert the model with onnx.version_converter, or export it again with another opset"
    )]
    Opset {
        /// The file.
        file: String,
        /// The version that the file asks for.
        version: i64,
    },
    /// A part of the model contradicts the ONNX specification or narrowbit's limits.
    #[error("{file}: {place}: {problem}\nhelp: {help}")]
    Invalid {
        /// The file.
        file: String,
        /// The node, tensor or value.
        place: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        help: String,
    },
    /// An operator refuses its attributes.
    #[error("{file}: {error}\nhelp: run onnx.checker on the file; the node does not follow its operator's definition")]
    Node {
        /// The file.
        file: String,
        /// The node and what its operator said.
        #[source]
        error: Box<NodeError>,
    },
}

pub(super) type Result<T, E = ImportError> = std::result::Result<T, E>;
