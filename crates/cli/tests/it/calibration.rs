//! Calibration in parts: shards merge, an interrupted one resumes, and nothing depends on threads.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::home::{Home, binary, code, preprocess};
use crate::models;

fn ranges(home: &Home, name: &str) -> Value {
    serde_json::from_slice(&home.read(name)).expect("a ranges file")
}

/// Checks that two files hold the same, but for the names of their sources and the averages, whose sums are
/// rounded in another order.
#[track_caller]
fn assert_same_record(a: &Value, b: &Value) {
    assert_eq!(a["samples"], b["samples"]);
    let (ta, tb) = (a["tensors"].as_object().expect("tensors"), b["tensors"].as_object().expect("tensors"));
    assert_eq!(ta.keys().collect::<Vec<_>>(), tb.keys().collect::<Vec<_>>());
    assert!(!ta.is_empty());
    for (name, x) in ta {
        let y = &tb[name];
        for field in ["count", "non_finite", "min", "max", "histogram"] {
            assert_eq!(x[field], y[field], "{name}: {field}");
        }
        assert!(x["histogram"].is_object(), "{name} has a histogram");
        assert_close(name, &x["average"], &y["average"]);
    }
}

#[track_caller]
fn assert_close(name: &str, a: &Value, b: &Value) {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            let (x, y) = (x.as_f64().expect("a number"), y.as_f64().expect("a number"));
            // Sums of a few hundred doubles.
            assert!((x - y).abs() <= 1e-12 * x.abs().max(1.0), "{name}: {x} and {y}");
        }
        (Value::Object(x), Value::Object(y)) => {
            assert_eq!(x.len(), y.len(), "{name}");
            x.iter().for_each(|(k, v)| assert_close(name, v, &y[k]));
        }
        (Value::Array(x), Value::Array(y)) => {
            assert_eq!(x.len(), y.len(), "{name}");
            x.iter().zip(y).for_each(|(x, y)| assert_close(name, x, y));
        }
        _ => assert_eq!(a, b, "{name}"),
    }
}

#[test]
fn calibrates_in_bfloat16_where_the_machine_multiplies_it() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    let job = format!("model.onnx --data calib.npz {p}");
    let ran = home.run(&format!("calibrate {job} --float bf16 -o half.json"));
    home.run(&format!("quantize {job} --approach dynamic --float bf16 -o no.onnx")).expect(2);
    if ran.code != 0 {
        let text = ran.expect(2).text();
        assert!(text.contains("bfloat16"), "{text}");
        return;
    }
    home.ok(&format!("calibrate {job} -o whole.json"));
    home.run("quantize model.onnx --ranges half.json --float bf16 -o no.onnx").expect(2);
    let most = |file: &str| -> Vec<f64> {
        let v = ranges(&home, file);
        let all = v["tensors"].as_object().expect("tensors");
        all.values().map(|t| t["max"].as_f64().expect("a maximum")).collect()
    };
    let (half, whole) = (most("half.json"), most("whole.json"));
    assert!(half != whole, "something was rounded");
    // Each operand within 2⁻⁹; sums of many even that out.
    assert!(half.iter().zip(&whole).all(|(h, w)| (h - w).abs() <= 0.01 * w.abs()), "{half:?} {whole:?}");
}

#[test]
fn merges_shards_to_the_record_of_one_run() {
    for example in ["digits-cnn", "digits-vit"] {
        let home = Home::with_example(example);
        let p = preprocess(example);
        models::save_rows(&home.path("calib.npz"), &home.path("all.npz"), 0..90);
        let shards = [0..17, 17..60, 60..90];
        for (i, rows) in shards.iter().enumerate() {
            models::save_rows(&home.path("calib.npz"), &home.path(&format!("{i}.npz")), rows.clone());
            home.ok(&format!("calibrate model.onnx --data {i}.npz {p} -o {i}.json"));
        }
        home.ok(&format!("calibrate model.onnx --data all.npz {p} -o all.json"));
        home.ok("calibrate model.onnx --merge 0.json 1.json 2.json -o merged.json");
        let (all, merged) = (ranges(&home, "all.json"), ranges(&home, "merged.json"));
        assert_same_record(&all, &merged);
        assert_eq!(merged["data"], serde_json::json!(["0.npz", "1.npz", "2.npz"]));
        // Ranges from files before those of --data.
        home.ok(&format!("calibrate model.onnx --merge 0.json 1.json --data 2.npz {p} -o appended.json"));
        assert_same_record(&all, &ranges(&home, "appended.json"));
    }
}

