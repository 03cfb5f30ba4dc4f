//! A file is written whole or not at all.

use crate::home::{Home, binary, code};
use crate::models;
use narrowbit_data::{DataOptions, Dataset};
use narrowbit_tensor::Tensor;

const OLD: &str = "what stood here before\n";

/// Runs a command whose files must not exceed 1 KiB: writing fails as on a full disk.
#[cfg(unix)]
fn run_on_full_disk(home: &Home, line: &str) -> (i32, String) {
    // Without the trap, the signal of a file that grows too large ends the process.
    let script = format!("trap '' XFSZ; ulimit -f 2; exec {} {line}", binary());
    let out = home.command("sh").args(["-c", &script]).output().expect("a shell");
    (code(out.status), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[cfg(unix)]
#[test]
fn keeps_the_old_file_when_the_disk_is_full() {
    let home = Home::with_example("diabetes-mlp");
    models::save_features(&home.path("many.npz"), 400);
    for (line, out) in [
        ("sanitize model.onnx -o", "out.onnx"),
        ("convert model.onnx -o", "out.onnx"),
        ("convert model.onnx --external-data always -o", "out.onnx"),
        ("calibrate model.onnx --data calib.npz -o", "out.json"),
        ("quantize model.onnx --data calib.npz -o", "out.onnx"),
        ("quantize model.onnx --data calib.npz --format qoperator -o", "out.onnx"),
        ("run model.onnx --data many.npz -o", "out.npz"),
    ] {
        home.write(out, OLD);
        let before = home.files();
        let (code, stderr) = run_on_full_disk(&home, &format!("{line} {out}"));
        assert_eq!(code, 2, "{line}: {stderr}");
        assert!(stderr.contains("error: ") && stderr.contains(out), "the error names the file: {line}: {stderr}");
        assert!(stderr.contains("help: make room") && !stderr.contains("ZipWriter"), "{line}: {stderr}");
        assert_eq!(home.read(out), OLD.as_bytes(), "{line}");
        assert_eq!(home.files(), before, "{line} leaves no temporary files");
    }
}

#[cfg(unix)]
#[test]
fn fails_when_the_result_can_not_be_printed() {
    let home = Home::new();
    models::save_linear(&home.path("model.onnx"));
    let script = format!("{} inspect model.onnx >/dev/full", binary());
    let out = home.command("sh").args(["-c", &script]).output().expect("a shell");
    assert_eq!(code(out.status), 2, "{}", String::from_utf8_lossy(&out.stderr));
}

#[cfg(unix)]
#[test]
fn writes_files_with_the_permissions_that_the_user_asked_for() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::with_example("diabetes-mlp");
    for (line, out) in [
        ("sanitize model.onnx -o", "a.onnx"),
        ("calibrate model.onnx --data calib.npz -o", "b.json"),
        ("quantize model.onnx --data calib.npz -o", "c.onnx"),
        ("run model.onnx --data test.npz -o", "d.npz"),
        ("config c.onnx -o", "e.json"),
    ] {
        let script = format!("umask 022; exec {} {line} {out}", binary());
        let ran = home.command("sh").args(["-c", &script]).output().expect("a shell");
        assert_eq!(code(ran.status), 0, "{}", String::from_utf8_lossy(&ran.stderr));
        let mode = std::fs::metadata(home.path(out)).expect("the file").permissions().mode() & 0o777;
        assert_eq!(mode, 0o644, "{out} has mode {mode:o}");
    }
}

#[cfg(unix)]
#[test]
fn puts_no_file_in_the_place_of_a_device() {
    use std::os::unix::fs::FileTypeExt;
    let home = Home::new();
    models::save_linear(&home.path("model.onnx"));
    models::save_features(&home.path("data.npz"), 4);
    // As /dev/null or a named pipe, which a user who may write into their folder would lose by the rename.
    for (line, out) in [
        ("sanitize model.onnx -o", "a.onnx"),
        ("quantize model.onnx --random 2 -o", "b.onnx"),
        ("calibrate model.onnx --random 2 -o", "c.json"),
        ("run model.onnx --random 2 -o", "d.npz"),
        ("run model.onnx --random 2 -o", "e.h5"),
    ] {
        let _open = std::os::unix::net::UnixListener::bind(home.path(out)).expect("a socket");
        let ran = home.run(&format!("{line} {out}")).expect(2);
        assert!(ran.stderr.contains(out) && ran.stderr.contains("a device or a pipe"), "{}", ran.text());
        assert!(std::fs::metadata(home.path(out)).expect("it is there").file_type().is_socket(), "{line}");
    }
}

#[test]
fn keeps_the_float_model_when_its_quantized_form_would_replace_it() {
    let home = Home::with_example("diabetes-mlp");
    let before = home.read("model.onnx");
    for out in ["model.onnx", "./model.onnx"] {
        let ran = home.run(&format!("quantize model.onnx --data calib.npz -o {out}")).expect(2);
        assert!(ran.stderr.contains("is the float model") && ran.stderr.contains("model.int8.onnx"), "{}", ran.text());
    }
    assert_eq!(home.read("model.onnx"), before);
}

#[test]
fn writes_over_its_own_input() {
    let home = Home::with_example("diabetes-mlp");
    home.ok("sanitize model.onnx -o other.onnx");
    home.ok("sanitize model.onnx -o model.onnx");
    assert_eq!(home.read("model.onnx"), home.read("other.onnx"));
}

#[test]
fn keeps_weights_beside_the_model_and_reads_them_again() {
    let home = Home::with_example("digits-cnn");
    home.ok("convert model.onnx --external-data always -o out.onnx");
    let data = std::fs::metadata(home.path("out.onnx.data")).expect("the weights").len();
    let graph = std::fs::metadata(home.path("out.onnx")).expect("the graph").len();
    assert!(data > 8 * graph, "{data} bytes of weights, {graph} bytes of graph");
    home.ok("convert out.onnx --external-data never -o back.onnx");
    home.ok("convert model.onnx --external-data never -o direct.onnx");
    assert_eq!(home.read("back.onnx"), home.read("direct.onnx"));
    let moved = Home::new();
    std::fs::copy(home.path("out.onnx"), moved.path("out.onnx")).expect("a copy");
    let ran = moved.run("convert out.onnx -o again.onnx").expect(2);
    assert!(ran.stderr.contains("out.onnx.data"), "{}", ran.text());
}

#[test]
fn saves_one_value_per_batch_of_an_output_without_dimensions() {
    let home = Home::new();
    models::save_total(&home.path("model.onnx"));
    let x: Vec<f32> = (0..20).map(|i| i as f32).collect();
    models::save_arrays(&home.path("data.npz"), &[("x", Tensor::new([5, 4], x).expect("a tensor"))]);
    for (flags, totals) in [("", [6.0f32, 22.0, 38.0, 54.0, 70.0].as_slice()), ("--batch 3", &[66.0, 124.0])] {
        let v = home.json(&format!("run model.onnx --data data.npz {flags} -o out.npz"));
        assert_eq!(v["outputs"][0]["shape"], serde_json::json!([totals.len()]), "{flags}");
        assert_eq!(v["outputs"][1]["shape"], serde_json::json!([5, 4]), "{flags}");
        if flags.is_empty() {
            let data = Dataset::open(home.path("out.npz"), &DataOptions::default()).expect("the outputs are read");
            let all = data.batch(0..5).expect("the samples").inputs;
            let total = all.iter().find(|(name, _)| name == "total").expect("the output");
            assert_eq!(total.1, Tensor::vector(totals.to_vec()));
        }
    }
}

#[test]
fn counts_parameters_and_every_file_of_a_model() {
    let home = Home::new();
    models::save_described(&home.path("model.onnx"), 300, "its.weights.bin");
    // Left over from another model.
    home.write("model.onnx.data", "something else\n");
    let v = home.json("inspect model.onnx");
    assert_eq!(v["parameters"], 768, "the shape of the Reshape is no parameter");
    assert_eq!(v["metadata"]["story"], "s".repeat(300));
    let size = |name: &str| std::fs::metadata(home.path(name)).expect("a file").len();
    assert_eq!(v["bytes"], size("model.onnx") + size("its.weights.bin"));
    let text = home.ok("inspect model.onnx").stdout;
    assert!(text.contains(&format!("story: {}… (300 characters)\n", "s".repeat(160))), "{text}");
}

#[test]
fn warns_in_the_metadata_when_samples_were_random() {
    let home = Home::with_example("diabetes-mlp");
    let ran = home.ok("quantize model.onnx --random 4 -o out.onnx --json");
    assert!(ran.stderr.contains("random samples say nothing about accuracy"), "{}", ran.stderr);
    assert_eq!(ran.json()["random"], true);
    assert!(ran.json()["warnings"][0].as_str().is_some_and(|w| w.contains("random")));
    let warning = home.json("inspect out.onnx")["metadata"]["narrowbit.warning"].clone();
    assert!(warning.as_str().is_some_and(|w| w.contains("random")), "{warning}");
    // It stays when the ranges go through a file, and through a merge with real ones.
    home.ok("calibrate model.onnx --random 4 -o random.json");
    home.ok("calibrate model.onnx --data calib.npz -o real.json");
    home.ok("calibrate model.onnx --merge real.json random.json -o merged.json");
    for (ranges, expected) in [("random.json", true), ("merged.json", true), ("real.json", false)] {
        home.ok(&format!("quantize model.onnx --ranges {ranges} -o out.onnx"));
        let metadata = home.json("inspect out.onnx")["metadata"].clone();
        assert_eq!(metadata.get("narrowbit.warning").is_some(), expected, "{ranges}: {metadata}");
    }
}

#[test]
fn refuses_random_samples_beside_data() {
    let home = Home::new();
    models::save_linear(&home.path("model.onnx"));
    models::save_arrays(&home.path("data.npz"), &[("x", Tensor::new([2, 4], vec![0.5f32; 8]).expect("a tensor"))]);
    home.run("run model.onnx --data data.npz --random 2 -o out.npz").expect(2);
}
