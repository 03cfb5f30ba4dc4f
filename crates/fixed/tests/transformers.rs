//! Attention, the softmax of powers of two and quotients: programs against the reference interpreter, and against QuantizeML
//! itself (`tests/fixtures/quantizeml_transformer.py`).

use std::path::Path;

use narrowbit_fixed::{FixedModel, LowerError, Options, Proof, Rounding, Shapes, lower};
use narrowbit_ir::{Graph, Patch, interp, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_ops::functions::Shiftmax;
use narrowbit_tensor::Tensor;
use serde::Deserialize;

const OPSET: i64 = 18;

fn exec() -> Exec {
    Exec::new(Isa::detect(), 2)
}

/// Integers all over `-spread..spread`, as floats.
fn integers(shape: &[usize], spread: i64, seed: u64) -> Tensor {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as i64 % (2 * spread) - spread) as f32
    };
    let len: usize = shape.iter().product();
    Tensor::new(shape.to_vec(), (0..len).map(|_| next()).collect::<Vec<f32>>()).unwrap()
}

/// A graph with `%s = Softmax(%x)` replaced by the softmax of powers of two.
fn graph(body: &str) -> Graph {
    let text = format!("model opset={OPSET} graph \"g\" {{\n{body}\n}}");
    let mut graph = text::parse_model(&text, &Registry).unwrap_or_else(|e| panic!("{e}\n{text}")).graph;
    let softmax: Vec<_> = graph.nodes().filter(|(_, n)| n.op.name() == "Softmax").map(|(id, _)| id).collect();
    for id in softmax {
        let (x, y) = (graph.node(id).input(0).unwrap(), graph.node(id).output(0).unwrap());
        let mut patch = Patch::new(&graph);
        let made = Shiftmax::write(&mut patch, OPSET, "shift", x).unwrap();
        patch.replace(y, made);
        graph.apply(patch).unwrap();
    }
    narrowbit_ir::infer::annotate(&mut graph).unwrap();
    graph
}

fn shapes(graph: &Graph, inputs: &[Tensor]) -> Shapes {
    graph.inputs().iter().copied().zip(inputs.iter().map(|t| t.shape().to_vec())).collect()
}

fn run(graph: &Graph, inputs: &[Tensor], options: Options) -> Vec<f64> {
    FixedModel::new(graph.clone(), options, exec()).run(inputs).unwrap()[0].to_f64s().unwrap().to_vec()
}

/// Checks that all is integers and that the results are the interpreter's, bit for bit.
#[track_caller]
fn agrees(graph: &Graph, inputs: &[Tensor]) -> Proof {
    let proof = lower(graph, &shapes(graph, inputs), Options::default(), &exec()).unwrap().proof;
    assert_eq!(proof.first_after, None);
    let expected = interp::run_tensors(graph, inputs).unwrap();
    assert_eq!(run(graph, inputs, Options::default()), expected[0].to_f64s().unwrap().to_vec());
    proof
}

fn refusal(graph: &Graph, inputs: &[Tensor]) -> String {
    match lower(graph, &shapes(graph, inputs), Options::default(), &exec()) {
        Err(LowerError::NeedsFloats { why, .. }) => why,
        Err(e) => panic!("{e}"),
        Ok(done) => done.proof.first_after.unwrap_or_default(),
    }
}

fn int8(name: &str, step: &str) -> String {
    format!("%q{name} = QuantizeLinear(%{name}, %{step}, %z) %d{name} = DequantizeLinear(%q{name}, %{step}, %z)\n")
}

const CONSTANTS: &str = "const %z: i8[] = [0] const %one: f32[] = [1] const %s4: f32[] = [0.0625] const %s5: f32[] = [0.03125] const %s3: f32[] = [0.125]\n";

