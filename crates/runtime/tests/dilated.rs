//! Convolutions whose windows reach far beyond the image: taps that meet only padding are left out, and results stay the same.

mod support;

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

use support::{channels, codes, graph, run, samples, scalar, session};

/// Shapes of images and weights with the attributes of their convolution.
const CASES: [(&str, &str, &str); 9] = [
    // One tap is left, then a column of them, and some whose outer rows meet the image at its border.
    ("[1, 24, 7, 9]", "[20, 24, 3, 3]", "dilations=[12, 12], pads=[12, 12, 12, 12]"),
    ("[2, 16, 8, 5]", "[33, 16, 3, 3]", "dilations=[3, 6], pads=[3, 6, 3, 6]"),
    ("[1, 16, 14, 14]", "[40, 16, 3, 3]", "dilations=[12, 12], pads=[12, 12, 12, 12]"),
    // Padding on one side, more of it than the window needs, and less.
    ("[1, 16, 9, 8]", "[16, 16, 3, 3]", "dilations=[9, 8], pads=[18, 16, 0, 0]"),
    ("[1, 16, 6, 7]", "[16, 16, 3, 4]", "dilations=[8, 9], pads=[17, 11, 1, 18]"),
    ("[1, 16, 6, 7]", "[16, 16, 3, 3]", "dilations=[9, 9], pads=[8, 10, 11, 9]"),
    // Groups, single channels, and steps of two.
    ("[1, 24, 7, 6]", "[48, 12, 3, 3]", "dilations=[7, 4], pads=[7, 4, 7, 4], group=2"),
    ("[2, 16, 9, 9]", "[16, 1, 5, 5]", "dilations=[6, 5], pads=[12, 10, 12, 10], group=16"),
    ("[1, 16, 13, 11]", "[24, 16, 3, 3]", "dilations=[14, 8], pads=[14, 8, 14, 8], strides=[2, 2]"),
];

fn parse(shape: &str, weights: &str, attributes: &str) -> Graph {
    let columns = &weights[1..weights.find(',').expect("a shape")];
    let text = format!(
        "graph \"g\" {{\ninput %x: f32{shape}\nconst %w: f32{weights} = random(3)\nconst %b: f32[{columns}] = random(4)\n\
         %c = Conv(%x, %w, %b) {{{attributes}}}\n%y = Relu(%c)\noutput %y\n}}"
    );
    text::parse_graph(&text, &Registry, 20).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[track_caller]
fn assert_close(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let (got, want) = (got.to_f32s().expect("floats"), want.to_f32s().expect("floats"));
    // Both sum up to some hundred products of numbers below 1.
    let far = got.iter().zip(want.iter()).find(|(a, b)| (*a - *b).abs() > 1e-4);
    assert!(far.is_none(), "{what}: {far:?}");
}

#[test]
fn convolves_floats_as_the_interpreter_where_taps_meet_only_padding() {
    for (shape, weights, attributes) in CASES {
        let graph = parse(shape, weights, attributes);
        let inputs = samples(&graph);
        let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
        for threads in [1, 3] {
            let got = session(&graph, threads).run(&inputs).expect("it runs");
            assert_close(&got[0], &want[0], &format!("{shape} {weights} {attributes}"));
        }
    }
}

#[test]
fn convolves_integers_as_the_interpreter_where_taps_meet_only_padding() {
    for (shape, weights, attributes) in CASES {
        // The padding is a zero point that is not 0; weights have none, or one for each channel.
        let sizes: Vec<usize> = weights[1..weights.len() - 1].split(", ").map(|n| n.parse().expect("a size")).collect();
        for spread in [0, 3] {
            let body = format!(
                "{}{}{}{}%x_d = DequantizeLinear(%x, %x_s, %x_z)\n%w_d = DequantizeLinear(%w, %w_s, %w_z) {{axis=0}}\n\
                 %y = Conv(%x_d, %w_d) {{{attributes}}}\n%y_q = QuantizeLinear(%y, %y_s, %y_z)",
                scalar("x", "u8", 0.0078125, 131),
                codes("w", "i8", &sizes, 5),
                channels("w", "i8", sizes[0], 0, spread),
                scalar("y", "u8", 0.03125, 120),
            );
            let graph = graph(&format!("input %x: u8{shape}"), &body, "output %y_q");
            let kernel = if attributes.contains("group=16") { "depthwise_nhwc_i8" } else { "panel_u8i8i32" };
            let (got, want) = run(&graph, &[kernel]);
            let steps = got.bytes().iter().zip(want.bytes()).map(|(&a, &b)| a.abs_diff(b));
            // The interpreter sums products of floats: a value that lies on a border may fall on either side.
            let (most, off) = steps.fold((0, 0), |(most, off), d| (d.max(most), off + usize::from(d > 0)));
            assert!(
                most <= 1 && off * 200 <= got.len(),
                "{shape} {weights} {attributes}: {off} differ, by up to {most}"
            );
            let distinct: std::collections::BTreeSet<u8> = got.bytes().iter().copied().collect();
            assert!(distinct.len() > 8, "{} codes", distinct.len());
        }
    }
}

#[test]
fn keeps_the_taps_of_each_image_apart_in_a_session_of_any() {
    let graph = parse("[1, 16, \"h\", \"w\"]", CASES[0].1.replace("24", "16").as_str(), CASES[0].2);
    let session =
        Session::new(graph.clone(), Options { threads: 1, ..Options::default() }).expect("the graph is valid");
    let image = |h: usize, w: usize| {
        let data = (0..16 * h * w).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect::<Vec<f32>>();
        Tensor::new(vec![1, 16, h, w], data).expect("the length fits")
    };
    // One tap, all of them, columns and rows, and one again.
    for (h, w) in [(5, 6), (15, 16), (4, 20), (20, 4), (6, 5)] {
        let inputs = [image(h, w)];
        let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
        assert_close(&session.run(&inputs).expect("it runs")[0], &want[0], &format!("{h}×{w}"));
    }
}

#[test]
fn multiplies_one_tap_where_the_others_meet_only_padding() {
    // A window that is too deep for panels, all but for one tap.
    let graph = parse("[1, 960, 6, 6]", "[16, 960, 3, 3]", CASES[0].2);
    let (_, profile) = session(&graph, 1).profile(&samples(&graph)).expect("it runs");
    let kernels: Vec<&str> = profile.rows.iter().map(|r| r.kernel.as_str()).collect();
    assert!(kernels.iter().any(|k| k.starts_with("panel_f32")), "{kernels:?}");
}

#[test]
fn takes_fewer_products_for_windows_that_lie_in_each_other() {
    for (shape, attributes) in [
        ("[2, 32, 26, 23]", "dilations=[2, 2], pads=[2, 2, 2, 2]"),
        ("[1, 32, 21, 40]", "dilations=[1, 4], pads=[1, 4, 1, 4]"),
        ("[1, 32, 27, 22]", "dilations=[4, 3], pads=[0, 5, 9, 1]"),
    ] {
        let graph = parse(shape, "[40, 32, 3, 3]", attributes);
        let inputs = samples(&graph);
        let (got, profile) = session(&graph, 1).profile(&inputs).expect("it runs");
        assert!(profile.rows.iter().any(|r| r.kernel.starts_with("winograd")), "{attributes}");
        let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
        assert_close(&got[0], &want[0], attributes);
    }
}
