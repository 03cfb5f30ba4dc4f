//! Concurrent sessions for as long as is asked for, while the memory in use must stay what it was.
//!
//! `cargo run --release --example soak -- MODEL.onnx [SECONDS] [THREADS]`, by default 600 seconds on 4 host threads. Each takes the shared
//! session or a fork of one or two threads in turns, and batches of 1 to 3 where the model has a free batch. Exit code 1
//! when the resident memory grew by more than a twentieth after the first tenth of the time.

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use narrowbit_data::{Dataset, InputSpec};
use narrowbit_import::onnx;
use narrowbit_passes::{SanitizeOptions, sanitize};
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

/// How often the memory is looked at.
const LOOKS: u32 = 20;
/// Growth from the second look on that is no leak.
const MOST: f64 = 1.05;

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("usage: soak MODEL.onnx [SECONDS] [THREADS]")?;
    let seconds: f64 = args.next().map_or(Ok(600.0), |s| s.parse())?;
    let hosts: usize = args.next().map_or(Ok(4), |s| s.parse())?;
    let mut model = onnx::load(&model)?;
    onnx::inline_functions(&mut model)?;
    sanitize(&mut model, &SanitizeOptions::default())?;
    let session = Session::new(model.graph, Options { threads: 2, ..Options::default() })?;
    let inputs = inputs(&session)?;
    let (end, runs) = (Instant::now() + Duration::from_secs_f64(seconds), AtomicUsize::new(0));
    let seen = std::thread::scope(|scope| {
        for host in 0..hosts {
            let (session, inputs, runs) = (&session, &inputs, &runs);
            scope.spawn(move || work(session, inputs, host, end, runs));
        }
        let mut seen = Vec::new();
        for look in 1..=LOOKS {
            std::thread::sleep(Duration::from_secs_f64(seconds / f64::from(LOOKS)));
            let now = resident();
            seen.push(now);
            let memory = now.map_or("?".into(), |bytes| format!("{:.1}", bytes as f64 / 1e6));
            println!("{:>5.0} % of the time: {memory} MB resident", 100.0 * f64::from(look) / f64::from(LOOKS));
        }
        seen
    });
    println!("{} runs on {hosts} host threads", runs.load(Ordering::Relaxed));
    let (Some(Some(first)), Some(Some(last))) = (seen.get(1), seen.last()) else {
        println!("this system does not tell the memory of a process");
        return Ok(ExitCode::SUCCESS);
    };
    let growth = *last as f64 / *first as f64;
    println!("memory at the end: {growth:.3} of that after a tenth of the time");
    Ok(if growth <= MOST { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Batches of 1 to 3 random samples, or the one that the model fixes.
fn inputs(session: &Session) -> Result<Vec<Vec<Tensor>>, Box<dyn std::error::Error>> {
    let graph = session.graph();
    let mut specs = Vec::new();
    for &v in graph.inputs() {
        let value = graph.value(v);
        let ty = value.ty.tensor().ok_or("an input is no tensor")?;
        let shape: Vec<Option<usize>> = ty.shape.iter().flatten().map(|d| d.as_usize()).collect();
        specs.push(InputSpec::new(value.name.clone(), ty.dtype.ok_or("an input has no type")?, shape));
    }
    let fixed = specs.iter().find_map(|s: &InputSpec| s.shape.first().copied().flatten());
    let batches = fixed.map_or(vec![1, 2, 3], |n| vec![n]);
    let samples = |n: usize| -> Result<Vec<Tensor>, Box<dyn std::error::Error>> {
        let data = Dataset::random(&specs, n, 0)?;
        Ok(data.batch(0..n)?.inputs.into_iter().map(|(_, t)| t).collect())
    };
    batches.into_iter().map(samples).collect()
}

fn work(session: &Session, inputs: &[Vec<Tensor>], host: usize, end: Instant, runs: &AtomicUsize) {
    for round in host.. {
        if Instant::now() >= end {
            return;
        }
        let fork = (round % 3 > 0).then(|| session.fork(round % 3));
        for i in 0..20 {
            if let Err(e) = fork.as_ref().unwrap_or(session).run(&inputs[(round + i) % inputs.len()]) {
                eprintln!("{e}");
                std::process::exit(2);
            }
            runs.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Bytes in memory (Linux: `proc(5)`).
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}
