//! What is rounded in small networks, and where, beside QuantizeML itself.
//!
//! `tests/fixtures/quantizeml_blocks.py` made the networks as Keras models and as ONNX files with the same names, and recorded
//! which layers of the one the tool gives an output quantizer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use narrowbit_ir::{Graph, Model, ValueId};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_quant::calibrate::{CalibrateError, Calibrator};
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
