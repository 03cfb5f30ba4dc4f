//! Reads arbitrary bytes as an ONNX model; what can be read must survive writing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narrowbit_import::onnx;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut model) = onnx::parse(bytes.to_vec(), None) else { return };
    model.graph.verify().expect("an imported graph is sound");
    let _ = onnx::check_supported(&model);
    let written = onnx::to_bytes(&model).expect("a small model fits into a file");
    onnx::parse(written, None).expect("what was written can be read");
    let _ = onnx::inline_functions(&mut model);
    model.graph.verify().expect("an inlined graph is sound");
});
