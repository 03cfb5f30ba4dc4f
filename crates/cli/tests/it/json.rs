//! `--json`: one document on stdout, with the fields that scripts rely on.

use serde_json::Value;

use crate::home::{Home, preprocess};

/// Checks that an object has fields of the given kinds.
#[track_caller]
fn has(value: &Value, fields: &[(&str, char)]) {
    for (name, kind) in fields {
        let v = &value[*name];
        let good = match kind {
            'n' => v.is_number(),
            's' => v.is_string(),
            'b' => v.is_boolean(),
            'a' => v.is_array(),
            'o' => v.is_object(),
            _ => false,
        };
        assert!(good, "field {name} is {v}, not of kind {kind}");
    }
}

const FIGURES: [(&str, char); 3] = [("sqnr_db", 'n'), ("cosine", 'n'), ("max_error", 'n')];

#[test]
fn describes_models() {
    let home = Home::with_example("digits-cnn");
    let v = home.json("inspect model.onnx");
    let fields = [("file", 's'), ("producer", 's'), ("opset", 'n'), ("ir_version", 'n'), ("bytes", 'n')];
    has(&v, &fields);
    has(&v, &[("parameters", 'n'), ("parameter_bytes", 'n'), ("macs", 'n'), ("inputs", 'a'), ("outputs", 'a')]);
    has(&v, &[("metadata", 'o'), ("operators", 'o'), ("nodes", 'a')]);
    has(&v["inputs"][0], &[("name", 's'), ("type", 's')]);
    has(&v["nodes"][0], &[("name", 's'), ("op", 's'), ("output", 's'), ("parameters", 'n'), ("macs", 'n')]);
    // The figure of examples/README.md, and twice the work for twice the batch.
    let parameters = v["parameters"].as_u64().expect("a count");
    assert!((115_000..117_000).contains(&parameters), "{parameters}");
    let twice = home.json("inspect model.onnx --dim batch=2");
    assert_eq!(twice["macs"].as_u64(), v["macs"].as_u64().map(|n| 2 * n));
}

#[test]
fn describes_every_step_of_the_job() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    let v = home.json("sanitize model.onnx -o clean.onnx");
    has(&v, &[("model", 's'), ("output", 's'), ("nodes_before", 'n'), ("nodes_after", 'n')]);
    has(&v, &[("bytes_before", 'n'), ("bytes_after", 'n'), ("passes", 'a')]);
    has(&v["passes"][0], &[("pass", 's'), ("rewrites", 'n')]);
    assert!(v["nodes_after"].as_u64() < v["nodes_before"].as_u64());

    let v = home.json(&format!("calibrate model.onnx --data calib.npz {p} --samples 16 -o ranges.json"));
    has(&v, &[("model", 's'), ("ranges", 's'), ("samples", 'n'), ("tensors", 'n'), ("histograms", 'b')]);
    has(&v, &[("random", 'b'), ("non_finite", 'a')]);
    assert_eq!(v["samples"], 16);

    let v = home.json(&format!("quantize model.onnx --data calib.npz {p} --samples 16 -o int8.onnx"));
    has(&v, &[("model", 's'), ("output", 's'), ("integer_nodes", 'n'), ("nodes", 'n'), ("float", 'a')]);
    has(&v, &[("bytes_before", 'n'), ("bytes_after", 'n'), ("error", 'o'), ("samples", 'n'), ("random", 'b')]);
    has(&v, &[("seconds", 'n'), ("warnings", 'a'), ("node_list", 'a')]);
    has(&v["node_list"][0], &[("node", 's'), ("op", 's'), ("integer", 'b')]);

    let v = home.json(&format!("run int8.onnx --data test.npz {p} --samples 3 -o out.npz"));
    has(&v, &[("model", 's'), ("output", 's'), ("samples", 'n'), ("outputs", 'a')]);
    assert_eq!(v["outputs"][0]["shape"], serde_json::json!([3, 10]));

    let v = home.json(&format!("eval int8.onnx --data test.npz {p} --reference model.onnx --samples 50"));
    has(&v, &[("model", 's'), ("samples", 'n'), ("scores", 'a'), ("agreement", 'o')]);
    has(&v["scores"][0], &[("metric", 's'), ("value", 'n')]);
    has(&v["agreement"], &[("reference", 's'), ("top1", 'n')]);
    has(&v["agreement"], &FIGURES);

    let v = home.json(&format!("compare model.onnx int8.onnx --data test.npz {p} --samples 4"));
    has(&v, &[("a", 's'), ("b", 's'), ("samples", 'n'), ("outputs", 'a'), ("tensors", 'a')]);
    has(&v["outputs"][0], &[("name", 's'), ("op", 's'), ("cumulative", 'o')]);
    has(&v["outputs"][0]["cumulative"], &FIGURES);
    let tensors = v["tensors"].as_array().expect("tensors");
    assert!(tensors.iter().any(|t| t["isolated"].is_object()) && tensors.iter().any(|t| t["saturated"].is_number()));

    let v = home.json("bench model.onnx int8.onnx --runs 5 --warmup 1 --threads 1,2 --batch 1,4 --profile");
    let rows = v.as_array().expect("rows");
    assert_eq!(rows.len(), 8);
    for r in rows {
        has(r, &[("model", 's'), ("threads", 'n'), ("batch", 'n'), ("runs", 'n'), ("median_ms", 'n'), ("p90_ms", 'n')]);
        has(r, &[("min_ms", 'n'), ("samples_per_second", 'n'), ("load_ms", 'n'), ("bytes", 'n'), ("arena_bytes", 'n')]);
        has(r, &[("profile", 'a')]);
        has(&r["profile"][0], &[("op", 's'), ("kernel", 's'), ("nodes", 'n'), ("ms", 'n'), ("share", 'n')]);
    }

    let v = home.json("convert int8.onnx -o copy.onnx");
    has(&v, &[("model", 's'), ("output", 's'), ("bytes_before", 'n'), ("bytes_after", 'n')]);
}

