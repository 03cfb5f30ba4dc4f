//! What `bench` prints.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use super::integers::Integers;
use super::peaks::count;
use super::profile::Profile;
use super::subject::{Load, Subject, Work};
use crate::{model, output};

/// One model with a number of threads and a batch size.
#[derive(Serialize)]
pub struct Row {
    model: PathBuf,
    threads: usize,
    batch: usize,
    runs: usize,
    median_ms: f64,
    p90_ms: f64,
    min_ms: f64,
    samples_per_second: f64,
    /// All of `load`.
    load_ms: f64,
    #[serde(flatten)]
    load: Load,
    bytes: u64,
    arena_bytes: usize,
    peak_bytes: Option<u64>,
    /// Against the first model, where there are several.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub ratios: Option<Ratios>,
    /// Of a quantized model: what ran on integers.
    #[serde(skip_serializing_if = "Option::is_none")]
    integers: Option<Integers>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    profile: Option<Profile>,
}

/// A model over the first one: below 1 is faster or smaller.
#[derive(Debug, Clone, Serialize)]
pub struct Ratios {
    latency_ratio: f64,
    bytes_ratio: f64,
    peak_ratio: Option<f64>,
}

impl Ratios {
    /// The ratios of one row to another.
    pub fn new(row: &Row, first: &Row) -> Ratios {
        let ratio = |a: u64, b: u64| a as f64 / b.max(1) as f64;
        Ratios {
            latency_ratio: row.median_ms / first.median_ms,
            bytes_ratio: ratio(row.bytes, first.bytes),
            peak_ratio: row.peak_bytes.zip(first.peak_bytes).map(|(a, b)| ratio(a, b)),
        }
    }
}

impl Row {
    /// What was measured of a model.
    pub fn new(mut s: Subject, work: &Work, integers: Option<Integers>, profile: Option<Profile>) -> Result<Row> {
        s.times.sort_by(f64::total_cmp);
        let at = |share: f64| s.times[((s.times.len() - 1) as f64 * share).round() as usize];
        Ok(Row {
            threads: work.threads,
            batch: s.batch,
            runs: s.times.len(),
            median_ms: at(0.5),
            p90_ms: at(0.9),
            min_ms: s.times[0],
            samples_per_second: s.batch as f64 / at(0.5) * 1e3,
            load_ms: s.load.total_ms(),
            load: s.load,
            bytes: model::size_on_disk(&s.path)?,
            arena_bytes: s.session.arena_bytes(&s.inputs)?,
            peak_bytes: s.peak,
            ratios: None,
            integers,
            profile,
            model: s.path,
        })
    }
}

/// The name of a model in tables: of its file, or the whole path where names would be the same.
fn label(path: &Path, all: &[&Path]) -> String {
    let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned());
    let same = all.iter().filter(|p| **p != path && name(p) == name(path)).count();
    name(path).filter(|_| same == 0).unwrap_or_else(|| path.display().to_string())
}

fn ms(v: f64) -> String {
    if v < 1.0 { format!("{v:.3}") } else { format!("{v:.2}") }
}

fn ratio(v: Option<f64>) -> String {
    v.map_or(String::new(), |v| format!("{v:.2}"))
}

/// Everything for people, of so many models; at most `top` nodes of each profile, unless that is 0.
pub fn text(rows: &[Row], models: usize, top: usize) -> String {
    let paths: Vec<&Path> = rows.iter().map(|r| r.model.as_path()).collect();
    let label = |r: &Row| label(&r.model, &paths);
    let mut out = speed(rows, &label);
    out.push('\n');
    out.push_str(&sizes(rows, &label));
    if let Some(first) = rows.first().filter(|r| r.ratios.is_some()) {
        out.push_str(&format!("ratios are to {}: below 1 is faster or smaller\n", label(first)));
    }
    let mut told = Vec::new();
    for r in rows {
        // The share depends on neither threads nor batch.
        if let Some(integers) = r.integers.as_ref().filter(|_| !told.contains(&&r.model)) {
            out.push_str(&integers.text(&label(r)));
            told.push(&r.model);
        }
    }
    out.push_str(&side_by_side(rows, models, &label));
    for r in rows {
        if let Some(profile) = &r.profile {
            let (threads, batch) = (count(r.threads, "thread"), r.batch);
            out.push_str(&format!("\n{} ({threads}, batch {batch})\n{}", r.model.display(), profile.text(top)));
        }
    }
    out
}

