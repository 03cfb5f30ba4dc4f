//! Where fixed-point hardware rounds: at the ends of blocks, as QuantizeML places its output quantizers.
//!
//! A block is what runs without a rounding in between: a product, its pooling, its Relu. What multiplies or adds needs narrow
//! operands (*asks*), and the nearest operator before it that can round (*carries*) does: a product, Relu, Clip, a sum, a
//! mean. Maxima, Reshape, Transpose and Concat can't, and are walked through.
//!
//! Source: QuantizeML 0.8.1, `models/quantize.py` (`_prepare_output_quantizers`) and the registrations of its layers; held
//! against the tool in `tests/quantizeml.rs`.

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::{Graph, Node, NodeId, ValueId};

use super::{Kind, Reason};

/// Arithmetic that reads the wide results of what is before it.
const WIDE: &[&str] = &["Relu", "Clip", "GlobalAveragePool", "AveragePool"];

/// The values that are rounded. `reads` tells whether a node reads one of its inputs as integers.
pub(super) fn ends(
    graph: &Graph,
    kinds: &BTreeMap<NodeId, Kind>,
    reads: impl Fn(NodeId, usize) -> bool,
) -> BTreeSet<ValueId> {
    let mut found = BTreeSet::new();
    for (&id, kind) in kinds {
        let node = graph.node(id);
        let asks = matches!(kind, Kind::Product) || *kind == Kind::Arithmetic && !WIDE.contains(&node.op.name());
        let operands = node.inputs.iter().enumerate().filter(|(i, _)| asks && reads(id, *i));
        found.extend(operands.filter_map(|(_, v)| *v).flat_map(|v| sources(graph, kinds, v)));
    }
    found
}

/// The rounded values whose elements a value holds: itself, or those before what only moves elements.
pub(super) fn sources(graph: &Graph, kinds: &BTreeMap<NodeId, Kind>, v: ValueId) -> BTreeSet<ValueId> {
    let (mut open, mut seen, mut found) = (vec![v], BTreeSet::new(), BTreeSet::new());
    while let Some(v) = open.pop() {
        if !seen.insert(v) {
            continue;
        }
        match graph.producer(v).map(|(n, _)| n).filter(|n| kinds.get(n) == Some(&Kind::Movement)) {
            Some(n) => open.extend(carried(graph.node(n))),
            None => _ = found.insert(v),
        }
    }
    found
}

/// Whether only pooling stands between a value and its one source, so that channels are where they were.
pub(super) fn keeps_channels(graph: &Graph, kinds: &BTreeMap<NodeId, Kind>, mut v: ValueId) -> bool {
    while let Some((n, _)) = graph.producer(v).filter(|(n, _)| kinds.get(n) == Some(&Kind::Movement)) {
        match graph.node(n).input(0).filter(|_| graph.node(n).op.name() == "MaxPool") {
            Some(x) => v = x,
            None => return false,
        }
    }
    true
}

/// The data that a node without arithmetic hands on.
fn carried(node: &Node) -> impl Iterator<Item = ValueId> + '_ {
    let data = if node.op.name() == "Concat" { node.inputs.len() } else { 1 };
    node.inputs.iter().take(data).flatten().copied()
}

/// Ends the integers where the first operator without an integer form reads them: what depends on its result is float as
/// well, with a reason.
pub(super) fn stop(
    graph: &Graph,
    kinds: &mut BTreeMap<NodeId, Kind>,
    reasons: &mut BTreeMap<NodeId, Reason>,
    is_float: impl Fn(ValueId) -> bool,
) {
    let mut integer: BTreeSet<ValueId> = BTreeSet::new();
    let mut behind: BTreeSet<ValueId> = BTreeSet::new();
    for (id, node) in graph.nodes() {
        let inputs = || node.inputs.iter().flatten();
        let late = inputs().any(|v| behind.contains(v));
        if late && kinds.remove(&id).is_some() {
            reasons.insert(id, Reason::BehindFloat);
        }
        let outputs = node.outputs.iter().flatten().copied().filter(|&v| is_float(v));
        match kinds.contains_key(&id) {
            true => integer.extend(outputs),
            false if late || inputs().any(|v| integer.contains(v)) => behind.extend(outputs),
            false => {}
        }
    }
}
