//! Developer tasks: `cargo xtask <task>`.

#![forbid(unsafe_code)]

mod aarch64;
mod cargo;
mod codegen;
mod fixtures;
mod layout;
mod proc;
mod schemes;
mod stamp;
mod venv;

use clap::{Parser, Subcommand};

use crate::layout::Layout;

/// Developer tasks of narrowbit.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Prepare everything the tests need, then run all tests.
    Test {
        /// Arguments passed on to `cargo test` in place of `--workspace`, e.g. `-- -p narrowbit-ops`.
        #[arg(last = true)]
        cargo_args: Vec<String>,
    },
    /// Check formatting, lints and documentation, then run all tests.
    Ci,
    /// Run the tests of the kernels and of the runtime for aarch64 under qemu.
    Aarch64 {
        /// Processors that qemu emulates: one for each set of instructions that has kernels.
        #[arg(long, value_name = "A,B", value_delimiter = ',', default_value = "max,neoverse-n1,cortex-a57")]
        cpu: Vec<String>,
        /// Arguments passed on to `cargo test`, e.g. `-- panel`.
        #[arg(last = true)]
        cargo_args: Vec<String>,
    },
    /// Create or refresh the Python environment and the fixtures that the tests use.
    Fixtures {
        /// Also run the tools that quantization schemes are named after (gigabytes of packages), and write their
        /// scales, zero points and codes into the repository.
        #[arg(long)]
        schemes: bool,
    },
    /// Regenerate the ONNX protobuf code from the pinned `onnx` package.
    Codegen,
}

fn main() -> anyhow::Result<()> {
    let layout = Layout::find()?;
    match Args::parse().task {
        Task::Test { cargo_args } => cargo::test(&layout, &cargo_args),
        Task::Ci => cargo::ci(&layout),
        Task::Aarch64 { cpu, cargo_args } => aarch64::test(&layout, &cpu, &cargo_args),
        Task::Fixtures { schemes: false } => fixtures::prepare(&layout).map(|_| ()),
        Task::Fixtures { schemes: true } => schemes::make(&layout),
        Task::Codegen => codegen::run(&layout),
    }
}
