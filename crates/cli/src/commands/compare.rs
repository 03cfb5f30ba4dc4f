use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use narrowbit_data::{DataOptions, Dataset, Fill, Split};
use narrowbit_ir::{Graph, ValueId};
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::{DType, Tensor};
use serde::Serialize;

use crate::args::{FloatType, Global, Products, Threads};
use crate::comparison::{self, Comparison, TensorRow};
use crate::data::{self, DataArgs};
use crate::metrics::Deviation;
use crate::{interrupt, model, output};

/// Compare two models tensor by tensor on the same data
///
/// A is the reference (the float model), B the model in question (the quantized one); tensors are matched by
/// name. Cumulative figures hold all error up to a tensor; isolated ones only what its own node adds, run on the
/// reference's inputs. The mean error is in steps of the tensor's codes (isolated, where that is shown): errors of one sign add
/// up in the products behind. --float is for B: A runs in 32 bits. B may be an .npz of A's outputs (or inner tensors) that another runtime, or `run -o`, has saved:
/// an array for each tensor, under its name.
#[derive(Debug, Args)]
pub struct Compare {
    /// The reference model (.onnx)
    a: PathBuf,
    /// The other model (.onnx), or saved tensors by name (.npz)
    b: PathBuf,
    /// Show at most so many tensors, worst first; 0 for all, in the order of the graph
    #[arg(long, value_name = "N", default_value_t = 15)]
    top: usize,
    /// Leave out the isolated figures, which take a run of every node
    #[arg(long)]
    no_isolated: bool,
    /// Exit with 1 when the SQNR of the outputs is below this many dB
    #[arg(long, value_name = "DB")]
    min_sqnr: Option<f64>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    float: Products,
    #[command(flatten)]
    threads: Threads,
}

#[derive(Serialize)]
struct Summary {
    a: PathBuf,
    b: PathBuf,
    samples: usize,
    outputs: Vec<TensorRow>,
    tensors: Vec<TensorRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_sqnr: Option<f64>,
}

