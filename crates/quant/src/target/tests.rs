use narrowbit_ir::AttrMap;
use narrowbit_tensor::{DType, Tensor};
use narrowbit_testkit::graphs::GraphBuilder;

use super::*;
use crate::approach::{BlockScales, WeightOnlyOptions};
use crate::scheme::{Preset, WeightScheme};

/// A table, a MatMul and a Gemm.
fn graph() -> Graph {
    let mut b = GraphBuilder::new(17);
    let i = b.typed_input("i", DType::I64, &[2]);
    let table = b.constant("table", Tensor::zeros(DType::F32, [8, 32]).unwrap());
    let w = b.constant("w", Tensor::zeros(DType::F32, [32, 32]).unwrap());
    let rows = b.node("Gather", &[table, i], AttrMap::new()).unwrap();
    let y = b.node("MatMul", &[rows, w], AttrMap::new()).unwrap();
    let y = b.node("Gemm", &[y, w], AttrMap::new()).unwrap();
    b.output(y);
    b.finish()
}

fn fitted(target: Target, mut options: QuantOptions) -> Result<(QuantOptions, Fitted), TargetError> {
    options.target = Some(target);
    let fitted = fit(&mut options, &graph(), false)?;
    // Fitting again changes nothing.
    let mut again = options.clone();
    assert!(fit(&mut again, &graph(), false).unwrap().adapted.is_empty());
    assert_eq!(again, options);
    Ok((options, fitted))
}

fn weight_only(codes: BlockType) -> QuantOptions {
    QuantOptions {
        approach: Approach::WeightOnly,
        weight_only: WeightOnlyOptions { codes, ..WeightOnlyOptions::default() },
        ..QuantOptions::default()
    }
}

#[test]
fn has_one_row_for_each_feature() {
    use NumberFormat::{Fp8E4m3, Fp8E5m2, Int4, Int8, Int16, Uint4, Uint8, Uint16};
    let mut wanted: Vec<Feature> = vec![
        Feature::ActivationZeroPoints,
        Feature::WeightZeroPoints,
        Feature::Fp8MatMul,
        Feature::Tables,
        Feature::Int32Biases,
        Feature::JoinedCodes,
        Feature::JoinedInt8,
        Feature::JoinedPositions,
        Feature::TransposedZeroPoints,
        Feature::Fp8Conv,
        Feature::RaggedCodes,
        Feature::RaggedFloats,
        Feature::FloatOutputs,
        Feature::ChannelActivations,
        Feature::QOperators,
        Feature::DynamicTensor,
        Feature::DynamicLstm,
        Feature::DynamicToken,
        Feature::ShortBlocks,
        Feature::PowerScales,
        Feature::HalfWeights,
        Feature::Float16,
        Feature::Bfloat16,
    ];
    wanted.extend([Int8, Uint8, Int16, Uint16, Fp8E4m3, Fp8E5m2].map(Feature::Activations));
    wanted.extend([Int4, Uint4, Int8, Uint8, Int16, Uint16, Fp8E4m3, Fp8E5m2].map(Feature::Weights));
    wanted.extend(table::BLOCKS.map(Feature::Blocks));
    wanted.extend(table::BLOCKS.into_iter().filter(|b| b.code_range().is_some()).map(Feature::NBits));
    for f in &wanted {
        assert_eq!(ROWS.iter().filter(|r| r.0 == *f).count(), 1, "{f}");
    }
    assert_eq!(ROWS.len(), wanted.len());
}

#[test]
fn leaves_settings_alone_without_a_target_with_limits() {
    for preset in Preset::ALL {
        let (options, fitted) = fitted(Target::Narrowbit, preset.options()).unwrap();
        assert_eq!(options, QuantOptions { target: Some(Target::Narrowbit), ..preset.options() });
        assert_eq!(fitted, Fitted::default());
    }
    let mut none = QuantOptions::default();
    assert_eq!(fit(&mut none, &graph(), true), Ok(Fitted::default()));
}

#[test]
fn gives_tensorrt_symmetric_int8() {
    for preset in [Preset::Pytorch, Preset::Tensorflow, Preset::Tflite, Preset::Onnxruntime] {
        let (o, fitted) = fitted(Target::Tensorrt, preset.options()).unwrap();
        assert_eq!((o.activations.format, o.activations.symmetric), (NumberFormat::Int8, true), "{preset:?}");
        assert!(o.weights.symmetric && !o.embeddings && !fitted.adapted.is_empty(), "{preset:?}");
    }
    let (o, fitted) = fitted(Target::Tensorrt, QuantOptions::default()).unwrap();
    assert_eq!((o.activations.format, o.activations.symmetric), (NumberFormat::Int8, true));
    assert_eq!(fitted.adapted.len(), 3, "{fitted:?}");
}

