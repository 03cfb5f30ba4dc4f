//! Pooling over volumes, of floats and of integers, with the interpreter's results.

mod support;

use support::{check, graph, run, samples, scalar};

/// Windows over volumes.
const WINDOWS: [&str; 5] = [
    "kernel_shape=[2, 2, 2], strides=[2, 2, 2]",
    "kernel_shape=[3, 3, 3], strides=[2, 2, 2], pads=[1, 1, 1, 1, 1, 1]",
    "kernel_shape=[1, 3, 2], pads=[0, 1, 1, 0, 1, 0]",
    "kernel_shape=[3, 2, 2], strides=[1, 2, 3], ceil_mode=1, pads=[1, 0, 1, 2, 1, 1]",
    "kernel_shape=[2, 3, 3], auto_pad=\"SAME_UPPER\", strides=[2, 1, 2]",
];

#[test]
fn pools_volumes_of_floats_as_the_operator() {
    for shape in ["[2, 20, 5, 6, 7]", "[1, 3, 4, 9, 8]"] {
        for window in WINDOWS {
            for (op, kernel, more) in [
                ("MaxPool", "max_pool_nhwc", ""),
                ("AveragePool", "average_pool_nhwc_f32", ""),
                ("AveragePool", "average_pool_nhwc_f32", ", count_include_pad=1"),
            ] {
                let body = format!("%y = {op}(%x) {{{window}{more}}}");
                let graph = graph(&format!("input %x: f32{shape}"), &body, "output %y");
                check(&graph, &samples(&graph), kernel, 1e-6, &format!("{shape} {body}"));
            }
        }
    }
}

#[test]
fn pools_volumes_of_integers_as_the_operator() {
    for window in WINDOWS {
        for (op, more) in [("MaxPool", ""), ("AveragePool", ""), ("AveragePool", ", count_include_pad=1")] {
            let body = format!(
                "{}{}%d = DequantizeLinear(%x, %x_s, %x_z)\n%p = {op}(%d) {{{window}{more}}}\n\
                 %y = QuantizeLinear(%p, %y_s, %y_z)",
                scalar("x", "u8", 0.0078125, 131),
                if op == "MaxPool" { scalar("y", "u8", 0.0078125, 131) } else { scalar("y", "u8", 0.005, 120) },
            );
            let graph = graph("input %x: u8[2, 20, 5, 6, 7]", &body, "output %y");
            let kernel = if op == "MaxPool" { "max_pool_nhwc" } else { "average_pool_nhwc_i8" };
            let (got, want) = run(&graph, &[kernel]);
            let off = got.bytes().iter().zip(want.bytes()).filter(|(a, b)| a.abs_diff(**b) > 1).count();
            assert_eq!(off, 0, "{op} {window}{more}");
            let differ = got.bytes().iter().zip(want.bytes()).filter(|(a, b)| a != b).count();
            assert!(differ * 100 <= got.len() && (op != "MaxPool" || differ == 0), "{op} {window}: {differ} differ");
        }
    }
}
