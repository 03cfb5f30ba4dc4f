//! QLinear operators and scaled products of integers run on the kernels of QuantizeLinear / DequantizeLinear graphs,
//! and give what the operators themselves say.

mod support;

use narrowbit_ir::Graph;
use narrowbit_ir::interp;

use support::{
    Random, assert_same_bits, assert_same_codes, channels, codes, graph, list, run, samples, scalar, session,
};

/// The operators' own results but for one step in at most one of 200 codes, where kernels multiply or add up floats in
/// another order.
#[track_caller]
fn assert_near_codes(graph: &Graph, expected: &[&str]) {
    let (got, want) = run(graph, expected);
    let steps = got.bytes().iter().zip(want.bytes()).map(|(&a, &b)| a.abs_diff(b)).map(|d| d.min(255 - d));
    let (most, off) = steps.fold((0, 0), |(most, off), d| (d.max(most), off + usize::from(d > 0)));
    assert!(most <= 1 && off * 200 <= got.len(), "{off} of {} differ, by up to {most}", got.len());
    let distinct: std::collections::BTreeSet<u8> = got.bytes().iter().copied().collect();
    assert!(distinct.len() > 8, "the test data exercises only {} codes", distinct.len());
}

const GEMM: &str = "panel_u8i8i32";

/// `quantize_dynamic`'s product of `%x` and constant `%w`: `%{y}`.
fn dynamic_product(op: &str, attrs: &str, y: &str) -> String {
    format!(
        "%x_q, %x_s, %x_z = DynamicQuantizeLinear(%x)\n%{y}_i = {op}(%x_q, %w, %x_z, %w_z) {attrs}\n\
         %{y}_f = Cast(%{y}_i) {{to=1}}\n%{y}_s = Mul(%x_s, %w_s)\n%{y} = Mul(%{y}_f, %{y}_s)\n"
    )
}

#[test]
fn runs_dynamic_products_with_the_same_bits() {
    for (dtype, middle, spread) in [("i8", 0, 0), ("u8", 128, 0), ("u8", 125, 7), ("i8", -2, 5)] {
        for per_channel in [true, false] {
            let params = match per_channel {
                true => channels("w", dtype, 33, middle, spread),
                false => scalar("w", dtype, 0.004, middle),
            };
            let bias = list(33, |i| i as f32 * 0.1 - 1.0);
            let body = format!(
                "{}{params}{}const %b: f32[33] = {bias}\n%s = Add(%b, %p)\n%y = Relu(%s)",
                codes("w", dtype, &[50, 33], 3),
                dynamic_product("MatMulInteger", "", "p"),
            );
            let graph = graph("input %x: f32[2, 9, 50]", &body, "output %y");
            assert_same_bits(&graph, &[GEMM, "dynamic_quantize_u8"]);
        }
    }
}

#[test]
fn runs_dynamic_convolutions_with_the_same_bits() {
    for (weights, attrs) in [([20, 6, 3, 3], ""), ([12, 1, 3, 3], ", group=12"), ([8, 3, 1, 2], ", group=2")] {
        let channels_in = weights[1] * if attrs.is_empty() { 1 } else { attrs[8..].parse().unwrap_or(1) };
        let n = weights[0];
        let body = format!(
            "{}{}{}const %b: f32[1, {n}, 1, 1] = {}\n%s = Add(%p, %b)\n%y = Relu(%s)",
            codes("w", "i8", &weights, 5),
            scalar("w", "i8", 0.004, 0),
            dynamic_product("ConvInteger", &format!("{{pads=[1, 1, 1, 1], strides=[2, 1]{attrs}}}"), "p"),
            list(n, |i| i as f32 * 0.1 - 1.0),
        );
        let graph = graph(&format!("input %x: f32[2, {channels_in}, 13, 11]"), &body, "output %y");
        assert_same_bits(&graph, &["dynamic_quantize_u8"]);
    }
}

#[test]
fn runs_dynamic_products_of_activations_with_the_same_bits() {
    let body = "%a_q, %a_s, %a_z = DynamicQuantizeLinear(%a)\n%b_q, %b_s, %b_z = DynamicQuantizeLinear(%b)\n\
                %i = MatMulInteger(%a_q, %b_q, %a_z, %b_z)\n%f = Cast(%i) {to=1}\n%s = Mul(%a_s, %b_s)\n\
                %y = Mul(%f, %s)";
    let graph = graph("input %a: f32[3, 17, 20]\n input %b: f32[3, 20, 33]", body, "output %y");
    assert_same_bits(&graph, &["panel_matmul_i8", "dynamic_quantize_u8"]);
}

