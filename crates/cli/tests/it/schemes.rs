//! Number formats and named schemes: accuracy, what ONNX Runtime makes of the files, and what is refused.

use serde_json::Value;

use crate::home::{Home, preprocess};
use crate::onnxruntime::agreement;

fn score(v: &Value) -> f64 {
    v["scores"][0]["value"].as_f64().expect("a score")
}

/// How much of the top-1 accuracy `flags` cost, and the agreement with ONNX Runtime, where there is one.
fn loss(example: &str, flags: &str) -> (f64, Option<Value>) {
    let home = Home::with_example(example);
    let p = preprocess(example);
    home.ok(&format!("quantize model.onnx --data calib.npz {p} {flags} --batch 10 --measure=no -o q.onnx"));
    let eval = |model: &str| score(&home.json(&format!("eval {model} --data test.npz {p} --batch 20 --metric top1")));
    let report = agreement(&home, "q.onnx", &home.path("test.npz"), &home.path("case.json"), 16);
    (eval("model.onnx") - eval("q.onnx"), report)
}

#[track_caller]
fn check(example: &str, flags: &str, most: f64) {
    let (lost, report) = loss(example, flags);
    println!("{example} {flags}: {lost}");
    assert!(lost <= most, "{example} {flags}: {lost}");
    let Some(report) = report else { return };
    // Outputs of one interpreter beside the other's on the same file; values on rounding borders may move.
    assert!(report["plain_sqnr_db"].as_f64() > Some(30.0), "{example} {flags}: {report}");
}

#[test]
fn keeps_the_accuracy_with_every_number_format() {
    for flags in [
        "--activations fp8_e4m3 --weights fp8_e4m3",
        "--activations fp8_e4m3 --weights fp8_e4m3 --method mse",
        "--activations int16 --weights int8 --symmetric",
        "--activations uint16 --weights int16",
    ] {
        check("digits-cnn", flags, 0.006);
        check("digits-vit", flags, 0.006);
    }
    for flags in ["--activations fp8_e5m2 --weights fp8_e4m3", "--weights int4", "--weights uint4 -a 8"] {
        check("digits-cnn", flags, 0.03);
    }
}

#[test]
fn keeps_the_accuracy_with_every_scheme() {
    for scheme in
        ["tensorflow", "pytorch", "ipex", "mxnet", "onnxruntime", "inc-jax-fp8", "inc-jax-int8", "vitis-dpu", "tflite"]
    {
        check("digits-cnn", &format!("--scheme {scheme}"), 0.01);
    }
    check("digits-cnn", "--scheme quantizeml -i 8 -w 8 -a 8 --per-tensor-activations", 0.01);
    check("digits-cnn", "--scheme quantizeml -i 8 -w 4 -a 4", 0.2);
    check("digits-vit", "--scheme pytorch", 0.01);
    check("digits-vit", "--scheme inc-jax-fp8", 0.01);
}

#[test]
fn says_what_is_wrong_with_formats_and_schemes() {
    let home = Home::with_example("digits-cnn");
    home.write("scheme.toml", "scheme = \"vitis-dpu\"\nmethod = \"minmax\"\n");
    let p = preprocess("digits-cnn");
    let lines = [
        "--activations fp8_e4m3",
        "--weights fp8_e4m3",
        "--activations fp8_e4m3 --weights fp8_e4m3 --reduce-range",
        "--method distribution",
        "--method diffs",
        "--weight-bits 17 --weights int8",
        "--activations int16 --format qoperator",
        "--scheme vitis-dpu --activations uint8",
        "--scheme nothing",
    ];
    let mut all = String::new();
    for line in lines {
        let ran = home.run(&format!("quantize model.onnx --data calib.npz {p} {line} -o out.onnx")).expect(2);
        all.push_str(&ran.text());
        all.push('\n');
    }
    assert!(!home.files().contains(&"out.onnx".to_owned()));
    for line in ["--scheme pytorch", "--config scheme.toml", "--config scheme.toml --scheme quantizeml -w 4"] {
        all.push_str(&home.run(&format!("quantize model.onnx {line} --show-config -o out.onnx")).expect(0).text());
        all.push('\n');
    }
    insta::assert_snapshot!("schemes", all);
}

#[test]
fn keeps_the_warning_of_a_scheme_in_the_file() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    let summary = home.json(&format!("quantize model.onnx --data calib.npz {p} --scheme inc-doc -o doc.onnx"));
    let warned = |w: &Value| w.as_str().is_some_and(|w| w.contains("half of its codes"));
    assert!(summary["warnings"].as_array().is_some_and(|all| all.iter().any(warned)), "{summary}");
    let about = home.json("inspect doc.onnx");
    assert!(about.to_string().contains("half of its codes"), "{about}");
}

#[test]
fn shows_the_scales_of_every_number_format() {
    let home = Home::with_example("digits-vit");
    let p = preprocess("digits-vit");
    for flags in [
        "--activations fp8_e4m3 --weights fp8_e4m3",
        "--activations int16 --weights int4",
        "--activations uint8 --weights int16",
    ] {
        home.ok(&format!("quantize model.onnx --data calib.npz {p} {flags} --no-check -o q.onnx"));
        let about = home.json("inspect q.onnx");
        let nodes = about["nodes"].as_array().expect("nodes");
        let product = |n: &&Value| (n["op"] == "MatMul" || n["op"] == "Gemm") && !n["w_scale"].is_null();
        let found: Vec<&Value> = nodes.iter().filter(product).collect();
        // Four products with weights in each of three layers.
        assert!(found.len() >= 12, "{flags}: {about}");
        let weights = |n: &&&Value| !n["a_scale"].is_null() && n["parameters"].as_u64() > Some(0);
        assert_eq!(found.iter().filter(weights).count(), found.len(), "{flags}: {found:?}");
    }
}

#[test]
fn writes_the_same_powers_of_two_from_ranges_as_from_data() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    home.ok(&format!("calibrate model.onnx --data calib.npz {p} --batch 10 --scheme vitis-dpu -o ranges.json"));
    for statistic in ["modal", "max", "mean", "median"] {
        let flags = format!("--scheme vitis-dpu --statistic {statistic}");
        home.ok(&format!("quantize model.onnx --data calib.npz {p} --batch 10 {flags} --no-check -o data.onnx"));
        home.ok(&format!("quantize model.onnx --ranges ranges.json {flags} -o ranges.onnx"));
        assert!(home.read("data.onnx") == home.read("ranges.onnx"), "{statistic}");
        // Vitis searches by every method but maxmin where scales are powers of two.
        let nodes = |method: &str| {
            home.ok(&format!("quantize model.onnx --ranges ranges.json {flags} --method {method} -o other.onnx"));
            home.json("inspect other.onnx")["nodes"].clone()
        };
        assert_eq!(nodes("mse"), nodes("diffs"), "{statistic}");
        assert_ne!(nodes("mse"), nodes("minmax"), "{statistic}");
    }
    // Ranges that were recorded without the search do not do.
    home.ok(&format!("calibrate model.onnx --data calib.npz {p} -o plain.json"));
    let ran = home
        .run("quantize model.onnx --ranges plain.json --scheme vitis-dpu --equalize=no --bias-correction=no -o no.onnx")
        .expect(2);
    assert!(ran.stderr.contains("fix positions"), "{}", ran.text());
}
