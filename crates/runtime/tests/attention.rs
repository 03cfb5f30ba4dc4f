//! Attention as exporters and other tools write it runs as one kernel, with the results of its operators.

mod support;

use narrowbit_ir::{Graph, interp};
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::{DType, Tensor};
use support::{graph, samples, scalar, session};

const INPUTS: &str = "input %q: f32[2, 19, 4, 16]\n input %k: f32[2, 33, 4, 16]\n input %v: f32[2, 33, 4, 24]\n";
const HEADS: &str = "%qt = Transpose(%q) {perm=[0, 2, 1, 3]}\n%kt = Transpose(%k) {perm=[0, 2, 3, 1]}\n\
                     %vt = Transpose(%v) {perm=[0, 2, 1, 3]}\n";
const TAIL: &str = "%y = Transpose(%o) {perm=[0, 2, 1, 3]}\n";
const GUARD: &str = "const %none: f32[] = [0]\n%nan = IsNaN(%w)\n%g = Where(%nan, %none, %w)\n";

/// Quantizes `value`, and dequantizes it again.
fn pair(value: &str, scale: f32, zero: i32) -> String {
    format!(
        "{}%{value}_q = QuantizeLinear(%{value}, %{value}_s, %{value}_z)\n\
         %{value}_d = DequantizeLinear(%{value}_q, %{value}_s, %{value}_z)\n",
        scalar(value, "u8", scale, zero)
    )
}

fn kernels(graph: &Graph, inputs: &[Tensor]) -> Vec<String> {
    let (_, profile) = session(graph, 1).profile(inputs).expect("it runs");
    profile.rows.iter().map(|r| r.kernel.clone()).collect()
}

/// Runs the graph as a step of this kernel and others that are named, and gives the results of both executors.
#[track_caller]
fn run(graph: &Graph, inputs: &[Tensor], expected: &[&str]) -> (Vec<f32>, Vec<f32>) {
    let ran = kernels(graph, inputs);
    assert_eq!(ran, expected);
    let floats = |t: &Tensor| t.to_f32s().expect("numbers").into_owned();
    let got = session(graph, 1).run(inputs).expect("it runs");
    for threads in [2, 3] {
        let again = session(graph, threads).run(inputs).expect("it runs");
        assert_eq!(again[0].bytes(), got[0].bytes(), "{threads} threads");
    }
    let want = interp::run_tensors(graph, inputs).expect("it runs on the interpreter");
    assert_eq!((got[0].dtype(), got[0].shape()), (want[0].dtype(), want[0].shape()));
    (floats(&got[0]), floats(&want[0]))
}

/// As [`run`]; floats within their rounding.
#[track_caller]
fn assert_floats(graph: &Graph, inputs: &[Tensor], expected: &[&str]) {
    let (got, want) = run(graph, inputs, expected);
    // Sums of up to 33 products in another order, of numbers up to 1.
    let most = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(most < 1e-5, "{most}");
}

/// As [`run`]; codes within a step in one of 200.
#[track_caller]
fn assert_codes(graph: &Graph, inputs: &[Tensor], expected: &[&str]) {
    let (got, want) = run(graph, inputs, expected);
    let steps: Vec<f32> = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).collect();
    let off = steps.iter().filter(|&&d| d > 0.0).count();
    assert!(steps.iter().all(|&d| d <= 1.0) && off * 200 <= steps.len(), "{off} of {}", steps.len());
    let distinct: std::collections::BTreeSet<i32> = got.iter().map(|&v| v as i32).collect();
    assert!(distinct.len() > 8, "the test data exercises only {} codes", distinct.len());
}

/// A mask of [2, 1, 19, 33] that hides some keys, and all of them from three rows.
fn hiding() -> Tensor {
    let hidden = |i: usize| i.is_multiple_of(7) || matches!(i / 33, 3 | 20 | 37);
    let values = (0..2 * 19 * 33).map(|i| if hidden(i) { f32::NEG_INFINITY } else { (i % 5) as f32 * 0.1 });
    Tensor::new([2, 1, 19, 33], values.collect::<Vec<f32>>()).expect("the length fits")
}

const MASK: &str = "input %mask: f32[2, 1, 19, 33]\n";

#[test]
fn makes_zeros_of_rows_that_see_no_key_where_the_softmax_is_guarded() {
    let body = format!(
        "{HEADS}%p = MatMul(%qt, %kt)\n%m = Add(%p, %mask)\n%w = Softmax(%m)\n{GUARD}%o = MatMul(%g, %vt)\n{TAIL}"
    );
    let graph = graph(&format!("{INPUTS}{MASK}"), &body, "output %y");
    let mut inputs = samples(&graph);
    inputs[3] = hiding();
    assert_floats(&graph, &inputs, &["attention_f32"]);
    // Who observes the weights sees them as values are multiplied by them.
    let observe = [graph.value_named("g").expect("it is there")].into();
    let observed = Session::new(graph.clone(), Options { threads: 1, observe }).expect("a valid graph");
    let (out, profile) = observed.profile(&inputs).expect("it runs");
    assert!(profile.rows.iter().any(|r| r.kernel == "attention_f32"));
    assert_eq!(out[0].bytes(), session(&graph, 1).run(&inputs).expect("it runs")[0].bytes());
    let zeros = out[0].to_f32s().expect("floats")[3 * 4 * 24..4 * 4 * 24].iter().all(|&x| x == 0.0);
    assert!(zeros, "row 3 sees no key");
}

