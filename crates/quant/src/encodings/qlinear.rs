//! The encodings of QLinear operators, which have scales and zero points among their inputs.

use narrowbit_ir::{Graph, Node, NodeId, ValueId};
use narrowbit_tensor::DType;

use super::Part;
use super::graph::{Entry, of_constants};

/// Where an operator has the scales and zero points of its operands and of its result.
struct Places {
    /// The codes of each operand; scale and zero point follow.
    operands: Vec<usize>,
    /// The scale of the result; its zero point follows.
    result: Option<usize>,
}

/// The operator of floats that a QLinear operator stands for.
pub fn float_name(op: &str) -> Option<&str> {
    match op {
        "QGemm" => Some("Gemm"),
        _ => op.strip_prefix("QLinear"),
    }
}

fn places(node: &Node) -> Option<Places> {
    let of = |operands: &[usize], result| Some(Places { operands: operands.to_vec(), result: Some(result) });
    match node.op.name() {
        "QLinearConv" | "QLinearMatMul" | "QLinearAdd" | "QLinearMul" => of(&[0, 3], 6),
        "QGemm" => Some(Places { operands: vec![0, 3], result: node.input(7).map(|_| 7) }),
        "QLinearConcat" => Some(Places { operands: (2..node.inputs.len()).step_by(3).collect(), result: Some(0) }),
        name if name.starts_with("QLinear") => of(&[0], 3),
        _ => None,
    }
}

/// The axis of the output channels of a QLinear operator's weight.
fn channel_axis(node: &Node) -> i64 {
    match node.op.name() {
        "QLinearMatMul" => 1,
        "QGemm" if node.op.attrs().int_or("transB", 0) == Ok(0) => 1,
        _ => 0,
    }
}

/// The name that a value of codes had as floats.
pub fn plain_name(graph: &Graph, v: ValueId) -> String {
    let name = &graph.value(v).name;
    name.strip_suffix("_quantized").unwrap_or(name).to_owned()
}

/// What a node computes, where it is a QLinear operator: the codes of its operands and of its result.
pub fn codes(graph: &Graph, id: NodeId) -> Option<(Vec<ValueId>, Option<ValueId>)> {
    let node = graph.node(id);
    let places = places(node)?;
    let operands = places.operands.iter().filter_map(|&i| node.input(i)).collect();
    Some((operands, places.result.and(node.output(0))))
}

/// What a QLinear operator says of its operands and its result; nothing of another node.
pub(super) fn entries(graph: &Graph, id: NodeId) -> Vec<Entry> {
    let node = graph.node(id);
    let Some(places) = places(node) else { return Vec::new() };
    let operands = places.operands.iter().filter_map(|&i| Some((node.input(i)?, i + 1)));
    let result = places.result.and_then(|i| Some((node.output(0)?, i)));
    let entry = |(v, at): (ValueId, usize)| -> Entry {
        let constant = graph.constant(v);
        if constant.is_some_and(|c| c.dtype() == DType::I32) {
            return (plain_name(graph, v), Ok(None));
        }
        let part = match (constant, graph.producer(v)) {
            (Some(_), _) => Part::Param,
            (None, Some(_)) => Part::Output,
            (None, None) => Part::Input,
        };
        let made = match graph.const_input(id, at) {
            Some(scales) => {
                of_constants((scales, graph.const_input(id, at + 1)), channel_axis(node), constant, part).map(Some)
            }
            None => Err("its scale is found at run time".to_owned()),
        };
        (plain_name(graph, v), made)
    };
    operands.chain(result).map(entry).collect()
}
