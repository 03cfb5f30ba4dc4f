//! What the tests read from `target/`: the Python environment and the ONNX node-test cases.

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
}

/// Makes whatever is missing or out of date.
///
/// # Errors
/// When Python, its packages or the export script fail.
pub fn prepare(layout: &Layout) -> Result<Fixtures> {
    let venv = Venv::prepare(layout)?;
    let node_tests = export_node_tests(layout, &venv)?;
    Ok(Fixtures { venv, node_tests })
}

fn export_node_tests(layout: &Layout, venv: &Venv) -> Result<PathBuf> {
    let dir = layout.target("onnx-node");
    let script = layout.repo("tests/conformance/export_node_tests.py");
    let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let requirements = read(&layout.repo("tests/requirements.txt"))?;
    let stamp = Stamp::new(dir.join(".narrowbit-stamp"), &[&requirements, &read(&script)?]);
    if !stamp.is_current() {
        proc::run(Command::new(venv.python()).arg(&script).arg(&dir))?;
        stamp.write()?;
    }
    Ok(dir)
}
