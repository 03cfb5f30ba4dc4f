use narrowbit_ir::{interp, text};
use narrowbit_kernels::Isa;
use narrowbit_ops::Registry;
use narrowbit_tensor::Tensor;

use super::*;
use crate::approach::HalfOptions;
use crate::options::Override;

const TEXT: &str = r#"model opset=17 graph "g" {
    input %x: f32[n, 24] const %w: f32[24, 24] = random(1) const %b: f32[24] = random(2)
    const %g: f32[24] = random(3) const %big: f32[24] = [1e6, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    const %lo: f32[] = [0] const %hi: f32[] = [100]
    %m = MatMul(%x, %w) @"m"
    %a = Add(%m, %b) @"a" output %a
    %l = LayerNormalization(%a, %g) @"l"
    %s = Softmax(%a) @"s"
    %t = Mul(%l, %s) @"t"
    %u = Mul(%t, %big) @"u"
    %c = Clip(%u, %lo, %hi) @"c" output %c
}"#;

fn options(approach: Approach, half: HalfOptions) -> QuantOptions {
    QuantOptions { approach, half, ..QuantOptions::default() }
}

fn converted(options: &QuantOptions) -> (Model, Converted) {
    let mut model = text::parse_model(TEXT, &Registry).unwrap();
    let done = crate::quantize::convert(&mut model, options, &Exec::new(Isa::detect(), 2)).unwrap();
    (model, done)
}

fn input() -> Tensor {
    Tensor::new([2, 24], (0..48).map(|i| (i % 7) as f32 * 0.1 - 0.3).collect()).unwrap()
}

/// The largest difference over the largest magnitude.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_f64s().unwrap(), b.to_f64s().unwrap());
    let top = a.iter().fold(0f64, |m, v| m.max(v.abs()));
    a.iter().zip(&b).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / top
}

fn check(o: &QuantOptions, most: f64) -> (Model, Converted) {
    let float = text::parse_model(TEXT, &Registry).unwrap();
    let want = interp::run_tensors(&float.graph, &[input()]).unwrap();
    let (model, done) = converted(o);
    let got = interp::run_tensors(&model.graph, &[input()]).unwrap();
    assert!(difference(&want[0], &got[0]) < most, "{}", difference(&want[0], &got[0]));
    let names = |g: &Graph| g.outputs().iter().map(|&v| g.value(v).name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&model.graph), names(&float.graph));
    (model, done)
}

fn fate<'a>(done: &'a Converted, name: &str) -> (Option<&'a str>, Option<&'static str>) {
    let f = done.fates.iter().find(|f| f.node == name).unwrap();
    (f.stored.as_deref(), f.reason)
}

fn dtypes(model: &Model, op: &str) -> Vec<DType> {
    let node = model.graph.nodes().find(|(_, n)| n.op.name() == op).unwrap().1;
    let facts = facts(model).unwrap();
    node.inputs.iter().flatten().filter_map(|&v| facts.dtype(v)).collect()
}

#[test]
fn computes_in_half_precision_but_for_what_needs_more() {
    // 11 bits of 24 products of numbers below 1.
    let (model, done) = check(&options(Approach::Float16, HalfOptions::default()), 0.003);
    assert_eq!(fate(&done, "m"), (Some("float16"), None));
    assert_eq!(fate(&done, "l"), (None, Some("sensitive")));
    assert_eq!(fate(&done, "s"), (None, Some("sensitive")));
    assert_eq!(dtypes(&model, "MatMul"), [DType::F16; 2]);
    assert_eq!(dtypes(&model, "Softmax"), [DType::F32]);
    let ends = model.graph.inputs().iter().chain(model.graph.outputs());
    assert!(ends.map(|&v| model.graph.value(v).ty.tensor().unwrap().dtype).all(|d| d == Some(DType::F32)));
    assert_eq!(done.warnings.len(), 1);
    assert!(done.warnings[0].contains("1 values of \"big\""), "{:?}", done.warnings);
}

#[test]
fn turns_inputs_and_outputs_to_half_precision_when_asked() {
    let (model, _) = converted(&options(Approach::Float16, HalfOptions { io: true, compute: None }));
    let ends = model.graph.inputs().iter().chain(model.graph.outputs());
    assert!(ends.map(|&v| model.graph.value(v).ty.tensor().unwrap().dtype).all(|d| d == Some(DType::F16)));
    let x = Tensor::from_f32s(DType::F16, [2, 24], input().to_f32s().unwrap().into_owned()).unwrap();
    let got = interp::run_tensors(&model.graph, &[x]).unwrap();
    assert_eq!(got[0].dtype(), DType::F16);
}

#[test]
fn stores_bfloat16_behind_a_cast() {
    // 8 bits.
    let (model, done) = check(&options(Approach::Bfloat16, HalfOptions::default()), 0.02);
    assert_eq!(fate(&done, "m"), (Some("bfloat16"), None));
    assert_eq!(fate(&done, "a"), (None, Some("no-weight")), "24 elements are not worth a Cast");
    assert_eq!(dtypes(&model, "MatMul"), [DType::F32; 2]);
    assert_eq!(dtypes(&model, "Cast"), [DType::Bf16]);
    assert!(done.warnings.is_empty());
}

#[test]
fn computes_in_bfloat16_when_asked() {
    let half = HalfOptions { io: false, compute: Some(Compute::Half) };
    let mut model = text::parse_model(&TEXT.replace("opset=17", "opset=22"), &Registry).unwrap();
    let o = options(Approach::Bfloat16, half);
    let done = crate::quantize::convert(&mut model, &o, &Exec::new(Isa::detect(), 1)).unwrap();
    assert_eq!(dtypes(&model, "MatMul"), [DType::Bf16; 2]);
    assert!(done.warnings.iter().any(|w| w.contains("no bfloat16 operators")));
}

#[test]
fn keeps_what_is_excluded() {
    let excluded = Override { name: Some("m".into()), float: Some(true), ..Override::default() };
    for approach in [Approach::Float16, Approach::Bfloat16] {
        let o = QuantOptions { overrides: vec![excluded.clone()], ..options(approach, HalfOptions::default()) };
        let mut model = text::parse_model(TEXT, &Registry).unwrap();
        match crate::quantize::convert(&mut model, &o, &Exec::new(Isa::detect(), 1)) {
            Ok(done) => assert_eq!(fate(&done, "m"), (None, Some("excluded"))),
            Err(e) => panic!("{e}"),
        }
        assert_eq!(dtypes(&model, "MatMul"), [DType::F32; 2]);
    }
}

#[test]
fn refuses_types_and_ends_that_have_no_half_form() {
    let of = |o: QuantOptions| {
        let mut model = text::parse_model(TEXT, &Registry).unwrap();
        crate::quantize::convert(&mut model, &o, &Exec::new(Isa::detect(), 1)).unwrap_err().to_string()
    };
    let o = options(Approach::Float16, HalfOptions::default());
    assert!(of(QuantOptions { op_types: vec!["Softmax".into()], ..o }).contains("\"Softmax\""));
    assert!(of(options(Approach::Bfloat16, HalfOptions { io: true, compute: None })).contains("inputs and outputs"));
}
