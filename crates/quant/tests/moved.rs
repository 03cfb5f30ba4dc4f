//! Codes that only move between two products.

use narrowbit_ir::{Model, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_quant::calibrate::{CalibrateError, Calibrator};
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::quantize;
use narrowbit_quant::ranges::Ranges;
use narrowbit_quant::scheme::{ActivationScheme, NumberFormat, WeightScheme};
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

fn model(movement: &str) -> Model {
    let text = format!(
        "model opset=21 graph \"g\" {{ input %x: f32[2, 4, 6, 6] const %w: f32[8, 4, 3, 3] = random(2)
         const %rows: i64[2] = [2, 128] const %m: f32[128, 5] = random(3) %c = Conv(%x, %w) {movement}
         %y = MatMul(%r, %m) output %y }}"
    );
    text::parse_model(&text, &Registry).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn samples() -> Tensor {
    Tensor::new(
        [2, 4, 6, 6],
        (0..288).map(|i| ((i * 37 + i * i * 11) % 255) as f32 / 128.0 - 1.0).collect::<Vec<f32>>(),
    )
    .unwrap()
}

fn outputs(model: &Model) -> Vec<f32> {
    let session = Session::new(model.graph.clone(), Options { threads: 1, ..Options::default() }).unwrap();
    session.run(&[samples()]).unwrap()[0].to_f32s().unwrap().into_owned()
}

/// The number of roundings of the model in a format, and the error of its outputs as a share of their magnitude.
fn quantized(movement: &str, format: NumberFormat) -> (usize, f32) {
    let mut model = model(movement);
    let want = outputs(&model);
    let options = QuantOptions {
        activations: ActivationScheme { format, ..ActivationScheme::default() },
        weights: WeightScheme {
            format: if format.is_float() { format } else { NumberFormat::Int8 },
            ..WeightScheme::default()
        },
        keep_first: false,
        ..QuantOptions::default()
    };
    let layout = quantize::layout(&model, &options).unwrap();
    let mut calibrator =
        Calibrator::new(&model.graph, &layout.observed(&model.graph), false, 1, Ranges::default()).unwrap();
    calibrator.add(std::iter::once(Ok::<_, CalibrateError>((vec![samples()], 1))), |_, _| {}).unwrap();
    let ranges = calibrator.into_ranges();
    let exec = Exec::new(Isa::detect(), 1);
    quantize::quantize(&mut model, layout, &ranges, &options, &exec).unwrap();
    let got = outputs(&model);
    let error: f32 = want.iter().zip(&got).map(|(a, b)| (a - b).powi(2)).sum();
    let roundings = model.graph.nodes().filter(|(_, n)| n.op.name() == "QuantizeLinear").count();
    (roundings, (error / want.iter().map(|a| a * a).sum::<f32>()).sqrt())
}

/// ONNX Runtime takes an operator between two pairs for one on codes, and has none for fp8.
#[test]
fn rounds_fp8_once_where_it_only_gets_another_shape() {
    let transposed = "%t = Transpose(%c) {perm=[0, 2, 3, 1]} %r = Reshape(%t, %rows)";
    for movement in ["%r = Reshape(%c, %rows)", "%r = Flatten(%c)", transposed] {
        for format in [NumberFormat::Fp8E4m3, NumberFormat::Fp8E5m2] {
            let (roundings, error) = quantized(movement, format);
            assert_eq!(roundings, 2, "{movement}");
            assert!(error > 0.0 && error < 0.15, "{movement}: {error}");
        }
    }
    let (roundings, error) = quantized("%r = Reshape(%c, %rows)", NumberFormat::Uint8);
    assert!(roundings == 3 && error < 0.03, "{roundings}, {error}");
}
