//! Operators that only move elements, or pick one, work on integers as well: a
//! DequantizeLinear before them goes behind them, and vanishes where a QuantizeLinear
//! with the same parameters follows.

use std::sync::Arc;

use narrowbit_ir::{Graph, Node, NodeId, Patch, PatchError, ValueId};
use narrowbit_ops::tensor::pad::{Pad, PadMode};
use narrowbit_ops::tensor::resample::Coordinates;
use narrowbit_ops::tensor::resize::Resize;
use narrowbit_ops::tensor::upsample::Upsample;
use narrowbit_tensor::{DType, Tensor};

/// The graph with every DequantizeLinear as late as can be, and QuantizeLinear before what only moves elements.
///
/// # Errors
/// Never for a graph that verifies.
pub fn sink(graph: &Graph) -> Result<Option<Graph>, PatchError> {
    apply(graph, &["QuantizeLinear", "DequantizeLinear"], next)
}

/// The graph with every DynamicQuantizeLinear before what only moves elements: behind [`super::projections::split`], which looks
/// for such operators at the parts of a product.
///
/// # Errors
/// Never for a graph that verifies.
pub fn lift_dynamic(graph: &Graph) -> Result<Option<Graph>, PatchError> {
    apply(graph, &["DynamicQuantizeLinear"], |graph| {
        let mut dynamic = graph.nodes().map(|(_, n)| n).filter(|n| n.op.name() == "DynamicQuantizeLinear");
        dynamic.find_map(|node| lifted(graph, node).or_else(|| scaled_before(graph, node)))
    })
}

/// Applies patches while there are any, to a graph with one of these operators.
fn apply(graph: &Graph, names: &[&str], next: fn(&Graph) -> Option<Patch>) -> Result<Option<Graph>, PatchError> {
    if !graph.nodes().any(|(_, n)| names.contains(&n.op.name())) {
        return Ok(None);
    }
    let mut graph = graph.clone();
    while let Some(patch) = next(&graph) {
        graph.apply(patch)?;
    }
    Ok(Some(graph))
}

fn next(graph: &Graph) -> Option<Patch> {
    graph.nodes().find_map(|(id, node)| match node.op.name() {
        "QuantizeLinear" => {
            requantized(graph, node).or_else(|| lifted(graph, node)).or_else(|| shared(graph, id, node))
        }
        "Concat" => concat(graph, id, node).or_else(|| quantized_concat(graph, id, node)),
        "Split" => moved(graph, id, node),
        name if is_movement(name) && node.outputs.iter().flatten().count() == 1 => moved(graph, id, node),
        "Pad" => padded(graph, id, node),
        "Resize" | "Upsample" if selects(node) => moved(graph, id, node),
        _ => None,
    })
}

/// Whether a resampling takes elements as they are, and nothing but them.
fn selects(node: &Node) -> bool {
    if let Some(op) = node.op.downcast::<Resize>() {
        return op.is_nearest() && op.method.coordinates != Coordinates::TfCropAndResize;
    }
    node.op.downcast::<Upsample>().is_some_and(|op| !op.linear)
}

fn is_movement(name: &str) -> bool {
    let movements = [
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Gather",
        "Expand",
        "Tile",
        "MaxPool",
        "DepthToSpace",
        "SpaceToDepth",
        "Identity",
    ];
    movements.contains(&name)
}

/// A DequantizeLinear with one scale for all: its integers, scale and zero point.
#[derive(Clone, Copy)]
struct Source {
    x: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
    node: NodeId,
}

fn source(graph: &Graph, v: ValueId) -> Option<Source> {
    let (id, _) = graph.producer(v)?;
    let node = graph.node(id);
    let x = node.input(0).filter(|&x| node.op.name() == "DequantizeLinear" && graph.constant(x).is_none())?;
    let scale = node.input(1)?;
    let single = |v: ValueId| graph.constant(v).is_some_and(|t| t.len() == 1);
    let usable = single(scale) && node.input(2).is_none_or(single) && eight_bits(graph, node);
    usable.then_some(Source { x, scale, zero: node.input(2), node: id })
}

/// Whether the integers are known to have 8 bits: what movements have kernels for.
fn eight_bits(graph: &Graph, node: &Node) -> bool {
    let zero = node.input(2).and_then(|z| graph.constant(z)).map(Tensor::dtype);
    let x = node.input(0).and_then(|x| graph.value(x).ty.tensor()?.dtype);
    matches!(zero.or(x), Some(DType::U8 | DType::I8))
}

fn same(graph: &Graph, a: Option<ValueId>, b: Option<ValueId>) -> bool {
    let bytes = |v: ValueId| graph.constant(v).map(|t| (t.dtype(), t.bytes().to_vec()));
    match (a, b) {
        (Some(a), Some(b)) => a == b || bytes(a).is_some() && bytes(a) == bytes(b),
        (a, b) => a == b,
    }
}