impl Compare {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        interrupt::install();
        if is_npz(&self.a) {
            let help = "the first argument is the reference model (.onnx); saved tensors are the second";
            bail!("{} is an .npz, not a model\nhelp: {help}", self.a.display());
        }
        let mut a = model::load_runnable(&self.a)?;
        let saved = self.holds_tensors()?;
        if saved && (self.float.floats.float != FloatType::F32 || self.float.round_rows) {
            let flag = if self.float.round_rows { "--round-rows" } else { "--float" };
            bail!(
                "{flag} is for the second model, but {} holds saved tensors\nhelp: leave {flag} away",
                self.b.display()
            );
        }
        if !saved {
            model::sanitize(&mut a)?;
        }
        let b = if saved { None } else { Some(model::load_runnable(&self.b)?) };
        let shapes = b.as_ref().map_or(Ok(&a.graph), |b| comparison::narrower(&a.graph, &b.graph))?;
        let dataset = self.data.open(shapes, Split::Test)?;
        let (outputs, tensors) = match b {
            None => (self.against_saved(&a.graph, &dataset)?, Vec::new()),
            Some(b) => {
                model::scale_as(&mut a, &b);
                self.against_model(&a.graph, &b.graph, &dataset)?
            }
        };
        let worst = outputs.iter().map(|r| r.cumulative.sqnr_db).fold(f64::INFINITY, f64::min);
        let summary = Summary {
            a: self.a.clone(),
            b: self.b.clone(),
            samples: dataset.len(),
            outputs,
            tensors,
            min_sqnr: self.min_sqnr,
        };
        if global.json {
            output::json(&summary)?;
        } else {
            output::print(&self.text(&summary))?;
        }
        let failed = self.min_sqnr.is_some_and(|least| worst < least);
        Ok(if failed { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }

    /// Whether B holds saved tensors, and is no model.
    fn holds_tensors(&self) -> Result<bool> {
        match model::no_model(&self.b) {
            _ if is_npz(&self.b) => Ok(true),
            None => Ok(false),
            Some(what) => bail!(
                "{} is {what}; the second argument is a model, or saved tensors in a file that ends in .npz\nhelp: save an array for each \
                 tensor to compare, under its name in {}: `narrowbit run MODEL --data DATA -o saved.npz` does, and so does numpy.savez(\"saved.npz\", **{{name: array}})",
                self.b.display(),
                self.a.display()
            ),
        }
    }

    fn against_model(&self, a: &Graph, b: &Graph, dataset: &Dataset) -> Result<(Vec<TensorRow>, Vec<TensorRow>)> {
        let mut comparison = Comparison::new(a, b, self.threads.threads, !self.no_isolated, self.float)?;
        comparison.run("comparing", dataset, &self.data.runs(a, dataset)?)?;
        Ok((comparison.outputs(), comparison.tensors()))
    }

    /// Compares the model's values with arrays that another runtime has saved under their names.
    fn against_saved(&self, a: &Graph, dataset: &Dataset) -> Result<Vec<TensorRow>> {
        let arrays = read_arrays(&self.b)?;
        let known: BTreeMap<ValueId, &Tensor> =
            arrays.iter().filter_map(|(name, t)| Some((a.value_named(name)?, t))).collect();
        if known.is_empty() {
            let names: Vec<&str> = arrays.keys().map(String::as_str).collect();
            let outputs: Vec<&str> = a.outputs().iter().map(|&v| a.value(v).name.as_str()).collect();
            bail!(
                "{}: none of the arrays {names:?} has the name of a tensor of the model\nhelp: save each array under the name of the tensor that \
                 it is to be compared with; the model's outputs are {outputs:?}",
                self.b.display()
            );
        }
        let observe = known.keys().copied().collect();
        let session = Session::new(a.clone(), Options { threads: self.threads.threads, observe })?;
        let mut deviations: BTreeMap<ValueId, (Deviation, usize)> = BTreeMap::new();
        let runs = self.data.runs(a, dataset)?;
        for batch in runs.batches(dataset, 0, Fill::Last) {
            let mut wrong = None;
            let batch = batch?;
            let n = batch.indices.len();
            session.run_observed(&data::tensors(batch), &mut |v, view| {
                let Some(saved) = known.get(&v) else { return Ok(()) };
                let ours = view.to_tensor().map_err(|e| e.to_string())?;
                let ours = runs.output(v, &ours, n).map_err(|e| format!("{e:#}"))?;
                let (d, at) = deviations.entry(v).or_default();
                let rows = ours.shape().first().copied().unwrap_or(1);
                match rows_of(saved, *at, rows, ours.len()) {
                    Some(part) => {
                        let ours = ours.to_f32s().map_err(|e| e.to_string())?;
                        d.add_slices(&part, &ours);
                    }
                    None => wrong = Some(v),
                }
                *at += rows;
                Ok(())
            })?;
            if let Some(v) = wrong {
                let (name, shape) = (&a.value(v).name, known[&v].shape());
                bail!("{}: array \"{name}\" {shape:?} does not hold one row for each sample", self.b.display());
            }
        }
        Ok(deviations.into_iter().map(|(v, (d, _))| TensorRow::new(a, v, d.figures())).collect())
    }

    fn text(&self, s: &Summary) -> String {
        let mut out = format!("{} against {} on {} samples\n", s.b.display(), s.a.display(), s.samples);
        let mut rows: Vec<&TensorRow> = s.tensors.iter().collect();
        if self.top > 0 {
            rows.sort_by(|a, b| a.isolated_or_cumulative().total_cmp(&b.isolated_or_cumulative()));
            rows.truncate(self.top);
        }
        if !rows.is_empty() {
            if rows.len() < s.tensors.len() {
                out.push_str(&format!(
                    "the {} tensors with the most error of their own, of {}:\n",
                    rows.len(),
                    s.tensors.len()
                ));
            }
            out.push_str(&TensorRow::table(&rows));
        }
        for r in &s.outputs {
            out.push_str(&format!(
                "output {}: SQNR {}, cosine {:.6}, max error {:.3e}\n",
                r.name,
                output::decibels(r.cumulative.sqnr_db),
                r.cumulative.cosine,
                r.cumulative.max_error
            ));
        }
        out
    }
}

fn is_npz(path: &Path) -> bool {
    model::ending(path) == "npz"
}

/// Rows `at..at + rows` of an array as floats, if it has them in the right size.
fn rows_of(t: &Tensor, at: usize, rows: usize, len: usize) -> Option<Vec<f32>> {
    let all = t.to_f32s().ok()?;
    let each = len.checked_div(rows)?;
    let part = all.get(at.checked_mul(each)?..(at + rows).checked_mul(each)?)?;
    (t.dtype() != DType::String).then(|| part.to_vec())
}

/// All arrays of an .npz by name, whole.
fn read_arrays(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let options = DataOptions { check_finite: false, ..DataOptions::default() };
    let file = Dataset::open(path, &options)?;
    let names: Vec<String> = file.arrays().iter().map(|(n, ..)| (*n).to_owned()).collect();
    let batch = file.batch(0..file.len())?;
    let mut out: BTreeMap<String, Tensor> = batch.inputs.into_iter().collect();
    // A file of one array is compared under that array's name.
    if let (1, [name]) = (out.len(), &names[..])
        && let Some((_, t)) = out.pop_first()
    {
        out.insert(name.clone(), t);
    }
    Ok(out)
}
