//! How much of a quantized model's arithmetic ran on integers, or in fp8.

use std::collections::BTreeSet;

use narrowbit_ir::infer::Facts;
use narrowbit_ir::{Graph, Node, NodeId};
use narrowbit_runtime::{Operands, ProfileRow};
use serde::Serialize;

use crate::{macs, output};

/// Nodes on floats that the text names.
const SHOWN: usize = 5;

/// What ran on integers, and what did not.
#[derive(Serialize)]
pub struct Integers {
    /// Multiply-accumulates of a run.
    pub macs: u64,
    /// Those that ran on integers.
    pub integer_macs: u64,
    /// Those whose operands both were fp8.
    pub fp8_macs: u64,
    /// The products that ran on floats, largest first.
    float_nodes: Vec<FloatNode>,
}

#[derive(Serialize)]
struct FloatNode {
    name: String,
    op: String,
    macs: u64,
    reason: &'static str,
}

/// Operators that only quantized models have.
fn is_quantized(node: &Node) -> bool {
    let op = node.op.name();
    op == "DequantizeLinear" || is_integer(op)
}

/// Whether an operator computes on integers by its definition.
fn is_integer(op: &str) -> bool {
    const INTEGER: [&str; 5] =
        ["ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "QGemm"];
    op.starts_with("QLinear") || INTEGER.contains(&op)
}

/// Whether a node multiplies the weights of an attention that were not rounded: floats, though the scores may be products of
/// integers in the same step.
fn multiplies_weights(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let maker = node.input(0).and_then(|v| graph.producer(v)).map(|(n, _)| graph.node(n).op.name());
    node.op.name() == "MatMul" && matches!(maker, Some("Softmax" | "Where"))
}

impl Integers {
    /// What `steps` computed on integers; nothing for a model that is not quantized.
    pub fn new(graph: &Graph, facts: &Facts, steps: &[ProfileRow]) -> Option<Integers> {
        if !graph.nodes().any(|(_, n)| is_quantized(n)) {
            return None;
        }
        let whole = |operands: Operands| -> BTreeSet<NodeId> {
            let steps = steps.iter().filter(|r| r.operands == operands);
            steps.flat_map(|r| r.nodes.iter().copied().filter(|&n| !multiplies_weights(graph, n))).collect()
        };
        let (integers, fp8) = (whole(Operands::Int8), whole(Operands::Fp8));
        let mut out = Integers { macs: 0, integer_macs: 0, fp8_macs: 0, float_nodes: Vec::new() };
        for (id, node) in graph.nodes() {
            let macs = macs::of_node(facts, node).unwrap_or(0);
            out.macs = out.macs.saturating_add(macs);
            if integers.contains(&id) {
                out.integer_macs = out.integer_macs.saturating_add(macs);
            } else if fp8.contains(&id) {
                out.fp8_macs = out.fp8_macs.saturating_add(macs);
            } else if macs > 0 {
                let reason = reason(graph, node);
                out.float_nodes.push(FloatNode { name: node.name.clone(), op: node.op.name().into(), macs, reason });
            }
        }
        out.float_nodes.sort_by_key(|n| std::cmp::Reverse(n.macs));
        Some(out)
    }

    /// A line, and one for each of the largest products on floats.
    pub fn text(&self, label: &str) -> String {
        // Rounded down: 100 % are all of them.
        let share = |macs: u64| (macs as f64 / self.macs.max(1) as f64 * 1000.0).floor() / 10.0;
        let (integers, fp8) = (share(self.integer_macs), share(self.fp8_macs));
        let ran = match (self.integer_macs, self.fp8_macs) {
            (_, 0) => format!("{integers:.1} % of {} multiply-accumulates ran on integers", output::count(self.macs)),
            (0, _) => format!("{fp8:.1} % of {} multiply-accumulates ran in fp8", output::count(self.macs)),
            _ => format!(
                "{integers:.1} % of {} multiply-accumulates ran on integers, {fp8:.1} % in fp8",
                output::count(self.macs)
            ),
        };
        let mut out = format!("{label}: {ran}\n");
        for node in self.float_nodes.iter().take(SHOWN) {
            out.push_str(&format!("  on floats: {} ({}): {}\n", node.name, node.op, node.reason));
        }
        if self.float_nodes.len() > SHOWN {
            out.push_str(&format!("  and {} more (--json lists all)\n", self.float_nodes.len() - SHOWN));
        }
        out
    }
}

/// Why a product ran on floats.
fn reason(graph: &Graph, node: &Node) -> &'static str {
    let dequantized = |i: usize| {
        let producer = node.input(i).and_then(|v| graph.producer(v));
        producer.is_some_and(|(n, _)| graph.node(n).op.name() == "DequantizeLinear")
    };
    match (dequantized(0), dequantized(1)) {
        _ if is_integer(node.op.name()) => "there is no fast kernel for this operator: it ran on the reference",
        (false, _) => "its input is not quantized in the file",
        (_, false) => "its second operand is not quantized in the file",
        _ => "there is no integer kernel for this form",
    }
}
