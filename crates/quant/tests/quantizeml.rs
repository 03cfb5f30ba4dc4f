//! What is rounded in small networks, and where, beside QuantizeML itself.
//!
//! `tests/fixtures/quantizeml_blocks.py` made the networks as Keras models and as ONNX files with the same names, and recorded
//! which layers of the one the tool gives an output quantizer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use narrowbit_ir::{Graph, Model, ValueId};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_quant::calibrate::{CalibrateError, Calibrator};
use narrowbit_quant::fill;
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::plan::{QuantPlan, Reason};
use narrowbit_quant::quantize;
use narrowbit_quant::ranges::Ranges;
use narrowbit_quant::scheme::{NumberFormat, Preset, quantizeml};
use narrowbit_tensor::Tensor;
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    shape: [usize; 4],
    batch: usize,
    samples: Vec<u8>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    network: String,
    settings: Settings,
    rounded: Vec<Rounded>,
    weights: Vec<Behind>,
}

/// The greatest magnitude of a layer's float weights of each input channel after the equalization.
#[derive(Deserialize)]
struct Behind {
    layer: String,
    peaks: Vec<f32>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    per_tensor_activations: bool,
    activation_bits: Option<u8>,
    weight_bits: Option<u8>,
}

/// A layer with an output quantizer.
#[derive(Deserialize)]
struct Rounded {
    layer: String,
    bits: u8,
    signed: bool,
    per_axis: bool,
    peaks: Vec<f32>,
    fracs: Vec<i32>,
    /// After the equalization.
    equalized_fracs: Vec<i32>,
    rates: Vec<f32>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn fixture() -> Fixture {
    let text = std::fs::read_to_string(fixtures().join("schemes/quantizeml-blocks.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn options(s: &Settings) -> QuantOptions {
    let mut o = Preset::Quantizeml.options();
    o.per_tensor_activations = s.per_tensor_activations;
    o.activations.bits = s.activation_bits.or(o.activations.bits);
    o.weights.bits = s.weight_bits.or(o.weights.bits);
    o.input_weight_bits = Some(8);
    o
}

fn network(name: &str) -> Model {
    let mut model = narrowbit_import::onnx::load(fixtures().join(format!("blocks/{name}.onnx"))).unwrap();
    narrowbit_passes::sanitize(&mut model, &narrowbit_passes::SanitizeOptions::default()).unwrap();
    model
}

fn batches(f: &Fixture) -> impl Iterator<Item = Result<(Vec<Tensor>, u64), CalibrateError>> + Send + '_ {
    let [_, c, h, w] = f.shape;
    f.samples.chunks(f.batch * c * h * w).map(move |part| {
        let values: Vec<f32> = part.iter().map(|&v| v.into()).collect();
        Ok((vec![Tensor::new([f.batch, c, h, w], values).unwrap()], f.batch as u64))
    })
}

/// Calibrates and plans; the graph is the float one.
fn planned(model: &Model, f: &Fixture, options: &QuantOptions) -> (QuantPlan, Ranges) {
    let layout = quantize::layout(model, options).unwrap();
    let (observed, channels) = (layout.observed(&model.graph), quantize::channels(&model.graph, &layout, options));
    let mut calibrator =
        Calibrator::with_channels(&model.graph, &observed, &channels, false, 1, Ranges::default()).unwrap();
    calibrator.add(batches(f), |_, _| {}).unwrap();
    let ranges = calibrator.into_ranges();
    let exec = Exec::new(Isa::detect(), 1);
    (QuantPlan::new(&model.graph, layout, &ranges.tensors, options, &exec).unwrap(), ranges)
}

/// The Keras layer that makes a value: normalizations went into their convolutions, means are two nodes.
fn layer(graph: &Graph, v: ValueId) -> String {
    let name = &graph.value(v).name;
    name.strip_suffix("_pool").unwrap_or(name).replace("bn", "conv")
}

#[test]
fn rounds_what_the_tool_rounds_at_its_positions() {
    let f = fixture();
    assert_eq!(f.cases.len(), 15);
    for case in &f.cases {
        let (model, about) = (network(&case.network), format!("{} {:?}", case.network, case.settings));
        let (plan, ranges) = planned(&model, &f, &options(&case.settings));
        let graph = &model.graph;
        let made = plan.activations.iter().filter(|(v, _)| !graph.inputs().contains(v));
        let made: BTreeMap<String, ValueId> = made.map(|(&v, _)| (layer(graph, v), v)).collect();
        let wanted: BTreeSet<&str> = case.rounded.iter().map(|r| r.layer.as_str()).collect();
        assert_eq!(made.keys().map(String::as_str).collect::<BTreeSet<_>>(), wanted, "{about}");
        for r in &case.rounded {
            let (v, about) = (made[&r.layer], format!("{about}: {}", r.layer));
            let params = &plan.activations[&v];
            let signed = params.scheme.format != NumberFormat::Uint8;
            assert_eq!((params.scheme.bits, signed), (Some(r.bits), r.signed), "{about}");
            let scales = plan.channel_scales.get(&v);
            assert_eq!(scales.is_some(), r.per_axis, "{about}");
            let fracs: Vec<i32> =
                scales.unwrap_or(&vec![params.point.scale]).iter().map(|&s| quantizeml::frac_of(s)).collect();
            assert_eq!(fracs, r.fracs, "{about}");
            let stats = &ranges.tensors[&graph.value(v).name];
            let peaks = match r.per_axis {
                true => stats.peaks.as_ref().unwrap().values().to_vec(),
                false => vec![stats.peak.value().unwrap()],
            };
            for (a, b) in peaks.iter().zip(&r.peaks) {
                // Convolutions sum up in another order.
                assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{about}: {a} {b}");
            }
        }
    }
}

/// What the tool multiplies although nothing multiplies its integers: sums of two values.
const SUMS: &[&str] = &["add2"];

#[test]
fn fills_codes_by_the_tools_rates() {
    let f = fixture();
    let (mut checked, exec) = (0, Exec::new(Isa::detect(), 1));
    for case in &f.cases {
        let options = options(&case.settings);
        let (mut model, about) = (network(&case.network), format!("{} {:?}", case.network, case.settings));
        let float = model.clone();
        let (plan, ranges) = planned(&model, &f, &options);
        let rates = fill::rates(&model.graph, &plan, &ranges.tensors, &options);
        let names: BTreeMap<String, &String> =
            rates.keys().map(|n| (n.strip_suffix("_pool").unwrap_or(n).replace("bn", "conv"), n)).collect();
        // Bounds differ by channel where a Clip has one for all.
        let clipped = |r: &Rounded| case.network == "chain" && r.layer == "relu2" && r.per_axis;
        let left = |r: &Rounded| SUMS.contains(&r.layer.as_str()) || clipped(r) || r.rates.iter().all(|&x| x == 1.0);
        for r in &case.rounded {
            assert_eq!(names.contains_key(&r.layer), !left(r), "{about}: {}", r.layer);
            let Some(name) = names.get(&r.layer) else { continue };
            assert_eq!(rates[*name].len(), r.rates.len(), "{about}: {}", r.layer);
            for (a, b) in rates[*name].iter().zip(&r.rates) {
                assert!((a - b).abs() <= 1e-5, "{about}: {}: {a} {b}", r.layer);
            }
            checked += 1;
        }
        fill::apply(&mut model.graph, &rates).unwrap();
        same_function(&float, &model, &f, &about);
        // What these make is not multiplied, so that their weights are only divided, as in the tool.
        for w in case.weights.iter().filter(|w| w.layer == "head" || case.network == "residual" && w.layer == "conv3") {
            let found = input_peaks(&model.graph, &w.layer, w.peaks.len());
            for (a, b) in found.iter().zip(&w.peaks) {
                // Peaks of calibration differ in the last bits, and so do rates.
                assert!((a / b - 1.0).abs() <= 1e-5, "{about}: {}: {a} {b}", w.layer);
            }
        }
        let (mut again, layout) = (network(&case.network), quantize::layout(&float, &options).unwrap());
        let (plan, _) = quantize::quantize(&mut again, layout, &ranges, &options, &exec).unwrap();
        assert_eq!(plan.rates, rates, "{about}");
        for r in case.rounded.iter().filter(|r| !left(r)) {
            let name = format!("{}_equalized", names[&r.layer]);
            // Identifiers are those before the rewriting.
            let found = plan.activations.keys().find(|&&v| model.graph.value(v).name == name);
            let v = *found.unwrap_or_else(|| panic!("{name} is not planned"));
            let scales = plan.channel_scales.get(&v).cloned().unwrap_or(vec![plan.activations[&v].point.scale]);
            let fracs: Vec<i32> = scales.iter().map(|&s| quantizeml::frac_of(s)).collect();
            assert_eq!(fracs, r.equalized_fracs, "{about}: {name}");
        }
    }
    assert!(checked > 30, "{checked}");
}

/// Checks that two graphs compute the same up to the rounding of f32.
fn same_function(a: &Model, b: &Model, f: &Fixture, about: &str) {
    let (inputs, _) = batches(f).next().unwrap().unwrap();
    let run =
        |m: &Model| narrowbit_ir::interp::run_tensors(&m.graph, &inputs).unwrap()[0].to_f32s().unwrap().into_owned();
    let (a, b) = (run(a), run(b));
    let most = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-4 * most), "{about}: {a:?} {b:?}");
}

