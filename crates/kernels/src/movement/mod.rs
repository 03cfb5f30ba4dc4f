//! Data movement: permutation, strided copies, gathers, padding, resizing.

mod copy;
mod join;
mod pad;
mod permute;
mod resample;
mod resize;

pub use copy::floats_of;
pub use join::{concat, split};
pub use pad::{Padding, pad};
pub use permute::{Element, copy_strided, gather_rows, permute};
pub use resample::{Resample, Sample, Taps, resample};
pub use resize::resize_nearest;

#[cfg(test)]
mod tests;