#[test]
fn runs_attention_with_formats_made_at_run_time_as_one_kernel() {
    // As `quantize_dynamic` writes it, and behind movements and a factor, which then go behind the quantization.
    let quantize = |x: &str, perm: &str, late: bool| {
        if late {
            format!(
                "%{x}p = Transpose(%{x}) {{perm={perm}}}\n%{x}f = Mul(%{x}p, %f)\n%{x}t, %{x}s, %{x}z = DynamicQuantizeLinear(%{x}f)\n"
            )
        } else {
            format!("%{x}c, %{x}s, %{x}z = DynamicQuantizeLinear(%{x})\n%{x}t = Transpose(%{x}c) {{perm={perm}}}\n")
        }
    };
    let body = |greatest: &str, none: &str, late: bool| {
        format!(
            "const %f: f32[] = [0.7]\n{}{}{}const %step: f32[] = [0.003921569]\n const %zero: u8[] = [0]\n const %axes: i64[1] = [-1]\n
             const %d: f32[] = [0.3]\n
             %qk = Mul(%qs, %ks) %vw = Mul(%vs, %step)
             %a = MatMulInteger(%qt, %kt, %qz, %kz) %af = Cast(%a) {{to=1}} %ax = Mul(%af, %qk)
             %b = Mul(%ax, %d) %c = Add(%b, %m) %p = Softmax(%c)
             %g = ReduceMax(%p, %axes) %r = Div(%p, %g) %pc = QuantizeLinear(%r, %step, %zero)
             %e = MatMulInteger(%pc, %vt{none}, %vz) %ef = Cast(%e) {{to=1}} %ex = Mul(%ef, %vw)
             %y = Mul(%ex, {greatest}) %o = Transpose(%y) {{perm=[0, 2, 1, 3]}}",
            quantize("q", "[0, 2, 1, 3]", late),
            quantize("k", "[0, 2, 3, 1]", late),
            quantize("v", "[0, 2, 1, 3]", late),
        )
    };
    let inputs =
        "input %q: f32[2, 7, 3, 8] input %k: f32[2, 50, 3, 8] input %v: f32[2, 50, 3, 5] input %m: f32[2, 1, 1, 50]";
    for (none, late) in [(", %zero", false), (", _", false), (", _", true)] {
        let fused = graph(inputs, &body("%g", none, late), "output %o");
        let samples = samples(&fused);
        let want = interp::run_tensors(&fused, &samples).expect("the interpreter runs it");
        let want = want[0].to_f32s().expect("floats");
        let most = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        for threads in [1, 3] {
            let (got, profile) = session(&fused, threads).profile(&samples).expect("it runs");
            let kernels: Vec<&str> = profile.rows.iter().map(|r| r.kernel.as_str()).collect();
            assert_eq!(kernels.iter().filter(|k| **k == "attention_i8").count(), 1, "{kernels:?}");
            assert!(!kernels.iter().any(|k| k.starts_with("softmax") || *k == "transpose"), "{kernels:?}");
            for (g, w) in got[0].to_f32s().expect("floats").iter().zip(want.iter()) {
                // A weight on a border may be a code away: it is not rounded before it is divided by the greatest one.
                assert!((g - w).abs() <= 5e-3 * most, "{g} {w} of {most}");
            }
        }
    }
    // Scaled by something else, the rows are not those of the softmax.
    let apart = graph(inputs, &body("%d", ", %zero", false), "output %o");
    let samples = samples(&apart);
    let (_, profile) = session(&apart, 1).profile(&samples).expect("it runs");
    assert!(!profile.rows.iter().any(|r| r.kernel == "attention_i8"), "{:?}", profile.rows);
}

#[test]
fn runs_products_that_scale_themselves_with_the_same_bits() {
    let body = format!(
        "{}{}const %b: f32[30] = {}\n%p = com.microsoft.DynamicQuantizeMatMul(%x, %w, %w_s, %w_z, %b)\n\
         %q = com.microsoft.DynamicQuantizeMatMul(%x, %w, %w_s)\n%h = Mul(%p, %q)\n\
         %h_q, %h_s, %h_z = DynamicQuantizeLinear(%h)\n{}{}\
         %y = com.microsoft.MatMulIntegerToFloat(%h_q, %v, %h_s, %v_s, %h_z, %v_z)",
        codes("w", "i8", &[50, 30], 3),
        channels("w", "i8", 30, -1, 3),
        list(30, |i| i as f32 * 0.1),
        codes("v", "u8", &[30, 20], 4),
        channels("v", "u8", 20, 127, 3),
    );
    let graph = graph("input %x: f32[2, 9, 50]", &body, "output %y");
    assert_same_bits(&graph, &[GEMM, "dynamic_quantize_u8"]);
    let session = session(&graph, 1);
    let ranges = session.graph().nodes().filter(|(_, n)| n.op.name() == "DynamicQuantizeLinear").count();
    assert_eq!(ranges, 2, "both products of %x share one");
}

