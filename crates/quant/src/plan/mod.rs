//! The quantization plan: what becomes an integer, with which numbers, and why the rest does not.
//!
//! It lives beside the graph, keyed by value and node. [`Layout`] is the part that needs no
//! ranges: which nodes compute on integers and which values carry them; it tells calibration what
//! to observe. [`QuantPlan`] adds scales and zero points.

mod auto;
mod blocks;
pub(crate) mod channels;
pub(crate) mod correction;
mod folded;
pub mod functions;
mod given;
mod kept;
mod layout;
mod reason;
mod rounding;
mod shifts;
mod stale;
mod weights;

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::{Graph, NodeId, ValueId};
use narrowbit_kernels::Exec;
use narrowbit_ops::functions::LayerMad;
use narrowbit_tensor::{Tensor, TensorError};
use serde::Serialize;

use functions::NormParams;
use given::{Used, fixed};
pub(crate) use layout::{ARITHMETIC, all_finite};
pub use layout::{Kind, Layout};
pub use reason::Reason;
pub use rounding::gain as rounding_gain;
pub use stale::{Stale, take_stale};
use weights::first_product;
pub(crate) use weights::params as weight_params;
pub use weights::{BiasParams, RoundedWeight, WeightError, WeightParams};

use crate::encodings::{Applied, Encodings, KeptBias};
use crate::fill::Rates;
use crate::gptq::{Report, Rounder};
use crate::mean_shift::{self, MeanShifts};
use crate::observe::{Method, Positions, Range, Stats};
use crate::options::{Matcher, PatternError, QuantOptions};
use crate::parallel::in_parallel;
use crate::quantize::QuantizeError;
use crate::scheme::{ActivationScheme, Formula, NumberFormat, ScalePoint};

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
    /// Of those, the ones that have a scale for each index of axis 1; their [`ActivationParams`] hold the greatest.
    pub channel_scales: BTreeMap<ValueId, Vec<f32>>,
    /// Constant weights that are quantized, by the node and input that read them.
    pub weights: BTreeMap<(NodeId, usize), WeightParams>,
    /// Constant biases that are quantized, by the node and input that read them.
    pub biases: BTreeMap<(NodeId, usize), BiasParams>,
    /// Constant biases that stay float, as sums of fp8 products are, and take up the mean error of the weights.
    pub float_biases: BTreeMap<(NodeId, usize), Tensor>,
    /// Normalizations by the mean magnitude, with their numbers.
    pub norms: Vec<(LayerMad, NormParams)>,
    /// What values were multiplied by before, to fill their codes, by their old names.
    pub rates: Rates,
    /// By how much rounding moves the means of what products read, where samples have told.
    pub shifts: MeanShifts,
    /// Biases that a configuration holds, by the product's name: they are not corrected again.
    pub kept_biases: BTreeMap<String, KeptBias>,
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
    /// The scheme needs fix positions that the ranges do not have.
    #[error(
        "the ranges hold no fix positions of tensor \"{0}\", which this scheme needs\nhelp: calibrate again with the same --scheme, and with --method diffs, mse or minmax"
    )]
    NoPositions(String),
    /// Bias correction needs means that the ranges do not have.
    #[error(
        "the ranges hold no means of tensor \"{0}\", which bias correction needs\nhelp: calibrate again with the same --scheme or with --bias-correction, or quantize with --bias-correction=no"
    )]
    NoMeans(String),
    /// Scales by channel need peaks by channel that the ranges do not have.
    #[error(
        "the ranges hold no peaks by channel of tensor \"{0}\", which this scheme needs\nhelp: calibrate again with the same --scheme, or quantize with --per-tensor-activations"
    )]
    NoPeaks(String),
    /// An entry of our own configuration can't be used.
    #[error(
        "tensors: {0}\nhelp: mend the entry in the configuration, or take it out to have its scales computed; tensors that share a scale have equal entries"
    )]
    Given(String),
    /// Another tool's file is about a model whose weights were equalized.
    #[error(
        "the encodings are of a model whose weights were equalized (\"{0}\"), and this one's are not\nhelp: quantize with --scheme vitis-dpu, or with --equalize"
    )]
    Equalized(String),
    /// Another tool's file is about a model whose activations were multiplied by what the file does not say.
    #[error(
        "the encodings are of a model whose values were multiplied (\"{0}\"), and do not say by what\nhelp: export them from a model that was quantized with --cross-layer-equalization=no, or take the file of `narrowbit config` (quantize -c)"
    )]
    Multiplied(String),
    /// Calibration saw nothing finite in a tensor.
    #[error(
        "calibration saw no finite value in tensor \"{0}\"\nhelp: check the model on these samples with `narrowbit run`"
    )]
    NothingFinite(String),
}

