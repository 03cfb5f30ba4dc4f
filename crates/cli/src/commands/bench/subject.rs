//! A model that is measured.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use narrowbit_data::Split;
use narrowbit_ir::infer::{self, Facts};
use narrowbit_ir::{Fact, TensorType, ValueType};
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;
use serde::Serialize;

use super::memory;
use crate::args::Products;
use crate::runs::Runs;
use crate::{data, interrupt, model};

/// How models are run.
pub struct Work {
    /// Threads to compute with.
    pub threads: usize,
    /// How floats are multiplied.
    pub float: Products,
    /// Samples per run; what the file says, or one, without.
    pub batch: Option<usize>,
    /// Samples to run on; random ones without.
    pub data: Option<PathBuf>,
    /// Preprocessing of the samples.
    pub preprocess: Option<PathBuf>,
    /// Runs before measuring.
    pub warmup: usize,
    /// Whether this process measures nothing else, so that its peak of memory is the model's.
    pub alone: bool,
}

/// Milliseconds from a file to the first result.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Load {
    /// Reading and parsing the file.
    pub parse_ms: f64,
    /// Cleaning the graph and making the session.
    pub session_ms: f64,
    /// The first run: it plans for the input's shapes and packs the weights.
    pub first_run_ms: f64,
}

impl Load {
    /// All of it.
    pub fn total_ms(&self) -> f64 {
        self.parse_ms + self.session_ms + self.first_run_ms
    }
}

/// A model ready to run, and the times of its runs.
pub struct Subject {
    pub path: PathBuf,
    pub session: Session,
    /// Samples per run.
    pub batch: usize,
    pub inputs: Vec<Tensor>,
    pub load: Load,
    /// Bytes in use at the most while it was loaded and run once.
    pub peak: Option<u64>,
    /// Milliseconds of each run.
    pub times: Vec<f64>,
}

impl Subject {
    /// Loads a model, runs it once, and warms it up.
    pub fn new(path: &Path, work: &Work) -> Result<Subject> {
        let child = if work.alone { None } else { memory::of_process(path, work) };
        memory::reset_peak();
        let mut clock = Instant::now();
        let mut lap = || {
            let ms = clock.elapsed().as_secs_f64() * 1e3;
            clock = Instant::now();
            ms
        };
        let mut parsed = model::load_runnable(path)?;
        let parse_ms = lap();
        model::sanitize(&mut parsed)?;
        let session = Session::new(parsed.graph, Options { threads: work.threads, ..Options::default() })?;
        let session = work.float.apply(session)?;
        let session_ms = lap();
        let (inputs, batch) = inputs(path, &session, work)?;
        lap();
        session.run(&inputs).with_context(|| format!("{} at batch {}", path.display(), batch))?;
        let load = Load { parse_ms, session_ms, first_run_ms: lap() };
        let peak = if work.alone { memory::peak() } else { child };
        for _ in 1..work.warmup {
            if interrupt::requested() {
                bail!("stopped by Ctrl-C while warming up");
            }
            session.run(&inputs)?;
        }
        Ok(Subject { path: path.to_owned(), session, batch, inputs, load, peak, times: Vec::new() })
    }

    /// Measures one run.
    pub fn run(&mut self) -> Result<()> {
        let start = Instant::now();
        self.session.run(&self.inputs)?;
        self.times.push(start.elapsed().as_secs_f64() * 1e3);
        Ok(())
    }

    /// What is known of the graph's values for these inputs.
    pub fn facts(&self) -> Result<Facts> {
        let graph = self.session.graph();
        let fact = |t: &Tensor| Fact { ty: ValueType::Tensor(TensorType::of(t)), ..Fact::default() };
        let inputs = graph.inputs().iter().copied().zip(self.inputs.iter().map(fact)).collect();
        Ok(infer::infer(graph, &inputs, infer::Options { max_folded: 1024, strict: false })?)
    }
}

/// The inputs of a run, and how many samples they are.
fn inputs(path: &Path, session: &Session, work: &Work) -> Result<(Vec<Tensor>, usize)> {
    let graph = session.graph();
    let named = || path.display().to_string();
    let (dataset, batch) = match &work.data {
        Some(path) => {
            let mut args = data::plain(path.clone());
            args.preprocess.preprocess.clone_from(&work.preprocess);
            let dataset = args.open(graph, Split::Test)?;
            let size = Runs::new(graph, &dataset, work.batch, 1).with_context(named)?.size;
            (dataset, size)
        }
        None => data::random_run(graph, work.batch).with_context(named)?,
    };
    if dataset.len() < batch {
        bail!("{}: {} samples are too few for batch {batch}", dataset.path().display(), dataset.len());
    }
    Ok((data::tensors(dataset.batch(0..batch)?), batch))
}
