//! Damaged graphs, in text and in ONNX form, are rewritten, run or refused: no panic, bounded memory.

use std::fs;

use narrowbit_import::onnx;
use narrowbit_ir::infer::{self, Facts};
use narrowbit_ir::{Datum, Graph, Model, ValueId, interp, text};
use narrowbit_ops::Registry;
use narrowbit_passes::{SanitizeOptions, sanitize};
use narrowbit_tensor::{Tensor, shape};
use narrowbit_testkit::random::Random;
use narrowbit_testkit::{hostile, paths};

const ROUNDS: usize = 20_000;
/// Graphs with larger tensors are not run: the interpreter takes what a file asks for, up to its limit.
const MAX_ELEMENTS: usize = 1 << 16;
/// The test process, debug build: what the rewrites hold is far below.
const MEMORY: usize = 1 << 30;

/// The corpus of the text form and the inputs of the file tests.
fn texts() -> Vec<(String, Vec<u8>)> {
    let mut seeds = hostile::corpus("text");
    for pass in fs::read_dir(paths::repo().join("tests/filetests")).unwrap().flatten() {
        for file in fs::read_dir(pass.path()).unwrap().flatten() {
            let all = fs::read_to_string(file.path()).unwrap();
            let input = all.split("===\n").next().unwrap_or_default();
            seeds.push((file.path().display().to_string(), input.into()));
        }
    }
    seeds.sort();
    seeds
}

fn exercise(mut model: Model) {
    run(&model.graph);
    if sanitize(&mut model, &SanitizeOptions { max_growth: 1024, ..SanitizeOptions::default() }).is_ok() {
        model.graph.verify().unwrap();
        run(&model.graph);
    }
}

/// Runs a graph on zeros where all of its values are known to be small.
fn run(graph: &Graph) {
    let Ok(facts) = infer::infer(graph, &Default::default(), infer::Options::default()) else { return };
    let small = |v: &ValueId| zeros(&facts, *v).is_some();
    let plain = graph.nodes().all(|(_, n)| n.op.bodies().is_empty() && n.outputs.iter().flatten().all(small));
    let inputs: Option<Vec<Tensor>> = graph.inputs().iter().map(|&v| zeros(&facts, v)).collect();
    if let (true, Some(inputs)) = (plain, inputs) {
        let inputs: Vec<Datum> = inputs.into_iter().map(Datum::Tensor).collect();
        let _ = interp::run(graph, &inputs);
    }
}

fn zeros(facts: &Facts, v: ValueId) -> Option<Tensor> {
    let ty = facts.get(v).ty.tensor()?;
    let dims: Vec<usize> = ty.shape.as_ref()?.iter().map(|d| d.as_usize().unwrap_or(2)).collect();
    let small = shape::count(&dims).is_ok_and(|n| n <= MAX_ELEMENTS);
    Tensor::zeros(ty.dtype?, if small { dims } else { return None }).ok()
}

fn exercise_text(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(model) = text::parse_model(text, &Registry) else { return false };
    model.graph.verify().unwrap();
    let printed = text::print_model(&model);
    // Large constants are printed without their content.
    if !printed.contains('#') {
        let again = text::parse_model(&printed, &Registry).expect("what was printed can be read");
        assert_eq!(text::print_model(&again), printed);
    }
    onnx::to_bytes(&model).expect("a small model fits into a file");
    exercise(model);
    true
}

#[test]
fn replays_the_text_corpus() {
    for (name, bytes) in texts() {
        let bad = name.starts_with("bad_");
        assert_ne!(exercise_text(&bytes), bad, "{name}");
    }
}

#[test]
fn survives_damaged_texts() {
    let seeds = texts();
    let mut random = Random::new(11);
    let readable = (0..ROUNDS).filter(|_| exercise_text(&hostile::mutate(&seeds, &mut random))).count();
    assert!(readable > ROUNDS / 100, "hardly any mutation is read: {readable} of {ROUNDS}");
    hostile::assert_memory_below(MEMORY);
}

#[test]
fn sanitizes_damaged_files_or_refuses_them() {
    let seeds = hostile::corpus("onnx");
    let mut random = Random::new(13);
    for _ in 0..ROUNDS {
        if let Ok(mut model) = onnx::parse(hostile::mutate(&seeds, &mut random), None) {
            let _ = onnx::inline_functions(&mut model);
            exercise(model);
        }
    }
    hostile::assert_memory_below(MEMORY);
}