impl QuantPlan {
    /// A plan without any numbers.
    pub(crate) fn of_layout(layout: Layout) -> QuantPlan {
        QuantPlan {
            layout,
            activations: BTreeMap::new(),
            channel_scales: BTreeMap::new(),
            weights: BTreeMap::new(),
            biases: BTreeMap::new(),
            float_biases: BTreeMap::new(),
            norms: Vec::new(),
            rates: Rates::new(),
            shifts: MeanShifts::new(),
            kept_biases: BTreeMap::new(),
        }
    }

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
        let none = Encodings::default();
        Ok(QuantPlan::with_encodings(graph, layout, stats, &none, options, exec)?.0)
    }

    /// As [`QuantPlan::new`], with the scales, zero points, ranges and types of another tool's file where it has some for a
    /// tensor; values that share a scale take the first entry that one of them has. Says what became of the entries.
    ///
    /// # Errors
    /// When the records lack a tensor without an entry, or what the method needs.
    pub fn with_encodings(
        graph: &Graph,
        layout: Layout,
        stats: &BTreeMap<String, Stats>,
        given: &Encodings,
        options: &QuantOptions,
        exec: &Exec,
    ) -> Result<(QuantPlan, Applied), PlanError> {
        let matcher = Matcher::new(&options.overrides)?;
        let mut used = Used::new(given);
        let mut by_channel = channels::counts(graph, &layout, &matcher, options);
        by_channel.extend(channels::rounded(graph, &layout, options));
        let groups: Vec<_> = layout
            .groups()
            .map(|g| {
                let (scheme, method) = settings(graph, g, &matcher, options);
                let counted = |v: &ValueId| {
                    graph.constant(*v).is_some()
                        || stats.get(&graph.value(*v).name).is_some_and(|s| s.histogram.is_some())
                };
                // Nobody asked for what takes histograms.
                let method = match layout.method(graph, method, &scheme) {
                    own if own != method && !g.iter().all(counted) => Method::Minmax,
                    own => own,
                };
                let scheme = if options.rounds_blocks() { block_scheme(graph, g, scheme, stats) } else { scheme };
                match used.activation(graph, g, scheme, |v| by_channel.get(&v).copied()) {
                    // Nothing to look up.
                    Some((scheme, Some(value))) => (g, Vec::new(), (scheme, method), Some(value)),
                    Some((scheme, None)) => (g, distinct(graph, g, stats), (scheme, method), None),
                    None => (g, distinct(graph, g, stats), (scheme, method), None),
                }
            })
            .collect();
        used.check()?;
        let values: Vec<_> = groups.iter().flat_map(|(_, own, s, _)| own.iter().map(move |&v| (v, *s))).collect();
        // A search over a histogram takes longer than all else here.
        let ranges =
            in_parallel(exec, &values, |&(v, (scheme, method))| range_of(graph, v, stats, options, method, &scheme));
        let mut ranges = ranges.into_iter();
        let mut activations = BTreeMap::new();
        let mut fixed_values = BTreeSet::new();
        let mut channel_scales = BTreeMap::new();
        for (group, own, (scheme, _), given) in groups {
            if let Some(given) = given {
                let params = fixed(scheme, given.value);
                activations.extend(group.iter().map(|&v| (v, params)));
                fixed_values.extend(group.iter().copied());
                if !given.scales.is_empty() {
                    channel_scales.extend(group.iter().map(|&v| (v, given.scales.clone())));
                }
                continue;
            }
            let own = ranges.by_ref().take(own.len()).collect::<Result<Vec<_>, _>>()?;
            let Some(range) = own.into_iter().reduce(Range::union) else { continue };
            let scheme = scheme.of_tensor(range, group.iter().all(|&v| behind_relu(graph, v)));
            let params = ActivationParams { scheme, point: scheme.qparams(range), range };
            activations.extend(group.iter().map(|&v| (v, params)));
        }
        let kept_biases = given.biases.clone();
        let mut plan = QuantPlan { activations, channel_scales, kept_biases, ..QuantPlan::of_layout(layout) };
        channels::choose(graph, stats, &matcher, options, |v| fixed_values.contains(&v), &mut plan);
        channels::round(graph, stats, options, |v| fixed_values.contains(&v), &mut plan)?;
        weights::plan(graph, &matcher, stats, options, exec, &mut used, &mut plan)?;
        functions::plan(graph, options, &mut plan);
        used.check()?;
        used.check_names(graph)?;
        used.check_equalized(graph)?;
        let applied = used.finish(graph, &plan.biases);
        Ok((plan, applied))
    }

    /// Measures on samples (the model's inputs of each run, and which of them is the mask) by how much rounding moves the means
    /// of what products read, and computes the biases again.
    ///
    /// # Errors
    /// When the float model can't be run on a sample.
    pub fn correct(
        &mut self,
        (graph, opset): (&Graph, i64),
        stats: &BTreeMap<String, Stats>,
        options: &QuantOptions,
        samples: (&[Vec<Tensor>], Option<usize>),
        exec: &Exec,
    ) -> Result<(), QuantizeError> {
        self.shifts = mean_shift::measure(graph, self, opset, samples, exec)?;
        let matcher = Matcher::new(&options.overrides)?;
        Ok(weights::again(graph, &matcher, stats, options, exec, self)?)
    }

    /// The scale and zero point of a value as constants of a QuantizeLinear, and the axis that they go along.
    pub(crate) fn format(
        &self,
        v: ValueId,
        params: &ActivationParams,
    ) -> Result<(Tensor, Tensor, Option<usize>), TensorError> {
        let zeros =
            |shape: &[usize], n: usize| params.scheme.format.zero_points(shape, &vec![params.point.zero_point; n]);
        Ok(match self.channel_scales.get(&v) {
            None => (Tensor::scalar(params.point.scale), zeros(&[], 1)?, None),
            Some(scales) => (Tensor::vector(scales.clone()), zeros(&[scales.len()], scales.len())?, Some(1)),
        })
    }

    /// Rounds the weights that the settings say so anew, with what samples tell of their inputs and the scales that they
    /// have, and computes the biases again.
    ///
    /// # Errors
    /// When a sample can't be read or the float model can't be run on it, or the user asks to stop.
    pub fn round(
        &mut self,
        graph: &Graph,
        stats: &BTreeMap<String, Stats>,
        options: &QuantOptions,
        rounder: &mut Rounder,
        exec: &Exec,
    ) -> Result<Report, QuantizeError> {
        let matcher = Matcher::new(&options.overrides)?;
        let report = rounding::round(graph, self, &matcher, options, rounder, exec)?;
        weights::again(graph, &matcher, stats, options, exec, self)?;
        Ok(report)
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
    options: &QuantOptions,
    method: Method,
    scheme: &ActivationScheme,
) -> Result<Range, PlanError> {
    let name = &graph.value(v).name;
    let statistic = options.statistic;
    if let Some(t) = functions::constant(graph, v) {
        // A constant operand needs no calibration: its content is known.
        let positions = options.position_bits().map(Positions::new);
        let mut s = Stats { positions, ..Stats::new(false) };
        s.add_sample(&t.to_f32s().unwrap_or_default());
        let range = s.range(Method::Minmax, scheme, statistic, false);
        return range.ok_or_else(|| PlanError::NothingFinite(name.clone()));
    }
    let maker = graph.producer(v).map(|(n, _)| graph.node(n));
    if let Some(range) = maker.and_then(|n| options.fixed_ranges.of(n.op.name())) {
        return Ok(range);
    }
    let s = stats.get(name).ok_or_else(|| PlanError::NoRange(name.clone()))?;
    if s.extremes.is_none() {
        return Err(PlanError::NothingFinite(name.clone()));
    }
    let positions = scheme.formula == Formula::Vitis && matches!(method, Method::Diffs | Method::Minmax | Method::Mse);
    s.range(method, scheme, statistic, maker.is_some()).ok_or_else(|| match positions {
        true => PlanError::NoPositions(name.clone()),
        false => PlanError::NoHistogram(name.clone()),
    })
}

