//! Fixed point: exact integers of up to 32 bits, without a scale that is a float.
//!
//! Loops are plain, on numbers that wrap: each tier's compilation of them has that tier's vectors, and the same results.

mod apart;
mod rescale;

pub use apart::{ApartWeights, sums_apart};
pub use rescale::{Rescale, RescaleChannel, rescale};

mod sealed {
    /// Conversions that the types of [`super::FixedElement`] have.
    pub trait Sealed: Copy + Send + Sync + 'static {
        /// The value.
        fn wide(self) -> i32;
        /// The low bits.
        fn low(x: i32) -> Self;
    }
}
use sealed::Sealed;

/// An integer of up to 32 bits (u32 is none: its values are no i32).
pub trait FixedElement: Sealed {}

macro_rules! element {
    ($($type:ty)*) => {$(
        impl Sealed for $type {
            #[inline(always)]
            fn wide(self) -> i32 {
                self as i32
            }
            #[inline(always)]
            fn low(x: i32) -> Self {
                x as Self
            }
        }
        impl FixedElement for $type {}
    )*};
}
element!(i8 u8 i16 u16 i32);