#[test]
fn writes_weights_by_blocks_as_each_target_reads_them() {
    let (o, _) = fitted(Target::Onnxruntime, weight_only(BlockType::Int4)).unwrap();
    assert_eq!(o.weight_only.format, BlockFormat::Matmulnbits);
    let (o, fitted_ov) = fitted(Target::Openvino, weight_only(BlockType::Int4)).unwrap();
    assert_eq!((o.weight_only.format, fitted_ov.notes.len()), (BlockFormat::Qdq, 1));
    let (o, _) = fitted(Target::Openvino, weight_only(BlockType::Uint2)).unwrap();
    assert_eq!(o.weight_only.format, BlockFormat::Matmulnbits);
    let (o, _) = fitted(Target::Tensorrt, weight_only(BlockType::Uint4)).unwrap();
    assert_eq!((o.weight_only.codes, o.weight_only.block), (BlockType::Int4, 128));
    let (o, _) = fitted(Target::Onnxruntime, weight_only(BlockType::Nf4)).unwrap();
    assert_eq!(o.weight_only.format, BlockFormat::Qdq);
}

#[test]
fn refuses_what_nothing_else_would_be() {
    let fp8 = Preset::IncJaxFp8.options();
    let refused = fitted(Target::Onnxruntime, fp8.clone()).unwrap_err();
    assert!(refused.to_string().contains("does not run MatMul of fp8"), "{refused}");
    // As the help says.
    let op_types = vec!["Gemm".to_owned()];
    assert!(fitted(Target::Onnxruntime, QuantOptions { op_types, ..fp8.clone() }).is_ok());
    assert!(fitted(Target::Tensorrt, fp8).is_ok());
    let dynamic = QuantOptions { approach: Approach::Dynamic, ..QuantOptions::default() };
    assert!(fitted(Target::Tensorrt, dynamic.clone()).is_err());
    assert_eq!(fitted(Target::Openvino, dynamic).unwrap().0.dynamic.granularity, Granularity::Tensor);
    let mut options = QuantOptions { target: Some(Target::Openvino), ..QuantOptions::default() };
    assert!(fit(&mut options, &graph(), true).is_err());
    assert!(fitted(Target::Tensorrt, weight_only(BlockType::Nf4)).is_err());
    assert!(Target::Tensorrt.check_opset(25).is_err() && Target::Openvino.check_opset(25).is_ok());
}

#[test]
fn gives_microscaling_formats_the_scales_that_a_target_reads() {
    let with = |codes, scales| {
        let mut o = weight_only(codes);
        o.weight_only.scales = scales;
        o
    };
    let byte = Some(BlockScales::E8m0);
    let (o, done) = fitted(Target::Onnxruntime, with(BlockType::Mxfp8E4m3, byte)).unwrap();
    assert_eq!((o.weight_only.scales(), done.adapted.len()), (BlockScales::F32, 1));
    let (o, _) = fitted(Target::Onnxruntime, with(BlockType::Mxint8, byte)).unwrap();
    assert_eq!((o.weight_only.format, o.weight_only.check()), (BlockFormat::Matmulnbits, Ok(())));
    let (o, _) = fitted(Target::Openvino, with(BlockType::Mxfp4, None)).unwrap();
    assert_eq!(o, QuantOptions { target: Some(Target::Openvino), ..with(BlockType::Mxfp4, None) });
    for target in [Target::Onnxruntime, Target::Tensorrt] {
        assert!(fitted(target, with(BlockType::Mxfp4, None)).unwrap_err().to_string().contains("blocks of mxfp4"));
    }
    assert_eq!(unreadable(&with(BlockType::Mxfp4, None), &graph(), false).len(), 2);
    assert_eq!(unreadable(&with(BlockType::Mxfp8E4m3, byte), &graph(), false).len(), 1);
    assert!(unreadable(&with(BlockType::Mxfp8E4m3, None), &graph(), false).is_empty());
    let named = QuantOptions { target: Some(Target::Openvino), ..with(BlockType::Mxfp4, None) };
    assert!(unreadable(&named, &graph(), false).is_empty());
}

