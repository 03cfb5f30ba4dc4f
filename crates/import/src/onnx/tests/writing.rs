use narrowbit_ir::{Graph, Patch};
use narrowbit_tensor::Tensor as Array;

use super::*;

/// A model with everything that narrowbit keeps, but does not use.
fn decorated() -> ModelProto {
    let prop = |k: &str| vec![StringStringEntryProto { key: Some(k.into()), value: Some("v".into()) }];
    let mut custom = node("Custom", &["x", "", "y"], &["z", "", "w"]);
    custom.domain = Some("my.domain".into());
    custom.overload = Some("fast".into());
    custom.doc_string = Some("custom doc".into());
    custom.metadata_props = prop("node");
    custom.attribute = vec![int("a", -5), int("b", 0)];
    custom.device_configurations =
        vec![NodeDeviceConfigurationProto { configuration_id: Some("c0".into()), ..Default::default() }];
    let mut relu = node("Relu", &["x"], &["y"]);
    relu.attribute = vec![int("unknown_attribute", 3)];
    let mut g = graph(vec![relu, custom], &["x"], &["z"]);
    g.doc_string = Some("graph doc".into());
    g.metadata_props = prop("graph");
    g.input[0].doc_string = Some("input doc".into());
    g.input[0].metadata_props = prop("input");
    g.value_info = vec![value("y", &[2])];
    let ty = g.input[0].r#type.as_mut().unwrap();
    ty.denotation = Some("IMAGE".into());
    let Some(Value::TensorType(t)) = &mut ty.value else { panic!() };
    t.shape.as_mut().unwrap().dim[0].denotation = Some("DATA_BATCH".into());
    g.quantization_annotation =
        vec![TensorAnnotation { tensor_name: Some("y".into()), quant_parameter_tensor_names: prop("SCALE_TENSOR") }];
    let mut m = model(g);
    m.ir_version = Some(11);
    m.opset_import = vec![opset("", 17), opset("my.domain", 3)];
    m.producer_name = Some("p".into());
    m.producer_version = Some("1".into());
    m.domain = Some("d".into());
    m.model_version = Some(4);
    m.doc_string = Some("model doc".into());
    m.metadata_props = prop("model");
    m.training_info = vec![TrainingInfoProto { update_binding: prop("t"), ..Default::default() }];
    m.configuration = vec![DeviceConfigurationProto { name: Some("c0".into()), ..Default::default() }];
    m
}

#[test]
fn keeps_everything_that_it_does_not_use() {
    let original = decorated();
    let mut written = rewrite(&parse(&original).unwrap());
    // The output of unknown type gets no entry, and attributes come in alphabetical order anyway.
    written.graph.as_mut().unwrap().value_info.retain(|v| v.name.as_deref() == Some("y"));
    assert_eq!(written, original);
}

#[test]
fn writes_the_same_bytes_each_time() {
    let m = parse(&decorated()).unwrap();
    assert_eq!(super::super::to_bytes(&m).unwrap(), super::super::to_bytes(&m.clone()).unwrap());
}

#[test]
fn renames_inner_values_that_would_hide_a_captured_one() {
    let body = graph(vec![node("Relu", &["x"], &["hidden"]), node("Relu", &["hidden"], &["b"])], &[], &["b"]);
    let holder = with_graph(node("Holder", &[], &["y"]), "body", body);
    let mut m = parse(&model(graph(vec![holder], &["x"], &["y"]))).unwrap();
    // The captured value gets the name that an inner value has.
    rename(&mut m.graph, "x", "hidden");
    let g = rewrite(&m).graph.unwrap();
    let body = g.node.last().unwrap().attribute[0].g.as_ref().unwrap();
    assert_eq!(body.node[0].input, ["hidden"]);
    assert_eq!(body.node[0].output, ["hidden_inner1"]);
    assert_eq!(body.node[1].input, ["hidden_inner1"]);
}

/// Puts a Relu of another name between a value and its readers.
fn rename(g: &mut Graph, old: &str, new: &str) {
    let v = g.value_named(old).unwrap();
    let relu = narrowbit_ops::Registry::make("Relu", 17, narrowbit_ir::AttrMap::new()).unwrap();
    let mut p = Patch::new(g);
    let made = p.node(new, relu, &[Some(v)]);
    for u in g.uses(v) {
        p.set_input(u.node, u.input, Some(made));
    }
    g.apply(p).unwrap();
}

#[test]
fn copies_captured_values_that_are_outputs_of_a_subgraph() {
    let body = graph(vec![], &[], &["x"]);
    let holder = with_graph(node("Holder", &[], &["y"]), "body", body);
    let m = parse(&model(graph(vec![holder], &["x"], &["y"]))).unwrap();
    let g = rewrite(&m).graph.unwrap();
    let body = g.node[0].attribute[0].g.as_ref().unwrap();
    assert_eq!(body.node[0].op_type.as_deref(), Some("Identity"));
    assert_eq!(body.node[0].input, ["x"]);
    assert_eq!(body.output[0].name.as_deref(), body.node[0].output.first().map(String::as_str));
}

#[test]
fn writes_packed_types_raw_and_strings_as_strings() {
    let mut m = parse(&model(graph(vec![node("Relu", &["x"], &["y"])], &["x"], &["y"]))).unwrap();
    let int4 = Array::from_i64s(narrowbit_tensor::DType::I4, [3], &[-8, 7, 1]).unwrap();
    let text = Array::from_strings([2], vec!["a".into(), String::new()]).unwrap();
    m.graph.add_const("int4", int4.clone());
    m.graph.add_const("text", text.clone());
    let proto = rewrite(&m);
    assert_eq!(proto.ir_version, Some(10));
    assert_eq!(proto.graph.as_ref().unwrap().initializer[0].raw_data.as_ref().unwrap().len(), 2);
    let again = parse(&proto).unwrap();
    let constant = |n: &str| again.graph.constant(again.graph.value_named(n).unwrap()).unwrap().clone();
    assert_eq!((constant("int4"), constant("text")), (int4, text));
}