#[test]
fn keeps_integer_products_of_other_forms() {
    let weights = format!("{}{}", codes("w", "i8", &[20, 30], 3), channels("w", "i8", 30, 0, 0));
    let ranges = "%x_q, %x_s, %x_z = DynamicQuantizeLinear(%x)\n";
    let sums = format!("{weights}{ranges}%y = MatMulInteger(%x_q, %w, %x_z, %w_z)");
    let rows = format!(
        "{weights}{ranges}const %z: u8[9] = {}\n%i = MatMulInteger(%x_q, %w, %z, %w_z)\n%f = Cast(%i) {{to=1}}\n\
         %s = Mul(%x_s, %w_s)\n%y = Mul(%f, %s)",
        list(9, |i| i)
    );
    // A factor per row, not per column.
    let factor = format!(
        "{weights}{ranges}const %v: f32[9, 1] = {}\n%i = MatMulInteger(%x_q, %w, %x_z, %w_z)\n%f = Cast(%i) {{to=1}}\n\
         %s = Mul(%x_s, %v)\n%y = Mul(%f, %s)",
        list(9, |i| i)
    );
    for body in [sums, rows, factor] {
        assert_same_bits(&graph("input %x: f32[9, 20]", &body, "output %y"), &[]);
    }
}

#[test]
fn runs_qlinear_convolutions_on_integers() {
    for (shape, attrs, x, w, y) in [
        ([20, 6, 3, 3], "", "u8", "i8", "u8"),
        ([16, 1, 3, 3], ", group=16", "i8", "i8", "i8"),
        ([9, 5, 1, 1], "", "u8", "u8", "u8"),
        ([8, 4, 5, 3], ", group=2", "i8", "u8", "u8"),
    ] {
        let input = shape[1] * if attrs.is_empty() { 1 } else { attrs[8..].parse().unwrap_or(1) };
        let n = shape[0];
        let middle = if w == "u8" { 126 } else { 0 };
        let body = format!(
            "{}{}{}{}const %b: i32[{n}] = {}\n\
             %y = QLinearConv(%x, %x_s, %x_z, %w, %w_s, %w_z, %y_s, %y_z, %b) {{pads=[1, 1, 1, 1]{attrs}}}",
            scalar("x", x, 0.008, 20),
            codes("w", w, &shape, 5),
            channels("w", w, n, middle, if w == "u8" { 4 } else { 0 }),
            scalar("y", y, 0.15, 11),
            list(n, |i| i as i32 * 777 - 3000),
        );
        let graph = graph(&format!("input %x: {x}[2, {input}, 9, 7]"), &body, "output %y");
        assert_same_codes(&graph, &[if n == 16 { "depthwise_nhwc_i8" } else { GEMM }]);
    }
}

#[test]
fn runs_qlinear_convolutions_with_channels_last_on_integers() {
    let body = format!(
        "{}{}{}{}%y = com.microsoft.QLinearConv(%x, %x_s, %x_z, %w, %w_s, %w_z, %y_s, %y_z) {{channels_last=1}}",
        scalar("x", "u8", 0.008, 20),
        codes("w", "i8", &[12, 6, 3, 3], 5),
        channels("w", "i8", 12, 0, 0),
        scalar("y", "u8", 0.1, 111),
    );
    assert_same_codes(&graph("input %x: u8[2, 9, 7, 6]", &body, "output %y"), &[GEMM]);
}

#[test]
fn runs_qlinear_products_on_integers() {
    let weights = format!("{}{}", codes("w", "i8", &[50, 30], 3), channels("w", "i8", 30, 0, 0));
    let formats = format!("{}{}", scalar("x", "u8", 0.01, 120), scalar("y", "u8", 0.2, 130));
    let body = format!("{weights}{formats}%y = QLinearMatMul(%x, %x_s, %x_z, %w, %w_s, %w_z, %y_s, %y_z)");
    assert_same_codes(&graph("input %x: u8[2, 9, 50]", &body, "output %y"), &[GEMM]);
    let body = format!(
        "{}{}%y = QLinearMatMul(%x, %x_s, %x_z, %b, %b_s, %b_z, %y_s, %y_z)",
        formats,
        scalar("b", "u8", 0.007, 127),
    );
    let two = graph("input %x: u8[3, 9, 50]\n input %b: u8[3, 50, 17]", &body, "output %y");
    assert_same_codes(&two, &["panel_matmul_i8"]);
    let body = format!(
        "{}{}{formats}const %c: i32[1, 30] = {}\n\
         %y = com.microsoft.QGemm(%x, %x_s, %x_z, %w, %w_s, %w_z, %c, %y_s, %y_z) {{transB=1, alpha=0.5}}",
        codes("w", "u8", &[30, 50], 3),
        channels("w", "u8", 30, 127, 3),
        list(30, |i| i as i32 * 500 - 7000),
    );
    assert_same_codes(&graph("input %x: u8[9, 50]", &body, "output %y"), &[GEMM]);
}

