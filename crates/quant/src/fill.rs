//! Cross-layer equalization of fixed point: each channel is scaled until its greatest value is the greatest code.
//!
//! A position of the fraction is a power of two, which leaves up to half of the codes without use. [`rates`] tells by what a
//! rounded value has to be multiplied to fill the codes of the next finer position; [`apply`] multiplies the weights and
//! biases of the product that makes it and divides the weights of the product that alone reads it, so that the function of
//! the network stays. What stands between must be positively homogeneous, channel by channel, as Relu, maxima and means are.
//!
//! Source: QuantizeML 0.8.1, `models/calibrate.py` (`_set_and_equalize`): `ideal = (2^b − 1) · 2^(⌊log2 r⌋ − b)` for a peak `r`
//! and codes of `b` bits, the rate is `ideal / r`, in f32; the weights behind are the same floats (`tests/quantizeml.rs`).
//! Two differences: the tool multiplies the scale of the sums, not the weights, so that a bias may be rounded at another
//! position; and it divides the weights behind a sum of two values, too, whose integers it does not multiply: that changes
//! the function, and is left out. A Clip between with one bound for channels of different rates is left out as well.

use std::collections::BTreeMap;

use narrowbit_ir::{Graph, Node, NodeId, Patch, PatchError, ValueId};
use narrowbit_tensor::{DType, Tensor};

use crate::equalize::SUFFIX;
use crate::observe::{Method, Stats};
use crate::options::QuantOptions;
use crate::plan::QuantPlan;

/// What values are multiplied by, by their names: one rate, or one for each channel.
pub type Rates = BTreeMap<String, Vec<f32>>;

/// Why rates could not be applied.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FillError {
    /// Nothing that could be scaled makes or reads the value.
    #[error(
        "the tensor \"{0}\" can't be multiplied by its rates\nhelp: take it out of \"rates\", which hold for the model and the settings that they were written for"
    )]
    NoSpan(String),
    /// The graph can't be rewritten.
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// What scales with a channel of its input.
const HOMOGENEOUS: &[&str] = &["Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"];
/// What stands between a rounded value and the product that reads it.
const SKIPPED: &[&str] = &["MaxPool", "GlobalAveragePool", "Identity", "Flatten", "Reshape"];

/// Two products with what stands between them.
struct Span {
    first: NodeId,
    last: NodeId,
    /// What the first makes to what the last reads.
    values: Vec<ValueId>,
    /// Clips whose upper bound has to be scaled.
    clips: Vec<NodeId>,
}

/// The rates of all values that a plan rounds and that can be scaled.
pub fn rates(graph: &Graph, plan: &QuantPlan, stats: &BTreeMap<String, Stats>, options: &QuantOptions) -> Rates {
    let own = options.method == Method::MovingPeak && options.overrides.iter().all(|o| o.method.is_none());
    let of = |&v: &ValueId| {
        let name = &graph.value(v).name;
        let (stats, bits) = (stats.get(name)?, u32::from(plan.activations.get(&v)?.scheme.bits?));
        let peaks = match plan.channel_scales.get(&v) {
            Some(scales) => stats.peaks.as_ref().map(|p| p.values()).filter(|p| p.len() == scales.len())?.to_vec(),
            None => vec![stats.peak.value()?],
        };
        let rates: Vec<f32> = peaks.into_iter().map(|peak| rate(peak, bits)).collect();
        let span = span(graph, |v| plan.layout.is_quantized(v), v, rates.len())?;
        let fits = weight(graph, span.first, rates.len()).is_some() && weight(graph, span.last, 1).is_some();
        (fits && rates.iter().any(|&r| r != 1.0)).then(|| (name.clone(), rates))
    };
    if own { plan.activations.keys().filter_map(of).collect() } else { Rates::new() }
}

/// `ideal / peak`; 1 where there is no range to fill.
fn rate(peak: f32, bits: u32) -> f32 {
    let most = ((1u64 << bits.min(32)) - 1) as f32;
    // Of a normal float the exponent is the floor of its logarithm, exactly.
    let exponent = (peak.to_bits() >> 23) as i32 - 127;
    let ideal = most * 2f32.powi(exponent - bits as i32);
    let rate = ideal / peak;
    if peak.is_normal() && ideal.is_normal() && rate.is_normal() { rate } else { 1.0 }
}

