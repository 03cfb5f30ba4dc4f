//! Encodings of other tools: out of a quantized model, into another one, and into ONNX Runtime's quantizer.

use narrowbit_import::onnx;
use narrowbit_ir::Graph;
use serde_json::Value;

use crate::home::{Home, preprocess, python};

/// Scales and zero points of a file, by the names of the constants.
fn points(home: &Home, model: &str) -> Vec<(String, Vec<u64>)> {
    let graph: Graph = onnx::load(home.path(model)).expect("the file").graph;
    let mut all = Vec::new();
    for (id, n) in graph.nodes().filter(|(_, n)| matches!(n.op.name(), "QuantizeLinear" | "DequantizeLinear")) {
        for input in [1, 2] {
            let t = graph.const_input(id, input).expect("a constant").to_f64s().expect("numbers");
            all.push((format!("{} {input}", n.name), t.iter().map(|x| x.to_bits()).collect()));
        }
    }
    all.sort();
    all
}

#[test]
fn gives_a_model_the_numbers_of_another() {
    for (example, flags, formats) in [
        ("digits-cnn", "", &["aimet", "aimet-0.6.1", "ort"][..]),
        ("digits-cnn", "--scheme vitis-dpu", &["vitis", "aimet", "ort"]),
        ("digits-vit", "--activations int8 --symmetric", &["aimet", "aimet-0.6.1", "ort"]),
    ] {
        let home = Home::with_example(example);
        let p = preprocess(example);
        home.ok(&format!("quantize model.onnx --data calib.npz {p} {flags} --no-check --measure=no -o q.onnx"));
        for format in formats {
            let out = home.ok(&format!("export-encodings q.onnx --to {format} -o e.json")).stdout;
            assert!(out.contains("activations and"), "{out}");
            // Without samples: the file has them all.
            let s = home.json(&format!("quantize model.onnx {flags} --encodings e.json --measure=no -o again.onnx"));
            for list in ["unmatched", "without", "ignored"] {
                assert_eq!(s["encodings"][list], serde_json::json!([]), "{example} {format}: {s}");
            }
            assert!(points(&home, "q.onnx") == points(&home, "again.onnx"), "{example} {flags} {format}");
        }
    }
}

#[test]
fn onnx_runtime_takes_the_overrides_and_makes_the_same_scales() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    // The names of what is quantized are those of the cleaned graph.
    home.ok("sanitize model.onnx -o clean.onnx");
    home.ok(&format!("quantize model.onnx --data calib.npz {p} --no-check --measure=no -o q.onnx"));
    home.ok("export-encodings q.onnx --to ort -o e.json");
    let Some(ran) = python("ort_overrides.py", &[&home.path("clean.onnx"), &home.path("e.json")]) else { return };
    let report = ran.expect(0).json();
    println!("{report}");
    assert_eq!(report["different"], serde_json::json!([]), "{report}");
    let (found, all) = (report["found"].as_u64().unwrap_or(0), report["tensors"].as_u64().unwrap_or(0));
    assert!(found * 10 >= all * 8 && found > 0, "{report}");
}

#[test]
fn lists_names_that_match_nothing_and_tensors_without_an_entry() {
    let home = Home::with_example("diabetes-mlp");
    home.write(
        "e.json",
        r#"{"/Div_output_0": [{"rmin": -4.0, "rmax": 4.0}], "nothing": [{"scale": 0.1, "zero_point": 0}]}"#,
    );
    let mut all = home.run("quantize model.onnx --encodings e.json -o out.onnx").expect(2).text();
    assert!(!home.files().contains(&"out.onnx".to_owned()));
    all.push_str(&home.ok("quantize model.onnx --encodings e.json --data calib.npz --measure=no -o out.onnx").text());
    home.write("bad.json", "{\"a\": 1}");
    all.push_str(&home.run("quantize model.onnx --encodings bad.json --data calib.npz -o no.onnx").expect(2).text());
    all.push_str(&home.run("export-encodings model.onnx --to ort -o no.json").expect(2).text());
    all.push_str(&home.run("export-encodings out.onnx --to vitis -o no.json").expect(2).text());
    assert!(!home.files().iter().any(|f| f.starts_with("no")));
    insta::assert_snapshot!("encodings", all);
}

