//! Fixed point: integer-only execution with its proof, the checks, the decisions file, rescaling.

use serde_json::Value;

use crate::home::{Home, preprocess};

fn quantized(scheme: &str, flags: &str) -> (Home, &'static str) {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    home.ok(&format!("quantize model.onnx --data calib.npz {p} --scheme {scheme} {flags} --no-check -o q.onnx"));
    (home, p)
}

#[test]
fn gives_the_codes_of_the_file_on_integers_alone() {
    for (scheme, flags) in [("quantizeml", ""), ("vitis-dpu", ""), ("quantizeml", "-i 8 -w 4 -a 4")] {
        let (home, p) = quantized(scheme, flags);
        home.ok(&format!("run q.onnx --data test.npz {p} --interpret -o reference.npz"));
        home.ok(&format!("run q.onnx --data test.npz {p} --integer-only --rounding half-even --batch 7 -o ours.npz"));
        assert!(home.read("reference.npz") == home.read("ours.npz"), "{scheme} {flags}");
        // Half up, as the scheme's hardware: nearly all predictions are the same.
        let line = format!("eval q.onnx --data test.npz {p} --integer-only --reference q.onnx");
        let same = home.json(&line)["agreement"]["top1"].as_f64().unwrap();
        assert!(same > 0.97, "{scheme} {flags}: {same}");
    }
}

#[test]
fn shows_the_integers_of_each_node_or_the_first_that_needs_floats() {
    let (home, p) = quantized("quantizeml", "");
    insta::assert_snapshot!("fixed-proof", home.ok("inspect --integer-only q.onnx").text());
    let proof = home.json("inspect --integer-only q.onnx");
    assert_eq!(proof["integer_only"], true);
    let rows = proof["rows"].as_array().unwrap();
    assert!(rows.iter().all(|r| r["bits"].as_u64().unwrap() <= 40), "{proof}");
    home.ok(&format!("quantize model.onnx --data calib.npz {p} --no-check -o plain.onnx"));
    let refused = home.run("inspect --integer-only plain.onnx").expect(1);
    assert!(refused.stdout.contains("first node that needs floats"), "{}", refused.text());
    let run = home.run(&format!("run plain.onnx --data test.npz {p} --integer-only -o out.npz")).expect(2);
    assert!(run.stderr.contains("needs floats"), "{}", run.text());
    home.run("inspect --integer-only model.onnx").expect(2);
}

#[test]
fn warns_of_the_first_layer_that_has_no_integer_form() {
    let home = Home::with_example("digits-vit");
    let p = preprocess("digits-vit");
    let line = |scheme: &str| format!("quantize model.onnx --data calib.npz {p} {scheme} --no-check -o q.onnx");
    let warned = |summary: &Value| {
        let warnings = summary["warnings"].as_array().unwrap();
        warnings.iter().any(|w| w.as_str().unwrap().contains("a DequantizeLinear stands before it"))
    };
    assert!(warned(&home.json(&line("--scheme quantizeml"))));
    assert!(!warned(&home.json(&line(""))));
}

#[test]
fn runs_a_transformer_on_integers_alone() {
    let home = Home::with_example("digits-vit");
    let p = preprocess("digits-vit");
    let flags = "--scheme quantizeml --shiftmax --layer-mad";
    let summary = home.json(&format!("quantize model.onnx --data calib.npz {p} {flags} --no-check -o q.onnx"));
    let warnings = summary["warnings"].to_string();
    assert!(!warnings.contains("a DequantizeLinear stands before it"), "{warnings}");
    let proof = home.json("inspect --integer-only q.onnx");
    assert_eq!(proof["integer_only"], true, "{proof}");
    let rows = proof["rows"].as_array().unwrap();
    let count = |what: &str| rows.iter().filter(|r| r["integers"].as_str().unwrap().contains(what)).count();
    let blocks = count("softmax of powers of two");
    assert!(blocks > 0 && count("products of two activations") == 2 * blocks && count("cut off") > blocks, "{proof}");
    assert!(rows.iter().all(|r| r["saturates"].is_null()), "{proof}");
    // The file on floats, of 24 bits, and on integers.
    let line = format!("eval q.onnx --data test.npz {p} --integer-only --rounding half-even --reference q.onnx");
    let same = home.json(&line)["agreement"]["top1"].as_f64().unwrap();
    assert!(same > 0.99, "{same}");
    // Its decisions make it again.
    home.ok("config q.onnx -o q.json");
    home.ok(&format!("quantize model.onnx --data calib.npz {p} -c q.json --no-check -o again.onnx"));
    home.ok(&format!("run q.onnx --data test.npz {p} -o first.npz"));
    home.ok(&format!("run again.onnx --data test.npz {p} -o second.npz"));
    assert!(home.read("first.npz") == home.read("second.npz"));
    let other = home.run(&format!("quantize model.onnx --data calib.npz {p} --layer-mad -o no.onnx")).expect(2);
    assert!(other.stderr.contains("--scheme quantizeml"), "{}", other.text());
}

