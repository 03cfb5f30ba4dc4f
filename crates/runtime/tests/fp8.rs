//! Networks in fp8 and in half precision: the kernels that run, and their results beside the operators' definitions.

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Operands, Options, Profile, Session};
use narrowbit_tensor::{DType, Tensor};

fn graph(body: &str) -> Graph {
    text::parse_graph(&format!("graph \"g\" {{\n{body}\n}}"), &Registry, 21).unwrap_or_else(|e| panic!("{e}"))
}

/// Results of the session and of the interpreter, and the profile.
fn both(body: &str, inputs: &[Tensor]) -> (Vec<f32>, Vec<f32>, Profile) {
    let graph = graph(body);
    let want = interp::run_tensors(&graph, inputs).unwrap_or_else(|e| panic!("{e}"));
    let session = Session::new(graph, Options { threads: 2, ..Options::default() }).expect("a session");
    let (got, profile) = session.profile(inputs).expect("it runs");
    let floats = |t: &Tensor| t.to_f32s().expect("floats").into_owned();
    (floats(&got[0]), floats(&want[0]), profile)
}

#[track_caller]
fn assert_near(got: &[f32], want: &[f32]) {
    let most = want.iter().fold(0f32, |a, v| a.max(v.abs()));
    assert!(most > 0.0 && got.len() == want.len());
    // Products are exact; sums of floats in another order.
    assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 1e-5 * most.max(1.0)), "{got:?} {want:?}");
}

fn kernels(profile: &Profile) -> Vec<(String, Operands)> {
    let named = profile.rows.iter().map(|r| (r.kernel.clone(), r.operands));
    named.filter(|(k, _)| k.contains("fp8") && !k.contains("quantize")).collect()
}

fn input(shape: impl Into<Vec<usize>>) -> Tensor {
    let shape: Vec<usize> = shape.into();
    let len: usize = shape.iter().product();
    Tensor::new(shape, (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect::<Vec<f32>>()).expect("a tensor")
}

/// A QuantizeLinear and a DequantizeLinear to and from a format.
fn qdq(from: &str, to: &str, dtype: DType, scale: f32) -> String {
    let onnx = dtype.to_onnx();
    format!(
        "const %s{to}: f32[] = [{scale}]\n %q{to} = QuantizeLinear(%{from}, %s{to}) {{output_dtype={onnx}}}\n\
         %{to} = DequantizeLinear(%q{to}, %s{to})\n"
    )
}

#[test]
fn multiplies_fp8_by_weights_of_fp8() {
    for dtype in [DType::F8E4M3Fn, DType::F8E5M2] {
        let body = format!(
            "input %x: f32[2, 5, 40]\n const %v: f32[40, 37] = random(1)\n const %b: f32[37] = random(2)\n{}{}\
             %m = MatMul(%d, %w)\n %y = Add(%m, %b)\noutput %y",
            qdq("x", "d", dtype, 0.01),
            qdq("v", "w", dtype, 0.003)
        );
        let (got, want, profile) = both(&body, &[input([2, 5, 40])]);
        assert_near(&got, &want);
        assert!(kernels(&profile).iter().all(|(_, o)| *o == Operands::Fp8), "{:?}", profile.rows);
        assert_eq!(kernels(&profile).len(), 1, "{:?}", profile.rows);
    }
}

#[test]
fn multiplies_activations_of_fp8() {
    let body = format!(
        "input %x: f32[3, 9, 20]\n input %z: f32[3, 20, 11]\n{}{}%y = MatMul(%d, %w)\noutput %y",
        qdq("x", "d", DType::F8E4M3Fn, 0.01),
        qdq("z", "w", DType::F8E4M3Fn, 0.02)
    );
    let (got, want, profile) = both(&body, &[input([3, 9, 20]), input([3, 20, 11])]);
    assert_near(&got, &want);
    assert_eq!(kernels(&profile).len(), 1, "{:?}", profile.rows);
}

#[test]
fn convolves_fp8_and_leaves_depthwise_convolutions_to_floats() {
    for (oc, groups, products) in [(24, 1, 1), (24, 2, 1), (6, 6, 0)] {
        let body = format!(
            "input %x: f32[2, 6, 9, 8]\n const %v: f32[{oc}, {}, 3, 3] = random(1)\n const %b: f32[{oc}] = random(2)\n{}{}\
             %c = Conv(%d, %w, %b) {{pads=[1, 1, 1, 1], strides=[2, 1], group={groups}}}\n %y = Relu(%c)\noutput %y",
            6 / groups,
            qdq("x", "d", DType::F8E4M3Fn, 0.01),
            qdq("v", "w", DType::F8E4M3Fn, 0.003)
        );
        let (got, want, profile) = both(&body, &[input([2, 6, 9, 8])]);
        assert_near(&got, &want);
        assert_eq!(kernels(&profile).len(), products, "{:?}", profile.rows);
    }
}

#[test]
fn keeps_half_precision_in_memory() {
    for dtype in [DType::F16, DType::Bf16] {
        let body = format!(
            "input %x: f32[7, 40]\n const %v: {dtype}[40, 37] = random(1)\n %w = Cast(%v) {{to=1}}\n\
             %y = MatMul(%x, %w)\noutput %y"
        );
        let (got, want, profile) = both(&body, &[input([7, 40])]);
        assert_near(&got, &want);
        let name = format!("panel_{dtype}_as_f32");
        assert!(profile.rows.iter().any(|r| r.kernel == name && r.operands == Operands::F32), "{:?}", profile.rows);
    }
}

#[test]
fn rounds_to_fp8_as_the_operator_does() {
    for dtype in [DType::F8E4M3Fn, DType::F8E5M2] {
        let body = format!("input %x: f32[60000]\n{}output %d", qdq("x", "d", dtype, 0.37));
        // Every exponent and the upper bits of the mantissa, with either sign.
        let x: Vec<f32> = (0..60000u32).map(|i| f32::from_bits(i << 16 | i & 1)).filter(|x| !x.is_nan()).collect();
        let x: Vec<f32> = x.iter().copied().chain(std::iter::repeat(0.1)).take(60000).collect();
        let (got, want, profile) = both(&body, &[Tensor::new([60000], x).expect("a tensor")]);
        assert!(got.iter().zip(&want).all(|(g, w)| g.to_bits() == w.to_bits()));
        let names: Vec<&str> = profile.rows.iter().map(|r| r.kernel.as_str()).collect();
        assert_eq!(names, ["quantize_fp8", "dequantize_fp8"]);
    }
}
