use std::path::PathBuf;

use narrowbit_import::onnx::ImportError;
use narrowbit_ir::{NodeError, PatchError, VerifyError};

/// Why a model could not be sanitized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// A call of one of the model's functions could not be expanded.
    #[error(transparent)]
    Inline(Box<ImportError>),
    /// A node's inputs contradict its operator.
    #[error(transparent)]
    Infer(Box<NodeError>),
    /// A pass built an edit that does not fit the graph: a bug in narrowbit.
    #[error("pass {pass} built a wrong edit: {error}; please report this with the model")]
    Patch {
        /// The pass.
        pass: &'static str,
        /// What is wrong with the edit.
        #[source]
        error: PatchError,
    },
    /// A pass left a broken graph: a bug in narrowbit.
    #[error("pass {pass} broke the graph: {error}; please report this with the model")]
    Verify {
        /// The pass.
        pass: &'static str,
        /// What does not hold.
        #[source]
        error: VerifyError,
    },
    /// A dump could not be written.
    #[error("can't write {path}: {error}", path = .path.display())]
    Dump {
        /// The file or folder.
        path: PathBuf,
        /// What happened.
        #[source]
        error: std::io::Error,
    },
    /// No pass of that name exists.
    #[error("there is no pass \"{0}\"; the passes are: {1}")]
    UnknownPass(String, String),
}

impl From<ImportError> for PassError {
    fn from(e: ImportError) -> PassError {
        PassError::Inline(Box::new(e))
    }
}

impl From<NodeError> for PassError {
    fn from(e: NodeError) -> PassError {
        PassError::Infer(Box::new(e))
    }
}

impl From<Box<NodeError>> for PassError {
    fn from(e: Box<NodeError>) -> PassError {
        PassError::Infer(e)
    }
}