#[test]
fn runs_a_qgemm_with_floats_behind_it_with_the_same_bits() {
    let body = format!(
        "{}{}{}const %c: i32[30] = {}\n%y = com.microsoft.QGemm(%x, %x_s, %x_z, %w, %w_s, %w_z, %c)",
        codes("w", "i8", &[50, 30], 3),
        scalar("w", "i8", 0.25, 0),
        scalar("x", "u8", 0.5, 120),
        list(30, |i| i as i32 * 500 - 7000),
    );
    assert_same_bits(&graph("input %x: u8[9, 50]", &body, "output %y"), &[GEMM]);
}

#[test]
fn runs_qlinear_arithmetic_with_the_same_codes() {
    let row = codes("b", "u8", &[1, 30], 9);
    let one = codes("b", "u8", &[1], 9);
    let inputs = |a: &str, b: &str| format!("input %a: u8[{a}]\n input %b: u8[{b}]");
    let both = inputs("9, 30", "9, 30");
    let (mask, images) = (inputs("2, 3, 9, 30", "2, 1, 9, 30"), inputs("2, 3, 9, 30", "1, 3, 1, 1"));
    let (rows, first) = (inputs("2, 3, 9, 30", "2, 1, 9, 1"), inputs("2, 9, 30", "9, 30"));
    let constant = "input %a: u8[2, 9, 30]".to_string();
    for (op, inputs, b) in [
        ("Add", &both, ""),
        ("Mul", &both, ""),
        ("Add", &mask, ""),
        ("Mul", &images, ""),
        ("Add", &rows, ""),
        ("Add", &first, ""),
        ("Add", &constant, row.as_str()),
        ("Mul", &constant, one.as_str()),
    ] {
        // A step of half a code makes every other sum a tie, which the zero point is part of.
        for (a_scale, y_zero) in [(0.0103, 60), (0.00955, 61)] {
            let formats = format!(
                "{}{}{}",
                scalar("a", "u8", a_scale, 120),
                scalar("b", "u8", 0.0137, 3),
                scalar("y", "u8", 0.0191, y_zero)
            );
            for (x, z) in [("a", "b"), ("b", "a")] {
                let body = format!(
                    "{formats}{b}%y = com.microsoft.QLinear{op}(%{x}, %{x}_s, %{x}_z, %{z}, %{z}_s, %{z}_z, %y_s, %y_z)"
                );
                let kernel = if b == one { "lookup_i8" } else { "qlinear_binary_i8" };
                assert_same_codes(&graph(inputs, &body, "output %y"), &[kernel]);
            }
        }
    }
}

#[test]
fn runs_qlinear_functions_and_pools_with_the_same_codes() {
    let formats = |scale: f32, zero: i32| format!("{}{}", scalar("x", "i8", 0.0307, 5), scalar("y", "i8", scale, zero));
    let call = |op: &str, attrs: &str| format!("%y = com.microsoft.{op}(%x, %x_s, %x_z, %y_s, %y_z) {attrs}");
    for (op, attrs, scale, zero, kernel) in [
        ("QLinearSigmoid", "", 0.004, -128, "lookup_i8"),
        ("QLinearLeakyRelu", "{alpha=0.1}", 0.0291, -60, "lookup_i8"),
        ("QLinearGlobalAveragePool", "", 0.00397, 1, "average_pool"),
        ("QLinearGlobalAveragePool", "{channels_last=1}", 0.00397, 1, "average_pool"),
        ("QLinearSoftmax", "{opset=13}", 0.00390625, -128, "softmax_codes"),
        ("QLinearSoftmax", "{opset=13, axis=3}", 0.00391, -120, "softmax_codes"),
        ("QLinearSoftmax", "{opset=11, axis=2}", 0.0003, -128, "softmax_codes"),
    ] {
        let body = format!("{}{}", formats(scale, zero), call(op, attrs));
        assert_same_codes(&graph("input %x: i8[3, 20, 6, 8]", &body, "output %y"), &[kernel]);
    }
    let attrs = "{kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]}";
    let body = format!("{}{}", formats(0.0193, 1), call("QLinearAveragePool", attrs));
    assert_near_codes(&graph("input %x: i8[3, 20, 6, 8]", &body, "output %y"), &["average_pool"]);
    // Rows across memory have no kernel.
    let body = format!("{}{}", formats(0.004, -128), call("QLinearSoftmax", "{opset=13, axis=1}"));
    assert_same_codes(&graph("input %x: i8[3, 20, 6, 8]", &body, "output %y"), &[]);
}

