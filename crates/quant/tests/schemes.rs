//! Scales, zero points and codes against those of the tools that the schemes are named after, bit by bit.
//!
//! `tests/fixtures/make_schemes.py` made the files with the released tools; where one could not be run, its file says so.

use std::path::Path;

use narrowbit_kernels::{Exec, Isa};
use narrowbit_quant::observe::{Range, Stats, distribution_scale};
use narrowbit_quant::plan::WeightParams;
use narrowbit_quant::scheme::{
    ActivationScheme, NumberFormat, Preset, Rounding, ScalePoint, WeightScheme, quantizeml, vitis,
};
use narrowbit_tensor::{Tensor, minifloat};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    tool: String,
    ran: bool,
    note: Option<String>,
    cases: Vec<Case>,
    #[serde(default)]
    deviations: Vec<f32>,
    #[serde(default)]
    float8_scales: Vec<f32>,
    #[serde(default)]
    biases: Vec<Bias>,
    #[serde(default)]
    peaks: Vec<Peaks>,
    #[serde(default)]
    ceil_log2: Vec<(f32, i32)>,
    #[serde(default)]
    searches: Vec<Search>,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    format: NumberFormat,
    symmetric: bool,
    per_channel: bool,
    reduce_range: bool,
    bits: Option<u8>,
    unsigned: Option<bool>,
    range: Option<(f32, f32)>,
    shape: Vec<usize>,
    values: Vec<f32>,
    scales: Vec<f32>,
    zero_points: Vec<i32>,
    codes: Vec<i32>,
}

#[derive(Deserialize)]
struct Bias {
    bias: Vec<f32>,
    scales: Vec<f32>,
    frac: i32,
    codes: Vec<i32>,
}

#[derive(Deserialize)]
struct Peaks {
    samples: Vec<f32>,
    average: f32,
}

#[derive(Deserialize)]
struct Search {
    values: Vec<f32>,
    bits: u8,
    first: i32,
    half_up: i32,
    std_round: i32,
}

fn fixture(name: &str) -> Fixture {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/schemes");
    let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).expect("a fixture");
    serde_json::from_str(&text).expect("a fixture's form")
}

impl Case {
    fn weights(&self, preset: Preset) -> WeightScheme {
        WeightScheme {
            format: self.format,
            symmetric: self.symmetric,
            per_channel: self.per_channel,
            reduce_range: self.reduce_range,
            bits: self.bits,
            formula: preset.formula(),
        }
    }

    fn activations(&self, preset: Preset) -> ActivationScheme {
        let WeightScheme { format, symmetric, reduce_range, bits, formula, .. } = self.weights(preset);
        ActivationScheme { format, symmetric, reduce_range, bits, formula }
    }

    /// What differs from the tool's figures.
    fn check(&self, preset: Preset) -> Vec<String> {
        let (points, codes) = match self.kind.as_str() {
            "weight" => self.weight(preset),
            _ => self.activation(preset),
        };
        let mut wrong = Vec::new();
        let scales: Vec<f32> = points.iter().map(|p| p.scale).collect();
        let zeros: Vec<i32> = points.iter().map(|p| p.zero_point).collect();
        let bits = |s: &[f32]| s.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
        if bits(&scales) != bits(&self.scales) {
            wrong.push(format!("scales {scales:?}, the tool's {:?}", self.scales));
        }
        if zeros != self.zero_points {
            wrong.push(format!("zero points {zeros:?}, the tool's {:?}", self.zero_points));
        }
        if let Some(i) = (0..codes.len()).find(|&i| codes[i] != self.codes[i]) {
            wrong.push(format!("code of {}: {}, the tool's {}", self.values[i], codes[i], self.codes[i]));
        }
        wrong.iter().map(|w| format!("{} {:?} {:?}: {w}", self.kind, self.range, self.weights(preset))).collect()
    }

    fn weight(&self, preset: Preset) -> (Vec<ScalePoint>, Vec<i32>) {
        let w = Tensor::new(self.shape.clone(), self.values.clone()).expect("a weight");
        let exec = Exec::new(Isa::detect(), 1);
        let params = WeightParams::new(&exec, &w, self.weights(preset), self.per_channel.then_some(0));
        let codes = params.tensor(&exec, &w).expect("codes");
        let codes = match self.format.is_float() {
            true => codes.bytes().iter().map(|&b| b.into()).collect(),
            false => codes.to_i64s().expect("integers").iter().map(|&c| c as i32).collect(),
        };
        (params.points, codes)
    }

    fn activation(&self, preset: Preset) -> (Vec<ScalePoint>, Vec<i32>) {
        let (min, max) = self.range.expect("the range of an activation");
        let range = Range { min: min.into(), max: max.into() };
        let scheme = self.activations(preset).of_tensor(range, false);
        if let Some(unsigned) = self.unsigned {
            assert_eq!(scheme.format == NumberFormat::Uint8, unsigned, "{range:?}");
        }
        let point = scheme.qparams(range);
        if scheme.format.is_float() {
            let code = |x: &f32| minifloat::encode(scheme.format.dtype(), x / point.scale, true).into();
            return (vec![point], self.values.iter().map(code).collect());
        }
        let ActivationScheme { format, symmetric, reduce_range, bits, formula } = scheme;
        let as_weight = WeightScheme { format, symmetric, per_channel: false, reduce_range, bits, formula };
        let divisor = match formula.is_plain() {
            true => point.scale,
            false => as_weight.divisor(range, point),
        };
        let codes = self.values.iter().map(|&x| as_weight.code(x, divisor, point.zero_point)).collect();
        (vec![point], codes)
    }
}

