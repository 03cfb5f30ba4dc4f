//! Convolutions are rounded behind their functions, and what depthwise ones read may have a scale per channel.

use narrowbit_ir::{Graph, Model, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_quant::calibrate::{CalibrateError, Calibrator};
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::plan::QuantPlan;
use narrowbit_quant::quantize;
use narrowbit_quant::ranges::Ranges;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

/// Convolution, `function`, depthwise convolution of 4 channels whose ranges are 1, 10, 100 and 1000.
fn model(function: &str) -> Model {
    let eye = "[1, 0, 0, 0, 0, 10, 0, 0, 0, 0, 100, 0, 0, 0, 0, 1000]";
    let text = format!(
        "model opset=17 graph \"g\" {{ input %x: f32[1, 4, 8, 8] const %w: f32[4, 4, 1, 1] = {eye}
         const %v: f32[4, 1, 3, 3] = random(2) const %b: f32[4] = [0.5, -0.25, 4, 1]
         %c = Conv(%x, %w) {function} %y = Conv(%a, %v, %b) {{group=4, pads=[1, 1, 1, 1]}} output %y }}"
    );
    text::parse_model(&text, &Registry).unwrap()
}

fn samples() -> Tensor {
    let mut state = 7u32;
    let value = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    Tensor::new([1, 4, 8, 8], (0..256).map(value).collect::<Vec<f32>>()).unwrap()
}

fn outputs(graph: &Graph) -> Vec<f32> {
    let session = Session::new(graph.clone(), Options { threads: 1, ..Options::default() }).unwrap();
    session.run(&[samples()]).unwrap()[0].to_f32s().unwrap().into_owned()
}

/// Quantizes on the samples; the plan, the names of the operators in order, and the error of each channel's outputs as a
/// share of their magnitude.
fn quantized(function: &str, options: &QuantOptions) -> (QuantPlan, Vec<String>, Vec<f32>) {
    let mut model = model(function);
    let want = outputs(&model.graph);
    let layout = quantize::layout(&model, options).unwrap();
    let (observed, channels) = (layout.observed(&model.graph), quantize::channels(&model.graph, &layout, options));
    let calibrator =
        Calibrator::with_channels(&model.graph, &observed, &channels, false, 1, Ranges::default()).unwrap();
    let mut calibrator = calibrator;
    calibrator.add(std::iter::once(Ok::<_, CalibrateError>((vec![samples()], 1))), |_, _| {}).unwrap();
    let exec = Exec::new(Isa::detect(), 1);
    let (plan, _) = quantize::quantize(&mut model, layout, &calibrator.into_ranges(), options, &exec).unwrap();
    let got = outputs(&model.graph);
    let share = |c: usize| {
        let (a, b) = (&want[c * 64..][..64], &got[c * 64..][..64]);
        let error: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
        (error / a.iter().map(|a| a * a).sum::<f32>()).sqrt()
    };
    (plan, model.graph.nodes().map(|(_, n)| n.op.name().to_owned()).collect(), (0..4).map(share).collect())
}

const RELU: &str = "%a = Relu(%c)";
const FUNCTIONS: [&str; 3] = ["%a = HardSwish(%c)", "%s = Sigmoid(%c) %a = Mul(%c, %s)", "%a = LeakyRelu(%c)"];

#[test]
fn gives_channels_of_a_depthwise_input_scales_of_their_own() {
    for function in FUNCTIONS {
        let (plan, ops, errors) = quantized(function, &QuantOptions::default());
        let scales = plan.channel_scales.values().next().unwrap();
        assert_eq!(scales.len(), 4, "{function}");
        assert!(errors.iter().all(|&e| e < 0.03), "{function}: {errors:?}");
        // The input, and what the depthwise convolution reads; the outputs stay float.
        assert_eq!(ops.iter().filter(|o| *o == "QuantizeLinear").count(), 2, "{ops:?}");
        let bias = plan.biases.values().find(|b| b.scales.len() == 4 && b.scales[0] != b.scales[3]).unwrap();
        let weight = plan.weights.values().find(|w| w.axis.is_some() && w.points[0] != w.points[1]).unwrap();
        assert!(bias.per_channel && weight.points.len() == 4);
    }
}

#[test]
fn has_one_scale_where_that_is_asked_for_or_where_channels_are_alike() {
    let one = QuantOptions { channel_activations: false, ..QuantOptions::default() };
    let (plan, _, errors) = quantized(FUNCTIONS[0], &one);
    assert!(plan.channel_scales.is_empty());
    assert!(errors[0] > 0.1, "the test wants a channel that one scale does not do for: {errors:?}");
    assert!(quantized(RELU, &QuantOptions::default()).0.channel_scales.is_empty(), "ONNX Runtime can't run it");
    let mut even = model(FUNCTIONS[0]);
    let w = even.graph.value_named("w").unwrap();
    let mut patch = narrowbit_ir::Patch::new(&even.graph);
    let ones: Vec<f32> = (0..16).map(|i| if i % 5 == 0 { 1.0 } else { 0.0 }).collect();
    let ones = patch.constant("ones", Tensor::new([4, 4, 1, 1], ones).unwrap());
    patch.replace(w, ones);
    even.graph.apply(patch).unwrap();
    let options = QuantOptions::default();
    let layout = quantize::layout(&even, &options).unwrap();
    let channels = quantize::channels(&even.graph, &layout, &options);
    assert_eq!(channels.len(), 1);
    let observed = layout.observed(&even.graph);
    let mut calibrator =
        Calibrator::with_channels(&even.graph, &observed, &channels, false, 1, Ranges::default()).unwrap();
    calibrator.add(std::iter::once(Ok::<_, CalibrateError>((vec![samples()], 1))), |_, _| {}).unwrap();
    let exec = Exec::new(Isa::detect(), 1);
    let (plan, _) = quantize::quantize(&mut even, layout, &calibrator.into_ranges(), &options, &exec).unwrap();
    assert!(plan.channel_scales.is_empty(), "nothing is gained by more scales");
}

#[test]
fn rounds_convolutions_before_their_functions_where_that_is_asked_for() {
    let rounded = QuantOptions { float_outputs: false, ..QuantOptions::default() };
    for (function, pairs) in FUNCTIONS.into_iter().chain([RELU]).zip([4, 5, 4, 3]) {
        let (plan, ops, _) = quantized(function, &rounded);
        assert!(plan.channel_scales.is_empty());
        assert_eq!(ops.iter().filter(|o| *o == "QuantizeLinear").count(), pairs, "{function}: {ops:?}");
    }
}
