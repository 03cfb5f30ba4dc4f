//! Data movement: permutation, strided copies, gathers and scatters, padding, resizing.

mod copy;
mod interleave;
mod join;
mod mix;
mod pad;
mod permute;
mod resample;
mod resize;
mod scatter;
pub(crate) mod turn;

pub use copy::floats_of;
pub use interleave::{Interleave, interleave, pick_interleaved};
pub use join::{concat, split};
pub use mix::{Tap, mix_pixels};
pub use pad::{Padding, Places, pad, pick};
pub use permute::{Element, copy_strided, gather_rows, permute};
pub use resample::{Resample, Sample, Taps, resample};
pub use resize::resize_nearest;
pub use scatter::{Combine, combine_rows, overwrite_rows};

#[cfg(test)]
mod tests;
