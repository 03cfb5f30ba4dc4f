//! Tests for another processor: the kernels and the runtime for aarch64, under qemu.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::cargo::cargo;
use crate::layout::Layout;
use crate::proc;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER";
const RUNNER: &str = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER";

/// What compiling and running for the target takes.
struct Tools {
    linker: String,
    qemu: &'static str,
    /// Where the target's C library lies.
    sysroot: PathBuf,
}

/// Runs the tests of the kernels as each of the processors, and those of the runtime as the first, with `cargo_args` behind
/// the tests' own.
///
/// # Errors
/// When something that this takes is not installed (all of it is named), or a test fails.
pub fn test(layout: &Layout, processors: &[String], cargo_args: &[String]) -> Result<()> {
    let tools = find()?;
    for (i, processor) in processors.iter().enumerate() {
        let mut command = cargo(layout);
        command.args(["test", "--locked", "--lib", "--tests", "--target", TARGET, "--package", "narrowbit-kernels"]);
        if i == 0 {
            command.args(["--package", "narrowbit-runtime"]);
        }
        let runner = format!("{} -L {} -cpu {processor}", tools.qemu, tools.sysroot.display());
        proc::run(command.args(cargo_args).env(LINKER, &tools.linker).env(RUNNER, runner))?;
        eprintln!("passed as {processor}, emulated: this says nothing about speed");
    }
    Ok(())
}

/// Finds the tools.
///
/// # Errors
/// Some are not there: names all that are missing.
fn find() -> Result<Tools> {
    let mut missing = Vec::new();
    if !has_standard_library() {
        missing.push(format!("Rust's standard library for {TARGET} (`rustup target add {TARGET}`)"));
    }
    let linker = env::var(LINKER).unwrap_or_else(|_| "aarch64-linux-gnu-gcc".to_owned());
    let sysroot = sysroot(&linker);
    if sysroot.is_none() {
        missing.push(format!("a C compiler for aarch64 with its C library: `{linker}`, or what {LINKER} names"));
    }
    let qemu = ["qemu-aarch64", "qemu-aarch64-static"].into_iter().find(|name| starts(name));
    if qemu.is_none() {
        missing.push("qemu's user mode: `qemu-aarch64` or `qemu-aarch64-static`".to_owned());
    }
    match (sysroot, qemu) {
        (Some(sysroot), Some(qemu)) if missing.is_empty() => Ok(Tools { linker, qemu, sysroot }),
        _ => bail!("tests for aarch64 need what is not installed here:\n- {}", missing.join("\n- ")),
    }
}

fn has_standard_library() -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let dir = proc::capture(Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]));
    let files = dir.ok().and_then(|dir| Path::new(&dir).read_dir().ok());
    files.is_some_and(|files| {
        files.flatten().any(|file| {
            let name = file.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libstd-") && name.ends_with(".rlib")
        })
    })
}

/// The folder whose `lib` holds the C library that the compiler links to.
fn sysroot(compiler: &str) -> Option<PathBuf> {
    let library = proc::capture(Command::new(compiler).arg("-print-file-name=libc.so.6")).ok()?;
    // A compiler that has none gives the bare name back.
    let library = Path::new(&library).canonicalize().ok()?;
    Some(library.parent()?.parent()?.to_path_buf())
}

fn starts(program: &str) -> bool {
    proc::capture(Command::new(program).arg("--version")).is_ok()
}
