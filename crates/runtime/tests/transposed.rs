//! Transposed convolutions whose windows overlap, over one to three axes: on the kernels of convolutions, with the
//! interpreter's results.

mod support;

use narrowbit_ir::interp;
use narrowbit_tensor::Tensor;

use support::{channels, codes, graph, run, samples, scalar, session};

/// Shapes of data and weights with the attributes of their convolution.
const CASES: [(&str, &[usize], &str); 18] = [
    // As decoders of images have them.
    ("[1, 16, 6, 7]", &[16, 24, 3, 3], "strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]"),
    ("[2, 16, 5, 6]", &[16, 20, 4, 4], "strides=[2, 2], pads=[1, 1, 1, 1]"),
    ("[1, 12, 5, 4]", &[12, 9, 3, 3], "strides=[2, 2]"),
    ("[1, 8, 4, 6]", &[8, 17, 5, 5], "strides=[3, 2], pads=[2, 1, 0, 2]"),
    ("[1, 8, 6, 5]", &[8, 16, 3, 3], "pads=[1, 1, 1, 1]"),
    // Gaps between windows; much that is cut off; taps that are no neighbours.
    ("[1, 8, 4, 5]", &[8, 10, 2, 1], "strides=[3, 3], output_padding=[2, 1]"),
    ("[1, 8, 7, 8]", &[8, 10, 3, 3], "strides=[2, 2], pads=[3, 4, 4, 3]"),
    ("[2, 8, 4, 5]", &[8, 10, 3, 2], "strides=[2, 3], dilations=[2, 2], pads=[1, 2, 0, 1]"),
    ("[1, 8, 5, 5]", &[8, 10, 3, 3], "strides=[2, 2], dilations=[3, 2], output_padding=[1, 0]"),
    // The result says what is cut off.
    ("[1, 8, 4, 5]", &[8, 10, 3, 3], "strides=[2, 2], output_shape=[8, 10]"),
    ("[1, 8, 4, 5]", &[8, 10, 3, 4], "strides=[2, 3], auto_pad=\"SAME_UPPER\""),
    ("[1, 8, 4, 5]", &[8, 10, 3, 4], "strides=[2, 3], auto_pad=\"SAME_LOWER\""),
    // Groups, single channels among them.
    ("[1, 16, 4, 5]", &[16, 9, 3, 3], "strides=[2, 2], pads=[1, 1, 0, 0], group=2"),
    ("[1, 24, 5, 6]", &[24, 1, 4, 4], "strides=[2, 2], pads=[1, 1, 1, 1], group=24"),
    // Lines and volumes.
    ("[2, 8, 9]", &[8, 16, 16], "strides=[8], pads=[4, 4]"),
    ("[1, 8, 3, 4, 5]", &[8, 12, 3, 3, 3], "strides=[2, 2, 2], pads=[1, 1, 1, 1, 1, 1], output_padding=[1, 1, 1]"),
    ("[1, 8, 3, 4, 3]", &[8, 12, 2, 2, 2], "strides=[2, 2, 2]"),
    ("[1, 12, 3, 4, 3]", &[12, 1, 1, 4, 4], "strides=[1, 2, 2], pads=[0, 1, 1, 0, 1, 1], group=12"),
];

/// Output channels of a case.
fn columns(weights: &[usize], attributes: &str) -> usize {
    let groups = attributes.split("group=").nth(1).map_or(1, |g| g.parse::<usize>().expect("a number"));
    weights[1] * groups
}

#[track_caller]
fn assert_close(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let (got, want) = (got.to_f32s().expect("floats"), want.to_f32s().expect("floats"));
    // Both sum up to a few hundred products of numbers below 1.
    let far = got.iter().zip(want.iter()).find(|(a, b)| (*a - *b).abs() > 1e-4);
    assert!(far.is_none(), "{what}: {far:?}");
}

#[test]
fn convolves_floats_with_bias_and_activation() {
    for (shape, weights, attributes) in CASES {
        let body = format!(
            "const %w: f32{weights:?} = random(3)\nconst %b: f32[{}] = random(4)\n\
             %c = ConvTranspose(%x, %w, %b) {{{attributes}}}\n%y = Relu(%c)",
            columns(weights, attributes)
        );
        let graph = graph(&format!("input %x: f32{shape}"), &body, "output %y");
        let what = format!("{shape} {weights:?} {attributes}");
        let (_, profile) = session(&graph, 1).profile(&samples(&graph)).expect("it runs");
        assert!(profile.rows.iter().all(|r| r.kernel != "reference"), "{what}: {:?}", profile.rows);
        let (got, want) = run(&graph, &[]);
        assert_close(&got, &want, &what);
    }
}

