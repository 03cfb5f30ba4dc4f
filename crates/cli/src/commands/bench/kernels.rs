//! `bench kernels`: each kernel of each instruction set against what the machine does at the most.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use narrowbit_kernels::peak::stream;
use narrowbit_kernels::{Exec, Isa, Tier};
use serde::Serialize;

use super::cases::{self, Case};
use super::peaks::{self, Peaks, count};
use crate::args::Global;
use crate::timing::median;
use crate::{interrupt, output};

/// Measure the kernels of each instruction set against the peak of this machine
///
/// Shapes are those of common networks at batch 1. A kernel is held against the slower of two bounds, both measured
/// in this run with the same instruction set and threads: its multiply-accumulates at the peak of
/// a loop on registers (`compute`), and the fastest plain pass of vector loads and stores over as many bytes as its
/// operands and results have, in the same caches (`memory`).
#[derive(Debug, Args)]
pub struct Kernels {
    /// Numbers of threads, 0 for one per core, which is the default
    #[arg(long, value_name = "N,M", value_delimiter = ',', value_parser = crate::args::thread_count)]
    threads: Vec<usize>,
    /// Instruction sets: scalar, avx2, avx-vnni, avx512, vnni, amx, on aarch64 neon, neon-dot, neon-i8mm; by default all of this machine but scalar
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    tier: Vec<Tier>,
    /// Measure only what has this text in its kind, shape or network
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Seconds for each kernel and shape (three runs are always made)
    #[arg(long, value_name = "S", default_value_t = 0.2)]
    seconds: f64,
}

#[derive(Serialize)]
struct Report {
    peaks: Vec<TierPeaks>,
    kernels: Vec<Row>,
}

#[derive(Serialize)]
struct TierPeaks {
    #[serde(serialize_with = "peaks::name")]
    tier: Tier,
    #[serde(flatten)]
    peaks: Peaks,
}

/// One kernel on one shape.
#[derive(Serialize)]
struct Row {
    #[serde(serialize_with = "peaks::name")]
    tier: Tier,
    threads: usize,
    family: &'static str,
    kernel: String,
    shape: String,
    network: &'static str,
    runs: usize,
    median_us: f64,
    min_us: f64,
    /// 10⁹ operations per second; a multiply-accumulate counts as two.
    #[serde(skip_serializing_if = "Option::is_none")]
    gops: Option<f64>,
    /// 10⁹ bytes of operands and results per second.
    gb_per_second: f64,
    /// The time of the slower bound.
    bound_us: f64,
    /// Which one that is.
    bound: &'static str,
    /// The bound over the median: 1 would be as fast as the machine.
    share: f64,
}

/// Turns of a kernel and the plain pass.
const TURNS: usize = 3;
/// Runs in a turn at the most.
const MOST_RUNS: usize = 1000;
/// … and at the least.
const LEAST_RUNS: usize = 1;