#[test]
fn looks_at_exceptions_too() {
    let activations = ActivationScheme { format: NumberFormat::Int16, ..ActivationScheme::default() };
    let own =
        crate::options::Override { op_type: Some("Conv".into()), activations: Some(activations), ..Default::default() };
    assert!(fitted(Target::Tensorrt, QuantOptions { overrides: vec![own], ..QuantOptions::default() }).is_err());
}

/// A Concat that a convolution and a transposed convolution read.
fn joined() -> Graph {
    let mut b = GraphBuilder::new(17);
    let x = b.typed_input("x", DType::F32, &[1, 2, 4, 4]);
    let w = b.constant("w", Tensor::zeros(DType::F32, [4, 4, 1, 1]).unwrap());
    let c = b.node("Concat", &[x, x], AttrMap::new().with("axis", 1i64)).unwrap();
    let r = b.node("Relu", &[c], AttrMap::new()).unwrap();
    let y = b.node("Conv", &[r, w], AttrMap::new()).unwrap();
    let y = b.node("ConvTranspose", &[y, w], AttrMap::new()).unwrap();
    b.output(y);
    b.finish()
}

#[test]
fn refuses_fp8_that_onnx_runtime_would_make_integer_operators_of() {
    let fp8 = |ops: &[&str]| {
        let mut b = GraphBuilder::new(17);
        let mut y = b.typed_input("x", DType::F32, &[1, 4, 4, 4]);
        let w = b.constant("w", Tensor::zeros(DType::F32, [4, 4, 1, 1]).unwrap());
        for &op in ops {
            let inputs = if op == "Conv" { vec![y, w] } else { vec![y] };
            let pool = AttrMap::new().with("kernel_shape", vec![2i64, 2]);
            y = b.node(op, &inputs, if op == "MaxPool" { pool } else { AttrMap::new() }).unwrap();
        }
        b.output(y);
        let mut o = Preset::IncJaxFp8.options();
        o.target = Some(Target::Onnxruntime);
        fit(&mut o, &b.finish(), false)
    };
    assert!(fp8(&["Conv", "Relu", "Conv"]).is_ok());
    for refused in [&["Conv", "Conv"][..], &["Conv", "Identity", "Conv"], &["Conv", "Relu", "MaxPool"]] {
        assert!(fp8(refused).unwrap_err().to_string().contains("QLinearConv"), "{refused:?}");
    }
}

#[test]
fn keeps_from_openvino_what_it_computes_wrongly() {
    let fitted = |mut o: QuantOptions, graph: &Graph| {
        o.target = Some(Target::Openvino);
        fit(&mut o, graph, false).map(|fitted| (o, fitted.adapted.len()))
    };
    for preset in [Preset::Pytorch, Preset::Tensorflow, Preset::Onnxruntime] {
        let (o, _) = fitted(preset.options(), &joined()).unwrap();
        assert_eq!(o.activations.format, NumberFormat::Uint8, "{preset:?}");
        assert_ne!(o.activations.formula, Formula::Tensorflow, "whose uint8 holds nothing negative");
        assert_eq!((o.weights.format, o.weights.symmetric), (NumberFormat::Int8, true), "{preset:?}");
    }
    for preset in [Preset::Quantizeml, Preset::VitisDpu] {
        assert!(fitted(preset.options(), &joined()).unwrap_err().to_string().contains("Concat"), "{preset:?}");
        assert!(fitted(preset.options(), &graph()).is_ok(), "{preset:?}");
    }
    let asymmetric = WeightScheme { format: NumberFormat::Uint8, symmetric: false, ..WeightScheme::default() };
    let options = QuantOptions { weights: asymmetric, ..QuantOptions::default() };
    assert_eq!(
        fitted(options.clone(), &graph()),
        Ok((QuantOptions { target: Some(Target::Openvino), ..options.clone() }, 0))
    );
    assert!(fitted(options, &joined()).unwrap().0.weights.symmetric);
    // 32 rows are no multiple of 64.
    let blocks = |codes| {
        let mut o = weight_only(codes);
        o.weight_only.block = 64;
        fitted(o, &graph())
    };
    assert_eq!(blocks(BlockType::Int4).unwrap().0.weight_only.format, BlockFormat::Matmulnbits);
    assert_eq!(blocks(BlockType::Nf4).unwrap().1, 0);
    assert!(blocks(BlockType::Fp8E4m3).is_err());
}