#[test]
fn convolves_integers_as_the_interpreter() {
    for (shape, weights, attributes) in CASES {
        let n = columns(weights, attributes);
        // The padding is a zero point that is not 0; weights have none, or one for each channel; both signs of data.
        for (dtype, zero, spread) in [("u8", 131, 0), ("u8", 119, 3), ("i8", -5, 0)] {
            // Groups share the scales of their output channels.
            let weight_format = channels("w", "i8", weights[1], 0, spread);
            let body = format!(
                "{}{}{weight_format}{}const %b: f32[{n}] = random(6)\n%x_d = DequantizeLinear(%x, %x_s, %x_z)\n\
                 %w_d = DequantizeLinear(%w, %w_s, %w_z) {{axis=1}}\n%y = ConvTranspose(%x_d, %w_d, %b) {{{attributes}}}\n\
                 %r = Relu(%y)\n%y_q = QuantizeLinear(%r, %y_s, %y_z)",
                scalar("x", dtype, 0.0078125, zero),
                codes("w", "i8", weights, 5),
                scalar("y", "u8", 0.03125, 9),
            );
            let graph = graph(&format!("input %x: {dtype}{shape}"), &body, "output %y_q");
            let what = format!("{shape} {weights:?} {attributes} {dtype}");
            let (_, profile) = session(&graph, 1).profile(&samples(&graph)).expect("it runs");
            assert!(profile.rows.iter().any(|r| r.on_integers), "{what}: {:?}", profile.rows);
            let (got, want) = run(&graph, &[]);
            let steps = got.bytes().iter().zip(want.bytes()).map(|(&a, &b)| a.abs_diff(b));
            // The interpreter sums products of floats: a value that lies on a border may fall on either side.
            let (most, off) = steps.fold((0, 0), |(most, off), d| (d.max(most), off + usize::from(d > 0)));
            assert!(most <= 1 && off * 100 <= got.len(), "{what}: {off} of {} differ, by up to {most}", got.len());
            let distinct: std::collections::BTreeSet<u8> = got.bytes().iter().copied().collect();
            assert!(distinct.len() > 8, "{what}: {} codes", distinct.len());
        }
    }
}

#[test]
fn adds_a_quantized_residual_where_the_results_stand() {
    let body = format!(
        "{}{}{}{}{}%x_d = DequantizeLinear(%x, %x_s, %x_z)\n%w_d = DequantizeLinear(%w, %w_s, %w_z) {{axis=1}}\n\
         %c = ConvTranspose(%x_d, %w_d) {{strides=[2, 2], pads=[1, 1, 1, 1]}}\n\
         %c_q = QuantizeLinear(%c, %y_s, %y_z)\n%c_d = DequantizeLinear(%c_q, %y_s, %y_z)\n\
         %r_d = DequantizeLinear(%r, %r_s, %r_z)\n%a = Add(%c_d, %r_d)\n%y_q = QuantizeLinear(%a, %y_s, %y_z)",
        scalar("x", "u8", 0.0078125, 131),
        codes("w", "i8", &[16, 12, 4, 4], 5),
        channels("w", "i8", 12, 0, 0),
        scalar("r", "u8", 0.015625, 100),
        scalar("y", "u8", 0.0625, 120),
    );
    let graph = graph("input %x: u8[2, 16, 4, 5]\ninput %r: u8[2, 12, 8, 10]", &body, "output %y_q");
    let (got, want) = run(&graph, &[]);
    let off = got.bytes().iter().zip(want.bytes()).filter(|(a, b)| a.abs_diff(**b) > 1).count();
    assert_eq!(off, 0, "{:?}", got.shape());
}

#[test]
fn takes_formats_that_are_made_at_run_time() {
    let body = format!(
        "%x_q, %x_s, %x_z = DynamicQuantizeLinear(%x)\n{}{}%x_d = DequantizeLinear(%x_q, %x_s, %x_z)\n\
         %w_d = DequantizeLinear(%w, %w_s, %w_z) {{axis=1}}\n\
         %y = ConvTranspose(%x_d, %w_d) {{strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]}}",
        codes("w", "i8", &[16, 24, 3, 3], 5),
        channels("w", "i8", 24, 0, 0),
    );
    let graph = graph("input %x: f32[1, 16, 5, 6]", &body, "output %y");
    let (_, profile) = session(&graph, 1).profile(&samples(&graph)).expect("it runs");
    assert!(profile.rows.iter().any(|r| r.on_integers), "{:?}", profile.rows);
    let (got, want) = run(&graph, &[]);
    let largest = want.to_f32s().expect("floats").iter().fold(0f32, |m, v| m.max(v.abs()));
    let (got, want) = (got.to_f32s().expect("floats"), want.to_f32s().expect("floats"));
    assert!(got.iter().zip(want.iter()).all(|(a, b)| (a - b).abs() <= 1e-5 * largest));
}

#[test]
fn leaves_what_has_too_many_phases_to_the_operator() {
    let body = "const %w: f32[2, 2, 3, 3] = random(3)\n%y = ConvTranspose(%x, %w) {strides=[20, 20]}";
    let graph = graph("input %x: f32[1, 2, 2, 2]", body, "output %y");
    let inputs = samples(&graph);
    let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
    assert_close(&session(&graph, 1).run(&inputs).expect("it runs")[0], &want[0], "many phases");
}