#[test]
fn adds_the_codes_of_a_product_while_they_are_at_hand() {
    for (first, second, kernel) in
        [("c", "x", GEMM), ("x", "c", GEMM), ("d", "x", "depthwise"), ("x", "d", "depthwise")]
    {
        let body = format!(
            "{}{}{}{}{}{}{}{}\
             %c = QLinearConv(%x, %x_s, %x_z, %w, %w_s, %w_z, %c_s, %c_z) {{pads=[1, 1, 1, 1]}}\n\
             %d = QLinearConv(%x, %x_s, %x_z, %v, %v_s, %v_z, %d_s, %d_z) {{pads=[1, 1, 1, 1], group=40}}\n\
             %y = com.microsoft.QLinearAdd(%{first}, %{first}_s, %{first}_z, %{second}, %{second}_s, %{second}_z, %y_s, %y_z)",
            codes("w", "i8", &[40, 40, 3, 3], 5),
            channels("w", "i8", 40, 0, 0),
            codes("v", "i8", &[40, 1, 3, 3], 6),
            channels("v", "i8", 40, 0, 0),
            scalar("x", "u8", 0.0203, 127),
            scalar("c", "u8", 0.2937, 121),
            scalar("d", "u8", 0.0341, 125),
            scalar("y", "u8", 0.1071, 117),
        );
        let graph = graph("input %x: u8[4, 40, 8, 6]", &body, "output %y");
        assert_same_codes(&graph, &[kernel]);
        let (_, profile) = session(&graph, 1).profile(&samples(&graph)).expect("it runs");
        assert!(!profile.rows.iter().any(|r| r.kernel.starts_with("qlinear")), "{:?}", profile.rows);
    }
}

#[test]
fn adds_quantized_biases_while_the_product_is_at_hand() {
    for (first, second) in [("b", "p"), ("p", "b")] {
        let body = format!(
            "{}{}{}{}{}{}%p = QLinearMatMul(%x, %x_s, %x_z, %w, %w_s, %w_z, %p_s, %p_z)\n\
             %y = com.microsoft.QLinearAdd(%{first}, %{first}_s, %{first}_z, %{second}, %{second}_s, %{second}_z, %y_s, %y_z)",
            codes("w", "i8", &[50, 30], 3),
            channels("w", "i8", 30, 0, 0),
            scalar("x", "u8", 0.01, 120),
            scalar("p", "u8", 0.2, 127),
            codes("b", "u8", &[30], 4),
            format_args!("{}{}", scalar("b", "u8", 0.1, 121), scalar("y", "u8", 0.2, 125)),
        );
        let graph = graph("input %x: u8[2, 9, 50]", &body, "output %y");
        assert_same_codes(&graph, &[GEMM]);
        let (_, profile) = session(&graph, 1).profile(&samples(&graph)).expect("it runs");
        assert_eq!(profile.rows.len(), 1, "{:?}", profile.rows);
    }
    let body = format!(
        "{}{}{}{}{}%xf = DequantizeLinear(%x, %x_s, %x_z)\n%wf = DequantizeLinear(%w, %w_s, %w_z) {{axis=1}}\n\
         %bf = DequantizeLinear(%b, %b_s, %b_z)\n%p0 = MatMul(%xf, %wf)\n%p1 = QuantizeLinear(%p0, %p_s, %p_z)\n\
         %p = DequantizeLinear(%p1, %p_s, %p_z)\n%s = Add(%bf, %p)\n%r = Relu(%s)\n%y = QuantizeLinear(%r, %y_s, %y_z)",
        codes("w", "i8", &[50, 30], 3),
        channels("w", "i8", 30, 0, 0),
        scalar("x", "u8", 0.01, 120),
        scalar("p", "u8", 0.2, 127),
        format_args!("{}{}{}", codes("b", "u8", &[30], 4), scalar("b", "u8", 0.1, 121), scalar("y", "u8", 0.23, 5)),
    );
    let graph = graph("input %x: u8[2, 9, 50]", &body, "output %y");
    assert_near_codes(&graph, &[GEMM]);
    let (_, profile) = session(&graph, 1).profile(&samples(&graph)).expect("it runs");
    assert_eq!(profile.rows.len(), 1, "{:?}", profile.rows);
}

