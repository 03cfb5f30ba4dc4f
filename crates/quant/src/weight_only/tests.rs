use narrowbit_ir::{interp, text};
use narrowbit_kernels::Isa;
use narrowbit_ops::Registry;
use narrowbit_tensor::Tensor;

use super::*;
use crate::approach::{Algorithm, Approach, BlockScales, MX_BLOCK};
use crate::options::Override;

/// A sum of 40 and a table of 24: neither is a multiple of 16.
const TEXT: &str = r#"model opset=25 graph "g" {
    input %x: f32[n, 40] input %i: i64[n]
    const %w: f32[40, 6] = random(1) const %v: f32[5, 40] = random(2) const %b: f32[5] = [1, 2, 3, 4, 5]
    const %t: f32[200, 24] = random(3)
    %m = MatMul(%x, %w) @"m" output %m
    %y = Gemm(%x, %v, %b) {transB=1} @"g" output %y
    %e = Gather(%t, %i) @"e" output %e
}"#;

fn model() -> Model {
    text::parse_model(TEXT, &Registry).unwrap()
}

fn inputs() -> Vec<Tensor> {
    let x: Vec<f32> = (0..120).map(|i| ((i * 29 % 31) as f32 - 15.0) * 0.1).collect();
    vec![Tensor::new([3, 40], x).unwrap(), Tensor::vector(vec![0i64, 199, 7])]
}

/// Blocks of a length of which the sums are no multiple.
fn block(codes: BlockType) -> usize {
    if codes.mx_exponent().is_some() { MX_BLOCK } else { 16 }
}

fn options(codes: BlockType, algorithm: Algorithm, format: BlockFormat) -> QuantOptions {
    QuantOptions {
        approach: Approach::WeightOnly,
        weight_only: WeightOnlyOptions {
            codes,
            block: block(codes),
            algorithm,
            format,
            ..WeightOnlyOptions::default()
        },
        op_types: ["MatMul", "Gemm", "Gather"].map(String::from).to_vec(),
        ..QuantOptions::default()
    }
}

fn quantized(options: &QuantOptions) -> (Model, Converted) {
    let mut model = model();
    let done = crate::quantize::convert(&mut model, options, &Exec::new(Isa::detect(), 2)).unwrap();
    (model, done)
}

/// The error of an output over its size, in parts of 1.
fn loss(float: &Tensor, got: &Tensor) -> f64 {
    assert_eq!(float.shape(), got.shape());
    let (f, g) = (float.to_f64s().unwrap(), got.to_f64s().unwrap());
    let error: f64 = f.iter().zip(&g).map(|(a, b)| (a - b).powi(2)).sum();
    (error / f.iter().map(|v| v * v).sum::<f64>()).sqrt()
}

const ALL: [(BlockType, f64); 14] = [
    (BlockType::Int8, 0.02),
    (BlockType::Uint8, 0.02),
    (BlockType::Int4, 0.2),
    (BlockType::Uint4, 0.2),
    (BlockType::Int2, 1.0),
    (BlockType::Uint2, 1.0),
    (BlockType::Fp8E4m3, 0.1),
    (BlockType::Fp8E5m2, 0.2),
    (BlockType::Fp4, 0.3),
    (BlockType::Nf4, 0.25),
    (BlockType::Mxfp8E4m3, 0.1),
    (BlockType::Mxfp8E5m2, 0.2),
    (BlockType::Mxfp4, 0.3),
    (BlockType::Mxint8, 0.03),
];

#[test]
fn keeps_the_results_in_every_type_and_form() {
    let want = interp::run_tensors(&model().graph, &inputs()).unwrap();
    for (codes, most) in ALL {
        let mut outputs = Vec::new();
        for format in [BlockFormat::Qdq, BlockFormat::Matmulnbits] {
            if format == BlockFormat::Matmulnbits && codes.code_range().is_none() {
                continue;
            }
            let (model, done) = quantized(&options(codes, Algorithm::Mse, format));
            assert_eq!(done.fates.iter().filter(|f| f.stored.is_some()).count(), 3);
            let got = interp::run_tensors(&model.graph, &inputs()).unwrap();
            for (i, w) in want.iter().enumerate() {
                let loss = loss(w, &got[i]);
                assert!(loss < most, "{codes} {format:?} output {i}: {loss}");
            }
            outputs.push(got);
        }
        // Both forms mean the same numbers; the order of the sums differs.
        if let [qdq, nbits] = outputs.as_slice() {
            for (a, b) in qdq.iter().zip(nbits) {
                assert!(loss(a, b) < 1e-6, "{codes}: {}", loss(a, b));
            }
        }
    }
}

