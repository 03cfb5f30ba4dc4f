//! Products with a constant stack of matrices, as the experts of a mixture have them: one packed matrix for each.

mod support;

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_tensor::Tensor;

use support::{assert_same_bits, channels, codes, graph, list, run, samples, scalar, session};

/// Shapes of rows and of matrices.
const CASES: [(&str, [usize; 3]); 5] = [
    // Rows of their own for each matrix, the same for all, and rows of several images.
    ("[1, 5, 9, 24]", [5, 24, 33]),
    ("[2, 1, 17, 20]", [3, 20, 40]),
    ("[7, 13, 30]", [7, 30, 5]),
    ("[4, 1, 66]", [4, 66, 17]),
    // One matrix with an axis too many.
    ("[2, 6, 16]", [1, 16, 10]),
];

fn floats(shape: &str, w: [usize; 3]) -> Graph {
    let body = format!(
        "graph \"g\" {{\ninput %x: f32{shape}\nconst %w: f32{w:?} = random(3)\nconst %b: f32[{n}] = random(4)\n\
         %p = MatMul(%x, %w)\n%s = Add(%p, %b)\n%r = MatMul(%x, %w)\n%q = Tanh(%r)\n%a = Add(%s, %q)\n\
         %y = Relu(%a)\noutput %y\n}}",
        n = w[2]
    );
    text::parse_graph(&body, &Registry, 20).unwrap_or_else(|e| panic!("{e}\n{body}"))
}

#[track_caller]
fn assert_close(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let (got, want) = (got.to_f32s().expect("floats"), want.to_f32s().expect("floats"));
    // Both sum up to some dozen products of numbers below 1.
    let far = got.iter().zip(want.iter()).find(|(a, b)| (*a - *b).abs() > 1e-5);
    assert!(far.is_none(), "{what}: {far:?}");
}

#[test]
fn multiplies_floats_by_packed_matrices() {
    for (shape, w) in CASES {
        let graph = floats(shape, w);
        let inputs = samples(&graph);
        let (got, profile) = session(&graph, 1).profile(&inputs).expect("it runs");
        let kernels: Vec<&str> = profile.rows.iter().map(|r| r.kernel.as_str()).collect();
        assert_eq!(kernels.iter().filter(|k| k.starts_with("panel_f32")).count(), 2, "{kernels:?}");
        let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
        assert_close(&got[0], &want[0], &format!("{shape} {w:?}"));
        let again = session(&graph, 3).run(&inputs).expect("it runs");
        assert_eq!(again[0].bytes(), got[0].bytes());
    }
}

#[test]
fn multiplies_floats_by_deep_matrices_as_the_interpreter() {
    let graph = floats("[2, 3, 2500]", [2, 2500, 9]);
    let inputs = samples(&graph);
    let got = session(&graph, 2).run(&inputs).expect("it runs");
    let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
    let (got, want) = (got[0].to_f32s().expect("floats"), want[0].to_f32s().expect("floats"));
    // Sums of 2500 products.
    assert!(got.iter().zip(want.iter()).all(|(a, b)| (a - b).abs() < 1e-3));
}

#[test]
fn multiplies_integers_by_packed_matrices_with_all_that_follows() {
    for (shape, w) in CASES {
        let n = w[2];
        // Weights with one scale, or one for each column, of both types, with zero points and without.
        let weights = [
            ("u8", "i8", scalar("w", "i8", 0.004, 0), ""),
            ("i8", "u8", scalar("w", "u8", 0.004, 121), ""),
            ("u8", "i8", channels("w", "i8", n, -2, 5), " {axis=2}"),
            ("i8", "i8", channels("w", "i8", n, 0, 0), " {axis=-1}"),
        ];
        for (x_type, w_type, params, axis) in weights {
            let body = format!(
                "{}{}{params}{}const %b: f32[{n}] = {}\n%x_d = DequantizeLinear(%x, %x_s, %x_z)\n\
                 %w_d = DequantizeLinear(%w, %w_s, %w_z){axis}\n%p = MatMul(%x_d, %w_d)\n%s = Add(%p, %b)\n\
                 %y = Relu(%s)\n%y_q = QuantizeLinear(%y, %y_s, %y_z)",
                scalar("x", x_type, 0.0078125, if x_type == "u8" { 131 } else { -7 }),
                codes("w", w_type, &w, 5),
                scalar("y", "u8", 0.015625, 9),
                list(n, |i| i as f32 * 0.01 - 0.1),
            );
            let graph = graph(&format!("input %x: {x_type}{shape}"), &body, "output %y_q");
            let (got, want) = run(&graph, &["panel_u8i8i32"]);
            let steps = got.bytes().iter().zip(want.bytes()).map(|(&a, &b)| a.abs_diff(b));
            // The interpreter sums products of floats: a value that lies on a border may fall on either side.
            let (most, off) = steps.fold((0, 0), |(most, off), d| (d.max(most), off + usize::from(d > 0)));
            assert!(most <= 1 && off * 100 <= got.len(), "{shape} {w:?} {x_type} {w_type}: {off}, by up to {most}");
            let distinct: std::collections::BTreeSet<u8> = got.bytes().iter().copied().collect();
            assert!(distinct.len() > 8, "{} codes", distinct.len());
        }
    }
}

#[test]
fn multiplies_integers_of_a_range_found_at_run_time_with_the_same_bits() {
    for (shape, w) in CASES {
        let body = format!(
            "{}{}%x_q, %x_s, %x_z = DynamicQuantizeLinear(%x)\n%i = MatMulInteger(%x_q, %w, %x_z, %w_z)\n\
             %f = Cast(%i) {{to=1}}\n%s = Mul(%x_s, %w_s)\n%y = Mul(%f, %s)",
            codes("w", "u8", &w, 3),
            scalar("w", "u8", 0.004, 128),
        );
        let graph = graph(&format!("input %x: f32{shape}"), &body, "output %y");
        assert_same_bits(&graph, &["panel_u8i8i32", "dynamic_quantize_u8"]);
    }
}

#[test]
fn multiplies_single_columns_of_integers_with_the_same_bits() {
    for (a, b) in [("[3, 40, 8]", "[3, 8, 1]"), ("[2, 33, 63]", "[1, 63, 1]"), ("[2, 9, 200]", "[2, 200, 1]")] {
        let body = "%a_q, %a_s, %a_z = DynamicQuantizeLinear(%a)\n%b_q, %b_s, %b_z = DynamicQuantizeLinear(%b)\n\
                    %i = MatMulInteger(%a_q, %b_q, %a_z, %b_z)\n%f = Cast(%i) {to=1}\n%s = Mul(%a_s, %b_s)\n\
                    %y = Mul(%f, %s)";
        let graph = graph(&format!("input %a: f32{a}\n input %b: f32{b}"), body, "output %y");
        assert_same_bits(&graph, &["panel_matmul_i8"]);
    }
}
