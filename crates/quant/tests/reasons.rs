//! The reason that a node stays float is the one that keeps it float.

use std::collections::BTreeMap;

use narrowbit_ir::{Model, text};
use narrowbit_ops::Registry;
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::quantize;

/// The reason codes by node; integer nodes have none.
fn reasons(body: &str, options: &QuantOptions) -> BTreeMap<String, &'static str> {
    let head =
        "input %x: f32[n, 8] input %i: i64[n] const %w: f32[8, 8] = random(1) const %big: f32[1024, 8] = random(2)";
    let text = format!("model opset=17 graph \"g\" {{ {head} %p = MatMul(%x, %w) @\"product\" output %p {body} }}");
    let model: Model = text::parse_model(&text, &Registry).unwrap();
    let layout = quantize::layout(&model, options).unwrap();
    let name = |id| model.graph.node(id).name.clone();
    layout.reasons.iter().map(|(&id, r)| (name(id), r.code())).collect()
}

fn reason(body: &str) -> &'static str {
    reasons(body, &QuantOptions::default()).get("node").copied().unwrap_or("integer")
}

#[test]
fn tells_tables_from_float_inputs() {
    let small = "const %t: f32[4, 8] = random(3) %y = Gather(%t, %i) @\"node\" output %y";
    assert_eq!(reason(small), "table");
    let shared = "%y = Gather(%big, %i) @\"node\" %z = Gather(%big, %i) output %y output %z";
    assert_eq!(reason(shared), "table");
    let columns = "%y = Gather(%big, %i) {axis=1} @\"node\" output %y";
    assert_eq!(reason(columns), "table");
    let large = "%y = Gather(%big, %i) @\"node\" output %y";
    assert_eq!(reason(large), "integer");
    let off = QuantOptions { embeddings: false, ..QuantOptions::default() };
    assert_eq!(reasons(large, &off)["node"], "excluded");
    let activation = "%r = Relu(%x) %y = Gather(%r, %i) @\"node\" output %y";
    assert_eq!(reason(activation), "float-input");
}

#[test]
fn says_no_integer_form_only_where_there_is_none() {
    assert_eq!(reason("%y = Softmax(%x) @\"node\" output %y"), "float-operator");
    assert_eq!(reason("%y = Exp(%x) @\"node\" output %y"), "float-operator");
    assert_eq!(reason("%y = Relu(%x) @\"node\" output %y"), "float-input");
}

#[test]
fn names_what_is_wrong_with_a_product() {
    assert_eq!(reason("%y = MatMul(%w, %p) @\"node\" output %y"), "weight-not-constant");
    assert_eq!(reason("%y = Gemm(%x, %w) {transA=1} @\"node\" output %y"), "form");
    assert_eq!(reason("const %v: f32[8] = random(3) %y = MatMul(%x, %v) @\"node\" output %y"), "form");
    let infinite =
        "const %u: f32[2, 1] = [1, inf] %s = MatMul(%x, %w) %y = MatMul(%t, %u) @\"node\" output %y output %s";
    assert_eq!(reason(&format!("input %t: f32[n, 2] {infinite}")), "weight-not-finite");
    assert_eq!(
        reason("input %h: f64[n, 2] const %k: f64[2, 2] = [1, 2, 3, 4] %y = MatMul(%h, %k) @\"node\" output %y"),
        "not-float-data"
    );
}
