//! The whole job on a sanitized model: layout, plan, QDQ graph, metadata, facts for the summary.

use std::borrow::Cow;
use std::collections::BTreeMap;

use narrowbit_ir::infer::{self, Facts};
use narrowbit_ir::{Graph, Model, Node, NodeError, QuantRole, ValueId, ValueType};
use narrowbit_kernels::Exec;
use narrowbit_tensor::{DType, Tensor};
use serde::Serialize;

use crate::approach::{Approach, ApproachError, Compute, Granularity};
use crate::calibrate::{ByChannel, CalibrateError, ChannelAxis};
use crate::encodings::{Applied, Encodings};
use crate::equalize::{self, Equalized};
use crate::fill::{self, FillError, Rates};
use crate::gptq::{Report, Rounder, RoundingError};
use crate::mixture::Others;
use crate::observe::{Method, Stats};
use crate::op_types::{self, OpTypeError};
use crate::options::{PatternError, QuantOptions};
use crate::plan::{self, Kind, Layout, PlanError, QuantPlan, Reason, correction};
use crate::qdq::{self, QdqError};
use crate::ranges::{Ranges, RangesError};
use crate::scheme::SchemeError;
use crate::{dynamic, half, mean_shift, mixture, weight_only};

/// Why a model could not be quantized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// An override can't be read.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A name among the operator types can't be meant.
    #[error(transparent)]
    OpType(#[from] OpTypeError),
    /// A range method keeps an impossible share of the values.
    #[error("a percentile must be above 50 and at most 100, not {0}")]
    Percentile(f64),
    /// The schemes contradict each other.
    #[error(transparent)]
    Scheme(#[from] SchemeError),
    /// The plan can't be made from the ranges.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The graph can't be rewritten.
    #[error(transparent)]
    Qdq(#[from] QdqError),
    /// Values can't be scaled as asked.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// The ranges belong to another model.
    #[error(transparent)]
    Ranges(#[from] RangesError),
    /// The settings of an approach contradict each other or the model.
    #[error(transparent)]
    Approach(#[from] ApproachError),
    /// Weights can't be rounded by samples.
    #[error(transparent)]
    Rounding(#[from] RoundingError),
    /// The float model can't be run on the samples that biases are corrected by.
    #[error("measuring what rounding adds in the mean: {0}")]
    Calibrate(#[from] CalibrateError),
    /// The model contradicts itself.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The model is quantized already.
    #[error(
        "the model is quantized already: node \"{0}\" is a {1}\nhelp: quantize the float model that it was made from"
    )]
    Quantized(String, String),
    /// Static quantization goes another way.
    #[error("static quantization needs ranges\nhelp: calibrate first")]
    NeedsRanges,
    /// The products are in another floating-point type.
    #[error(
        "the model computes in {2}, node \"{0}\" ({1}) for one, and only float32 is quantized\nhelp: export the model in float32"
    )]
    OtherFloats(String, String, DType),
    /// There is nothing to quantize.
    #[error(
        "nothing in this model can be quantized{0}\nhelp: `narrowbit inspect` lists its nodes; look at --op-types and the overrides"
    )]
    Nothing(String),
}

/// What became of a node.
#[derive(Debug, Clone, Serialize)]
pub struct NodeFate {
    /// The node's name.
    pub node: String,
    /// The operator.
    pub op: String,
    /// Whether it computes on integers.
    pub integer: bool,
    /// The type that its weight or its results have become, where they are no integers that it computes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored: Option<String>,
    /// Why not, as a code; absent for integer nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Why not, as a phrase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Its approach, in a mixture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approach: Option<Approach>,
}

impl NodeFate {
    /// Of a node that stays as it is for a reason, or that something is to be said of.
    pub(crate) fn new(node: &Node, reason: Option<Reason>) -> NodeFate {
        NodeFate {
            node: node.name.clone(),
            op: node.op.name().into(),
            integer: false,
            stored: None,
            reason: reason.map(Reason::code),
            why: reason.map(|r| r.to_string()),
            approach: None,
        }
    }

    /// Whether the node has become something else.
    pub fn is_done(&self) -> bool {
        self.integer || self.stored.is_some()
    }
}