#[test]
fn adds_large_biases_without_rounding_them() {
    // Over 24 bits, and odd: no float holds them.
    let body = format!(
        "{}{}{}{}const %b: i32[30] = {}\n\
         %y = com.microsoft.QGemm(%x, %x_s, %x_z, %w, %w_s, %w_z, %b, %y_s, %y_z)",
        codes("w", "i8", &[50, 30], 3),
        channels("w", "i8", 30, 0, 0),
        scalar("x", "u8", 0.01, 120),
        scalar("y", "u8", 19.0, 130),
        list(30, |i| (i as i32 - 15) * 9_000_001 + 1),
    );
    assert_same_codes(&graph("input %x: u8[9, 50]", &body, "output %y"), &[GEMM]);
}

#[test]
fn joins_and_selects_codes_of_other_formats() {
    let formats =
        format!("{}{}{}", scalar("a", "u8", 0.01, 120), scalar("b", "u8", 0.013, 3), scalar("y", "u8", 0.013, 3));
    let body = format!(
        "{formats}%y = com.microsoft.QLinearConcat(%y_s, %y_z, %a, %a_s, %a_z, %b, %b_s, %b_z, %a, %a_s, %a_z) {{axis=1}}"
    );
    let joined = graph("input %a: u8[2, 9, 30]\n input %b: u8[2, 4, 30]", &body, "output %y");
    assert_same_codes(&joined, &["lookup_i8", "concat"]);
    let body = format!("{formats}%y = com.microsoft.QLinearWhere(%c, %a, %a_s, %a_z, %b, %b_s, %b_z, %y_s, %y_z)");
    let selected = graph("input %c: bool[9, 1]\n input %a: u8[9, 30]\n input %b: u8[9, 30]", &body, "output %y");
    assert_same_codes(&selected, &[]);
}

#[test]
fn runs_operators_with_formats_that_are_not_constant() {
    let body = "%y = com.microsoft.QLinearAdd(%a, %s, %z, %b, %s, %z, %s, %z)";
    let inputs = "input %a: u8[9, 30]\n input %b: u8[9, 30]\n input %s: f32[]\n input %z: u8[]";
    let (got, want) = run(&graph(inputs, body, "output %y"), &[]);
    assert_eq!(got.bytes(), want.bytes());
}

#[test]
fn chains_operators_without_leaving_the_integers() {
    let body = format!(
        "{}{}{}{}{}{}\
         %c = QLinearConv(%x, %x_s, %x_z, %w, %w_s, %w_z, %c_s, %c_z) {{pads=[1, 1, 1, 1]}}\n\
         %a = com.microsoft.QLinearAdd(%c, %c_s, %c_z, %x, %x_s, %x_z, %a_s, %a_z)\n\
         %m = MaxPool(%a) {{kernel_shape=[2, 2], strides=[2, 2]}}\n\
         %g = com.microsoft.QLinearGlobalAveragePool(%m, %a_s, %a_z, %y_s, %y_z)\n%y = Flatten(%g)",
        codes("w", "i8", &[40, 40, 3, 3], 5),
        channels("w", "i8", 40, 0, 0),
        scalar("x", "u8", 0.0203, 128),
        scalar("c", "u8", 0.2937, 120),
        scalar("a", "u8", 0.3071, 120),
        scalar("y", "u8", 0.0961, 0),
    );
    let graph = graph("input %x: u8[4, 40, 8, 6]", &body, "output %y");
    assert_same_codes(&graph, &[GEMM, "max_pool_nhwc", "average_pool_nhwc_i8"]);
}

#[test]
fn folds_batch_normalization_into_the_scales_of_integer_weights() {
    let vector =
        |name: &str, from: f32, by: f32| format!("const %{name}: f32[20] = {}\n", list(20, |i| from + by * i as f32));
    let weights = |axis: &str| {
        format!(
            "{}{}%w_d = DequantizeLinear(%w, %w_s, %w_z) {{axis={axis}}}\n",
            codes("w", "i8", &[20, 6, 3, 3], 5),
            channels("w", "i8", 20, 0, 0),
        )
    };
    let body = format!(
        "{}{}{}{}{}{}{}%x_d = DequantizeLinear(%x, %x_s, %x_z)\n%c = Conv(%x_d, %w_d)\n\
         %n = BatchNormalization(%c, %gamma, %beta, %mean, %variance)\n%r = Relu(%n)\n\
         %y = QuantizeLinear(%r, %y_s, %y_z)",
        weights("0"),
        scalar("x", "u8", 0.008, 120),
        scalar("y", "u8", 0.0513, 3),
        vector("gamma", -0.5, 0.113),
        vector("beta", 1.0, -0.07),
        vector("mean", -2.0, 0.3),
        vector("variance", 0.5, 0.2),
    );
    assert_near_codes(&graph("input %x: u8[2, 6, 9, 7]", &body, "output %y"), &[GEMM]);
}

