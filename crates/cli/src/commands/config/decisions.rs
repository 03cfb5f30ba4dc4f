//! What a quantized graph says of its nodes.

use std::collections::{BTreeMap, BTreeSet};

use super::others::Others;
use narrowbit_ir::{Graph, Node, NodeId, QuantRole, ValueId};
use narrowbit_ops::functions::{LayerMad, Shiftmax};
use narrowbit_quant::approach::Approach;
use narrowbit_quant::encodings::{Encodings, KeptBias, qlinear};
use narrowbit_quant::options::{Matcher, PatternError, QuantOptions};
use serde::{Deserialize, Serialize};

/// What was decided of a node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Decision {
    /// Its name in the float model.
    pub node: String,
    /// Its operator there.
    pub op: String,
    /// Whether it computes on integers (or fp8), or as its approach says.
    pub quantized: bool,
    /// Its approach in a mixture, where that is not static.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approach: Option<Approach>,
    /// Why not, as it follows from the settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The constant that it multiplies by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// The quantized tensors that it reads, and the one that its result is rounded to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// The tensor that its result is rounded to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Its bias, where that took up errors of rounding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<KeptBias>,
}

impl Decision {
    /// Whether somebody wants another decision than the settings give.
    pub fn is_edited(&self) -> bool {
        self.quantized == self.why.is_some()
    }

    /// Whether a tensor is one of those that it reads and makes.
    pub fn names(&self, tensor: &str) -> bool {
        self.inputs.iter().chain(&self.weight).chain(&self.output).any(|name| name == tensor)
    }
}

/// Puts biases to the nodes that they belong to.
pub fn keep_biases(nodes: &mut [Decision], mut biases: BTreeMap<String, KeptBias>) {
    for d in nodes.iter_mut().filter(|d| d.quantized && d.weight.is_some()) {
        d.bias = biases.remove(&d.node);
    }
}

/// Where integers are rounded at the ends of blocks only: what is computed as a whole before these.
#[derive(Debug, Default)]
struct Blocks {
    /// The nodes of functions of several nodes.
    nodes: BTreeSet<NodeId>,
    /// What the functions make.
    results: BTreeSet<ValueId>,
}

impl Blocks {
    fn of(graph: &Graph) -> Blocks {
        let mut found = Blocks::default();
        for (id, node) in graph.nodes() {
            let nodes = Shiftmax::find(graph, id).map(|s| s.nodes);
            let Some(nodes) = nodes.or_else(|| Some(LayerMad::find_quantized(graph, id)?.1)) else { continue };
            found.nodes.extend(nodes);
            found.results.extend(node.output(0));
        }
        found
    }
}

/// The decisions of a quantized graph; `blocks` says that integers are rounded at the ends of blocks only.
pub fn of_graph(graph: &Graph, blocks: bool) -> Vec<(NodeId, Decision)> {
    let blocks = blocks.then(|| Blocks::of(graph));
    let form = ["QuantizeLinear", "DequantizeLinear", "Constant"];
    let nodes = graph.nodes().filter(|(_, n)| !form.contains(&n.op.name()));
    let of = |id, node| on_codes(graph, id).unwrap_or_else(|| decision(graph, id, node, blocks.as_ref()));
    nodes.map(|(id, node)| (id, of(id, node))).collect()
}

/// The decisions of a mixture, of which `all` are those of all its nodes as if they were static.
///
/// # Errors
/// When an exception of the settings can't be read.
pub fn with_others(
    graph: &Graph,
    all: Vec<(NodeId, Decision)>,
    settings: &QuantOptions,
) -> Result<Vec<Decision>, PatternError> {
    let matcher = Matcher::new(&settings.overrides)?;
    let mut others = Others::of(graph);
    let own = |(id, d): (NodeId, Decision)| {
        if let Some(other) = others.decisions.remove(&id) {
            return Some(other);
        }
        // Tables of dynamic nodes have the form of static ones.
        let node = graph.node(id);
        let approach = Some(settings.approach_of(&matcher, node)).filter(|a| *a == Approach::Dynamic);
        let approach = approach.filter(|_| d.quantized && table(graph, node).is_some());
        (!others.parts.contains(&id)).then_some(Decision { approach, ..d })
    };
    Ok(all.into_iter().filter_map(own).collect())
}