/// Which nodes of the sanitized model will compute on integers, and what calibration has to observe.
///
/// # Errors
/// When the model is quantized already or has nothing to quantize, or an override can't be read.
pub fn layout(model: &Model, options: &QuantOptions) -> Result<Layout, QuantizeError> {
    match options.is_mixture() {
        true => op_types::check_weights(&options.op_types)?,
        false => op_types::check(&options.op_types)?,
    }
    check_percentiles(options)?;
    options.check()?;
    mixture::check_exceptions(options)?;
    let graph = &model.graph;
    refuse_quantized(graph)?;
    let facts = facts(model)?;
    let mut layout = match options.uses(Approach::Static) {
        true => Layout::new(graph, &facts, options, Approach::Static)?,
        false => Layout::default(),
    };
    if options.is_mixture() {
        layout.others = Others::choose(model, options, &layout)?;
    }
    if !is_static(&layout) && layout.others.is_empty() {
        if let Some(error) = other_floats(graph, &facts) {
            return Err(error);
        }
        let why = layout.reasons.values().max().map(|r| format!(" ({r})")).unwrap_or_default();
        return Err(QuantizeError::Nothing(why));
    }
    Ok(layout)
}

/// Whether a layout has products or tables that are static, for which ranges are calibrated.
pub fn is_static(layout: &Layout) -> bool {
    layout.kinds.values().any(|k| matches!(k, Kind::Product | Kind::Embedding))
}

/// The first product of floats that are no float32, as an error.
fn other_floats(graph: &Graph, facts: &Facts) -> Option<QuantizeError> {
    graph.nodes().find_map(|(_, n)| {
        let QuantRole::Weighted { weight, .. } = n.op.quant() else { return None };
        let dtype = facts.dtype(n.input(weight)?).filter(|d| d.is_float() && *d != DType::F32)?;
        Some(QuantizeError::OtherFloats(n.name.clone(), n.op.name().into(), dtype))
    })
}

/// Refuses a graph that some tool has quantized.
pub(crate) fn refuse_quantized(graph: &Graph) -> Result<(), QuantizeError> {
    let of = |name: &str| {
        let known = [
            "QuantizeLinear",
            "DequantizeLinear",
            "MatMulInteger",
            "ConvInteger",
            "MatMulNBits",
            "DynamicQuantizeLSTM",
        ];
        known.contains(&name) || name.starts_with("QLinear")
    };
    match graph.nodes().find(|(_, n)| of(n.op.name())) {
        Some((_, n)) => Err(QuantizeError::Quantized(n.name.clone(), n.op.name().into())),
        None => Ok(()),
    }
}

fn check_percentiles(options: &QuantOptions) -> Result<(), QuantizeError> {
    for method in options.overrides.iter().filter_map(|o| o.method).chain([options.method]) {
        if let Method::Percentile(p) = method
            && !(p > 50.0 && p <= 100.0)
        {
            return Err(QuantizeError::Percentile(p));
        }
    }
    Ok(())
}

/// What is known of the model's values.
pub(crate) fn facts(model: &Model) -> Result<Facts, NodeError> {
    infer::infer(&model.graph, &Default::default(), infer::Options { max_folded: 1024, strict: true })
}

/// Changes a sanitized float model as the settings ask for before it is calibrated: equalizes convolutions and applies
/// rates that are given. `calibrate` and `quantize` both do this, so that they have one graph.
///
/// # Errors
/// When a rate is for something that can't be scaled.
pub fn prepare(model: &mut Model, options: &QuantOptions) -> Result<Option<Equalized>, QuantizeError> {
    if !options.uses(Approach::Static) {
        return Ok(None);
    }
    let equalized = match options.equalize {
        true => Some(equalize::equalize(&mut model.graph).map_err(QdqError::from)?),
        false => None,
    };
    fill::apply(&mut model.graph, &options.rates)?;
    Ok(equalized)
}

/// The values of which calibration has to keep a record by channel for these settings.
pub fn channels(graph: &Graph, layout: &Layout, options: &QuantOptions) -> BTreeMap<ValueId, ByChannel> {
    let extremes = ByChannel { axis: ChannelAxis::Second, means: false, peaks: false };
    let depthwise = plan::channels::candidates(graph, layout, options);
    let mut all: BTreeMap<ValueId, ByChannel> = depthwise.into_keys().map(|v| (v, extremes)).collect();
    if options.bias_correction {
        all.extend(correction::channels(graph, layout));
    }
    for v in plan::channels::rounded(graph, layout, options).into_keys() {
        all.entry(v).or_insert(extremes).peaks = true;
    }
    all
}

/// Whether a range method of these settings needs histograms from calibration.
pub fn needs_histograms(graph: &Graph, layout: &Layout, options: &QuantOptions) -> bool {
    let own = options.overrides.iter().filter(|o| o.method.is_some() || o.activations.is_some());
    let own = own.map(|o| (o.method.unwrap_or(options.method), o.activations.unwrap_or(options.activations)));
    let mut all = own.chain([(options.method, options.activations)]);
    all.any(|(method, scheme)| layout.method(graph, method, &scheme).needs_histogram())
}

