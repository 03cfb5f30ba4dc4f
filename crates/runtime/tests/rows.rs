//! Rows that are taken out of a result are taken before the operators that compute each row by itself.

mod support;

use narrowbit_ir::{Graph, interp};
use narrowbit_tensor::Tensor;
use support::{channels, codes, graph, list, samples, scalar, session};

const WIDTH: usize = 16;

/// Quantizes `value`, and dequantizes it again.
fn pair(value: &str, scale: f32, zero: i32) -> String {
    format!(
        "{}%{value}_q = QuantizeLinear(%{value}, %{value}_s, %{value}_z)\n\
         %{value}_d = DequantizeLinear(%{value}_q, %{value}_s, %{value}_z)\n",
        scalar(value, "u8", scale, zero)
    )
}

/// Weights of integers.
fn weights(name: &str, rows: usize, columns: usize, seed: u64) -> String {
    format!(
        "{}{}%{name}_d = DequantizeLinear(%{name}_q, %{name}_s, %{name}_z) {{axis=1}}\n",
        codes(&format!("{name}_q"), "i8", &[rows, columns], seed),
        channels(name, "i8", columns, 0, 0)
    )
}

/// The last block of a transformer on 13 rows, one head of attention and its row that `pick` makes of `%f`.
fn block(pick: &str) -> Graph {
    let row = |name: &str, n: usize| format!("const %{name}: f32[{n}] = {}\n", list(n, |i| 0.8 + 0.02 * i as f32));
    let body = format!(
        "{}{}{}{}{}{}{}const %rows: i64[2] = [13, {WIDTH}]\nconst %back: i64[3] = [1, 13, {WIDTH}]\n\
         %n = LayerNormalization(%x, %g1)\n{}%q = MatMul(%n_d, %wq_d)\n%k = MatMul(%n_d, %wk_d)\n%kt = Transpose(%k) {{perm=[0, 2, 1]}}\n\
         %p = MatMul(%q, %kt)\n%w = Softmax(%p)\n%o = MatMul(%w, %n)\n%r = Add(%o, %x)\n\
         %n2 = LayerNormalization(%r, %g2)\n{}%flat = Reshape(%n2_d, %rows)\n%a = Gemm(%flat, %wa_d, %ba)\n%act = Gelu(%a)\n{}\
         %b = Gemm(%act_d, %wb_d)\n%bb = Reshape(%b, %back)\n%f = Add(%bb, %r)\n{pick}",
        row("g1", WIDTH),
        row("g2", WIDTH),
        row("ba", 32),
        weights("wq", WIDTH, WIDTH, 1),
        weights("wk", WIDTH, WIDTH, 2),
        weights("wa", WIDTH, 32, 3),
        weights("wb", 32, WIDTH, 4),
        pair("n", 0.02, 128),
        pair("n2", 0.02, 128),
        pair("act", 0.03, 6),
    );
    graph(&format!("input %x: f32[1, 13, {WIDTH}]"), &body, "output %y")
}

/// The most rows that one of the products with weights of integers is computed for.
fn rows_of_products(graph: &Graph, width: usize) -> Vec<usize> {
    let inputs = samples(graph);
    let (_, profile) = session(graph, 1).profile(&inputs).expect("it runs");
    let products = profile.rows.iter().filter(|r| r.on_integers);
    // Bytes of codes that are read, and of floats or codes that are made.
    products.map(|r| r.bytes / width).collect()
}

#[track_caller]
fn assert_bits(graph: &Graph) {
    let inputs: Vec<Tensor> = samples(graph);
    let got = session(graph, 1).run(&inputs).expect("it runs");
    let whole =
        narrowbit_runtime::Options { threads: 1, observe: [graph.value_named("f").expect("it is there")].into() };
    let all = narrowbit_runtime::Session::new(graph.clone(), whole).expect("a valid graph");
    let want = interp::run_tensors(graph, &inputs).expect("it runs on the interpreter");
    assert_eq!(got[0].shape(), want[0].shape());
    let floats = |t: &Tensor| t.to_f32s().expect("floats").into_owned();
    let near = floats(&got[0]).iter().zip(&floats(&want[0])).all(|(a, b)| (a - b).abs() < 0.02);
    assert!(near, "{:?} {:?}", floats(&got[0]), floats(&want[0]));
    // Who observes what rows are taken from has all of them computed, and the same rows come out.
    assert_eq!(got[0].bytes(), all.run(&inputs).expect("it runs")[0].bytes());
}