/// Multiplies values by their rates; gives the new names of all that is scaled by the old ones, with the rates.
///
/// # Errors
/// A name is no value that can be scaled.
pub fn apply(graph: &mut Graph, rates: &Rates) -> Result<BTreeMap<String, (String, Vec<f32>)>, FillError> {
    let names: BTreeMap<String, ValueId> = graph.values().map(|(v, value)| (value.name.clone(), v)).collect();
    let mut scaled: BTreeMap<ValueId, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let (mut inputs, mut renamed) = (BTreeMap::new(), BTreeMap::new());
    let mut patch = Patch::new(graph);
    let asked = |v: ValueId| rates.contains_key(&graph.value(v).name);
    for (name, rates) in rates {
        let none = || FillError::NoSpan(name.clone());
        let sound = !rates.is_empty() && rates.iter().all(|r| r.is_normal() && *r > 0.0);
        let v = names.get(name).copied().filter(|_| sound).ok_or_else(none)?;
        let span = span(graph, asked, v, rates.len()).ok_or_else(none)?;
        let (before, behind) = (weight(graph, span.first, rates.len()), weight(graph, span.last, 1));
        let (before, behind) = (before.ok_or_else(none)?, behind.ok_or_else(none)?);
        scale(graph, &mut scaled, &before, |w, c| *w *= rates[c], true, rates.len()).ok_or_else(none)?;
        scale(graph, &mut scaled, &behind, |w, c| *w /= rates[c], false, rates.len()).ok_or_else(none)?;
        for part in [&before, &behind] {
            inputs.extend(part.constants().map(|(i, v)| ((part.node, i), v)));
        }
        for &clip in &span.clips {
            let bound = graph.const_input(clip, 2).and_then(|t| t.to_f32s().ok()?.first().copied()).ok_or_else(none)?;
            let label = graph.node(clip).input(2).map_or_else(String::new, |v| graph.value(v).name.clone());
            let bound = patch.constant(&format!("{label}{SUFFIX}"), Tensor::scalar(bound * rates[0]));
            patch.set_input(clip, 2, Some(bound));
        }
        for &v in &span.values {
            let (old, new) = (graph.value(v).name.clone(), format!("{}{SUFFIX}", graph.value(v).name));
            patch.rename(v, &new);
            renamed.insert(old, (new, rates.clone()));
        }
    }
    for ((node, input), old) in inputs {
        let Some((shape, values)) = scaled.get(&old) else { continue };
        let tensor =
            Tensor::new(shape.clone(), values.clone()).map_err(|_| FillError::NoSpan(graph.node(node).name.clone()))?;
        let new = patch.constant(&format!("{}{SUFFIX}", graph.value(old).name), tensor);
        patch.set_input(node, input, Some(new));
    }
    graph.apply(patch)?;
    Ok(renamed)
}

/// The record of a value that was multiplied: its peaks are, which is all that [`rates`] go by.
pub fn record(stats: &Stats, rates: &[f32]) -> Stats {
    let greatest = rates.iter().copied().fold(0.0, f32::max);
    Stats { peak: stats.peak.times(greatest), peaks: stats.peaks.as_ref().map(|p| p.times(rates)), ..stats.clone() }
}

/// What a rounded value stands between, where nothing else reads what would be scaled.
fn span(graph: &Graph, rounded: impl Fn(ValueId) -> bool, v: ValueId, channels: usize) -> Option<Span> {
    let alone = |v: ValueId| graph.only_use(v).filter(|u| u.input == 0 && !graph.is_output(v));
    let (mut values, mut clips, mut at) = (vec![v], Vec::new(), v);
    let first = loop {
        let (id, node) = graph.producer(at).map(|(id, _)| (id, graph.node(id)))?;
        if is_product(node) {
            break id;
        }
        let clip = node.op.name() == "Clip" && channels == 1 && is_relu(graph, id);
        if !clip && !HOMOGENEOUS.contains(&node.op.name()) || node.outputs.iter().flatten().count() != 1 {
            return None;
        }
        clips.extend(clip.then_some(id));
        at = node.input(0).filter(|&x| !rounded(x) && alone(x).is_some())?;
        values.insert(0, at);
    };
    at = v;
    let last = loop {
        let (id, node) = alone(at).map(|u| (u.node, graph.node(u.node)))?;
        if is_product(node) {
            break id;
        }
        let one = node.outputs.iter().flatten().count() == 1;
        if !one || !SKIPPED.contains(&node.op.name()) || !keeps_channels(graph, node, channels) {
            return None;
        }
        at = node.output(0)?;
        values.push(at);
    };
    Some(Span { first, last, values, clips })
}

fn is_product(node: &Node) -> bool {
    matches!(node.op.name(), "Conv" | "Gemm" | "MatMul") && node.op.domain().is_empty()
}

/// Whether a Clip is a Relu with an upper bound.
fn is_relu(graph: &Graph, id: NodeId) -> bool {
    let bound =
        |i: usize| graph.const_input(id, i).filter(|t| t.len() == 1).and_then(|t| t.to_f32s().ok()?.first().copied());
    bound(1) == Some(0.0) && bound(2).is_some()
}

