use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use narrowbit_data::{NpzWriter, Split};
use serde::Serialize;

use crate::args::{Global, Threads};
use crate::data::{self, DataArgs};
use crate::fixed::IntegerArgs;
use crate::{interrupt, model, output};

/// Run a model on data and save its outputs
///
/// Writes an .npz with one array per output of the model, samples along the first axis. The model may be
/// float or quantized, by narrowbit or another tool.
#[derive(Debug, Args)]
pub struct Run {
    /// The model (.onnx)
    model: PathBuf,
    /// Where to write the outputs (.npz)
    #[arg(short, long, value_name = "OUT.npz")]
    output: PathBuf,
    /// Run node by node on the reference operators, exactly as ONNX defines them (slow)
    #[arg(long, conflicts_with = "integer_only")]
    interpret: bool,
    #[command(flatten)]
    integer: IntegerArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    threads: Threads,
}

#[derive(Serialize)]
struct Summary {
    model: PathBuf,
    output: PathBuf,
    samples: usize,
    outputs: Vec<OutputRow>,
}

#[derive(Serialize)]
struct OutputRow {
    name: String,
    dtype: String,
    shape: Vec<usize>,
}

impl Run {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        let runner = match self.integer.integer_only {
            true => model::Runner::Integer(Box::new(self.integer.load(&self.model, self.threads.threads)?)),
            false => model::Runner::new(&self.model, self.threads.threads, self.interpret)?,
        };
        let dataset = self.data.open(runner.graph(), Split::Test)?;
        let mut out = NpzWriter::create(&self.output)?;
        let bar = output::progress("running", dataset.len());
        interrupt::install();
        let names = runner.output_names();
        let mut shapes: Vec<OutputRow> = Vec::new();
        for batch in dataset.batches(self.data.batch) {
            if interrupt::requested() {
                bail!("stopped by Ctrl-C after {} of {} samples; nothing was written", bar.position(), dataset.len());
            }
            let batch = batch?;
            let n = batch.indices.len();
            let results = runner.run(&data::tensors(batch))?;
            for (name, t) in names.iter().zip(&results) {
                out.append(name, t)?;
                // One value per batch, where an output has no dimensions.
                let shape = if t.rank() == 0 { vec![1] } else { t.shape().to_vec() };
                match shapes.iter_mut().find(|r| r.name == *name) {
                    Some(row) => row.shape[0] += shape[0],
                    None => shapes.push(OutputRow { name: name.clone(), dtype: t.dtype().to_string(), shape }),
                }
            }
            bar.inc(n as u64);
        }
        bar.finish_and_clear();
        out.finish()?;
        let result =
            Summary { model: self.model.clone(), output: self.output.clone(), samples: dataset.len(), outputs: shapes };
        if global.json {
            output::json(&result)?;
        } else {
            let lines = result.outputs.iter().map(|o| format!("  {}: {}{:?}\n", o.name, o.dtype, o.shape));
            output::print(&format!(
                "{} samples through {}, outputs in {}\n{}",
                result.samples,
                self.model.display(),
                self.output.display(),
                lines.collect::<String>()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
