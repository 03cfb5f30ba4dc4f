use std::path::Path;

use narrowbit_ir::AttrMap;
use narrowbit_ir::Model;
use narrowbit_kernels::{Exec, Isa};
use narrowbit_tensor::Tensor;
use narrowbit_testkit::graphs::GraphBuilder;

use super::*;
use crate::observe::Stats;
use crate::options::QuantOptions;
use crate::quantize::{layout, quantize_with};
use crate::ranges::{Ranges, graph_hash};
use crate::scheme::Preset;

/// Two products of different weights.
fn model() -> Model {
    let mut b = GraphBuilder::new(13);
    let x = b.input("x", &[-1, 4]);
    let values = |n: usize| (0..n).map(|i| ((i * 37 % 19) as f32 - 9.0) / 8.0).collect::<Vec<_>>();
    let w = b.constant("w", Tensor::new([4, 6], values(24)).unwrap());
    let v = b.constant("v", Tensor::new([6, 3], values(18)).unwrap());
    let y = b.named("h", "", "MatMul", &[x, w], AttrMap::new()).unwrap();
    let y = b.named("y", "", "MatMul", &[y, v], AttrMap::new()).unwrap();
    b.output(y);
    b.model()
}

fn ranges(model: &Model) -> Ranges {
    let positions = Some(crate::observe::Positions::new(8));
    let mut stats = Stats { positions, ..Stats::new(true) };
    stats.add_sample(&[-1.0, 0.5, 3.25]);
    let tensors = ["x", "h"].map(|n| (n.to_owned(), stats.clone())).into();
    Ranges { graph: graph_hash(&model.graph), samples: 1, tensors, ..Ranges::default() }
}

fn quantized(ranges: &Ranges, given: &Encodings, options: &QuantOptions) -> (Model, Applied) {
    let mut m = model();
    let exec = Exec::new(Isa::detect(), 1);
    let plan = layout(&m, options).unwrap();
    let (_, _, applied, _) = quantize_with(&mut m, plan, ranges, given, options, Default::default(), &exec).unwrap();
    (m, applied)
}

fn parse(text: &str) -> Result<Encodings, EncodingsError> {
    Encodings::parse(text.as_bytes(), Path::new("e.json"))
}

#[test]
fn comes_back_from_every_format() {
    let vitis = Preset::VitisDpu.options();
    let plain = QuantOptions::default();
    for (options, formats) in [
        (&vitis, &[Format::Vitis, Format::Aimet, Format::AimetV0, Format::Ort][..]),
        (&plain, &[Format::Aimet, Format::AimetV0, Format::Ort]),
    ] {
        let (first, _) = quantized(&ranges(&model()), &Encodings::default(), options);
        let held = Encodings::of_graph(&first.graph).unwrap();
        assert_eq!(held.tensors.keys().map(String::as_str).collect::<Vec<_>>(), ["h", "v", "w", "x"]);
        for &format in formats {
            let read = parse(&held.write(format).unwrap()).unwrap();
            // No ranges are needed.
            let (again, applied) = quantized(&Ranges::default(), &read, options);
            assert_eq!(applied, Applied { matched: 4, ..Applied::default() }, "{format:?}");
            assert_eq!(Encodings::of_graph(&again.graph).unwrap(), held, "{format:?}");
        }
    }
}

#[test]
fn lists_what_matches_nothing_and_what_has_no_entry() {
    let text = r#"{"x": [{"quant_type": "QInt8", "rmin": -2.0, "rmax": 2.0, "symmetric": true}], "z": [{}],
        "w": [{"scale": 0.5, "zero_point": 300}], "v": [{"axis": 0, "scale": 0.5, "zero_point": 0}]}"#;
    let (m, applied) = quantized(&ranges(&model()), &parse(text).unwrap(), &QuantOptions::default());
    assert_eq!((applied.matched, applied.unmatched), (1, vec!["z".to_owned()]));
    assert_eq!(applied.without, ["h"]);
    assert_eq!(applied.ignored.len(), 2, "{:?}", applied.ignored);
    let held = Encodings::of_graph(&m.graph).unwrap();
    let x = &held.tensors["x"];
    let point = ScalePoint { scale: (2.0f64 / 127.0) as f32, zero_point: 0 };
    assert_eq!((x.format, x.values.as_slice()), (Some(NumberFormat::Int8), &[Given::Point(point)][..]));
}

#[test]
fn reads_offsets_of_aimet_as_zero_points() {
    let text = r#"{"version": "1.0.0", "activation_encodings": [
        {"name": "a", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8, "is_sym": false, "scale": [0.5], "offset": [-10.0]},
        {"name": "b", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8, "is_sym": true, "scale": [0.5], "offset": [-128.0]},
        {"name": "c", "enc_type": "PER_TENSOR", "dtype": "FLOAT", "bw": 16}], "param_encodings": []}"#;
    let e = parse(text).unwrap();
    let of = |n: &str| (e.tensors[n].format.unwrap(), e.tensors[n].values[0]);
    let point = |zero_point| Given::Point(ScalePoint { scale: 0.5, zero_point });
    assert_eq!(of("a"), (NumberFormat::Uint8, point(10)));
    assert_eq!(of("b"), (NumberFormat::Int8, point(0)));
    assert!(e.ignored[0].starts_with("c: the type FLOAT"), "{:?}", e.ignored);
}

#[test]
fn refuses_what_is_none_of_the_formats() {
    for text in [
        "",
        "[]",
        "{\"a\": 1}",
        "{\"a\": [1]}",
        "{\"activation_encodings\": 3}",
        "{\"param\": {}, \"output\": {}, \"input\": 1}",
    ] {
        assert!(matches!(parse(text), Err(EncodingsError::Format { .. })), "{text}");
    }
    let nested = "[".repeat(100_000);
    assert!(parse(&nested).is_err());
}

#[test]
fn keeps_impossible_numbers_out() {
    for entry in [
        r#"[{"scale": 0, "zero_point": 0}]"#,
        r#"[{"scale": 1e300, "zero_point": 0}]"#,
        r#"[{"scale": 1, "zero_point": 0.5}]"#,
        r#"[{"scale": 1}]"#,
        r#"[{"quant_type": "QInt99"}]"#,
        "[]",
    ] {
        let e = parse(&format!("{{\"x\": {entry}}}")).unwrap();
        assert_eq!((e.tensors.len(), e.ignored.len()), (0, 1), "{entry}");
    }
    let e =
        parse(r#"{"param": {"w": [[99, 3]], "v": [[8, 3000]], "u": [[8, null]]}, "output": {}, "input": {}}"#).unwrap();
    assert_eq!((e.tensors.len(), e.ignored.len()), (0, 3));
}

#[test]
fn says_what_a_format_can_not_hold() {
    let (m, _) = quantized(&ranges(&model()), &Encodings::default(), &QuantOptions::default());
    let held = Encodings::of_graph(&m.graph).unwrap();
    let refused = held.write(Format::Vitis).unwrap_err().to_string();
    assert!(refused.contains("tensor \"h\"") && refused.contains("--scheme vitis-dpu"), "{refused}");
    assert!(matches!(Encodings::of_graph(&model().graph), Err(EncodingsError::Nothing)));
}