/// How fixed-point hardware holds a value at the end of a block: a Relu's results have the bits of activations, and no sign
/// where these are fewer than 8; other results have 8 at the least. Inputs are bytes, without a sign where samples have none.
///
/// Source: QuantizeML 0.8.1, `set_output_quantizer` and `tensor_inputs`.
fn block_scheme(
    graph: &Graph,
    group: &[ValueId],
    scheme: ActivationScheme,
    stats: &BTreeMap<String, Stats>,
) -> ActivationScheme {
    let few = scheme.bits.is_some_and(|b| b < 8);
    let least = |v: ValueId| stats.get(&graph.value(v).name).and_then(|s| s.extremes).map(|e| e.0);
    let bytes = group.iter().all(|&v| graph.producer(v).is_none() && least(v) >= Some(0.0));
    let few = few && group.iter().all(|&v| behind_relu(graph, v) && !is_mean(graph, v));
    let format = match scheme.format {
        NumberFormat::Int8 if bytes || few => NumberFormat::Uint8,
        f => f,
    };
    ActivationScheme { format, bits: if few { scheme.bits } else { scheme.bits.map(|b| b.max(8)) }, ..scheme }
}

/// Whether a value is a mean over all pixels.
fn is_mean(graph: &Graph, v: ValueId) -> bool {
    graph.producer(v).is_some_and(|(n, _)| graph.node(n).op.name() == "GlobalAveragePool")
}

/// Whether a value is what a ReLU lets through.
fn behind_relu(graph: &Graph, v: ValueId) -> bool {
    let maker = graph.producer(v).map(|(n, _)| (n, graph.node(n)));
    maker.is_some_and(|(id, n)| match n.op.name() {
        "Relu" => true,
        "Clip" => graph.const_input(id, 1).is_some_and(|lo| lo.to_f32s().is_ok_and(|lo| lo.first() == Some(&0.0))),
        "MaxPool" | "Reshape" | "Transpose" | "Flatten" | "Squeeze" | "Unsqueeze" | "GlobalAveragePool" => {
            n.input(0).is_some_and(|x| behind_relu(graph, x))
        }
        _ => false,
    })
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
