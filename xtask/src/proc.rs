//! Running child processes with their output passed through.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// The command as a person would type it.
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a command, printing it first.
///
/// # Errors
/// When the program cannot be started or exits with a failure.
pub fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a command quietly and returns what it printed, trimmed.
///
/// # Errors
/// When the program cannot be started, exits with a failure or prints something that is not UTF-8.
pub fn capture(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed: {}\n{}", output.status, said.trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
