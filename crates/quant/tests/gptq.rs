//! Weights rounded by samples: errors, grids, threads, memory.

use std::collections::BTreeMap;

use narrowbit_ir::{Model, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_quant::approach::{Approach, BlockType};
use narrowbit_quant::calibrate::{CalibrateError, Calibrator};
use narrowbit_quant::encodings::Encodings;
use narrowbit_quant::gptq::{MEMORY, Report, Rounder, RoundingError, Samples};
use narrowbit_quant::options::{Override, QuantOptions, WeightRounding};
use narrowbit_quant::quantize::{self, QuantizeError};
use narrowbit_quant::ranges::Ranges;
use narrowbit_quant::scheme::{ActivationScheme, NumberFormat, Preset, WeightScheme};
use narrowbit_runtime::{Float, Options, Session};
use narrowbit_tensor::{SplitMix64, Tensor};

/// Convolutions of each kind and two products of one tensor, all but one with inputs that share what they hold.
const NETWORK: &str = r#"model opset=21 graph "g" { input %x: f32[1, 4, 9, 9]
    const %a: f32[8, 4, 3, 3] = random(1) const %ab: f32[8] = random(9) const %d: f32[8, 1, 3, 3] = random(2)
    const %g: f32[8, 4, 1, 1] = random(3) const %t: f32[8, 4, 2, 2] = random(4)
    const %s: i64[2] = [1, 144] const %p: f32[144, 16] = random(8) const %w: f32[16, 8] = random(7)
    %1 = Conv(%x, %a, %ab) {pads=[1, 1, 1, 1]} @"conv"
    %2 = Relu(%1)
    %3 = Conv(%2, %d) {group=8, pads=[1, 1, 1, 1]} @"depthwise"
    %4 = Relu(%3)
    %5 = Conv(%4, %g) {group=2, strides=[3, 3]} @"grouped"
    %6 = Relu(%5)
    %7 = ConvTranspose(%6, %t) {strides=[2, 2]} @"transposed"
    %8 = Conv(%2, %d) {group=8, pads=[1, 1, 1, 1], strides=[2, 2]} @"again"
    %9 = Reshape(%7, %s)
    %10 = MatMul(%9, %p) @"product"
    %11 = MatMul(%10, %w) @"last"
    output %11 output %8 }"#;

struct Inputs(Vec<Vec<Tensor>>, usize);

impl Samples for Inputs {
    fn runs(&self) -> usize {
        self.0.len()
    }

    fn pass(
        &mut self,
        _: (usize, usize),
        run: &mut dyn FnMut(&[Tensor]) -> Result<(), RoundingError>,
    ) -> Result<(), RoundingError> {
        self.1 += 1;
        self.0.iter().try_for_each(|inputs| run(inputs))
    }
}

/// Smooth images: neighbouring pixels and channels go together.
fn inputs(shape: &[usize], count: usize) -> Vec<Vec<Tensor>> {
    let mut r = SplitMix64::new(1);
    let image = |r: &mut SplitMix64| {
        let (a, b, c) = (r.normal(), r.normal(), r.normal());
        let of = |i: usize| (a + b * (i as f64 * 0.07).sin() + c * (i as f64 * 0.013).cos()) as f32;
        let values = (0..shape.iter().product()).map(|i| of(i) + 0.1 * r.normal() as f32).collect::<Vec<f32>>();
        vec![Tensor::new(shape, values).unwrap()]
    };
    (0..count).map(|_| image(&mut r)).collect()
}

struct Made {
    model: Model,
    report: Option<Report>,
    passes: usize,
}

fn made(model: &str, shape: &[usize], o: &QuantOptions, threads: usize, memory: usize) -> Result<Made, QuantizeError> {
    let mut model = text::parse_model(model, &Registry).unwrap();
    let exec = Exec::new(Isa::detect(), threads);
    let samples = inputs(shape, 24);
    let mut passes = Inputs(samples.clone(), 0);
    let mut rounder = Rounder { samples: &mut passes, mask: None, float: Float::F32, memory };
    let report = if o.approach == Approach::WeightOnly {
        quantize::convert_with(&mut model, o, Some(&mut rounder), &exec)?.rounding
    } else {
        quantize::prepare(&mut model, o)?;
        let layout = quantize::layout(&model, o)?;
        let observed = layout.observed(&model.graph);
        let channels = quantize::channels(&model.graph, &layout, o);
        let mut calibrator =
            Calibrator::with_channels(&model.graph, &observed, &channels, true, threads, Ranges::default()).unwrap();
        if let Some(bits) = o.position_bits() {
            calibrator = calibrator.with_positions(bits);
        }
        calibrator.add(samples.into_iter().map(|s| Ok::<_, CalibrateError>((s, 1))), |_, _| {}).unwrap();
        let (ranges, none) = (calibrator.into_ranges(), Encodings::default());
        let seen = quantize::Seen { rounder: Some(&mut rounder), ..Default::default() };
        quantize::quantize_with(&mut model, layout, &ranges, &none, o, seen, &exec)?.3
    };
    let passes = passes.1;
    Ok(Made { model, report, passes })
}

