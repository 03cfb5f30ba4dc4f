//! The node tests of the `onnx` package on the reference interpreter.
//!
//! Compares with the manifest `tests/conformance/onnx-node.txt`; `NARROWBIT_BLESS=1` rewrites it. A run of some
//! cases only: `NARROWBIT_CASE=substring` of the name, `NARROWBIT_OP=Conv`.

use std::env;
use std::fs;
use std::time::{Duration, Instant};

use narrowbit_testkit::conformance::{
    Case, Outcome, Reasons, Required, State, differences, read_index, render, run_all,
};
use narrowbit_testkit::paths;

const LIMIT: Duration = Duration::from_secs(60);
const SHOWN: usize = 200;

fn data(name: &str) -> String {
    fs::read_to_string(paths::repo().join("tests/conformance").join(name)).unwrap_or_default()
}

fn selected(case: &Case) -> bool {
    let name = env::var("NARROWBIT_CASE").ok();
    let op = env::var("NARROWBIT_OP").ok();
    name.is_none_or(|n| case.name.contains(&n)) && op.is_none_or(|op| case.op_types.contains(&op))
}

/// A case that can't pass is skipped for its reason; one that passes all the same is not.
fn excuse(reasons: &Reasons, case: &Case, outcome: Outcome) -> Outcome {
    match reasons.of(&case.name) {
        Some(reason) if outcome.state == State::Fail => {
            Outcome { state: State::Skipped(reason.into()), reason: String::new() }
        }
        _ => outcome,
    }
}

#[test]
fn runs_the_onnx_node_tests() {
    let Some(dir) = paths::node_tests() else { return };
    let mut cases = read_index(&dir).expect("the index of the node tests");
    let all = cases.len();
    cases.retain(selected);
    let partial = cases.len() < all;
    let begun = Instant::now();
    let outcomes = run_all(&dir, cases.clone(), LIMIT);
    let reasons = Reasons::parse(&data("reasons.txt"));
    let results: Vec<(Case, Outcome)> = cases
        .into_iter()
        .zip(outcomes)
        .map(|(c, o)| {
            let o = excuse(&reasons, &c, o);
            (c, o)
        })
        .collect();
    print_counts(&results);
    let passed = results.iter().filter(|(_, o)| o.state == State::Pass).count();
    println!("{passed} of {} cases pass ({:.1} s)", results.len(), begun.elapsed().as_secs_f64());
    let text = render(&results);
    if partial {
        let wrong: Vec<&str> = text.lines().filter(|l| l.split(' ').nth(1) != Some("pass")).collect();
        assert!(wrong.is_empty(), "\n{}\n{} of {} cases do not pass", wrong.join("\n"), wrong.len(), results.len());
    } else {
        compare_manifest(&text);
    }
}

/// Products of 8-bit integers.
const PRODUCTS: [&str; 9] = [
    "ConvInteger",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
];

#[test]
fn matches_onnx_runtime_on_random_cases() {
    let Some(dir) = paths::ms_tests() else { return };
    let mut cases = read_index(&dir).expect("the index of the cases");
    cases.retain(selected);
    if paths::peers_saturate() {
        cases
            .retain(|case| !case.op_types.iter().any(|op| PRODUCTS.contains(&op.trim_start_matches("com.microsoft."))));
    }
    let outcomes = run_all(&dir, cases.clone(), LIMIT);
    let all: Vec<(Case, Outcome)> = cases.into_iter().zip(outcomes).collect();
    let text = render(&all);
    let wrong: Vec<&str> = text.lines().filter(|l| l.split(' ').nth(1) != Some("pass")).collect();
    println!("{} of {} cases agree with ONNX Runtime", all.len() - wrong.len(), all.len());
    assert!(wrong.is_empty(), "\n{}\n{} of {} cases differ", wrong.join("\n"), wrong.len(), all.len());
}

fn print_counts(results: &[(Case, Outcome)]) {
    for (op, (passed, total)) in Required::parse(&data("required.txt")).counts(results) {
        let mark = if passed == total { "" } else { "  <-" };
        println!("{op:32} {passed:4}/{total}{mark}");
    }
}

fn compare_manifest(text: &str) {
    let out = paths::target().join("conformance");
    fs::create_dir_all(&out).and_then(|()| fs::write(out.join("onnx-node.txt"), text)).expect("the report is written");
    if env::var_os("NARROWBIT_BLESS").is_some() {
        fs::write(paths::repo().join("tests/conformance/onnx-node.txt"), text).expect("the manifest is written");
        return;
    }
    let diff = differences(&data("onnx-node.txt"), text);
    let shown = diff.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        diff.is_empty(),
        "{} lines differ from tests/conformance/onnx-node.txt (NARROWBIT_BLESS=1 rewrites it):\n{shown}",
        diff.len()
    );
}
