//! What a kernel refuses.

/// Why a kernel refused its arguments; nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice is shorter than the shape needs, or not of the exact length.
    #[error("{kernel}: {what} needs {need} elements but has {got}")]
    Length {
        /// The kernel.
        kernel: &'static str,
        /// The argument.
        what: &'static str,
        /// Elements that the shape needs.
        need: usize,
        /// Elements that were given.
        got: usize,
    },
    /// A parameter has a value that the kernel can't take.
    #[error("{kernel}: {what}")]
    Invalid {
        /// The kernel.
        kernel: &'static str,
        /// What is wrong and what would be right.
        what: &'static str,
    },
    /// The product of dimensions does not fit in memory.
    #[error("{kernel}: the dimensions multiply to more than the address space")]
    Overflow {
        /// The kernel.
        kernel: &'static str,
    },
}

pub(crate) type Result<T = ()> = std::result::Result<T, KernelError>;

/// Checks that `got` is exactly `need`.
pub(crate) fn exact(kernel: &'static str, what: &'static str, got: usize, need: usize) -> Result {
    if got == need { Ok(()) } else { Err(KernelError::Length { kernel, what, need, got }) }
}

/// Checks that `got` is at least `need`.
pub(crate) fn at_least(kernel: &'static str, what: &'static str, got: usize, need: usize) -> Result {
    if got >= need { Ok(()) } else { Err(KernelError::Length { kernel, what, need, got }) }
}

/// Checks a condition on the parameters.
pub(crate) fn require(kernel: &'static str, ok: bool, what: &'static str) -> Result {
    if ok { Ok(()) } else { Err(KernelError::Invalid { kernel, what }) }
}

/// The product of dimensions, refusing overflow (and anything over `isize::MAX / 8`,
/// so that byte offsets can't overflow either).
pub(crate) fn product(kernel: &'static str, dims: &[usize]) -> Result<usize> {
    product_of(kernel, dims.iter().copied())
}

/// As [`product`], of dimensions that lie nowhere as a slice.
pub(crate) fn product_of(kernel: &'static str, mut dims: impl Iterator<Item = usize>) -> Result<usize> {
    dims.try_fold(1usize, usize::checked_mul)
        .filter(|&total| total <= isize::MAX as usize / 8)
        .ok_or(KernelError::Overflow { kernel })
}

/// The length of a view: `1 + Σ (dim − 1) · stride`, or 0 when a dimension is 0.
pub(crate) fn span(kernel: &'static str, dims: &[(usize, usize)]) -> Result<usize> {
    span_of(kernel, dims.iter().copied())
}

/// As [`span`], of dimensions that lie nowhere as a slice.
pub(crate) fn span_of(kernel: &'static str, mut dims: impl Iterator<Item = (usize, usize)> + Clone) -> Result<usize> {
    if dims.clone().any(|(len, _)| len == 0) {
        return Ok(0);
    }
    dims.try_fold(1usize, |acc, (len, stride)| acc.checked_add((len - 1).checked_mul(stride)?))
        .filter(|&total| total <= isize::MAX as usize / 8)
        .ok_or(KernelError::Overflow { kernel })
}
