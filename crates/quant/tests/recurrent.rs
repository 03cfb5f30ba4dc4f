//! Weights of recurrent operators in approaches that are about weights.

use narrowbit_ir::{Model, interp, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_quant::approach::{Approach, BlockType, WeightOnlyOptions};
use narrowbit_quant::options::{Override, QuantOptions};
use narrowbit_quant::quantize::{self, NodeFate};
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::{SplitMix64, Tensor};

/// Both directions of an LSTM of 24 units and a GRU behind it, without a product of matrices.
const NETWORK: &str = r#"model opset=21 graph "g" { input %x: f32[5, 2, 40]
    const %w: f32[2, 96, 40] = random(1) const %r: f32[2, 96, 24] = random(2) const %b: f32[2, 192] = random(3)
    const %gw: f32[1, 48, 48] = random(4) const %gr: f32[1, 48, 16] = random(5) const %s: i64[3] = [5, 2, 48]
    %y = LSTM(%x, %w, %r, %b) {direction="bidirectional", hidden_size=24} @"lstm"
    %t = Transpose(%y) {perm=[0, 2, 1, 3]} @"turn"
    %f = Reshape(%t, %s) @"flat"
    %z = GRU(%f, %gw, %gr) {hidden_size=16} @"gru"
    output %z }"#;

fn model() -> Model {
    text::parse_model(NETWORK, &Registry).unwrap()
}

fn quantized(o: &QuantOptions) -> (Model, Vec<NodeFate>, Vec<String>) {
    let mut model = model();
    let done = quantize::convert(&mut model, o, &Exec::new(Isa::detect(), 2)).unwrap();
    (model, done.fates, done.warnings)
}

fn inputs() -> Vec<Tensor> {
    let mut r = SplitMix64::new(9);
    vec![Tensor::new([5, 2, 40], (0..400).map(|_| r.normal() as f32).collect::<Vec<f32>>()).unwrap()]
}

/// The greatest difference from the float model's results, which are within ±1; the runtime must give the interpreter's, on the
/// kernels of floats.
fn loss(quantized: &Model) -> f32 {
    let want = interp::run_tensors(&model().graph, &inputs()).unwrap();
    let got = interp::run_tensors(&quantized.graph, &inputs()).unwrap();
    let session = Session::new(quantized.graph.clone(), Options { threads: 1, ..Options::default() }).unwrap();
    let (ran, profile) = session.profile(&inputs()).unwrap();
    let kernels: Vec<String> = profile.rows.iter().map(|r| r.kernel.to_string()).collect();
    for name in ["lstm_f32", "gru_f32"] {
        assert!(kernels.iter().any(|k| k == name), "{name}: {kernels:?}");
    }
    assert!(!kernels.iter().any(|k| k.contains("reference")), "weights are dequantized once: {kernels:?}");
    let [want, got, ran] = [&want, &got, &ran].map(|t| t[0].to_f32s().unwrap().into_owned());
    let most = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(most(&got, &ran) < 1e-5);
    most(&want, &got)
}

fn weight_bytes(m: &Model) -> usize {
    let read: std::collections::BTreeSet<_> = m.graph.nodes().flat_map(|(_, n)| n.inputs.clone()).flatten().collect();
    read.into_iter().filter_map(|v| m.graph.constant(v)).map(|t| t.bytes().len()).sum()
}

#[test]
fn stores_weights_by_blocks() {
    let of = |codes, block| QuantOptions {
        approach: Approach::WeightOnly,
        weight_only: WeightOnlyOptions { codes, block, ..WeightOnlyOptions::default() },
        ..QuantOptions::default()
    };
    for (codes, block, most, share) in [
        (BlockType::Int8, 32, 0.03, 0.35),
        (BlockType::Int4, 32, 0.5, 0.24),
        (BlockType::Uint4, 16, 0.5, 0.3),
        (BlockType::Nf4, 32, 0.5, 0.26),
    ] {
        let (model, fates, warnings) = quantized(&of(codes, block));
        let products = |w: &String| w.contains("such products");
        assert!(!warnings.iter().any(products), "there are none: {warnings:?}");
        let stored = |name: &str| fates.iter().find(|f| f.node == name).unwrap().stored.clone();
        assert_eq!((stored("lstm"), stored("gru")), (Some(codes.to_string()), Some(codes.to_string())));
        let left = loss(&model);
        assert!(left < most, "{codes}: {left}");
        let size = weight_bytes(&model) as f64 / weight_bytes(&self::model()) as f64;
        assert!(size < share, "{codes}: {size}");
    }
}

#[test]
fn stores_weights_in_8_bits_beside_dynamic_products_and_says_why() {
    for per_channel in [true, false] {
        let mut o = QuantOptions { approach: Approach::Dynamic, ..QuantOptions::default() };
        o.weights.per_channel = per_channel;
        let (model, fates, warnings) = quantized(&o);
        assert!(fates.iter().all(|f| !f.integer) && fates[0].stored.as_deref() == Some("int8"), "{fates:?}");
        assert!(warnings[0].contains("\"lstm\" (LSTM) first"), "{warnings:?}");
        assert!(loss(&model) < 0.04);
        assert!(weight_bytes(&model) * 10 < weight_bytes(&self::model()) * 4);
    }
}

#[test]
fn leaves_what_is_excluded_or_not_constant() {
    let float = Override { name: Some("gru".into()), float: Some(true), ..Override::default() };
    let o = QuantOptions { approach: Approach::WeightOnly, overrides: vec![float], ..QuantOptions::default() };
    let (_, fates, _) = quantized(&o);
    let of = |name: &str| fates.iter().find(|f| f.node == name).unwrap().reason;
    assert_eq!((of("lstm"), of("gru")), (None, Some("excluded")));
    let types = QuantOptions { op_types: vec!["LSTM".into()], ..QuantOptions { overrides: Vec::new(), ..o } };
    let (_, fates, _) = quantized(&types);
    assert_eq!(fates.iter().find(|f| f.node == "gru").unwrap().reason, Some("type-not-selected"));
    let text = NETWORK.replace("input %x: f32[5, 2, 40]", "input %x: f32[5, 2, 40] input %gw2: f32[1, 48, 48]");
    let mut model = text::parse_model(&text.replace("GRU(%f, %gw,", "GRU(%f, %gw2,"), &Registry).unwrap();
    let o = QuantOptions { approach: Approach::WeightOnly, ..QuantOptions::default() };
    let done = quantize::convert(&mut model, &o, &Exec::new(Isa::detect(), 1)).unwrap();
    let gru = done.fates.iter().find(|f| f.node == "gru").unwrap();
    assert_eq!(gru.reason, Some("weight-not-constant"));
}
