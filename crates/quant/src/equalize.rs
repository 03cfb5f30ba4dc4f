//! Cross-layer equalization: the channels between two convolutions get the same range in both weights.
//!
//! Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1. For
//! channel `i` with the ranges `r1 = max|W1_i|` and `r2 = max|W2_·i|` the factor is `s = √(r1 · r2) / r2`; `W1` and its bias
//! are divided by it and `W2` is multiplied, so that both ranges become `√(r1 · r2)`. What stands between must be positively
//! homogeneous in each channel: `f(s·x) = s·f(x)` for `s > 0`, as Relu and LeakyRelu, maxima and averages are.

use std::collections::BTreeMap;

use narrowbit_ir::{Graph, Node, NodeId, Patch, PatchError, ValueId};
use narrowbit_tensor::{DType, Tensor};
use serde::Serialize;

/// Operators with a Conv on both sides that scale with their input, channel by channel.
const HOMOGENEOUS: &[&str] =
    &["Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity"];
/// What the names of scaled constants end in.
pub const SUFFIX: &str = "_equalized";
/// Rounds at the most: chains of pairs pull at each other.
const ROUNDS: usize = 100;
/// Factors this near to 1 are an end.
const TOLERANCE: f64 = 1e-4;
/// Factors of one round stay within, and channels without a range stay as they are.
const WIDEST: f64 = 1024.0;

/// What an equalization did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Equalized {
    /// Names of the convolutions of each pair.
    pub pairs: Vec<(String, String)>,
    /// Rounds until nothing changed.
    pub rounds: usize,
    /// The greatest ratio between the channel ranges of one weight before …
    pub spread_before: f64,
    /// … and after.
    pub spread_after: f64,
}

/// The weight of a convolution while it is scaled.
struct Layer {
    weight: ValueId,
    bias: Option<ValueId>,
    shape: Vec<usize>,
    values: Vec<f64>,
    biases: Vec<f64>,
    groups: usize,
}

impl Layer {
    fn outputs(&self) -> usize {
        self.shape[0]
    }

    fn inputs(&self) -> usize {
        self.shape[1] * self.groups
    }

    /// The places of the weights that multiply input channel `i`: those of each output of its group.
    fn columns(&self, i: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let (per_group, kernel) = (self.shape[1], self.shape[2..].iter().product::<usize>());
        let rows = self.outputs() / self.groups;
        let (group, column) = (i / per_group, i % per_group);
        (group * rows..(group + 1) * rows).map(move |row| {
            let at = (row * per_group + column) * kernel;
            at..at + kernel
        })
    }

    fn row(&self, i: usize) -> std::ops::Range<usize> {
        let len = self.values.len() / self.outputs();
        i * len..(i + 1) * len
    }

    fn row_range(&self, i: usize) -> f64 {
        peak(&self.values[self.row(i)])
    }

    fn column_range(&self, i: usize) -> f64 {
        self.columns(i).map(|r| peak(&self.values[r])).fold(0.0, f64::max)
    }

    /// The ratio between the greatest and the least range of its output channels.
    fn spread(&self) -> f64 {
        let ranges = || (0..self.outputs()).map(|i| self.row_range(i)).filter(|&r| r > 0.0);
        ranges().fold(0.0, f64::max) / ranges().fold(f64::INFINITY, f64::min)
    }
}

