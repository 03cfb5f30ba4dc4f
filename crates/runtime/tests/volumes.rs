//! Convolutions over three axes: on the kernels of images whose channels are planes, with the interpreter's results.

mod support;

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

use support::{Random, assert_same_bits, channels, codes, graph, list, run, samples, scalar, session};

/// Shapes of volumes and weights with the attributes of their convolution.
const CASES: [(&str, [usize; 5], &str); 14] = [
    // Padding all around, as most networks have it; odd sides; more images than one.
    ("[1, 3, 5, 9, 11]", [20, 3, 3, 7, 7], "pads=[1, 3, 3, 1, 3, 3], strides=[1, 2, 2]"),
    ("[2, 16, 4, 7, 9]", [33, 16, 3, 3, 3], "pads=[1, 1, 1, 1, 1, 1]"),
    ("[1, 18, 7, 8, 5]", [24, 18, 3, 3, 3], "pads=[1, 1, 1, 1, 1, 1], strides=[2, 2, 2]"),
    // Planes of the window that meet nothing, and taps that don't.
    ("[1, 16, 1, 6, 6]", [17, 16, 3, 3, 3], "pads=[1, 1, 1, 1, 1, 1]"),
    ("[1, 16, 3, 1, 4]", [16, 16, 5, 3, 3], "pads=[4, 1, 1, 2, 1, 1], dilations=[2, 1, 1]"),
    // Padding on one side, steps and dilations that differ.
    ("[2, 5, 8, 6, 7]", [9, 5, 2, 3, 4], "pads=[0, 2, 1, 3, 0, 2], strides=[3, 1, 2], dilations=[2, 2, 1]"),
    ("[1, 4, 6, 5, 4]", [8, 4, 4, 2, 3], "auto_pad=\"SAME_LOWER\", strides=[2, 1, 3]"),
    // Windows of one pixel, of one plane, and of planes alone.
    ("[2, 12, 5, 6, 4]", [30, 12, 1, 1, 1], "strides=[2, 2, 2]"),
    ("[1, 16, 4, 9, 6]", [16, 8, 1, 3, 3], "pads=[0, 1, 1, 0, 1, 1], group=2"),
    ("[1, 16, 9, 5, 6]", [24, 16, 3, 1, 1], "pads=[1, 0, 0, 1, 0, 0]"),
    // Groups of several planes: single channels, few of them, and one plane that is left.
    ("[2, 18, 5, 6, 7]", [18, 1, 3, 3, 3], "pads=[1, 1, 1, 1, 1, 1], group=18"),
    ("[1, 12, 6, 7, 5]", [15, 4, 3, 3, 3], "pads=[1, 1, 1, 1, 1, 1], strides=[2, 2, 1], group=3"),
    ("[1, 8, 4, 5, 6]", [40, 4, 3, 1, 2], "pads=[1, 0, 1, 1, 0, 0], group=2"),
    ("[1, 20, 1, 6, 5]", [20, 1, 3, 3, 3], "pads=[1, 1, 1, 1, 1, 1], group=20"),
];