#[test]
fn refuses_to_merge_ranges_of_another_model() {
    let home = Home::with_example("digits-cnn");
    let other = Home::with_example("diabetes-mlp");
    other.ok("calibrate model.onnx --data calib.npz -o ranges.json");
    std::fs::copy(other.path("ranges.json"), home.path("other.json")).expect("a copy");
    let ran = home.run("calibrate model.onnx --merge other.json -o out.json").expect(2);
    assert!(ran.stderr.contains("other.json") && ran.stderr.contains("another model"), "{}", ran.text());
    assert!(!home.path("out.json").exists());
}

#[test]
fn records_the_same_with_any_number_of_threads() {
    let home = Home::with_example("digits-vit");
    let p = preprocess("digits-vit");
    for threads in [1, 2, 4] {
        home.ok(&format!("calibrate model.onnx --data calib.npz {p} --threads {threads} -o {threads}.json"));
    }
    assert!(home.read("1.json") == home.read("2.json") && home.read("1.json") == home.read("4.json"));
}

#[test]
fn resumes_after_fewer_samples() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    let calibrate = format!("calibrate model.onnx --data calib.npz {p}");
    home.ok(&format!("{calibrate} -o whole.json"));
    home.ok(&format!("{calibrate} --samples 50 -o part.json"));
    home.ok(&format!("{calibrate} --resume -o part.json"));
    assert_eq!(ranges(&home, "part.json"), ranges(&home, "whole.json"));
    // In batches that do not start where it stopped. A batch counts as one sample of the average.
    home.ok(&format!("{calibrate} --samples 50 --no-histograms -o batches.json"));
    let summary = home.json(&format!("{calibrate} --resume --batch 20 --no-histograms -o batches.json"));
    assert_eq!(summary["samples"], 128);
    let (batches, whole) = (ranges(&home, "batches.json"), ranges(&home, "whole.json"));
    for (name, record) in whole["tensors"].as_object().expect("tensors") {
        for field in ["count", "min", "max"] {
            assert_eq!(record[field], batches["tensors"][name][field], "{name}: {field}");
        }
    }
    // Nothing is left to do.
    let again = home.json(&format!("{calibrate} --resume -o part.json"));
    assert_eq!(again["samples"], 128);
    assert_eq!(home.read("part.json"), home.read("whole.json"));
    // Without a file, --resume starts from the beginning.
    home.ok(&format!("{calibrate} --resume -o fresh.json"));
    assert_eq!(home.read("fresh.json"), home.read("whole.json"));
}

/// Sends SIGINT to a calibration that has begun; the exit code and what it said.
#[cfg(unix)]
fn interrupt(home: &Home, line: &str) -> (i32, String) {
    let mut child = home
        .command(binary())
        .args(line.split_whitespace())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("its stderr"));
    let mut said = String::new();
    // The last message before the samples.
    while !said.contains("the records of") && stderr.read_line(&mut said).expect("its messages") > 0 {}
    std::thread::sleep(Duration::from_millis(100));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(killed.success(), "it ended too early: {said}");
    while stderr.read_line(&mut said).expect("its messages") > 0 {}
    (code(child.wait().expect("it ends")), said)
}

#[cfg(unix)]
#[test]
fn goes_on_after_ctrl_c_as_if_nothing_had_happened() {
    let home = Home::with_example("diabetes-mlp");
    // Enough for seconds of work, so that the signal comes in time on a busy machine too.
    let all = 100_000u64;
    models::save_features(&home.path("many.npz"), all as usize);
    let line = "calibrate model.onnx --data many.npz --threads 1 -v -o";
    let (code, said) = interrupt(&home, &format!("{line} part.json"));
    assert_eq!(code, 2, "{said}");
    let seen = ranges(&home, "part.json")["samples"].as_u64().expect("a count");
    assert!(seen > 0 && seen < all, "{seen} samples: {said}");
    assert!(said.contains(&format!("stopped by Ctrl-C after {seen} samples; part.json holds them")), "{said}");
    // Interrupted once more, in the middle of what was left.
    let (code, said) = interrupt(&home, &format!("{line} part.json --resume"));
    assert_eq!(code, 2, "{said}");
    home.ok(&format!("{line} part.json --resume"));
    home.ok(&format!("{line} whole.json"));
    assert!(home.read("part.json") == home.read("whole.json"), "the resumed record is another one");
}

#[cfg(unix)]
#[test]
fn writes_nothing_when_quantize_is_interrupted() {
    let home = Home::with_example("diabetes-mlp");
    models::save_features(&home.path("many.npz"), 100_000);
    let before = home.files();
    let (code, said) = interrupt(&home, "quantize model.onnx --data many.npz --threads 1 -v -o out.onnx");
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("nothing was written"), "{said}");
    assert_eq!(home.files(), before);
}