#[test]
fn runs_depthwise_convolutions_with_a_scale_per_channel_on_integers() {
    // As channels(), but in the other direction: scales of an activation.
    let activation = |zero: i32| {
        let (scales, zeros) = (list(16, |i| 0.0211 + 0.0007 * (i % 5) as f32), list(16, |_| zero));
        format!("const %a_s: f32[16] = {scales}\n const %a_z: u8[16] = {zeros}\n")
    };
    for (act, zero, kernels) in [
        ("Relu(%c)", 0, [GEMM, "depthwise_nhwc_i8"].as_slice()),
        ("Clip(%c, %low, %high)", 0, &[GEMM, "depthwise_nhwc_i8"]),
        ("HardSwish(%c)", 17, &[GEMM, "depthwise_nhwc_i8"]),
    ] {
        let body = format!(
            "{}{}{}{}{}{}{}const %b: f32[16] = {}\nconst %low: f32[] = [0]\nconst %high: f32[] = [5.3]\n\
             %x_d = DequantizeLinear(%x, %x_s, %x_z)\n%w_d = DequantizeLinear(%w, %w_s, %w_z) {{axis=0}}\n\
             %c = Conv(%x_d, %w_d, %b)\n%r = {act}\n%a = QuantizeLinear(%r, %a_s, %a_z) {{axis=1}}\n\
             %a_d = DequantizeLinear(%a, %a_s, %a_z) {{axis=1}}\n%v_d = DequantizeLinear(%v, %v_s, %v_z) {{axis=0}}\n\
             %e = Conv(%a_d, %v_d, %b) {{pads=[1, 1, 1, 1], group=16}}\n%y = QuantizeLinear(%e, %y_s, %y_z)",
            codes("w", "i8", &[16, 6, 1, 1], 5),
            channels("w", "i8", 16, 0, 0),
            codes("v", "i8", &[16, 1, 3, 3], 6),
            channels("v", "i8", 16, 0, 0),
            scalar("x", "u8", 0.008, 120),
            scalar("y", "u8", 0.0513, 103),
            activation(zero),
            list(16, |i| 0.1 * i as f32),
        );
        let graph = graph("input %x: u8[2, 6, 9, 7]", &body, "output %y");
        assert_near_codes(&graph, kernels);
        // Two products, the units of the channels within the first.
        let (_, profile) = session(&graph, 1).profile(&samples(&graph)).expect("it runs");
        let arithmetic = profile.rows.iter().filter(|r| !r.kernel.starts_with("change_layout")).count();
        assert_eq!(arithmetic, 2, "{act}");
    }
}

/// `%y`: the product of `%x` [2, 5, 24] with a scale and zero point per row, the column sums of `%w` off by `wrong`.
fn row_product(dtype: &str, zeros: bool, wrong: i64) -> String {
    let (k, n) = (24, 10);
    let (low, mut random) = (if dtype == "u8" { 0 } else { -128 }, Random(3));
    // As `codes` makes them.
    let w: Vec<i64> = (0..k * n).map(|_| i64::from(random.next() % 256) + low).collect();
    let zero = |j: usize| if zeros { (j % 3) as i64 } else { 0 };
    let sums = list(n, |j| (0..k).map(|i| w[i * n + j] - zero(j)).sum::<i64>() + wrong);
    let scales = list(n, |i| 0.002 + 0.0007 * (i % 5) as f32);
    let constants = format!(
        "{}const %w_s: f32[{n}] = {scales}\n const %w_z: {dtype}[{n}] = {}\n const %sums: i32[{n}] = {sums}\n",
        codes("w", dtype, &[k, n], 3),
        list(n, zero)
    );
    let zero_point = if zeros { ", _, %w_z" } else { "" };
    format!(
        "{constants} const %axes: i64[1] = [-1]\n const %none: f32[] = [0]\n const %steps: f32[] = [255]\n \
         const %least: f32[] = [1e-37]\n\
         %low0 = ReduceMin(%x, %axes)\n %high0 = ReduceMax(%x, %axes)\n\
         %low = Clip(%low0, _, %none)\n %high = Clip(%high0, %none)\n %range = Sub(%high, %low)\n\
         %step = Div(%range, %steps)\n %scale = Clip(%step, %least)\n %ratio = Div(%low, %scale)\n\
         %whole = Round(%ratio)\n %positive = Abs(%whole)\n %zero = Cast(%positive) {{to=2}}\n\
         %codes = QuantizeLinear(%x, %scale, %zero) {{axis=-1, block_size={k}}}\n %zero32 = Cast(%zero) {{to=6}}\n\
         %sum = MatMulInteger(%codes, %w{zero_point})\n %shift = Mul(%zero32, %sums)\n %shifted = Sub(%sum, %shift)\n\
         %f = Cast(%shifted) {{to=1}}\n %scales = Mul(%scale, %w_s)\n %y = Mul(%f, %scales)\n"
    )
}

