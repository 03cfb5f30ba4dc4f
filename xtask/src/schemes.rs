//! The fixtures of the tools that quantization schemes are named after: `tests/fixtures/schemes`.
//!
//! The tools ask for versions of their dependencies that exclude each other, so each group has an environment under
//! `target/`. A tool that can't be installed here keeps its file.

use std::process::Command;

use anyhow::{Result, bail};

use crate::layout::Layout;
use crate::proc;
use crate::venv::Venv;

/// An environment's requirements in `tests/fixtures/requirements`, and the tools that run in it.
const GROUPS: [(&str, &[&str]); 3] = [
    ("torch", &["pytorch"]),
    ("tensorflow", &["tensorflow", "tflite", "mxnet", "quantizeml", "quantizeml-blocks", "quantizeml-transformer"]),
    ("jax", &["inc-jax-fp8", "inc-jax-int8"]),
];

/// Tools and transcriptions of formulas that need no more than the tests do.
const PLAIN: [&str; 5] = ["onnxruntime", "ipex", "vitis-dpu", "inc-doc", "microscaling"];

/// Makes every file anew whose tool can be installed.
///
/// # Errors
/// When a tool is installed but fails, or none can be installed.
pub fn make(layout: &Layout) -> Result<()> {
    run(layout, &Venv::prepare(layout)?, &PLAIN)?;
    let mut missing = Vec::new();
    for (name, tools) in GROUPS {
        let list = layout.repo("tests/fixtures/requirements").join(format!("{name}.txt"));
        // QuantizeML is published as source only.
        match Venv::at(layout.target(&format!("venv-{name}")), &list, &["quantizeml"]) {
            Ok(venv) => run(layout, &venv, tools)?,
            Err(error) => missing.push(format!("  {}: {error:#}", tools.join(", "))),
        }
    }
    if !missing.is_empty() {
        bail!("these tools can't be installed here, their fixtures stay as they are:\n{}", missing.join("\n"));
    }
    Ok(())
}

fn run(layout: &Layout, venv: &Venv, tools: &[&str]) -> Result<()> {
    let script = layout.repo("tests/fixtures/make_schemes.py");
    let output = layout.repo("tests/fixtures/schemes");
    // TensorFlow would look for graphics cards, and say a lot.
    let quiet = [("CUDA_VISIBLE_DEVICES", ""), ("TF_CPP_MIN_LOG_LEVEL", "3")];
    // Each in a process of its own: MXNet and TensorFlow do not bear each other.
    for tool in tools {
        proc::run(Command::new(venv.python()).arg(&script).arg(tool).arg("-o").arg(&output).envs(quiet))?;
    }
    Ok(())
}
