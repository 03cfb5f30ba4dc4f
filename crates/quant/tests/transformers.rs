//! Transformers as fixed point computes them: where integers go, beside QuantizeML's own numbers.

use std::collections::BTreeMap;
use std::path::Path;

use narrowbit_fixed::{FixedModel, Options, Rounding};
use narrowbit_ir::{AttrMap, Model, Patch, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_ops::functions::LayerMad;
use narrowbit_passes::{SanitizeOptions, replace};
use narrowbit_quant::calibrate::{CalibrateError, Calibrator};
use narrowbit_quant::observe::Stats;
use narrowbit_quant::options::{Override, QuantOptions};
use narrowbit_quant::plan::{QuantPlan, Reason};
use narrowbit_quant::qdq;
use narrowbit_quant::quantize;
use narrowbit_quant::ranges::Ranges;
use narrowbit_quant::scheme::Preset;
use narrowbit_tensor::Tensor;
use serde::Deserialize;

fn exec() -> Exec {
    Exec::new(Isa::detect(), 1)
}

fn model(body: &str) -> Model {
    let text = format!("model opset=20 graph \"g\" {{ {body} }}");
    let mut model = text::parse_model(&text, &Registry).unwrap_or_else(|e| panic!("{e}\n{text}"));
    narrowbit_passes::sanitize(&mut model, &SanitizeOptions::default()).unwrap();
    model
}

/// Numbers all over `-spread..spread`, the same at each run.
fn numbers(len: usize, spread: f32, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() * spread).collect()
}

fn constant(name: &str, shape: &[usize], spread: f32, seed: u32) -> String {
    let values: Vec<String> = numbers(shape.iter().product(), spread, seed).iter().map(f32::to_string).collect();
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("const %{name}: f32[{}] = [{}]\n", dims.join(", "), values.join(", "))
}

/// A block with a class token: norm, attention of two heads, norm, two products with a Gelu between, and a head.
fn block() -> Model {
    let constants = [
        constant("w", &[8, 24], 0.6, 1),
        constant("b", &[24], 0.2, 2),
        constant("wo", &[8, 8], 0.6, 3),
        constant("bo", &[8], 0.2, 4),
        constant("w1", &[8, 16], 0.6, 5),
        constant("b1", &[16], 0.3, 6),
        constant("w2", &[16, 8], 0.6, 7),
        constant("b2", &[8], 0.2, 8),
        constant("wh", &[8, 3], 0.8, 9),
        constant("cls", &[1, 1, 8], 1.0, 10),
        constant("pos", &[1, 7, 8], 0.4, 11),
        constant("g1", &[8], 1.4, 12),
        constant("n1", &[8], 0.3, 13),
        constant("g2", &[8], 1.4, 14),
        constant("n2", &[8], 0.3, 15),
    ];
    model(&format!(
        "input %x: f32[n, 6, 8] {}
        const %s5: i64[5] = [0, 7, 3, 2, 4] const %s3: i64[3] = [0, 7, 8] const %ax: i64[1] = [2] const %first: i64[] = 0 const %f: f32[] = 0.5
        const %zero: i64[1] = [0] const %one: i64[1] = [1] const %rest: i64[2] = [1, 8] const %size: i64[1] = [1]
        const %we: f32[8, 8] = [{}] %e = MatMul(%x, %we)
        %shape = Shape(%e) %n = Slice(%shape, %zero, %one, %zero) %times = Concat(%n, %rest) {{axis=0}} %c = Expand(%cls, %times)
        %t = Concat(%c, %e) {{axis=1}} %h0 = Add(%t, %pos)
        %l1 = LayerNormalization(%h0, %g1, %n1) %m = MatMul(%l1, %w) %qkv = Add(%m, %b)
        %r = Reshape(%qkv, %s5) %q0, %k0, %v0 = Split(%r) {{axis=2, num_outputs=3}}
        %q1 = Squeeze(%q0, %ax) %k1 = Squeeze(%k0, %ax) %v1 = Squeeze(%v0, %ax)
        %q = Transpose(%q1) {{perm=[0, 2, 1, 3]}} %k = Transpose(%k1) {{perm=[0, 2, 3, 1]}} %v = Transpose(%v1) {{perm=[0, 2, 1, 3]}}
        %s = MatMul(%q, %k) %sc = Mul(%s, %f) %p = Softmax(%sc) %o = MatMul(%p, %v)
        %ot = Transpose(%o) {{perm=[0, 2, 1, 3]}} %or = Reshape(%ot, %s3) %om = MatMul(%or, %wo) %oa = Add(%om, %bo) %h1 = Add(%h0, %oa)
        %l2 = LayerNormalization(%h1, %g2, %n2) %m1 = MatMul(%l2, %w1) %a1 = Add(%m1, %b1) %ge = Gelu(%a1)
        %m2 = MatMul(%ge, %w2) %a2 = Add(%m2, %b2) %h2 = Add(%h1, %a2) %y0 = Gather(%h2, %first) {{axis=1}} %y = MatMul(%y0, %wh) output %y",
        constants.join(" "),
        numbers(64, 0.6, 16).iter().map(f32::to_string).collect::<Vec<_>>().join(", "),
    ))
}

