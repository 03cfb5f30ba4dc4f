//! Mutated files are read or refused, without a panic and in bounded memory.

use narrowbit_ir::infer;
use narrowbit_testkit::hostile;
use narrowbit_testkit::random::Random;

use super::super::{check_supported, inline_functions, to_bytes};

const ROUNDS: usize = 20_000;

/// Whatever can be done with a file's bytes before anything runs.
fn exercise(bytes: &[u8]) -> bool {
    let Ok(mut model) = super::super::parse(bytes.to_vec(), None) else { return false };
    model.graph.verify().unwrap();
    let _ = check_supported(&model);
    let written = to_bytes(&model).unwrap();
    super::super::parse(written, None).expect("what was written can be read");
    let _ = inline_functions(&mut model);
    model.graph.verify().unwrap();
    let _ = infer::infer(&model.graph, &Default::default(), infer::Options { strict: false, ..Default::default() });
    true
}

#[test]
fn replays_the_fuzzing_corpus() {
    for (name, bytes) in hostile::corpus("onnx") {
        assert!(exercise(&bytes) != name.starts_with("bad_"), "{name}");
    }
}

#[test]
fn survives_mutated_files() {
    let seeds = hostile::corpus("onnx");
    let mut random = Random::new(7);
    let readable = (0..ROUNDS).filter(|_| exercise(&hostile::mutate(&seeds, &mut random))).count();
    assert!(readable > ROUNDS / 100, "hardly any mutation is read: {readable} of {ROUNDS}");
    hostile::assert_memory_below(1 << 30);
}
