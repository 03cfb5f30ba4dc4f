//! Data movement: permutation, strided copies, gathers, resizing.

mod copy;
mod permute;
mod resample;
mod resize;

pub use copy::floats_of;
pub use permute::{Element, copy_strided, gather_rows, permute};
pub use resample::{Resample, Sample, Taps, resample};
pub use resize::resize_nearest;
