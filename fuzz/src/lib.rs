//! What the targets share.

use bytes::Bytes;
use narrowbit_data::{DataOptions, Dataset, InputSpec, Limits};
use narrowbit_tensor::DType;

/// Opens `bytes` as a data set of the format that the name's ending tells, binds it to inputs of three and of four
/// axes, and reads all of it.
pub fn read_dataset(name: &str, bytes: &[u8]) {
    let mut limits = Limits::default();
    (limits.read_bytes, limits.whole_bytes, limits.image_pixels) = (16 << 20, 128, 1 << 20);
    let options = DataOptions { samples: Some(8), limits, ..DataOptions::default() };
    let bytes = Bytes::copy_from_slice(bytes);
    for dims in [[None; 3].as_slice(), &[None; 4]] {
        let Ok(data) = Dataset::from_bytes(name, bytes.clone(), &options) else { return };
        for _ in data.batches(3) {}
        if let Ok(data) = data.bind(&[InputSpec::new("input", DType::F32, dims)]) {
            for _ in data.batches(2) {}
        }
    }
}
