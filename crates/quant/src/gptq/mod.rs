//! Weights rounded with what samples tell of the inputs: GPTQ, or optimal brain quantization.
//!
//! Rounding each weight to the nearest value minimizes the error of the weights. The error of an output is `e · x`, and its mean
//! square over the samples `e H eᵀ`, where H is the sum of `x · xᵀ` over the input columns x: an error of one weight can be made
//! up for by another one whose input goes along with its own. Weights are rounded input by input, and the error of each is handed
//! on to those that are not rounded yet (`factor.rs`). Scales are those that the scheme chose; only codes change.
//!
//! x is what the float model reads. Where the bias takes up the mean error anyway (bias correction), x is taken about its mean.
//!
//! Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv
//! 2210.17323), after LeCun et al. 1990 and Hassibi et al. 1993.

mod columns;
mod factor;
mod feedback;
mod moments;
mod units;

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::{Graph, ValueId};
use narrowbit_kernels::{Exec, KernelError};
use narrowbit_runtime::{Float, Options, RunError, Session, View};
use narrowbit_tensor::{DType, Tensor, TensorError};
use serde::Serialize;

use crate::calibrate::mask::Mask;
use crate::plan::WeightError;
pub(crate) use columns::Columns;
pub(crate) use feedback::Grid;
use feedback::Power;
use moments::Moments;
use units::{Spot, Unit};

/// Bytes that the moments of the products of one pass over the samples take, and the factors that are in memory at a time.
pub const MEMORY: usize = 1 << 30;
/// Inputs of an output at the most: the factors of more take minutes.
pub const MOST_INPUTS: usize = 8192;

/// Why weights could not be rounded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoundingError {
    /// The float model can't be run.
    #[error("rounding weights by the samples: {0}")]
    Run(#[from] RunError),
    /// The samples can't be read.
    #[error(transparent)]
    Samples(Box<dyn std::error::Error + Send + Sync>),
    /// The user asked to stop.
    #[error("stopped by Ctrl-C; nothing was written")]
    Stopped,
    /// A product of matrices that contradict each other.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A weight can't be read or its codes can't be kept.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// A weight can't be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The samples, which are run several times where the moments of all products take too much memory.
pub trait Samples {
    /// Runs of the model in a pass.
    fn runs(&self) -> usize;

    /// Gives the model's inputs of each run to `run`, the same in each pass. `pass` is its number and how many there are.
    ///
    /// # Errors
    /// When a sample can't be read, `run` fails, or the user asks to stop.
    fn pass(
        &mut self,
        pass: (usize, usize),
        run: &mut dyn FnMut(&[Tensor]) -> Result<(), RoundingError>,
    ) -> Result<(), RoundingError>;

    /// Whether the user asks to stop.
    fn stopped(&self) -> bool {
        false
    }
}

/// How weights are rounded by samples.
pub struct Rounder<'a> {
    /// The samples.
    pub samples: &'a mut dyn Samples,
    /// The input whose zeros mark positions that are not counted, by its place among the inputs.
    pub mask: Option<usize>,
    /// How the float model multiplies.
    pub float: Float,
    /// Bytes of moments at a time; [`MEMORY`].
    pub memory: usize,
}

/// What rounding by samples gave a weight.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gain {
    /// The node that multiplies by the weight; the first one of several.
    pub node: String,
    /// Signal to noise of its outputs, in decibels, were only the weights rounded, and each to the nearest value.
    pub nearest_db: f64,
    /// The same, as they are rounded now.
    pub rounded_db: f64,
}

/// A weight that was to be rounded by samples, and was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The node that multiplies by it.
    pub node: String,
    /// Why not, as a phrase.
    pub why: String,
}

/// What rounding by samples did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// The weights that were rounded so.
    pub weights: Vec<Gain>,
    /// Those that were rounded to the nearest all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<Left>,
    /// Passes over the samples.
    pub passes: usize,
}

impl Report {
    /// Both reports of one job.
    pub(crate) fn and(mut self, other: Report) -> Report {
        self.weights.extend(other.weights);
        self.left.extend(other.left);
        Report { passes: self.passes + other.passes, ..self }
    }

    /// The means over the weights of [`Gain::nearest_db`] and [`Gain::rounded_db`], where there are any.
    pub fn means(&self) -> Option<(f64, f64)> {
        let mean = |of: fn(&Gain) -> f64| self.weights.iter().map(of).sum::<f64>() / self.weights.len() as f64;
        (!self.weights.is_empty()).then(|| (mean(|g| g.nearest_db), mean(|g| g.rounded_db)))
    }
}

/// A weight to round.
pub(crate) struct Weight<'a> {
    /// The node that multiplies by it, for reports.
    pub node: String,
    /// The columns of all products that multiply by it; they lie in their tensors in the same way.
    pub columns: Vec<Columns>,
    pub tensor: &'a Tensor,
    pub grid: Box<dyn Grid + 'a>,
    /// Whether a bias takes up the mean error.
    pub centred: bool,
}

