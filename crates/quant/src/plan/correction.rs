//! Bias correction: what rounding the weights adds to each output channel in the mean, the bias takes away.
//!
//! Source: Nagel et al. 2019, section 4.2: `E[ỹ] − E[y] = (W̃ − W) · E[x]`, with the means of the inputs measured on the
//! calibration samples by channel, so that the correction can be made from ranges on another machine. What rounding and
//! saturating the activations adds takes samples ([`crate::mean_shift`]). Each layer is taken for itself, with the float
//! model's inputs; border effects of padding are left out.

use std::collections::BTreeMap;

use narrowbit_ir::{Graph, Node, NodeId, Patch, PatchError, QuantRole, ValueId};
use narrowbit_kernels::Exec;
use narrowbit_tensor::{DType, Tensor};

use super::weights::{Bias, WeightParams};
use super::{Kind, Layout, PlanError};
use crate::calibrate::{ByChannel, ChannelAxis};
use crate::observe::Stats;

/// Gives each Conv and Gemm that computes on integers and is `wanted`, with a constant weight, a bias of zeros where it has
/// none. Nodes and values keep their ids.
pub(crate) fn add_biases(graph: &mut Graph, layout: &Layout, wanted: impl Fn(&Node) -> bool) -> Result<(), PatchError> {
    let mut patch = Patch::new(graph);
    let product = |id: &NodeId, n: &Node| layout.kinds.get(id) == Some(&Kind::Product) && wanted(n);
    for (id, node) in graph.nodes().filter(|(id, n)| product(id, n)) {
        let QuantRole::Weighted { weight, bias: Some(2), channel, .. } = node.op.quant() else { continue };
        let Some(w) = graph.const_input(id, weight).filter(|w| w.dtype() == DType::F32) else { continue };
        let n = match (node.op.name(), channel.resolve(w.rank())) {
            ("Conv" | "Gemm", Some(axis)) if node.input(2).is_none() => w.shape()[axis],
            _ => continue,
        };
        let Ok(zeros) = Tensor::zeros(DType::F32, [n]) else { continue };
        let bias = patch.constant(&format!("{}_bias", node.name), zeros);
        patch.set_input(id, 2, Some(bias));
    }
    if patch.is_empty() {
        return Ok(());
    }
    graph.apply(patch).map(|_| ())
}

/// The inputs of products with a constant weight and a bias, and the axis that the weight sums over.
pub(crate) fn channels(graph: &Graph, layout: &Layout) -> BTreeMap<ValueId, ByChannel> {
    products(graph, layout).into_values().collect()
}

/// As [`channels`], by the product.
pub(crate) fn products(graph: &Graph, layout: &Layout) -> BTreeMap<NodeId, (ValueId, ByChannel)> {
    let products = layout.kinds.iter().filter(|(_, k)| **k == Kind::Product).map(|(&id, _)| (id, graph.node(id)));
    let of = |(id, node): (NodeId, &Node)| {
        let QuantRole::Weighted { data, .. } = node.op.quant() else { return None };
        super::weights::bias_key(graph, layout, id)?;
        Some((id, (node.input(data)?, ByChannel { axis: axis(node)?, means: true, peaks: false })))
    };
    products.filter_map(of).collect()
}

fn axis(node: &Node) -> Option<ChannelAxis> {
    match node.op.name() {
        "Conv" => Some(ChannelAxis::Second),
        "MatMul" => Some(ChannelAxis::Last),
        "Gemm" if node.op.attrs().int_or("transA", 0).ok()? == 0 => Some(ChannelAxis::Last),
        _ => None,
    }
}

