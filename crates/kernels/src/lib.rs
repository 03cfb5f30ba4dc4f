//! Vector kernels and the thread pool.
//!
//! A layer without graph knowledge: every kernel works on plain slices, takes an
//! [`Exec`] (an instruction-set tier and a pool), checks every length before it touches
//! memory, and gives the same bits for any number of threads and, unless it multiplies bfloat16,
//! on every tier.

#[cfg(test)]
mod everywhere;
#[cfg(test)]
mod testing;

mod activation;
pub mod attention;
pub mod blocks;
mod buffer;
pub mod calibrate;
pub mod codes;
pub mod conv;
pub mod dynamic;
pub mod elementwise;
mod error;
mod exec;
mod few;
pub mod gemm;
pub mod integer;
pub mod isa;
mod math;
pub mod movement;
mod pages;
pub mod panel;
pub mod peak;
pub mod pool;
pub mod pooling;
pub mod quantize;
pub mod recurrent;
pub mod reduce;
pub mod rotate;
mod simd;

pub use activation::Activation;
pub use buffer::{ALIGNMENT, Buffer, with_scratch_bytes};
pub use error::KernelError;
pub use exec::{Exec, RowsBody};
pub use few::Few;
pub use isa::{Isa, IsaError, Tier};
pub use pool::Pool;
