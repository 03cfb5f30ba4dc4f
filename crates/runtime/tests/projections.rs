//! A product whose columns are queries, keys and values runs as one product each, with nothing moved between.

use std::collections::BTreeSet;

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

const TOKENS: usize = 21;
const HEADS: usize = 3;
const DEPTH: usize = 8;
const WIDTH: usize = HEADS * DEPTH;

/// Quantizes `value` with a scale and a u8 zero point, and dequantizes it again.
fn pair(value: &str, scale: f32, zero: u8) -> String {
    format!(
        "const %{value}_s: f32[] = [{scale}]\n const %{value}_z: u8[] = [{zero}]\n\
         %{value}_q = QuantizeLinear(%{value}, %{value}_s, %{value}_z)\n\
         %{value}_d = DequantizeLinear(%{value}_q, %{value}_s, %{value}_z)\n"
    )
}

fn list(values: impl Iterator<Item = String>) -> String {
    values.collect::<Vec<String>>().join(", ")
}

/// The weights and the bias of the projection, a scale and a zero point per column.
fn constants() -> String {
    let columns = 3 * WIDTH;
    let codes = list((0..WIDTH * columns).map(|i| ((i * i * 31 + i * 7) % 251) as i32 - 125).map(|c| c.to_string()));
    let scales = list((0..columns).map(|i| format!("{}", 0.0011 + 0.0003 * (i % 7) as f32)));
    let zeros = list((0..columns).map(|i| format!("{}", i as i32 % 5 - 2)));
    let bias = list((0..columns).map(|i| format!("{}", (i as i32 % 90) * 7 - 300)));
    let units = list((0..columns).map(|i| format!("{}", 0.008 * (0.0011 + 0.0003 * (i % 7) as f32))));
    format!(
        "const %w_q: i8[{WIDTH}, {columns}] = [{codes}]\n const %w_s: f32[{columns}] = [{scales}]\n\
         const %w_z: i8[{columns}] = [{zeros}]\n %w = DequantizeLinear(%w_q, %w_s, %w_z) {{axis=1}}\n\
         const %b_q: i32[{columns}] = [{bias}]\n const %b_s: f32[{columns}] = [{units}]\n\
         %b = DequantizeLinear(%b_q, %b_s) {{axis=0}}\n\
         const %first: i64[1] = [0]\n const %ones: i64[3] = [1, 1, 1]\n const %factor: f32[] = [0.35355338]\n\
         const %shape: i64[5] = [1, {TOKENS}, 3, {HEADS}, {DEPTH}]\n"
    )
}

/// The attention of `%q`, `%k` and `%v`, each `[1, heads, tokens, depth]`; the keys are scaled before they are quantized.
fn attention() -> String {
    format!(
        "{}{}%kt = Transpose(%k) {{perm=[0, 1, 3, 2]}}\n%ks = Mul(%kt, %factor)\n{}%p = MatMul(%q_d, %ks_d)\n\
         %soft = Softmax(%p)\n{}%y = MatMul(%soft_d, %v_d)\n{}",
        pair("q", 0.011, 121),
        pair("v", 0.013, 130),
        pair("ks", 0.004, 127),
        pair("soft", 1.0 / 255.0, 0),
        pair("y", 0.004, 128)
    )
}

