//! Attention whose scores are quantized between the operators, in the forms of other tools.

mod support;

use narrowbit_ir::{Graph, interp};
use narrowbit_tensor::DType;

use support::{assert_same_bits, assert_same_codes, graph, samples, scalar, session};

const INPUTS: &str = "input %q: u8[2, 37, 3, 8] input %k: u8[2, 50, 3, 8] input %v: u8[2, 50, 3, 5]";

/// Queries, keys and values with heads before rows.
const MOVED: &str = "%qt = Transpose(%q) {perm=[0, 2, 1, 3]} %kt = Transpose(%k) {perm=[0, 2, 3, 1]}\n\
                     %vt = Transpose(%v) {perm=[0, 2, 1, 3]}\n";

fn formats() -> String {
    [("q", 0.0211, 127), ("k", 0.0183, 120), ("v", 0.02, 131), ("a", 0.0713, 125), ("b", 0.0247, 123)]
        .into_iter()
        .chain([("m", 0.0391, 255), ("c", 0.0413, 213), ("p", 0.0039, 0), ("y", 0.0113, 126), ("d", 0.0113, 0)])
        .map(|(name, scale, zero)| scalar(name, "u8", scale, zero))
        .collect()
}

fn kernels(graph: &Graph) -> Vec<String> {
    let (_, profile) = session(graph, 1).profile(&samples(graph)).expect("it runs");
    profile.rows.iter().map(|r| r.kernel.clone()).collect()
}

/// The attention in QLinear operators: `between` leads from %a to %s, which has the format of `last`.
fn qlinear(mask: &str, between: &str, last: &str, axis: &str, outputs: &str) -> Graph {
    let body = format!(
        "{}const %d: u8[] = [30]\n{MOVED}\
         %a = QLinearMatMul(%qt, %q_s, %q_z, %kt, %k_s, %k_z, %a_s, %a_z)\n{between}\n\
         %p = com.microsoft.QLinearSoftmax(%s, %{last}_s, %{last}_z, %p_s, %p_z) {{{axis}}}\n\
         %o = QLinearMatMul(%p, %p_s, %p_z, %vt, %v_s, %v_z, %y_s, %y_z)\n\
         %y = Transpose(%o) {{perm=[0, 2, 1, 3]}}",
        formats()
    );
    graph(&format!("{INPUTS} {mask}"), &body, outputs)
}

#[test]
fn runs_attention_of_qlinear_operators_as_one_kernel_with_the_same_codes() {
    let scaled = "%b = com.microsoft.QLinearMul(%a, %a_s, %a_z, %d, %d_s, %d_z, %b_s, %b_z)\n";
    let add = |first: &str, second: &str| {
        let operand = |x: &str| format!("%{x}, %{x}_s, %{x}_z");
        format!("%s = com.microsoft.QLinearAdd({}, {}, %c_s, %c_z)", operand(first), operand(second))
    };
    let mask = |shape: &str| format!("input %m: u8[{shape}]");
    for (mask, between, last) in [
        (String::new(), "%s = Identity(%a)".to_string(), "a"),
        (String::new(), scaled.replace("%b =", "%s ="), "b"),
        (mask("2, 1, 1, 50"), add("a", "m"), "c"),
        (mask("1, 1, 37, 50"), format!("{scaled}{}", add("b", "m")), "c"),
        (mask("2, 3, 37, 50"), format!("{scaled}{}", add("m", "b")), "c"),
    ] {
        let graph = qlinear(&mask, &between, last, "opset=17, axis=3", "output %y");
        assert_same_codes(&graph, &["attention_i8"]);
        assert_eq!(kernels(&graph), ["attention_i8"], "{between}");
    }
}

#[test]
fn leaves_softmax_of_other_rows_and_codes_that_others_read_apart() {
    // Before opset 13 a row spans all axes from the second on.
    let spanning = qlinear("", "%s = Identity(%a)", "a", "opset=11", "output %y");
    assert_same_bits(&spanning, &["softmax_codes_i8"]);
    let scaled = "%s = com.microsoft.QLinearMul(%a, %a_s, %a_z, %d, %d_s, %d_z, %b_s, %b_z)";
    let read = qlinear("", scaled, "b", "opset=17, axis=3", "output %y\noutput %s");
    assert_same_codes(&read, &["panel_matmul_i8", "lookup_i8", "softmax_codes_i8"]);
}

/// The attention in QuantizeLinear and DequantizeLinear around every operator.
fn qdq(mask: Option<&str>, scaled: bool) -> Graph {
    let pair = |x: &str, from: &str, format: &str| {
        format!(
            "%{x}_c = QuantizeLinear(%{from}, %{format}_s, %{format}_z)\n\
             %{x} = DequantizeLinear(%{x}_c, %{format}_s, %{format}_z)\n"
        )
    };
    let source = |x: &str| format!("%{x}_f = DequantizeLinear(%{x}t, %{x}_s, %{x}_z)\n");
    let body = [
        formats(),
        "const %e: f32[] = [2.8284]\n".to_string(),
        MOVED.to_string(),
        ["q", "k", "v"].map(source).concat(),
        "%a0 = MatMul(%q_f, %k_f)\n".to_string(),
        pair("a1", "a0", "a"),
        if scaled { format!("%b0 = Div(%a1, %e)\n{}", pair("b1", "b0", "b")) } else { String::new() },
        match (mask, scaled) {
            (None, _) => String::new(),
            (Some(_), true) => format!("%c0 = Add(%b1, %m)\n{}", pair("c1", "c0", "c")),
            (Some(_), false) => format!("%c0 = Add(%m, %a1)\n{}", pair("c1", "c0", "c")),
        },
        format!(
            "%p0 = Softmax(%{}) {{axis=-1}}\n",
            if mask.is_some() {
                "c1"
            } else if scaled {
                "b1"
            } else {
                "a1"
            }
        ),
        pair("p1", "p0", "p"),
        "%o0 = MatMul(%p1, %v_f)\n%o = QuantizeLinear(%o0, %y_s, %y_z)\n".to_string(),
        "%y = Transpose(%o) {perm=[0, 2, 1, 3]}".to_string(),
    ]
    .concat();
    let mask = mask.map_or(String::new(), |shape| format!("input %m: f32[{shape}]"));
    graph(&format!("{INPUTS} {mask}"), &body, "output %y")
}

#[test]
fn runs_attention_with_quantized_scores_as_one_kernel() {
    for mask in [None, Some("2, 1, 1, 50"), Some("1, 1, 37, 50"), Some("2, 3, 37, 50")] {
        for scaled in [false, true] {
            let graph = qdq(mask, scaled);
            assert_eq!(kernels(&graph), ["attention_i8"], "{mask:?} {scaled}");
            let inputs = samples(&graph);
            let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
            assert_eq!(want[0].dtype(), DType::U8);
            for threads in [1, 3] {
                let got = session(&graph, threads).run(&inputs).expect("it runs");
                let steps = got[0].bytes().iter().zip(want[0].bytes()).map(|(a, b)| a.abs_diff(*b));
                // A score or weight on a border between two codes may fall on either side.
                let (most, off) = steps.fold((0, 0), |(most, off), d| (d.max(most), off + usize::from(d > 0)));
                assert!(most <= 1 && off * 100 <= want[0].len(), "{mask:?} {scaled}: {off}, up to {most}");
            }
        }
    }
}