/// QuantizeLinear of a DequantizeLinear with the same parameters: the integers themselves.
fn requantized(graph: &Graph, node: &Node) -> Option<Patch> {
    let (s, y) = (source(graph, node.input(0)?)?, node.output(0)?);
    let fits = same(graph, Some(s.scale), node.input(1)) && same(graph, s.zero, node.input(2));
    if !fits || !graph.can_replace(y, s.x) {
        return None;
    }
    let mut patch = Patch::new(graph);
    patch.replace(y, s.x);
    Some(patch)
}

/// A QuantizeLinear with one scale for all, or one that is found from all, goes before the operator that only gives its operand
/// another order, or copies elements of it around it: bytes are moved instead of floats, and what is quantized in several
/// shapes is quantized once.
fn lifted(graph: &Graph, node: &Node) -> Option<Patch> {
    let (x, y) = (node.input(0)?, node.output(0)?);
    let single = |v: ValueId| graph.constant(v).is_some_and(|t| t.len() == 1);
    let mover = mover(graph, x)?;
    let from = mover.input(0).filter(|&v| graph.constant(v).is_none())?;
    let fits = match node.op.name() {
        // Its range is that of all elements, of which a Pad may drop some.
        "DynamicQuantizeLinear" => !copies(mover),
        _ => single(node.input(1)?) && node.input(2).is_none_or(single),
    };
    if !fits {
        return None;
    }
    let mut patch = Patch::new(graph);
    let mut inputs = node.inputs.clone();
    inputs[0] = Some(from);
    let names: Vec<_> = (0..node.outputs.len()).map(|i| node.output(i).map(|_| format!("{}_{i}", node.name))).collect();
    let names: Vec<Option<&str>> = names.iter().map(Option::as_deref).collect();
    let made = patch.node_outputs(&node.name, Arc::clone(&node.op), &inputs, &names);
    let mut inputs = mover.inputs.clone();
    inputs[0] = *made.first()?;
    let moved = patch.node(&mover.name, Arc::clone(&mover.op), &inputs);
    patch.replace(y, moved);
    // Scale and zero point of what is dynamic.
    for (old, new) in node.outputs.iter().zip(made).skip(1) {
        if let (Some(old), Some(new)) = (*old, new) {
            patch.replace(old, new);
        }
    }
    Some(patch)
}

/// What makes a value that nobody else reads by giving its operand another order, or by copying elements around it.
fn mover(graph: &Graph, v: ValueId) -> Option<&Node> {
    graph.only_use(v)?;
    let node = graph.node(graph.producer(v)?.0);
    let orders = ["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"].contains(&node.op.name());
    ((orders || copies(node)) && node.op.domain().is_empty()).then_some(node)
}

/// A factor between a movement and the DynamicQuantizeLinear `node` goes before the movement, which the quantization can then
/// pass.
fn scaled_before(graph: &Graph, node: &Node) -> Option<Patch> {
    let x = node.input(0)?;
    graph.only_use(x)?;
    let scaling = graph.node(graph.producer(x)?.0);
    let moved = scaling.input(0).filter(|_| matches!(scaling.op.name(), "Mul" | "Div"))?;
    let mover = mover(graph, moved).filter(|mover| !copies(mover))?;
    // A factor of one axis must not give a scalar one.
    let turns =
        mover.op.name() == "Transpose" && mover.op.attrs().ints("perm").is_ok_and(|p| p.is_some_and(|p| !p.is_empty()));
    let single = |v: ValueId| graph.constant(v).is_some_and(|t| t.len() == 1 && t.rank() <= usize::from(turns));
    let factor = scaling.input(1).filter(|&v| single(v))?;
    let mut patch = Patch::new(graph);
    let scaled = patch.node(&scaling.name, Arc::clone(&scaling.op), &[mover.input(0), Some(factor)]);
    let mut inputs = mover.inputs.clone();
    inputs[0] = Some(scaled);
    let moved = patch.node(&mover.name, Arc::clone(&mover.op), &inputs);
    patch.replace(x, moved);
    Some(patch)
}

/// A QuantizeLinear with one scale for all that does what another one does already.
fn shared(graph: &Graph, id: NodeId, node: &Node) -> Option<Patch> {
    let (x, y) = (node.input(0)?, node.output(0)?);
    let single = |v: ValueId| graph.constant(v).is_some_and(|t| t.len() == 1);
    // The zero point tells the type, and without an axis no other attribute matters to 8 bits.
    let known = single(node.input(1)?) && node.input(2).is_some_and(single) && eight_bits(graph, node);
    let alike = |n: NodeId| {
        let other = graph.node(n);
        let quantizes = other.op.name() == "QuantizeLinear" && other.input(0) == Some(x);
        quantizes && (1..3).all(|i| same(graph, node.input(i), other.input(i)))
    };
    let first = graph.uses(x).iter().map(|u| u.node).find(|&n| alike(n)).filter(|&n| known && n != id)?;
    let codes = graph.node(first).output(0).filter(|&codes| graph.can_replace(y, codes))?;
    let mut patch = Patch::new(graph);
    patch.replace(y, codes);
    Some(patch)
}

