//! Concurrent sessions of several models for as long as is asked for, while the memory in use must stay what it was.
//!
//! `cargo run --release --example soak -- MODEL.onnx… [SECONDS] [THREADS]`, by default 600 seconds on 4 host threads. Each takes
//! the models in turns, and the shared session or a fork of one or two threads, and 24 sets of input shapes where the model has
//! free dimensions: more than a session keeps plans for, so that plans come and go. Every result must have the bytes that the
//! model gave alone. Exit code 1 when one has not, or the peak of the resident memory in the second half of the time is more
//! than a twentieth above that of the first half, whose first tenth does not count: arenas come and go, a leak only comes.

use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use narrowbit_data::{Dataset, InputSpec};
use narrowbit_import::onnx;
use narrowbit_ir::TensorType;
use narrowbit_passes::{SanitizeOptions, sanitize};
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

/// Parts of the time whose peaks are told, and how often the memory is looked at in each.
const PARTS: usize = 20;
const LOOKS: u32 = 20;
/// Growth that is no leak.
const MOST: f64 = 1.05;
/// Batches, and lengths of other free dimensions.
const BATCHES: [usize; 3] = [1, 2, 3];
const LENGTHS: [usize; 8] = [8, 3, 16, 33, 21, 64, 1, 40];
/// Runs of one session before a host thread goes on to the next.
const TURN: usize = 20;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let (numbers, models): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|a| a.parse::<f64>().is_ok());
    let seconds: f64 = numbers.first().map_or(Ok(600.0), |s| s.parse())?;
    let hosts: usize = numbers.get(1).map_or(Ok(4), |s| s.parse())?;
    if models.is_empty() || !(0.0..1e9).contains(&seconds) {
        return Err("usage: soak MODEL.onnx… [SECONDS] [THREADS]".into());
    }
    let subjects = models.iter().map(|m| Subject::load(m)).collect::<Result<Vec<_>, _>>()?;
    let (end, runs, wrong) =
        (Instant::now() + Duration::from_secs_f64(seconds), AtomicUsize::new(0), AtomicUsize::new(0));
    let seen = std::thread::scope(|scope| {
        for host in 0..hosts {
            let (subjects, runs, wrong) = (&subjects, &runs, &wrong);
            scope.spawn(move || work(subjects, host, end, runs, wrong));
        }
        watch(seconds)
    });
    let (runs, wrong) = (runs.into_inner(), wrong.into_inner());
    println!("{runs} runs on {hosts} host threads, {wrong} with other bytes than alone");
    let Some((first, second)) = seen else {
        println!("this system does not tell the memory of a process");
        return Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    };
    let growth = second as f64 / first as f64;
    println!("the peak of the second half is {growth:.3} of that of the first, without its first tenth");
    Ok(if growth <= MOST && wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A model, inputs of several shapes, and what it makes of each.
struct Subject {
    session: Session,
    cases: Vec<(Vec<Tensor>, Vec<Tensor>)>,
}

impl Subject {
    fn load(path: &str) -> Result<Subject, Box<dyn Error>> {
        let mut model = onnx::load(path)?;
        onnx::inline_functions(&mut model)?;
        sanitize(&mut model, &SanitizeOptions::default())?;
        let session = Session::new(model.graph, Options { threads: 2, ..Options::default() })?;
        let mut cases = Vec::new();
        for inputs in inputs(&session)? {
            let outputs = session.run(&inputs)?;
            cases.push((inputs, outputs));
        }
        println!("{path}: {} sets of input shapes", cases.len());
        Ok(Subject { session, cases })
    }
}

/// Random samples for each set of shapes that the model's free dimensions allow.
fn inputs(session: &Session) -> Result<Vec<Vec<Tensor>>, Box<dyn Error>> {
    let graph = session.graph();
    let types = graph.inputs().iter().map(|&v| {
        let value = graph.value(v);
        Ok((value.name.clone(), value.ty.tensor().ok_or("an input is no tensor")?))
    });
    let types = types.collect::<Result<Vec<(String, &TensorType)>, Box<dyn Error>>>()?;
    let is_free = |from: usize, to: usize| {
        let dims = |t: &&TensorType| t.shape.iter().flatten().skip(from).take(to).any(|d| d.as_usize().is_none());
        types.iter().any(|(_, t)| dims(t))
    };
    let batches = if is_free(0, 1) { &BATCHES[..] } else { &BATCHES[..1] };
    let lengths = if is_free(1, usize::MAX) { &LENGTHS[..] } else { &LENGTHS[..1] };
    let mut sets = Vec::new();
    for &length in lengths {
        for &batch in batches {
            let mut specs = Vec::new();
            for (name, ty) in &types {
                let dims = ty.shape.iter().flatten().enumerate();
                let shape: Vec<Option<usize>> = dims.map(|(i, d)| d.as_usize().or((i > 0).then_some(length))).collect();
                specs.push(InputSpec::new(name.clone(), ty.dtype.ok_or("an input has no type")?, shape));
            }
            let fixed = specs.iter().find_map(|s| s.shape.first().copied().flatten());
            let n = fixed.unwrap_or(batch);
            let data = Dataset::random(&specs, n, 0)?;
            sets.push(data.batch(0..n)?.inputs.into_iter().map(|(_, t)| t).collect());
        }
    }
    Ok(sets)
}

fn work(subjects: &[Subject], host: usize, end: Instant, runs: &AtomicUsize, wrong: &AtomicUsize) {
    for round in host.. {
        if Instant::now() >= end {
            return;
        }
        let subject = &subjects[round % subjects.len()];
        // Other forks whenever the models come round again.
        let threads = round / subjects.len() % 3;
        let fork = (threads > 0).then(|| subject.session.fork(threads));
        for i in 0..TURN {
            let (inputs, want) = &subject.cases[(round * TURN + i) % subject.cases.len()];
            match fork.as_ref().unwrap_or(&subject.session).run(inputs) {
                Ok(got) if got.iter().map(Tensor::bytes).eq(want.iter().map(Tensor::bytes)) => {}
                Ok(_) => _ = wrong.fetch_add(1, Ordering::Relaxed),
                Err(e) => {
                    eprintln!("{e}");
                    std::process::exit(2);
                }
            }
            runs.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Tells the resident memory's peak in each part of the time; gives those of the first half, without its first tenth of all
/// time, and of the second.
fn watch(seconds: f64) -> Option<(u64, u64)> {
    let pause = Duration::from_secs_f64(seconds / f64::from(LOOKS) / PARTS as f64);
    let mut peaks = Vec::new();
    for part in 1..=PARTS {
        let mut peak = None;
        for _ in 0..LOOKS {
            std::thread::sleep(pause);
            peak = peak.max(resident());
        }
        let memory = peak.map_or("?".into(), |bytes: u64| format!("{:.1}", bytes as f64 / 1e6));
        println!("{:>5.0} % of the time: at most {memory} MB resident", 100.0 * part as f64 / PARTS as f64);
        peaks.push(peak);
    }
    let (first, second) = peaks.split_at(PARTS / 2);
    let most = |parts: &[Option<u64>]| parts.iter().copied().flatten().max();
    Some((most(&first[PARTS / 10..])?, most(second)?))
}

/// Bytes in memory (Linux: `proc(5)`).
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}
