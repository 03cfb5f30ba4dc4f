//! The decisions of a quantized model: written, edited, and applied again.

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_import::onnx;
use serde_json::Value;

use crate::home::{Home, preprocess};

/// The bytes of all constants that quantization made, by name.
fn constants(home: &Home, file: &str) -> BTreeMap<String, Vec<u8>> {
    let graph = onnx::load(home.path(file)).expect("the file").graph;
    let values: BTreeSet<_> =
        graph.nodes().flat_map(|(_, n)| n.inputs.iter().flatten().copied().collect::<Vec<_>>()).collect();
    let constant = |v| Some((graph.value(v).name.clone(), graph.constant(v)?.bytes().to_vec()));
    values.into_iter().filter_map(constant).collect()
}

/// The names of constants that differ.
fn changed(home: &Home, a: &str, b: &str) -> Vec<String> {
    let (a, b) = (constants(home, a), constants(home, b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    a.into_iter().filter(|(name, bytes)| b[name] != *bytes).map(|(name, _)| name).collect()
}

fn quantized(example: &str, flags: &str) -> Home {
    let home = Home::with_example(example);
    let p = preprocess(example);
    home.ok(&format!("quantize model.onnx --data calib.npz {p} {flags} --no-check -o q.onnx"));
    home.ok("config q.onnx -o config.json");
    home
}

fn config(home: &Home) -> Value {
    serde_json::from_slice(&home.read("config.json")).expect("JSON")
}

/// The configuration with an edit of a tensor's entry.
fn edit(home: &Home, tensor: &str, change: impl FnOnce(&mut Value)) {
    let mut all = config(home);
    let entry = all["tensors"].get_mut(tensor).unwrap_or_else(|| panic!("no {tensor}"));
    change(entry);
    home.write("edited.json", &all.to_string());
}

const AGAIN: &str = "quantize model.onnx --no-check --measure=no";

#[test]
fn gives_the_same_codes_without_samples() {
    for (example, flags) in [
        // Biases took up what samples told, which is a decision as well.
        ("digits-cnn", ""),
        ("digits-cnn", "--correct-activations=no"),
        ("digits-cnn", "--format qoperator"),
        ("digits-cnn", "--scheme vitis-dpu"),
        ("digits-cnn", "--weights fp8_e4m3 --activations fp8_e4m3 --weight-rounding nearest"),
        ("digits-vit", "--weights fp8_e4m3 --activations fp8_e4m3 --weight-rounding nearest --keep-last=no"),
        ("digits-cnn", "--scheme quantizeml -i 8 -w 4 -a 4"),
        ("digits-cnn", "--scheme vitis-dpu --bias-correction=no"),
        ("digits-cnn", "--scheme pytorch"),
        ("digits-cnn", "--scheme mxnet"),
        ("digits-vit", "--correct-activations=no"),
        (
            "digits-vit",
            "--activations int16 --weights int4 --symmetric --weight-rounding nearest --correct-activations=no",
        ),
        ("digits-vit", "--scheme inc-jax-fp8"),
        ("diabetes-mlp", "--scheme tflite"),
    ] {
        let home = quantized(example, flags);
        home.ok(&format!("{AGAIN} -c config.json -o again.onnx"));
        assert_eq!(changed(&home, "q.onnx", "again.onnx"), [""; 0], "{example} {flags}");
        home.ok("config again.onnx -o again.json");
        let again: Value = serde_json::from_slice(&home.read("again.json")).expect("JSON");
        assert_eq!(
            (&again["nodes"], &again["tensors"]),
            (&config(&home)["nodes"], &config(&home)["tensors"]),
            "{flags}"
        );
    }
}

#[test]
fn applies_an_edited_scale_to_its_tensor_alone() {
    let home = quantized("digits-cnn", "--correct-activations=no");
    let all = config(&home);
    let node = all["nodes"].as_array().expect("nodes").iter().find(|n| !n["weight"].is_null()).expect("a product");
    let (weight, output) = (node["weight"].as_str().expect("a name"), node["output"].as_str().expect("a name"));
    // Another scale of the first channel: codes of that weight and its bias.
    edit(&home, weight, |e| e["scales"][0] = (e["scales"][0].as_f64().expect("a scale") * 2.0).into());
    home.ok(&format!("{AGAIN} -c edited.json -o edited.onnx"));
    let names = changed(&home, "q.onnx", "edited.onnx");
    let of_weight = |n: &String| n.starts_with(weight) || n.contains("_bias_");
    assert!(names.contains(&format!("{weight}_scale")) && names.contains(&format!("{weight}_quantized")), "{names:?}");
    assert!(names.len() <= 4 && names.iter().all(of_weight), "{names:?}");
    // Another zero point of an activation: nothing but itself.
    edit(&home, output, |e| e["zero-points"][0] = 7.into());
    home.ok(&format!("{AGAIN} -c edited.json -o edited.onnx"));
    assert_eq!(changed(&home, "q.onnx", "edited.onnx"), [format!("{output}_zero_point")]);
    // Its scale: the biases of what reads it.
    edit(&home, output, |e| e["scales"][0] = 0.125.into());
    home.ok(&format!("{AGAIN} -c edited.json -o edited.onnx"));
    let names = changed(&home, "q.onnx", "edited.onnx");
    assert!(names.iter().all(|n| *n == format!("{output}_scale") || n.contains("_bias_")), "{names:?}");
}

#[test]
fn chooses_scales_anew_where_a_type_is_edited() {
    let home = quantized("digits-cnn", "--scheme quantizeml -i 8 -w 4 -a 8");
    let p = preprocess("digits-cnn");
    let all = config(&home);
    let nodes = all["nodes"].as_array().expect("nodes");
    let weights: Vec<&str> = nodes.iter().filter_map(|n| n["weight"].as_str()).collect();
    assert_eq!(all["tensors"][weights[1]]["bits"], 4);
    edit(&home, weights[1], |e| e["bits"] = 8.into());
    home.ok(&format!("{AGAIN} -c edited.json -o edited.onnx"));
    let names = changed(&home, "q.onnx", "edited.onnx");
    assert!(names.contains(&format!("{}_quantized", weights[1])) && !names.contains(&format!("{}_scale", weights[2])));
    // An activation of another type has no range without samples.
    let input = nodes[0]["inputs"][0].as_str().expect("a name");
    edit(&home, input, |e| e["type"] = "int16".into());
    let refused = home.run(&format!("{AGAIN} -c edited.json -o none.onnx")).expect(2);
    assert!(refused.stderr.contains("--config has no scales for"), "{}", refused.stderr);
    home.ok(&format!("{AGAIN} -c edited.json --data calib.npz {p} -o edited.onnx"));
    let wide =
        home.run(&format!("{AGAIN} -c edited.json --data calib.npz {p} --format qoperator -o none.onnx")).expect(2);
    assert!(wide.stderr.contains("int8 and uint8 only"), "{}", wide.stderr);
    home.ok("config edited.onnx -o config.json");
    assert_eq!(config(&home)["tensors"][input]["type"], "int16");
    assert!(onnx::load(home.path("edited.onnx")).expect("the file").opset() >= 21, "which knows the type");
}

#[test]
fn leaves_nodes_float_that_are_no_longer_quantized() {
    let home = quantized("digits-cnn", "");
    let mut all = config(&home);
    let nodes = all["nodes"].as_array_mut().expect("nodes");
    let last = nodes.iter_mut().rev().find(|n| !n["weight"].is_null()).expect("a product");
    last["quantized"] = false.into();
    let name = last["node"].clone();
    home.write("edited.json", &all.to_string());
    home.ok(&format!("{AGAIN} -c edited.json -o edited.onnx"));
    home.ok("config edited.onnx -o config.json");
    let all = config(&home);
    let found = all["nodes"].as_array().expect("nodes").iter().find(|n| n["node"] == name).expect("it");
    assert_eq!(found["quantized"], false);
}

#[test]
fn refuses_decisions_that_contradict_themselves() {
    let home = quantized("digits-cnn", "");
    let all = config(&home);
    let node = all["nodes"].as_array().expect("nodes").iter().find(|n| !n["weight"].is_null()).expect("a product");
    let (weight, input) = (node["weight"].as_str().expect("a name"), node["inputs"][0].as_str().expect("a name"));
    let refused = |tensor: &str, key: &str, value: Value| {
        edit(&home, tensor, |e| e[key] = value);
        home.run(&format!("{AGAIN} -c edited.json -o none.onnx")).expect(2).stderr
    };
    for (tensor, key, value, says) in [
        (input, "scales", serde_json::json!([0.5, 0.25]), "no axis"),
        (input, "scales", serde_json::json!([-1.0]), "is no scale"),
        (input, "zero-points", serde_json::json!([300]), "outside"),
        (input, "fraction-bits", serde_json::json!(3), "fraction-bits"),
        (input, "scale", serde_json::json!(3), "unknown field"),
        (weight, "zero-points", serde_json::json!([0, 0]), "zero points"),
        (weight, "scales", serde_json::json!([0.5, 0.25]), "scales"),
        (weight, "type", serde_json::json!("int9"), "int9"),
    ] {
        let error = refused(tensor, key, value);
        assert!(error.contains(says), "{tensor} {key}: {error}");
    }
    home.write("wrong.json", r#"{"nodes": [{"node": "a", "op": "Conv", "quantised": true}]}"#);
    home.run(&format!("{AGAIN} -c wrong.json -o none.onnx")).expect(2);
    home.run("config model.onnx -o none.json").expect(2);
    assert!(!home.files().iter().any(|f| f.starts_with("none")));
}

#[test]
fn writes_the_settings_of_models_without_calibrated_scales() {
    let home = Home::with_example("diabetes-mlp");
    for flags in ["weight-only --weights mxfp4", "dynamic", "float16"] {
        home.ok(&format!("{AGAIN} --approach {flags} -o q.onnx"));
        home.ok("config q.onnx -o config.json");
        home.ok(&format!("{AGAIN} -c config.json -o again.onnx"));
        assert_eq!(changed(&home, "q.onnx", "again.onnx"), [""; 0], "{flags}");
    }
}

/// The types of the constants behind DequantizeLinear.
fn types(home: &Home, file: &str) -> BTreeSet<String> {
    let graph = onnx::load(home.path(file)).expect("the file").graph;
    let dq = graph.nodes().filter(|(_, n)| n.op.name() == "DequantizeLinear");
    dq.filter_map(|(id, _)| Some(format!("{:?}", graph.const_input(id, 0)?.dtype()))).collect()
}

#[test]
fn chooses_scales_anew_where_a_flag_changes_what_they_are_for() {
    let home = quantized("digits-cnn", "");
    let p = preprocess("digits-cnn");
    // Weights need no samples; what was decided of activations stays.
    for (flags, says) in [
        ("--weights int4", "weights.type: int8 → int4"),
        ("-w 4", "weights.bits: none → 4"),
        ("--per-tensor", "weights.per-channel: true → false"),
    ] {
        let told = home.ok(&format!("{AGAIN} -c config.json {flags} -o other.onnx")).stdout;
        assert!(told.contains(says), "{flags}: {told}");
        home.ok("config other.onnx -o other.json");
        let other: Value = serde_json::from_slice(&home.read("other.json")).expect("JSON");
        let first = config(&home);
        for (name, entry) in first["tensors"].as_object().expect("tensors") {
            let weight = first["nodes"].as_array().expect("nodes").iter().any(|n| n["weight"] == **name);
            assert_eq!(other["tensors"][name] != *entry, weight, "{flags} {name}");
        }
    }
    home.ok(&format!("{AGAIN} -c config.json --weights int4 -o other.onnx"));
    assert!(types(&home, "other.onnx").contains("I4"), "{:?}", types(&home, "other.onnx"));
    // Activations do.
    for (flags, says) in [
        ("--activations int16", "activations.type: uint8 → int16"),
        ("--method entropy", "method: auto → entropy"),
        ("--scheme vitis-dpu", "would change them by half"),
        ("--approach dynamic", "no use for"),
    ] {
        let refused = home.run(&format!("{AGAIN} -c config.json {flags} -o none.onnx")).expect(2).stderr;
        assert!(refused.contains(says) && refused.contains("help: "), "{flags}: {refused}");
    }
    home.ok(&format!("{AGAIN} -c config.json --activations int16 --data calib.npz {p} -o other.onnx"));
    home.ok(&format!("{AGAIN} --activations int16 --data calib.npz {p} -o plain.onnx"));
    assert_eq!(changed(&home, "other.onnx", "plain.onnx"), [""; 0]);
}

#[test]
fn chooses_scales_anew_where_a_setting_is_edited() {
    let home = quantized("digits-cnn", "");
    let mut all = config(&home);
    all["weights"]["type"] = "int4".into();
    home.write("edited.json", &all.to_string());
    home.ok(&format!("{AGAIN} -c edited.json -o edited.onnx"));
    home.ok(&format!("{AGAIN} -c config.json --weights int4 -o flag.onnx"));
    assert_eq!(changed(&home, "edited.onnx", "flag.onnx"), [""; 0]);
}

#[test]
fn refuses_entries_about_nothing() {
    let home = quantized("digits-cnn", "");
    let first = config(&home);
    let mut all = first.clone();
    all["tensors"]["no_such_tensor"] = serde_json::json!({"type": "int8", "scales": [0.5]});
    home.write("edited.json", &all.to_string());
    let refused = home.run(&format!("{AGAIN} -c edited.json -o none.onnx")).expect(2).stderr;
    assert!(refused.contains("no_such_tensor") && refused.contains("no tensor of that name"), "{refused}");
    let mut all = first.clone();
    all["nodes"][0]["node"] = "no_such_node".into();
    all["nodes"][0]["quantized"] = false.into();
    home.write("edited.json", &all.to_string());
    let refused = home.run(&format!("{AGAIN} -c edited.json -o none.onnx")).expect(2).stderr;
    assert!(refused.contains("no node \"no_such_node\""), "{refused}");
}

#[test]
fn lets_exceptions_name_a_part_of_a_types_settings() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    home.write("o.toml", "[[override]]\nop-type = \"Conv\"\nweights = { type = \"int4\" }\n");
    let line = format!("{AGAIN} --data calib.npz {p} -c o.toml --per-tensor");
    home.ok(&format!("{line} -o q.onnx"));
    let found = types(&home, "q.onnx");
    assert!(found.contains("I4") && found.contains("I8"), "{found:?}");
    let shown: Value = home.json(&format!("{line} -o none.onnx --show-config"));
    assert_eq!(shown["override"][0]["weights"]["per-channel"], false, "as the flag has it: {shown}");
    home.write("o.toml", "[[override]]\nop-type = \"Conv\"\nweights = { typ = \"int4\" }\n");
    assert!(home.run(&format!("{line} -o none.onnx")).expect(2).stderr.contains("typ"));
}

#[test]
fn counts_the_nodes_that_the_summary_counts() {
    // Sigmoid and its product behind a Gemm are rounded behind it, on floats.
    for example in crate::home::EXAMPLES {
        let home = Home::with_example(example);
        let p = preprocess(example);
        let made = home.json(&format!("quantize model.onnx --data calib.npz {p} --no-check --measure=no -o q.onnx"));
        home.ok("config q.onnx -o config.json");
        let all = config(&home);
        let nodes = all["nodes"].as_array().expect("nodes").iter().filter(|n| n["quantized"] == true).count();
        assert_eq!(made["integer_nodes"], nodes, "{example}");
    }
}