#[test]
fn gives_the_same_results_with_scales_of_a_byte_as_of_floats() {
    for codes in [BlockType::Mxfp8E4m3, BlockType::Mxfp8E5m2, BlockType::Mxfp4, BlockType::Mxint8] {
        let mut o = options(codes, Algorithm::Rtn, BlockFormat::Qdq);
        let [float, byte] = [BlockScales::F32, BlockScales::E8m0].map(|scales| {
            o.weight_only.scales = Some(scales);
            let (model, _) = quantized(&o);
            let of = |node| model.graph.const_input(node, 1).cloned();
            let dequantizers = model.graph.nodes().filter(|(_, n)| n.op.name() == "DequantizeLinear");
            let scales: Vec<Tensor> = dequantizers.filter_map(|(id, _)| of(id)).collect();
            let powers = |t: &Tensor| t.to_f32s().unwrap().iter().all(|s| s.log2().fract() == 0.0);
            assert!(scales.len() >= 2 && scales.iter().all(powers), "{codes}");
            (scales[0].dtype(), interp::run_tensors(&model.graph, &inputs()).unwrap())
        });
        assert_eq!((float.0, byte.0), (narrowbit_tensor::DType::F32, narrowbit_tensor::DType::F8E8M0));
        for (f, b) in float.1.iter().zip(&byte.1) {
            assert_eq!(f.to_f64s().unwrap(), b.to_f64s().unwrap(), "{codes}");
        }
    }
}

#[test]
fn writes_each_form_with_its_operators() {
    let count = |m: &Model, op: &str| m.graph.nodes().filter(|(_, n)| n.op.name() == op).count();
    let (qdq, _) = quantized(&options(BlockType::Int4, Algorithm::Rtn, BlockFormat::Qdq));
    assert_eq!([count(&qdq, "DequantizeLinear"), count(&qdq, "MatMul"), count(&qdq, "Gemm")], [3, 2, 0]);
    let (nbits, _) = quantized(&options(BlockType::Int4, Algorithm::Rtn, BlockFormat::Matmulnbits));
    assert_eq!([count(&nbits, "MatMulNBits"), count(&nbits, "GatherBlockQuantized")], [2, 1]);
    assert_eq!(nbits.opsets.get("com.microsoft"), Some(&1));
    let names = |m: &Model| m.graph.outputs().iter().map(|&v| m.graph.value(v).name.clone()).collect::<Vec<_>>();
    assert_eq!((names(&qdq), names(&nbits)), (names(&model()), names(&model())));
}

#[test]
fn leaves_tables_alone_unless_asked_and_follows_exceptions() {
    let float = Override { name: Some("m".into()), float: Some(true), ..Override::default() };
    let eight = WeightOnlyOptions { codes: BlockType::Int8, ..WeightOnlyOptions::default() };
    let wide = Override { name: Some("g".into()), weight_only: Some(eight), ..Override::default() };
    let o = QuantOptions {
        op_types: Vec::new(),
        overrides: vec![float, wide],
        ..options(BlockType::Int4, Algorithm::Rtn, BlockFormat::Qdq)
    };
    let (_, done) = quantized(&o);
    let of = |name: &str| done.fates.iter().find(|f| f.node == name).unwrap();
    assert_eq!((of("m").stored.as_deref(), of("m").reason), (None, Some("excluded")));
    assert_eq!(of("g").stored.as_deref(), Some("int8"));
    assert_eq!((of("e").stored.as_deref(), of("e").reason), (None, Some("type-not-selected")));
}

#[test]
fn moves_a_zero_point_for_signed_codes_with_hqq() {
    let want = interp::run_tensors(&model().graph, &inputs()).unwrap();
    for format in [BlockFormat::Qdq, BlockFormat::Matmulnbits] {
        let (model, _) = quantized(&options(BlockType::Int4, Algorithm::Hqq, format));
        let got = interp::run_tensors(&model.graph, &inputs()).unwrap();
        for (w, g) in want.iter().zip(&got) {
            assert!(loss(w, g) < 0.2, "{format:?}: {}", loss(w, g));
        }
    }
}

#[test]
fn refuses_what_no_file_can_hold() {
    let of = |o: &QuantOptions, text: &str| {
        let mut m = text::parse_model(text, &Registry).unwrap();
        crate::quantize::convert(&mut m, o, &Exec::new(Isa::detect(), 1)).unwrap_err().to_string()
    };
    let mut o = options(BlockType::Int2, Algorithm::Rtn, BlockFormat::Qdq);
    assert!(of(&o, &TEXT.replace("opset=25", "opset=21")).contains("needs 25"));
    o.weight_only.block = 24;
    assert!(of(&o, TEXT).contains("powers of two"));
    let mut o = options(BlockType::Mxfp4, Algorithm::Rtn, BlockFormat::Qdq);
    assert!(of(&o, &TEXT.replace("opset=25", "opset=23")).contains("needs 24"));
    o.weight_only.block = 64;
    assert!(of(&o, TEXT).contains("a block of mxfp4 has 32 elements, not 64"));
    let o = options(BlockType::Nf4, Algorithm::Rtn, BlockFormat::Matmulnbits);
    assert!(of(&o, TEXT).contains("not nf4"));
    let conv = r#"model opset=21 graph "g" { input %x: f32[1, 1, 4, 4] const %w: f32[1, 1, 3, 3] = random(1)
        %y = Conv(%x, %w) output %y }"#;
    let mut o = options(BlockType::Int4, Algorithm::Rtn, BlockFormat::Qdq);
    o.op_types = vec!["Conv".into()];
    assert!(of(&o, conv).contains("MatMul, Gemm, Gather, LSTM"));
}