/// The decision of a node that reads codes: a QLinear operator, or one that moves them.
fn on_codes(graph: &Graph, id: NodeId) -> Option<Decision> {
    let node = graph.node(id);
    let plain = |v: ValueId| qlinear::plain_name(graph, v);
    let (operands, result) = match qlinear::codes(graph, id) {
        Some(found) => found,
        None => (vec![node.input(0).filter(|&v| is_codes(graph, v))?], node.output(0)),
    };
    let (constants, data): (Vec<ValueId>, Vec<ValueId>) =
        operands.into_iter().partition(|&v| graph.constant(v).is_some());
    Some(Decision {
        node: node.name.strip_suffix("_quant").unwrap_or(&node.name).to_owned(),
        op: qlinear::float_name(node.op.name()).unwrap_or(node.op.name()).to_owned(),
        quantized: true,
        weight: constants.first().map(|&v| plain(v)),
        inputs: data.into_iter().map(plain).collect(),
        output: result.map(plain),
        ..Decision::default()
    })
}

/// Whether a value is what QuantizeLinear or a QLinear operator makes, moved perhaps.
fn is_codes(graph: &Graph, v: ValueId) -> bool {
    let mut v = v;
    while let Some((id, _)) = graph.producer(v) {
        let node = graph.node(id);
        if node.op.name() == "QuantizeLinear" || qlinear::codes(graph, id).is_some_and(|(_, made)| made == Some(v)) {
            return true;
        }
        let moves = node.op.name() == "MaxPool" || matches!(node.op.quant(), QuantRole::Transparent);
        match node.input(0).filter(|_| moves) {
            Some(x) => v = x,
            None => return false,
        }
    }
    false
}

/// What a node computes on.
fn data(node: &Node) -> Vec<ValueId> {
    let places = match node.op.quant() {
        QuantRole::Weighted { data, .. } => vec![data],
        QuantRole::Arithmetic { .. } if node.op.name() != "Clip" => (0..node.inputs.len()).collect(),
        _ => vec![0],
    };
    places.into_iter().filter_map(|i| node.input(i)).collect()
}

fn decision(graph: &Graph, id: NodeId, node: &Node, blocks: Option<&Blocks>) -> Decision {
    let why = match blocks {
        Some(blocks) => why_float_in_blocks(graph, id, node, blocks),
        None => why_float(graph, id, node),
    };
    let name = |v| Some(Encodings::name_of(graph, dequantizer(graph, v)?)).flatten();
    let weight = match node.op.quant() {
        QuantRole::Weighted { weight, .. } => node.input(weight).and_then(name),
        _ => table(graph, node).map(|v| qlinear::plain_name(graph, v)),
    };
    Decision {
        node: node.name.clone(),
        op: node.op.name().into(),
        quantized: why.is_none(),
        why,
        weight,
        inputs: data(node).into_iter().filter_map(name).collect(),
        output: rounded_as(graph, id).and_then(|q| Encodings::name_of(graph, q)),
        ..Decision::default()
    }
}

/// The table of integers whose rows a Gather picks.
fn table(graph: &Graph, node: &Node) -> Option<ValueId> {
    let rows = node.output(0).and_then(|v| graph.only_use(v)).map(|u| graph.node(u.node).op.name());
    let picks = node.op.name() == "Gather" && rows == Some("DequantizeLinear");
    node.input(0).filter(|&v| picks && graph.constant(v).is_some())
}

/// Functions that fold into the rounding behind a product.
const FOLDED: [&str; 9] = ["Relu", "Clip", "Abs", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "LeakyRelu", "Swish"];
/// Nodes on the way from a product to the rounding of its result, at the most.
const LONGEST: usize = 8;

/// Why a node computes on floats, where every value is rounded by itself; `None` where it does not.
fn why_float(graph: &Graph, id: NodeId, node: &Node) -> Option<String> {
    let quoted = |v: ValueId| format!("\"{}\" is not quantized", graph.value(v).name);
    let float = data(node).into_iter().find(|&v| dequantizer(graph, v).is_none());
    if matches!(node.op.quant(), QuantRole::Weighted { .. }) {
        return float.map(quoted);
    }
    if table(graph, node).is_some() || is_folded(graph, node, LONGEST) && rounded_as(graph, id).is_some() {
        return None;
    }
    let result = node.output(0).filter(|_| rounded_as(graph, id).is_none());
    float.or(result).map(quoted)
}

