//! Decisions of tensors in our own configuration: entries, or the one that contradicts itself.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use narrowbit_quant::encodings::{Decided, Encodings};

fuzz_target!(|text: &[u8]| {
    let Ok(all) = serde_json::from_slice::<BTreeMap<String, Decided>>(text) else { return };
    let _ = Encodings::of_decided(&all);
});
