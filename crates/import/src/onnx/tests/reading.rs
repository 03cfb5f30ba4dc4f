use narrowbit_ir::{Attr, Dim, Opaque, ValueType};

use super::super::CAPTURES;
use super::*;

#[test]
fn sorts_nodes_that_are_out_of_order() {
    let m = model(graph(vec![node("Relu", &["a"], &["y"]), node("Relu", &["x"], &["a"])], &["x"], &["y"]));
    let m = parse(&m).unwrap();
    let names: Vec<&str> = m.graph.nodes().map(|(_, n)| n.name.as_str()).collect();
    assert_eq!(names, ["Relu_a", "Relu_y"]);
    m.graph.verify().unwrap();
}

#[test]
fn refuses_cycles_undefined_names_and_names_given_twice() {
    let cycle = model(graph(vec![node("Relu", &["b"], &["a"]), node("Relu", &["a"], &["b"])], &["x"], &["b"]));
    assert!(problem(&cycle).contains("node \"Relu_a\" (Relu): is part of a cycle"));
    let undefined = model(graph(vec![node("Relu", &["nowhere"], &["y"])], &["x"], &["y"]));
    assert!(problem(&undefined).contains("\"nowhere\" is read, but no node"));
    let twice = model(graph(vec![node("Relu", &["x"], &["y"]), node("Relu", &["x"], &["y"])], &["x"], &["y"]));
    assert!(problem(&twice).contains("more than one value"));
    let input = model(graph(vec![node("Relu", &["x"], &["x"])], &["x"], &["x"]));
    assert!(parse(&input).is_err());
    let output = model(graph(vec![node("Relu", &["x"], &["y"])], &["x"], &["z"]));
    assert!(problem(&output).contains("\"z\""));
    let inputs = model(graph(vec![node("Relu", &["x"], &["y"])], &["x", "x"], &["y"]));
    assert!(problem(&inputs).contains("more than one value"));
}

#[test]
fn takes_inputs_with_initializers_as_constants() {
    let mut g = graph(vec![node("Add", &["x", "w"], &["y"])], &["x", "w"], &["y"]);
    g.initializer.push(floats("w", &[2], &[1.0, 2.0]));
    let m = parse(&model(g)).unwrap();
    assert_eq!(m.graph.inputs().len(), 1);
    let w = m.graph.value_named("w").unwrap();
    assert_eq!(m.graph.constant(w).unwrap().to_f64s().unwrap(), [1.0, 2.0]);
}

#[test]
fn refuses_opsets_that_are_too_old_or_too_new() {
    for version in [6, 26] {
        let mut m = model(graph(vec![node("Relu", &["x"], &["y"])], &["x"], &["y"]));
        m.opset_import = vec![opset("", version)];
        let text = parse(&m).unwrap_err().to_string();
        assert!(text.contains(&format!("opset {version}")) && text.contains("7 to 25"), "{text}");
    }
    let mut m = model(graph(vec![node("Relu", &["x"], &["y"])], &["x"], &["y"]));
    m.opset_import.clear();
    assert!(parse(&m).is_err());
}

#[test]
fn lists_all_missing_operators_at_once() {
    let inner = graph(vec![node("Deep", &["x"], &["d"])], &[], &["d"]);
    let nodes = vec![
        node("Nope", &["x"], &["a"]),
        with_graph(node("Holder", &["x"], &["h"]), "body", inner),
        node("Nope", &["a"], &["y"]),
        node("Relu", &["y"], &["z"]),
    ];
    let m = parse(&model(graph(nodes, &["x"], &["z"]))).unwrap();
    let missing = super::super::check_supported(&m).unwrap_err();
    let names: Vec<(&str, usize)> = missing.0.iter().map(|o| (o.name.as_str(), o.nodes.len())).collect();
    assert_eq!(names, [("Deep", 1), ("Holder", 1), ("Nope", 2)]);
    assert!(missing.to_string().contains("Nope in node(s) \"Nope_a\", \"Nope_y\""));
}

#[test]
fn makes_captured_values_explicit_in_nested_subgraphs() {
    let innermost = graph(vec![node("Add", &["k", "x"], &["i"])], &[], &["i"]);
    let middle = graph(vec![with_graph(node("Holder", &[], &["m"]), "body", innermost)], &[], &["m"]);
    let other = graph(vec![node("Relu", &["x"], &["o"])], &[], &["o"]);
    let outer = with_graph(with_graph(node("Holder", &["c"], &["y"]), "one", middle), "two", other);
    let mut g = graph(vec![node("Relu", &["x"], &["c"]), outer], &["x"], &["y"]);
    g.initializer.push(floats("k", &[2], &[1.0, 2.0]));
    let m = parse(&model(g)).unwrap();
    m.graph.verify().unwrap();
    let n = m.graph.node(m.graph.node_named("Holder_y").unwrap());
    let inputs: Vec<&str> = n.inputs.iter().map(|v| m.graph.value(v.unwrap()).name.as_str()).collect();
    assert_eq!(inputs, ["c", "k", "x"]);
    let op = n.op.downcast::<Opaque>().unwrap();
    assert!(matches!(op.attrs.get(CAPTURES), Some(Attr::Int(2))));
    for name in ["one", "two"] {
        let Some(Attr::Graph(body)) = op.attrs.get(name) else { panic!("no graph") };
        let inputs: Vec<&str> = body.inputs().iter().map(|&v| body.value(v).name.as_str()).collect();
        assert_eq!(inputs, ["k", "x"]);
        body.verify().unwrap();
    }
    let again = rewrite(&m).graph.unwrap();
    let body = again.node[1].attribute[0].g.as_ref().unwrap();
    assert_eq!(again.node[1].input, ["c"]);
    assert!(body.input.is_empty() && body.node[0].input.is_empty());
    assert_eq!(body.node[0].attribute[0].g.as_ref().unwrap().node[0].input, ["k", "x"]);
}

#[test]
fn reads_symbolic_and_unknown_extents() {
    let mut g = graph(vec![node("Relu", &["x"], &["y"])], &["x"], &["y"]);
    let dim = |value| Dimension { denotation: None, value };
    let shape = TensorShapeProto {
        dim: vec![
            dim(Some(DimValue::DimParam("batch".into()))),
            dim(None),
            dim(Some(DimValue::DimValue(-1))),
            dim(Some(DimValue::DimValue(3))),
        ],
    };
    let ty = Value::TensorType(Tensor { elem_type: Some(1), shape: Some(shape) });
    g.input[0].r#type = Some(TypeProto { denotation: None, value: Some(ty) });
    let m = parse(&model(g.clone())).unwrap();
    let ValueType::Tensor(t) = &m.graph.value(m.graph.inputs()[0]).ty else { panic!("no tensor") };
    assert_eq!(t.shape, Some(vec![Dim::sym("batch"), Dim::Unknown, Dim::Unknown, Dim::Known(3)]));
    let Some(Value::TensorType(t)) = g.input[0].r#type.as_mut().and_then(|t| t.value.as_mut()) else { panic!() };
    t.shape = Some(TensorShapeProto { dim: vec![dim(Some(DimValue::DimValue(-7)))] });
    assert!(problem(&model(g)).contains("value \"x\": has a negative extent, -7"));
}
