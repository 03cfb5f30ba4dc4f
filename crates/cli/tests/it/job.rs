//! The main job on the example networks: float in, int8 out, measured.

use narrowbit_data::{DataOptions, Dataset};
use serde_json::Value;

use crate::home::{EXAMPLES, Home, preprocess, python};
use crate::models;

/// What an example may lose: half a point, or as much of a correlation.
const MOST_LOSS: f64 = 0.005;

fn score(v: &Value) -> f64 {
    v["scores"][0]["value"].as_f64().expect("a score")
}

fn metric(example: &str) -> &'static str {
    if example == "diabetes-mlp" { "pearson" } else { "top1" }
}

#[test]
fn keeps_the_accuracy_of_the_examples() {
    for example in EXAMPLES {
        let home = Home::with_example(example);
        let p = preprocess(example);
        let eval = |model: &str| {
            score(&home.json(&format!("eval {model} --data test.npz {p} --batch 20 --metric {}", metric(example))))
        };
        let case: Value = serde_json::from_slice(&home.read("case.json")).expect("case.json");
        let stated = case["float"].as_f64().or_else(|| case["float"][metric(example)].as_f64()).expect("a figure");
        let float = eval("model.onnx");
        // Another order of sums may move one of 500 images.
        assert!((float - stated).abs() <= 0.002, "{example}: {float}, {stated} in case.json");
        for format in ["qdq", "qoperator"] {
            let quantize = format!("quantize model.onnx --data calib.npz {p} --format {format} -o {format}.onnx");
            let summary = home.json(&quantize);
            let int8 = eval(&format!("{format}.onnx"));
            assert!(float - int8 <= MOST_LOSS, "{example} {format}: {float} became {int8}");
            let ratio =
                summary["bytes_after"].as_f64().expect("bytes") / summary["bytes_before"].as_f64().expect("bytes");
            // A quarter, and the graph with its scales, which weighs on small networks.
            assert!(ratio < if example == "diabetes-mlp" { 0.7 } else { 0.5 }, "{example} {format}: {ratio}");
            assert!(summary["integer_nodes"].as_u64() > Some(2), "{summary}");
        }
        let both = home.json(&format!("eval qoperator.onnx --data test.npz {p} --reference qdq.onnx --batch 20"));
        let agreement = both["agreement"]["cosine"].as_f64().expect("a cosine");
        assert!(agreement > 0.999, "{example}: the formats agree only to {agreement}");
    }
}

#[test]
fn keeps_the_accuracy_of_a_model_with_outlier_channels() {
    let home = Home::new();
    models::save_outliers(&home.path("model.onnx"));
    models::save_features(&home.path("data.npz"), 64);
    let made = |flags: &str| {
        let summary = home.json(&format!("quantize model.onnx --data data.npz {flags} -o out.onnx"));
        (summary["smoothed"].as_u64(), summary["error"]["sqnr_db"].as_f64().expect("decibels"))
    };
    for approach in ["static", "dynamic"] {
        let (on, with) = made(&format!("--approach {approach}"));
        let (off, without) = made(&format!("--approach {approach} --smooth=no"));
        assert_eq!((on, off), (Some(1), Some(0)), "{approach}");
        // 256 times finer steps for eight of ten channels; one scale per token helps the other a little.
        assert!(with > 30.0 && with > without + 15.0, "{approach}: {with} dB smoothed, {without} dB as it was");
    }
    home.ok("calibrate model.onnx --data data.npz -o ranges.json");
    home.ok("quantize model.onnx --ranges ranges.json -o ranges.onnx");
    home.ok("quantize model.onnx --data data.npz --no-check -o data.onnx");
    assert!(home.read("data.onnx") == home.read("ranges.onnx"));
    home.run("quantize model.onnx --approach weight-only --smooth -o out.onnx").expect(2);
}

