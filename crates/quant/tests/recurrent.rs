//! Weights of recurrent operators in approaches that are about weights.

use narrowbit_ir::{Model, interp, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_quant::approach::{Approach, BlockType, DynamicOptions, LstmProducts, WeightOnlyOptions};
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

/// The greatest difference from the float model's results, which are within ±1; the runtime must give the interpreter's, on these
/// kernels.
fn loss(quantized: &Model, kernel: [&str; 2]) -> f32 {
    let want = interp::run_tensors(&model().graph, &inputs()).unwrap();
    let got = interp::run_tensors(&quantized.graph, &inputs()).unwrap();
    let session = Session::new(quantized.graph.clone(), Options { threads: 1, ..Options::default() }).unwrap();
    let (ran, profile) = session.profile(&inputs()).unwrap();
    let kernels: Vec<String> = profile.rows.iter().map(|r| r.kernel.to_string()).collect();
    for name in kernel {
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
        let left = loss(&model, ["lstm_f32", "gru_f32"]);
        assert!(left < most, "{codes}: {left}");
        let size = weight_bytes(&model) as f64 / weight_bytes(&self::model()) as f64;
        assert!(size < share, "{codes}: {size}");
    }
}

fn dynamic(per_channel: bool, lstm: LstmProducts) -> QuantOptions {
    let dynamic = DynamicOptions { lstm, ..DynamicOptions::default() };
    let mut o = QuantOptions { approach: Approach::Dynamic, dynamic, ..QuantOptions::default() };
    o.weights.per_channel = per_channel;
    o
}

#[test]
fn puts_lstms_on_integers_and_stores_the_weights_of_others_in_8_bits() {
    for per_channel in [true, false] {
        let (model, fates, warnings) = quantized(&dynamic(per_channel, LstmProducts::Int8));
        let of = |name: &str| fates.iter().find(|f| f.node == name).unwrap();
        assert!(of("lstm").integer && of("lstm").stored.is_none(), "{fates:?}");
        assert!(!of("gru").integer && of("gru").stored.as_deref() == Some("int8"), "{fates:?}");
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("\"gru\" (GRU), computes on floats"), "{warnings:?}");
        assert!(warnings[0].contains("for LSTM alone"), "{warnings:?}");
        assert_eq!(model.opsets.get("com.microsoft"), Some(&1));
        let (_, node) = model.graph.nodes().find(|(_, n)| n.op.name() == "DynamicQuantizeLSTM").unwrap();
        let shape = |i: usize| model.graph.constant(node.input(i).unwrap()).unwrap().shape().to_vec();
        let scales = if per_channel { vec![2, 96] } else { vec![2] };
        assert_eq!([shape(1), shape(2)], [vec![2, 40, 96], vec![2, 24, 96]]);
        assert!([8, 9, 10, 11].iter().all(|&i| shape(i) == scales));
        // Gates of 40 products of weights within ±1 are steep: X and the hidden states, rounded too, cost as much as the weights.
        let left = loss(&model, ["lstm_int8", "gru_f32"]);
        assert!(left < 0.1, "{left}");
        assert!(weight_bytes(&model) * 10 < weight_bytes(&self::model()) * 4);
    }
}

#[test]
fn keeps_lstms_on_floats_where_the_settings_say_so() {
    for per_channel in [true, false] {
        let (model, fates, warnings) = quantized(&dynamic(per_channel, LstmProducts::Float));
        assert!(fates.iter().all(|f| !f.integer) && fates[0].stored.as_deref() == Some("int8"), "{fates:?}");
        assert!(warnings.iter().any(|w| w.contains("\"lstm\" (LSTM), computes on floats")), "{warnings:?}");
        assert!(loss(&model, ["lstm_f32", "gru_f32"]) < 0.04);
        assert!(weight_bytes(&model) * 10 < weight_bytes(&self::model()) * 4);
        assert_eq!(model.opsets.get("com.microsoft"), None);
    }
}

#[test]
fn says_which_lstms_have_no_integer_form() {
    let bias = "%x, %w, %r, %b)";
    let asymmetric = |o: &mut QuantOptions| o.weights.symmetric = false;
    let nothing = |_: &mut QuantOptions| {};
    let peepholes = ("%x, %w, %r, %b, _, _, _, %p)", "", nothing as fn(&mut QuantOptions), "peepholes");
    let relu = ", activations=[\"Sigmoid\", \"Tanh\", \"Relu\", \"Sigmoid\", \"Tanh\", \"Relu\"]";
    let cases = [
        peepholes,
        (bias, relu, nothing, "usual functions"),
        (bias, ", layout=1", nothing, "time first"),
        (bias, "", asymmetric, "one zero point"),
        ("%x, %w, %r, %free)", "", nothing, "biases are not constant"),
    ];
    for (inputs, attrs, change, why) in cases {
        let text = format!(
            r#"model opset=21 graph "g" {{ input %x: f32[5, 2, 40] input %free: f32[2, 192]
            const %w: f32[2, 96, 40] = random(1) const %r: f32[2, 96, 24] = random(2) const %b: f32[2, 192] = random(3)
            const %p: f32[2, 72] = random(4)
            %y = LSTM({inputs} {{direction="bidirectional", hidden_size=24{attrs}}} @"lstm" output %y }}"#
        );
        let mut model = text::parse_model(&text, &Registry).unwrap();
        let mut o = dynamic(true, LstmProducts::Int8);
        change(&mut o);
        let done = quantize::convert(&mut model, &o, &Exec::new(Isa::detect(), 1)).unwrap();
        assert!(!done.fates.iter().any(|f| f.integer), "{inputs}{attrs}");
        assert!(done.warnings.iter().any(|w| w.contains(why)), "{why}: {:?}", done.warnings);
        assert!(model.graph.nodes().any(|(_, n)| n.op.name() == "LSTM"));
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
