use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use narrowbit_data::{Dataset, Split};
use narrowbit_ir::{Fact, Graph, Node, NodeId, TensorType, ValueType, infer};
use narrowbit_runtime::Session;
use narrowbit_tensor::Tensor;
use serde::Serialize;

use crate::args::Global;
use crate::data;
use crate::{interrupt, macs, model, output};

/// Measure latency, size and memory
///
/// Several models are measured in turns, so that a busy machine slows all of them alike. Times are per run
/// of a whole batch.
#[derive(Debug, Args)]
pub struct Bench {
    /// The models (.onnx)
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Numbers of threads; by default all cores
    #[arg(long, value_name = "N,M", value_delimiter = ',')]
    threads: Vec<usize>,
    /// Batch sizes, for models with a free batch dimension
    #[arg(long, value_name = "N,M", value_delimiter = ',', default_value = "1")]
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
    /// Also show the time of each node and kernel
    #[arg(long)]
    profile: bool,
    /// Samples to run on, by default random ones
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Preprocessing of --data from a TOML or JSON file
    #[arg(long, value_name = "FILE", requires = "data")]
    preprocess: Option<PathBuf>,
}

#[derive(Serialize)]
struct Row {
    model: PathBuf,
    threads: usize,
    batch: usize,
    runs: usize,
    median_ms: f64,
    p90_ms: f64,
    min_ms: f64,
    samples_per_second: f64,
    load_ms: f64,
    bytes: u64,
    arena_bytes: usize,
    peak_bytes: Option<u64>,
    /// Of a quantized model: what ran on integers.
    #[serde(skip_serializing_if = "Option::is_none")]
    integers: Option<Integers>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<ProfileRow>,
}

#[derive(Serialize)]
struct ProfileRow {
    op: String,
    kernel: String,
    nodes: usize,
    ms: f64,
    share: f64,
}

/// How much of a quantized model's arithmetic ran on integers.
#[derive(Serialize)]
struct Integers {
    macs: u64,
    integer_macs: u64,
    /// The products that ran on floats.
    float_nodes: Vec<FloatNode>,
}

#[derive(Serialize)]
struct FloatNode {
    name: String,
    op: String,
    macs: u64,
    reason: &'static str,
}

struct Subject {
    path: PathBuf,
    session: Session,
    inputs: Vec<Tensor>,
    load_ms: f64,
    peak: Option<u64>,
    times: Vec<f64>,
}