#[test]
fn guards_attention_on_integers() {
    let body = format!(
        "{HEADS}{}{}{}%p = MatMul(%qt_d, %kt_d)\n%m = Add(%p, %mask)\n%w = Softmax(%m)\n{GUARD}{}%o = MatMul(%g_d, %vt_d)\n{TAIL}{}",
        pair("qt", 0.008, 120),
        pair("kt", 0.009, 131),
        pair("vt", 0.0085, 126),
        pair("g", 1.0 / 255.0, 0),
        pair("y", 0.005, 128),
    );
    let graph = graph(&format!("{INPUTS}{MASK}"), &body, "output %y_q");
    let mut inputs = samples(&graph);
    inputs[3] = hiding();
    assert_codes(&graph, &inputs, &["quantize_linear", "quantize_linear", "quantize_linear", "attention_i8"]);
}

#[test]
fn multiplies_scores_on_integers_where_values_are_floats() {
    let body = |tail: &str| {
        format!(
            "{HEADS}{}{}const %f: f32[] = [0.3]\n%p = MatMul(%qt_d, %kt_d)\n%s = Mul(%p, %f)\n%m = Add(%s, %mask)\n\
             %w = Softmax(%m)\n%o = MatMul(%w, %vt)\n{TAIL}{tail}",
            pair("qt", 0.008, 120),
            pair("kt", 0.009, 131),
        )
    };
    let steps = ["quantize_linear", "quantize_linear", "attention_i8_f32"];
    let floats = graph(&format!("{INPUTS}{MASK}"), &body(""), "output %y");
    let inputs = samples(&floats);
    assert_floats(&floats, &inputs, &steps);
    let rounded = graph(&format!("{INPUTS}{MASK}"), &body(&pair("y", 0.005, 128)), "output %y_q");
    assert_codes(&rounded, &inputs, &steps);
}

#[test]
fn shares_heads_of_keys_among_queries() {
    let inputs = "input %q: f32[2, 19, 6, 16]\n input %k: f32[2, 33, 2, 16]\n input %v: f32[2, 33, 2, 24]\n";
    let heads = "%qt = Transpose(%q) {perm=[0, 2, 1, 3]}\n%kh = Transpose(%k) {perm=[0, 2, 1, 3]}\n\
                 %vh = Transpose(%v) {perm=[0, 2, 1, 3]}\nconst %two: i64[1] = [2]\n%ku = Unsqueeze(%kh, %two)\n\
                 %vu = Unsqueeze(%vh, %two)\nconst %ks: i64[5] = [2, 2, 3, 33, 16]\nconst %vs: i64[5] = [2, 2, 3, 33, 24]\n\
                 %ke = Expand(%ku, %ks)\n%ve = Expand(%vu, %vs)\n";
    let repeated = "const %kj: i64[4] = [2, 6, 33, 16]\nconst %vj: i64[4] = [2, 6, 33, 24]\n%kr = Reshape(%ke, %kj)\n\
                    %vr = Reshape(%ve, %vj)\n";
    let tail = "%w = Softmax(%p)\n%o = MatMul(%w, %vr)\n%y = Transpose(%o) {perm=[0, 2, 1, 3]}\n";
    let plain = format!("{heads}{repeated}%kt = Transpose(%kr) {{perm=[0, 1, 3, 2]}}\n%p = MatMul(%qt, %kt)\n{tail}");
    let graph_of = |body: &str, out: &str| graph(inputs, body, &format!("output %{out}"));
    let floats = graph_of(&plain, "y");
    assert_floats(&floats, &samples(&floats), &["attention_f32"]);
    // As PyTorch's newer exporter writes it: transposed as a stack of matrices.
    let stacked = format!(
        "{heads}{repeated}const %stack: i64[3] = [12, 33, 16]\nconst %apart: i64[4] = [2, 6, 16, 33]\n\
         %kst = Reshape(%ke, %stack)\n%ktt = Transpose(%kst) {{perm=[0, 2, 1]}}\n%kt = Reshape(%ktt, %apart)\n\
         %p = MatMul(%qt, %kt)\n{tail}"
    );
    let floats = graph_of(&stacked, "y");
    assert_floats(&floats, &samples(&floats), &["attention_f32"]);
    let ints = format!(
        "{heads}{repeated}{}{}{}%kt = Transpose(%kr_d) {{perm=[0, 1, 3, 2]}}\n%p = MatMul(%qt_d, %kt)\n%w = Softmax(%p)\n{}\
         %o = MatMul(%w_d, %vr_d)\n%y = Transpose(%o) {{perm=[0, 2, 1, 3]}}\n{}",
        pair("qt", 0.008, 120),
        pair("kr", 0.009, 131),
        pair("vr", 0.0085, 126),
        pair("w", 1.0 / 255.0, 0),
        pair("y", 0.005, 128),
    );
    let ints = graph_of(&ints, "y_q");
    let ran = kernels(&ints, &samples(&ints));
    assert!(ran.iter().any(|k| k == "attention_i8"), "{ran:?}");
    assert_codes(&ints, &samples(&ints), &ran.iter().map(String::as_str).collect::<Vec<_>>());
    // One head of keys for all queries, which MatMul repeats by itself.
    let one = "input %a: f32[2, 6, 19, 16]\n input %b: f32[2, 1, 16, 33]\n input %c: f32[2, 1, 33, 24]\n";
    let one = graph(one, "%p = MatMul(%a, %b)\n%w = Softmax(%p)\n%y = MatMul(%w, %c)", "output %y");
    assert_floats(&one, &samples(&one), &["attention_f32"]);
}

