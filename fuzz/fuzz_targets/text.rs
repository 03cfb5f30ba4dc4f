//! Graphs in the text form; what can be read must survive printing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narrowbit_ir::text;
use narrowbit_ops::Registry;

fuzz_target!(|bytes: &str| {
    let Ok(model) = text::parse_model(bytes, &Registry) else { return };
    model.graph.verify().expect("a graph that was read is sound");
    let printed = text::print_model(&model);
    // Large constants are printed without their content.
    if !printed.contains('#') {
        text::parse_model(&printed, &Registry).expect("what was printed can be read");
    }
});