#[test]
fn multiplies_two_activations() {
    // Batches that repeat, and zero points.
    let body = format!(
        "input %a: f32[2, 1, 5, 7] input %b: f32[3, 7, 4] {CONSTANTS} const %za: u8[] = [100] const %zb: i8[] = [-9]
        %qa = QuantizeLinear(%a, %s4, %za) %da = DequantizeLinear(%qa, %s4, %za)
        %qb = QuantizeLinear(%b, %s3, %zb) %db = DequantizeLinear(%qb, %s3, %zb)
        %m = MatMul(%da, %db) %qm = QuantizeLinear(%m, %one, %z) %y = DequantizeLinear(%qm, %one, %z) output %y"
    );
    let inputs = [integers(&[2, 1, 5, 7], 7, 3), integers(&[3, 7, 4], 14, 5)];
    let proof = agrees(&graph(&body), &inputs);
    let row = proof.rows.iter().find(|r| r.op == "MatMul").unwrap();
    // Codes less their zero points are −100 … 155 and −119 … 136.
    assert!(row.integers.starts_with("8-bit products in"), "{}", row.integers);
    assert_eq!(row.bounds, (-7 * 155 * 119, 7 * 155 * 136));
}

#[test]
fn multiplies_integers_of_sixteen_bits_by_their_bytes() {
    let wide = format!(
        "input %a: f32[1, 5, 7] input %b: f32[1, 7, 4] {CONSTANTS} const %zw: i16[] = [0] const %s9: f32[] = [0.001953125]
        %qa = QuantizeLinear(%a, %s9, %zw) %da = DequantizeLinear(%qa, %s9, %zw) {}
        %m = MatMul(%da, %db) %qm = QuantizeLinear(%m, %one, %z) %y = DequantizeLinear(%qm, %one, %z) output %y",
        int8("b", "s3")
    );
    let proof = agrees(&graph(&wide), &[integers(&[1, 5, 7], 30, 8), integers(&[1, 7, 4], 12, 9)]);
    assert!(proof.rows.iter().any(|r| r.integers.contains("products of 3 by 1 bytes")), "{proof:?}");
}

#[test]
fn refuses_products_of_vectors() {
    let body = format!(
        "input %a: f32[5, 7] input %b: f32[7] {CONSTANTS} {} {} %m = MatMul(%da, %db)
        %qm = QuantizeLinear(%m, %one, %z) %y = DequantizeLinear(%qm, %one, %z) output %y",
        int8("a", "s4"),
        int8("b", "s4")
    );
    assert!(refusal(&graph(&body), &[integers(&[5, 7], 7, 3), integers(&[7], 7, 5)]).contains("is a vector"));
}

#[test]
fn computes_attention_on_integers_alone() {
    let body = format!(
        "input %q: f32[2, 3, 9, 8] input %k: f32[2, 3, 9, 8] input %v: f32[2, 3, 9, 8] {CONSTANTS} {} {} {}
        const %f: f32[] = [0.25] %t = Transpose(%dk) {{perm=[0, 1, 3, 2]}} %m = MatMul(%dq, %t) %x = Mul(%m, %f)
        %s = Softmax(%x) %o = MatMul(%s, %dv) %p = Transpose(%o) {{perm=[0, 2, 1, 3]}}
        %qp = QuantizeLinear(%p, %s4, %z) %y = DequantizeLinear(%qp, %s4, %z) output %y",
        int8("q", "s4"),
        int8("k", "s3"),
        int8("v", "s5")
    );
    let shape = [2, 3, 9, 8];
    let proof = agrees(&graph(&body), &[integers(&shape, 4, 1), integers(&shape, 3, 2), integers(&shape, 4, 3)]);
    let row = proof.rows.iter().find(|r| r.integers.starts_with("softmax of powers of two")).unwrap();
    assert_eq!((row.bounds, row.saturates), ((0, 9 << 20), false));
}

#[test]
fn keeps_a_softmax_of_powers_of_two_whose_inner_values_are_read_as_the_end() {
    let body = format!("input %x: f32[2, 9] {CONSTANTS} {} %f = Floor(%dx) %y = Exp(%f) output %y", int8("x", "s4"));
    assert!(refusal(&graph(&body), &[integers(&[2, 9], 7, 1)]).contains("Floor"));
}

#[test]
fn repeats_a_constant_as_often_as_the_shape_of_integers_says() {
    let body = format!(
        "input %x: f32[n, 2, 3] {CONSTANTS} const %c: f32[1, 1, 3] = [1.5, -2, 0.25] const %zero: i64[1] = [0] const %till: i64[1] = [1]
        const %rest: i64[2] = [1, 3] {} %s = Shape(%dx) %b = Slice(%s, %zero, %till, %zero) %t = Concat(%b, %rest) {{axis=0}}
        %e = Expand(%c, %t) {} %j = Concat(%de, %dx) {{axis=1}} %r = Add(%j, %j)
        %qy = QuantizeLinear(%r, %s3, %z) %y = DequantizeLinear(%qy, %s3, %z) output %y",
        int8("x", "s4"),
        int8("e", "s4")
    );
    for n in [1, 3] {
        agrees(&graph(&body), &[integers(&[n, 2, 3], 4, 6)]);
    }
}

