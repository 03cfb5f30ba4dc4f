//! Convolutions are rounded behind their functions, and what depthwise ones read may have a scale per channel.

use narrowbit_ir::{Graph, Model, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_quant::calibrate::{CalibrateError, Calibrator};
use narrowbit_quant::encodings::{Encodings, Format};
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

/// What calibration sees of the samples.
fn ranges(model: &Model, options: &QuantOptions) -> Ranges {
    let layout = quantize::layout(model, options).unwrap();
    let (observed, channels) = (layout.observed(&model.graph), quantize::channels(&model.graph, &layout, options));
    let mut calibrator =
        Calibrator::with_channels(&model.graph, &observed, &channels, false, 1, Ranges::default()).unwrap();
    calibrator.add(std::iter::once(Ok::<_, CalibrateError>((vec![samples()], 1))), |_, _| {}).unwrap();
    calibrator.into_ranges()
}

/// Quantizes on the samples; the plan, the names of the operators in order, and the error of each channel's outputs as a
/// share of their magnitude.
fn quantized(function: &str, options: &QuantOptions) -> (QuantPlan, Vec<String>, Vec<f32>) {
    let mut model = model(function);
    let want = outputs(&model.graph);
    let (layout, ranges) = (quantize::layout(&model, options).unwrap(), ranges(&model, options));
    let exec = Exec::new(Isa::detect(), 1);
    let (plan, _) = quantize::quantize(&mut model, layout, &ranges, options, &exec).unwrap();
    let got = outputs(&model.graph);
    let share = |c: usize| {
        let (a, b) = (&want[c * 64..][..64], &got[c * 64..][..64]);
        let error: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
        (error / a.iter().map(|a| a * a).sum::<f32>()).sqrt()
    };
    (plan, model.graph.nodes().map(|(_, n)| n.op.name().to_owned()).collect(), (0..4).map(share).collect())
}

const RELU: &str = "%a = Relu(%c)";
const FUNCTIONS: [&str; 4] = [
    "%a = HardSwish(%c)",
    "%s = Sigmoid(%c) %a = Mul(%c, %s)",
    "%a = LeakyRelu(%c)",
    "const %f: f32[1] = 0.5 const %s: f32[] = 0.125 %h = HardSwish(%c) %m = Mul(%f, %h) %a = Add(%m, %s)",
];

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
    let ranges = ranges(&even, &options);
    let exec = Exec::new(Isa::detect(), 1);
    let (plan, _) = quantize::quantize(&mut even, layout, &ranges, &options, &exec).unwrap();
    assert!(plan.channel_scales.is_empty(), "nothing is gained by more scales");
}

#[test]
fn rounds_convolutions_before_their_functions_where_that_is_asked_for() {
    let rounded = QuantOptions { float_outputs: false, ..QuantOptions::default() };
    for (function, pairs) in FUNCTIONS.into_iter().chain([RELU]).zip([4, 5, 4, 6, 3]) {
        let (plan, ops, _) = quantized(function, &rounded);
        assert!(plan.channel_scales.is_empty());
        assert_eq!(ops.iter().filter(|o| *o == "QuantizeLinear").count(), pairs, "{function}: {ops:?}");
    }
}

#[test]
fn rounds_once_behind_factors_and_summands_of_images() {
    let pairs = |function: &str| {
        let (_, ops, _) = quantized(function, &QuantOptions::default());
        ops.iter().filter(|o| *o == "QuantizeLinear").count()
    };
    let channels = "const %f: f32[1, 4, 1, 1] = [1, 2, 0.5, 0.25] const %s: f32[4, 1, 1] = [1, 2, 3, 4]";
    // The input, and what the depthwise convolution reads.
    assert_eq!(pairs(&format!("{channels} %h = Relu(%c) %a = Mul(%h, %f)")), 2);
    assert_eq!(pairs("const %s: f32[] = 2 %h = Relu(%c) %m = Add(%s, %h) %a = Mul(%m, %s)"), 2);
    // A constant of fewer axes, one of another axis, and a value that others read.
    assert_eq!(pairs(&format!("{channels} %h = Relu(%c) %a = Add(%h, %s)")), 3);
    assert_eq!(pairs("const %f: f32[1, 1, 8, 1] = random(5) %h = Relu(%c) %a = Mul(%h, %f)"), 3);
    assert_eq!(pairs("const %f: f32[] = 0.5 %h = HardSwish(%c) %m = Mul(%h, %f) %a = Add(%m, %h)"), 4);
}