/// A rounded weight.
pub(crate) struct Rounded {
    /// `[groups, n, k]`.
    pub codes: Vec<i32>,
    /// The means of the columns, `[groups, k]`.
    pub means: Vec<f64>,
}

/// Rounds weights; `done` gets each by its place in the list. Those that it does not get are in [`Report::left`].
///
/// # Errors
/// When a sample can't be read or the float model can't be run on it, or the user asks to stop.
pub(crate) fn round(
    graph: &Graph,
    weights: &[Weight],
    rounder: &mut Rounder,
    exec: &Exec,
    done: &mut dyn FnMut(usize, Rounded) -> Result<(), WeightError>,
) -> Result<Report, RoundingError> {
    let (spots, units, left) = units::of(graph, weights, rounder.memory);
    let mut report = Report { left, ..Report::default() };
    let passes = units::passes(&spots, units, rounder.memory);
    report.passes = passes.len();
    let mut gains: BTreeMap<usize, Gain> = BTreeMap::new();
    for (number, units) in passes.iter().enumerate() {
        let mut moments = collect(graph, &spots, units, rounder, (number, passes.len()), exec)?;
        for wave in units::waves(&spots, units, rounder.memory) {
            if rounder.samples.stopped() {
                return Err(RoundingError::Stopped);
            }
            for (w, rounded, power) in units::round(exec, weights, &units[wave.clone()], &moments)? {
                let node = weights[w].node.clone();
                match rounded {
                    Some(rounded) => {
                        gains.insert(w, gain(node, power));
                        done(w, rounded)?;
                    }
                    None => report.left.push(Left { node, why: "its inputs are 0 or not finite".into() }),
                }
                weights[w].tensor.release();
            }
            let later: BTreeSet<usize> = units[wave.end..].iter().flat_map(|u| u.spots.iter().copied()).collect();
            moments.retain(|s, _| later.contains(s));
        }
    }
    report.weights = gains.into_values().collect();
    Ok(report)
}

fn gain(node: String, power: Power) -> Gain {
    // Beyond, only rounding errors of the sums are left.
    const MOST: f64 = 120.0;
    let ratio = |noise: f64| power.signal.max(f64::MIN_POSITIVE) / noise.max(f64::MIN_POSITIVE);
    let db = |noise: f64| (10.0 * ratio(noise).log10()).clamp(-MOST, MOST);
    Gain { node, nearest_db: db(power.nearest), rounded_db: db(power.rounded) }
}

/// The moments of the spots of some units, from one pass over the samples.
fn collect(
    graph: &Graph,
    spots: &[Spot],
    units: &[Unit],
    rounder: &mut Rounder,
    pass: (usize, usize),
    exec: &Exec,
) -> Result<BTreeMap<usize, Moments>, RoundingError> {
    let wanted: BTreeSet<usize> = units.iter().flat_map(|u| u.spots.iter().copied()).collect();
    let mut by_value: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
    wanted.iter().for_each(|&s| by_value.entry(spots[s].source).or_default().push(s));
    let runs = rounder.samples.runs();
    let mut moments: BTreeMap<usize, Moments> = wanted.iter().map(|&s| (s, Moments::new(&spots[s], runs))).collect();
    let options = Options { threads: exec.threads(), observe: by_value.keys().copied().collect() };
    // Nothing is wanted behind what the last product of the pass reads.
    let mut session = Session::new(graph.making(&options.observe), options)?;
    if rounder.float != Float::F32 {
        session = session.with_float(rounder.float)?;
    }
    let mask = rounder.mask;
    rounder.samples.pass(pass, &mut |inputs| {
        let mask = mask.and_then(|i| Mask::new(inputs.get(i)?));
        session.run_observed(inputs, &mut |v, view: View| {
            let Some(found) = by_value.get(&v).filter(|_| view.dtype == DType::F32) else { return Ok(()) };
            let values = view.slice::<f32>().map_err(|e| e.to_string())?;
            let kept = mask.as_ref().filter(|_| !view.channels_last).and_then(|m| m.kept(view.shape, values));
            for s in found {
                let columns = match kept.as_deref().filter(|_| spots[*s].is_rows()) {
                    Some(kept) => spots[*s].of_rows(kept),
                    None => spots[*s].view(&view, values),
                };
                if let (Some(columns), Some(moments)) = (columns, moments.get_mut(s)) {
                    moments.add(session.exec(), &columns).map_err(|e| e.to_string())?;
                }
            }
            Ok(())
        })?;
        Ok(())
    })?;
    moments.values_mut().try_for_each(|m| m.finish(exec))?;
    Ok(moments)
}