const QUOTIENT: &str = "%a = Abs(%dx) %t = ReduceSum(%a, %axes) %c = Clip(%t, %s4) %u = Div(%dg, %c)
    %i = Cast(%u) {to=6} %p = Cast(%i) {to=1} %m = Mul(%dx, %p) %n = Mul(%m, %f) %r = Add(%n, %db)
    %qy = QuantizeLinear(%r, %s5, %z) %y = DequantizeLinear(%qy, %s5, %z)";

/// Normalizes by the sum of magnitudes; `γ` has `2ᵏ` steps.
fn normalization(nodes: &str) -> Graph {
    graph(&format!(
        "input %x: f32[3, 5, 6] {CONSTANTS} {} const %axes: i64[1] = [-1] const %f: f32[] = [0.00018310546875]
        const %g: i8[6] = [100, -127, 30, 5, 0, 64] const %sg: f32[] = [256] const %dg0: i8[] = [0]
        const %b: i32[6] = [1000, -200, 0, 5, 6, -7000] const %sb: f32[] = [0.000011444091796875] const %zb: i32[] = [0]
        %dg = DequantizeLinear(%g, %sg, %dg0) %db = DequantizeLinear(%b, %sb, %zb)
        {nodes} output %y",
        int8("x", "s4")
    ))
}

#[test]
fn normalizes_by_the_mean_magnitude_within_proved_bounds() {
    let x = integers(&[3, 5, 6], 5, 4);
    let proof = agrees(&normalization(QUOTIENT), std::slice::from_ref(&x));
    let product = proof.rows.iter().find(|r| r.op == "Mul").unwrap();
    // |x| is a part of the sum: no more than the dividend, 127 · 2¹², though the factors alone allow 128 · 127 · 2¹².
    assert_eq!(product.bounds, (-127 << 12, 127 << 12));
    // Rows of zeros, which are divided by one step.
    agrees(&normalization(QUOTIENT), &[integers(&[3, 5, 6], 1, 4)]);
    let zeros = Tensor::new(vec![3, 5, 6], vec![0f32; 90]).unwrap();
    agrees(&normalization(QUOTIENT), &[zeros]);
    // Other data have no such bound.
    let other = QUOTIENT.replace("%m = Mul(%dx, %p)", "%d2 = Add(%dx, %dx) %m = Mul(%d2, %p)");
    let proof = agrees(&normalization(&other), &[x]);
    assert!(proof.rows.iter().filter(|r| r.op == "Mul").any(|r| r.bounds.1 > 200 << 12));
}

#[test]
fn refuses_quotients_that_have_no_whole_number() {
    let x = [integers(&[3, 5, 6], 5, 4)];
    let refused = |from: &str, to: &str| refusal(&normalization(&QUOTIENT.replace(from, to)), &x);
    assert!(refused("Clip(%t, %s4)", "Identity(%t)").contains("divisor may be zero"));
    assert!(refused("%i = Cast(%u) {to=6} %p = Cast(%i) {to=1}", "%p = Identity(%u)").contains("Cast to int32"));
    assert!(refused("{to=6}", "{to=7}").contains("Cast to int32"));
    assert!(refusal(&normalization(&format!("{QUOTIENT} output %i")), &x).contains("a Cast back"));
    assert!(refused("Mul(%m, %f)", "Div(%m, %f)").contains("no power of two"));
    let sums = |axis: &str| {
        let nodes = QUOTIENT.replace("ReduceSum(%a, %axes)", "ReduceSum(%a, %other)");
        normalization(&format!("const %other: i64[1] = [{axis}] {nodes}"))
    };
    assert!(refusal(&sums("0"), &x).contains("not the sum over the last axis"));
}

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Case {
    Shiftmax { row: usize, frac: i32, x: Vec<i64>, y: Vec<i64> },
    LayerMad {},
    Attention(Attention),
}

