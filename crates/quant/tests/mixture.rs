//! An approach for each node: what is observed, how forms meet, what is shared, and what is refused.

use std::collections::BTreeMap;

use narrowbit_ir::{Model, interp, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_quant::approach::{Approach, BlockFormat, BlockType, DynamicOptions, Granularity, WeightOnlyOptions};
use narrowbit_quant::calibrate::{CalibrateError, Calibrator};
use narrowbit_quant::gptq::{MEMORY, Rounder, RoundingError, Samples};
use narrowbit_quant::options::{GraphForm, Override, QuantOptions, WeightRounding};
use narrowbit_quant::quantize::{self, NodeFate, QuantizeError};
use narrowbit_quant::ranges::Ranges;
use narrowbit_quant::scheme::{ActivationScheme, NumberFormat, Preset};
use narrowbit_quant::target::{Feature, Target, features, fit};
use narrowbit_runtime::{Float, Options, Session};
use narrowbit_tensor::{SplitMix64, Tensor};

/// Products that share the value `a` and the weight `w`, a Gemm, and a table.
const NETWORK: &str = r#"model opset=21 graph "g" { input %x: f32[n, 32] input %i: i64[n]
    const %w: f32[32, 32] = random(1) const %v: f32[16, 32] = random(2) const %b: f32[16] = random(5)
    const %t: f32[512, 32] = random(3)
    %r = Gather(%t, %i) @"table"
    %s = Add(%x, %r) @"sum"
    %m = MatMul(%s, %w) @"first"
    %a = Relu(%m) @"relu"
    %p = MatMul(%a, %w) @"left"
    %q = MatMul(%a, %w) @"right"
    %z = Add(%p, %q) @"join"
    %y = Gemm(%z, %v, %b) {transB=1} @"last"
    output %y output %p }"#;

fn exception(name: &str, approach: Approach) -> Override {
    Override { name: Some(name.into()), approach: Some(approach), ..Override::default() }
}

/// `first` and `left` static, `right` dynamic, the last product and the table in blocks.
fn options() -> QuantOptions {
    let int8 = WeightOnlyOptions { codes: BlockType::Int8, ..WeightOnlyOptions::default() };
    let overrides = vec![
        exception("right", Approach::Dynamic),
        exception("last", Approach::WeightOnly),
        Override { weight_only: Some(int8), ..exception("table", Approach::WeightOnly) },
    ];
    QuantOptions { overrides, weight_rounding: Some(WeightRounding::Nearest), ..QuantOptions::default() }
}

fn model() -> Model {
    text::parse_model(NETWORK, &Registry).unwrap()
}

fn exec() -> Exec {
    Exec::new(Isa::detect(), 2)
}

fn inputs(run: u64) -> Vec<Tensor> {
    let mut r = SplitMix64::new(run + 1);
    let values = (0..8 * 32).map(|_| r.normal() as f32).collect::<Vec<f32>>();
    let rows = (0..8).map(|k| ((run * 8 + k) * 37 % 512) as i64).collect::<Vec<i64>>();
    vec![Tensor::new([8, 32], values).unwrap(), Tensor::vector(rows)]
}

fn ranges(model: &Model, o: &QuantOptions) -> Ranges {
    let layout = quantize::layout(model, o).unwrap();
    let observed = layout.observed(&model.graph);
    let mut calibrator =
        Calibrator::with_channels(&model.graph, &observed, &BTreeMap::new(), true, 2, Ranges::default()).unwrap();
    let samples = (0..8).map(|i| Ok::<_, CalibrateError>((inputs(i), 8)));
    calibrator.add(samples, |_, _| {}).unwrap();
    calibrator.into_ranges()
}

fn quantized(o: &QuantOptions) -> (Model, Vec<NodeFate>) {
    let mut model = model();
    let (layout, ranges) = (quantize::layout(&model, o).unwrap(), ranges(&model, o));
    let (_, fates) = quantize::quantize(&mut model, layout, &ranges, o, &exec()).unwrap();
    (model, fates)
}

