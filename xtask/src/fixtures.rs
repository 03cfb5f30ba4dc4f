//! What the tests read from `target/`: the Python environment, the ONNX node-test cases, and cases with
//! ONNX Runtime's outputs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::layout::Layout;
use crate::proc;
use crate::stamp::Stamp;
use crate::venv::Venv;

/// Fixtures that are ready to use.
pub struct Fixtures {
    /// The Python environment.
    pub venv: Venv,
    /// The folder of the ONNX node tests, with `index.json`.
    pub node_tests: PathBuf,
    /// The folder of the cases with ONNX Runtime's outputs, laid out in the same way.
    pub ms_tests: PathBuf,
}

/// Makes whatever is missing or out of date.
///
/// # Errors
/// When Python, its packages or the export script fail.
pub fn prepare(layout: &Layout) -> Result<Fixtures> {
    let venv = Venv::prepare(layout)?;
    let node_tests = export(layout, &venv, "export_node_tests.py", "onnx-node")?;
    let ms_tests = export(layout, &venv, "ms_cases.py", "ms-node")?;
    Ok(Fixtures { venv, node_tests, ms_tests })
}

/// Runs a script of `tests/conformance` that fills a folder under `target/`, unless it holds that already.
fn export(layout: &Layout, venv: &Venv, script: &str, folder: &str) -> Result<PathBuf> {
    let dir = layout.target(folder);
    let scripts = layout.repo("tests/conformance");
    let (script, tools) = (scripts.join(script), scripts.join("ms_tools.py"));
    let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let requirements = read(&layout.repo("tests/requirements.txt"))?;
    let stamp = Stamp::new(dir.join(".narrowbit-stamp"), &[&requirements, &read(&script)?, &read(&tools)?]);
    if !stamp.is_current() {
        proc::run(Command::new(venv.python()).arg(&script).arg(&dir))?;
        stamp.write()?;
    }
    Ok(dir)
}