impl Kernels {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        let threads = super::threads(&self.threads);
        let mut report = Report { peaks: Vec::new(), kernels: Vec::new() };
        let tiers = self.tiers()?;
        let specs = cases::all();
        let bar = output::progress("measuring", tiers.len() * threads.len() * specs.len());
        for isa in tiers {
            for &n in &threads {
                let exec = Exec::new(isa, n);
                let peaks = Peaks::measure(&exec);
                for spec in &specs {
                    bar.inc(1);
                    if interrupt::requested() {
                        bail!("stopped by Ctrl-C");
                    }
                    if !spec.runs_on(isa) {
                        continue;
                    }
                    if self.only.as_ref().is_some_and(|text| !spec.mentions(text)) {
                        continue;
                    }
                    let case = spec.build(&exec).with_context(|| spec.text())?;
                    let row = self.measure(&exec, &peaks, case).with_context(|| spec.text())?;
                    report.kernels.push(row);
                }
                report.peaks.push(TierPeaks { tier: isa.tier(), peaks });
            }
        }
        bar.finish_and_clear();
        if report.kernels.is_empty() {
            bail!("no kind, shape or network has the text of --only\nhelp: run without --only to see all");
        }
        if global.json {
            output::json(&report)?;
        } else {
            output::print(&text(&report))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The tiers to measure, best first.
    fn tiers(&self) -> Result<Vec<Isa>> {
        if !self.tier.is_empty() {
            return Ok(self.tier.iter().map(|&t| Isa::with_tier(t)).collect::<Result<_, _>>()?);
        }
        let most = Isa::from_env()?.tier();
        let mut all: Vec<Isa> = Isa::available().into_iter().filter(|isa| isa.tier() <= most).collect();
        if all.len() > 1 {
            all.retain(|isa| isa.tier() != Tier::Scalar);
        }
        Ok(all)
    }

    fn measure(&self, exec: &Exec, peaks: &Peaks, mut case: Case) -> Result<Row> {
        let _awake = exec.pool().keep_awake();
        let seconds = self.seconds.clamp(0.0, 3600.0);
        let from = vec![1.0f32; case.reads.div_ceil(4)];
        let mut to = vec![0.0f32; case.writes.div_ceil(4)];
        let mut plain = || {
            stream(exec, &from, &mut to);
            Ok(())
        };
        let (mut times, mut pass) = (Vec::new(), Vec::new());
        // In turns, but each several times in a row: what it leaves in the caches is its own.
        for _ in 0..TURNS {
            times.extend(time(seconds / TURNS as f64, || (case.run)(exec))?);
            pass.extend(time(seconds / TURNS as f64 / 4.0, &mut plain)?);
        }
        let us = median(times.clone()) * 1e6;
        let memory = fastest(&pass) * 1e6;
        let compute = case.macs as f64 * 2e-3 / peaks.of(case.arithmetic).gops;
        let (bound, bound_us) = if compute > memory { ("compute", compute) } else { ("memory", memory) };
        Ok(Row {
            tier: exec.isa().tier(),
            threads: exec.threads(),
            family: case.family,
            kernel: case.kernel,
            shape: case.shape,
            network: case.network,
            runs: times.len(),
            median_us: us,
            min_us: fastest(&times) * 1e6,
            gops: (case.macs > 0).then(|| case.macs as f64 * 2e-3 / us),
            gb_per_second: (case.reads + case.writes) as f64 * 1e-3 / us,
            bound_us,
            bound,
            share: bound_us / us,
        })
    }
}

fn fastest(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Seconds of each run within a time, after one that is not counted.
fn time(seconds: f64, mut run: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let limit = Duration::from_secs_f64(seconds);
    run()?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < LEAST_RUNS || times.len() < MOST_RUNS && start.elapsed() < limit {
        let one = Instant::now();
        run()?;
        times.push(one.elapsed().as_secs_f64());
    }
    Ok(times)
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    for TierPeaks { tier, peaks } in &report.peaks {
        let rows = report.kernels.iter().filter(|r| r.tier == *tier && r.threads == peaks.threads);
        let cells: Vec<Vec<String>> = rows
            .map(|r| {
                vec![
                    r.family.to_owned(),
                    r.kernel.clone(),
                    r.shape.clone(),
                    r.network.to_owned(),
                    format!("{:.1}", r.median_us),
                    r.gops.map_or(String::new(), |g| format!("{g:.1}")),
                    format!("{:.1}", r.gb_per_second),
                    r.bound.to_owned(),
                    format!("{:.0} %", r.share * 100.0),
                ]
            })
            .collect();
        if cells.is_empty() {
            continue;
        }
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!("{tier}, {}; {}", count(peaks.threads, "thread"), peaks.text()));
        let header = ["family", "kernel", "shape", "network", "µs", "GOP/s", "GB/s", "bound", "reached"];
        out.push_str(&output::table(&header, &cells));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_a_kernel_however_slow_it_is() {
        let mut calls = 0;
        let times = time(0.0, || {
            calls += 1;
            Ok(())
        });
        assert_eq!((times.expect("it runs").len(), calls), (LEAST_RUNS, LEAST_RUNS + 1));
        assert!(time(0.0, || bail!("no")).is_err());
    }

    #[test]
    fn measures_every_case_of_small_size_on_every_tier() {
        for isa in Isa::available() {
            let exec = Exec::new(isa, 1);
            for spec in cases::all().iter().filter(|s| s.macs() < 40_000_000 && s.runs_on(isa)) {
                let mut case = spec.build(&exec).unwrap_or_else(|e| panic!("{}: {e}", spec.text()));
                (case.run)(&exec).unwrap_or_else(|e| panic!("{}: {e}", spec.text()));
                assert!(case.reads + case.writes > 0 && !case.kernel.is_empty());
                assert_eq!(case.macs, spec.macs(), "{}", spec.text());
            }
        }
    }
}