fn error_of(o: &QuantOptions) -> String {
    quantize::layout(&model(), o).unwrap_err().to_string()
}

fn count(model: &Model, op: &str) -> usize {
    model.graph.nodes().filter(|(_, n)| n.op.name() == op).count()
}

/// The share of the greatest output by which outputs differ from the float model's.
fn loss(quantized: &Model) -> f32 {
    // Sums of floats in another order.
    loss_within(quantized, 1e-4)
}

/// As [`loss`]; the runtime gives the interpreter's results up to `close`.
fn loss_within(quantized: &Model, close: f32) -> f32 {
    let (float, fed) = (model(), inputs(3));
    let want = interp::run_tensors(&float.graph, &fed).unwrap();
    let got = interp::run_tensors(&quantized.graph, &fed).unwrap();
    let session = Session::new(quantized.graph.clone(), Options { threads: 2, ..Options::default() }).unwrap();
    let ran = session.run(&fed).unwrap();
    let mut worst = 0f32;
    for ((want, got), ran) in want.iter().zip(&got).zip(&ran) {
        let (want, got, ran) = (want.to_f32s().unwrap(), got.to_f32s().unwrap(), ran.to_f32s().unwrap());
        let top = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        for ((w, g), r) in want.iter().zip(got.iter()).zip(ran.iter()) {
            worst = worst.max((w - g).abs() / top);
            assert!((g - r).abs() / top < close, "the runtime gives {r}, the interpreter {g}");
        }
    }
    worst
}

fn fate<'a>(fates: &'a [NodeFate], name: &str) -> &'a NodeFate {
    fates.iter().find(|f| f.node == name).unwrap()
}

#[test]
fn writes_each_node_in_the_form_of_its_approach() {
    let (model, fates) = quantized(&options());
    assert_eq!(
        [count(&model, "MatMulInteger"), count(&model, "QuantizeLinear")],
        [1, 3],
        "rows of `a` are rounded beside"
    );
    let dynamic = fate(&fates, "right");
    assert_eq!((dynamic.integer, dynamic.approach), (true, Some(Approach::Dynamic)));
    assert_eq!(fate(&fates, "last").stored.as_deref(), Some("int4"));
    assert_eq!(fate(&fates, "table").stored.as_deref(), Some("int8"));
    let first = fate(&fates, "first");
    assert_eq!((first.integer, first.approach), (true, Some(Approach::Static)));
    let left = loss(&model);
    assert!(left < 0.15, "4 bits in the last product: {left}");
    let mut eight = options();
    eight.weight_only.codes = BlockType::Int8;
    let left = loss(&quantized(&eight).0);
    assert!(left < 0.03, "8 bits everywhere: {left}");
}

#[test]
fn keeps_the_float_weight_only_for_who_reads_it() {
    let float = QuantOptions {
        overrides: [
            options().overrides,
            vec![Override { name: Some("first".into()), float: Some(true), ..Override::default() }],
        ]
        .concat(),
        ..options()
    };
    let weights = |o: &QuantOptions| {
        let (model, _) = quantized(o);
        let reads = |(_, n): (_, &narrowbit_ir::Node)| n.inputs.iter().flatten().copied().collect::<Vec<_>>();
        let read: std::collections::BTreeSet<_> = model.graph.nodes().flat_map(reads).collect();
        let named = |v| model.graph.constant(v).is_some() && model.graph.value(v).name == "w";
        read.into_iter().filter(|&v| named(v)).count()
    };
    assert_eq!((weights(&options()), weights(&float)), (0, 1));
}

#[test]
fn observes_what_static_nodes_need_and_nothing_else() {
    let model = model();
    let layout = quantize::layout(&model, &options()).unwrap();
    let names: Vec<&str> = layout.observed(&model.graph).iter().map(|&v| model.graph.value(v).name.as_str()).collect();
    assert_eq!(names, ["s", "a"]);
    assert!(quantize::is_static(&layout));
}