fn speed(rows: &[Row], label: &dyn Fn(&Row) -> String) -> String {
    let cells = |r: &Row| {
        let head = [label(r), r.threads.to_string(), r.batch.to_string()];
        let times = [ms(r.median_ms), ms(r.p90_ms), ms(r.min_ms), format!("{:.1}", r.samples_per_second)];
        let ratio = r.ratios.iter().map(|x| ratio(Some(x.latency_ratio)));
        head.into_iter().chain(times).chain(ratio).collect::<Vec<String>>()
    };
    let header = ["model", "threads", "batch", "median ms", "p90 ms", "min ms", "samples/s", "ratio"];
    table(&header, rows, cells)
}

fn sizes(rows: &[Row], label: &dyn Fn(&Row) -> String) -> String {
    let cells = |r: &Row| {
        let head = [label(r), r.threads.to_string(), r.batch.to_string()];
        let load = [ms(r.load_ms), ms(r.load.parse_ms), ms(r.load.session_ms), ms(r.load.first_run_ms)];
        let size = [output::bytes(r.bytes), r.peak_bytes.map_or("?".into(), output::bytes)];
        let ratios = r.ratios.iter().flat_map(|x| [ratio(Some(x.bytes_ratio)), ratio(x.peak_ratio)]);
        head.into_iter().chain(load).chain(size).chain(ratios).collect::<Vec<String>>()
    };
    let header = [
        "model",
        "threads",
        "batch",
        "load ms",
        "= parse",
        "+ session",
        "+ first run",
        "on disk",
        "peak memory",
        "disk ratio",
        "memory ratio",
    ];
    table(&header, rows, cells)
}

/// A table with as many columns as its rows have: those at the end are for several models.
fn table(header: &[&str], rows: &[Row], cells: impl Fn(&Row) -> Vec<String>) -> String {
    let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let columns = cells.iter().map(Vec::len).max().unwrap_or(header.len());
    output::table(&header[..columns.min(header.len())], &cells)
}

/// Medians of several models with several threads and batches: a line for each of those, a column for each model.
fn side_by_side(rows: &[Row], models: usize, label: &dyn Fn(&Row) -> String) -> String {
    if models < 2 || rows.len() <= models {
        return String::new();
    }
    let names: Vec<String> = rows[..models].iter().map(label).collect();
    let header: Vec<&str> = ["median ms", ""].into_iter().chain(names.iter().map(String::as_str)).collect();
    let mut last = None;
    let lines: Vec<Vec<String>> = rows
        .chunks(models)
        .map(|line| {
            let (threads, batch) = (line[0].threads, line[0].batch);
            let head = if last == Some(threads) { String::new() } else { format!("threads {threads}") };
            last = Some(threads);
            [head, format!("batch {batch}")].into_iter().chain(line.iter().map(|r| ms(r.median_ms))).collect()
        })
        .collect();
    format!("\n{}", output::table(&header, &lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_models_by_their_file_unless_two_are_called_alike() {
        let [a, b, c] = ["x/model.onnx", "y/model.onnx", "x/int8.onnx"].map(Path::new);
        assert_eq!(label(a, &[a, c]), "model.onnx");
        assert_eq!(label(a, &[a, b, c]), "x/model.onnx");
        assert_eq!(label(c, &[a, b, c]), "int8.onnx");
        // The same file twice is one name.
        assert_eq!(label(a, &[a, a]), "model.onnx");
    }
}
