//! Preprocessing options in JSON and TOML.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narrowbit_data::Preprocess;

fuzz_target!(|text: &str| {
    let _ = (Preprocess::from_json(text), Preprocess::from_toml(text));
});
