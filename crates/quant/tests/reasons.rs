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
    let volume = "input %v: f32[n, 4, 4, 4, 4] const %k: f32[4, 4, 3, 3, 3] = random(3)";
    assert_eq!(reason(&format!("{volume} %y = Conv(%v, %k) @\"node\" output %y")), "integer");
    assert_eq!(reason(&format!("{volume} %y = ConvTranspose(%v, %k) @\"node\" output %y")), "form");
    let infinite =
        "const %u: f32[2, 1] = [1, inf] %s = MatMul(%x, %w) %y = MatMul(%t, %u) @\"node\" output %y output %s";
    assert_eq!(reason(&format!("input %t: f32[n, 2] {infinite}")), "weight-not-finite");
    assert_eq!(
        reason("input %h: f64[n, 2] const %k: f64[2, 2] = [1, 2, 3, 4] %y = MatMul(%h, %k) @\"node\" output %y"),
        "not-float-data"
    );
}

#[test]
fn keeps_depthwise_convolutions_float_where_others_are_left() {
    let graph = |more: &str| {
        let text = format!(
            "model opset=17 graph \"g\" {{ input %x: f32[1, 4, 8, 8] const %d: f32[4, 1, 3, 3] = random(1)
             const %w: f32[4, 4, 1, 1] = random(2) const %g: f32[4, 2, 1, 1] = random(3)
             %a = Conv(%x, %d) {{group=4}} @\"depthwise\" {more} output %a }}"
        );
        text::parse_model(&text, &Registry).unwrap()
    };
    let of = |more: &str, options: &QuantOptions| -> BTreeMap<String, &'static str> {
        let model = graph(more);
        let layout = quantize::layout(&model, options).unwrap();
        layout.reasons.iter().map(|(&id, r)| (model.graph.node(id).name.clone(), r.code())).collect()
    };
    let keep = QuantOptions { keep_depthwise: true, ..QuantOptions::default() };
    let others = "%b = Conv(%a, %g) {group=2} @\"groups\" %c = Conv(%b, %w) @\"full\" output %c";
    let reasons = |all: &[(&str, &'static str)]| -> BTreeMap<String, &'static str> {
        all.iter().map(|&(n, r)| (n.to_owned(), r)).collect()
    };
    assert_eq!(of(others, &keep), reasons(&[("depthwise", "depthwise")]));
    assert_eq!(of(others, &QuantOptions::default()), reasons(&[]));
    assert_eq!(of("", &keep), reasons(&[]), "there is nothing else");
    // What is kept for its place does not count as left.
    let first = QuantOptions { keep_first: true, ..keep.clone() };
    let second = "%b = Conv(%a, %d) {group=4} @\"second\" output %b";
    assert_eq!(of(second, &first), reasons(&[("depthwise", "edge-layer")]));
    let edges = QuantOptions { keep_last: true, ..first };
    let all = reasons(&[("depthwise", "edge-layer"), ("full", "edge-layer")]);
    assert_eq!(of(others, &edges), all);
    let one = "%b = Conv(%a, %d) {group=4} @\"second\" %c = Conv(%b, %w) @\"full\" output %c";
    assert_eq!(of(one, &edges), reasons(&[("depthwise", "edge-layer"), ("second", "depthwise")]), "the only one left");
}
