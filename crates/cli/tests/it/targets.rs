//! What `--target` says of the runtimes, held against the runtimes themselves where they are installed.

use std::path::Path;

use narrowbit_data::NpzWriter;
use narrowbit_import::onnx;
use narrowbit_ir::interp;
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::target::{self, Target, Verdict};
use narrowbit_tensor::Tensor;
use serde_json::Value;

use crate::home::{Home, preprocess, python};
use crate::onnxruntime::samples;

fn save<'a>(path: &Path, arrays: impl Iterator<Item = (String, &'a Tensor)>) {
    let mut out = NpzWriter::create(path).expect("a file");
    arrays.for_each(|(name, t)| out.add(name, t).expect("an array"));
    out.finish().expect("a file");
}

/// What the runtimes make of `out.onnx`, beside our interpreter.
fn run(home: &Home) -> Option<Value> {
    narrowbit_testkit::paths::python()?;
    let graph = onnx::load(home.path("out.onnx")).expect("the file").graph;
    let inputs = samples(&graph, &home.path("test.npz"), &home.path("case.json"), 8);
    let fed: Vec<Tensor> = inputs.iter().map(|(_, t)| t.clone()).collect();
    let ours = interp::run_tensors(&graph, &fed).expect("the interpreter runs it");
    let folder = tempfile::tempdir().expect("a folder");
    save(&folder.path().join("inputs.npz"), inputs.iter().map(|(n, t)| (n.clone(), t)));
    save(&folder.path().join("ours.npz"), ours.iter().enumerate().map(|(i, t)| (format!("t{i}"), t)));
    Some(python("target_run.py", &[&home.path("out.onnx"), folder.path()])?.expect(0).json())
}

/// Settings with the features that one row of the table after the other is about.
const FILES: &[(&str, &str, &str)] = &[
    ("digits-cnn", "static", ""),
    ("digits-cnn", "static", "--activations int8"),
    ("digits-cnn", "static", "--activations int16 --symmetric"),
    ("digits-cnn", "static", "--activations uint16 --weights int16"),
    ("digits-cnn", "static", "--activations fp8_e4m3 --weights fp8_e4m3"),
    ("digits-cnn", "static", "--activations fp8_e5m2 --weights fp8_e5m2 --keep-first=no --keep-last=no"),
    ("digits-cnn", "static", "--weights int4"),
    ("digits-cnn", "static", "--weights uint4"),
    ("digits-cnn", "static", "--weights uint8 --asymmetric-weights"),
    ("digits-cnn", "static", "--format qoperator"),
    ("digits-vit", "static", ""),
    ("digits-vit", "static", "--exclude-type Conv"),
    ("digits-vit", "static", "--exclude-type Conv --activations fp8_e4m3 --weights fp8_e4m3"),
    ("digits-vit", "dynamic", ""),
    ("digits-vit", "dynamic", "--granularity tensor"),
    ("digits-vit", "weight-only", "--weights int8"),
    ("digits-vit", "weight-only", "--weights uint8"),
    ("digits-vit", "weight-only", "--weights int4"),
    ("digits-vit", "weight-only", "--weights uint4"),
    ("digits-vit", "weight-only", "--weights int2"),
    ("digits-vit", "weight-only", "--weights uint2"),
    ("digits-vit", "weight-only", "--weights fp8_e4m3"),
    ("digits-vit", "weight-only", "--weights nf4"),
    ("digits-vit", "weight-only", "--weights fp8_e5m2"),
    ("digits-vit", "weight-only", "--weights fp4"),
    ("digits-vit", "weight-only", "--weights mxfp8_e4m3"),
    ("digits-vit", "weight-only", "--weights mxfp8_e5m2"),
    ("digits-vit", "weight-only", "--weights mxfp8_e5m2 --block-scales e8m0"),
    ("digits-vit", "weight-only", "--weights mxfp4"),
    ("digits-vit", "weight-only", "--weights mxfp4 --block-scales f32"),
    ("digits-vit", "weight-only", "--weights mxint8"),
    ("digits-vit", "weight-only", "--weights mxint8 --format matmulnbits"),
    ("digits-vit", "weight-only", "--weights int8 --format matmulnbits"),
    ("digits-vit", "weight-only", "--weights uint4 --format matmulnbits"),
    ("digits-vit", "weight-only", "--weights int2 --format matmulnbits"),
    ("digits-cnn", "float16", ""),
    ("digits-cnn", "float16", "--compute float32"),
    ("digits-cnn", "bfloat16", ""),
    ("digits-cnn", "bfloat16", "--compute half"),
];

/// The worst that the table says of a file that was made with some settings.
fn verdict(home: &Home, line: &str, target: Target) -> Verdict {
    let text = home.ok(&format!("{line} --show-config --json")).stdout;
    let options: QuantOptions = serde_json::from_str(&text).expect("settings");
    let mut graph = onnx::load(home.path("model.onnx")).expect("the model");
    narrowbit_passes::sanitize(&mut graph, &Default::default()).expect("a clean graph");
    let column = Target::LIMITED.iter().position(|&t| t == target).expect("a column");
    let features = target::features(&options, &graph.graph, line.contains("qoperator"));
    // The network with an excluded Conv still has the others' features.
    let of = |f| target::ROWS.iter().find(|r| r.0 == f).expect("a row").1[column];
    let weight = |v: &Verdict| match v {
        Verdict::Runs => 0,
        Verdict::Note(_) => 1,
        Verdict::Slow(..) => 2,
        Verdict::Adapt(..) => 3,
        Verdict::Refuse(..) => 4,
    };
    features.into_iter().map(of).max_by_key(weight).expect("a feature")
}