#[test]
fn writes_the_same_bytes_from_data_and_from_ranges() {
    for example in EXAMPLES {
        let home = Home::with_example(example);
        let p = preprocess(example);
        home.ok(&format!("calibrate model.onnx --data calib.npz {p} -o ranges.json"));
        for method in ["auto", "minmax", "moving-average", "percentile", "entropy", "mse"] {
            // Biases are corrected by samples alone.
            let flags = format!("--method {method} --correct-activations=no");
            home.ok(&format!("quantize model.onnx --data calib.npz {p} {flags} --no-check -o data.onnx"));
            home.ok(&format!("quantize model.onnx --ranges ranges.json {flags} -o ranges.onnx"));
            assert!(home.read("data.onnx") == home.read("ranges.onnx"), "{example} {method}");
        }
    }
}

#[test]
fn corrects_biases_by_samples_beside_ranges_and_says_where_there_are_none() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    home.ok(&format!("calibrate model.onnx --data calib.npz {p} -o ranges.json"));
    home.ok(&format!("quantize model.onnx --data calib.npz {p} --measure=no -o data.onnx"));
    let both =
        home.json(&format!("quantize model.onnx --ranges ranges.json --data calib.npz {p} --measure=no -o both.onnx"));
    assert!(home.read("data.onnx") == home.read("both.onnx"));
    assert!(both["error"]["sqnr_db"].is_f64(), "samples serve for the check, too: {both}");
    let alone = home.json("quantize model.onnx --ranges ranges.json --measure=no -o ranges.onnx");
    assert!(home.read("data.onnx") != home.read("ranges.onnx"));
    let warned = |w: &Value| w["warnings"].as_array().is_some_and(|all| all.iter().any(says));
    fn says(w: &Value) -> bool {
        w.as_str().is_some_and(|w| w.contains("biases of convolutions") && w.contains("--data"))
    }
    assert!(warned(&alone) && !warned(&both), "{alone}");
    let off = home.json("quantize model.onnx --ranges ranges.json --correct-activations=no --measure=no -o off.onnx");
    assert!(!warned(&off), "{off}");
    let fp8 = "--weights fp8_e4m3 --activations fp8_e4m3 --bias-correction=no --measure=no";
    let fp8 = home.json(&format!("quantize model.onnx --ranges ranges.json {fp8} -o fp8.onnx"));
    assert!(!warned(&fp8), "rounding to floats has no mean: {fp8}");
}

#[test]
fn writes_the_same_bytes_with_any_number_of_threads() {
    for example in EXAMPLES {
        let home = Home::with_example(example);
        let p = preprocess(example);
        for threads in [1, 2, 4] {
            let to = format!("--threads {threads} -o {threads}.onnx");
            home.ok(&format!("quantize model.onnx --data calib.npz {p} --method percentile {to}"));
            home.ok(&format!(
                "run {threads}.onnx --data test.npz {p} --samples 40 --threads {threads} -o {threads}.npz"
            ));
        }
        for other in [2, 4] {
            assert!(home.read("1.onnx") == home.read(&format!("{other}.onnx")), "{example}: models, {other} threads");
            assert!(home.read("1.npz") == home.read(&format!("{other}.npz")), "{example}: outputs, {other} threads");
        }
    }
}

#[test]
fn gives_the_same_outputs_in_any_batch() {
    let home = Home::with_example("digits-vit");
    let p = preprocess("digits-vit");
    home.ok(&format!("quantize model.onnx --data calib.npz {p} -o int8.onnx"));
    for model in ["model", "int8"] {
        for batch in [1, 7] {
            home.ok(&format!(
                "run {model}.onnx --data test.npz {p} --samples 30 --batch {batch} -o {model}{batch}.npz"
            ));
        }
        let (a, b) = (outputs(&home, &format!("{model}1.npz")), outputs(&home, &format!("{model}7.npz")));
        let range = a.iter().fold(0f32, |m, x| m.max(x.abs()));
        // Sums in another order; on integers a value at a rounding border may fall to the other side.
        let most = if model == "int8" { 0.05 } else { 1e-4 } * range;
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= most), "{model}: {a:?} {b:?}");
    }
}

fn outputs(home: &Home, file: &str) -> Vec<f32> {
    let data = Dataset::open(home.path(file), &DataOptions::default()).expect("the outputs");
    let batch = data.batch(0..data.len()).expect("all rows");
    batch.inputs[0].1.to_f32s().expect("floats").into_owned()
}

