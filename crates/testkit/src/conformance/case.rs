use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use narrowbit_import::onnx::{self, DatumKind, ReadOptions};
use narrowbit_ir::infer::{self, Facts};
use narrowbit_ir::{Datum, Fact, Graph, Model, ValueId, interp};

use super::index::{Case, DataSet, Entry};
use crate::compare::{self, Tolerance};

/// What became of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Every output is right, and inference agrees with every value.
    Pass,
    /// Something is wrong.
    Fail,
    /// Operators are missing.
    Unsupported(Vec<String>),
    /// It can't pass, for the given reason.
    Skipped(String),
}

/// What became of a case, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The state.
    pub state: State,
    /// Why it failed, on one line; empty otherwise.
    pub reason: String,
}

impl Outcome {
    /// A failure.
    pub fn fail(reason: impl Into<String>) -> Outcome {
        let line: String = reason.into().split_whitespace().collect::<Vec<_>>().join(" ");
        Outcome { state: State::Fail, reason: line.chars().take(200).collect() }
    }

    fn of(state: State) -> Outcome {
        Outcome { state, reason: String::new() }
    }
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the messages of panics for the manifest instead of printing them.
pub(super) fn catch_panics() {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().map(|s| s.to_string());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        PANIC.with(|p| *p.borrow_mut() = format!("panic: {text}{place}"));
    }));
}

/// Runs a case; a panic is a failure.
pub fn run(dir: &Path, case: &Case) -> Outcome {
    let run = || try_run(&dir.join(&case.name), case);
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(state)) => Outcome::of(state),
        Ok(Err(reason)) => Outcome::fail(reason),
        Err(_) => Outcome::fail(PANIC.with(|p| p.borrow().clone())),
    }
}

fn try_run(dir: &Path, case: &Case) -> Result<State, String> {
    // The newest node tests state opsets beyond those that narrowbit reads for operators that did not change since.
    let model =
        onnx::load_with(dir.join(&case.model), &ReadOptions { opsets: 1..=i64::MAX }).map_err(|e| e.to_string())?;
    if let Err(missing) = onnx::check_supported(&model) {
        let name = |o: &onnx::MissingOperator| match o.domain.as_str() {
            "" | "ai.onnx" => o.name.clone(),
            domain => format!("{domain}.{}", o.name),
        };
        return Ok(State::Unsupported(missing.0.iter().map(name).collect()));
    }
    model.graph.verify().map_err(|e| e.to_string())?;
    for set in &case.data_sets {
        data_set(dir, case, &model, set)?;
    }
    Ok(State::Pass)
}

fn data_set(dir: &Path, case: &Case, model: &Model, set: &DataSet) -> Result<(), String> {
    let read = |e: &Entry| {
        let kind = match e.kind.as_str() {
            "tensor" => DatumKind::Tensor,
            "sequence" => DatumKind::Sequence,
            "optional" => DatumKind::Optional,
            other => return Err(format!("data of kind {other}")),
        };
        let bytes = std::fs::read(dir.join(&e.file)).map_err(|x| x.to_string())?;
        onnx::parse_datum(bytes, kind).map_err(|x| x.to_string())
    };
    let inputs: Vec<Datum> = set.inputs.iter().map(read).collect::<Result<_, _>>()?;
    let wanted: Vec<Datum> = set.outputs.iter().map(read).collect::<Result<_, _>>()?;
    let mut made = vec![None; model.graph.value_capacity()];
    let got = interp::run_observed(&model.graph, &inputs, &mut |_, id, d| made[id.index()] = Some(d.clone()));
    let got = got.map_err(|e| e.to_string())?;
    // The onnx package's own runner allows two units in the last place of bf16.
    let tolerance = Tolerance { rtol: case.rtol, atol: case.atol, rtol_bf16: 1.0 / 64.0 };
    // Errors of a Fourier transform are relative to the whole, and the expected data were computed in f32.
    let transforms = case.op_types.iter().any(|op| matches!(op.as_str(), "DFT" | "STFT"));
    for ((g, w), e) in got.iter().zip(&wanted).zip(&set.outputs) {
        let atol = if transforms { tolerance.atol.max(1e-7 * greatest(w)) } else { tolerance.atol };
        compare::data(g, w, Tolerance { atol, ..tolerance }).map_err(|x| format!("output {}: {x}", e.name))?;
    }
    if got.len() != wanted.len() {
        return Err(format!("{} outputs, expected {}", got.len(), wanted.len()));
    }
    check_inference(&model.graph, &inputs, &made)
}

/// The greatest magnitude of a tensor; 0 for what is none.
fn greatest(d: &Datum) -> f64 {
    let values = d.tensor().and_then(|t| t.to_f64s().ok()).unwrap_or_default();
    values.iter().fold(0.0, |most, v| most.max(v.abs()))
}

/// Inference with the stated input types, and with the inputs' contents known.
fn check_inference(graph: &Graph, inputs: &[Datum], made: &[Option<Datum>]) -> Result<(), String> {
    // Folding would compare the operator's evaluation with itself.
    let options = infer::Options { max_folded: 0, strict: true };
    let stated = infer::infer(graph, &BTreeMap::new(), options).map_err(|e| format!("inference: {e}"))?;
    agree(graph, &stated, made)?;
    let known =
        graph.inputs().iter().zip(inputs).filter_map(|(&id, d)| Some((id, Fact::constant(d.tensor()?.clone()))));
    let known: BTreeMap<ValueId, Fact> = known.collect();
    let facts = infer::infer(graph, &known, options).map_err(|e| format!("inference with known inputs: {e}"))?;
    agree(graph, &facts, made)
}

fn agree(graph: &Graph, facts: &Facts, made: &[Option<Datum>]) -> Result<(), String> {
    for (id, value) in graph.values() {
        if let Some(d) = &made[id.index()] {
            compare::fact(facts.get(id), d).map_err(|e| format!("inference: \"{}\": {e}", value.name))?;
        }
    }
    Ok(())
}