/// Compares all cases of a tool's file; gives the file.
fn compare(name: &str, preset: Preset) -> Fixture {
    let f = fixture(name);
    assert!(!f.cases.is_empty() && (f.ran || f.note.is_some()), "{}", f.tool);
    let wrong: Vec<String> = f.cases.iter().flat_map(|c| c.check(preset)).collect();
    assert!(wrong.is_empty(), "{} of {} differ from {}:\n{}", wrong.len(), f.cases.len(), f.tool, wrong.join("\n"));
    f
}

#[test]
fn agrees_with_onnx_runtime() {
    let f = compare("onnxruntime", Preset::Onnxruntime);
    assert!(!f.deviations.is_empty());
    for (&d, &scale) in f.deviations.iter().zip(&f.float8_scales) {
        assert_eq!(distribution_scale(d, NumberFormat::Fp8E4m3), Some(scale));
    }
}

#[test]
fn agrees_with_pytorch() {
    compare("pytorch", Preset::Pytorch);
}

#[test]
fn agrees_with_neural_compressor_on_tensorflow() {
    compare("tensorflow", Preset::Tensorflow);
}

#[test]
fn agrees_with_mxnet() {
    compare("mxnet", Preset::Mxnet);
}

#[test]
fn agrees_with_the_guide_for_ipex() {
    compare("ipex", Preset::Ipex);
}

#[test]
fn agrees_with_neural_compressor_on_jax() {
    compare("inc-jax-fp8", Preset::IncJaxFp8);
    compare("inc-jax-int8", Preset::IncJaxInt8);
}

#[test]
fn agrees_with_tensorflow_lite() {
    compare("tflite", Preset::Tflite);
}

#[test]
fn agrees_with_the_guide_taken_literally() {
    compare("inc-doc", Preset::IncDoc);
}

#[test]
fn agrees_with_the_documented_search_of_vitis() {
    let f = compare("vitis-dpu", Preset::VitisDpu);
    assert!(!f.searches.is_empty());
    for s in &f.searches {
        let fold = |r: Range, &x: &f32| r.union(Range { min: x.into(), max: x.into() });
        let first = Range { min: s.values[0].into(), max: s.values[0].into() };
        let range = s.values.iter().fold(first, fold);
        let found = |rounding| vitis::diffs(&s.values, range, s.bits, rounding);
        let ours = (vitis::first_position(range, s.bits), found(Rounding::HalfUp), found(Rounding::HalfAway));
        assert_eq!(ours, (s.first, s.half_up, s.std_round), "{range:?}, {} bits", s.bits);
    }
}

#[test]
fn agrees_with_quantizeml() {
    let f = compare("quantizeml", Preset::Quantizeml);
    assert!(!f.biases.is_empty() && !f.peaks.is_empty() && !f.ceil_log2.is_empty());
    for b in &f.biases {
        assert_eq!(quantizeml::bias_codes(&b.bias, &b.scales, &[b.frac]), b.codes, "{:?} {:?}", b.bias, b.scales);
    }
    for p in &f.peaks {
        let mut stats = Stats::new(false);
        p.samples.iter().for_each(|&x| stats.add_sample(&[x]));
        assert_eq!(stats.peak.value(), Some(p.average), "{:?}", p.samples);
    }
    for &(x, n) in &f.ceil_log2 {
        assert_eq!(quantizeml::ceil_log2(x), n, "{x}");
    }
}

/// What `onnxruntime.quantization.quantize_static` 1.31 gives a Concat of two ranges far apart: each its own scale, where other
/// schemes have one for all.
#[test]
fn gives_concat_scales_of_its_own_as_onnx_runtime_does() {
    let text = r#"model opset=17 graph "g" { input %x: f32[1, 3, 8, 8]
        const %v: f32[4, 3, 3, 3] = random(1) const %w: f32[4, 3, 3, 3] = random(2) const %f: f32[] = [20]
        const %k: f32[5, 8, 1, 1] = random(3)
        %a = Conv(%x, %v) {pads=[1, 1, 1, 1]} @"a"
        %r = Relu(%a)
        %s = Mul(%x, %f)
        %b = Conv(%s, %w) {pads=[1, 1, 1, 1]} @"b"
        %c = Concat(%r, %b) {axis=1} @"c"
        %y = Conv(%c, %k) @"y"
        output %y }"#;
    let model = narrowbit_ir::text::parse_model(text, &narrowbit_ops::Registry).unwrap();
    let groups = |preset: Preset| {
        let layout = narrowbit_quant::quantize::layout(&model, &preset.options()).unwrap();
        let value = |name: &str| model.graph.value_named(name).unwrap();
        let of = |name: &str| layout.groups().position(|g| g.contains(&value(name))).unwrap();
        [of("r"), of("b"), of("c")]
    };
    let [r, b, c] = groups(Preset::Onnxruntime);
    assert!(r != b && b != c && r != c);
    let [r, b, c] = groups(Preset::Tflite);
    assert!(r == b && b == c);
}
