//! The text form: what is written can be read, what is wrong is named with its line.

use narrowbit_ir::text::{parse_graph, parse_model, print_graph};
use narrowbit_ops::Registry;

fn error(text: &str) -> String {
    parse_graph(text, &Registry, 17).map(|g| print_graph(&g)).expect_err("the text is wrong").to_string()
}

#[test]
fn reads_what_it_wrote() -> Result<(), Box<dyn std::error::Error>> {
    let text = r#"graph "a \"b\"" {
  input %x: f32[batch, "2*batch", ?, 3]
  input %"odd name:0": ?[..]
  const %c: f16[2, 1] = [0.5, -inf]
  const %s: string[1] = ["a;b"]
  const %e: i64[0] = []
  %y: seq(f32[..]), _ = my.domain.Thing(%x, _, %c) {f=1.0, fs=[1.5, 2.0], i=-3, is=ints[], r=ref "alpha" 1, s="x", t=u8[2] [1, 2]} @"n 1"
  %z = LeakyRelu(%x) {alpha=0.1}
  output %y
  output %z
}
"#;
    assert_eq!(print_graph(&parse_graph(text, &Registry, 17)?), text);
    Ok(())
}

#[test]
fn refuses_wrong_texts_with_their_line() {
    assert_eq!(error("graph \"g\" {\n  %y = Relu(%x)\n}"), "line 2: %x is read before it is made");
    assert_eq!(error("graph \"g\" {\n\n  input %x: f33[1]\n}"), "line 3: f33 is no element type");
    assert!(error("graph \"g\" { const %x: f32[2] = [1] }").contains("1 elements are given, the shape has 2"));
    assert!(error("graph \"g\" { const %x: f32[99999999, 9999999999] = random(1) }").contains("would take more than"));
    assert!(error("graph \"g\" { const %x: f32[2] = #00 }").contains("left out"));
    assert!(error("graph \"g\" { input %x input %x }").contains("made twice"));
    assert!(error("graph \"g\" { const %x: i64[2] = [1, 2").contains("expected ']', found the end"));
    assert!(error("graph \"g\" { const %x: f32[99999999] = random(1) }").contains("random content has at most"));
    assert!(error("graph \"g").contains("a quote is not closed"));
    assert!(error("graph \"g\" { input %x").contains("expected"));
    let deep = format!("graph \"g\" {{ input %x: {}", "seq(".repeat(1000));
    assert!(error(&deep).contains("nested deeper"));
    assert!(parse_model("model opset=x graph \"g\" { }", &Registry).is_err());
}