fn moved(graph: &Graph, id: NodeId, node: &Node) -> Option<Patch> {
    let s = source(graph, node.input(0)?)?;
    let mut inputs = node.inputs.clone();
    inputs[0] = Some(s.x);
    Some(behind(graph, id, inputs, s))
}

/// Whether a Pad copies elements of its input.
fn copies(node: &Node) -> bool {
    node.op.downcast::<Pad>().is_some_and(|op| op.mode != PadMode::Constant)
}

/// A Pad with zeros puts the zero point around integers; one that copies elements moves integers as well.
fn padded(graph: &Graph, id: NodeId, node: &Node) -> Option<Patch> {
    if copies(node) {
        return moved(graph, id, node);
    }
    let s = source(graph, node.input(0)?)?;
    let op = node.op.downcast::<Pad>().filter(|op| op.mode == PadMode::Constant && op.pads.attr().is_none())?;
    let is_zero = |v| graph.constant(v).is_some_and(|t| t.to_f64s().is_ok_and(|x| x == [0.0]));
    if op.value.is_some() || !node.input(2).is_none_or(is_zero) {
        return None;
    }
    let mut inputs = node.inputs.clone();
    inputs.resize(inputs.len().max(3), None);
    (inputs[0], inputs[2]) = (Some(s.x), s.zero);
    Some(behind(graph, id, inputs, s))
}

/// A Concat whose operands all have the same parameters.
fn concat(graph: &Graph, id: NodeId, node: &Node) -> Option<Patch> {
    let sources: Option<Vec<Source>> = node.inputs.iter().map(|v| source(graph, (*v)?)).collect();
    let sources = sources?;
    let s = *sources.first()?;
    let alike = |o: &Source| same(graph, Some(s.scale), Some(o.scale)) && same(graph, s.zero, o.zero);
    let inputs = sources.iter().map(|s| Some(s.x)).collect();
    sources.iter().all(alike).then(|| behind(graph, id, inputs, s))
}

/// A Concat of integers in several formats that is quantized again: its operands are quantized instead.
fn quantized_concat(graph: &Graph, id: NodeId, node: &Node) -> Option<Patch> {
    let y = node.output(0)?;
    let quantize = graph.node(graph.only_use(y)?.node);
    if quantize.op.name() != "QuantizeLinear" || quantize.input(0) != Some(y) {
        return None;
    }
    let single = |v: ValueId| graph.constant(v).is_some_and(|t| t.len() == 1);
    let fixed = single(quantize.input(1)?) && single(quantize.input(2)?);
    let ints = node.inputs.iter().all(|v| v.is_some_and(|v| source(graph, v).is_some()));
    if !fixed || !ints || quantize.output(0).is_none() {
        return None;
    }
    let mut patch = Patch::new(graph);
    let operands: Vec<Option<ValueId>> = (0..node.inputs.len())
        .map(|i| {
            let mut inputs = quantize.inputs.clone();
            inputs[0] = node.inputs[i];
            Some(patch.node(&format!("{}_{i}", quantize.name), Arc::clone(&quantize.op), &inputs))
        })
        .collect();
    let joined = patch.node(&format!("{}_quantized", graph.node(id).name), Arc::clone(&node.op), &operands);
    patch.replace(quantize.output(0)?, joined);
    Some(patch)
}

/// The node on integers, and a DequantizeLinear of each of its outputs.
fn behind(graph: &Graph, id: NodeId, inputs: Vec<Option<ValueId>>, s: Source) -> Patch {
    let node = graph.node(id);
    let mut patch = Patch::new(graph);
    let name = |v: ValueId| format!("{}_quantized", graph.value(v).name);
    let names: Vec<Option<String>> = node.outputs.iter().map(|v| v.map(name)).collect();
    let names: Vec<Option<&str>> = names.iter().map(Option::as_deref).collect();
    let outputs = patch.node_outputs(&node.name, Arc::clone(&node.op), &inputs, &names);
    let dequantize = graph.node(s.node);
    for (old, new) in node.outputs.iter().zip(outputs) {
        if let (Some(old), Some(new)) = (old, new) {
            let name = format!("{}_dequantized", graph.value(*old).name);
            let float = patch.node(&name, Arc::clone(&dequantize.op), &[Some(new), Some(s.scale), s.zero]);
            patch.replace(*old, float);
        }
    }
    patch
}
