//! The runs that a model makes of a data set: how many samples each takes, and which part of a result is theirs.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use narrowbit_data::{Batches, Dataset, Fill, InputSpec, RunSize};
use narrowbit_ir::{Dim, Fact, Graph, ValueId, infer};
use narrowbit_tensor::Tensor;

/// The samples of a data set in runs of a model.
#[derive(Clone)]
pub struct Runs {
    /// Samples per run.
    pub size: usize,
    /// Whether every run takes as many.
    fixed: bool,
    /// The shapes of the graph's values, as far as they are known, with `size` samples and with one more.
    shapes: [Shapes; 2],
    outputs: Vec<(ValueId, String)>,
}

type Shapes = BTreeMap<ValueId, Vec<Dim>>;

/// Where a value has the samples of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// Along an axis, so many places for each.
    Along(usize, usize),
    /// Nowhere: it is one for the run.
    Nowhere,
    /// It can't be told.
    Unknown,
}

impl Runs {
    /// The runs of a graph on a data set that is bound to it: of the number of samples that the file fixes, else of those
    /// that are asked for (`--batch`), else of `usual`.
    ///
    /// # Errors
    /// When what is asked for is not what the file fixes.
    pub fn new(graph: &Graph, dataset: &Dataset, asked: Option<usize>, usual: usize) -> Result<Runs> {
        let help = "help: leave --batch out, or export the model with a free batch axis";
        let (size, fixed) = match (dataset.run_size(), asked) {
            (_, Some(0)) => bail!("--batch must be at least 1"),
            (RunSize::Fixed(0, spec), _) => {
                bail!("input \"{}\" is {}: there is no room for a sample", spec.name, spec.shape_text())
            }
            (RunSize::Fixed(n, spec), Some(b)) if b != n => bail!(
                "--batch {b}, but the model's batch is fixed at {n}: input \"{}\" is {}\n{help}",
                spec.name,
                spec.shape_text()
            ),
            (RunSize::One, Some(b)) if b != 1 => {
                let inputs: Vec<String> =
                    dataset.specs().map(|s| format!("\"{}\" is {}", s.name, s.shape_text())).collect();
                bail!("--batch {b}, but no input of the model has a batch axis: {}\n{help}", inputs.join(", "))
            }
            (RunSize::Fixed(n, _), _) => (n, true),
            (RunSize::One, _) => (1, true),
            (RunSize::Any, asked) => (asked.unwrap_or(usual), false),
        };
        let specs: Vec<&InputSpec> = dataset.specs().collect();
        let shapes = |n: usize| shapes(graph, &specs, n);
        let outputs = graph.outputs().iter().map(|&v| (v, graph.value(v).name.clone())).collect();
        Ok(Runs { size, fixed, shapes: [shapes(size)?, shapes(size.saturating_add(1))?], outputs })
    }