fn options() -> QuantOptions {
    QuantOptions { shiftmax: true, layer_mad: true, ..Preset::Quantizeml.options() }
}

fn replaced(mut model: Model) -> Model {
    assert_eq!(replace::shiftmax(&mut model).unwrap().count, 1);
    assert_eq!(replace::layer_mad(&mut model).unwrap().count, 2);
    model
}

fn sample(seed: u32) -> Tensor {
    Tensor::new(vec![2, 6, 8], numbers(96, 2.0, seed)).unwrap()
}

/// Calibrates and quantizes.
fn quantized(model: &mut Model, options: &QuantOptions) -> Vec<quantize::NodeFate> {
    let layout = quantize::layout(model, options).unwrap();
    let (observed, channels) = (layout.observed(&model.graph), quantize::channels(&model.graph, &layout, options));
    let mut calibrator =
        Calibrator::with_channels(&model.graph, &observed, &channels, false, 1, Ranges::default()).unwrap();
    calibrator.add((0..4).map(|i| Ok::<_, CalibrateError>((vec![sample(i)], 2))), |_, _| {}).unwrap();
    let ranges = calibrator.into_ranges();
    quantize::quantize(model, layout, &ranges, options, &exec()).unwrap().1
}

#[test]
fn takes_integers_from_end_to_end_of_a_transformer() {
    let float = replaced(block());
    let mut model = float.clone();
    let fates = quantized(&mut model, &options());
    let floats: Vec<_> = fates.iter().filter(|f| !f.integer && f.reason != Some(Reason::NotFloatData.code())).collect();
    // The class token, which is repeated for each sample, is rounded where it is joined.
    assert_eq!(floats.iter().map(|f| f.op.as_str()).collect::<Vec<_>>(), ["Expand"], "{floats:?}");
    let x = sample(99);
    let fixed = FixedModel::new(model.graph.clone(), Options::default(), exec()).run(std::slice::from_ref(&x)).unwrap();
    let graph = narrowbit_ir::interp::run_tensors(&model.graph, std::slice::from_ref(&x)).unwrap();
    let exact = narrowbit_ir::interp::run_tensors(&float.graph, &[x]).unwrap();
    assert_eq!(fixed[0].to_f32s().unwrap(), graph[0].to_f32s().unwrap());
    let (a, b) = (exact[0].to_f32s().unwrap(), fixed[0].to_f32s().unwrap());
    let (error, size): (f32, f32) =
        a.iter().zip(b.iter()).map(|(a, b)| ((a - b).powi(2), a * a)).fold((0.0, 0.0), |s, v| (s.0 + v.0, s.1 + v.1));
    // Eight bits for each of twenty tensors, and logits whose fractions are cut off.
    assert!(error < 0.25 * size, "{error} of {size}");
}

#[test]
fn rounds_no_scores_and_no_powers_of_two() {
    let model = replaced(block());
    let layout = quantize::layout(&model, &options()).unwrap();
    let names: Vec<&str> = layout.observed(&model.graph).iter().map(|&v| model.graph.value(v).name.as_str()).collect();
    let [shiftmax] = &layout.functions.shiftmax[..] else { panic!("{:?}", layout.functions) };
    for v in [shiftmax.x, shiftmax.y] {
        assert!(!names.contains(&model.graph.value(v).name.as_str()), "{names:?}");
    }
    // Queries, keys and values are of one product, the data of both normalizations are sums, their results feed products.
    for norm in &layout.functions.norms {
        for v in [norm.x, norm.y] {
            assert!(names.contains(&model.graph.value(v).name.as_str()), "{names:?}");
        }
    }
    assert!(names.contains(&"qkv"), "{names:?}");
}

#[test]
fn ends_integers_where_functions_stay() {
    let o = QuantOptions { shiftmax: false, layer_mad: false, ..options() };
    let layout = quantize::layout(&block(), &o).unwrap();
    assert!(layout.functions.norms.is_empty() && layout.functions.shiftmax.is_empty());
    let mut model = replaced(block());
    // What an exception keeps float is no function of integers, and all that depends on it is float.
    let float = Override { name: Some("*_Shiftmax".into()), float: Some(true), ..Override::default() };
    let o = QuantOptions { overrides: vec![float], ..options() };
    let layout = quantize::layout(&model, &o).unwrap();
    assert!(layout.functions.shiftmax.is_empty(), "{:?}", layout.functions);
    assert_eq!(layout.functions.norms.len(), 1);
    let fates = quantized(&mut model, &o);
    assert!(fates.iter().any(|f| f.reason == Some(Reason::BehindFloat.code()) && f.op == "Gelu"));
    FixedModel::new(model.graph, Options::default(), exec()).run(&[sample(3)]).unwrap();
}