/// The integers and small floats of a model, by name.
fn codes(model: &Model) -> BTreeMap<String, Tensor> {
    let graph = &model.graph;
    let all = graph.values().filter_map(|(v, info)| Some((info.name.clone(), graph.constant(v)?.clone())));
    all.filter(|(name, _)| name.ends_with("_quantized")).collect()
}

/// The squared error of the outputs on samples that were not seen.
fn error(float: &str, shape: &[usize], quantized: &Model) -> f64 {
    let float = text::parse_model(float, &Registry).unwrap();
    let session = |m: &Model| Session::new(m.graph.clone(), Options::default()).unwrap();
    let (a, b) = (session(&float), session(quantized));
    let mut sum = 0.0;
    for x in inputs(shape, 40).split_off(24) {
        for (y, z) in a.run(&x).unwrap().iter().zip(b.run(&x).unwrap()) {
            let (y, z) = (y.to_f32s().unwrap(), z.to_f32s().unwrap());
            sum += y.iter().zip(z.iter()).map(|(y, z)| f64::from(y - z).powi(2)).sum::<f64>();
        }
    }
    sum
}

fn with(rounding: WeightRounding, o: &QuantOptions) -> QuantOptions {
    QuantOptions { weight_rounding: Some(rounding), ..o.clone() }
}

fn formats() -> Vec<(&'static str, QuantOptions)> {
    let weights = |w: WeightScheme| QuantOptions { weights: w, ..QuantOptions::default() };
    let plain = WeightScheme::default();
    let fp8 = |format| QuantOptions {
        activations: ActivationScheme { format, ..ActivationScheme::default() },
        weights: WeightScheme { format, ..plain },
        ..QuantOptions::default()
    };
    vec![
        ("int8", QuantOptions::default()),
        ("int8 per tensor", weights(WeightScheme { per_channel: false, ..plain })),
        ("3 bits", weights(WeightScheme { bits: Some(3), ..plain })),
        ("7 bits", weights(WeightScheme { reduce_range: true, ..plain })),
        ("int4", weights(WeightScheme { format: NumberFormat::Int4, ..plain })),
        ("uint8", weights(WeightScheme { format: NumberFormat::Uint8, symmetric: false, bits: Some(4), ..plain })),
        ("e4m3", fp8(NumberFormat::Fp8E4m3)),
        ("e5m2", fp8(NumberFormat::Fp8E5m2)),
        ("e4m3 with biases", QuantOptions { bias_correction: true, ..fp8(NumberFormat::Fp8E4m3) }),
        ("powers of two", Preset::VitisDpu.options()),
        ("fixed point", Preset::Quantizeml.options()),
        ("factors", Preset::Mxnet.options()),
    ]
}

#[test]
fn errs_less_in_every_format_with_codes_in_use_and_the_same_scales() {
    for (name, o) in formats() {
        let run = |rounding| made(NETWORK, &[1, 4, 9, 9], &with(rounding, &o), 2, MEMORY).unwrap();
        let (nearest, gptq) = (run(WeightRounding::Nearest), run(WeightRounding::Gptq));
        let report = gptq.report.unwrap();
        let (before, after) = report.means().unwrap();
        println!("{name}: {before:.1} → {after:.1} dB, {:?}", report.left);
        assert!(report.weights.iter().all(|g| g.rounded_db >= g.nearest_db), "{name}: {report:?}");
        assert!(after > before + 2.0, "{name}: {before} {after}");
        assert!(report.left.is_empty(), "{name}: {report:?}");
        let (a, b) = (codes(&nearest.model), codes(&gptq.model));
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{name}");
        assert!(a.iter().any(|(n, t)| b[n] != *t), "{name}");
        let (lo, hi) = o.weights.code_range();
        for (n, t) in b.iter().filter(|(n, t)| !n.contains("bias") && t.dtype() == o.weights.format.dtype()) {
            let inside = |c: &i64| (i64::from(lo)..=i64::from(hi)).contains(c);
            assert!(o.weights.format.is_float() || t.to_i64s().unwrap().iter().all(inside), "{name} {n}: {lo} {hi}");
        }
        let scales = |m: &Model| -> Vec<Tensor> {
            let all = m.graph.values().filter(|(_, v)| v.name.ends_with("_scale") && !v.name.contains("bias"));
            all.filter_map(|(v, _)| m.graph.constant(v).cloned()).collect()
        };
        assert_eq!(scales(&nearest.model), scales(&gptq.model), "{name}");
    }
}

#[test]
fn makes_outputs_better_where_weights_are_coarse() {
    let o =
        QuantOptions { weights: WeightScheme { bits: Some(4), ..WeightScheme::default() }, ..QuantOptions::default() };
    let of = |rounding| {
        let made = made(NETWORK, &[1, 4, 9, 9], &with(rounding, &o), 2, MEMORY).unwrap();
        error(NETWORK, &[1, 4, 9, 9], &made.model)
    };
    let (nearest, gptq) = (of(WeightRounding::Nearest), of(WeightRounding::Gptq));
    assert!(gptq < 0.5 * nearest, "{gptq} {nearest}");
}