#[test]
fn multiplies_rows_with_formats_of_their_own() {
    for (dtype, zeros) in [("i8", false), ("i8", true), ("u8", true)] {
        let body = row_product(dtype, zeros, 0);
        let g = graph("input %x: f32[2, 5, 24]", &body, "output %y");
        assert_same_bits(&g, &["dynamic_quantize_rows", GEMM]);
        let bias = format!("{body} const %b: f32[10] = {}\n %s = Add(%y, %b)\n %r = Relu(%s)\n", list(10, |i| i));
        let g = graph("input %x: f32[2, 5, 24]", &bias, "output %r");
        assert_same_bits(&g, &["dynamic_quantize_rows", GEMM]);
    }
}

#[test]
fn leaves_rows_with_another_correction_to_their_operators() {
    let g = graph("input %x: f32[2, 5, 24]", &row_product("i8", false, 1), "output %y");
    let (got, want) = run(&g, &[]);
    assert_eq!(got.bytes(), want.bytes());
    let (_, profile) = session(&g, 1).profile(&samples(&g)).expect("it runs");
    assert!(profile.rows.iter().any(|r| r.kernel == "reference"));
}

#[test]
fn quantizes_once_what_is_quantized_in_two_shapes() {
    let body = format!(
        "{}const %shape: i64[2] = [18, 20]\n%n = Mul(%x, %x)\n%r = Reshape(%n, %shape)\n\
         %a = QuantizeLinear(%n, %x_s, %x_z)\n%b = QuantizeLinear(%r, %x_s, %x_z)\n\
         %t = Transpose(%b) {{perm=[1, 0]}}",
        scalar("x", "u8", 0.004, 3)
    );
    let graph = graph("input %x: f32[2, 9, 20]", &body, "output %a\n output %t");
    let inputs = samples(&graph);
    let (got, profile) = session(&graph, 1).profile(&inputs).expect("it runs");
    let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
    assert_eq!((got[0].bytes(), got[1].bytes()), (want[0].bytes(), want[1].bytes()));
    assert_eq!(profile.rows.iter().filter(|r| r.kernel == "quantize_linear").count(), 1, "{:?}", profile.rows);
}

#[test]
fn evens_out_what_is_quantized_on_the_way() {
    let row = format!("const %f: f32[30] = {}\n", list(30, |i| 0.5 + 0.07 * i as f32));
    let scaled =
        format!("{row}{}%m = Mul(%f, %x)\n%y = QuantizeLinear(%m, %y_s, %y_z)", scalar("y", "u8", 0.0153, 120));
    let alone = graph("input %x: f32[2, 9, 30]", &scaled, "output %y\noutput %m");
    assert_eq!(session(&alone, 1).profile(&samples(&alone)).expect("it runs").1.rows.len(), 2, "%m is seen");
    let alone = graph("input %x: f32[2, 9, 30]", &scaled, "output %y");
    assert_near_codes(&alone, &["binary_i8"]);
    let body = format!(
        "{row}{}{}{}{}%xf = DequantizeLinear(%x, %x_s, %x_z)\n%wf = DequantizeLinear(%w, %w_s, %w_z) {{axis=1}}\n\
         %p = MatMul(%xf, %wf)\n%r = Gelu(%p)\n%m = Mul(%r, %f)\n%y = QuantizeLinear(%m, %y_s, %y_z)",
        codes("w", "i8", &[50, 30], 3),
        channels("w", "i8", 30, 0, 0),
        scalar("x", "u8", 0.01, 120),
        scalar("y", "u8", 0.183, 5),
    );
    let product = graph("input %x: u8[2, 9, 50]", &body, "output %y");
    assert_near_codes(&product, &[GEMM]);
    assert_eq!(session(&product, 1).profile(&samples(&product)).expect("it runs").1.rows.len(), 1);
}
