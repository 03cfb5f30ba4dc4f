//! Element types and tensors: the data that every other layer speaks of.
//!
//! A [`Tensor`] is an immutable, cheaply cloned array: a [`DType`], a shape in
//! elements, and bytes in row-major order, little-endian, as ONNX `raw_data`
//! lays them out (4-bit types two to a byte, low nibble first; 2-bit types four
//! to a byte). The bytes may be owned or a slice of a memory-mapped file.
#![deny(unsafe_code)]

mod axes;
mod dtype;
mod element;
mod error;
#[allow(unsafe_code)] // the one file with a memory map
pub mod mapped;
pub mod memory;
pub mod minifloat;
mod rng;
pub mod shape;
pub mod staged;
pub mod subbyte;
mod tensor;

pub use dtype::DType;
pub use element::Element;
pub use error::TensorError;
pub use half::{bf16, f16};
pub use rng::SplitMix64;
pub use tensor::Tensor;
