//! Data movement: permutation, strided copies, gathers, resizing.

mod copy;
mod permute;
mod resize;

pub use copy::floats_of;
pub use permute::{Element, copy_strided, gather_rows, permute};
pub use resize::{LinearTap, resize_linear, resize_nearest};
