//! Biases take up what rounding activations adds in the mean.

use narrowbit_ir::{Graph, Model, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_quant::calibrate::{CalibrateError, Calibrator};
use narrowbit_quant::observe::Method;
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::plan::QuantPlan;
use narrowbit_quant::quantize::{self, Seen};
use narrowbit_quant::ranges::Ranges;
use narrowbit_quant::scheme::NumberFormat;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

/// A convolution that hands on its input, `between`, and one that adds up eight channels; one value of the input is `most`.
fn model(between: &str) -> Model {
    let eye: Vec<String> = (0..64).map(|i| if i % 9 == 0 { "1".into() } else { "0".into() }).collect();
    let text = format!(
        "model opset=17 graph \"g\" {{ input %x: f32[1, 8, 8, 8] const %w: f32[8, 8, 1, 1] = [{}]
         const %v: f32[2, 8, 1, 1] = [1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5] const %s: f32[] = [0.03]
         %c = Conv(%x, %w) {between} %y = Conv(%a, %v) output %y }}",
        eye.join(", ")
    );
    text::parse_model(&text, &Registry).unwrap()
}

/// Values about `centre` and `spread` to both sides of it, and one of `most`.
fn sample(centre: f32, spread: f32, most: f32) -> Tensor {
    let mut state = 7u32;
    let value = |i| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if i == 77 { most } else { centre + spread * ((state >> 8) as f32 / (1u32 << 23) as f32 - 1.0) }
    };
    Tensor::new([1, 8, 8, 8], (0..512).map(value).collect::<Vec<f32>>()).unwrap()
}

fn outputs(graph: &Graph, x: &Tensor) -> Vec<f32> {
    let session = Session::new(graph.clone(), Options { threads: 1, ..Options::default() }).unwrap();
    session.run(std::slice::from_ref(x)).unwrap()[0].to_f32s().unwrap().into_owned()
}

/// Quantizes on one sample, which biases are corrected by where `seen`; the plan, and the mean error of the outputs.
fn quantized(between: &str, x: &Tensor, seen: bool) -> (QuantPlan, f32) {
    let mut model = model(between);
    // Extremes alone, so that the widths of steps are known.
    let options = QuantOptions { method: Method::Minmax, ..QuantOptions::default() };
    let want = outputs(&model.graph, x);
    quantize::prepare(&mut model, &options).unwrap();
    let layout = quantize::layout(&model, &options).unwrap();
    let (observed, channels) = (layout.observed(&model.graph), quantize::channels(&model.graph, &layout, &options));
    let mut calibrator =
        Calibrator::with_channels(&model.graph, &observed, &channels, false, 1, Ranges::default()).unwrap();
    calibrator.add(std::iter::once(Ok::<_, CalibrateError>((vec![x.clone()], 1))), |_, _| {}).unwrap();
    let (ranges, inputs) = (calibrator.into_ranges(), [vec![x.clone()]]);
    let seen = Seen { inputs: if seen { &inputs } else { &[] }, ..Seen::default() };
    let exec = Exec::new(Isa::detect(), 1);
    let (plan, ..) =
        quantize::quantize_with(&mut model, layout, &ranges, &Default::default(), &options, seen, &exec).unwrap();
    let got = outputs(&model.graph, x);
    (plan, got.iter().zip(&want).map(|(a, b)| a - b).sum::<f32>() / want.len() as f32)
}

#[test]
fn takes_off_what_rounding_adds_where_most_values_lie_within_one_step() {
    // Steps of 0.1, behind which nothing is left of 0.03; and, behind a sum, codes that are off by a part of a step.
    let step = 25.5 / 255.0;
    for between in ["%a = HardSwish(%c)", "%a = Relu(%c)", "%r = Relu(%c) %a = Add(%r, %s)"] {
        let x = sample(0.03, 0.01, 25.5);
        let (_, plain) = quantized(between, &x, false);
        let (plan, corrected) = quantized(between, &x, true);
        assert_eq!(plan.shifts.len(), 2, "{between}: of both convolutions");
        assert!(plain.abs() > 0.5 * step, "{between}: the test wants rounding that has a mean: {plain}");
        // What is left is the rounding of the outputs themselves.
        assert!(corrected.abs() < 0.1 * plain.abs(), "{between}: {plain} → {corrected}");
    }
}

#[test]
fn leaves_biases_alone_where_chance_explains_the_mean() {
    // Over 80 steps the error is even; 64 values of a channel have a mean of some hundredths of a step.
    let (plan, _) = quantized("%a = Relu(%c)", &sample(10.0, 4.0, 25.5), true);
    let second = plan.shifts.values().next_back().unwrap();
    let step = 25.5 / 255.0;
    assert!(second.iter().all(|s| s.abs() < 0.05 * step), "{second:?}");
    assert!(second.iter().filter(|s| **s == 0.0).count() >= 4, "{second:?}");
}

#[test]
fn measures_nothing_without_samples() {
    assert!(quantized("%a = Relu(%c)", &sample(0.03, 0.01, 25.5), false).0.shifts.is_empty());
}

#[test]
fn cuts_off_rare_values_in_networks_of_convolutions_alone() {
    let options = QuantOptions::default();
    let method = |text: &str, options: &QuantOptions| {
        let model = text::parse_model(text, &Registry).unwrap();
        let layout = quantize::layout(&model, options).unwrap();
        layout.method(&model.graph, options.method, &options.activations)
    };
    let conv = "model opset=17 graph \"g\" { input %x: f32[1, 2, 4, 4] const %w: f32[2, 2, 1, 1] = random(1)
        %y = Conv(%x, %w) output %y }";
    let products = "model opset=17 graph \"g\" { input %x: f32[1, 2, 4, 4] const %w: f32[2, 2, 1, 1] = random(1)
        const %v: f32[4, 4] = random(2) %c = Conv(%x, %w) %y = MatMul(%c, %v) output %y }";
    assert_eq!(method(conv, &options), Method::Mse);
    assert_eq!(method(products, &options), Method::Minmax);
    let mut wide = options.clone();
    wide.activations.format = NumberFormat::Int16;
    assert_eq!(method(conv, &wide), Method::Minmax);
    assert_eq!(method(conv, &QuantOptions { method: Method::Entropy, ..options }), Method::Entropy);
}
