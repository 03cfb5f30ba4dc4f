use crate::DType;
use crate::memory::readable;

/// Why a tensor could not be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The data's length is not what dtype and shape ask for.
    #[error("a tensor of shape {shape:?} and type {dtype} takes {expected} {unit}, but {actual} were given")]
    Length {
        /// The element type.
        dtype: DType,
        /// The shape in elements.
        shape: Vec<usize>,
        /// The length that dtype and shape ask for.
        expected: usize,
        /// The length that was given.
        actual: usize,
        /// What is counted: "bytes" or "elements".
        unit: &'static str,
    },
    /// The number of elements overflows the address space.
    #[error("shape {0:?} has more elements than memory can address")]
    TooLarge(Vec<usize>),
    /// The tensor holds another type than the caller asked for.
    #[error("expected a tensor of {expected}, found {actual}")]
    Type {
        /// What the caller can use.
        expected: String,
        /// What the tensor holds.
        actual: DType,
    },
    /// Two shapes can't be broadcast together.
    #[error("shapes {0:?} and {1:?} can't be broadcast together")]
    Broadcast(Vec<usize>, Vec<usize>),
    /// An axis, or a place of it, is not there.
    #[error("shape {1:?} has no axis {0} of that length")]
    Axis(usize, Vec<usize>),
    /// The system has no such memory left.
    #[error(
        "{} more are needed, and there is not that much memory left\nhelp: {}",
        readable(*bytes as u64),
        "run smaller inputs or fewer samples at a time, on a machine or under a limit (ulimit -v) with more memory"
    )]
    Memory {
        /// The bytes that were asked for.
        bytes: usize,
    },
}