/// Whether biases would take up what rounding activations adds in the mean, were there samples to measure it on
/// ([`Seen::inputs`]).
pub fn corrects_activations(graph: &Graph, layout: &Layout, options: &QuantOptions) -> bool {
    mean_shift::applies(graph, layout, options)
}

/// Quantizes a sanitized model in place, on the threads of `exec`, as its [`layout`] with the same options says.
///
/// # Errors
/// When the ranges belong to another model or lack what the method needs.
pub fn quantize(
    model: &mut Model,
    layout: Layout,
    ranges: &Ranges,
    options: &QuantOptions,
    exec: &Exec,
) -> Result<(QuantPlan, Vec<NodeFate>), QuantizeError> {
    let none = Encodings::default();
    let (plan, fates, ..) = quantize_with(model, layout, ranges, &none, options, Seen::default(), exec)?;
    Ok((plan, fates))
}

/// What samples serve for beside ranges.
#[derive(Default)]
pub struct Seen<'a, 'b> {
    /// Weights are rounded by these, where the settings say so.
    pub rounder: Option<&'a mut Rounder<'b>>,
    /// The model's inputs of some runs, on which the means are measured that bias correction takes off.
    pub inputs: &'a [Vec<Tensor>],
    /// The input whose zeros mark positions that are not counted, by its place among the inputs.
    pub mask: Option<usize>,
}

/// As [`quantize`], with the numbers of another tool's file where it has some (ranges that hold nothing do for a file
/// about every tensor), and with what samples tell beside ranges.
///
/// # Errors
/// As [`quantize`], and when the float model can't be run on the samples.
pub fn quantize_with(
    model: &mut Model,
    layout: Layout,
    ranges: &Ranges,
    given: &Encodings,
    options: &QuantOptions,
    seen: Seen,
    exec: &Exec,
) -> Result<(QuantPlan, Vec<NodeFate>, Applied, Option<Report>), QuantizeError> {
    let corrects = options.correct_activations && !seen.inputs.is_empty();
    if !ranges.tensors.is_empty() || given.tensors.is_empty() {
        ranges.check(&model.graph)?;
    }
    // What was corrected before has a bias without samples, too.
    let all = options.bias_correction || corrects;
    if all || !given.biases.is_empty() {
        let biased = |node: &Node| all || given.biases.contains_key(&node.name);
        correction::add_biases(&mut model.graph, &layout, biased).map_err(QdqError::from)?;
    }
    let filled = filled(model, &layout, ranges, given, options, exec)?;
    let (layout, tensors, rates) = match filled {
        Some(f) => (f.layout, Cow::Owned(f.tensors), f.rates),
        None => (layout, Cow::Borrowed(&ranges.tensors), options.rates.clone()),
    };
    let (mut plan, applied) = QuantPlan::with_encodings(&model.graph, layout, &tensors, given, options, exec)?;
    plan.rates = rates;
    if corrects {
        plan.correct((&model.graph, model.opset()), &tensors, options, (seen.inputs, seen.mask), exec)?;
    }
    let mut others = std::mem::take(&mut plan.layout.others);
    let report = match seen.rounder {
        Some(rounder) => {
            let report = plan.round(&model.graph, &tensors, options, rounder, exec)?;
            let beside = others.round(&model.graph, rounder, exec)?;
            Some(beside.into_iter().fold(report, Report::and))
        }
        None => None,
    };
    let fates = others.fates(&model.graph, &plan.layout);
    let opset = model.opset();
    qdq::insert(&mut model.graph, &plan, opset, exec)?;
    others.write(model, options, exec)?;
    plan.layout.others = others;
    forget_types(model);
    infer::annotate(&mut model.graph)?;
    Ok((plan, fates, applied, report))
}

/// A model whose rounded values were scaled.
struct Filled {
    layout: Layout,
    /// The records under the new names.
    tensors: BTreeMap<String, Stats>,
    rates: Rates,
}

