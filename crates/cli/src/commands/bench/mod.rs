//! `bench`: how fast, how large, and where the time goes.

mod cases;
mod integers;
mod kernels;
mod memory;
mod peaks;
mod profile;
mod report;
mod subject;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use self::peaks::Peaks;
use self::report::{Ratios, Row};
use self::subject::{Subject, Work};
use crate::args::{Global, Products};
use crate::timing::Profiled;
use crate::{interrupt, output};

/// Measure latency, size and memory
///
/// Several models are measured in turns, so that a busy machine slows all of them alike, and held against
/// the first one. Times are per run of a whole batch; those of loading come from one load in this process.
/// The peak of memory is that of a process which loads and runs one model only.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, disable_help_subcommand = true)]
pub struct Bench {
    #[command(subcommand)]
    what: Option<What>,
    /// The models (.onnx)
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Numbers of threads, 0 for one per core, which is the default
    #[arg(long, value_name = "N,M", value_delimiter = ',', value_parser = crate::args::thread_count)]
    threads: Vec<usize>,
    /// Batch sizes, for models with a free batch dimension [default: what the file says, else 1]
    #[arg(long, value_name = "N,M", value_delimiter = ',')]
    batch: Vec<usize>,
    /// Runs to measure
    #[arg(long, value_name = "N", default_value_t = 30)]
    runs: usize,
    /// Runs before measuring
    #[arg(long, value_name = "N", default_value_t = 3)]
    warmup: usize,
    /// Stop measuring a model after so many seconds (five runs are always made)
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    seconds: f64,
    /// Also show the time of each operator type and node in the fastest of five more runs, and its share of the peak of this machine
    #[arg(long)]
    profile: bool,
    /// Show so many nodes in the profile; 0 for all
    #[arg(long, value_name = "N", default_value_t = 12, requires = "profile")]
    top: usize,
    #[command(flatten)]
    float: Products,
    /// Samples to run on, by default random ones
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Preprocessing of --data from a TOML or JSON file
    #[arg(long, value_name = "FILE", requires = "data")]
    preprocess: Option<PathBuf>,
}

/// What is measured instead of models.
#[derive(Debug, Subcommand)]
enum What {
    // No line here: clap would take it for the whole text of `--help`.
    Kernels(kernels::Kernels),
}

/// Runs of which the fastest is shown as the profile.
const PROFILED: usize = 5;

/// Threads to measure with: those of the list, or all cores.
fn threads(list: &[usize]) -> Vec<usize> {
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    match list {
        [] => vec![all],
        list => list.iter().map(|&n| if n == 0 { all } else { n }).collect(),
    }
}

impl Bench {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        interrupt::install();
        if let Some(What::Kernels(kernels)) = &self.what {
            return kernels.run(global);
        }
        if self.runs == 0 {
            bail!("--runs must be at least 1");
        }
        if self.batch.contains(&0) {
            bail!("--batch must be at least 1");
        }
        if !(0.0..=1e9).contains(&self.seconds) {
            bail!("--seconds must be 0 … 10⁹, not {}", self.seconds);
        }
        let threads = threads(&self.threads);
        let batches: Vec<Option<usize>> =
            if self.batch.is_empty() { vec![None] } else { self.batch.iter().copied().map(Some).collect() };
        let alone = self.models.len() * threads.len() * batches.len() == 1;
        let mut rows = Vec::new();
        for &threads in &threads {
            let mut peaks = None;
            for &batch in &batches {
                let work = Work {
                    threads,
                    float: self.float,
                    batch,
                    data: self.data.clone(),
                    preprocess: self.preprocess.clone(),
                    warmup: self.warmup,
                    alone,
                };
                rows.extend(self.measure(&work, &mut peaks)?);
            }
        }
        if global.json {
            output::json(&rows)?;
        } else {
            output::print(&report::text(&rows, self.models.len(), self.top))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// One row for each model; `peaks` are measured once for each number of threads.
    fn measure(&self, work: &Work, peaks: &mut Option<Peaks>) -> Result<Vec<Row>> {
        let mut subjects: Vec<Subject> = self.models.iter().map(|m| Subject::new(m, work)).collect::<Result<_>>()?;
        let bar = output::progress("measuring", self.runs * subjects.len());
        let start = Instant::now();
        let limit = Duration::from_secs_f64(self.seconds * subjects.len() as f64);
        for i in 0..self.runs {
            for s in &mut subjects {
                s.run()?;
                bar.inc(1);
            }
            if interrupt::requested() {
                bail!("stopped by Ctrl-C after {} runs", i + 1);
            }
            if i >= 4 && start.elapsed() > limit {
                break;
            }
        }
        bar.finish_and_clear();
        if let (true, None, Some(s)) = (self.profile, &peaks, subjects.first()) {
            *peaks = Some(Peaks::measure(s.session.exec()));
        }
        let peaks = peaks.as_ref().filter(|_| self.profile);
        let mut rows = subjects.into_iter().map(|s| row(s, work, peaks)).collect::<Result<Vec<Row>>>()?;
        if rows.len() > 1 {
            let ratios: Vec<Ratios> = rows.iter().map(|r| Ratios::new(r, &rows[0])).collect();
            rows.iter_mut().zip(ratios).for_each(|(row, r)| row.ratios = Some(r));
        }
        Ok(rows)
    }
}

/// What was measured of a model; with `peaks`, its profile too.
fn row(s: Subject, work: &Work, peaks: Option<&Peaks>) -> Result<Row> {
    let facts = s.facts()?;
    let profiled = Profiled::fastest(&s.session, &s.inputs, if peaks.is_some() { PROFILED } else { 1 })?;
    let integers = integers::Integers::new(s.session.graph(), &facts, &profiled.steps);
    let profile = peaks.map(|p| profile::Profile::new(s.session.graph(), &facts, &profiled, p));
    Row::new(s, work, integers, profile)
}