fn parse(body: &str) -> Graph {
    let text = format!("graph \"g\" {{\n{body}\n}}");
    text::parse_graph(&text, &Registry, 20).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn floats(shape: &str, weights: &[usize], attributes: &str) -> Graph {
    parse(&format!(
        "input %x: f32{shape}\nconst %w: f32{weights:?} = random(3)\nconst %b: f32[{}] = random(4)\n\
         %c = Conv(%x, %w, %b) {{{attributes}}}\n%s = Sigmoid(%x)\n%r = Conv(%s, %w) {{{attributes}}}\n\
         %a = Add(%c, %r)\n%y = Relu(%a)\noutput %y",
        weights[0]
    ))
}

/// Whether no kernel is the operator's own definition.
fn is_fast(graph: &Graph) -> bool {
    let (_, profile) = session(graph, 1).profile(&samples(graph)).expect("it runs");
    profile.rows.iter().all(|r| r.kernel != "reference")
}

#[track_caller]
fn assert_close(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let (got, want) = (got.to_f32s().expect("floats"), want.to_f32s().expect("floats"));
    // Both sum up to a thousand products of numbers below 1.
    let far = got.iter().zip(want.iter()).find(|(a, b)| (*a - *b).abs() > 2e-4);
    assert!(far.is_none(), "{what}: {far:?}");
}

#[test]
fn convolves_volumes_of_floats_with_bias_residual_and_activation() {
    for (shape, weights, attributes) in CASES {
        let graph = floats(shape, &weights, attributes);
        assert!(is_fast(&graph), "{shape} {weights:?} {attributes}");
        let inputs = samples(&graph);
        let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
        let mut first = None;
        for threads in [1, 3] {
            let got = session(&graph, threads).run(&inputs).expect("it runs").remove(0);
            assert_close(&got, &want[0], &format!("{shape} {weights:?} {attributes}"));
            assert_eq!(first.get_or_insert(got.clone()).bytes(), got.bytes(), "{threads} threads");
        }
    }
}

#[test]
fn convolves_single_channels_of_planes_on_the_kernels_of_images() {
    let graph = floats("[2, 16, 3, 9, 8]", &[16, 1, 1, 3, 3], "pads=[0, 1, 1, 0, 1, 1], group=16");
    let (got, want) = run(&graph, &["depthwise_nhwc_f32"]);
    assert_close(&got, &want, "single channels");
}

#[test]
fn convolves_volumes_of_integers_as_the_interpreter() {
    for (shape, weights, attributes) in CASES {
        // The padding is a zero point that is not 0; weights have none, or one for each channel; both signs of data.
        for (dtype, zero, spread) in [("u8", 131, 0), ("u8", 119, 3), ("i8", -5, 0)] {
            let body = format!(
                "{}{}{}{}%x_d = DequantizeLinear(%x, %x_s, %x_z)\n\
                 %w_d = DequantizeLinear(%w, %w_s, %w_z) {{axis=0}}\n%y = Conv(%x_d, %w_d) {{{attributes}}}\n\
                 %r = Relu(%y)\n%y_q = QuantizeLinear(%r, %y_s, %y_z)",
                scalar("x", dtype, 0.0078125, zero),
                codes("w", "i8", &weights, 5),
                channels("w", "i8", weights[0], 0, spread),
                scalar("y", "u8", 0.03125, 9),
            );
            let graph = graph(&format!("input %x: {dtype}{shape}"), &body, "output %y_q");
            let (got, want) = run(&graph, &[""]);
            let steps = got.bytes().iter().zip(want.bytes()).map(|(&a, &b)| a.abs_diff(b));
            // The interpreter sums products of floats: a value that lies on a border may fall on either side.
            let (most, off) = steps.fold((0, 0), |(most, off), d| (d.max(most), off + usize::from(d > 0)));
            let what = format!("{shape} {weights:?} {attributes} {dtype}");
            assert!(most <= 1 && off * 200 <= got.len(), "{what}: {off} differ, by up to {most}");
            let distinct: std::collections::BTreeSet<u8> = got.bytes().iter().copied().collect();
            assert!(distinct.len() > 8, "{what}: {} codes", distinct.len());
        }
    }
}

#[test]
fn keeps_volumes_on_integers_between_convolutions_with_a_residual() {
    let body = format!(
        "{}{}{}{}{}%x_d = DequantizeLinear(%x, %x_s, %x_z)\n%w_d = DequantizeLinear(%w, %w_s, %w_z) {{axis=0}}\n\
         %c = Conv(%x_d, %w_d) {{pads=[1, 1, 1, 1, 1, 1]}}\n%r = Relu(%c)\n%r_q = QuantizeLinear(%r, %r_s, %r_z)\n\
         %r_d = DequantizeLinear(%r_q, %r_s, %r_z)\n%v_d = DequantizeLinear(%w, %w_s, %w_z) {{axis=0}}\n\
         %e = Conv(%r_d, %v_d) {{pads=[1, 1, 1, 1, 1, 1]}}\n%a = Add(%e, %x_d)\n%b = Relu(%a)\n\
         %b_q = QuantizeLinear(%b, %r_s, %r_z)\n%b_d = DequantizeLinear(%b_q, %r_s, %r_z)\n\
         %g = GlobalAveragePool(%b_d)\n%y_q = QuantizeLinear(%g, %y_s, %y_z)",
        scalar("x", "u8", 0.0078125, 131),
        codes("w", "i8", &[16, 16, 3, 3, 3], 5),
        channels("w", "i8", 16, 0, 0),
        scalar("r", "u8", 0.125, 0),
        scalar("y", "u8", 0.015625, 3),
    );
    let graph = graph("input %x: u8[2, 16, 3, 6, 5]", &body, "output %y_q");
    let (got, want) = run(&graph, &["average_pool_nhwc_i8"]);
    let off = got.bytes().iter().zip(want.bytes()).filter(|(a, b)| a.abs_diff(**b) > 1).count();
    assert_eq!(off, 0, "{:?} {:?}", got.bytes(), want.bytes());
    let distinct: std::collections::BTreeSet<u8> = got.bytes().iter().copied().collect();
    assert!(distinct.len() > 8, "{} codes", distinct.len());
}

#[test]
fn runs_dynamic_convolutions_of_volumes_with_the_same_bits() {
    for (shape, weights, attributes) in CASES {
        let body = format!(
            "%x_q, %x_s, %x_z = DynamicQuantizeLinear(%x)\n{}{}%i = ConvInteger(%x_q, %w, %x_z, %w_z) {{{attributes}}}\n\
             %f = Cast(%i) {{to=1}}\n%s = Mul(%x_s, %w_s)\n%p = Mul(%f, %s)\nconst %b: f32[1, {n}, 1, 1, 1] = {}\n\
             %y = Add(%p, %b)",
            codes("w", "i8", &weights, 5),
            scalar("w", "i8", 0.004, 0),
            list(weights[0], |i| i as f32 * 0.1 - 1.0),
            n = weights[0],
        );
        let graph = graph(&format!("input %x: f32{shape}"), &body, "output %y");
        assert_same_bits(&graph, &["dynamic_quantize_u8"]);
    }
}

#[test]
fn keeps_the_planes_of_each_volume_apart_in_a_session_of_any() {
    let graph = floats("[1, 16, \"d\", \"h\", 6]", &[18, 16, 3, 3, 3], "pads=[1, 1, 1, 1, 1, 1]");
    let session =
        Session::new(graph.clone(), Options { threads: 2, ..Options::default() }).expect("the graph is valid");
    let mut random = Random(5);
    // All planes and taps, planes of one tap, one plane, one plane of a row of taps, and all again.
    for (d, h) in [(4, 5), (3, 1), (1, 5), (1, 1), (2, 7)] {
        let data: Vec<f32> = (0..16 * d * h * 6).map(|_| random.unit()).collect();
        let inputs = [Tensor::new(vec![1, 16, d, h, 6], data).expect("the length fits")];
        let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
        assert_close(&session.run(&inputs).expect("it runs")[0], &want[0], &format!("{d}×{h}"));
    }
}
