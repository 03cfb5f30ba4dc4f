//! Mixtures of approaches: what is written runs in ONNX Runtime, in the interpreter and in the runtime; the decisions give the
//! same file again; what can't be is refused.

use serde_json::Value;

use crate::approaches::{beside, count, number};
use crate::home::{Home, preprocess};

/// Attention static, the MLPs dynamic, the last layer in blocks of four bits.
const MIXED: &str = r#"
[[override]]
name = "/blocks/*/mlp/*"
approach = "dynamic"

[[override]]
name = "/head/*"
approach = "weight-only"
weight-only = { type = "int4" }
"#;

fn vit(config: &str) -> Home {
    let home = Home::with_example("digits-vit");
    home.write("mix.toml", config);
    home
}

fn data() -> String {
    format!("--data calib.npz {}", preprocess("digits-vit"))
}

/// Checks that the runtime gives what the interpreter gives, up to sums in another order.
fn check_runtime(home: &Home, least: f64) {
    let p = preprocess("digits-vit");
    home.ok(&format!("run out.onnx --data test.npz --samples 32 {p} --interpret -o exact.npz"));
    let beside = home.json(&format!("compare out.onnx exact.npz --data test.npz --samples 32 {p}"));
    let sqnr = beside["outputs"][0]["cumulative"]["sqnr_db"].as_f64().or(beside["outputs"][0]["sqnr_db"].as_f64());
    assert!(sqnr.is_none_or(|db| db > least), "{beside}");
}

#[test]
fn mixed_models_give_the_results_of_onnx_runtime() {
    for (config, optimized) in [
        (MIXED.to_owned(), 25.0),
        // The same values and weights, in other hands.
        (MIXED.replace("dynamic", "float16"), 25.0),
        (MIXED.replace("{ type = \"int4\" }", "{ type = \"uint4\", format = \"matmulnbits\" }"), 25.0),
        (
            MIXED.replace("approach = \"dynamic\"", "approach = \"dynamic\"\ndynamic = { granularity = \"tensor\" }"),
            25.0,
        ),
    ] {
        let home = vit(&config);
        let Some(report) = beside(&home, &format!("--config mix.toml {} --measure=no", data())) else { return };
        println!("{report}");
        // Codes on a border fall to either side.
        assert!(number(&report, "plain_sqnr_db") > 25.0, "{config}: {report}");
        assert!(number(&report, "optimized_sqnr_db") > optimized, "{config}: {report}");
        assert!(count(&report, "MatMul") < 14, "{config}: {report}");
        check_runtime(&home, 25.0);
    }
}

#[test]
fn says_what_each_approach_is_for() {
    let home = vit(MIXED);
    let summary = home.json(&format!("quantize model.onnx -c mix.toml {} --measure=no -o out.onnx", data()));
    let parts = summary["parts"].as_array().expect("parts");
    let of = |approach: &str| parts.iter().find(|p| p["approach"] == approach).unwrap_or_else(|| panic!("{summary}"));
    assert_eq!(of("weight-only")["ops"]["Gemm"], 1);
    assert_eq!(of("weight-only")["stored"], "int4");
    assert!(of("dynamic")["count"].as_u64() >= Some(4) && of("static")["count"].as_u64() >= Some(10), "{summary}");
    let sqnr = summary["error"]["sqnr_db"].as_f64().unwrap_or(0.0);
    assert!(sqnr > 15.0, "{sqnr}");
    let nodes = summary["node_list"].as_array().expect("nodes");
    let mlp = nodes.iter().find(|n| n["node"] == "/blocks/blocks.0/mlp/mlp.0/MatMul").expect("the node");
    assert_eq!((&mlp["approach"], &mlp["integer"]), (&Value::from("dynamic"), &Value::from(true)));
    let text = home.ok(&format!("quantize model.onnx -c mix.toml {} --measure=no -o out.onnx", data())).stdout;
    assert!(text.contains("weight-only, on constants of int4") && text.contains("dynamic, on integers"), "{text}");
    let shown = home.ok("quantize model.onnx -c mix.toml -o out.onnx --show-config").stdout;
    assert!(shown.contains("approach = \"dynamic\"") && shown.contains("approach = \"weight-only\""), "{shown}");
}