/// The bias less the mean error of the quantized weight, and less what the weight makes of `shift`, by which rounding moves the
/// means of its inputs, where that is known; as it is where there is no such formula. Without `stats` it is the latter alone.
pub(super) fn bias(
    graph: &Graph,
    (id, input): (NodeId, usize),
    bias: &Bias,
    (weight, shift): (&WeightParams, Option<&[f64]>),
    stats: Option<&BTreeMap<String, Stats>>,
    exec: &Exec,
) -> Result<Tensor, PlanError> {
    let node = graph.node(id);
    let by_samples = weight.rounded.as_ref().and_then(|r| r.mean_errors.as_deref()).filter(|_| stats.is_some());
    let bias_less = |errors: Option<Vec<f64>>| errors.map_or(bias.tensor.clone(), |e| less(bias.tensor, &e));
    let (Some(_), Some(w)) = (axis(node), graph.const_input(id, input)) else {
        return Ok(bias_less(by_samples.map(<[f64]>::to_vec)));
    };
    let name = &graph.value(bias.input).name;
    let no_means = || PlanError::NoMeans(name.clone());
    let means = match (by_samples, stats.and_then(|s| s.get(name))) {
        // The samples have told what the weight's errors add.
        (Some(_), _) => None,
        (None, Some(record)) => Some(record.means.as_ref().ok_or_else(no_means)?.means()),
        // A constant operand, or one whose scale another file gave, has no record.
        (None, None) => None,
    };
    let moved = errors(node, w, weight, (means.as_deref(), shift), exec);
    Ok(bias_less(match (by_samples, moved) {
        (Some(a), Some(b)) if a.len() == b.len() => Some(a.iter().zip(&b).map(|(a, b)| a + b).collect()),
        (Some(a), _) => Some(a.to_vec()),
        (None, moved) => moved,
    }))
}

/// A bias less what errors of the weight add to each output channel; as it is where it has another length.
fn less(bias: &Tensor, errors: &[f64]) -> Tensor {
    let values = bias.to_f32s().unwrap_or_default();
    if values.len() != errors.len() {
        return bias.clone();
    }
    let corrected: Vec<f32> = values.iter().zip(errors).map(|(&b, e)| (f64::from(b) - e) as f32).collect();
    Tensor::new(bias.shape(), corrected).unwrap_or_else(|_| bias.clone())
}

/// `(W̃ − W) · E[x] + W̃ · (E[x̃] − E[x])` of each output channel, with the means of x and the shift from them; either may be
/// unknown, and counts as 0 then.
fn errors(
    node: &Node,
    w: &Tensor,
    params: &WeightParams,
    (means, shift): (Option<&[f64]>, Option<&[f64]>),
    exec: &Exec,
) -> Option<Vec<f64>> {
    let floats = w.to_f32s().ok()?;
    let codes = params.tensor(exec, w).ok()?.to_f64s().ok()?;
    let shape = w.shape();
    let attrs = |name: &str, default: i64| node.op.attrs().int_or(name, default).ok();
    // Output channels, inputs of one group, and elements of a kernel.
    let (outputs, inputs, kernel, by_row, groups) = match node.op.name() {
        "Conv" => (shape[0], *shape.get(1)?, shape[2..].iter().product(), true, attrs("group", 1)?),
        "Gemm" if attrs("transB", 0)? != 0 => (shape[0], *shape.get(1)?, 1, true, 1),
        "Gemm" | "MatMul" => (*shape.get(1)?, shape[0], 1, false, 1),
        _ => return None,
    };
    let groups = usize::try_from(groups).ok().filter(|g| *g > 0)?;
    let fits = |x: &&[f64]| x.len() == inputs * groups;
    let (means, shift) = (means.filter(fits), shift.filter(fits));
    let known = means.is_some() || shift.is_some();
    if !known || outputs % groups != 0 || floats.len() != outputs * inputs * kernel {
        return None;
    }
    let mut sums = vec![0f64; outputs];
    for (o, sum) in sums.iter_mut().enumerate() {
        let group = o / (outputs / groups);
        // Scales by channel are those of the outputs.
        let p = params.points.get(if params.axis.is_some() { o } else { 0 })?;
        let (zero, scale) = (f64::from(p.zero_point), f64::from(p.scale));
        for j in 0..inputs {
            let of = |all: Option<&[f64]>| all.map_or(0.0, |all| all[group * inputs + j]);
            let (mean, shift) = (of(means), of(shift));
            let from = if by_row { (o * inputs + j) * kernel } else { j * outputs + o };
            let both = codes[from..from + kernel].iter().zip(&floats[from..from + kernel]);
            let error = |(&code, &float): (&f64, &f32)| {
                let value = (code - zero) * scale;
                (value - f64::from(float)) * mean + value * shift
            };
            *sum += both.map(error).sum::<f64>();
        }
    }
    Some(sums)
}

