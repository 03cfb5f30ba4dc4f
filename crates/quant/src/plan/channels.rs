//! A scale per channel for what depthwise convolutions read.
//!
//! A depthwise convolution never adds one channel to another, so that the scale of a channel of its input is a part of the
//! scale of that channel's weights: the sums stay integers. Where a few channels have a far greater range than the rest, as
//! behind HardSwish or SiLU in mobile networks, one scale for all leaves those a handful of codes. The zero point is one
//! for all channels, so that padding is, too. NNCF's quantizers are placed this way as well.

use std::collections::BTreeMap;

use narrowbit_ir::{Graph, Node, NodeId, QuantRole, ValueId};

use super::{ActivationParams, Kind, Layout, PlanError, QuantPlan};
use crate::observe::{Range, Spread, Stats};
use crate::options::{Matcher, QuantOptions};
use crate::scheme::{ActivationScheme, Formula, NumberFormat};

/// Bits by which channels must gain in the mean: less is not worth a form that some runtimes compute on floats.
const GAIN: f64 = 1.0;
/// The smallest scale of a channel, as a share of the greatest, so that no channel drowns in the rounding of its factor.
const LEAST: f64 = 0.01;

/// The depthwise convolutions whose input may have a scale per channel, by that input: what a function behind a convolution
/// makes and nothing else reads.
pub(crate) fn candidates(graph: &Graph, layout: &Layout, options: &QuantOptions) -> BTreeMap<ValueId, NodeId> {
    if !options.channel_activations || !options.float_outputs {
        return BTreeMap::new();
    }
    let alone: Vec<ValueId> = layout.groups().filter_map(|g| <[ValueId; 1]>::try_from(g).ok()).map(|[v]| v).collect();
    let of = |v: ValueId| {
        let u = graph.only_use(v)?;
        let (maker, _) = graph.producer(v)?;
        // ONNX Runtime 1.31.1 fuses a convolution with the QuantizeLinear behind it or its Relu whatever the scales are, and
        // fails when it runs; ranges behind a Relu can be evened out in the weights instead (`--equalize`).
        let function = !matches!(graph.node(maker).op.name(), "Relu" | "Clip");
        let fits = layout.kinds.get(&maker) == Some(&Kind::Fused) && function && !graph.is_output(v);
        let product = layout.kinds.get(&u.node) == Some(&Kind::Product);
        (fits && product && u.input == 0 && is_depthwise(graph, u.node)).then_some((v, u.node))
    };
    alone.into_iter().filter_map(of).collect()
}

/// Whether each output channel of a convolution reads one input channel of its own.
pub(super) fn is_depthwise(graph: &Graph, id: NodeId) -> bool {
    let node: &Node = graph.node(id);
    let QuantRole::Weighted { weight, .. } = node.op.quant() else { return false };
    let Some(w) = graph.const_input(id, weight).filter(|w| node.op.name() == "Conv" && w.rank() > 2) else {
        return false;
    };
    let groups = node.op.attrs().int_or("group", 1).unwrap_or(1);
    w.shape()[0] > 1 && w.shape()[1] == 1 && usize::try_from(groups) == Ok(w.shape()[0])
}

/// The values that may have a scale per channel, and how many channels they have.
pub(super) fn counts(
    graph: &Graph,
    layout: &Layout,
    matcher: &Matcher,
    options: &QuantOptions,
) -> BTreeMap<ValueId, usize> {
    let of = |(v, conv): (ValueId, NodeId)| {
        let weights = matcher.of(graph.node(conv)).find_map(|o| o.weights).unwrap_or(options.weights);
        let plain = weights.per_channel && weights.formula == Formula::Narrowbit;
        graph.const_input(conv, 1).filter(|_| plain).map(|w| (v, w.shape()[0]))
    };
    candidates(graph, layout, options).into_iter().filter_map(of).collect()
}

