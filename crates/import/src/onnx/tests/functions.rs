use narrowbit_tensor::Tensor as Array;

use super::super::{check_supported, inline_functions};
use super::*;

fn function(name: &str, nodes: Vec<NodeProto>, inputs: &[&str], outputs: &[&str]) -> FunctionProto {
    FunctionProto {
        name: Some(name.into()),
        domain: Some("local".into()),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        node: nodes,
        opset_import: vec![opset("", 17), opset("local", 1)],
        ..Default::default()
    }
}

fn call(name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto { domain: Some("local".into()), ..node(name, inputs, outputs) }
}

fn with_functions(g: GraphProto, functions: Vec<FunctionProto>) -> ModelProto {
    ModelProto { functions, opset_import: vec![opset("", 17), opset("local", 1)], ..model(g) }
}

#[test]
fn keeps_functions_until_they_are_inlined() {
    let inner = function("Inner", vec![node("Relu", &["a"], &["t"]), node("Relu", &["t"], &["b"])], &["a"], &["b"]);
    let outer =
        function("Outer", vec![call("Inner", &["x"], &["m"]), call("Inner", &["m"], &["y"])], &["x"], &["y", "x"]);
    let g = graph(vec![call("Outer", &["in"], &["out", "copy"])], &["in"], &["out"]);
    let original = with_functions(g, vec![inner, outer]);
    let mut m = parse(&original).unwrap();
    assert_eq!(rewrite(&m).functions, original.functions);
    check_supported(&m).unwrap();
    inline_functions(&mut m).unwrap();
    m.graph.verify().unwrap();
    assert!(m.functions.is_empty());
    assert_eq!(m.graph.value(m.graph.outputs()[0]).name, "out");
    let ops: Vec<&str> = m.graph.nodes().map(|(_, n)| n.op.name()).collect();
    assert_eq!(ops, ["Relu", "Relu", "Relu", "Relu", "Identity"]);
    let relus: Vec<_> = m.graph.nodes().filter(|(_, n)| n.op.name() == "Relu").collect();
    assert!(relus.iter().all(|(_, n)| n.op.downcast::<narrowbit_ops::math::relu::Relu>().is_some()));
}

#[test]
fn fills_in_attributes_of_the_caller() {
    let reference = AttributeProto {
        name: Some("value".into()),
        ref_attr_name: Some("k".into()),
        r#type: Some(AttributeType::Int as i32),
        ..Default::default()
    };
    let mut inner = node("Unknown", &["a"], &["b"]);
    inner.attribute = vec![reference];
    let mut f = function("F", vec![inner], &["a"], &["b"]);
    f.attribute_proto = vec![int("k", 7)];
    let mut with_own = call("F", &["m"], &["y"]);
    with_own.attribute = vec![int("k", 9)];
    let g = graph(vec![call("F", &["x"], &["m"]), with_own], &["x"], &["y"]);
    let original = with_functions(g, vec![f]);
    let mut m = parse(&original).unwrap();
    assert_eq!(rewrite(&m).functions, original.functions);
    inline_functions(&mut m).unwrap();
    let values: Vec<_> = rewrite(&m).graph.unwrap().node.iter().map(|n| n.attribute[0].i).collect();
    assert_eq!(values, [Some(7), Some(9)]);
    assert_eq!(check_supported(&m).unwrap_err().0[0].name, "Unknown");
}

#[test]
fn refuses_recursion_and_explosion() {
    let f = function("F", vec![call("F", &["a"], &["b"])], &["a"], &["b"]);
    let mut m = parse(&with_functions(graph(vec![call("F", &["x"], &["y"])], &["x"], &["y"]), vec![f])).unwrap();
    assert!(inline_functions(&mut m).unwrap_err().to_string().contains("calls itself"));
    assert_eq!(m.functions.len(), 1, "the model is unchanged");
    let mut chain = vec![function("F0", vec![node("Relu", &["a"], &["b"])], &["a"], &["b"])];
    for i in 1..40 {
        let name = format!("F{}", i - 1);
        let nodes = vec![call(&name, &["a"], &["t"]), call(&name, &["t"], &["b"])];
        chain.push(function(&format!("F{i}"), nodes, &["a"], &["b"]));
    }
    let mut m = parse(&with_functions(graph(vec![call("F39", &["x"], &["y"])], &["x"], &["y"]), chain)).unwrap();
    assert!(inline_functions(&mut m).unwrap_err().to_string().contains("expand to more than"));
}

#[test]
fn runs_an_inlined_model() {
    let f = function("F", vec![node("Relu", &["a"], &["b"])], &["a"], &["b"]);
    let mut m = parse(&with_functions(graph(vec![call("F", &["x"], &["y"])], &["x"], &["y"]), vec![f])).unwrap();
    inline_functions(&mut m).unwrap();
    let out = narrowbit_ir::interp::run_tensors(&m.graph, &[Array::vector(vec![-1f32, 2.0])]).unwrap();
    assert_eq!(out, [Array::vector(vec![0f32, 2.0])]);
}
