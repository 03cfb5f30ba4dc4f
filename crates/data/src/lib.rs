//! Calibration and test sets: opened from a path, read sample by sample in constant memory.
//!
//! ```no_run
//! use narrowbit_data::{DataOptions, Dataset, InputSpec};
//! use narrowbit_tensor::DType;
//!
//! # fn main() -> Result<(), narrowbit_data::DataError> {
//! let input = InputSpec::new("input", DType::F32, vec![None, Some(3), Some(32), Some(32)]);
//! let data = Dataset::open("calib.npz", &DataOptions::default())?.bind(&[input])?;
//! for batch in data.batches(8) {
//!     let batch = batch?; // batch.inputs: [("input", f32 [8, 3, 32, 32])], batch.labels
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Formats
//! * `.npz`: one array per input with samples along axis 0; arrays that are not named after
//!   inputs are concatenated along axis 0. `labels`, `masks` and the like are labels, unless an
//!   input has the name. Stored members are read in slices; deflated members are decompressed
//!   with a forward cursor (small ones are kept, shuffled large ones go through an anonymous
//!   temporary file).
//! * `.npy`: versions 1 to 3, both orders, both endiannesses.
//! * `.h5`: datasets at the root, or groups `calibration` and `test` with one sample per member,
//!   sorted by name; a member is a dataset or a group of datasets.
//! * `.safetensors`: one tensor per input.
//! * A folder of images (JPEG, PNG): flat, with class sub-folders sorted by name, or with a
//!   `labels.csv` of lines `file,label`, which then also gives the order. A folder of `.npy` or
//!   `.npz` files, one sample each, in the natural order of their names.
//! * One JPEG or PNG file: one sample.
//!
//! # Random numbers
//! Shuffling is a Fisher–Yates shuffle driven by [`SplitMix64`]; a seed gives the same order in
//! every version.
#![forbid(unsafe_code)]
// Whatever a user gives ends in an error, never in a panic.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

mod batches;
mod bind;
mod column;
mod convert;
mod dataset;
mod deflate;
mod error;
mod folder;
mod h5;
mod h5_write;
mod input;
mod labels;
mod npy;
mod npz;
mod picture;
mod pixels;
mod preprocess;
mod random;
mod resize;
mod rng;
mod source;
mod table;
mod tensors;
mod write;

use std::path::Path;
use std::sync::Arc;

pub use batches::{Batch, Batches, Fill};
pub use dataset::{DataOptions, Dataset, RunSize, Split};
pub use error::{DataError, Place};
pub use h5_write::H5Writer;
pub use input::{BatchAxis, InputSpec};
pub use labels::{LabelKind, Labels};
pub use narrowbit_tensor::SplitMix64;
pub use preprocess::{Channels, Crop, ImageLayout, Preprocess, Resize, ResizeFilter};
pub use write::{NpzWriter, write_npy, write_npz};

use column::{ArrayColumn, Columns};
use source::{Source, Span};

/// Bounds on what a file may make us allocate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of one read: a sample, a batch of an array, an HDF5 chunk. Default 1 GiB.
    pub read_bytes: usize,
    /// Deflated members up to this size are kept in memory; also the HDF5 chunk cache. Default 8 MiB.
    pub whole_bytes: usize,
    /// Pixels of an image file. Default 2²⁶ (8192 × 8192).
    pub image_pixels: usize,
    /// Arrays in an archive, members of a group, files in a folder. Default 2²².
    pub arrays: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { read_bytes: 1 << 30, whole_bytes: 8 << 20, image_pixels: 1 << 26, arrays: 1 << 22 }
    }
}

/// The arrays of a `.npz`, `.npy` (one, without a name) or `.safetensors` file. The content tells
/// the first two, whatever the ending.
fn arrays(source: &Source, path: &Path, limits: &Limits) -> Result<Columns, DataError> {
    let place = Place::file(path);
    let mut magic = [0u8; 8];
    let n = magic.len().min(source.len() as usize);
    source.read_at(0, &mut magic[..n]).map_err(|e| DataError::io(&place, "read", e))?;
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    if magic.starts_with(b"PK\x03\x04") || magic.starts_with(b"PK\x05\x06") {
        npz::open(source, &place, limits)
    } else if magic.starts_with(b"\x93NUMPY") {
        let header = npy::read_header(source, &place)?;
        let column = ArrayColumn::new(Arc::new(source.clone()), header.into(), place, limits)?;
        Ok(vec![(String::new(), Arc::new(column))])
    } else {
        match ending.as_str() {
            "safetensors" => tensors::open(source, &place, limits),
            "npz" => Err(DataError::format(&place, "this is no .npz archive", "save arrays with numpy.savez")),
            "npy" => Err(DataError::format(&place, "this is no .npy array", "save the array with numpy.save")),
            _ => {
                let help = "give a .npz, .npy, .h5 or .safetensors file, or a folder of images or arrays";
                Err(DataError::unsupported(&place, "the kind of this file is unknown", help))
            }
        }
    }
}
