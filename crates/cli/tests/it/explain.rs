//! `explain`: the numbers that `quantize` then takes, and the choices beside them.

use narrowbit_import::onnx;

use crate::home::{Home, preprocess};

#[test]
fn tells_the_scales_that_quantize_takes() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    home.ok(&format!("calibrate model.onnx --data calib.npz {p} -o ranges.json"));
    for flags in ["", "--method percentile-search", "--activations int8 --symmetric --method mse", "--scheme pytorch"] {
        home.ok(&format!("quantize model.onnx --ranges ranges.json {flags} -o q.onnx"));
        let graph = onnx::load(home.path("q.onnx")).expect("the file").graph;
        let scale = |name: &str| {
            let v = graph.value_named(&format!("{name}_scale")).expect("a scale");
            graph.constant(v).expect("a constant").to_f32s().expect("floats").to_vec()
        };
        let tensor = "/layer1/act/Relu_output_0";
        let by_ranges = home.json(&format!("explain model.onnx {tensor} --ranges ranges.json {flags}"));
        let by_data = home.json(&format!("explain model.onnx {tensor} --data calib.npz {p} {flags}"));
        assert_eq!(by_ranges["choices"], by_data["choices"], "{flags}");
        let chosen = &by_ranges["choices"][0];
        assert_eq!(chosen["chosen"], true);
        assert_eq!(chosen["scale"].as_f64().map(|s| s as f32), Some(scale(tensor)[0]), "{flags}: {chosen}");
    }
}

#[test]
fn compares_choices_side_by_side() {
    let home = Home::with_example("diabetes-mlp");
    home.ok("calibrate model.onnx --data calib.npz -o ranges.json");
    let mut all = home.ok("explain model.onnx /Div_output_0 --ranges ranges.json").stdout;
    all.push_str(&home.ok("explain model.onnx layers.0.weight").stdout);
    for what in [
        "scale = (max − min) / (qmax − qmin)",
        "entropy",
        "percentile-search",
        "uint16",
        "fp8_e4m3",
        "uint8 (4 bits)",
        "int4",
        "channel",
    ] {
        assert!(all.contains(what), "{what}: {all}");
    }
    assert!(home.run("explain model.onnx /Div_output_0").expect(2).stderr.contains("--data"));
    assert!(home.run("explain model.onnx nothing").expect(2).stderr.contains("has no tensor"));
    let dynamic = home.run("explain model.onnx /Div_output_0 --approach dynamic --ranges ranges.json").expect(2);
    assert!(dynamic.stderr.contains("row by row"), "{}", dynamic.stderr);
    assert!(home.run("explain model.onnx /Div_output_0 --approach float16").expect(2).stderr.contains("no scale"));
    assert!(home.run("explain model.onnx /Div_output_0 --approach weight-only").expect(2).stderr.contains("constants"));
}

#[test]
fn explains_biases_by_the_scales_of_their_product() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    let name = "stem.0.bias";
    let graph = onnx::load(home.path("model.onnx")).expect("the file").graph;
    let bias = graph.nodes().find_map(|(id, n)| {
        (n.op.name() == "Gemm")
            .then(|| graph.const_input(id, 2).and(n.input(2)).map(|v| graph.value(v).name.clone()))?
    });
    let name = bias.as_deref().unwrap_or(name);
    home.ok(&format!("calibrate model.onnx --data calib.npz {p} -o ranges.json"));
    home.ok("quantize model.onnx --ranges ranges.json --correct-activations=no --no-check -o q.onnx");
    let found = home.json(&format!("explain model.onnx {name} --ranges ranges.json"));
    assert_eq!(found["kind"], "bias");
    let formula = found["formula"].to_string();
    assert!(formula.contains("scale_x · scale_w"), "{formula}");
    let graph = onnx::load(home.path("q.onnx")).expect("the file").graph;
    let scales = graph.values().find(|(_, v)| v.name == "/head/Gemm_bias_scale" || v.name.ends_with("Gemm_bias_scale"));
    let (v, _) = scales.expect("scales of the bias");
    let least =
        graph.constant(v).expect("a constant").to_f32s().expect("floats").iter().fold(f32::MAX, |m, &s| m.min(s));
    assert_eq!(found["choices"][0]["scale"].as_f64().map(|s| s as f32), Some(least), "{found}");
    assert!(home.run(&format!("explain model.onnx {name}")).expect(2).stderr.contains("is a bias"));
}

#[test]
fn explains_what_the_other_approaches_make() {
    let home = Home::with_example("diabetes-mlp");
    let p = "--data calib.npz";
    let dynamic = home.json(&format!("explain model.onnx /Div_output_0 {p} --approach dynamic"));
    let per = |i: usize| dynamic["choices"][i]["granularity"].clone();
    assert_eq!((per(0), per(1)), ("token".into(), "tensor".into()), "{dynamic}");
    assert!(dynamic["formula"].to_string().contains("/ 255"));
    let weight = home.ok("explain model.onnx layers.0.weight --approach dynamic").stdout;
    assert!(weight.contains("MatMulInteger"), "{weight}");
    let blocks = home.json("explain model.onnx layers.0.weight --approach weight-only --block 16");
    let chosen = &blocks["choices"][0];
    assert_eq!((&chosen["granularity"], &chosen["format"]), (&"block 16".into(), &"int4".into()), "{blocks}");
    assert!(blocks["formula"].to_string().contains("that of the greatest error is of output"), "{blocks}");
    // Convolutions have no blocks.
    let cnn = Home::with_example("digits-cnn");
    let graph = onnx::load(cnn.path("model.onnx")).expect("the file").graph;
    let name =
        graph.nodes().find_map(|(_, n)| Some(graph.value(n.input(1).filter(|_| n.op.name() == "Conv")?).name.clone()));
    let ran = cnn.run(&format!("explain model.onnx {} --approach weight-only", name.expect("a weight"))).expect(2);
    assert!(ran.stderr.contains("no form by blocks") || ran.stderr.contains("no tensor"), "{}", ran.stderr);
}

#[test]
fn explains_images_of_fixed_point_by_channel() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    let name = "/stem/stem.2/Relu_output_0";
    let found =
        |flags: &str| home.json(&format!("explain model.onnx {name} --data calib.npz {p} --scheme quantizeml {flags}"));
    let images = found("");
    assert_eq!(images["choices"][0]["granularity"], "channel", "{images}");
    assert!(images["choices"][0]["greatest_scale"].is_number() && images["choices"][1]["granularity"] == "tensor");
    assert!(images["formula"].to_string().contains("2^−frac"), "{images}");
    // Behind a Relu four bits have no sign.
    let few = found("-a 4 --per-tensor-activations");
    assert_eq!(
        (&few["choices"][0]["granularity"], &few["choices"][0]["format"]),
        (&"tensor".into(), &"uint8 (4 bits)".into())
    );
}