#[test]
fn gives_the_same_file_by_its_decisions() {
    // Blocks rounded to the nearest: by samples they take samples.
    let home = vit(&format!("weight-rounding = \"nearest\"\n{MIXED}"));
    home.ok(&format!("quantize model.onnx -c mix.toml {} --no-check --measure=no -o q.onnx", data()));
    home.ok("config q.onnx -o config.json");
    home.ok("quantize model.onnx -c config.json --no-check --measure=no -o again.onnx");
    home.ok("config again.onnx -o again.json");
    let read = |name: &str| serde_json::from_slice::<Value>(&home.read(name)).expect("JSON");
    let (first, again) = (read("config.json"), read("again.json"));
    assert_eq!((&first["nodes"], &first["tensors"]), (&again["nodes"], &again["tensors"]));
    let constants = |name: &str| {
        let graph = narrowbit_import::onnx::load(home.path(name)).expect("the file").graph;
        let of =
            |(v, info): (_, &narrowbit_ir::Value)| graph.constant(v).map(|t| (info.name.clone(), t.bytes().to_vec()));
        graph.values().filter_map(of).collect::<std::collections::BTreeMap<_, _>>()
    };
    assert_eq!(constants("q.onnx"), constants("again.onnx"));
    let nodes = first["nodes"].as_array().expect("nodes");
    let named = |name: &str| nodes.iter().find(|n| n["node"] == name).unwrap_or_else(|| panic!("no {name}: {nodes:?}"));
    let mlp = named("/blocks/blocks.0/mlp/mlp.0/MatMul");
    assert_eq!((&mlp["approach"], &mlp["quantized"]), (&Value::from("dynamic"), &Value::from(true)));
    assert_eq!(named("/head/Gemm")["approach"], "weight-only");
    assert!(nodes.iter().all(|n| !n["node"].as_str().unwrap_or("").contains("token_")), "{nodes:?}");
    // As many as the summary counts.
    let float = home.json(&format!("quantize model.onnx -c mix.toml {} --no-check --measure=no -o q.onnx", data()));
    assert_eq!(
        nodes.iter().filter(|n| n["quantized"] == true).count() as u64,
        float["integer_nodes"].as_u64().unwrap_or(0) + float["stored_nodes"].as_u64().unwrap_or(0)
    );
}

#[test]
fn quantizes_without_samples_where_nothing_is_static() {
    let home = vit(&MIXED.replace("/blocks/*/mlp/*", "*"));
    home.ok("quantize model.onnx -c mix.toml --measure=no -o out.onnx");
    let p = data();
    let ran = home.run(&format!("calibrate model.onnx -c mix.toml {p} -o r.json")).expect(2);
    assert!(ran.stderr.contains("no node is static"), "{}", ran.stderr);
    // Some are: samples or ranges.
    home.write("mix.toml", MIXED);
    home.run("quantize model.onnx -c mix.toml --measure=no -o out.onnx").expect(2);
    home.ok(&format!("calibrate model.onnx -c mix.toml {p} -o r.json"));
    home.ok("quantize model.onnx -c mix.toml --ranges r.json --measure=no --correct-activations=no -o out.onnx");
}

#[test]
fn refuses_mixtures_that_no_file_can_hold() {
    let refused = |config: &str, flags: &str, text: &str| {
        let home = vit(config);
        let ran = home.run(&format!("quantize model.onnx -c mix.toml {} {flags} -o out.onnx", data())).expect(2);
        assert!(ran.stderr.contains(text), "{config} {flags}: {}", ran.stderr);
        assert!(!home.path("out.onnx").exists());
    };
    refused(MIXED, "--format qoperator", "--format qoperator is a form of static quantization alone");
    refused(MIXED, "--scheme quantizeml", "fixed point alone");
    refused(MIXED, "--target tensorrt", "TensorRT");
    refused(&MIXED.replace("dynamic", "dynamics"), "", "unknown variant `dynamics`");
    refused(&format!("{MIXED}float = true\n"), "", "both float = true and approach = \"weight-only\"");
    let softmax = "[[override]]\nop-type = \"Softmax\"\napproach = \"dynamic\"\n";
    refused(
        softmax,
        "",
        "none of the 3 nodes that it matches can be dynamic: \"/blocks/blocks.0/attn/softmax/Softmax\"",
    );
    refused(MIXED, "--io-float16", "has no meaning for --approach static, dynamic, weight-only");
}