/// Whether behind a node the elements of channels still follow each other in the order of the channels.
fn keeps_channels(graph: &Graph, node: &Node, channels: usize) -> bool {
    let rank = |v: Option<ValueId>| v.and_then(|v| graph.value(v).ty.tensor()?.shape.as_ref().map(Vec::len));
    match node.op.name() {
        // `[n, c, h, w]` to `[n, c·h·w]`.
        "Flatten" | "Reshape" => channels == 1 || rank(node.output(0)) == Some(2) && rank(node.input(0)) == Some(4),
        _ => true,
    }
}

/// The constants of a product that scale with the channels of its result or of its input.
struct Part {
    node: NodeId,
    weight: ValueId,
    bias: Option<ValueId>,
    shape: Vec<usize>,
    groups: usize,
    /// Whether a matrix is `[inputs, outputs]`.
    inputs_first: bool,
}

impl Part {
    fn constants(&self) -> impl Iterator<Item = (usize, ValueId)> {
        [(1, Some(self.weight)), (2, self.bias)].into_iter().filter_map(|(i, v)| Some((i, v?)))
    }

    fn outputs(&self) -> usize {
        self.shape[usize::from(self.inputs_first)]
    }

    fn inputs(&self) -> usize {
        if self.inputs_first { self.shape[0] } else { self.shape[1] * self.groups }
    }

    /// The output and the input channel of a weight.
    fn channels(&self, weight: usize) -> (usize, usize) {
        let taps: usize = self.shape[2..].iter().product();
        let (row, column) = (weight / (self.shape[1] * taps), weight / taps % self.shape[1]);
        match self.inputs_first {
            true => (column, row),
            false => (row, row / (self.shape[0] / self.groups) * self.shape[1] + column),
        }
    }
}

/// The constants of a product, if they are its own; with several rates the result has as many channels.
fn weight(graph: &Graph, id: NodeId, channels: usize) -> Option<Part> {
    let node = graph.node(id);
    let own = |v: ValueId| {
        let shared = graph.values().filter(|(u, _)| graph.const_id(*u) == graph.const_id(v)).count() > 1;
        graph.constant(v).filter(|t| t.dtype() == DType::F32 && graph.uses(v).len() == 1 && !shared)
    };
    let attr = |name: &str, default: i64| node.op.attrs().int_or(name, default).ok();
    let (weight, bias) = (node.input(1)?, node.input(2));
    let shape = own(weight)?.shape().to_vec();
    let (conv, gemm) = (node.op.name() == "Conv", node.op.name() == "Gemm");
    let plain =
        !gemm || attr("transA", 0) == Some(0) && node.op.attrs().float("alpha").ok().flatten().is_none_or(|a| a == 1.0);
    let groups = usize::try_from(if conv { attr("group", 1)? } else { 1 }).ok().filter(|&g| g > 0)?;
    let ranks = if conv { shape.len() > 2 } else { shape.len() == 2 };
    let sound = ranks && plain && shape.iter().all(|&d| d > 0) && shape[0].is_multiple_of(groups);
    let inputs_first = match node.op.name() {
        "MatMul" => true,
        "Gemm" => attr("transB", 0)? == 0,
        _ => false,
    };
    let part = Part { node: id, weight, bias, shape, groups, inputs_first };
    let row = bias.is_none_or(|b| own(b).is_some_and(|t| sound && t.len() == part.outputs()));
    (sound && row && (channels == 1 || part.outputs() == channels)).then_some(part)
}

/// Changes each weight (and bias, `before` the value) by the rate of its channel.
fn scale(
    graph: &Graph,
    scaled: &mut BTreeMap<ValueId, (Vec<usize>, Vec<f32>)>,
    part: &Part,
    change: impl Fn(&mut f32, usize),
    before: bool,
    rates: usize,
) -> Option<()> {
    if rates > 1 && !before && !part.inputs().is_multiple_of(rates) {
        return None;
    }
    // Elements of a channel follow each other where an image was flattened.
    let (of_output, of_input) = (part.outputs().div_ceil(rates), part.inputs().div_ceil(rates));
    for (i, v) in part.constants().filter(|(i, _)| before || *i == 1) {
        let constant = graph.constant(v)?;
        let start = || Some((constant.shape().to_vec(), constant.to_f32s().ok()?.into_owned()));
        let values = match scaled.entry(v) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => e.insert(start()?),
        };
        for (at, w) in values.1.iter_mut().enumerate() {
            let (output, input) = if i == 1 { part.channels(at) } else { (at, 0) };
            change(w, if before { output / of_output } else { input / of_input });
        }
    }
    Some(())
}