#[test]
fn the_table_tells_what_runtimes_do() {
    if narrowbit_testkit::paths::peers_saturate() {
        return;
    }
    for &(example, approach, flags) in FILES {
        let home = Home::with_example(example);
        let data = match approach {
            "static" => format!("--data calib.npz {}", preprocess(example)),
            _ => format!("--approach {approach}"),
        };
        let line = format!("quantize model.onnx {data} {flags} --no-check --measure=no -o out.onnx");
        home.ok(&line);
        let Some(report) = run(&home) else { return };
        for (name, target) in [("onnxruntime", Target::Onnxruntime), ("openvino", Target::Openvino)] {
            let Some(found) = report.get(name) else { continue };
            let verdict = verdict(&home, &line, target);
            println!("{example} {approach} {flags}: {name} {found}, {verdict:?}");
            let sqnr = found["sqnr_db"].as_f64().unwrap_or(-1e9);
            // OpenVINO rounds codes on borders to the other side here and there.
            let least = if name == "openvino" { 25.0 } else { 40.0 };
            match verdict {
                Verdict::Runs | Verdict::Note(_) | Verdict::Slow(..) => {
                    assert!(sqnr > least, "{example} {flags} in {name}: {found}")
                }
                // Not at all, or with an error that the file does not have.
                _ => assert!(sqnr < 55.0, "{example} {flags} in {name} runs: {found}"),
            }
        }
    }
}

#[test]
fn what_is_adapted_runs() {
    if narrowbit_testkit::paths::peers_saturate() {
        return;
    }
    let home = Home::with_example("digits-vit");
    let static_8_bit = format!("--data calib.npz {}", preprocess("digits-vit"));
    let rounded = format!("{static_8_bit} --float-outputs=no");
    for (flags, target) in [
        (rounded.as_str(), "openvino"),
        (static_8_bit.as_str(), "onnxruntime"),
        ("--approach weight-only --weights int4", "onnxruntime"),
        ("--approach weight-only --weights int2", "onnxruntime"),
        ("--approach weight-only --weights int2", "openvino"),
        ("--approach weight-only --weights mxint8 --block-scales e8m0", "onnxruntime"),
        ("--approach dynamic", "openvino"),
        ("--approach bfloat16 --compute half", "onnxruntime"),
    ] {
        let out = home.ok(&format!("quantize model.onnx {flags} --target {target} -o out.onnx")).stdout;
        assert!(out.contains("adapted: "), "{out}");
        let Some(report) = run(&home) else { return };
        // OpenVINO is not among the packages that the tests install.
        let Some(found) = report.get(target) else { continue };
        let sqnr = found["sqnr_db"].as_f64().unwrap_or(-1e9);
        let least = if flags.contains("weight-only") { 100.0 } else { 45.0 };
        let least = if target == "openvino" { 40.0 } else { least };
        assert!(sqnr > least, "{flags} for {target}: {report}");
    }
}

#[test]
fn says_what_a_target_can_not_run() {
    let home = Home::with_example("digits-vit");
    let p = preprocess("digits-vit");
    let mut all = String::new();
    for line in [
        format!("--data calib.npz {p} --activations fp8_e4m3 --weights fp8_e4m3 --target onnxruntime"),
        format!("--data calib.npz {p} --format qoperator --target openvino"),
        format!("--data calib.npz {p} --activations int16 --target tensorrt"),
        "--approach dynamic --target tensorrt".to_owned(),
        "--approach weight-only --weights nf4 --target tensorrt".to_owned(),
        "--approach weight-only --weights mxfp4 --target onnxruntime".to_owned(),
        "--approach weight-only --format matmulnbits --target tensorrt".to_owned(),
    ] {
        all.push_str(&home.run(&format!("quantize model.onnx {line} -o out.onnx")).expect(2).text());
        all.push('\n');
    }
    assert!(!home.files().contains(&"out.onnx".to_owned()));
    all.push_str(
        &home
            .ok(&format!("quantize model.onnx --data calib.npz {p} --target tensorrt --measure=no -o out.onnx"))
            .text(),
    );
    insta::assert_snapshot!("targets", all);
}

#[test]
fn writes_what_tensorrt_takes() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    home.ok(&format!("quantize model.onnx --data calib.npz {p} --target tensorrt --measure=no -o out.onnx"));
    let graph = onnx::load(home.path("out.onnx")).expect("the file").graph;
    let mut points = 0;
    for (id, n) in graph.nodes().filter(|(_, n)| matches!(n.op.name(), "QuantizeLinear" | "DequantizeLinear")) {
        let zero = graph.const_input(id, 2).expect("an explicit zero point");
        assert!(zero.to_f64s().expect("numbers").iter().all(|&z| z == 0.0), "{}", n.name);
        points += 1;
    }
    assert!(points > 10);
}
