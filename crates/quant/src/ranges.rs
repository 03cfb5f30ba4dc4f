//! What calibration has seen, as a file: `calibrate` writes it, `quantize --ranges` reads it.
//! Files of several shards merge; a calibration that was interrupted resumes from its file.

use std::collections::BTreeMap;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use narrowbit_ir::Graph;
use serde::{Deserialize, Serialize};

use crate::observe::{Histogram, Means, MovingAverage, Peak, Peaks, Positions, SavedHistogram, Spread, Stats};

/// The value of the field `format`.
pub const FORMAT: &str = "narrowbit-ranges/1";

/// Records of a model's tensors, by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ranges {
    /// The structure of the model that was calibrated (see [`graph_hash`]).
    pub graph: String,
    /// Samples seen.
    pub samples: u64,
    /// Samples that were run again, to fill up the runs of a model that takes a fixed number: histograms and averages have
    /// them twice or more.
    pub repeated: u64,
    /// Where the samples came from.
    pub data: Vec<String>,
    /// Whether they were random numbers instead of real samples.
    pub random: bool,
    /// The records.
    pub tensors: BTreeMap<String, Stats>,
}

/// Why a file of ranges could not be read or written, or two could not be merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RangesError {
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The file is no ranges file, or a damaged one.
    #[error("{path}: {problem}\nhelp: ranges files are made by `narrowbit calibrate`")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The ranges belong to another model.
    #[error(
        "the ranges were calibrated on another model ({found}, this one is {expected}){detail}\nhelp: calibrate this model, with the same options that change it (--scheme, --equalize, --smooth, --shiftmax, --layer-mad, -c) as for quantizing"
    )]
    OtherModel {
        /// The hash in the file.
        found: String,
        /// The hash of the model.
        expected: String,
        /// What differs, as the rest of a sentence.
        detail: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    graph: String,
    samples: u64,
    #[serde(skip_serializing_if = "is_zero", default)]
    repeated: u64,
    data: Vec<String>,
    random: bool,
    tensors: BTreeMap<String, Record>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    count: u64,
    non_finite: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    min: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    max: Option<f32>,
    average: MovingAverage,
    /// Absent in files of older versions.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    peak: Option<Peak>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    histogram: Option<SavedHistogram>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    positions: Option<Positions>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    means: Option<Means>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    spread: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    peaks: Option<Peaks>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Larger files are refused: no calibration of any real model writes one.
const MAX_FILE: u64 = 1 << 30;

impl Ranges {
    /// Reads a file.
    ///
    /// # Errors
    /// When the file can't be read or is not one that calibration wrote.
    pub fn load(path: &Path) -> Result<Ranges, RangesError> {
        let io = |source| RangesError::Io { path: path.into(), source };
        let bad = |problem: String| RangesError::Format { path: path.into(), problem };
        let file = std::fs::File::open(path).map_err(io)?;
        let mut text = String::new();
        let read = BufReader::new(file).take(MAX_FILE + 1).read_to_string(&mut text);
        let read = read.map_err(|e| match e.kind() {
            ErrorKind::InvalidData => bad("this is no text".into()),
            _ => io(e),
        })?;
        if read as u64 > MAX_FILE {
            return Err(bad(format!("larger than {MAX_FILE} bytes")));
        }
        Ranges::parse(&text, path)
    }

    /// Reads the text of a file; `path` names it in errors.
    ///
    /// # Errors
    /// When it is not one that calibration wrote.
    pub fn parse(text: &str, path: &Path) -> Result<Ranges, RangesError> {
        let bad = |problem: String| RangesError::Format { path: path.into(), problem };
        let file: File = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        if file.format != FORMAT {
            return Err(bad(format!("the format is \"{}\", this version reads \"{FORMAT}\"", file.format)));
        }
        let stats = |(name, r): (String, Record)| {
            let s = stats(r).map_err(|e| bad(format!("tensor \"{name}\": {e}")))?;
            Ok((name, s))
        };
        let tensors = file.tensors.into_iter().map(stats).collect::<Result<_, RangesError>>()?;
        let File { graph, samples, repeated, data, random, .. } = file;
        Ok(Ranges { graph, samples, repeated, data, random, tensors })
    }

    /// Writes a file: to a temporary name beside it first, so that there is never half a one.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn save(&self, path: &Path) -> Result<(), RangesError> {
        let io = |source| RangesError::Io { path: path.into(), source };
        let file = File {
            format: FORMAT.into(),
            graph: self.graph.clone(),
            samples: self.samples,
            repeated: self.repeated,
            data: self.data.clone(),
            random: self.random,
            tensors: self.tensors.iter().map(|(k, v)| (k.clone(), record(v))).collect(),
        };
        let mut out = BufWriter::new(narrowbit_tensor::staged::beside(path).map_err(io)?);
        serde_json::to_writer(&mut out, &file).map_err(|e| io(e.into()))?;
        out.write_all(b"\n").map_err(io)?;
        let out = out.into_inner().map_err(|e| io(e.into_error()))?;
        out.persist(path).map_err(|e| io(e.error))?;
        Ok(())
    }

    /// Adds the records of samples that came after those of `self`.
    ///
    /// # Errors
    /// When `next` belongs to another model.
    pub fn merge(&mut self, next: &Ranges) -> Result<(), RangesError> {
        if self.graph != next.graph {
            return Err(RangesError::OtherModel {
                found: next.graph.clone(),
                expected: self.graph.clone(),
                detail: String::new(),
            });
        }
        for (name, stats) in &next.tensors {
            self.tensors.entry(name.clone()).and_modify(|s| s.merge(stats)).or_insert_with(|| stats.clone());
        }
        self.samples = self.samples.saturating_add(next.samples);
        self.repeated = self.repeated.saturating_add(next.repeated);
        self.random |= next.random;
        self.data.extend(next.data.iter().filter(|d| !self.data.contains(d)).cloned().collect::<Vec<_>>());
        Ok(())
    }

    /// Checks that the ranges belong to a graph.
    ///
    /// # Errors
    /// When the graph's structure is another one.
    pub fn check(&self, graph: &Graph) -> Result<(), RangesError> {
        let expected = graph_hash(graph);
        if self.graph == expected {
            return Ok(());
        }
        let detail = self.difference(graph);
        Err(RangesError::OtherModel { found: self.graph.clone(), expected, detail })
    }
}