#[derive(Deserialize)]
struct Attention {
    heads: usize,
    tokens: usize,
    hidden: usize,
    shift: i32,
    fracs: [i32; 3],
    q: Vec<i64>,
    k: Vec<i64>,
    v: Vec<i64>,
    mask: Vec<i64>,
    out_frac: i32,
    y: Vec<i64>,
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/schemes/quantizeml-transformer.json");
    serde_json::from_str::<Fixture>(&std::fs::read_to_string(path).unwrap()).unwrap().cases
}

fn hardware() -> Options {
    Options { rounding: Rounding::HalfUp, buffer_bits: Some(32), ..Options::default() }
}

fn step(frac: i32) -> f32 {
    2f32.powi(-frac)
}

fn values(codes: &[i64], frac: i32, shape: &[usize]) -> Tensor {
    Tensor::new(shape.to_vec(), codes.iter().map(|&c| c as f32 * step(frac)).collect::<Vec<f32>>()).unwrap()
}

fn codes(values: &[f64], frac: i32) -> Vec<i64> {
    values.iter().map(|v| (v * f64::from(step(-frac))) as i64).collect()
}

#[test]
fn gives_the_powers_of_two_of_the_tool() {
    let mut seen = 0;
    for case in cases() {
        let Case::Shiftmax { row, frac, x, y } = case else { continue };
        let body = format!(
            "input %x: f32[4, {row}] const %z: i16[] = [0] const %s: f32[] = [{}]
            %q = QuantizeLinear(%x, %s, %z) %d = DequantizeLinear(%q, %s, %z) %y = Softmax(%d) output %y",
            step(frac)
        );
        // 16-bit codes are newer than the opset of the other tests, and need no more than this.
        let graph = graph(&body);
        let input = values(&x, frac, &[4, row]);
        assert_eq!(codes(&run(&graph, &[input], hardware()), 10), y, "{row} {frac}");
        seen += 1;
    }
    assert_eq!(seen, 7);
}

#[test]
fn gives_the_codes_of_the_tools_attention() {
    let mut seen = 0;
    for case in cases() {
        let Case::Attention(a) = case else { continue };
        let (heads, tokens, dim) = (a.heads, a.tokens, a.hidden / a.heads);
        let shape = format!("f32[2, {tokens}, {}]", a.hidden);
        let split = |name: &str, perm: &str| {
            format!(
                "{} %r{name} = Reshape(%d{name}, %heads) %t{name} = Transpose(%r{name}) {{perm=[{perm}]}}\n",
                int8(name, &format!("s{name}"))
            )
        };
        let [fq, fk, fv] = a.fracs;
        let body = |out: &str| {
            format!(
                "input %q: {shape} input %k: {shape} input %v: {shape} const %z: i8[] = [0]
                const %sq: f32[] = [{}] const %sk: f32[] = [{}] const %sv: f32[] = [{}] const %so: f32[] = [{}] const %f: f32[] = [{}]
                const %heads: i64[4] = [2, {tokens}, {heads}, {dim}] const %joined: i64[3] = [2, {tokens}, {}] {} {} {}
                %m = MatMul(%tq, %tk) %x = Mul(%m, %f) %s = Softmax(%x) %o = MatMul(%s, %tv) %p = Transpose(%o) {{perm=[0, 2, 1, 3]}}
                %r = Reshape(%p, %joined) %qr = QuantizeLinear(%r, %so, %z) %y = DequantizeLinear(%qr, %so, %z) output %{out}",
                step(fq), step(fk), step(fv), step(a.out_frac), step(a.shift), a.hidden,
                split("q", "0, 2, 1, 3"), split("k", "0, 2, 3, 1"), split("v", "0, 2, 1, 3")
            )
        };
        let inputs: Vec<Tensor> =
            [(&a.q, fq), (&a.k, fk), (&a.v, fv)].iter().map(|(x, f)| values(x, *f, &[2, tokens, a.hidden])).collect();
        assert_eq!(codes(&run(&graph(&body("s")), &inputs, hardware()), 10), a.mask, "{heads} {tokens}");
        assert_eq!(codes(&run(&graph(&body("y")), &inputs, hardware()), a.out_frac), a.y, "{heads} {tokens}");
        seen += 1;
    }
    assert_eq!(seen, 4);
}
