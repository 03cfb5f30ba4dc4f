//! Runs the text files under `tests/filetests`: a graph, the graph that the named passes make of it, and what
//! they report. `NARROWBIT_BLESS=1` writes what comes out as the expectation. Both graphs are also run on seeded
//! inputs by the reference interpreter, and must agree.
//!
//! A file begins with `; passes: name, …` (or `; passes: all`), then the model; after a line `===` comes the
//! expectation.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use narrowbit_ir::{Datum, Dim, Graph, Model, interp, text};
use narrowbit_ops::Registry;
use narrowbit_passes::{Manager, Report, SanitizeOptions, passes};
use narrowbit_tensor::{DType, Tensor};
use narrowbit_testkit::compare::{self, Tolerance};
use narrowbit_testkit::paths;
use narrowbit_testkit::random::Random;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Symbols stand for this extent when graphs are run.
const SYMBOL: usize = 2;

/// Rewrites fold constants in double precision and round once: a few units in the last place of sums of few terms.
const TOLERANCE: Tolerance = Tolerance { rtol: 2e-5, atol: 2e-6, rtol_bf16: 2e-2 };

#[test]
fn rewrites_each_graph_as_its_file_says() -> Result<()> {
    let mut failures = Vec::new();
    let files = files(&paths::repo().join("tests/filetests"))?;
    assert!(!files.is_empty(), "there are no file tests");
    for file in &files {
        if let Err(e) = check(file) {
            failures.push(format!("{}: {e}", file.display()));
        }
    }
    assert!(failures.is_empty(), "{} of {} files fail:\n{}", failures.len(), files.len(), failures.join("\n"));
    Ok(())
}

#[test]
fn has_a_file_for_each_pass() -> Result<()> {
    let tested: BTreeSet<String> = files(&paths::repo().join("tests/filetests"))?
        .iter()
        .filter_map(|f| Some(f.parent()?.file_name()?.to_str()?.to_string()))
        .collect();
    let missing: Vec<&str> = passes().iter().map(|p| p.name()).filter(|n| !tested.contains(*n)).collect();
    // Functions have no text form; the importer's tests expand them.
    assert_eq!(missing, ["inline-functions"]);
    Ok(())
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            out.extend(files(&path)?);
        } else if path.extension().is_some_and(|e| e == "nb") {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

fn check(file: &Path) -> Result<()> {
    let all = fs::read_to_string(file)?;
    let (input, expected) = all.split_once("===\n").unwrap_or((&all, ""));
    let names = input.lines().find_map(|l| l.strip_prefix("; passes: ")).ok_or("a line `; passes: …` is missing")?;
    let before = text::parse_model(input, &Registry)?;
    let mut after = before.clone();
    let report = run(&mut after, names)?;
    after.graph.verify()?;
    let mut got = text::print_model(&after);
    for p in &report.passes {
        if p.rewrites > 0 || !p.skips.is_empty() {
            writeln!(got, "; {}: {}", p.name, p.rewrites)?;
        }
        for s in &p.skips {
            writeln!(got, "; skipped {}: {}", s.node, s.reason)?;
        }
    }
    same_outputs(&before, &after)?;
    let again = text::parse_model(&got, &Registry)?;
    if text::print_model(&again) != text::print_model(&after) {
        return Err("the text form does not survive being read".into());
    }
    if std::env::var_os("NARROWBIT_BLESS").is_some() {
        fs::write(file, format!("{input}===\n{got}"))?;
    } else if got != expected {
        return Err(format!("expected\n{expected}\ngot\n{got}").into());
    }
    Ok(())
}

fn run(model: &mut Model, names: &str) -> Result<Report> {
    let max_opset = if names.contains("rms-norm") { 23 } else { 21 };
    let options = SanitizeOptions { max_opset, max_growth: 1024, verify: true, ..SanitizeOptions::default() };
    let manager = match names.trim() {
        "all" => Manager::new(&options)?,
        names => Manager::only(&names.split(',').map(str::trim).collect::<Vec<_>>(), &options)?,
    };
    Ok(manager.run(model)?)
}

fn same_outputs(before: &Model, after: &Model) -> Result<()> {
    let names = |g: &Graph, v: &[narrowbit_ir::ValueId]| -> Vec<String> {
        v.iter().map(|&v| g.value(v).name.clone()).collect()
    };
    let (a, b) = (&before.graph, &after.graph);
    if names(a, a.outputs()) != names(b, b.outputs()) || names(a, a.inputs()) != names(b, b.inputs()) {
        return Err("names of inputs or outputs changed".into());
    }
    for seed in 0..3 {
        let inputs = inputs(a, seed)?;
        let (want, got) = (interp::run(a, &inputs)?, interp::run(b, &inputs)?);
        for ((want, got), name) in want.iter().zip(&got).zip(names(a, a.outputs())) {
            compare::data(got, want, TOLERANCE).map_err(|e| format!("output {name}: {e}"))?;
        }
    }
    Ok(())
}

fn inputs(graph: &Graph, seed: u64) -> Result<Vec<Datum>> {
    let mut random = Random::new(seed);
    let mut out = Vec::new();
    for &v in graph.inputs() {
        let ty = graph.value(v).ty.tensor().ok_or("an input has no type")?;
        let dims = ty.shape.as_ref().ok_or("an input has no shape")?;
        let shape: Vec<usize> = dims.iter().map(|d: &Dim| d.as_usize().unwrap_or(SYMBOL)).collect();
        let n = shape.iter().product();
        let dtype = ty.dtype.unwrap_or(DType::F32);
        out.push(Datum::Tensor(if dtype.is_float() {
            Tensor::from_f32s(dtype, shape, random.floats(n).iter().map(|x| x * 4.0).collect())?
        } else {
            Tensor::from_i64s(dtype, shape, &(0..n).map(|_| random.below(2) as i64).collect::<Vec<_>>())?
        }));
    }
    Ok(out)
}