/// Scales the values that would be rounded so that they fill their codes, if the settings ask for it and calibration says by
/// what; another tool's numbers stay what they are.
fn filled(
    model: &mut Model,
    layout: &Layout,
    ranges: &Ranges,
    given: &Encodings,
    options: &QuantOptions,
    exec: &Exec,
) -> Result<Option<Filled>, QuantizeError> {
    if !options.cross_layer_equalization || !options.rates.is_empty() || ranges.tensors.is_empty() {
        return Ok(None);
    }
    let first = QuantPlan::new(&model.graph, layout.clone(), &ranges.tensors, options, exec)?;
    let mut rates = fill::rates(&model.graph, &first, &ranges.tensors, options);
    rates.retain(|name, _| !given.tensors.contains_key(name));
    let renamed = fill::apply(&mut model.graph, &rates)?;
    let record = |(name, stats): (&String, &Stats)| match renamed.get(name) {
        Some((new, rates)) => (new.clone(), fill::record(stats, rates)),
        None => (name.clone(), stats.clone()),
    };
    let tensors = ranges.tensors.iter().map(record).collect();
    Ok(Some(Filled { layout: self::layout(model, options)?, tensors, rates }))
}

/// Quantizes a sanitized model in place by an approach that needs no ranges.
///
/// # Errors
/// When the settings contradict each other or the model, the model is quantized already, or there is nothing to do.
pub fn convert(model: &mut Model, options: &QuantOptions, exec: &Exec) -> Result<Converted, QuantizeError> {
    convert_with(model, options, None, exec)
}

/// As [`convert`], with weights by blocks rounded by samples where the settings say so and `rounder` has some.
///
/// # Errors
/// As [`convert`], and when a sample can't be read or the float model can't be run on it, or the user asks to stop.
pub fn convert_with(
    model: &mut Model,
    options: &QuantOptions,
    rounder: Option<&mut Rounder>,
    exec: &Exec,
) -> Result<Converted, QuantizeError> {
    mixture::check_exceptions(options)?;
    let done = match options.approach {
        _ if options.is_mixture() => convert_mixture(model, options, rounder, exec)?,
        Approach::Dynamic => dynamic::quantize(model, options, exec)?,
        Approach::WeightOnly => weight_only::quantize(model, options, rounder, exec)?,
        Approach::Float16 | Approach::Bfloat16 => half::convert(model, options, exec)?,
        Approach::Static => return Err(QuantizeError::NeedsRanges),
    };
    forget_types(model);
    infer::annotate(&mut model.graph)?;
    Ok(done)
}

/// A mixture of which nothing is static.
fn convert_mixture(
    model: &mut Model,
    options: &QuantOptions,
    rounder: Option<&mut Rounder>,
    exec: &Exec,
) -> Result<Converted, QuantizeError> {
    let mut layout = layout(model, options)?;
    if is_static(&layout) {
        return Err(QuantizeError::NeedsRanges);
    }
    let mut others = std::mem::take(&mut layout.others);
    let rounding = match rounder {
        Some(rounder) => others.round(&model.graph, rounder, exec)?,
        None => None,
    };
    let fates = others.fates(&model.graph, &layout);
    others.write(model, options, exec)?;
    Ok(Converted { fates, warnings: others.warnings().to_vec(), rounding })
}

/// The first operator set that can hold what is written with these options; a model below has to be raised.
pub fn opset(options: &QuantOptions) -> i64 {
    options.approaches().into_iter().map(|a| opset_of(options, a)).max().unwrap_or(13)
}

fn opset_of(options: &QuantOptions, approach: Approach) -> i64 {
    let blocks = || options.overrides.iter().filter_map(|o| o.weight_only).chain([options.weight_only]);
    let rows = || options.overrides.iter().filter_map(|o| o.dynamic).chain([options.dynamic]);
    match approach {
        Approach::Static => options.least_opset(),
        // The blocks of QuantizeLinear.
        Approach::Dynamic if rows().any(|d| d.granularity == Granularity::Token) => 21,
        Approach::Dynamic => 13,
        Approach::WeightOnly => blocks().map(|w| w.opset()).max().unwrap_or(21),
        // Convolutions and pooling of bfloat16.
        Approach::Bfloat16 if options.half.compute == Some(Compute::Half) => 22,
        Approach::Float16 | Approach::Bfloat16 => 13,
    }
}

/// What became of a model without ranges.
#[derive(Debug, Clone, Default)]
pub struct Converted {
    /// What became of each node.
    pub fates: Vec<NodeFate>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// What rounding by samples did, where it took place.
    pub rounding: Option<Report>,
}

/// Types of inner values changed (a table's rows are integers now): infer them anew.
pub(crate) fn forget_types(model: &mut Model) {
    let graph = &mut model.graph;
    let inner: Vec<_> = graph.nodes().flat_map(|(_, n)| n.outputs.iter().flatten().copied()).collect();
    for v in inner.into_iter().filter(|&v| !graph.is_output(v)).collect::<Vec<_>>() {
        graph.set_type(v, ValueType::Unknown);
    }
}
