//! Products with weights of 2, 4 or 8 bits that share a scale by blocks along the depth (ONNX Runtime's
//! `MatMulNBits`, blocked DequantizeLinear): the codes stay packed in memory.
//!
//! `w[k][n] = (code − zero[k / block][n]) · scale[k / block][n]`. A few rows (text, one token at a time) are multiplied as the
//! codes are unpacked in registers: the product is as fast as memory delivers them. With more rows, a part of a
//! panel is unpacked into L1 for all rows ([`Rhs::Blocks`](crate::gemm::Rhs)).
//!
//! Codes of 2 and 4 bits are the index of a permutation, which gives their values as floats at once; fp4 is another table.

mod few;
mod ints;
mod pack;
mod round;
mod search;

pub use few::{SMALL, blocks_gemm};
pub use ints::{LONGEST, blocks_gemm_int8};
pub(crate) use pack::Unpack;
pub use pack::{BlockShape, Blocks, Values};
pub use search::{ScaleSearch, search_scales};

/// Columns of a panel.
pub(crate) const PANEL: usize = 64;

#[cfg(test)]
mod tests;