#[test]
fn gives_the_same_codes_on_any_number_of_threads_and_in_any_number_of_passes() {
    let o = with(WeightRounding::Gptq, &QuantOptions::default());
    let of = |threads, memory| made(NETWORK, &[1, 4, 9, 9], &o, threads, memory).unwrap();
    let (one, three, small) = (of(1, MEMORY), of(3, MEMORY), of(2, 144 * 144 * 4));
    assert_eq!(codes(&one.model), codes(&three.model));
    assert_eq!(codes(&one.model), codes(&small.model));
    assert_eq!((one.passes, small.passes), (1, small.report.unwrap().passes));
    assert!(small.passes > 1);
    // The moments of one product do not fit: it is rounded to the nearest, and the report says so.
    let least = of(1, 144 * 144 * 4 - 1);
    let report = least.report.unwrap();
    assert_eq!(report.left.iter().map(|l| l.node.as_str()).collect::<Vec<_>>(), ["product"], "{report:?}");
}

#[test]
fn rounds_what_is_coarse_unless_told_otherwise_and_never_what_is_named_after_a_tool() {
    let count = |o: &QuantOptions| made(NETWORK, &[1, 4, 9, 9], o, 1, MEMORY).unwrap().report.unwrap().weights.len();
    let coarse = WeightScheme { bits: Some(4), ..WeightScheme::default() };
    let mut o = QuantOptions { weights: coarse, ..QuantOptions::default() };
    // One constant has two readers.
    assert!(o.rounds_by_samples());
    assert_eq!(count(&o), 6);
    o.overrides = vec![Override {
        name: Some("conv".into()),
        weight_rounding: Some(WeightRounding::Nearest),
        ..Override::default()
    }];
    assert_eq!(count(&o), 5);
    o.overrides[0].weight_rounding = None;
    o.overrides[0].weights = Some(WeightScheme::default());
    assert_eq!(count(&o), 5);
    assert!(!QuantOptions::default().rounds_by_samples());
    assert_eq!(count(&QuantOptions::default()), 0);
    for preset in Preset::ALL {
        assert!(!preset.options().rounds_by_samples(), "{preset:?}");
        assert!(with(WeightRounding::Gptq, &preset.options()).rounds_by_samples(), "{preset:?}");
    }
}

/// A product, one with the weight transposed that shares its constant, and a table.
const BLOCKS: &str = r#"model opset=21 graph "g" { input %x: f32[6, 40]
    const %w: f32[40, 24] = random(1) const %v: f32[24, 24] = random(2) const %b: f32[24] = random(3)
    %1 = MatMul(%x, %w) @"first" %2 = Gemm(%1, %v, %b) {transB=1} @"second" %3 = Gemm(%2, %v, %b) {transB=1} @"third"
    output %3 }"#;

#[test]
fn rounds_weights_by_blocks_of_every_type() {
    let mut o = QuantOptions { approach: Approach::WeightOnly, ..QuantOptions::default() };
    o.weight_only.block = 16;
    use BlockType::{Fp4, Fp8E4m3, Fp8E5m2, Int4, Int8, Nf4, Uint2, Uint4, Uint8};
    for codes in [Int8, Uint8, Int4, Uint4, Uint2, Fp8E4m3, Fp8E5m2, Fp4, Nf4] {
        o.weight_only.codes = codes;
        let text = BLOCKS.replace("opset=21", "opset=25");
        let of = |rounding| made(&text, &[6, 40], &with(rounding, &o), 2, MEMORY).unwrap();
        let (nearest, gptq) = (of(WeightRounding::Nearest), of(WeightRounding::Gptq));
        assert!(nearest.report.unwrap().weights.is_empty());
        let report = gptq.report.unwrap();
        assert_eq!(report.weights.len(), 2, "{codes}: {report:?}");
        let (before, after) = report.means().unwrap();
        let (a, b) = (error(&text, &[6, 40], &nearest.model), error(&text, &[6, 40], &gptq.model));
        println!("{codes}: {before:.1} → {after:.1} dB; {a:.3} → {b:.3}");
        assert!(after > before + 1.0 && b < a, "{codes}: {before} {after}; {a} {b}");
    }
}

#[test]
fn leaves_weights_whose_inputs_tell_nothing() {
    let text = r#"model opset=21 graph "g" { input %x: f32[2, 8] const %z: f32[8] = [0, 0, 0, 0, 0, 0, 0, 0]
        const %w: f32[8, 4] = random(1) %1 = Mul(%x, %z) %2 = MatMul(%1, %w) @"dead" output %2 }"#;
    let mut o = QuantOptions { approach: Approach::WeightOnly, ..QuantOptions::default() };
    o.weight_only.block = 16;
    let made = made(text, &[2, 8], &o, 1, MEMORY).unwrap();
    let report = made.report.unwrap();
    assert_eq!((report.weights.len(), report.left[0].node.as_str()), (0, "dead"), "{report:?}");
}
