//! Encodings of other tools; what can be read can be written in the formats that hold it, and read again.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use narrowbit_quant::encodings::{Encodings, Format};

fuzz_target!(|text: &[u8]| {
    let path = Path::new("encodings.json");
    let Ok(read) = Encodings::parse(text, path) else { return };
    for format in [Format::Vitis, Format::Aimet, Format::AimetV0, Format::Ort] {
        let Ok(written) = read.write(format) else { continue };
        // A tensor may be named like the key of another format.
        let _ = Encodings::parse(written.as_bytes(), path);
    }
});
