//! Weights rounded by samples: what it gains and says, where it is the default, what it needs.

use serde_json::Value;

use crate::home::{Home, preprocess};

fn sqnr(summary: &Value) -> f64 {
    summary["error"]["sqnr_db"].as_f64().expect("an error")
}

#[test]
fn rounds_coarse_weights_by_the_samples_and_says_what_it_gains() {
    for (example, flags) in [
        ("digits-cnn", "--weight-bits 3"),
        ("digits-vit", "--weights int4"),
        ("digits-vit", "--approach weight-only --weights int2"),
        ("digits-cnn", "--activations fp8_e4m3 --weights fp8_e4m3 --keep-last=no"),
    ] {
        let home = Home::with_example(example);
        let job = format!("quantize model.onnx --data calib.npz {} {flags} --measure=no", preprocess(example));
        let (gptq, nearest) =
            (home.json(&format!("{job} -o a.onnx")), home.json(&format!("{job} --weight-rounding nearest -o b.onnx")));
        let gains = gptq["rounding"]["weights"].as_array().expect("gains");
        assert!(!gains.is_empty() && nearest["rounding"].is_null(), "{example} {flags}: {gptq}");
        let better = |g: &Value| g["rounded_db"].as_f64() >= g["nearest_db"].as_f64();
        assert!(gains.iter().all(better), "{example} {flags}: {gains:?}");
        println!("{example} {flags}: {} → {}", sqnr(&nearest), sqnr(&gptq));
        // Of fp8, the activations' error is left.
        let least = if flags.contains("fp8") { 0.3 } else { 3.0 };
        assert!(sqnr(&gptq) > sqnr(&nearest) + least, "{example} {flags}: {} {}", sqnr(&nearest), sqnr(&gptq));
        let said = home.ok(&format!("{job} --threads 1 -o c.onnx")).stdout;
        assert!(said.contains("rounded by the samples") && said.contains("--weight-rounding nearest"), "{said}");
        assert!(home.read("a.onnx") == home.read("c.onnx"), "{example} {flags}: threads change the file");
    }
}

#[test]
fn leaves_int8_and_named_schemes_as_they_are() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    for flags in ["", "--scheme inc-jax-fp8", "--scheme quantizeml --weight-bits 4", "--scheme vitis-dpu"] {
        let job = format!("quantize model.onnx --data calib.npz {p} {flags} --no-check");
        home.ok(&format!("{job} -o a.onnx"));
        home.ok(&format!("{job} --weight-rounding gptq -o c.onnx"));
        home.ok(&format!("{job} --weight-rounding nearest -o b.onnx"));
        let constants = |name: &str| {
            let about = home.json(&format!("inspect {name}"));
            about["nodes"].to_string()
        };
        assert_eq!(constants("a.onnx"), constants("b.onnx"), "{flags}");
        home.ok("run a.onnx --data test.npz --samples 20 --preprocess case.json -o a.npz");
        home.ok("run b.onnx --data test.npz --samples 20 --preprocess case.json -o b.npz");
        home.ok("run c.onnx --data test.npz --samples 20 --preprocess case.json -o c.npz");
        assert_eq!(home.read("a.npz"), home.read("b.npz"), "{flags}");
        assert_ne!(home.read("a.npz"), home.read("c.npz"), "{flags}: who asks for it gets it");
    }
}

#[test]
fn rounds_by_samples_beside_ranges_when_asked_to() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    home.ok(&format!("calibrate model.onnx --data calib.npz {p} -o ranges.json"));
    let flags = "--weight-bits 4 --weight-rounding gptq --correct-activations=no --no-check --measure=no";
    home.ok(&format!("quantize model.onnx --ranges ranges.json --data calib.npz {p} {flags} -o a.onnx"));
    home.ok(&format!("quantize model.onnx --data calib.npz {p} {flags} -o b.onnx"));
    assert!(home.read("a.onnx") == home.read("b.onnx"), "ranges and samples give the same file");
    let idle = "--correct-activations=no";
    let line = format!("quantize model.onnx --ranges ranges.json --data calib.npz {p} {idle} -o no.onnx");
    let ran = home.run(&line).expect(2);
    assert!(ran.stderr.contains("--weight-rounding gptq"), "{}", ran.text());
    // Random samples say nothing of the means.
    let ran = home.run("quantize model.onnx --ranges ranges.json --random 4 -o no.onnx").expect(2);
    assert!(ran.stderr.contains("not both"), "{}", ran.text());
}

#[test]
fn asks_for_samples_where_there_are_none() {
    let home = Home::with_example("digits-vit");
    for flags in ["--approach weight-only", "--ranges r.json"] {
        let ran = home.run(&format!("quantize model.onnx {flags} --weight-rounding gptq -o no.onnx")).expect(2);
        assert!(ran.stderr.contains("needs samples") && ran.stderr.contains("--data DATA"), "{}", ran.text());
    }
    for approach in ["dynamic", "float16"] {
        let line = format!("quantize model.onnx --approach {approach} --weight-rounding gptq -o no.onnx");
        let ran = home.run(&line).expect(2);
        assert!(ran.stderr.contains("--weight-rounding has no meaning"), "{}", ran.text());
    }
    assert!(!home.files().contains(&"no.onnx".to_owned()));
    // A configuration that was made with samples serves without.
    home.write("c.toml", "approach = \"weight-only\"\nweight-rounding = \"gptq\"\n");
    let said = home.json("quantize model.onnx -c c.toml --measure=no -o out.onnx");
    let warned = |w: &Value| w.as_str().is_some_and(|w| w.contains("which needs samples"));
    assert!(said["warnings"].as_array().is_some_and(|all| all.iter().any(warned)), "{said}");
    assert_eq!(home.json("quantize model.onnx -c c.toml --show-config -o x")["weight-rounding"], "gptq");
}