#[test]
fn takes_a_row_before_products_roundings_and_attention() {
    let graph = block("const %first: i64[] = [0]\n%y = Gather(%f, %first) {axis=1}");
    assert_bits(&graph);
    let session = session(&graph, 1);
    let taken = |name: &str| session.graph().nodes().filter(|(_, n)| n.op.name() == name).count();
    // The input's row, the normalised one's, and nobody takes any later.
    assert_eq!(taken("Gather"), 2);
    let all = block("const %end: i64[] = [1]\n%y = Gather(%f, %end) {axis=2}");
    let (few, all) = (rows_of_products(&graph, WIDTH), rows_of_products(&all, WIDTH));
    assert_eq!(few.len(), all.len());
    assert!(few.iter().sum::<usize>() * 2 < all.iter().sum::<usize>(), "{few:?} {all:?}");
}

#[test]
fn takes_a_slice_of_rows() {
    let graph = block(
        "const %from: i64[1] = [2]\nconst %to: i64[1] = [5]\nconst %axes: i64[1] = [1]\n%y = Slice(%f, %from, %to, %axes)",
    );
    assert_bits(&graph);
    assert!(!session(&graph, 1).graph().nodes().any(|(_, n)| n.op.name() == "Slice"));
}

#[test]
fn leaves_rows_that_others_read_and_most_of_them() {
    for pick in [
        // A second reader of all rows.
        "const %first: i64[] = [0]\n%y0 = Gather(%f, %first) {axis=1}\n%m = ReduceMax(%f)\n%y = Add(%y0, %m)",
        // Seven of thirteen rows.
        "const %from: i64[1] = [0]\nconst %to: i64[1] = [7]\nconst %axes: i64[1] = [1]\n%y = Slice(%f, %from, %to, %axes)",
        // Columns.
        "const %first: i64[] = [0]\n%y = Gather(%f, %first) {axis=2}",
    ] {
        let graph = block(pick);
        assert_bits(&graph);
        let picks = |g: &Graph| g.nodes().filter(|(_, n)| matches!(n.op.name(), "Gather" | "Slice")).count();
        assert_eq!(picks(session(&graph, 1).graph()), 1, "{pick}");
    }
}

#[test]
fn stops_at_a_range_that_all_rows_share() {
    let body = format!(
        "{}const %g: f32[{WIDTH}] = {}\n%n = LayerNormalization(%x, %g)\n%c, %s, %z = DynamicQuantizeLinear(%n)\n\
         %i = MatMulInteger(%c, %w_q, %z)\n%v = Cast(%i) {{to=1}}\n%t = Mul(%s, %w_s)\n%f = Mul(%v, %t)\n\
         const %first: i64[] = [0]\n%y = Gather(%f, %first) {{axis=1}}",
        weights("w", WIDTH, 32, 3),
        list(WIDTH, |i| 0.9 + 0.1 * i as f32)
    );
    let graph = graph(&format!("input %x: f32[2, 13, {WIDTH}]"), &body, "output %y");
    let inputs = samples(&graph);
    let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
    let got = session(&graph, 1).run(&inputs).expect("it runs");
    let floats = |t: &Tensor| t.to_f32s().expect("floats").into_owned();
    assert!(floats(&got[0]).iter().zip(&floats(&want[0])).all(|(a, b)| (a - b).abs() < 0.02));
    let session = session(&graph, 1);
    let gather = session.graph().nodes().find(|(_, n)| n.op.name() == "Gather").expect("rows are taken").1;
    let of = session.graph().producer(gather.input(0).expect("data")).expect("it is made").0;
    assert_eq!(session.graph().node(of).op.name(), "DynamicQuantizeLinear");
}

#[test]
fn takes_rows_of_codes_that_another_product_reads_whole() {
    let body = format!(
        "{}{}const %first: i64[] = [0]\n%d = DequantizeLinear(%c, %s, %z) {{axis=-1, block_size={WIDTH}}}\n\
         %q = MatMul(%d, %wq_d)\n%k = MatMul(%d, %wk_d)\n%f = Identity(%q)\n%y = Gather(%f, %first) {{axis=1}}",
        weights("wq", WIDTH, WIDTH, 1),
        weights("wk", WIDTH, WIDTH, 2),
    );
    let inputs = format!("input %c: u8[1, 13, {WIDTH}]\ninput %s: f32[1, 13, 1]\ninput %z: u8[1, 13, 1]");
    let graph = graph(&inputs, &body, "output %y\noutput %k");
    assert_bits(&graph);
    let (_, profile) = session(&graph, 1).profile(&samples(&graph)).expect("it runs");
    assert_eq!(profile.rows.iter().filter(|r| r.on_integers).count(), 2);
    assert!(profile.rows.iter().all(|r| r.kernel != "reference"), "floats of all rows");
}