    /// The samples of a data set from position `start` on, the last run filled up where the model wants it.
    pub fn batches<'a>(&self, dataset: &'a Dataset, start: usize, fill: Fill) -> Batches<'a> {
        let batches = dataset.batches_from(start, self.size);
        if self.fixed { batches.filled(fill) } else { batches }
    }

    /// How many samples are run again to fill up the runs of a data set of so many.
    pub fn repeated(&self, samples: usize) -> u64 {
        if self.fixed { (samples.div_ceil(self.size) * self.size - samples) as u64 } else { 0 }
    }

    /// Samples in a run with `n` of its own and those that fill it up.
    pub fn rows(&self, n: usize) -> usize {
        if self.fixed { self.size } else { n }
    }

    /// Whether a run with `n` samples of its own has others too, to fill it up.
    pub fn is_filled(&self, n: usize) -> bool {
        self.rows(n) > n
    }

    /// The outputs of a run for its `n` samples, those along axis 0; what is one for the run has 1 there.
    ///
    /// # Errors
    /// When the run was filled up, and an output does not show which part is of which sample.
    pub fn outputs(&self, outputs: Vec<Tensor>, n: usize) -> Result<Vec<Tensor>> {
        let named = self.outputs.iter().zip(outputs);
        named.map(|((v, name), t)| self.output(*v, &t, n).with_context(|| format!("output \"{name}\""))).collect()
    }

    /// A value of a run for its `n` samples, as [`Runs::outputs`] gives it.
    ///
    /// # Errors
    /// As there.
    pub fn output(&self, v: ValueId, t: &Tensor, n: usize) -> Result<Tensor> {
        Ok(match self.place(v, t.shape(), n) {
            Rows::Along(axis, each) => t.first_of_axis(axis, each * n)?.with_axis_moved(axis, 0)?,
            Rows::Nowhere => t.reshaped([&[1], t.shape()].concat())?,
            Rows::Unknown if !self.is_filled(n) => t.clone(),
            Rows::Unknown => bail!(
                "its shape {:?} does not tell which part of it is of the {n} samples of the last run, which was filled up to {}\n\
                 help: take a number of samples that {} divides (--samples)",
                t.shape(),
                self.size,
                self.size
            ),
        })
    }

    /// The part of any value that is of the `n` samples of a run, in its own order; `None` where that can't be told.
    pub fn part(&self, v: ValueId, t: Tensor, n: usize) -> Result<Option<Tensor>> {
        if !self.is_filled(n) {
            return Ok(Some(t));
        }
        Ok(match self.place(v, t.shape(), n) {
            Rows::Along(axis, each) => Some(t.first_of_axis(axis, each * n)?),
            Rows::Nowhere => Some(t),
            Rows::Unknown => None,
        })
    }

    /// Where a value of a shape has the samples of a run with `n` of its own.
    fn place(&self, v: ValueId, shape: &[usize], n: usize) -> Rows {
        let rows = self.rows(n);
        let [here, more] = [0, 1].map(|i| self.shapes[i].get(&v).filter(|s| s.len() == shape.len()));
        let (Some(here), Some(more)) = (here, more) else { return usual(shape, rows) };
        let pairs = || here.iter().zip(more).map(|(a, b)| Some((a.as_usize()?, b.as_usize()?)));
        let growing: Vec<usize> =
            (0..).zip(here.iter().zip(more)).filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect();
        let along = match growing[..] {
            [axis] => pairs().nth(axis).flatten().and_then(|(a, b)| {
                let each = a / self.size;
                let grows = each > 0 && a == each * self.size && b == each * (self.size + 1);
                (grows && Some(&shape[axis]) == each.checked_mul(rows).as_ref()).then_some(Rows::Along(axis, each))
            }),
            _ => None,
        };
        match (along, usual(shape, rows)) {
            // A Reshape to the numbers of the file, [4, −1], makes the second axis grow instead of the first.
            (Some(Rows::Along(axis, each)), first @ Rows::Along(..)) if axis != 0 && each != 1 => first,
            (Some(along), _) => along,
            (None, Rows::Unknown) if growing.is_empty() && pairs().all(|p| p.is_some()) && apart(shape, rows) => {
                Rows::Nowhere
            }
            (None, usual) => usual,
        }
    }
}

/// Says that samples counted more than once.
pub fn repeated_text(repeated: u64) -> String {
    let (s, were, count) = if repeated == 1 { ("", "was", "counts") } else { ("s", "were", "count") };
    format!(
        "{repeated} sample{s} {were} run again, from the first on, to fill up the last run of a model with a fixed batch, and {count} again in \
         histograms and averages"
    )
}

/// Without more knowledge: along the first axis, if that has their number.
fn usual(shape: &[usize], rows: usize) -> Rows {
    match shape.first() {
        Some(&n) if n == rows => Rows::Along(0, 1),
        None => Rows::Nowhere,
        _ => Rows::Unknown,
    }
}

/// Whether no axis can hold so many samples.
fn apart(shape: &[usize], rows: usize) -> bool {
    rows == 1 || shape.iter().all(|&d| d % rows != 0)
}

/// The shapes of what a graph computes from `n` samples in a run.
fn shapes(graph: &Graph, specs: &[&InputSpec], n: usize) -> Result<Shapes> {
    let mut inputs: BTreeMap<ValueId, Fact> = BTreeMap::new();
    for (&v, spec) in graph.inputs().iter().zip(specs) {
        let stated = graph.value(v).ty.tensor().and_then(|t| t.shape.clone()).unwrap_or_default();
        let mut dims: Vec<Dim> = stated;
        if let Some(d) = spec.batch_axis().and_then(|axis| dims.get_mut(axis)) {
            *d = Dim::from(n);
        }
        inputs.insert(v, Fact::tensor(Some(spec.dtype), Some(dims)));
    }
    // A Reshape to numbers of the file contradicts another batch: what is behind is not known then.
    let facts = infer::infer(graph, &inputs, infer::Options { strict: false, ..infer::Options::default() })?;
    // Not the facts: these would hold the weights.
    let made = graph.values().filter(|(v, _)| graph.constant(*v).is_none());
    Ok(made.filter_map(|(v, _)| Some((v, facts.shape(v)?.to_vec()))).collect())
}