#[test]
fn shows_scales_of_a_quantized_model() {
    let home = Home::with_example("diabetes-mlp");
    home.ok("quantize model.onnx --data calib.npz -o int8.onnx");
    let v = home.json("inspect int8.onnx");
    let scaled = |r: &&Value| r["a_scale"].is_array() && r["w_scale"].is_array();
    let nodes = v["nodes"].as_array().expect("nodes");
    assert!(nodes.iter().filter(scaled).count() >= 3, "the three linear layers have scales: {v}");
    assert!(v["metadata"]["narrowbit.quantize"].is_string() && v["metadata"]["narrowbit.calibration"].is_string());
    insta::assert_snapshot!("inspect-tree", home.ok("inspect model.onnx").text());
}

#[test]
fn prints_the_settings_as_a_file_that_it_reads() {
    let home = Home::with_example("diabetes-mlp");
    let flags =
        "--method percentile --percentile 99.9 --exclude *Mul* --exclude-type Add --activations int8 --keep-last";
    let shown = home.ok(&format!("quantize model.onnx -o out.onnx {flags} --show-config"));
    home.write("settings.toml", &shown.stdout);
    let again = home.ok("quantize model.onnx -o out.onnx --config settings.toml --show-config");
    assert_eq!(again.stdout, shown.stdout);
    home.ok(&format!("quantize model.onnx -o flags.onnx --data calib.npz {flags}"));
    home.ok("quantize model.onnx -o file.onnx --data calib.npz --config settings.toml");
    assert_eq!(home.read("flags.onnx"), home.read("file.onnx"));
    // A flag goes before the file.
    home.write("minmax.toml", "method = \"minmax\"\n");
    let flag = home.ok("quantize model.onnx -o out.onnx --config minmax.toml --method entropy --show-config");
    assert!(flag.stdout.contains("entropy"), "{}", flag.stdout);
}

#[test]
fn exits_with_1_when_a_criterion_is_missed() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    let eval = format!("eval model.onnx --data test.npz {p} --metric top1 --target");
    assert_eq!(home.ok(&format!("{eval} 0.99 --json")).json()["target"]["met"], true);
    assert_eq!(home.run(&format!("{eval} 1.0 --json")).expect(1).json()["target"]["met"], false);
    home.ok(&format!("quantize model.onnx --data calib.npz {p} -o int8.onnx --strict"));
    let quantize = format!("quantize model.onnx --data calib.npz {p} --activations int8 -o other.onnx");
    home.ok(&quantize);
    let compare = format!("compare model.onnx int8.onnx --data test.npz {p} --samples 20 --no-isolated --min-sqnr");
    home.ok(&format!("{compare} 10"));
    home.run(&format!("{compare} 200")).expect(1);
}

#[test]
fn says_nothing_but_the_result_when_asked_to_be_quiet() {
    let home = Home::with_example("diabetes-mlp");
    for line in ["quantize model.onnx --random 2 -o out.onnx -q", "eval model.onnx --data test.npz -q"] {
        assert_eq!(home.ok(line).stderr, "", "{line}");
    }
    assert!(home.ok("quantize model.onnx --data calib.npz -o out.onnx -v").stderr.contains("INFO"));
}

#[test]
fn ends_the_main_command_with_a_summary_for_people() {
    let home = Home::with_example("diabetes-mlp");
    insta::assert_snapshot!(
        "quantize",
        home.ok("quantize model.onnx --data calib.npz --measure=no -o int8.onnx").text()
    );
    insta::assert_snapshot!("calibrate", home.ok("calibrate model.onnx --data calib.npz -o ranges.json").text());
    insta::assert_snapshot!("sanitize", home.ok("sanitize model.onnx -o clean.onnx").text());
    insta::assert_snapshot!("run", home.ok("run int8.onnx --data test.npz -o out.npz").text());
}