#[test]
fn needs_no_samples_where_nothing_is_static() {
    let mut o = options();
    o.overrides.push(exception("first", Approach::Dynamic));
    o.overrides.push(exception("left", Approach::WeightOnly));
    let layout = quantize::layout(&model(), &o).unwrap();
    assert!(!quantize::is_static(&layout) && layout.observed(&model().graph).is_empty());
    let mut quantized = model();
    let done = quantize::convert(&mut quantized, &o, &exec()).unwrap();
    assert_eq!(done.fates.iter().filter(|f| f.is_done()).count(), 5);
    assert_eq!([count(&quantized, "MatMulInteger"), count(&quantized, "MatMul")], [2, 2]);
    assert!(loss(&quantized) < 0.15);
    let static_too = quantize::convert(&mut model(), &options(), &exec()).unwrap_err();
    assert!(matches!(static_too, QuantizeError::NeedsRanges));
}

#[test]
fn lets_half_precision_meet_the_other_forms() {
    for approach in [Approach::Float16, Approach::Bfloat16] {
        let mut o = options();
        o.weight_only.codes = BlockType::Int8;
        o.overrides.push(exception("left", approach));
        if approach == Approach::Float16 {
            // bfloat16 is a form of constants, of which a sum of activations has none.
            o.overrides.push(exception("join", approach));
        }
        let (model, fates) = quantized(&o);
        assert_eq!(fate(&fates, "left").stored.as_deref(), Some(approach.to_string().as_str()));
        // The interpreter rounds to half precision after each operator.
        let left = loss_within(&model, 5e-3);
        assert!(left < 0.03, "{approach}: {left}");
    }
}

#[test]
fn takes_a_relu_into_a_static_product_whatever_the_job_is() {
    let o = QuantOptions {
        approach: Approach::Dynamic,
        overrides: vec![exception("first", Approach::Static), exception("left", Approach::Static)],
        ..QuantOptions::default()
    };
    let (model, fates) = quantized(&o);
    assert_eq!(count(&model, "MatMulInteger"), 2, "right and last");
    assert_eq!((fate(&fates, "relu").integer, fate(&fates, "relu").approach), (true, Some(Approach::Static)));
    assert!(loss(&model) < 0.03);
}

#[test]
fn follows_the_settings_of_each_exception() {
    let mut o = options();
    let tensor = DynamicOptions { granularity: Granularity::Tensor, ..DynamicOptions::default() };
    o.overrides[0].dynamic = Some(tensor);
    // At another level the runtime rounds rows, which the interpreter never does.
    let nbits = WeightOnlyOptions { format: BlockFormat::Matmulnbits, accuracy_level: Some(0), ..Default::default() };
    o.overrides[1].weight_only = Some(nbits);
    let (model, _) = quantized(&o);
    assert_eq!([count(&model, "DynamicQuantizeLinear"), count(&model, "MatMulNBits")], [1, 1]);
    assert!(loss(&model) < 0.15);
}

#[test]
fn rounds_the_weights_of_both_approaches_by_samples() {
    struct Runs;
    impl Samples for Runs {
        fn runs(&self) -> usize {
            8
        }

        fn pass(
            &mut self,
            _: (usize, usize),
            run: &mut dyn FnMut(&[Tensor]) -> Result<(), RoundingError>,
        ) -> Result<(), RoundingError> {
            (0..8).try_for_each(|i| run(&inputs(i)))
        }
    }
    let mut o = QuantOptions { weight_rounding: None, ..options() };
    o.weights.format = NumberFormat::Int4;
    o.overrides[0].weights = Some(QuantOptions::default().weights);
    assert!(o.rounds_by_samples());
    let mut model = model();
    let (layout, ranges) = (quantize::layout(&model, &o).unwrap(), ranges(&model, &o));
    let mut rounder = Rounder { samples: &mut Runs, mask: None, float: Float::F32, memory: MEMORY };
    let seen = quantize::Seen { rounder: Some(&mut rounder), ..Default::default() };
    let none = Default::default();
    let done = quantize::quantize_with(&mut model, layout, &ranges, &none, &o, seen, &exec()).unwrap();
    let mut rounded: Vec<String> = done.3.unwrap().weights.into_iter().map(|g| g.node).collect();
    rounded.sort();
    assert_eq!(rounded, ["first", "last"], "`left` shares its weight with `first`");
}