/// The values of which fixed-point hardware rounds each channel by itself, with the number of channels: images that an
/// integer node makes. Means over all pixels are vectors, whose elements have one scale.
///
/// Source: QuantizeML 0.8.1, `set_output_quantizer`: `per-axis` unless the output is a vector.
pub(crate) fn rounded(graph: &Graph, layout: &Layout, options: &QuantOptions) -> BTreeMap<ValueId, usize> {
    if !options.rounds_blocks() || options.per_tensor_activations {
        return BTreeMap::new();
    }
    let of = |v: ValueId| {
        let (maker, _) = graph.producer(v)?;
        // Of four axes, but no image: heads of attention.
        let name = graph.node(maker).op.name();
        let matrices = name == "MatMul";
        let vector = matrices || matches!(name, "GlobalAveragePool" | "GlobalMaxPool" | "ReduceMean");
        let shape = graph.value(v).ty.tensor()?.shape.as_ref().filter(|s| s.len() == 4)?;
        let channels = shape[1].as_usize()?;
        // Functions of one element are tables of codes, for which all channels have one meaning.
        let table = |n: NodeId| {
            let linear = ["Add", "Relu", "Clip", "AveragePool", "GlobalAveragePool"];
            layout.kinds.get(&n) == Some(&Kind::Arithmetic) && !linear.contains(&graph.node(n).op.name())
        };
        let plain = !table(maker) && !graph.uses(v).iter().any(|u| table(u.node));
        (layout.is_integer(maker) && !vector && plain && channels > 0).then_some((v, channels))
    };
    layout.groups().flatten().filter_map(|&v| of(v)).collect()
}

/// Gives each channel of these values the position of its moving peak.
///
/// # Errors
/// When the ranges hold no peaks by channel.
pub(super) fn round(
    graph: &Graph,
    stats: &BTreeMap<String, Stats>,
    options: &QuantOptions,
    given: impl Fn(ValueId) -> bool,
    plan: &mut QuantPlan,
) -> Result<(), PlanError> {
    for (v, channels) in rounded(graph, &plan.layout, options).into_iter().filter(|(v, _)| !given(*v)) {
        let name = &graph.value(v).name;
        let Some(params) = plan.activations.get_mut(&v) else { continue };
        let peaks = stats.get(name).and_then(|s| s.peaks.as_ref()).map_or(&[][..], |p| p.values());
        if peaks.len() != channels {
            return Err(PlanError::NoPeaks(name.clone()));
        }
        let scheme = params.scheme;
        let scale = |&p: &f32| scheme.qparams(Range { min: -f64::from(p), max: p.into() }).scale;
        let scales: Vec<f32> = peaks.iter().map(scale).collect();
        params.point.scale = scales.iter().copied().fold(0.0, f32::max);
        plan.channel_scales.insert(v, scales);
    }
    Ok(())
}

/// Gives channels scales of their own where they gain by it, whatever method chose the one for all: these leave no value
/// out and are finer all the same.
pub(super) fn choose(
    graph: &Graph,
    stats: &BTreeMap<String, Stats>,
    matcher: &Matcher,
    options: &QuantOptions,
    given: impl Fn(ValueId) -> bool,
    plan: &mut QuantPlan,
) {
    for (v, channels) in counts(graph, &plan.layout, matcher, options) {
        let Some(params) = plan.activations.get_mut(&v).filter(|_| !given(v)) else { continue };
        let Some(spread) = stats.get(&graph.value(v).name).and_then(|s| s.spread.as_ref()) else { continue };
        if let Some((zero, scales)) = by_channel(&params.scheme, spread).filter(|s| s.1.len() == channels)
            && gain(params, &scales) >= GAIN
        {
            params.point.zero_point = zero;
            params.point.scale = scales.iter().copied().fold(0.0, f32::max);
            plan.channel_scales.insert(v, scales);
        }
    }
}

/// By how many bits the steps of channels become finer in the mean.
fn gain(params: &ActivationParams, scales: &[f32]) -> f64 {
    let whole = f64::from(params.point.scale);
    scales.iter().map(|&s| (whole / f64::from(s)).log2()).sum::<f64>() / scales.len().max(1) as f64
}

