//! Tasks that drive cargo itself: tests and the checks of continuous integration.

use std::env;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::fixtures;
use crate::layout::Layout;
use crate::proc;

/// The cargo that runs this task, in the root of the repository.
pub fn cargo(layout: &Layout) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(layout.root());
    command
}

/// Prepares the fixtures and runs the tests, doc tests included.
///
/// # Errors
/// When a fixture cannot be made or a test fails.
pub fn test(layout: &Layout, cargo_args: &[String]) -> Result<()> {
    let begun = Instant::now();
    let fixtures = fixtures::prepare(layout)?;
    let mut command = cargo(layout);
    command.args(["test", "--locked"]);
    if cargo_args.is_empty() {
        command.arg("--workspace");
    }
    command
        .args(cargo_args)
        .env("NARROWBIT_VENV", fixtures.venv.dir())
        .env("NARROWBIT_NODE_TESTS", &fixtures.node_tests)
        .env("NARROWBIT_MS_TESTS", &fixtures.ms_tests)
        .env_remove("NARROWBIT_SHARED");
    let shared = layout.shared();
    if let Some(dir) = &shared {
        command.env("NARROWBIT_SHARED", dir);
    }
    proc::run(&mut command)?;

    eprintln!();
    eprintln!("ONNX node tests: {}; Python: {}", fixtures.node_tests.display(), fixtures.venv.dir().display());
    eprintln!("ONNX Runtime cases: {}", fixtures.ms_tests.display());
    match shared {
        Some(dir) => eprintln!("shared models: {}", dir.display()),
        None => eprintln!(
            "shared models: SKIPPED, there is no folder `shared` beside the repository (or set NARROWBIT_SHARED)"
        ),
    }
    eprintln!("all tests passed in {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Checks formatting, lints, fuzz targets and documentation, then runs the tests: cheapest first.
///
/// # Errors
/// When a check or a test fails.
pub fn ci(layout: &Layout) -> Result<()> {
    proc::run(cargo(layout).args(["fmt", "--all", "--check"]))?;
    proc::run(cargo(layout).args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    // The fuzz targets are a workspace of their own. They are only checked, so libFuzzer need not be built: no C++.
    let fuzz = layout.root().join("fuzz");
    let mut check = cargo(layout);
    check.args(["check", "--bins", "--locked", "--target-dir"]).arg(layout.root().join("target/fuzz"));
    proc::run(check.current_dir(fuzz).env("CUSTOM_LIBFUZZER_PATH", "not/built/libfuzzer.a"))?;
    proc::run(cargo(layout).args(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    test(layout, &[])
}