#[test]
fn keeps_the_first_and_the_last_product_of_all_unless_their_approach_is_named() {
    let edges = QuantOptions { keep_first: true, keep_last: true, ..options() };
    let (_, fates) = quantized(&edges);
    assert_eq!(fate(&fates, "first").reason, Some("edge-layer"));
    assert_eq!(fate(&fates, "last").stored.as_deref(), Some("int4"));
    // `left` is the last of the static ones, but not of all.
    assert!(fate(&fates, "left").integer);
}

#[test]
fn says_of_each_target_what_its_nodes_have() {
    let graph = model().graph;
    let all = features(&options(), &graph, false);
    for feature in [Feature::DynamicToken, Feature::Blocks(BlockType::Int4), Feature::Blocks(BlockType::Int8)] {
        assert!(all.contains(&feature), "{feature}: {all:?}");
    }
    assert!(!all.contains(&Feature::Tables), "the table is in blocks: {all:?}");
    let mut o = options();
    o.overrides.retain(|e| e.approach == Some(Approach::WeightOnly));
    assert!(!features(&o, &graph, false).contains(&Feature::DynamicToken));
    let mut o = QuantOptions { target: Some(Target::Tensorrt), ..options() };
    assert!(fit(&mut o, &graph, false).unwrap_err().to_string().contains("TensorRT"));
}

#[test]
fn refuses_exceptions_that_contradict_themselves_or_the_job() {
    let with = |own: Override| QuantOptions { overrides: vec![own], ..QuantOptions::default() };
    let float = Override { float: Some(true), ..exception("left", Approach::Dynamic) };
    assert!(error_of(&with(float)).contains("both float = true and approach = \"dynamic\""));
    let int16 = ActivationScheme { format: NumberFormat::Int16, ..ActivationScheme::default() };
    let activations = Override { activations: Some(int16), ..exception("left", Approach::Dynamic) };
    assert!(error_of(&with(activations)).contains("asymmetric uint8"));
    let half = QuantOptions { half: narrowbit_quant::approach::HalfOptions { io: true, compute: None }, ..options() };
    assert!(error_of(&half).contains("stay float32"));
    let form = QuantOptions { form: GraphForm::Qoperator, ..options() };
    assert!(error_of(&form).contains("--format qoperator"));
    let fixed = QuantOptions { overrides: options().overrides, ..Preset::Quantizeml.options() };
    assert!(error_of(&fixed).contains("fixed point alone"));
    let int4 = QuantOptions {
        weights: narrowbit_quant::scheme::WeightScheme { format: NumberFormat::Int4, ..Default::default() },
        ..options()
    };
    assert!(error_of(&int4).contains("dynamic products have weights of int8"));
}

#[test]
fn names_the_node_whose_approach_has_no_form_of_it() {
    let with = |own: Override| QuantOptions { overrides: vec![own], ..QuantOptions::default() };
    let dynamic = error_of(&with(exception("relu", Approach::Dynamic)));
    assert!(dynamic.contains("\"relu\" (Relu) has no constant weight"), "{dynamic}");
    let blocks =
        error_of(&with(Override { op_type: Some("Add".into()), name: None, ..exception("", Approach::WeightOnly) }));
    assert!(blocks.contains("none of the 2 nodes that it matches can be weight-only"), "{blocks}");
    // A pattern that no node matches is a warning of the command.
    assert!(quantize::layout(&model(), &with(exception("nothing", Approach::Dynamic))).is_ok());
}
