//! How many numbers a model has learned.

use std::collections::BTreeMap;

use narrowbit_ir::{Graph, Node, ValueId};
use narrowbit_ops::tensor::constant::Constant;
use narrowbit_tensor::{DType, Tensor};

/// The parameters of a graph, each constant once.
#[derive(Debug, Default, PartialEq)]
pub struct Parameters {
    /// Numbers.
    pub count: u64,
    /// Bytes that they take.
    pub bytes: u64,
}

/// The parameters of a graph and of all graphs inside of it.
pub fn of_graph(graph: &Graph) -> Parameters {
    let inputs = graph.nodes().flat_map(|(_, n)| n.inputs.iter().enumerate().map(move |(i, &v)| (n, i, v)));
    // Values of one entry of the pool share it; the value of a Constant has none.
    let weights: BTreeMap<_, _> = inputs
        .filter_map(|(n, i, v)| {
            let t = parameter(graph, n, i)?;
            let entry = graph.const_id(v?);
            let key = (entry, v.filter(|_| entry.is_none()));
            Some((key, t))
        })
        .collect();
    let mut all = Parameters {
        count: weights.values().map(|t| t.len() as u64).sum(),
        bytes: weights.values().map(|t| t.bytes().len() as u64).sum(),
    };
    for inner in bodies(graph) {
        all.count += inner.count;
        all.bytes += inner.bytes;
    }
    all
}

fn bodies(graph: &Graph) -> impl Iterator<Item = Parameters> {
    graph.nodes().flat_map(|(_, n)| n.op.bodies()).map(|(_, body)| of_graph(&body.graph))
}

/// The parameters that a node reads, also through a DequantizeLinear, and those of the graphs inside of it.
pub fn of_node(graph: &Graph, node: &Node) -> u64 {
    let read = (0..node.inputs.len()).filter_map(|i| weight(graph, node, i)).map(|t| t.len() as u64).sum::<u64>();
    read + node.op.bodies().iter().map(|(_, body)| of_graph(&body.graph).count).sum::<u64>()
}

/// The content of a constant, or of what a Constant makes, as some exporters write all weights.
fn constant(graph: &Graph, v: ValueId) -> Option<&Tensor> {
    let made = || Some(&graph.node(graph.producer(v)?.0).op.downcast::<Constant>()?.value);
    graph.constant(v).or_else(made)
}

/// The parameters that a node reads at an input, also through a DequantizeLinear.
fn weight<'a>(graph: &'a Graph, node: &Node, input: usize) -> Option<&'a Tensor> {
    match graph.producer(node.input(input)?).map(|(n, _)| graph.node(n)) {
        Some(dq) if dq.op.name() == "DequantizeLinear" => parameter(graph, dq, 0),
        _ => parameter(graph, node, input),
    }
}

/// The constant at an input, where it holds what training has found: not a shape, axes or indices, a single
/// number, a scale or a zero point.
fn parameter<'a>(graph: &'a Graph, node: &Node, input: usize) -> Option<&'a Tensor> {
    let t = constant(graph, node.input(input)?)?;
    let (op, dtype) = (node.op.name(), t.dtype());
    let data = match op {
        "QuantizeLinear" | "DequantizeLinear" | "Resize" | "Upsample" => input == 0,
        "ConvInteger" | "MatMulInteger" => input < 2,
        "DynamicQuantizeLSTM" => input < 8,
        "QLinearConcat" => input % 3 == 2,
        "QLinearConv" => matches!(input, 0 | 3 | 8),
        "QGemm" => matches!(input, 0 | 3 | 6),
        _ if op.starts_with("QLinear") => matches!(input, 0 | 3),
        _ => true,
    };
    // Biases of integer products have 32 bits, and nothing else that is trained has.
    let bias = dtype == DType::I32 && matches!(op, "DequantizeLinear" | "QLinearConv" | "QGemm");
    let wide = if op == "DequantizeLinear" { 16 } else { 8 };
    let number = dtype.is_float() || dtype.is_int() && dtype.bits() <= wide;
    (data && (number || bias) && t.rank() > 0).then_some(t)
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::text;
    use narrowbit_ops::Registry;

    fn parse(body: &str) -> Graph {
        text::parse_graph(&format!("graph \"g\" {{\n{body}\n}}"), &Registry, 13).unwrap()
    }

    #[test]
    fn counts_the_values_of_constant_nodes_as_those_of_the_pool() {
        let pool = parse(
            "input %x: f32[2, 3]\nconst %w: f32[3, 4] = random(1)\n%y = MatMul(%x, %w)\n\
                          %z = MatMul(%x, %w)\noutput %y\noutput %z",
        );
        let mut node = Graph::new("g");
        let x = node.add_input("x", pool.value(pool.inputs()[0]).ty.clone());
        let mut attrs = narrowbit_ir::AttrMap::new().with("value", Tensor::zeros(DType::F32, [3, 4]).unwrap());
        let made =
            node.add_node("c", narrowbit_ops::tensor::constant::build(13, &mut attrs).unwrap(), vec![], &[Some("w")]);
        let w = node.node(made).outputs[0];
        for name in ["y", "z"] {
            let op = pool.nodes().next().unwrap().1.op.clone();
            node.add_node(name, op, vec![Some(x), w], &[Some(name)]);
        }
        for graph in [pool, node] {
            assert_eq!(of_graph(&graph), Parameters { count: 12, bytes: 48 });
            let products = graph.nodes().filter(|(_, n)| n.op.name() == "MatMul");
            products.for_each(|(_, n)| assert_eq!(of_node(&graph, n), 12));
        }
    }

    #[test]
    fn leaves_shapes_and_single_numbers_out() {
        let graph = parse(
            "input %x: f32[2, 3]\nconst %s: i64[2] = [3, 2]\nconst %f: f32[] = [2.0]\n\
                           %r = Reshape(%x, %s)\n%y = Mul(%r, %f)\noutput %y",
        );
        assert_eq!(of_graph(&graph), Parameters::default());
    }
}
