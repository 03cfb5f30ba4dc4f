//! What narrowbit writes, `onnx.checker` accepts and ONNX Runtime loads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use narrowbit_import::onnx::{self, ExternalData, ReadOptions, SaveOptions};
use narrowbit_testkit::conformance::read_index;
use narrowbit_testkit::paths;

/// Checks and loads each model of a folder; models that ONNX Runtime refuses in their original form do not count.
const LOAD: &str = "
import pathlib, sys
import onnx, onnxruntime as ort
ort.set_default_logger_severity(4)
bad = 0
for line in pathlib.Path(sys.argv[1]).read_text().splitlines():
    written, original = line.split('\\t')
    try:
        onnx.checker.check_model(original)
        ort.InferenceSession(original, providers=['CPUExecutionProvider'])
    except Exception:
        continue
    try:
        onnx.checker.check_model(written)
        ort.InferenceSession(written, providers=['CPUExecutionProvider'])
    except Exception as e:
        bad += 1
        print(original, str(e)[:300].replace(chr(10), ' '))
sys.exit(bad != 0)
";

fn check(files: &[PathBuf], options: &SaveOptions) {
    let Some(python) = paths::python() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut list = String::new();
    for (i, file) in files.iter().enumerate() {
        let model = onnx::load_with(file, &ReadOptions { opsets: 1..=i64::MAX }).expect("the model is read");
        let written = dir.path().join(format!("{i}.onnx"));
        onnx::save(&model, &written, options).expect("the model is written");
        list += &format!("{}\t{}\n", written.display(), file.display());
    }
    let script = dir.path().join("load.py");
    fs::write(&script, LOAD).expect("the script is written");
    fs::write(dir.path().join("list.txt"), list).expect("the list is written");
    let out = Command::new(python).arg(script).arg(dir.path().join("list.txt")).output().expect("Python runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}");
}

#[test]
fn loads_rewritten_node_tests() {
    let Some(dir) = paths::node_tests() else { return };
    let cases = read_index(&dir).expect("the index of the node tests");
    let control_flow = ["If", "Loop", "Scan", "SequenceMap"];
    let files: Vec<PathBuf> = cases
        .iter()
        .enumerate()
        // All with subgraphs, and a sample of the others.
        .filter(|(i, c)| i % 8 == 0 || c.op_types.iter().any(|op| control_flow.contains(&op.as_str())))
        .map(|(_, c)| dir.join(&c.name).join(&c.model))
        .collect();
    check(&files, &SaveOptions::default());
}

#[test]
fn loads_rewritten_shared_models_with_external_data() {
    let Some(shared) = paths::shared_dir() else { return };
    let models = |d: &Path| fs::read_dir(d).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>();
    let files = models(&shared.join("models")).iter().flat_map(|d| models(d)).collect::<Vec<_>>();
    let files: Vec<PathBuf> = files.into_iter().filter(|p| p.extension().is_some_and(|x| x == "onnx")).collect();
    check(&files, &SaveOptions { external_data: ExternalData::Always, ..SaveOptions::default() });
}
