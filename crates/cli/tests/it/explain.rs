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
    assert!(home.run("explain model.onnx /Div_output_0 --approach dynamic").expect(2).stderr.contains("static"));
}