#[test]
fn cleans_without_changing_the_outputs() {
    for example in EXAMPLES {
        let home = Home::with_example(example);
        let p = preprocess(example);
        home.ok("sanitize model.onnx -o clean.onnx");
        let before = home.files();
        // The reference operators, so that the cleaned graph is not compared with itself.
        for model in ["model", "clean"] {
            home.ok(&format!("run {model}.onnx --interpret --data test.npz {p} --samples 5 -o {model}.npz"));
        }
        home.ok(&format!("run model.onnx --data test.npz {p} --samples 5 -o fast.npz"));
        let reference = outputs(&home, "model.npz");
        let range = reference.iter().fold(0f32, |m, x| m.max(x.abs()));
        for file in ["clean.npz", "fast.npz"] {
            let worst = outputs(&home, file).iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            // Float rounding in another order.
            assert!(worst <= 1e-4 * range, "{example} {file}: {worst} of {range}");
        }
        assert!(!before.contains(&"model.npz".to_owned()));
        // What is clean stays as it is.
        let again = home.json("sanitize clean.onnx -o twice.onnx");
        assert_eq!(again["passes"], serde_json::json!([]), "{example}");
        home.ok("sanitize twice.onnx -o thrice.onnx");
        assert!(home.read("twice.onnx") == home.read("thrice.onnx"), "{example}");
    }
}

#[test]
fn finds_the_wrong_rewrite_by_bisection() {
    let home = Home::with_example("digits-cnn");
    let all = home.json("sanitize model.onnx -o all.onnx --dump-passes dump");
    let total: u64 = all["passes"].as_array().expect("passes").iter().filter_map(|p| p["rewrites"].as_u64()).sum();
    assert!(std::fs::read_dir(home.path("dump")).expect("the dump").count() > 1);
    let none = home.json("sanitize model.onnx -o none.onnx --stop-after 0");
    assert_eq!(none["nodes_before"], none["nodes_after"]);
    home.ok(&format!("sanitize model.onnx -o some.onnx --stop-after {total}"));
    assert!(home.read("all.onnx") == home.read("some.onnx"));
}

#[test]
fn keeps_nodes_float_on_request() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    let quantize = format!("quantize model.onnx --data calib.npz {p} --samples 8 -o out.onnx");
    let names = |v: &Value, float: bool| -> Vec<String> {
        let nodes = v["node_list"].as_array().expect("nodes").iter();
        let wanted = nodes
            .filter(|n| n["integer"] == !float && ["Conv", "Gemm", "MatMul"].contains(&n["op"].as_str().unwrap_or("")));
        wanted.filter_map(|n| n["node"].as_str().map(str::to_owned)).collect()
    };
    let default = home.json(&quantize);
    assert_eq!(names(&default, true), Vec::<String>::new());
    let weighted = names(&default, false);
    let one = &weighted[1];
    assert_eq!(names(&home.json(&format!("{quantize} --exclude {one}")), true), std::slice::from_ref(one));
    assert_eq!(names(&home.json(&format!("{quantize} --exclude-regex ^{one}$")), true), std::slice::from_ref(one));
    assert_eq!(names(&home.json(&format!("{quantize} --keep-first")), true), &weighted[..1]);
    // Pictures lose too much in fp8.
    let fp8 = format!("{quantize} --weights fp8_e4m3 --activations fp8_e4m3");
    let edges = [weighted[0].clone(), weighted[weighted.len() - 1].clone()];
    let depthwise: Vec<String> = weighted.iter().filter(|n| n.contains("depthwise")).cloned().collect();
    assert_eq!(depthwise.len(), 2);
    let kept = [&edges[..1], &depthwise[..], &edges[1..]].concat();
    assert_eq!(names(&home.json(&fp8), true), kept);
    assert_eq!(names(&home.json(&format!("{fp8} --keep-depthwise=no")), true), edges);
    assert_eq!(names(&home.json(&format!("{fp8} --keep-last=no --keep-depthwise=no")), true), &edges[..1]);
    assert_eq!(names(&home.json(&format!("{fp8} --keep-first=no --keep-last=no")), true), depthwise);
    assert_eq!(names(&home.json(&format!("{quantize} --keep-depthwise")), true), depthwise);
    assert_eq!(names(&home.json(&format!("{quantize} --keep-last")), true), &weighted[weighted.len() - 1..]);
    assert_eq!(names(&home.json(&format!("{quantize} --exclude-type Conv --op-types Gemm,MatMul")), false).len(), {
        weighted.len() - home.json("inspect out.onnx")["operators"]["Conv"].as_u64().unwrap_or(0) as usize
    });
    home.run(&format!("{quantize} --exclude-type Conv")).expect(0);
}

