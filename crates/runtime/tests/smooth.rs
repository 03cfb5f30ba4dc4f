//! Constants for each column before a rounding go into what makes the columns.

mod support;

use narrowbit_ir::{Graph, interp};
use support::{channels, codes, graph, list, samples, scalar, session};

const WIDTH: usize = 24;

/// Quantizes `value`, and dequantizes it again.
fn pair(value: &str, scale: f32, zero: i32) -> String {
    format!(
        "{}%{value}_q = QuantizeLinear(%{value}, %{value}_s, %{value}_z)\n\
         %{value}_d = DequantizeLinear(%{value}_q, %{value}_s, %{value}_z)\n",
        scalar(value, "i8", scale, zero)
    )
}

fn weights(name: &str, scales: &str) -> String {
    format!(
        "{}{scales}%{name}_d = DequantizeLinear(%{name}_q, %{name}_s, %{name}_z) {{axis=1}}\n",
        codes(&format!("{name}_q"), "i8", &[WIDTH, WIDTH], 3)
    )
}

fn row(name: &str, of: impl Fn(usize) -> f32) -> String {
    format!("const %{name}: f32[{WIDTH}] = {}\n", list(WIDTH, of))
}

/// Runs the graph: codes within a step of the interpreter's, in one of 100 elements; the operators that are left.
#[track_caller]
fn left(graph: &Graph) -> Vec<String> {
    let inputs = samples(graph);
    let session = session(graph, 1);
    let (got, want) = (session.run(&inputs).expect("it runs"), interp::run_tensors(graph, &inputs).expect("it runs"));
    let values = |t: &narrowbit_tensor::Tensor| t.to_i64s().expect("codes");
    let (got, want) = (values(&got[0]), values(&want[0]));
    let steps: Vec<u64> = got.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).collect();
    let off = steps.iter().filter(|&&d| d > 0).count();
    assert!(steps.iter().all(|&d| d <= 1) && off * 100 <= steps.len(), "{off} of {}", steps.len());
    let distinct: std::collections::BTreeSet<i64> = got.iter().copied().collect();
    assert!(distinct.len() > 8, "the test data exercises only {} codes", distinct.len());
    session.graph().nodes().map(|(_, n)| n.op.name().to_string()).collect()
}

fn normalized(extra: &str) -> Graph {
    let body = format!(
        "{}{}{}%n = LayerNormalization(%x, %g, %b)\n%y = Mul(%n, %f)\n{}{extra}",
        row("g", |i| 0.5 + 0.1 * i as f32),
        row("b", |i| 0.1 * (i % 5) as f32),
        row("f", |i| 1.0 / (0.5 + 0.1 * i as f32)),
        pair("y", 0.02, -3)
    );
    graph(&format!("input %x: f32[5, {WIDTH}]"), &body, "output %y_q")
}

#[test]
fn moves_a_factor_into_a_normalization() {
    assert!(!left(&normalized("")).contains(&"Mul".to_string()));
}

#[test]
fn leaves_a_factor_of_what_others_read_too() {
    let mut graph = normalized("%other = Relu(%n)\n");
    graph.add_output(graph.value_named("other").expect("it is there"));
    assert!(left(&graph).contains(&"Mul".to_string()));
}

/// Attention of three heads whose results are evened out before they are rounded, with values from a product of integers.
fn heads(scales: &str, rounds: &str, values: &str) -> Graph {
    let body = format!(
        "{}{}{}{}const %part: i64[4] = [1, 11, 3, 8]\nconst %join: i64[3] = [1, 11, {WIDTH}]\n\
         %m = MatMul(%x_d, %w_d)\n%a = Add(%c, %m)\n{rounds}%p = Reshape(%{values}, %part)\n%vt = Transpose(%p) {{perm=[0, 2, 1, 3]}}\n\
         %s = Softmax(%scores)\n%o = MatMul(%s, %vt)\n%t = Transpose(%o) {{perm=[0, 2, 1, 3]}}\n%r = Reshape(%t, %join)\n\
         %y = Mul(%r, %f)\n{}",
        pair("x", 0.008, 3),
        weights("w", scales),
        row("c", |i| 0.3 - 0.02 * i as f32),
        row("f", |i| 0.25 + 0.05 * (i % 9) as f32),
        pair("y", 0.002, -3)
    );
    let inputs = format!("input %x: f32[1, 11, {WIDTH}]\n input %scores: f32[1, 3, 11, 11]");
    graph(&inputs, &body, "output %y_q")
}

#[test]
fn moves_a_factor_of_heads_into_the_weights_of_their_values() {
    for scales in [channels("w", "i8", WIDTH, 0, 0), channels("w", "i8", WIDTH, -1, 3), scalar("w", "i8", 0.003, 0)] {
        let ops = left(&heads(&scales, "", "a"));
        assert!(!ops.contains(&"Mul".to_string()), "{ops:?}");
    }
}

#[test]
fn leaves_a_factor_of_heads_whose_values_are_rounded_or_whose_columns_share_a_zero_point() {
    let rounded = heads(&channels("w", "i8", WIDTH, 0, 0), &pair("a", 0.02, 1), "a_d");
    assert!(left(&rounded).contains(&"Mul".to_string()));
    assert!(left(&heads(&scalar("w", "i8", 0.003, 2), "", "a")).contains(&"Mul".to_string()));
}
