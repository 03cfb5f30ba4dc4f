//! Operators on 8-bit tensors beside the matrix products, mostly in NHWC.
//!
//! Everywhere a quantized value stands for `f32(q − zero point) · scale`, and a result is
//! `saturate(round_half_even(v · inverse scale) + zero point)`, the same bits on every tier.

mod binary;
mod block;
mod lookup;

pub use binary::{Broadcast, binary};
pub use block::Quant;
pub use lookup::{lookup, lookup_in_place};