fn peak(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// Equalizes all pairs of convolutions of a sanitized float graph, until it has converged. New constants get new names, so
/// that ranges of the one graph are not taken for those of the other.
///
/// # Errors
/// Never for a graph that holds together.
pub fn equalize(graph: &mut Graph) -> Result<Equalized, PatchError> {
    let mut layers: BTreeMap<NodeId, Layer> =
        graph.nodes().filter_map(|(id, n)| Some((id, layer(graph, n)?))).collect();
    let pairs: Vec<(NodeId, NodeId)> = layers.keys().filter_map(|&a| Some((a, next(graph, &layers, a)?))).collect();
    if pairs.is_empty() {
        return Ok(Equalized::default());
    }
    let touched = |id: &NodeId| pairs.iter().any(|(a, b)| a == id || b == id);
    layers.retain(|id, _| touched(id));
    let spread = |layers: &BTreeMap<NodeId, Layer>| layers.values().map(Layer::spread).fold(1.0, f64::max);
    let mut done = Equalized {
        pairs: pairs.iter().map(|&(a, b)| (graph.node(a).name.clone(), graph.node(b).name.clone())).collect(),
        rounds: 0,
        spread_before: spread(&layers),
        spread_after: 0.0,
    };
    while done.rounds < ROUNDS {
        done.rounds += 1;
        let worst = pairs.iter().fold(0f64, |worst, &(a, b)| worst.max(balance(&mut layers, a, b)));
        if worst < TOLERANCE {
            break;
        }
    }
    done.spread_after = spread(&layers);
    write(graph, &layers)?;
    Ok(done)
}

/// The parts of a convolution that can be scaled: constants of its own.
fn layer(graph: &Graph, node: &Node) -> Option<Layer> {
    let conv = node.op.name() == "Conv" && node.op.domain().is_empty();
    let own = |v: ValueId| {
        let id = graph.const_id(v)?;
        let shared = graph.values().filter(|(u, _)| graph.const_id(*u) == Some(id)).count() > 1;
        graph.constant(v).filter(|t| t.dtype() == DType::F32 && graph.uses(v).len() == 1 && !shared)
    };
    let weight = node.input(1).filter(|_| conv)?;
    let w = own(weight)?;
    let floats = |t: &Tensor| Some(t.to_f32s().ok()?.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
    let bias = node.input(2);
    let biases = match bias {
        Some(b) => floats(own(b)?)?,
        None => Vec::new(),
    };
    let values = floats(w)?;
    let groups = usize::try_from(node.op.attrs().int_or("group", 1).ok()?).ok()?;
    let shape = w.shape().to_vec();
    let sound = shape.len() >= 3 && groups > 0 && shape[0] > 0 && shape[0] % groups == 0 && !values.is_empty();
    let finite = values.iter().chain(&biases).all(|v| v.is_finite());
    (sound && finite && (bias.is_none() || biases.len() == shape[0])).then_some(Layer {
        weight,
        bias,
        shape,
        values,
        biases,
        groups,
    })
}

/// The convolution that alone reads what another one makes, through what is homogeneous.
fn next(graph: &Graph, layers: &BTreeMap<NodeId, Layer>, a: NodeId) -> Option<NodeId> {
    let mut value = graph.node(a).output(0)?;
    loop {
        let u = graph.only_use(value).filter(|u| u.input == 0 && !graph.is_output(value))?;
        let node = graph.node(u.node);
        if let Some(b) = layers.get(&u.node) {
            return (b.inputs() == layers[&a].outputs()).then_some(u.node);
        }
        let one = node.outputs.iter().flatten().count() == 1;
        if !one || !HOMOGENEOUS.contains(&node.op.name()) || !node.op.domain().is_empty() {
            return None;
        }
        value = node.output(0)?;
    }
}

/// Scales the channels between two convolutions; how far the greatest factor was from 1.
fn balance(layers: &mut BTreeMap<NodeId, Layer>, a: NodeId, b: NodeId) -> f64 {
    let mut worst = 0f64;
    for i in 0..layers[&a].outputs() {
        let (r1, r2) = (layers[&a].row_range(i), layers[&b].column_range(i));
        if !(r1 > 0.0 && r2 > 0.0) {
            continue;
        }
        let s = ((r1 * r2).sqrt() / r2).clamp(1.0 / WIDEST, WIDEST);
        worst = worst.max((s.max(1.0 / s)) - 1.0);
        if let Some(first) = layers.get_mut(&a) {
            let row = first.row(i);
            first.values[row].iter_mut().for_each(|v| *v /= s);
            if let Some(bias) = first.biases.get_mut(i) {
                *bias /= s;
            }
        }
        if let Some(second) = layers.get_mut(&b) {
            for column in second.columns(i) {
                second.values[column].iter_mut().for_each(|v| *v *= s);
            }
        }
    }
    worst
}

fn write(graph: &mut Graph, layers: &BTreeMap<NodeId, Layer>) -> Result<(), PatchError> {
    let mut patch = Patch::new(graph);
    for (&id, layer) in layers {
        let parts = [
            (1, Some(layer.weight), &layer.shape, &layer.values),
            (2, layer.bias, &vec![layer.outputs()], &layer.biases),
        ];
        for (input, old, shape, values) in parts {
            let Some(old) = old else { continue };
            let floats: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            let Ok(tensor) = Tensor::new(shape.clone(), floats) else { continue };
            let name = format!("{}{SUFFIX}", graph.value(old).name);
            let constant = patch.constant(&name, tensor);
            patch.set_input(id, input, Some(constant));
        }
    }
    graph.apply(patch)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use narrowbit_ir::{AttrMap, Model, interp};
    use narrowbit_testkit::graphs::GraphBuilder;

    use super::*;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    /// Conv, an activation, a depthwise Conv, Relu, MaxPool, Conv; channel ranges far apart.
    fn model(activation: &str) -> Model {
        let mut b = GraphBuilder::new(17);
        let x = b.input("x", &[1, 3, 8, 8]);
        let scaled = |mut w: Vec<f32>, rows: usize| {
            let len = w.len() / rows;
            w.iter_mut().enumerate().for_each(|(i, v)| *v *= 4f32.powi((i / len) as i32 % 4 - 2));
            w
        };
        let w1 = b.constant("w1", Tensor::new([6, 3, 3, 3], scaled(noise(162, 1), 6)).unwrap());
        let b1 = b.constant("b1", Tensor::new([6], noise(6, 2)).unwrap());
        let w2 = b.constant("w2", Tensor::new([6, 1, 3, 3], scaled(noise(54, 3), 6)).unwrap());
        let w3 = b.constant("w3", Tensor::new([4, 6, 1, 1], noise(24, 4)).unwrap());
        let y = b.named("c1", "", "Conv", &[x, w1, b1], AttrMap::new()).unwrap();
        let y = b.named("a1", "", activation, &[y], AttrMap::new()).unwrap();
        let y = b.named("c2", "", "Conv", &[y, w2], AttrMap::new().with("group", 6i64)).unwrap();
        let y = b.named("a2", "", "Relu", &[y], AttrMap::new()).unwrap();
        let attrs = AttrMap::new().with("kernel_shape", narrowbit_ir::Attr::Ints(vec![2, 2]));
        let y = b.named("p", "", "MaxPool", &[y], attrs).unwrap();
        let y = b.named("c3", "", "Conv", &[y, w3], AttrMap::new()).unwrap();
        b.output(y);
        b.model()
    }

    fn run(graph: &Graph) -> Vec<f32> {
        let x = Tensor::new([1, 3, 8, 8], noise(192, 9)).unwrap();
        interp::run_tensors(graph, &[x]).unwrap()[0].to_f32s().unwrap().to_vec()
    }

    #[test]
    fn evens_out_ranges_and_keeps_the_outputs() {
        for activation in ["Relu", "LeakyRelu"] {
            let mut m = model(activation);
            let before = run(&m.graph);
            let done = equalize(&mut m.graph).unwrap();
            assert_eq!(done.pairs, [("c1".into(), "c2".into()), ("c2".into(), "c3".into())]);
            assert!(done.rounds < ROUNDS && done.spread_after < done.spread_before / 3.0, "{done:?}");
            let most = before.iter().fold(0f32, |m, v| m.max(v.abs()));
            // Rounding of the scaled weights to f32, over sums of 27 products.
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5 * most;
            assert!(before.iter().zip(&run(&m.graph)).all(close));
            // Both sides of each channel have one range.
            let layers: Vec<Layer> = m.graph.nodes().filter_map(|(_, n)| layer(&m.graph, n)).collect();
            for i in 0..6 {
                let (a, b) = (layers[0].row_range(i), layers[1].column_range(i));
                assert!((a / b - 1.0).abs() < 2e-3, "{i}: {a} {b}");
            }
            // Again: nothing moves.
            let again = equalize(&mut m.graph).unwrap();
            assert!((again.spread_after / again.spread_before - 1.0).abs() < 1e-2, "{again:?}");
        }
    }

    #[test]
    fn leaves_alone_what_does_not_scale_with_its_input() {
        for activation in ["Sigmoid", "HardSwish"] {
            let mut m = model(activation);
            let done = equalize(&mut m.graph).unwrap();
            assert_eq!(done.pairs, [("c2".into(), "c3".into())], "{activation}");
        }
    }

    #[test]
    fn leaves_alone_what_others_read() {
        let mut b = GraphBuilder::new(17);
        let x = b.input("x", &[1, 2, 4, 4]);
        let w = b.constant("w", Tensor::new([2, 2, 1, 1], noise(4, 1)).unwrap());
        let v = b.constant("v", Tensor::new([2, 2, 1, 1], noise(4, 2)).unwrap());
        let h = b.named("c1", "", "Conv", &[x, w], AttrMap::new()).unwrap();
        let y = b.named("c2", "", "Conv", &[h, v], AttrMap::new()).unwrap();
        b.output(y);
        b.output(h);
        let mut graph = b.finish();
        assert_eq!(equalize(&mut graph).unwrap(), Equalized::default());
    }
}
