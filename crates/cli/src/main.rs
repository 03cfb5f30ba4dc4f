//! The `narrowbit` command.
#![forbid(unsafe_code)]
// Whatever a user gives ends in an error, never in a panic.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

mod args;
mod check;
mod commands;
mod comparison;
mod data;
mod fixed;
mod interrupt;
mod macs;
mod measure;
mod metrics;
mod model;
mod output;
mod runs;
mod timing;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    output::init(&cli.global);
    match commands::run(&cli) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::from(2)
        }
    }
}
