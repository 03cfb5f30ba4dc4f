//! What a quantized graph of a mixture says of the nodes that are not static.

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::infer::{self, Facts};
use narrowbit_ir::{Graph, Node, NodeId, ValueId};
use narrowbit_quant::approach::Approach;
use narrowbit_tensor::DType;

use super::decisions::Decision;

/// The nodes that are not static, and those that are no nodes of the float graph but a part of their forms.
#[derive(Debug, Default)]
pub struct Others {
    /// By the node that computes.
    pub decisions: BTreeMap<NodeId, Decision>,
    /// Nodes without a decision.
    pub parts: BTreeSet<NodeId>,
}

/// The ending of a product of bytes' name.
const PRODUCT: &str = "_quant";
/// The endings of the names of what makes floats of its sums.
const BEHIND: [&str; 6] = ["_shifted", "_float", "_scaled", "_biased", "_rows", "_Add"];
/// What finds the range of an activation at run time, and rounds it.
const BEFORE: [&str; 12] = [
    "Abs",
    "Cast",
    "Clip",
    "Div",
    "DynamicQuantizeLinear",
    "Mul",
    "QuantizeLinear",
    "ReduceMax",
    "ReduceMin",
    "Round",
    "Sub",
    "Transpose",
];

impl Others {
    /// Finds the forms that `quantize` writes.
    pub fn of(graph: &Graph) -> Others {
        let facts = infer::infer(graph, &Default::default(), infer::Options::default()).unwrap_or_default();
        let mut found = Others::default();
        for (id, node) in graph.nodes() {
            match node.op.name() {
                "MatMulInteger" | "ConvInteger" => found.dynamic(graph, id, node),
                "DynamicQuantizeLSTM" => {
                    let name = node.name.strip_suffix(PRODUCT).unwrap_or(&node.name);
                    let weight = node.input(1).map(|v| plain(graph, v));
                    found.decide(id, name, "LSTM", weight, Approach::Dynamic);
                }
                "MatMul" => found.blocks(graph, id, node),
                "MatMulNBits" | "GatherBlockQuantized" => found.packed(graph, id, node),
                "Gather" => found.table(graph, id, node),
                _ => {}
            }
        }
        for (id, node) in graph.nodes() {
            found.half(graph, &facts, id, node);
        }
        found
    }

    fn dynamic(&mut self, graph: &Graph, id: NodeId, node: &Node) {
        let Some(name) = node.name.strip_suffix(PRODUCT) else { return };
        let mut weight = node.input(1).filter(|&v| graph.constant(v).is_some()).map(|v| plain(graph, v));
        let mut open: Vec<NodeId> = Vec::new();
        let (mut at, mut biased) = (id, false);
        while let Some(next) = graph.node(at).output(0).and_then(|v| graph.only_use(v)).map(|u| u.node) {
            let text = graph.node(next).name.strip_prefix(name);
            if !text.is_some_and(|t| BEHIND.contains(&t)) {
                break;
            }
            biased |= text == Some("_biased");
            self.parts.insert(next);
            open.push(next);
            at = next;
        }
        open.push(id);
        while let Some(n) = open.pop() {
            let inputs = &graph.node(n).inputs;
            let stops = |i: usize| match graph.node(n).op.name() {
                // Behind these is what is rounded, or whose range is found.
                "QuantizeLinear" => i == 0 && !is_part(graph, graph.node(n).input(0)),
                "DynamicQuantizeLinear" | "ReduceMax" | "ReduceMin" => true,
                "Div" => i == 0 && graph.node(n).name.ends_with("_parts"),
                _ => false,
            };
            for v in inputs.iter().enumerate().filter(|(i, _)| !stops(*i)).filter_map(|(_, v)| *v) {
                let Some((maker, _)) = graph.producer(v) else { continue };
                let fits = BEFORE.contains(&graph.node(maker).op.name()) && maker != id;
                if fits && !self.decisions.contains_key(&maker) && self.parts.insert(maker) {
                    open.push(maker);
                }
            }
        }
        let op = match (node.op.name(), biased) {
            ("ConvInteger", _) => "Conv",
            (_, true) => "Gemm",
            _ => "MatMul",
        };
        weight.as_mut().into_iter().for_each(|w| *w = w.trim_end_matches("_quantized").to_owned());
        self.decide(id, name, op, weight, Approach::Dynamic);
    }

    /// A product of what a DequantizeLinear in blocks makes, or of what the table of NF4 does.
    fn blocks(&mut self, graph: &Graph, id: NodeId, node: &Node) {
        let Some((made, parts)) = node.input(1).and_then(|v| by_blocks(graph, v)) else { return };
        self.parts.extend(parts);
        let gemm = node.name.strip_suffix("_MatMul");
        if let Some(name) = gemm {
            self.behind(graph, id, name);
        }
        self.decide(
            id,
            gemm.unwrap_or(&node.name),
            if gemm.is_some() { "Gemm" } else { "MatMul" },
            Some(made),
            Approach::WeightOnly,
        );
    }

    fn packed(&mut self, graph: &Graph, id: NodeId, node: &Node) {
        let (place, op) = if node.op.name() == "MatMulNBits" { (1, "MatMul") } else { (0, "Gather") };
        let weight = node.input(place).map(|v| plain(graph, v));
        let name = node.name.strip_suffix(&format!("_{}", node.op.name())).unwrap_or(&node.name).to_owned();
        let op = if self.behind(graph, id, &name) { "Gemm" } else { op };
        self.decide(id, &name, op, weight, Approach::WeightOnly);
    }

