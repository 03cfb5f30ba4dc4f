//! What a float graph holds of what targets mind.

use std::collections::BTreeSet;

use narrowbit_ir::{Graph, ValueId};

use crate::options::QuantOptions;

/// Whether a MatMul is quantized, as far as operator types tell.
pub(super) fn multiplies(options: &QuantOptions, graph: &Graph) -> bool {
    quantizes(options, "MatMul") && graph.nodes().any(|(_, n)| n.op.name() == "MatMul")
}

/// Whether there is an operator of a type.
pub(super) fn has(graph: &Graph, op: &str) -> bool {
    graph.nodes().any(|(_, n)| n.op.name() == op)
}

/// The depths of products with a constant matrix.
pub(super) fn depths<'a>(options: &'a QuantOptions, graph: &'a Graph) -> impl Iterator<Item = usize> + 'a {
    let products =
        graph.nodes().filter(|(_, n)| matches!(n.op.name(), "MatMul" | "Gemm") && quantizes(options, n.op.name()));
    products.filter_map(|(id, n)| {
        let axis = usize::from(n.op.attrs().int_or("transB", 0) == Ok(1));
        graph.const_input(id, 1)?.shape().get(axis).copied()
    })
}

/// Whether a convolution and a MaxPool are in a graph, or a convolution whose results another product reads as they are.
pub(super) fn hands_on_codes(graph: &Graph) -> bool {
    const MOVES: [&str; 6] = ["Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];
    let mut plain = BTreeSet::new();
    let mut convolves = false;
    for (_, n) in graph.nodes() {
        let from = n.input(0).is_some_and(|v| plain.contains(&v));
        match n.op.name() {
            "Conv" | "Gemm" | "MatMul" if from => return true,
            "Conv" => {
                convolves = true;
                plain.extend(n.output(0));
            }
            name if from && MOVES.contains(&name) => plain.extend(n.output(0)),
            _ => {}
        }
    }
    convolves && has(graph, "MaxPool")
}

/// Whether a convolution reads what a Concat makes, perhaps behind a function or a pool.
pub(super) fn convolves_joined(graph: &Graph) -> bool {
    const BETWEEN: [&str; 5] = ["BatchNormalization", "Clip", "LeakyRelu", "MaxPool", "Relu"];
    let mut joined = BTreeSet::new();
    for (_, n) in graph.nodes() {
        let from = n.input(0).is_some_and(|v| joined.contains(&v));
        if from && matches!(n.op.name(), "Conv" | "ConvTranspose") {
            return true;
        }
        if n.op.name() == "Concat" || from && BETWEEN.contains(&n.op.name()) {
            joined.extend(n.output(0));
        }
    }
    false
}

/// Whether operators of a type are quantized, as far as types tell.
pub(super) fn quantizes(options: &QuantOptions, op: &str) -> bool {
    let named = options.op_types.is_empty() || options.op_types.iter().any(|t| t == op);
    let out = |o: &crate::options::Override| o.float == Some(true) && o.op_type.as_deref() == Some(op);
    named && !options.overrides.iter().any(|o| out(o) && o.name.is_none() && o.regex.is_none())
}

/// Whether a Concat joins a convolution's output, perhaps moved, with something else, as the class token of a vision
/// transformer and its patches.
pub(super) fn joins_codes(options: &QuantOptions, graph: &Graph) -> bool {
    const MOVES: [&str; 6] = ["Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"];
    const MOST: usize = 8;
    let from_conv = |v: ValueId| {
        let producer = |v: ValueId| graph.producer(v).map(|(id, _)| graph.node(id));
        let mut at = producer(v);
        for _ in 0..MOST {
            let Some(node) = at else { return false };
            match node.op.name() {
                "Conv" | "ConvTranspose" => return true,
                name if MOVES.contains(&name) => at = node.input(0).and_then(producer),
                _ => return false,
            }
        }
        false
    };
    let joins = |n: &narrowbit_ir::Node| {
        let (of_conv, others) = n.inputs.iter().flatten().partition::<Vec<ValueId>, _>(|&&v| from_conv(v));
        n.op.name() == "Concat" && !of_conv.is_empty() && !others.is_empty()
    };
    quantizes(options, "Conv") && graph.nodes().any(|(_, n)| joins(n))
}

/// Whether a Gather reads a constant table.
pub(super) fn has_table(graph: &Graph) -> bool {
    graph.nodes().any(|(id, n)| n.op.name() == "Gather" && graph.const_input(id, 0).is_some_and(|t| t.rank() == 2))
}