fn graph(body: &str) -> Graph {
    let text = format!(
        "graph \"g\" {{\ninput %x: f32[1, {TOKENS}, {WIDTH}]\n{}{}{body}\noutput %y_q\n}}",
        constants(),
        pair("x", 0.008, 126)
    );
    text::parse_graph(&text, &Registry, 20).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Runs the graph with the bits of its operators; the kernels that it took. Where values are observed, the session
/// leaves the graph as it is.
#[track_caller]
fn kernels(graph: &Graph) -> Vec<String> {
    let values = (0..TOKENS * WIDTH).map(|i| ((i * 37 + i * i * 11) % 255) as f32 / 128.0 - 1.0).collect::<Vec<f32>>();
    let inputs = [Tensor::new(vec![1, TOKENS, WIDTH], values).expect("the length fits")];
    let run = |observed: &[&str]| {
        let observe = observed.iter().map(|v| graph.value_named(v).expect("it is there")).collect();
        Session::new(graph.clone(), Options { threads: 1, observe })
            .expect("a valid graph")
            .profile(&inputs)
            .expect("it runs")
    };
    let (got, profile) = run(&[]);
    let (whole, _) = run(&["x_q"]);
    assert_eq!(got[0].bytes(), whole[0].bytes());
    let want = interp::run_tensors(graph, &inputs).expect("it runs on the interpreter");
    assert_eq!(got[0].shape(), want[0].shape());
    // Products of integers are rounded from exact sums, those of the interpreter from sums of floats.
    let steps = got[0].bytes().iter().zip(want[0].bytes()).map(|(&a, &b)| a.abs_diff(b));
    let (most, off) = steps.fold((0, 0), |(most, off), d| (d.max(most), off + usize::from(d > 0)));
    assert!(most <= 1 && off * 200 <= got[0].len(), "{off} of {} differ, by up to {most}", got[0].len());
    let distinct: BTreeSet<u8> = got[0].bytes().iter().copied().collect();
    assert!(distinct.len() > 16, "the test data exercises only {} codes", distinct.len());
    profile.rows.iter().map(|r| r.kernel.clone()).collect()
}

#[track_caller]
fn assert_nothing_moves(graph: &Graph) {
    let kernels = kernels(graph);
    let products = kernels.iter().filter(|k| k.starts_with("panel_u8i8i32")).count();
    assert!(products == 3 && kernels.iter().any(|k| k == "attention_i8"), "{kernels:?}");
    let moves = ["transpose", "split", "gather", "reference"];
    assert!(!kernels.iter().any(|k| moves.contains(&k.as_str())), "{kernels:?}");
}

const PRODUCT: &str = "%m = MatMul(%x_d, %w)\n%z = Add(%b, %m)\n";

#[test]
fn makes_a_product_of_each_part_of_a_split() {
    let body = format!(
        "{PRODUCT}%r = Reshape(%z, %shape)\n%t = Transpose(%r) {{perm=[2, 0, 3, 1, 4]}}\n\
         %q5, %k5, %v5 = Split(%t, %ones) {{axis=0}}\n%q = Squeeze(%q5, %first)\n%k = Squeeze(%k5, %first)\n\
         %v = Squeeze(%v5, %first)\n{}",
        attention()
    );
    assert_nothing_moves(&graph(&body));
}

#[test]
fn makes_a_product_of_each_part_that_is_gathered() {
    let body = format!(
        "const %i0: i64[] = [0]\n const %i1: i64[] = [1]\n const %i2: i64[] = [-1]\n{PRODUCT}%r = Reshape(%z, %shape)\n\
         %t = Transpose(%r) {{perm=[2, 0, 3, 1, 4]}}\n%q = Gather(%t, %i0)\n%k = Gather(%t, %i1)\n%v = Gather(%t, %i2)\n{}",
        attention()
    );
    assert_nothing_moves(&graph(&body));
}

#[test]
fn makes_a_product_of_each_part_of_what_is_quantized_as_a_whole() {
    let body = format!(
        "{PRODUCT}{}%r = Reshape(%z_d, %shape)\n{}%t = Transpose(%r_d) {{perm=[2, 0, 3, 1, 4]}}\n{}\
         %q5, %k5, %v5 = Split(%t_d, %ones) {{axis=0}}\n%q = Squeeze(%q5, %first)\n%k = Squeeze(%k5, %first)\n\
         %v = Squeeze(%v5, %first)\n{}",
        pair("z", 0.012, 125),
        pair("r", 0.012, 125),
        pair("t", 0.012, 125),
        attention()
    );
    let kernels = kernels(&graph(&body));
    assert!(!kernels.iter().any(|k| k == "split"), "{kernels:?}");
    assert_eq!(kernels.iter().filter(|k| k.starts_with("panel_u8i8i32")).count(), 3, "{kernels:?}");
}

#[test]
fn moves_nothing_where_parts_are_squeezed_behind_their_transpose() {
    // As ONNX Runtime's optimizer leaves it, with the keys' factor quantized like all the rest.
    let part = |x: &str| format!("%{x}6 = Transpose(%{x}5) {{perm=[2, 0, 3, 1, 4]}}\n%{x} = Squeeze(%{x}6, %first)\n");
    let scaled = attention().replace("Mul(%kt, %factor)", "Mul(%kt, %fd)");
    let body = format!(
        "const %f_q: u8[1] = [200]\n const %f_s: f32[] = [0.0017]\n const %f_z: u8[] = [3]\n\
         %fd = DequantizeLinear(%f_q, %f_s, %f_z)\n{PRODUCT}{}%r = Reshape(%z_d, %shape)\n\
         %q5, %k5, %v5 = Split(%r, %ones) {{axis=2}}\n{}{}{}{scaled}",
        pair("z", 0.012, 125),
        part("q"),
        part("k"),
        part("v"),
    );
    assert_nothing_moves(&graph(&body));
}

#[test]
fn makes_a_product_of_each_part_of_the_columns() {
    let part = |x: &str| {
        format!(
            "{}%{x}r = Reshape(%{x}c_d, %heads)\n%{x} = Transpose(%{x}r) {{perm=[0, 2, 1, 3]}}\n",
            pair(&format!("{x}c"), 0.012, 125)
        )
    };
    let body = format!(
        "const %heads: i64[4] = [1, {TOKENS}, {HEADS}, {DEPTH}]\n{PRODUCT}\
         %qc, %kc, %vc = Split(%z) {{axis=-1, num_outputs=3}}\n{}{}{}{}",
        part("q"),
        part("k"),
        part("v"),
        attention()
    );
    let kernels = kernels(&graph(&body));
    assert!(!kernels.iter().any(|k| k == "split"), "{kernels:?}");
    assert_eq!(kernels.iter().filter(|k| k.starts_with("panel_u8i8i32")).count(), 3, "{kernels:?}");
}

/// One product, whatever the reason.
#[track_caller]
fn assert_left_alone(body: &str) {
    let kernels = kernels(&graph(body));
    assert_eq!(kernels.iter().filter(|k| k.starts_with("panel_u8i8i32")).count(), 1, "{kernels:?}");
}

#[test]
fn leaves_products_alone_whose_parts_are_no_columns() {
    // The axis that is split is one of the tokens, or not the first that the columns become.
    for (shape, axis) in [("1, 7, 3, 72", 2), ("1, 21, 24, 3", 3)] {
        let body = format!(
            "const %s: i64[4] = [{shape}]\n const %back: i64[3] = [1, {TOKENS}, {WIDTH}]\n{PRODUCT}%r = Reshape(%z, %s)\n\
             %a, %c, %d = Split(%r, %ones) {{axis={axis}}}\n%e = Add(%a, %c)\n%f = Add(%e, %d)\n%y = Reshape(%f, %back)\n{}",
            pair("y", 0.03, 128)
        );
        assert_left_alone(&body);
    }
}

#[test]
fn leaves_products_alone_that_others_read_too() {
    let body = format!(
        "{PRODUCT}%q5, %k5, %v5 = Split(%z) {{axis=-1, num_outputs=3}}\n%e = Add(%q5, %k5)\n%f = Add(%e, %v5)\n\
         %n = ReduceMean(%z, %last) {{keepdims=1}}\n%y = Add(%f, %n)\n{}",
        pair("y", 0.03, 128)
    );
    assert_left_alone(&format!("const %last: i64[1] = [-1]\n{body}"));
}

/// What a session says of a Split whose sizes, or weights, are not what they should be: an error, never a panic.
#[track_caller]
fn assert_refused(body: &str) {
    let text = format!("graph \"g\" {{\ninput %x: f32[1, {TOKENS}, {WIDTH}]\n{}{body}}}", pair("x", 0.008, 126));
    let graph = text::parse_graph(&text, &Registry, 20).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let x = Tensor::new(vec![1, TOKENS, WIDTH], vec![0.25f32; TOKENS * WIDTH]).expect("the length fits");
    let run = |graph: Graph| Session::new(graph, Options { threads: 1, observe: BTreeSet::new() })?.run(&[x]);
    let error = run(graph).expect_err("sizes that do not add up can't be run").to_string();
    assert!(error.contains("Split") || error.contains("split"), "{error}");
}

#[test]
fn refuses_sizes_of_a_split_that_do_not_add_up() {
    for sizes in ["9223372036854775807, 9223372036854775807, 74", "24, -24, 72", "24, 24, 23"] {
        assert_refused(&format!(
            "{}const %sizes: i64[3] = [{sizes}]\n{PRODUCT}%q, %k, %v = Split(%z, %sizes) {{axis=2}}\noutput %q\noutput %k\noutput %v\n",
            constants()
        ));
    }
}

#[test]
fn refuses_parts_of_weights_without_columns() {
    assert_refused(&format!(
        "const %w_q: i8[{WIDTH}, 0] = []\n const %w_s: f32[] = [0.01]\n%w = DequantizeLinear(%w_q, %w_s)\n\
         const %sizes: i64[2] = [1, -1]\n%m = MatMul(%x_d, %w)\n%q, %k = Split(%m, %sizes) {{axis=2}}\noutput %q\noutput %k\n"
    ));
}
