//! The quantization plan: what becomes an integer, with which numbers, and why the rest does not.
//!
//! It lives beside the graph, keyed by value and node. [`Layout`] is the part that needs no
//! ranges: which nodes compute on integers and which values carry them; it tells calibration what
//! to observe. [`QuantPlan`] adds scales and zero points.

mod layout;
mod reason;
mod weights;

use std::collections::BTreeMap;

use narrowbit_ir::{Graph, NodeId, ValueId};
use narrowbit_kernels::Exec;
use serde::Serialize;

pub(crate) use layout::ARITHMETIC;
pub use layout::{Kind, Layout};
pub use reason::Reason;
pub(crate) use weights::params as weight_params;
pub use weights::{BiasParams, WeightError, WeightParams};

use crate::observe::{Method, Range, Stats};
use crate::options::{Matcher, PatternError, QuantOptions};
use crate::parallel::in_parallel;
use crate::scheme::{ActivationScheme, ScalePoint};

/// Scale and zero point of an activation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ActivationParams {
    /// How it is represented.
    pub scheme: ActivationScheme,
    /// Scale and zero point.
    #[serde(flatten)]
    pub point: ScalePoint,
    /// The range that they were computed from.
    pub range: Range,
}

/// Everything that the quantized graph needs.
#[derive(Debug, Clone)]
pub struct QuantPlan {
    /// Which nodes compute on integers, and why the others do not.
    pub layout: Layout,
    /// Values that are quantized.
    pub activations: BTreeMap<ValueId, ActivationParams>,
    /// Constant weights that are quantized, by the node and input that read them.
    pub weights: BTreeMap<(NodeId, usize), WeightParams>,
    /// Constant biases that are quantized, by the node and input that read them.
    pub biases: BTreeMap<(NodeId, usize), BiasParams>,
}

/// Why a plan could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// An override can't be read.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The ranges lack a tensor.
    #[error(
        "no range for tensor \"{0}\"\nhelp: the ranges were calibrated on another model or with other options; calibrate again"
    )]
    NoRange(String),
    /// The method needs histograms that the ranges do not have.
    #[error(
        "the ranges hold no histogram of tensor \"{0}\", which this method needs\nhelp: calibrate again without --no-histograms"
    )]
    NoHistogram(String),
    /// Calibration saw nothing finite in a tensor.
    #[error(
        "calibration saw no finite value in tensor \"{0}\"\nhelp: check the model on these samples with `narrowbit run`"
    )]
    NothingFinite(String),
}

impl QuantPlan {
    /// Chooses scales and zero points for a layout from calibrated records, by tensor name.
    ///
    /// # Errors
    /// When the records lack a tensor or what the method needs.
    pub fn new(
        graph: &Graph,
        layout: Layout,
        stats: &BTreeMap<String, Stats>,
        options: &QuantOptions,
        exec: &Exec,
    ) -> Result<QuantPlan, PlanError> {
        let matcher = Matcher::new(&options.overrides)?;
        let groups: Vec<_> =
            layout.groups().map(|g| (g, distinct(graph, g, stats), settings(graph, g, &matcher, options))).collect();
        let values: Vec<_> = groups.iter().flat_map(|(_, own, s)| own.iter().map(move |&v| (v, *s))).collect();
        // A search over a histogram takes longer than all else here.
        let ranges = in_parallel(exec, &values, |&(v, (scheme, method))| range_of(graph, v, stats, method, &scheme));
        let mut ranges = ranges.into_iter();
        let mut activations = BTreeMap::new();
        for (group, own, (scheme, _)) in groups {
            let own = ranges.by_ref().take(own.len()).collect::<Result<Vec<_>, _>>()?;
            let Some(range) = own.into_iter().reduce(Range::union) else { continue };
            let params = ActivationParams { scheme, point: scheme.qparams(range), range };
            activations.extend(group.iter().map(|&v| (v, params)));
        }
        let mut plan = QuantPlan { layout, activations, weights: BTreeMap::new(), biases: BTreeMap::new() };
        weights::plan(graph, &matcher, options, exec, &mut plan);
        Ok(plan)
    }
}

/// The values of a group without those whose record another one has too: Reshape and Transpose hand theirs on.
fn distinct(graph: &Graph, group: &[ValueId], stats: &BTreeMap<String, Stats>) -> Vec<ValueId> {
    let record = |v: ValueId| stats.get(&graph.value(v).name).filter(|_| graph.constant(v).is_none());
    let again = |i: usize| group[..i].iter().any(|&u| record(u).is_some() && record(u) == record(group[i]));
    (0..group.len()).filter(|&i| !again(i)).map(|i| group[i]).collect()
}

fn range_of(
    graph: &Graph,
    v: ValueId,
    stats: &BTreeMap<String, Stats>,
    method: Method,
    scheme: &ActivationScheme,
) -> Result<Range, PlanError> {
    let name = &graph.value(v).name;
    if let Some(t) = graph.constant(v) {
        // A constant operand needs no calibration: its content is known.
        let mut s = Stats::new(false);
        s.add_sample(&t.to_f32s().unwrap_or_default());
        return s.range(Method::Minmax, scheme).ok_or_else(|| PlanError::NothingFinite(name.clone()));
    }
    let s = stats.get(name).ok_or_else(|| PlanError::NoRange(name.clone()))?;
    if s.extremes.is_none() {
        return Err(PlanError::NothingFinite(name.clone()));
    }
    s.range(method, scheme).ok_or_else(|| PlanError::NoHistogram(name.clone()))
}

/// The scheme and method of values that share scale and zero point: an override of any node that makes
/// one of them, or else of one that reads it.
fn settings(graph: &Graph, group: &[ValueId], matcher: &Matcher, options: &QuantOptions) -> (ActivationScheme, Method) {
    let makers = group.iter().filter_map(|&v| graph.producer(v)).map(|p| p.0);
    let readers = group.iter().flat_map(|&v| graph.uses(v)).map(|u| u.node);
    let overrides: Vec<_> = makers.chain(readers).flat_map(|n| matcher.of(graph.node(n))).collect();
    let scheme = overrides.iter().find_map(|o| o.activations).unwrap_or(options.activations);
    let method = overrides.iter().find_map(|o| o.method).unwrap_or(options.method);
    (scheme, method)
}
