//! The command line as a whole; each command's own arguments stand in its file.

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_runtime::{Float, Session};

use crate::commands;

/// Makes neural networks small and fast by giving their numbers fewer bits, and shows what that costs.
///
/// A float ONNX model goes in, a standard ONNX model with int8 weights and activations comes out. Results go
/// to standard output, messages and progress to standard error. Exit codes: 0 done; 1 it ran, but a
/// criterion failed; 2 wrong usage or an error.
#[derive(Debug, Parser)]
#[command(name = "narrowbit", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
}

/// Options of all commands.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Print the result as JSON
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// Say more; twice for details of every step
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Output")]
    pub verbose: u8,
    /// Say nothing but the result and errors; no progress bars
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
}

/// Threads at the most: more than any machine has cores, and few enough to be started.
const MOST_THREADS: usize = 4096;

/// Threads to compute with.
#[derive(Debug, Clone, Args)]
pub struct Threads {
    /// Threads to compute with; 0 for one per core
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = thread_count)]
    pub threads: usize,
}

/// A number of threads that a process can have.
pub fn thread_count(text: &str) -> Result<usize, String> {
    let n = text.parse().map_err(|e: std::num::ParseIntError| e.to_string())?;
    if n > MOST_THREADS { Err(format!("more than {MOST_THREADS} threads")) } else { Ok(n) }
}

/// A number of things of which there must be some.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse().map_err(|_| "no whole number that counts something".to_owned())? {
        0 => Err("at least 1".to_owned()),
        n => Ok(n),
    }
}

impl Threads {
    /// The threads with the instruction set that this machine or the environment gives.
    pub fn exec(&self) -> anyhow::Result<Exec> {
        let all = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if self.threads == 0 { all() } else { self.threads };
        Ok(Exec::new(Isa::from_env()?, threads))
    }
}

/// How floats are multiplied.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Floats {
    /// Multiply floats as they are, or rounded to bfloat16 with sums in 32 bits: faster, with about three digits. Images
    /// that convolutions hand each other are rounded once, where they are made. Products on integers stay as they are
    #[arg(long, value_enum, value_name = "TYPE", default_value = "f32")]
    pub float: FloatType,
}

/// The operands of float products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum FloatType {
    /// 32 bits
    #[default]
    F32,
    /// 16 bits, where the processor multiplies them: AMX, or AVX512-BF16, which is slower than f32 on Intel
    Bf16,
}

impl FloatType {
    /// The value of the flag.
    pub fn name(self) -> &'static str {
        match self {
            FloatType::F32 => "f32",
            FloatType::Bf16 => "bf16",
        }
    }
}

impl Floats {
    /// The arithmetic.
    pub fn arithmetic(self) -> Float {
        match self.float {
            FloatType::F32 => Float::F32,
            FloatType::Bf16 => Float::Bf16,
        }
    }
}

/// What products may do with the floats that they read.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Products {
    #[command(flatten)]
    pub floats: Floats,
    /// Round the rows of products with weights by blocks to 8 bits where the file leaves it open (blocked DequantizeLinear,
    /// MatMulNBits of accuracy level 0): faster, and what ONNX Runtime does with the former
    #[arg(long)]
    pub round_rows: bool,
}

impl Products {
    /// The session with this arithmetic.
    ///
    /// # Errors
    /// The machine does not multiply bfloat16.
    pub fn apply(self, session: Session) -> anyhow::Result<Session> {
        let session = if self.round_rows { session.with_rounded_blocks(true) } else { session };
        match self.floats.arithmetic() {
            Float::F32 => Ok(session),
            other => Ok(session.with_float(other)?),
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // The commands' own comments are their help: a line here would take the place of all of it.
pub enum Command {
    Demo(commands::demo::Demo),
    Inspect(commands::inspect::Inspect),
    Sanitize(commands::sanitize::Sanitize),
    Calibrate(commands::calibrate::Calibrate),
    Quantize(commands::quantize::Quantize),
    Run(commands::run::Run),
    Eval(commands::eval::Eval),
    Compare(commands::compare::Compare),
    Analyze(commands::analyze::Analyze),
    Check(commands::check::CheckIntegers),
    Config(commands::config::Config),
    Bench(commands::bench::Bench),
    InsertRescaling(commands::insert_rescaling::InsertRescaling),
    Convert(commands::convert::Convert),
    Explain(commands::explain::Explain),
    ExportEncodings(commands::export_encodings::ExportEncodings),
    Completions(commands::completions::Completions),
}