/// Whether a node takes part in the rounding of a product before it.
fn is_folded(graph: &Graph, node: &Node, steps: usize) -> bool {
    let name = node.op.name();
    let constant = |v: &ValueId| graph.constant(*v).is_some();
    let operands: Vec<ValueId> = data(node).into_iter().filter(|v| !constant(v)).collect();
    let affine = matches!(name, "Mul" | "Add");
    let folds = |v: &ValueId| {
        let Some((maker, _)) = graph.producer(*v) else { return false };
        let (maker, id) = (graph.node(maker), maker);
        let product = matches!(maker.op.quant(), QuantRole::Weighted { .. }) && why_float(graph, id, maker).is_none();
        // A sum, a mean and their like of integers.
        let arithmetic = || data(maker).into_iter().all(|v| dequantizer(graph, v).is_some());
        if matches!(name, "Relu" | "Clip") && matches!(maker.op.quant(), QuantRole::Arithmetic { .. }) && arithmetic() {
            return true;
        }
        // What products of matrices make is rounded once with a bound behind it, and before any other function.
        match product {
            true if affine => maker.op.name() == "Conv",
            true => matches!(name, "Relu" | "Clip" | "Abs") || matches!(maker.op.name(), "Conv" | "ConvTranspose"),
            false => steps > 0 && is_folded(graph, maker, steps - 1),
        }
    };
    let alone = operands.len() == 1 || name == "Mul" && operands.len() == 2;
    (FOLDED.contains(&name) || affine && alone) && !operands.is_empty() && operands.iter().all(folds)
}

/// As [`why_float`], where integers are rounded at the ends of blocks only.
fn why_float_in_blocks(graph: &Graph, id: NodeId, node: &Node, blocks: &Blocks) -> Option<String> {
    let whole = blocks.nodes.contains(&id);
    let float = data(node).into_iter().find(|&v| !whole && !reads_integers(graph, v, blocks));
    float.map(|v| format!("\"{}\" is not quantized", graph.value(v).name))
}

/// What runs on wide integers before the end of a block, beside what folds into a rounding everywhere.
const WIDE: [&str; 14] = [
    "Min",
    "Max",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Concat",
    "Split",
    "Slice",
    "Gather",
];

/// Whether a value comes from a DequantizeLinear, also by way of what folds into the rounding behind it, where integers are
/// rounded at the ends of blocks only.
fn reads_integers(graph: &Graph, v: ValueId, blocks: &Blocks) -> bool {
    if blocks.results.contains(&v) {
        return true;
    }
    let Some((id, _)) = graph.producer(v) else { return false };
    let (node, name) = (graph.node(id), graph.node(id).op.name());
    let weighted = |n: &Node| matches!(n.op.quant(), QuantRole::Weighted { .. });
    let folds = weighted(node) || ["Relu", "Clip", "Add", "Mul", "Abs"].contains(&name) || WIDE.contains(&name);
    name == "DequantizeLinear" || folds && node.input(0).is_some_and(|x| reads_integers(graph, x, blocks))
}

/// The QuantizeLinear that rounds a node's result, which functions behind it may change before.
fn rounded_as(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let mut seen = vec![id];
    for _ in 0..LONGEST {
        let made: Vec<ValueId> = seen.iter().flat_map(|&n| graph.node(n).outputs.iter().flatten().copied()).collect();
        if let Some(found) = made.iter().find_map(|&v| quantizer(graph, v)) {
            return Some(found);
        }
        let readers = made.iter().flat_map(|&v| graph.uses(v)).map(|u| u.node);
        let folds = |n: &NodeId| FOLDED.contains(&graph.node(*n).op.name()) || is_factor(graph, *n);
        let next: BTreeSet<NodeId> = readers.filter(folds).collect();
        seen = next.into_iter().collect();
    }
    None
}

/// Whether a node multiplies or adds constants, or is the product of SiLU.
fn is_factor(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let by = |v: &ValueId| {
        let gate = graph.producer(*v).is_some_and(|(n, _)| graph.node(n).op.name() == "Sigmoid");
        graph.constant(*v).is_some() || gate && node.op.name() == "Mul"
    };
    matches!(node.op.name(), "Mul" | "Add") && node.inputs.iter().flatten().any(by)
}

/// The QuantizeLinear that reads a value.
fn quantizer(graph: &Graph, v: ValueId) -> Option<NodeId> {
    graph.uses(v).iter().map(|u| u.node).find(|&n| graph.node(n).op.name() == "QuantizeLinear")
}

/// The DequantizeLinear that makes a value.
fn dequantizer(graph: &Graph, v: ValueId) -> Option<NodeId> {
    graph.producer(v).map(|(n, _)| n).filter(|&n| graph.node(n).op.name() == "DequantizeLinear")
}