#[test]
fn checks_sums_against_the_register() {
    let (home, _) = quantized("quantizeml", "");
    insta::assert_snapshot!("fixed-check", home.ok("check q.onnx").text());
    let narrow = home.run("check q.onnx -b 12 --json").expect(1).json();
    let found = narrow["findings"].as_array().unwrap();
    assert!(found.iter().any(|f| f["problem"] == "saturation"), "{narrow}");
    let (narrow, _) = quantized("quantizeml", "-b 12");
    narrow.run("check q.onnx").expect(1);
    home.run("check model.onnx").expect(2);
}

#[test]
fn shows_the_error_of_each_layer() {
    let (home, p) = quantized("quantizeml", "-i 8 -w 4 -a 8");
    let mode =
        |mode: &str| home.json(&format!("analyze q.onnx model.onnx --data test.npz --samples 16 {p} --mode {mode}"));
    let smapes = |all: &Value| -> Vec<f64> {
        let layers = all["layers"].as_array().unwrap();
        layers.iter().map(|l| l["smape"].as_f64().unwrap()).collect()
    };
    let (single, cumulative, weight) = (mode("single"), mode("cumulative"), mode("weight"));
    for all in [&single, &cumulative, &weight] {
        let found = smapes(all);
        assert!(found.len() >= 10 && found.iter().all(|s| (0.0..=1.0).contains(s)), "{all}");
        assert!(found.iter().any(|&s| s > 0.001), "{all}");
    }
    // 8 bits in the first product, 4 in the next.
    assert!(smapes(&weight)[0] < smapes(&weight)[1], "{weight}");
    home.run(&format!("analyze q.onnx q.onnx --data test.npz {p} --mode weight")).expect(2);
    // Inputs and outputs of one name do not make models related.
    std::fs::copy(crate::home::example("digits-vit").join("model.onnx"), home.path("other.onnx")).expect("a copy");
    let ran = home.run(&format!("analyze q.onnx other.onnx --data test.npz {p}")).expect(2);
    assert!(ran.stderr.contains("was not made from it"), "{}", ran.stderr);
}