impl Ranges {
    /// Which tensors the ranges and a graph do not share, as the rest of a message.
    fn difference(&self, graph: &Graph) -> String {
        let made = graph.nodes().flat_map(|(_, n)| n.outputs.iter().flatten().copied());
        let own: std::collections::BTreeSet<&str> =
            graph.inputs().iter().copied().chain(made).map(|v| graph.value(v).name.as_str()).collect();
        let gone: Vec<&str> = self.tensors.keys().map(String::as_str).filter(|n| !own.contains(n)).collect();
        // Not all tensors of a graph are observed: only where names differ is it worth telling which are new.
        let new: Vec<&str> = own.iter().copied().filter(|n| !self.tensors.contains_key(*n)).collect();
        if gone.is_empty() {
            return "; every tensor of the ranges is in this model, but operators, edges or shapes of constants differ"
                .into();
        }
        format!("\n  only in the ranges: {}\n  only in this model: {}", some(&gone), some(&new))
    }
}

/// The first names of a list, and how many more.
fn some(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let first = names.iter().take(SHOWN).map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

fn record(s: &Stats) -> Record {
    Record {
        count: s.count,
        non_finite: s.non_finite,
        min: s.extremes.map(|e| e.0),
        max: s.extremes.map(|e| e.1),
        average: s.average,
        peak: s.peak.value().map(|_| s.peak),
        histogram: s.histogram.as_ref().map(SavedHistogram::from),
        positions: s.positions.clone(),
        means: s.means.clone(),
        spread: s.spread.clone(),
        peaks: s.peaks.clone(),
    }
}

fn stats(r: Record) -> Result<Stats, String> {
    let extremes = match (r.min, r.max) {
        (Some(a), Some(b)) if a <= b && a.is_finite() && b.is_finite() => Some((a, b)),
        (None, None) => None,
        _ => return Err("min and max are no range".into()),
    };
    if !r.average.is_sound() {
        return Err("the moving average is no range of float32".into());
    }
    let peak = r.peak.unwrap_or_default();
    if !peak.is_sound() || r.positions.as_ref().is_some_and(|p| !p.is_sound()) {
        return Err("the moving peak or the positions are out of range".into());
    }
    if r.means.as_ref().is_some_and(|m| !m.is_sound()) {
        return Err("the sums by channel are no numbers".into());
    }
    if r.spread.as_ref().is_some_and(|s| !s.is_sound()) {
        return Err("the extremes by channel are no ranges".into());
    }
    if r.peaks.as_ref().is_some_and(|p| !p.is_sound()) {
        return Err("the moving peaks by channel are no magnitudes".into());
    }
    let histogram = r.histogram.map(Histogram::try_from).transpose()?;
    let counted = histogram.as_ref().map(|h| h.counts().iter().try_fold(0u64, |n, &c| n.checked_add(c)));
    if counted.is_some_and(|n| n != Some(r.count)) {
        return Err("the histogram counts other values than the record".into());
    }
    Ok(Stats {
        count: r.count,
        non_finite: r.non_finite,
        extremes,
        average: r.average,
        peak,
        histogram,
        positions: r.positions,
        means: r.means,
        spread: r.spread,
        peaks: r.peaks,
    })
}

/// A hash of the graph's structure: operators, edges and names, constants by shape. Weights do not enter it,
/// so that ranges survive a change of weights that leaves activations alone.
pub fn graph_hash(graph: &Graph) -> String {
    // FNV-1a, 64 bits: this guards against mistakes, not against forgery.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |text: &str| {
        for b in text.bytes().chain([0]) {
            hash = (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for (_, node) in graph.nodes() {
        add(node.op.domain());
        add(node.op.name());
        for v in &node.inputs {
            match v {
                None => add("-"),
                Some(v) => {
                    add(&graph.value(*v).name);
                    if let Some(t) = graph.constant(*v) {
                        add(&format!("{}{:?}", t.dtype(), t.shape()));
                    }
                }
            }
        }
        node.outputs.iter().for_each(|v| add(v.map_or("-", |v| graph.value(v).name.as_str())));
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(values: &[f32]) -> Ranges {
        let mut s = Stats::new(true);
        s.add_sample(values);
        Ranges { graph: "g".into(), samples: 1, tensors: [("x".to_string(), s)].into(), ..Ranges::default() }
    }

    #[test]
    fn survives_saving() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        let r = ranges(&[0.1, -7.25, 1e-30, 3e30]);
        r.save(&path).unwrap();
        assert_eq!(Ranges::load(&path).unwrap(), r);
    }

    #[test]
    fn merges_shards_of_one_model_only() {
        let mut a = ranges(&[1.0]);
        a.merge(&ranges(&[-2.0])).unwrap();
        assert_eq!((a.samples, a.tensors["x"].extremes), (2, Some((-2.0, 1.0))));
        let other = Ranges { graph: "h".into(), ..ranges(&[0.0]) };
        assert!(matches!(a.merge(&other), Err(RangesError::OtherModel { .. })));
    }

    #[test]
    fn refuses_damaged_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        ranges(&[1.0, 2.0]).save(&path).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("narrowbit-ranges/1", "narrowbit-ranges/9"),
            ("\"min\":1.0", "\"min\":9.0"),
            ("\"now\":[1.0", "\"now\":[1e300"),
            ("\"count\":2", "\"count\":3"),
            ("}", ""),
        ] {
            assert!(good.contains(from), "{from} is not in {good}");
            std::fs::write(&path, good.replace(from, to)).unwrap();
            assert!(matches!(Ranges::load(&path), Err(RangesError::Format { .. })), "{from}");
        }
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(Ranges::load(&path).is_err());
    }
}