#[test]
fn writes_quant_info_as_vitis_does() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    home.ok(&format!("quantize model.onnx --data calib.npz {p} --scheme vitis-dpu --no-check --measure=no -o q.onnx"));
    home.ok("export-encodings q.onnx --to vitis -o quant_info.json");
    let info: Value = serde_json::from_slice(&home.read("quant_info.json")).expect("JSON");
    let keys: Vec<&String> = info.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["param", "output", "input", "fast_finetuned", "bias_corrected", "version"]);
    let (input, pair) = info["input"].as_object().and_then(|o| o.iter().next()).expect("an input");
    assert!(pair[0][0] == 8 && pair[0][1].is_i64(), "{input}: {pair}");
    // Weights and biases, as Vitis has both among the parameters.
    let params = info["param"].as_object().expect("an object");
    let biases: Vec<_> = params.iter().filter(|(name, _)| name.ends_with("_bias")).collect();
    assert!(
        2 * biases.len() == params.len() && biases.iter().all(|(_, p)| p[0][0] == 8 && p[0][1].is_i64()),
        "{params:?}"
    );
}

#[test]
fn refuses_encodings_of_a_model_with_other_numbers() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    for (flags, format, told, says) in [
        ("--scheme vitis-dpu", "vitis", "equalized", "--equalize"),
        ("--scheme quantizeml", "aimet", "multiplied", "--cross-layer-equalization=no"),
    ] {
        home.ok(&format!("quantize model.onnx --data calib.npz {p} {flags} --no-check --measure=no -o q.onnx"));
        let out = home.ok(&format!("export-encodings q.onnx --to {format} -o e.json")).stdout;
        let named = String::from_utf8(home.read("e.json")).expect("text").contains("_equalized");
        assert!(named && out.contains("warning: ") && out.contains(told), "{flags}: {out}");
        let line = format!("quantize model.onnx --data calib.npz {p} --encodings e.json --no-check -o none.onnx");
        let refused = home.run(&line).expect(2).stderr;
        assert!(refused.contains(told) && refused.contains(says), "{flags}: {refused}");
    }
    let e: Value = {
        home.ok(&format!("quantize model.onnx --data calib.npz {p} --scheme vitis-dpu --no-check -o q.onnx"));
        home.ok("export-encodings q.onnx --to vitis -o e.json");
        serde_json::from_slice(&home.read("e.json")).expect("JSON")
    };
    assert_eq!(e["bias_corrected"], true);
}

#[test]
fn heeds_reduce_range_and_refuses_unknown_keys() {
    let home = Home::with_example("diabetes-mlp");
    let line = "quantize model.onnx --data calib.npz --no-check --measure=no -o q.onnx";
    let scale = |entry: &str| {
        home.write("e.json", &format!("{{\"/Div_output_0\": [{entry}]}}"));
        let s = home.json(&format!("{line} --encodings e.json"));
        let scales = points(&home, "q.onnx").into_iter().find(|(n, _)| n.starts_with("/Div_output_0_Quantize"));
        (f64::from_bits(scales.expect("a scale").1[0]), s["encodings"].clone())
    };
    let range = r#""rmin": -1.0, "rmax": 1.0"#;
    let (full, reduced) = (scale(&format!("{{{range}}}")).0, scale(&format!("{{{range}, \"reduce_range\": true}}")).0);
    assert!(reduced > 1.9 * full, "{full} {reduced}");
    let (_, told) = scale(r#"{"rmn": -1.0, "rmax": 1.0}"#);
    assert_eq!(told["matched"], 0);
    assert!(told["ignored"].to_string().contains("rmn"), "{told}");
}