#[test]
fn shows_how_the_weights_of_each_layer_are_spread() {
    let (home, p) = quantized("quantizeml", "-i 8 -w 4 -a 8");
    let line = "analyze q.onnx model.onnx --mode kernel-distribution";
    let all = home.json(line);
    let layers = all["layers"].as_array().unwrap();
    assert!(layers.len() >= 5, "{all}");
    for (i, l) in layers.iter().enumerate() {
        let count: u64 = l["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product();
        for d in [&l["before"], &l["after"]] {
            let bins = d["histogram"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
            assert_eq!(bins, count, "{l}");
            assert!(d["max"].as_f64() <= l["range"].as_f64().map(|r| r * 1.01), "{l}");
        }
        // Few values where there are 4 bits, and a scale for each channel.
        let channels = l["shape"][0].as_u64().unwrap().max(l["shape"][1].as_u64().unwrap_or(1));
        let most = if i == 0 { 255 } else { 15 } * channels;
        assert!(l["after"]["distinct"].as_u64() <= Some(most), "{l}");
    }
    let name = layers[0]["name"].as_str().unwrap();
    let shown = home.ok(&format!("{line} --layer {name}")).text();
    insta::assert_snapshot!("fixed-kernels", shown);
    home.run(&format!("{line} --layer nothing")).expect(2);
    home.run("analyze model.onnx model.onnx --mode kernel-distribution").expect(2);
    let one = home.json(&format!("analyze q.onnx model.onnx --data test.npz --samples 4 {p} --layer {name}"));
    let names = one["layers"].as_array().unwrap().iter().all(|l| l["name"].as_str().unwrap().contains(name));
    assert!(names, "{one}");
}

#[test]
fn takes_raw_values_when_rescaled() {
    let home = Home::with_example("diabetes-mlp");
    let ran = home.ok("insert-rescaling model.onnx -s 0.5 -o -1 -d rescaled.onnx");
    insta::assert_snapshot!("fixed-rescaling", ran.text());
    let operators = home.json("inspect rescaled.onnx")["operators"].clone();
    assert!(operators["Mul"].as_u64() >= Some(1) && operators["Add"].as_u64() >= Some(1), "{operators}");
    home.run("insert-rescaling model.onnx -s 0 -o 1 -d out.onnx").expect(2);
    home.run("insert-rescaling model.onnx -s 1 -o 1 --input nothing -d out.onnx").expect(2);
    // 0.5·x − 1 of 2·x + 2 is x again.
    home.ok("insert-rescaling rescaled.onnx -s 2 -o 2 -d same.onnx");
    let agreement = home.json("eval same.onnx --data test.npz --reference model.onnx")["agreement"].clone();
    assert!(agreement["max_error"].as_f64() < Some(1e-3), "{agreement}");
}

#[test]
fn calibrates_with_the_batches_of_the_scheme() {
    let home = Home::with_example("digits-cnn");
    let line = |flags: &str, out: &str| {
        let p = preprocess("digits-cnn");
        home.json(&format!("quantize model.onnx --data calib.npz {p} {flags} --no-check -o {out}.onnx"))["batch"]
            .clone()
    };
    assert_eq!(line("--scheme quantizeml", "own"), 32);
    assert_eq!(line("--scheme quantizeml --batch 32", "same"), 32);
    assert_eq!(line("--scheme quantizeml --batch 1", "one"), 1);
    assert_eq!(line("", "plain"), 1);
    assert!(home.read("own.onnx") == home.read("same.onnx") && home.read("own.onnx") != home.read("one.onnx"));
    let p = preprocess("digits-cnn");
    home.ok(&format!("calibrate model.onnx --data calib.npz {p} --scheme quantizeml -o ranges.json"));
    home.ok("quantize model.onnx --ranges ranges.json --scheme quantizeml --no-check -o ranges.onnx");
    home.ok("config own.onnx -o own.json");
    home.ok("config ranges.onnx -o ranges-config.json");
    assert!(home.read("own.json") == home.read("ranges-config.json"));
    let shown =
        home.ok(&format!("quantize model.onnx --data calib.npz {p} --scheme quantizeml --no-check -o own.onnx"));
    assert!(shown.stdout.contains("calibration samples, 32 a run, and all else"), "{}", shown.text());
}

#[test]
fn fills_codes_unless_told_not_to_and_compares_like_with_like() {
    let (home, p) = quantized("quantizeml", "");
    home.ok("config q.onnx -o config.json");
    let all: Value = serde_json::from_slice(&home.read("config.json")).unwrap();
    let rates = all["rates"].as_object().unwrap();
    let (name, _) = rates.iter().next().unwrap();
    let scaled = format!("{name}_equalized");
    assert!(all["tensors"].get(&scaled).is_some() && all["tensors"].get(name).is_none(), "{all}");
    let compared = home.json(&format!("compare model.onnx q.onnx --data test.npz --samples 16 {p}"));
    let row = compared["tensors"].as_array().unwrap().iter().find(|r| r["name"] == scaled.as_str()).unwrap();
    assert!(row["cumulative"]["sqnr_db"].as_f64().unwrap() > 10.0, "{row}");
    let (plain, _) = quantized("quantizeml", "--cross-layer-equalization=no");
    plain.ok("config q.onnx -o config.json");
    let all: Value = serde_json::from_slice(&plain.read("config.json")).unwrap();
    assert!(all.get("rates").is_none() && all["tensors"].get(name).is_some(), "{all}");
    // Rates of a tensor that is not there are an error, not a line in a report.
    let wrong = String::from_utf8(home.read("config.json")).unwrap().replacen(name.as_str(), "none", 1);
    home.write("wrong.json", &wrong);
    let refused = home.run(&format!("quantize model.onnx --data calib.npz {p} -c wrong.json -o w.onnx")).expect(2);
    assert!(refused.stderr.contains("can't be multiplied by its rates"), "{}", refused.stderr);
}
