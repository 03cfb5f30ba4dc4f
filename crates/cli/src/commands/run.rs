use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use narrowbit_data::{Fill, H5Writer, NpzWriter, Split};
use narrowbit_tensor::Tensor;
use serde::Serialize;

use crate::args::{Global, Products, Threads};
use crate::data::{self, DataArgs};
use crate::fixed::IntegerArgs;
use crate::{interrupt, model, output};

/// Run a model on data and save its outputs
///
/// Writes an .npz with one array per output of the model, samples along the first axis; or an .h5 with one dataset per
/// sample, named as in the .h5 that the samples are from. The model may be float or quantized, by narrowbit or
/// another tool.
#[derive(Debug, Args)]
pub struct Run {
    /// The model (.onnx)
    model: PathBuf,
    /// Where to write the outputs (.npz or .h5)
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Run node by node on the reference operators, exactly as ONNX defines them (slow)
    #[arg(long, conflicts_with_all = ["float", "integer_only"])]
    interpret: bool,
    #[command(flatten)]
    integer: IntegerArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    float: Products,
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
            false => model::Runner::new(&self.model, self.threads.threads, self.interpret, self.float)?,
        };
        let dataset = self.data.open(runner.graph(), Split::Test)?;
        let runs = self.data.runs(runner.graph(), &dataset)?;
        let mut out = Sink::create(&self.output, runner.output_names())?;
        let bar = output::progress("running", dataset.len());
        interrupt::install();
        let names = runner.output_names();
        let mut shapes: Vec<OutputRow> = Vec::new();
        for batch in runs.batches(&dataset, 0, Fill::Last) {
            if interrupt::requested() {
                bail!("stopped by Ctrl-C after {} of {} samples; nothing was written", bar.position(), dataset.len());
            }
            let batch = batch?;
            let n = batch.indices.len();
            let samples: Vec<String> = batch.indices.iter().map(|&i| dataset.sample_name(i)).collect();
            let results = runs.outputs(runner.run(&data::tensors(batch))?, n)?;
            out.append(&samples, &results)?;
            for (name, t) in names.iter().zip(&results) {
                let shape = t.shape().to_vec();
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

/// Where outputs go.
enum Sink {
    /// Rows of an array for each output.
    Npz(NpzWriter, Vec<String>),
    /// A dataset for each sample, and for each output where there are several.
    H5(H5Writer, Vec<String>),
}

impl Sink {
    fn create(path: &Path, outputs: Vec<String>) -> Result<Sink> {
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        output::check_writable(path)?;
        Ok(match ending.as_str() {
            "h5" | "hdf5" => Sink::H5(H5Writer::create(path)?, outputs),
            "npz" => Sink::Npz(NpzWriter::create(path)?, outputs),
            _ => bail!(
                "{}: outputs are written as .npz or .h5\nhelp: give a name with one of these endings",
                path.display()
            ),
        })
    }

    /// The outputs of a batch of samples.
    fn append(&mut self, samples: &[String], results: &[Tensor]) -> Result<()> {
        match self {
            Sink::Npz(out, names) => {
                for (name, t) in names.iter().zip(results) {
                    out.append(name, t)?;
                }
            }
            Sink::H5(out, names) => {
                for (name, t) in names.iter().zip(results) {
                    for (sample, row) in samples.iter().zip(rows(t, samples.len(), name)?) {
                        // Slashes would make groups.
                        let output = name.replace('/', "_");
                        let dataset = if names.len() == 1 { sample.clone() } else { format!("{sample}.{output}") };
                        out.add(&dataset, &row)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        match self {
            Sink::Npz(out, _) => out.finish()?,
            Sink::H5(out, _) => out.finish()?,
        }
        Ok(())
    }
}

/// The `[1, …]` results of each of `n` samples.
fn rows(t: &Tensor, n: usize, name: &str) -> Result<Vec<Tensor>> {
    if n == 1 {
        return Ok(vec![t.clone()]);
    }
    let Some((_, row)) = t.shape().split_first().filter(|(first, _)| **first == n) else {
        bail!(
            "output \"{name}\" has shape {:?} for {n} samples\nhelp: write an .npz, or run samples one by one (--batch 1) where the model leaves the batch free",
            t.shape()
        );
    };
    let shape: Vec<usize> = std::iter::once(1).chain(row.iter().copied()).collect();
    let bytes = t.bytes();
    let len = bytes.len() / n;
    (0..n).map(|i| Ok(Tensor::from_bytes(t.dtype(), shape.clone(), bytes[i * len..][..len].to_vec())?)).collect()
}