/// The greatest magnitude of a layer's weights of each input channel; a flattened image has the elements of a channel
/// one after the other.
fn input_peaks(graph: &Graph, layer: &str, channels: usize) -> Vec<f32> {
    let (_, node) = graph.nodes().find(|(_, n)| n.name == layer).unwrap();
    let weight = graph.constant(node.input(1).unwrap()).unwrap();
    let (values, inner) = (weight.to_f32s().unwrap(), weight.shape()[1..].iter().product::<usize>());
    let mut peaks = vec![0f32; channels];
    for (i, w) in values.iter().enumerate() {
        let peak = &mut peaks[i % inner * channels / inner];
        *peak = peak.max(w.abs());
    }
    peaks
}

#[test]
fn holds_bytes_of_the_input_without_a_sign() {
    let f = fixture();
    let model = network("chain");
    let (plan, _) = planned(&model, &f, &options(&Settings { activation_bits: Some(4), ..Settings::default() }));
    let input = &plan.activations[&model.graph.inputs()[0]];
    assert_eq!((input.scheme.format, input.scheme.bits, input.point.scale), (NumberFormat::Uint8, Some(8), 1.0));
}

#[test]
fn ends_before_the_first_operator_without_integer_form() {
    let text = r#"model opset=17 graph "g" { input %x: f32[1, 4, 8, 8] const %w: f32[4, 4, 1, 1] = random(1)
        %a = Conv(%x, %w) %e = Exp(%a) %b = Conv(%e, %w) %c = Conv(%x, %w) %d = Conv(%c, %w) output %b output %d }"#;
    let model: Model = narrowbit_ir::text::parse_model(text, &narrowbit_ops::Registry).unwrap();
    let layout = quantize::layout(&model, &Preset::Quantizeml.options()).unwrap();
    let of = |name: &str| {
        let v = model.graph.nodes().find(|(_, n)| model.graph.value(n.output(0).unwrap()).name == name).unwrap().0;
        layout.reasons.get(&v).copied()
    };
    assert_eq!((of("e"), of("b")), (Some(Reason::FloatOperator), Some(Reason::BehindFloat)));
    // What does not depend on it stays.
    assert_eq!((of("a"), of("c"), of("d")), (None, None, None));
    assert_eq!(quantize::layout(&model, &QuantOptions::default()).unwrap().reasons.len(), 1);
}

#[test]
fn refuses_rates_of_what_it_can_not_scale() {
    let rates = |name: &str, rates: &[f32]| fill::Rates::from([(name.to_owned(), rates.to_vec())]);
    let float = network("residual");
    // Two nodes read relu1; a rate for each of nine channels; no rate; no such value.
    for (name, own) in
        [("relu1", &[0.5f32][..]), ("relu2", &[0.5; 9]), ("relu2", &[0.0]), ("none", &[0.5]), ("input", &[0.5])]
    {
        let mut model = float.clone();
        let error = fill::apply(&mut model.graph, &rates(name, own)).unwrap_err().to_string();
        assert!(error.contains(&format!("\"{name}\"")) && error.contains("help:"), "{error}");
    }
    let mut model = float.clone();
    fill::apply(&mut model.graph, &rates("relu2", &[0.5; 8])).unwrap();
    same_function(&float, &model, &fixture(), "relu2");
}