    /// The Add that gives a bias to what was a Gemm.
    fn behind(&mut self, graph: &Graph, id: NodeId, name: &str) -> bool {
        let add = graph.node(id).output(0).and_then(|v| graph.only_use(v)).map(|u| u.node);
        let add = add.filter(|&n| graph.node(n).name == format!("{name}_Add"));
        self.parts.extend(add);
        add.is_some()
    }

    /// A table by blocks: codes, scales and zero points are picked each, or all of it is dequantized before.
    fn table(&mut self, graph: &Graph, id: NodeId, node: &Node) {
        let reader = node.output(0).and_then(|v| graph.only_use(v)).map(|u| (u.node, u.input));
        let picked = reader.filter(|(n, _)| is_blocked(graph.node(*n)));
        if let Some((dequantize, input)) = picked {
            let name = node.name.strip_suffix("_quantized").filter(|_| input == 0);
            self.parts.insert(dequantize);
            match name {
                Some(name) => {
                    let weight = node.input(0).map(|v| plain(graph, v));
                    self.decide(id, name, "Gather", weight, Approach::WeightOnly);
                }
                None => drop(self.parts.insert(id)),
            }
        } else if let Some((weight, parts)) = node.input(0).and_then(|v| by_blocks(graph, v)) {
            self.parts.extend(parts);
            self.decide(id, &node.name, "Gather", Some(weight), Approach::WeightOnly);
        }
    }

    /// A node in half precision, or one that reads a constant of it.
    fn half(&mut self, graph: &Graph, facts: &Facts, id: NodeId, node: &Node) {
        let of = |d: Option<DType>| match d {
            Some(DType::F16) => Some(Approach::Float16),
            Some(DType::Bf16) => Some(Approach::Bfloat16),
            _ => None,
        };
        if node.op.name() == "Cast" {
            let ends = [node.input(0), node.output(0)];
            if ends.into_iter().flatten().any(|v| of(facts.dtype(v)).is_some()) {
                self.parts.insert(id);
            }
            return;
        }
        let stored = |v: ValueId| {
            let (n, _) = graph.producer(v)?;
            let cast = graph.node(n).input(0).filter(|_| graph.node(n).op.name() == "Cast")?;
            of(facts.dtype(cast)).filter(|_| graph.constant(cast).is_some())
        };
        let made = node.output(0).and_then(|v| of(facts.dtype(v)));
        let approach = made.or_else(|| node.inputs.iter().flatten().find_map(|&v| stored(v)));
        if let Some(approach) = approach.filter(|_| !self.decisions.contains_key(&id)) {
            self.decide(id, &node.name, node.op.name(), None, approach);
        }
    }

    fn decide(&mut self, id: NodeId, name: &str, op: &str, weight: Option<String>, approach: Approach) {
        let decision = Decision {
            node: name.to_owned(),
            op: op.to_owned(),
            quantized: true,
            approach: Some(approach),
            weight,
            ..Decision::default()
        };
        self.decisions.insert(id, decision);
    }
}

/// The name of a constant before it was quantized.
fn plain(graph: &Graph, v: ValueId) -> String {
    let name = &graph.value(v).name;
    name.strip_suffix("_quantized").unwrap_or(name).to_owned()
}

/// Whether what is rounded is itself a part: softmax's weights over their greatest.
fn is_part(graph: &Graph, v: Option<ValueId>) -> bool {
    v.is_some_and(|v| graph.value(v).name.ends_with("_parts"))
}

fn is_blocked(node: &Node) -> bool {
    node.op.name() == "DequantizeLinear" && node.op.attrs().int_or("block_size", 0).is_ok_and(|b| b > 0)
}

/// The constant that a value was before it was written by blocks, and the nodes that make the value of them.
fn by_blocks(graph: &Graph, v: ValueId) -> Option<(String, Vec<NodeId>)> {
    let (id, _) = graph.producer(v)?;
    let node = graph.node(id);
    if is_blocked(node) {
        let codes = node.input(0).filter(|&v| graph.constant(v).is_some())?;
        return Some((plain(graph, codes), vec![id]));
    }
    // The table of NF4: Gather, Mul, Reshape, perhaps Slice and Transpose.
    let (mut parts, mut at) = (Vec::new(), Some(v));
    while let Some((id, _)) = at.and_then(|v| graph.producer(v)) {
        let node = graph.node(id);
        parts.push(id);
        match node.op.name() {
            "Slice" | "Reshape" | "Mul" | "Transpose" => at = node.input(0),
            "Gather" => at = node.input(1).filter(|_| is_nf4(graph, node)),
            "Cast" => {
                let codes = node.input(0).filter(|&v| graph.constant(v).is_some_and(|t| t.dtype() == DType::U4))?;
                return Some((plain(graph, codes), parts));
            }
            _ => return None,
        }
    }
    None
}

/// Whether a Gather reads the sixteen values of NF4.
fn is_nf4(graph: &Graph, node: &Node) -> bool {
    let table = node.input(0).and_then(|v| graph.constant(v));
    table.is_some_and(|t| t.len() == 16 && t.rank() == 1)
}
