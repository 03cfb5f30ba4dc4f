//! f32 matrix multiplication: packed panels, cache blocks, a fused epilogue, batches.
//!
//! `C = act(alpha · A · B + beta · C + bias + residual)`, row-major C. Each element of C
//! sums K in blocks whose size depends on K alone, so a result does not depend on the
//! number of threads.

mod drive;
mod image;
mod kernel;
mod operand;
mod pack;
mod reference;
mod table;

pub use drive::gemm;
pub(crate) use drive::gemm_raw;
pub use image::ImageColumns;
pub use operand::{Lhs, MatrixView, PackedA, PackedB, PackedHeads, Rhs};
pub use reference::gemm_reference;
pub use table::{GEMM_KERNELS, GemmKernel};

pub(crate) use pack::transpose as transpose_block;

use crate::activation::Activation;

/// What is added to the product before the activation.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub enum Bias<'a> {
    /// Nothing.
    #[default]
    None,
    /// One value per row of C (per output channel of a convolution).
    Row(&'a [f32]),
    /// One value per column of C (per output feature of a linear layer).
    Column(&'a [f32]),
}

/// One batch dimension: `len` products, and the step of each operand between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchDim {
    /// Products along this dimension.
    pub len: usize,
    /// Step of A: in elements of a view, in matrices of a [`PackedA`]; 0 broadcasts.
    pub a: usize,
    /// Step of B: in elements of a view or image, in matrices of a [`PackedB`]; 0 broadcasts.
    pub b: usize,
    /// Step of C (and of the residual), in elements; the results must not overlap.
    pub c: usize,
    /// Step of the bias, in elements.
    pub bias: usize,
}

/// A matrix product, without its output.
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a> {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// The left operand, m × k.
    pub a: Lhs<'a>,
    /// The right operand, k × n.
    pub b: Rhs<'a>,
    /// Step between rows of C, at least `n`.
    pub ldc: usize,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of the old C; with 0 the old C is not read.
    pub beta: f32,
    /// Added to each row or column.
    pub bias: Bias<'a>,
    /// Added to the result, laid out as C.
    pub residual: Option<&'a [f32]>,
    /// Applied last.
    pub activation: Activation,
    /// Batch dimensions, outermost first; none for a single product.
    pub batch: &'a [BatchDim],
}

impl<'a> Gemm<'a> {
    /// The plain product of an m × k and a k × n matrix into a dense C.
    pub fn new(m: usize, n: usize, k: usize, a: Lhs<'a>, b: Rhs<'a>) -> Gemm<'a> {
        Gemm {
            m,
            n,
            k,
            a,
            b,
            ldc: n,
            alpha: 1.0,
            beta: 0.0,
            bias: Bias::None,
            residual: None,
            activation: Activation::None,
            batch: &[],
        }
    }
}

#[cfg(test)]
mod tests;