#[test]
fn refuses_functions_for_other_schemes() {
    let o = QuantOptions { shiftmax: true, ..QuantOptions::default() };
    assert!(quantize::layout(&block(), &o).unwrap_err().to_string().contains("--scheme quantizeml"));
}

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Norm {
    channels: usize,
    frac: i32,
    buffer: u8,
    x: Vec<i64>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    peak: f32,
    gamma_codes: Vec<i64>,
    scale: f32,
    beta_codes: Vec<i64>,
    out_frac: i32,
    y: Vec<i64>,
}

/// Data as a product makes them, `x · 2⁻⁷` of `channels + 1` inputs, normalized, and a product that asks for rounded results.
///
/// The weights' scale is 2⁻¹³, one of the powers of two that 8 bits hold without saturating (⌈log2⌉ is one too high), so that
/// codes of the product are those of its input.
fn normalization(n: &Norm) -> Model {
    let c = n.channels;
    let weight = |i: usize| match (i / c, i % c) {
        (row, _) if row == c => 127.0 * 2f32.powi(-13),
        (row, column) if row == column => 2f32.powi(-7),
        _ => 0.0,
    };
    let body =
        format!("input %x: f32[6, {0}] %data = Identity(%x) %end = Identity(%x) output %data output %end", c + 1);
    let mut model = text::parse_model(&format!("model opset=20 graph \"g\" {{ {body} }}"), &Registry).unwrap();
    let graph = &mut model.graph;
    let [x, normal, end] = ["x", "data", "end"].map(|name| graph.value_named(name).unwrap());
    let mut patch = Patch::new(graph);
    let product = || Registry::make("MatMul", 20, AttrMap::new()).unwrap();
    let w =
        patch.constant("w", Tensor::new(vec![c + 1, c], (0..(c + 1) * c).map(weight).collect::<Vec<f32>>()).unwrap());
    let data = patch.node("first", product(), &[Some(x), Some(w)]);
    let made = LayerMad::write(&mut patch, 20, "mad", data, &n.gamma, &n.beta).unwrap();
    patch.replace(normal, made);
    let last = patch.constant("last_weight", Tensor::new(vec![c, 1], vec![1f32; c]).unwrap());
    let last = patch.node("last", product(), &[Some(made), Some(last)]);
    patch.replace(end, last);
    graph.apply(patch).unwrap();
    narrowbit_ir::infer::annotate(graph).unwrap();
    model
}

#[test]
fn normalizes_with_the_tools_codes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/schemes/quantizeml-transformer.json");
    let fixture: Fixture = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = fixture.cases.into_iter().filter(|c| c["kind"] == "layer_mad");
    let cases: Vec<Norm> = cases.map(|c| serde_json::from_value(c).unwrap()).collect();
    assert_eq!(cases.len(), 5);
    for n in &cases {
        let o = QuantOptions { buffer_bits: Some(n.buffer), ..options() };
        let mut model = normalization(n);
        let layout = quantize::layout(&model, &o).unwrap();
        let [norm] = &layout.functions.norms[..] else { panic!("{:?}", layout.functions) };
        let name = |v| model.graph.value(v).name.clone();
        // Peaks whose positions are the tool's; inputs are 2⁷ times the data.
        let of_frac = |frac: i32| 0.9 * 2f32.powi(7 - frac);
        let x = model.graph.inputs()[0];
        let peaks = [(name(x), of_frac(n.frac - 7)), (name(norm.x), of_frac(n.frac)), (name(norm.y), n.peak)];
        let stats: BTreeMap<String, Stats> = peaks.into_iter().map(|(name, peak)| (name, seen(peak))).collect();
        let plan = QuantPlan::new(&model.graph, layout, &stats, &o, &exec()).unwrap();
        let (_, params) = &plan.norms[0];
        let whole = |v: &[i8]| v.iter().map(|&c| c.into()).collect::<Vec<i64>>();
        assert_eq!(whole(&params.gamma), n.gamma_codes);
        assert_eq!(params.beta.iter().map(|&c| c.into()).collect::<Vec<i64>>(), n.beta_codes);
        assert_eq!(params.unit * params.dividend, n.scale);
        qdq::insert(&mut model.graph, &plan, 20, &exec()).unwrap();
        let row = |row: &[i64]| row.iter().chain(&[0]).map(|&c| c as f32 * 2f32.powi(7 - n.frac)).collect::<Vec<f32>>();
        let values: Vec<f32> = n.x.chunks(n.channels).flat_map(row).collect();
        let hardware = Options { rounding: Rounding::HalfUp, buffer_bits: Some(n.buffer), ..Options::default() };
        let input = Tensor::new(vec![6, n.channels + 1], values).unwrap();
        let y = FixedModel::new(model.graph, hardware, exec()).run(&[input]).unwrap();
        let codes: Vec<i64> = y[0].to_f32s().unwrap().iter().map(|v| (v * 2f32.powi(n.out_frac)) as i64).collect();
        assert_eq!(codes, n.y, "{} channels", n.channels);
    }
}

/// The record of a value with this greatest magnitude.
fn seen(peak: f32) -> Stats {
    let mut stats = Stats::new(false);
    stats.add_sample(&[peak, -peak]);
    stats
}