#[test]
fn compares_with_outputs_that_another_runtime_has_saved() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    home.ok(&format!("run model.onnx --data test.npz {p} --samples 10 --interpret -o saved.npz"));
    let v = home.json(&format!("compare model.onnx saved.npz --data test.npz {p} --samples 10"));
    assert!(v["outputs"][0]["cumulative"]["sqnr_db"].as_f64() > Some(80.0), "{v}");
    home.run(&format!("compare model.onnx saved.npz --data test.npz {p} --samples 11")).expect(2);
}

#[test]
fn writes_outputs_that_numpy_reads() {
    let home = Home::with_example("digits-cnn");
    home.ok(&format!("run model.onnx --data test.npz {} --samples 6 --batch 4 -o out.npz", preprocess("digits-cnn")));
    let Some(ran) = python("read_npz.py", &[&home.path("out.npz")]) else { return };
    assert_eq!(ran.expect(0).stdout.trim(), "logits float32 (6, 10)");
}

#[test]
fn shows_the_examples_in_the_demo() {
    let rows = Home::new().json("demo --threads 2");
    let rows = rows.as_array().expect("rows");
    assert_eq!(rows.iter().map(|r| r["name"].as_str().unwrap_or("")).collect::<Vec<_>>(), EXAMPLES);
    for r in rows {
        assert_eq!(r["within_half_a_point"], true, "{r}");
        assert!(r["bytes_int8"].as_u64() < r["bytes_float"].as_u64() && r["integer_nodes"].as_u64() > Some(2), "{r}");
    }
}

#[test]
fn gives_the_same_bytes_on_every_instruction_set_and_number_of_threads() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    home.ok(&format!("quantize model.onnx --data calib.npz {p} -o int8.onnx"));
    let out = |tier: &str, threads: usize| {
        let line = format!("run int8.onnx --data test.npz {p} --samples 40 --threads {threads} -o out.npz");
        let mut command = home.command(crate::home::binary());
        let status = command.args(line.split_whitespace()).env("NARROWBIT_ISA", tier).output().expect("it starts");
        let stderr = String::from_utf8_lossy(&status.stderr).into_owned();
        // A machine that lacks a tier says so, and that tier is not tested there.
        if !status.status.success() && stderr.contains("is not available here") {
            return None;
        }
        assert!(status.status.success(), "{tier}: {stderr}");
        Some(home.read("out.npz"))
    };
    let scalar = out("scalar", 1).expect("every machine has this tier");
    for tier in ["scalar", "avx2", "avx512", "vnni", "neon", "neon-dot", "neon-i8mm"] {
        for threads in [1, 2, 4] {
            assert!(out(tier, threads).is_none_or(|bytes| bytes == scalar), "{tier}, {threads} threads");
        }
    }
}

#[test]
fn tells_how_much_ran_on_integers() {
    let home = Home::with_example("digits-vit");
    let p = preprocess("digits-vit");
    home.ok(&format!("quantize model.onnx --data calib.npz {p} -o int8.onnx"));
    let rows = home.json("bench model.onnx int8.onnx --runs 5 --threads 1");
    assert!(rows[0]["integers"].is_null(), "a float model has no integers: {rows}");
    let integers = &rows[1]["integers"];
    let (macs, whole) = (integers["macs"].as_u64(), integers["integer_macs"].as_u64());
    assert!(macs > Some(1_000_000) && whole == macs, "{integers}");
    assert_eq!(integers["float_nodes"], serde_json::json!([]));
    // Without its Gemm, which holds the last product.
    home.ok(&format!("quantize model.onnx --data calib.npz {p} --exclude-type Gemm -o part.onnx"));
    let rows = home.json("bench part.onnx --runs 5 --threads 1");
    let node = &rows[0]["integers"]["float_nodes"][0];
    assert_eq!(node["reason"], "its input is not quantized in the file", "{rows}");
}
