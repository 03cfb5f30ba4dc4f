//! How much a model computes.

use std::collections::BTreeMap;

use narrowbit_ir::infer::{self, Facts};
use narrowbit_ir::{Body, Fact, Graph, Node, ValueId};

/// Multiply-accumulates of a node, where the shapes are known: one per weight and output position.
pub fn of_node(facts: &Facts, node: &Node) -> Option<u64> {
    let shape = |v: Option<ValueId>| facts.get(v?).ty.tensor()?.concrete_shape();
    let shapes: Vec<Option<Vec<usize>>> = node.inputs.iter().map(|&v| shape(v)).collect();
    let shapes: Vec<Option<&[usize]>> = shapes.iter().map(Option::as_deref).collect();
    if let Some(n) = narrowbit_ops::nn::macs(&*node.op, &shapes) {
        return Some(n);
    }
    let product = |s: &[usize]| s.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let at = |i: usize| shapes.get(i).copied().flatten();
    let y = shape(node.output(0));
    match node.op.name() {
        "FusedConv" | "ConvInteger" => product(&y?)?.checked_mul(product(at(1)?.get(1..)?)?),
        "QLinearConv" => product(&y?)?.checked_mul(product(at(3)?.get(1..)?)?),
        "MatMul"
        | "MatMulInteger"
        | "FusedMatMul"
        | "QLinearMatMul"
        | "MatMulNBits"
        | "DynamicQuantizeMatMul"
        | "MatMulIntegerToFloat" => product(&y?)?.checked_mul(*at(0)?.last()? as u64),
        "Gemm" | "QGemm" => {
            let transposed = node.op.attrs().int_or("transA", 0) != Ok(0);
            let k = if transposed { at(0)?.first()? } else { at(0)?.last()? };
            product(&y?)?.checked_mul(*k as u64)
        }
        _ => node.op.bodies().iter().map(|(_, b)| of_graph(&b.graph, &captured(facts, node, b))).reduce(u64::max),
    }
}

/// What is known of the values that a graph inside of a node takes from around it: the last inputs of both.
fn captured(facts: &Facts, node: &Node, body: &Body) -> BTreeMap<ValueId, Fact> {
    let inside = body.graph.inputs().iter().rev().take(body.captures);
    inside.zip(node.inputs.iter().rev()).filter_map(|(&v, outer)| Some((v, facts.get((*outer)?).clone()))).collect()
}

/// Multiply-accumulates of one pass through a graph, as far as the shapes in it are known; `inputs` adds
/// to what the graph says of its inputs.
pub fn of_graph(graph: &Graph, inputs: &BTreeMap<ValueId, Fact>) -> u64 {
    let options = infer::Options { max_folded: 1024, strict: false };
    let Ok(facts) = infer::infer(graph, inputs, options) else { return 0 };
    graph.nodes().filter_map(|(_, n)| of_node(&facts, n)).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::text;
    use narrowbit_ops::Registry;

    #[test]
    fn counts_the_larger_branch_with_the_shapes_around_it() {
        let branch = |name: &str, body: &str| {
            format!(
                "{name}=graph \"{name}\" captures=2 {{\ninput %a: f32[m, k]\ninput %b: f32[k, n]\n{body}\noutput %z\n}}"
            )
        };
        let (large, small) = (branch("then_branch", "%z = MatMul(%a, %b)"), branch("else_branch", "%z = Relu(%a)"));
        let source = format!(
            "graph \"g\" {{\ninput %c: bool[]\ninput %x: f32[2, 3]\ninput %w: f32[3, 5]\n\
             %y = If(%c, %x, %w) {{{large}, {small}}}\noutput %y\n}}"
        );
        let graph = text::parse_graph(&source, &Registry, 13).unwrap();
        assert_eq!(of_graph(&graph, &BTreeMap::new()), 30);
    }
}