/// Quantizes by decisions alone: the operators in order and every constant, or why not.
fn by_decisions(given: &Encodings) -> Result<Vec<(String, Tensor)>, String> {
    let (mut model, options) = (model(FUNCTIONS[0]), QuantOptions::default());
    let layout = quantize::layout(&model, &options).unwrap();
    let ranges = ranges(&model, &options);
    let exec = Exec::new(Isa::detect(), 1);
    quantize::quantize_with(&mut model, layout, &ranges, given, &options, Default::default(), &exec)
        .map_err(|e| e.to_string())?;
    Ok(constants(&model.graph))
}

fn constants(graph: &Graph) -> Vec<(String, Tensor)> {
    let of = |(_, n): (_, &narrowbit_ir::Node)| n.inputs.iter().flatten().copied().collect::<Vec<_>>();
    let values = graph.nodes().flat_map(of);
    values.filter_map(|v| Some((graph.value(v).name.clone(), graph.constant(v)?.clone()))).collect()
}

#[test]
fn takes_decided_scales_of_channels_back() {
    let (mut model, options) = (model(FUNCTIONS[0]), QuantOptions::default());
    let (layout, ranges) = (quantize::layout(&model, &options).unwrap(), ranges(&model, &options));
    quantize::quantize(&mut model, layout, &ranges, &options, &Exec::new(Isa::detect(), 1)).unwrap();
    let decided = Encodings::decided(&model.graph, Some(&options));
    assert_eq!((decided["a"].axis, decided["a"].scales.len()), (Some(1), 4));
    let same = by_decisions(&Encodings::of_decided(&decided).unwrap()).unwrap();
    assert_eq!(same, constants(&model.graph));

    let edited = |edit: fn(&mut narrowbit_quant::encodings::Decided)| {
        let mut edited = decided.clone();
        edit(edited.get_mut("a").unwrap());
        by_decisions(&Encodings::of_decided(&edited).unwrap())
    };
    assert_ne!(edited(|a| a.scales[3] *= 2.0).unwrap(), same, "a scale that is edited");
    let whole = edited(|a| {
        (a.axis, a.scales, a.scales_for) = (None, vec![0.5], None);
        a.zero_points.truncate(1);
    })
    .unwrap();
    assert!(whole.iter().any(|(name, t)| name == "a_scale" && t.rank() == 0), "one scale for the tensor");
    for (edit, says) in [
        ((|a| a.zero_points[1] += 1) as fn(&mut narrowbit_quant::encodings::Decided), "one zero point"),
        (|a| [a.scales.truncate(3), a.zero_points.truncate(3)][0], "3 scales for 4 channels"),
        (|a| (a.axis, a.scales_for) = (Some(2), None), "along axis 1"),
    ] {
        assert!(edited(edit).is_err_and(|e| e.contains(says)), "{says}");
    }
    let mut other = decided.clone();
    other.insert("x".into(), decided["a"].clone());
    let refused = by_decisions(&Encodings::of_decided(&other).unwrap());
    assert!(refused.is_err_and(|e| e.contains("x: only what a depthwise convolution alone reads")));
}

#[test]
fn writes_scales_of_channels_only_where_the_format_has_them() {
    let (mut model, options) = (model(FUNCTIONS[0]), QuantOptions::default());
    let (layout, ranges) = (quantize::layout(&model, &options).unwrap(), ranges(&model, &options));
    quantize::quantize(&mut model, layout, &ranges, &options, &Exec::new(Isa::detect(), 1)).unwrap();
    let held = Encodings::of_graph(&model.graph).unwrap();
    let refused = held.write(Format::Ort).unwrap_err().to_string();
    assert!(refused.contains("\"a\"") && refused.contains("--channel-activations=no"), "{refused}");
    for format in [Format::Aimet, Format::AimetV0] {
        let text = held.write(format).unwrap();
        let read = Encodings::parse(text.as_bytes(), std::path::Path::new("a.json")).unwrap();
        assert_eq!(read.tensors["a"].values, held.tensors["a"].values);
    }
}

#[test]
fn gives_stacks_of_constant_matrices_one_scale() {
    let text = "model opset=17 graph \"g\" { input %x: f32[1, 4, 8, 8] const %stack: f32[4, 8, 6] = random(3)
                const %matrix: f32[6, 5] = random(4) %a = MatMul(%x, %stack) %y = MatMul(%a, %matrix) output %y }";
    let mut model = text::parse_model(text, &Registry).unwrap();
    let options = QuantOptions::default();
    let (layout, ranges) = (quantize::layout(&model, &options).unwrap(), ranges(&model, &options));
    quantize::quantize(&mut model, layout, &ranges, &options, &Exec::new(Isa::detect(), 1)).unwrap();
    let scales = |name: &str| {
        let constants = constants(&model.graph);
        constants.into_iter().find(|(n, _)| n == name).map(|(_, t)| t.len())
    };
    assert_eq!((scales("stack_scale"), scales("matrix_scale")), (Some(1), Some(5)));
}
