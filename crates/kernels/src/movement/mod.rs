//! Data movement: permutation, strided copies, gathers, resizing.

mod permute;
mod resize;

pub use permute::{Element, copy_strided, gather_rows, permute};
pub use resize::{LinearTap, resize_linear, resize_nearest};
