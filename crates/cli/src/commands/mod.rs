//! One file per command.

pub mod analyze;
pub mod bench;
pub mod calibrate;
pub mod check;
pub mod compare;
pub mod completions;
pub mod config;
pub mod convert;
pub mod demo;
pub mod eval;
pub mod explain;
pub mod export_encodings;
pub mod insert_rescaling;
pub mod inspect;
pub mod quantize;
pub mod run;
pub mod sanitize;

use std::process::ExitCode;

use anyhow::Result;

use crate::args::{Cli, Command};

/// Runs the command; the exit code tells whether its criteria held.
pub fn run(cli: &Cli) -> Result<ExitCode> {
    let global = &cli.global;
    match &cli.command {
        Command::Demo(c) => c.run(global),
        Command::Inspect(c) => c.run(global),
        Command::Sanitize(c) => c.run(global),
        Command::Calibrate(c) => c.run(global),
        Command::Quantize(c) => c.run(global),
        Command::Run(c) => c.run(global),
        Command::Eval(c) => c.run(global),
        Command::Compare(c) => c.run(global),
        Command::Analyze(c) => c.run(global),
        Command::Check(c) => c.run(global),
        Command::InsertRescaling(c) => c.run(global),
        Command::Config(c) => c.run(global),
        Command::Bench(c) => c.run(global),
        Command::Convert(c) => c.run(global),
        Command::Explain(c) => c.run(global),
        Command::ExportEncodings(c) => c.run(global),
        Command::Completions(c) => c.run(),
    }
}
