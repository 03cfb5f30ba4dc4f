//! Tables of labels.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narrowbit_data::{Labels, Limits};

fuzz_target!(|bytes: &[u8]| {
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    if let Ok(labels) = Labels::from_bytes("labels.csv", bytes, &Limits::default()) {
        let _ = labels.read(0, labels.len());
    }
});
