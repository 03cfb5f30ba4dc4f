//! The Python environment of the tests: the public `onnx` package and ONNX Runtime at pinned versions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::layout::Layout;
use crate::proc;
use crate::stamp::Stamp;

/// Tried in order; the first that is new enough for the pinned packages is used.
const CANDIDATES: [&str; 5] = ["python3.11", "python3.12", "python3.13", "python3", "python"];

/// Fails unless the interpreter is at least 3.11 and can make environments with pip in them.
const PROBE: &str =
    "import sys, venv, ensurepip; assert sys.version_info >= (3, 11), 'Python is older than 3.11'; print(sys.version)";

/// A ready environment.
pub struct Venv {
    dir: PathBuf,
}

impl Venv {
    /// Creates or refreshes `target/venv` from `tests/requirements.txt`.
    ///
    /// # Errors
    /// When no suitable Python is on PATH or the packages cannot be installed.
    pub fn prepare(layout: &Layout) -> Result<Self> {
        Self::at(layout.target("venv"), &layout.repo("tests/requirements.txt"), &[])
    }

    /// Creates or refreshes `dir` from a list of packages with all their dependencies; `source` names those that are
    /// published without a build.
    ///
    /// # Errors
    /// When no suitable Python is on PATH or the packages cannot be installed.
    pub fn at(dir: PathBuf, list: &Path, source: &[&str]) -> Result<Self> {
        let venv = Self { dir };
        let requirements = fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
        let stamp = Stamp::new(venv.dir.join(".narrowbit-stamp"), &[&requirements]);
        if stamp.is_current() && venv.python().is_file() {
            return Ok(venv);
        }
        proc::run(Command::new(find_python()?).args(["-m", "venv", "--clear"]).arg(&venv.dir))?;
        proc::run(
            Command::new(venv.python())
                .args(["-m", "pip", "install", "--quiet", "--only-binary=:all:"])
                .args(source.iter().map(|name| format!("--no-binary={name}")))
                .args(["--disable-pip-version-check", "--no-deps", "-r"])
                .arg(list),
        )?;
        stamp.write()?;
        Ok(venv)
    }

    /// The environment's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The environment's interpreter.
    pub fn python(&self) -> PathBuf {
        if cfg!(windows) { self.dir.join("Scripts/python.exe") } else { self.dir.join("bin/python") }
    }
}

fn find_python() -> Result<&'static str> {
    let mut reasons = Vec::new();
    for python in CANDIDATES {
        match proc::capture(Command::new(python).args(["-c", PROBE])) {
            Ok(_) => return Ok(python),
            Err(error) => reasons.push(format!("  {python}: {}", last_line(&error))),
        }
    }
    bail!("no suitable Python on PATH (3.11 or newer, with the modules venv and ensurepip):\n{}", reasons.join("\n"))
}

fn last_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.lines().next_back().unwrap_or_default().to_owned()
}