#[cfg(test)]
mod tests {
    use narrowbit_ir::AttrMap;
    use narrowbit_kernels::Isa;
    use narrowbit_testkit::graphs::GraphBuilder;

    use super::*;
    use crate::scheme::WeightScheme;

    fn noise(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    #[test]
    fn finds_the_mean_error_of_products_of_every_form() {
        let exec = Exec::new(Isa::detect(), 1);
        let scheme = WeightScheme { bits: Some(3), ..WeightScheme::default() };
        for (op, shape, attrs, means) in [
            ("Conv", vec![4, 3, 2, 2], AttrMap::new(), 3),
            ("Conv", vec![4, 1, 3, 3], AttrMap::new().with("group", 2i64), 2),
            ("Gemm", vec![5, 4], AttrMap::new().with("transB", 1i64), 4),
            ("MatMul", vec![4, 5], AttrMap::new(), 4),
        ] {
            let mut b = GraphBuilder::new(17);
            let x = b.input("x", &if op == "Conv" { vec![1, means as i64, 4, 4] } else { vec![1, 4] });
            let w = Tensor::new(shape.clone(), noise(shape.iter().product())).unwrap();
            let c = b.constant("w", w.clone());
            let y = b.node(op, &[x, c], attrs.clone()).unwrap();
            b.output(y);
            let graph = b.finish();
            let node = graph.nodes().next().unwrap().1;
            let channel = if op == "MatMul" { 1 } else { 0 };
            let params = WeightParams::new(&exec, &w, scheme, Some(channel));
            let m: Vec<f64> = (0..means).map(|i| i as f64 - 0.5).collect();
            let found = errors(node, &w, &params, (Some(&m), None), &exec).unwrap();
            // By the definition: what the product makes of the means with both weights.
            let codes = params.tensor(&exec, &w).unwrap().to_f64s().unwrap();
            let inner: usize = shape[channel + 1..].iter().product();
            let mut expected = vec![0f64; shape[channel]];
            for (i, (&c, &f)) in codes.iter().zip(noise(codes.len()).iter()).enumerate() {
                let o = i / inner % shape[channel];
                let j = match op {
                    "Conv" => {
                        let kernel: usize = shape[2..].iter().product();
                        let groups = means / shape[1];
                        o / (shape[0] / groups) * shape[1] + i / kernel % shape[1]
                    }
                    "Gemm" => i % 4,
                    _ => i / 5,
                };
                expected[o] += (c * f64::from(params.points[o].scale) - f64::from(f)) * m[j];
            }
            let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-9;
            assert!(found.iter().zip(&expected).all(close), "{op}: {found:?} {expected:?}");
            assert!(found.iter().any(|e| e.abs() > 1e-3), "{op}");
            assert_eq!(errors(node, &w, &params, (Some(&m[1..]), None), &exec), None, "means of another tensor");
        }
    }

    #[test]
    fn gives_a_bias_to_what_has_none_and_leaves_others() {
        let mut b = GraphBuilder::new(17);
        let x = b.input("x", &[1, 2, 4, 4]);
        let w = b.constant("w", Tensor::new([3, 2, 1, 1], noise(6)).unwrap());
        let v = b.constant("v", Tensor::new([2, 3, 1, 1], noise(6)).unwrap());
        let c = b.constant("c", Tensor::new([2], noise(2)).unwrap());
        let y = b.named("c1", "", "Conv", &[x, w], AttrMap::new()).unwrap();
        let y = b.named("c2", "", "Conv", &[y, v, c], AttrMap::new()).unwrap();
        b.output(y);
        let mut graph = b.finish();
        let mut layout = Layout::default();
        add_biases(&mut graph, &layout, |_| true).unwrap();
        assert_eq!(graph.nodes().filter(|(_, n)| n.input(2).is_some()).count(), 1, "floats stay as they are");
        layout.kinds = graph.nodes().map(|(id, _)| (id, Kind::Product)).collect();
        add_biases(&mut graph, &layout, |_| true).unwrap();
        let biases: Vec<usize> = graph.nodes().map(|(id, _)| graph.const_input(id, 2).unwrap().len()).collect();
        assert_eq!(biases, [3, 2]);
        assert!(graph.value_named("c1").is_some(), "outputs keep their names");
    }
}