impl Bench {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        interrupt::install();
        if self.runs == 0 {
            bail!("--runs must be at least 1");
        }
        let threads = match &self.threads[..] {
            [] => vec![std::thread::available_parallelism().map_or(1, |n| n.get())],
            list => list.to_vec(),
        };
        let mut rows = Vec::new();
        for &t in &threads {
            for &b in &self.batch {
                rows.extend(self.measure(t, b)?);
            }
        }
        if global.json {
            output::json(&rows)?;
        } else {
            output::print(&self.text(&rows))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn measure(&self, threads: usize, batch: usize) -> Result<Vec<Row>> {
        let mut subjects: Vec<Subject> =
            self.models.iter().map(|m| self.subject(m, threads, batch)).collect::<Result<_>>()?;
        let bar = output::progress("measuring", self.runs * subjects.len());
        let start = Instant::now();
        let limit = Duration::from_secs_f64(self.seconds.max(0.0) * subjects.len() as f64);
        for i in 0..self.runs {
            for s in &mut subjects {
                let start = Instant::now();
                s.session.run(&s.inputs)?;
                s.times.push(start.elapsed().as_secs_f64() * 1e3);
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
        subjects.into_iter().map(|s| self.row(s, threads, batch)).collect()
    }

    fn subject(&self, path: &Path, threads: usize, batch: usize) -> Result<Subject> {
        memory::reset_peak();
        let start = Instant::now();
        let session = model::session(path, threads)?;
        let inputs = self.inputs(path, &session, batch)?;
        session.run(&inputs).with_context(|| format!("{} at batch {batch}", path.display()))?;
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        let peak = memory::peak();
        for _ in 1..self.warmup {
            session.run(&inputs)?;
        }
        Ok(Subject { path: path.to_owned(), session, inputs, load_ms, peak, times: Vec::new() })
    }

    fn inputs(&self, path: &Path, session: &Session, batch: usize) -> Result<Vec<Tensor>> {
        let graph = session.graph();
        let specs = model::input_specs(graph)?;
        let fixed = specs.iter().filter_map(|s| s.shape.first().copied().flatten()).find(|&n| n != batch);
        if let Some(n) = fixed {
            bail!(
                "{}: the batch is fixed at {n} in the file\nhelp: use --batch {n}, or export with a free batch",
                path.display()
            );
        }
        let dataset = match &self.data {
            Some(path) => {
                let mut args = crate::data::plain(path.clone());
                args.preprocess.preprocess.clone_from(&self.preprocess);
                args.open(graph, Split::Test)?
            }
            None => Dataset::random(&specs, batch, 0)?,
        };
        if dataset.len() < batch {
            bail!("{}: {} samples are too few for batch {batch}", dataset.path().display(), dataset.len());
        }
        Ok(data::tensors(dataset.batch(0..batch)?))
    }

    fn row(&self, mut s: Subject, threads: usize, batch: usize) -> Result<Row> {
        s.times.sort_by(f64::total_cmp);
        let at = |share: f64| s.times[((s.times.len() - 1) as f64 * share).round() as usize];
        Ok(Row {
            threads,
            batch,
            runs: s.times.len(),
            median_ms: at(0.5),
            p90_ms: at(0.9),
            min_ms: s.times[0],
            samples_per_second: batch as f64 / at(0.5) * 1e3,
            load_ms: s.load_ms,
            bytes: model::size_on_disk(&s.path)?,
            arena_bytes: s.session.arena_bytes(&s.inputs)?,
            peak_bytes: s.peak,
            integers: integers(&s)?,
            profile: if self.profile { profile(&s)? } else { Vec::new() },
            model: s.path,
        })
    }

    fn text(&self, rows: &[Row]) -> String {
        let ms = |v: f64| format!("{v:.2}");
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|r| {
                vec![
                    r.model.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned()),
                    r.threads.to_string(),
                    r.batch.to_string(),
                    ms(r.median_ms),
                    ms(r.p90_ms),
                    ms(r.min_ms),
                    format!("{:.1}", r.samples_per_second),
                    ms(r.load_ms),
                    output::bytes(r.bytes),
                    r.peak_bytes.map_or("?".into(), output::bytes),
                ]
            })
            .collect();
        let header = [
            "model",
            "threads",
            "batch",
            "median ms",
            "p90 ms",
            "min ms",
            "samples/s",
            "load ms",
            "on disk",
            "peak memory",
        ];
        let mut out = output::table(&header, &cells);
        let mut told = Vec::new();
        for r in rows {
            // The share depends on neither threads nor batch.
            if let Some(integers) = r.integers.as_ref().filter(|_| !told.contains(&&r.model)) {
                out.push_str(&integers.text(&r.model));
                told.push(&r.model);
            }
        }
        for r in rows.iter().filter(|r| !r.profile.is_empty()) {
            out.push_str(&format!("\n{} ({} threads, batch {})\n", r.model.display(), r.threads, r.batch));
            let lines: Vec<Vec<String>> = r
                .profile
                .iter()
                .map(|p| {
                    vec![
                        p.op.clone(),
                        p.kernel.clone(),
                        p.nodes.to_string(),
                        format!("{:.3}", p.ms),
                        format!("{:.1} %", p.share * 100.0),
                    ]
                })
                .collect();
            out.push_str(&output::table(&["operator", "kernel", "nodes", "ms", "share"], &lines));
        }
        out
    }
}

impl Integers {
    fn text(&self, path: &Path) -> String {
        let name = path.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
        let share = self.integer_macs as f64 / self.macs.max(1) as f64 * 100.0;
        let mut out =
            format!("{name}: {share:.1} % of {} multiply-accumulates ran on integers\n", output::count(self.macs));
        for node in self.float_nodes.iter().take(SHOWN) {
            out.push_str(&format!("  on floats: {} ({}): {}\n", node.name, node.op, node.reason));
        }
        if self.float_nodes.len() > SHOWN {
            out.push_str(&format!("  and {} more (--json lists all)\n", self.float_nodes.len() - SHOWN));
        }
        out
    }
}

/// Nodes on floats that the text names.
const SHOWN: usize = 5;

/// What ran on integers; nothing for a model that is not quantized.
fn integers(s: &Subject) -> Result<Option<Integers>> {
    let graph = s.session.graph();
    if !graph.nodes().any(|(_, n)| n.op.name() == "DequantizeLinear") {
        return Ok(None);
    }
    let fact = |t: &Tensor| Fact { ty: ValueType::Tensor(TensorType::of(t)), ..Fact::default() };
    let inputs = graph.inputs().iter().copied().zip(s.inputs.iter().map(fact)).collect();
    let facts = infer::infer(graph, &inputs, infer::Options { max_folded: 1024, strict: false })?;
    let (_, profile) = s.session.profile(&s.inputs)?;
    let whole: BTreeSet<NodeId> = profile.rows.iter().filter(|r| r.on_integers).map(|r| r.node).collect();
    let mut out = Integers { macs: 0, integer_macs: 0, float_nodes: Vec::new() };
    for (id, node) in graph.nodes() {
        let macs = macs::of_node(&facts, node).unwrap_or(0);
        out.macs = out.macs.saturating_add(macs);
        if whole.contains(&id) {
            out.integer_macs = out.integer_macs.saturating_add(macs);
        } else if macs > 0 {
            let reason = float_reason(graph, node);
            out.float_nodes.push(FloatNode { name: node.name.clone(), op: node.op.name().into(), macs, reason });
        }
    }
    out.float_nodes.sort_by_key(|n| std::cmp::Reverse(n.macs));
    Ok(Some(out))
}

/// Why a product ran on floats.
fn float_reason(graph: &Graph, node: &Node) -> &'static str {
    let dequantized = |i: usize| {
        let producer = node.input(i).and_then(|v| graph.producer(v));
        producer.is_some_and(|(n, _)| graph.node(n).op.name() == "DequantizeLinear")
    };
    match (dequantized(0), dequantized(1)) {
        (false, _) => "its input is not quantized in the file",
        (_, false) => "its second operand is not quantized in the file",
        _ => "there is no integer kernel for this form",
    }
}

/// The time by operator and kernel, summed over one run, longest first.
fn profile(s: &Subject) -> Result<Vec<ProfileRow>> {
    let (_, profile) = s.session.profile(&s.inputs)?;
    let mut rows: Vec<ProfileRow> = Vec::new();
    for r in &profile.rows {
        let op = s.session.graph().node(r.node).op.name();
        let ms = r.seconds * 1e3;
        match rows.iter_mut().find(|p| p.op == op && p.kernel == r.kernel) {
            Some(p) => {
                p.nodes += 1;
                p.ms += ms;
            }
            None => rows.push(ProfileRow { op: op.into(), kernel: r.kernel.clone(), nodes: 1, ms, share: 0.0 }),
        }
    }
    let total: f64 = rows.iter().map(|p| p.ms).sum();
    rows.iter_mut().for_each(|p| p.share = p.ms / total);
    rows.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    Ok(rows)
}

/// The peak of this process's memory, where the system tells it.
mod memory {
    /// Starts a new peak from the memory in use now (Linux: `proc(5)`, clear_refs).
    pub fn reset_peak() {
        let _ = std::fs::write("/proc/self/clear_refs", "5");
    }

    /// Bytes in use at the most since the last reset.
    pub fn peak() -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
    }
}