#[test]
fn adds_two_masks_as_one() {
    let body = format!(
        "{HEADS}const %bias: f32[1, 4, 19, 33] = random(5)\n%p = MatMul(%qt, %kt)\n%a = Add(%p, %bias)\n%m = Add(%mask, %a)\n\
         %w = Softmax(%m)\n%o = MatMul(%w, %vt)\n{TAIL}"
    );
    let graph = graph(&format!("{INPUTS}{MASK}"), &body, "output %y");
    assert_floats(&graph, &samples(&graph), &["binary_f32", "attention_f32"]);
}

#[test]
fn gives_masks_of_windows_the_shape_of_the_scores() {
    // Cosine attention of shifted windows: a factor for each head, a bias for all windows, a mask for each.
    let inputs = "input %q: f32[6, 3, 16, 8]\n input %kt: f32[6, 3, 8, 16]\n input %v: f32[6, 3, 16, 8]\n";
    let body = "const %f: f32[3, 1, 1] = [3, 4, 5]\nconst %bias: f32[1, 3, 16, 16] = random(5)\n\
                const %mask: f32[1, 6, 1, 16, 16] = random(6)\nconst %wide: i64[5] = [1, 6, 3, 16, 16]\n\
                const %back: i64[4] = [-1, 3, 16, 16]\n%p = MatMul(%q, %kt)\n%s = Mul(%p, %f)\n%a = Add(%s, %bias)\n\
                %r = Reshape(%a, %wide)\n%m = Add(%r, %mask)\n%z = Reshape(%m, %back)\n%w = Softmax(%z)\n%y = MatMul(%w, %v)";
    let graph = graph(inputs, body, "output %y");
    assert_floats(&graph, &samples(&graph), &["binary_f32", "attention_f32"]);
}

#[test]
fn leaves_attention_apart_that_no_kernel_reads() {
    // Columns of the queries are not contiguous, nor are those of the result: both are moved, and the attention is one.
    let inputs = "input %q: f32[1, 4, 16, 19]\n input %kt: f32[1, 4, 16, 33]\n input %v: f32[1, 4, 33, 24]\n";
    let body = "%qt = Transpose(%q) {perm=[0, 1, 3, 2]}\n%p = MatMul(%qt, %kt)\n%w = Softmax(%p)\n%o = MatMul(%w, %v)\n\
                %y = Transpose(%o) {perm=[0, 3, 1, 2]}";
    let graph = graph(inputs, body, "output %y");
    assert_floats(&graph, &samples(&graph), &["transpose", "attention_f32", "change_layout"]);
}

#[test]
fn keeps_a_guard_with_another_value() {
    let other = GUARD.replace("[0]", "[0.5]");
    let body = format!(
        "{HEADS}%p = MatMul(%qt, %kt)\n%m = Add(%p, %mask)\n%w = Softmax(%m)\n{other}%o = MatMul(%g, %vt)\n{TAIL}"
    );
    let graph = graph(&format!("{INPUTS}{MASK}"), &body, "output %y");
    let mut inputs = samples(&graph);
    inputs[3] = hiding();
    let ran = kernels(&graph, &inputs);
    assert!(!ran.iter().any(|k| k.starts_with("attention")) && ran.iter().any(|k| k == "select"), "{ran:?}");
    let (got, want) = run(&graph, &inputs, &ran.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-4), "rows of 33 halves");
    assert_eq!(inputs[3].dtype(), DType::F32);
}