/// The zero point and the scales of channels with these extremes: that zero point which, of all, enlarges the squared
/// steps of the channels least over those with a zero point of their own.
fn by_channel(scheme: &ActivationScheme, spread: &Spread) -> Option<(i32, Vec<f32>)> {
    let eight = matches!(scheme.format, NumberFormat::Int8 | NumberFormat::Uint8);
    if !eight || scheme.bits.is_some() || scheme.formula != Formula::Narrowbit || spread.channels().len() == 0 {
        return None;
    }
    let (low, high) = scheme.code_range();
    let ranges: Vec<(f64, f64)> =
        spread.channels().map(|(a, b)| (f64::from(a.min(0.0)), f64::from(b.max(0.0)))).collect();
    let step = |(a, b): (f64, f64), zero: i32| {
        let side = |range: f64, codes: i32| if range == 0.0 { 0.0 } else { range / f64::from(codes) };
        side(b, high - zero).max(side(-a, zero - low))
    };
    let own = |(a, b): (f64, f64)| (b - a) / f64::from(high - low);
    let cost =
        |zero: i32| -> f64 { ranges.iter().filter(|r| r.1 > r.0).map(|&r| (step(r, zero) / own(r)).powi(2)).sum() };
    let symmetric = (i64::from(low) + i64::from(high) + 1) / 2;
    let candidates = if scheme.symmetric { symmetric as i32..=symmetric as i32 } else { low..=high };
    let zero = candidates.min_by(|&a, &b| cost(a).total_cmp(&cost(b)))?;
    let steps: Vec<f64> = ranges.iter().map(|&r| step(r, zero)).collect();
    let greatest = steps.iter().copied().fold(0.0, f64::max);
    let scales: Vec<f32> = steps.iter().map(|&s| s.max(greatest * LEAST) as f32).collect();
    scales.iter().all(|s| s.is_normal() && (1.0 / s).is_normal()).then_some((zero, scales))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheme(format: NumberFormat, symmetric: bool) -> ActivationScheme {
        ActivationScheme { format, symmetric, ..ActivationScheme::default() }
    }

    #[test]
    fn gives_each_channel_its_step_around_one_zero_point() {
        let spread = Spread::new([(0.0, 255.0), (0.0, 25.5), (0.0, 0.0)]);
        let (zero, scales) = by_channel(&scheme(NumberFormat::Uint8, false), &spread).unwrap();
        // Nothing is negative: all codes are for what is positive; a channel without values gets the least step.
        assert_eq!((zero, scales), (0, vec![1.0, 0.1, 0.01]));
        let mixed = Spread::new([(-0.375, 0.375), (-0.375, 3.0), (-0.375, 10.0)]);
        let (zero, scales) = by_channel(&scheme(NumberFormat::Uint8, false), &mixed).unwrap();
        for (i, (low, high)) in mixed.channels().enumerate() {
            let code = |x: f32| (x / scales[i]).round() as i32 + zero;
            assert!(code(low) >= 0 && code(high) <= 255, "channel {i}");
        }
        let (zero, scales) = by_channel(&scheme(NumberFormat::Int8, true), &mixed).unwrap();
        assert_eq!(zero, 0);
        assert!(scales.iter().zip(mixed.channels()).all(|(s, (_, high))| (high / s).round() <= 127.0));
    }

    #[test]
    fn leaves_other_formats_and_records_alone() {
        let some = Spread::new([(0.0, 1.0), (0.0, 9.0)]);
        assert_eq!(by_channel(&scheme(NumberFormat::Int16, false), &some), None);
        assert_eq!(by_channel(&scheme(NumberFormat::Uint8, false), &Spread::default()), None);
        assert_eq!(by_channel(&scheme(NumberFormat::Uint8, false), &Spread::new([(0.0, 0.0), (0.0, 0.0)])), None);
    }
}
