//! `.npy` arrays of a data set: opened, bound, read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narrowbit_data::{DataOptions, Dataset, InputSpec, Limits};
use narrowbit_tensor::DType;

fuzz_target!(|bytes: &[u8]| {
    let mut limits = Limits::default();
    (limits.read_bytes, limits.whole_bytes, limits.image_pixels) = (16 << 20, 128, 1 << 20);
    let options = DataOptions { samples: Some(8), limits, ..DataOptions::default() };
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    for dims in [[None; 3].as_slice(), &[None; 4]] {
        let Ok(data) = Dataset::from_bytes("x.npy", bytes.clone(), &options) else { return };
        for _ in data.batches(3) {}
        if let Ok(data) = data.bind(&[InputSpec::new("input", DType::F32, dims)]) {
            for _ in data.batches(2) {}
        }
    }
});
