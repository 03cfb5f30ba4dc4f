//! The flow of S1: samples in HDF5, calibration here, quantization there, predictions in HDF5.

use narrowbit_data::{DataOptions, Dataset};

use crate::home::{Home, example, preprocess};

/// The samples of an example as groups `calibration` and `test` of one file, which h5py writes.
fn samples(home: &Home) -> Option<()> {
    let python = narrowbit_testkit::paths::python()?;
    let script = "import h5py, sys, numpy as np\n\
        with h5py.File('data.h5', 'w') as out:\n\
        \x20   for group, file in (('calibration', 'calib.npz'), ('test', 'test.npz')):\n\
        \x20       images = np.load(file)['images'][:60].astype(np.float32)\n\
        \x20       for i, x in enumerate(images): out[f'{group}/image_{i:03}'] = x.transpose(2, 0, 1) / 16 if x.ndim == 3 else x / 16\n";
    let ran = home.command(python.to_str()?).args(["-c", script]).output().expect("Python starts");
    let text = String::from_utf8_lossy(&ran.stderr).into_owned();
    if text.contains("No module named 'h5py'") {
        eprintln!("SKIPPED: the Python environment has no h5py");
        return None;
    }
    assert!(ran.status.success(), "{text}");
    Some(())
}

#[test]
fn goes_the_way_of_two_machines() {
    let here = Home::with_example("digits-cnn");
    let Some(()) = samples(&here) else { return };
    // Calibration on one machine: the model, the samples, and one file that comes out.
    here.ok("calibrate model.onnx --data data.h5 --batch 8 --scheme vitis-dpu -o ranges.json");
    // On the other one there are the model and that file.
    let there = Home::with_example("digits-cnn");
    std::fs::copy(here.path("ranges.json"), there.path("ranges.json")).expect("a copy");
    std::fs::copy(here.path("data.h5"), there.path("data.h5")).expect("a copy");
    there.ok("quantize model.onnx --ranges ranges.json --scheme vitis-dpu -o int8.onnx");
    there.ok("run int8.onnx --data data.h5 -o quantization_test_preds.h5");
    there.ok("run int8.onnx --data data.h5 -o preds.npz");
    let agreement = there.json("eval int8.onnx --data data.h5 --reference model.onnx");
    assert!(agreement["agreement"]["top1"].as_f64() > Some(0.9), "{agreement}");
    // One dataset per sample, under its name, with the batch dimension of one; the numbers of the .npz.
    let check = "import h5py, numpy as np\n\
        f = h5py.File('quantization_test_preds.h5'); all = np.load('preds.npz')\n\
        rows = next(iter(all.values()))\n\
        assert list(f) == [f'image_{i:03}' for i in range(60)], list(f)[:5]\n\
        assert all(f[n].shape == (1, 10) and f[n].dtype == np.float32 for n in f)\n\
        assert all(np.array_equal(f[n][0], rows[i]) for i, n in enumerate(f))\n";
    let check = check.replace("all = np", "found = np").replace("all.values", "found.values");
    let python = narrowbit_testkit::paths::python().expect("Python");
    let ran = there.command(python.to_str().expect("a path")).args(["-c", &check]).output().expect("Python starts");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn says_how_ranges_of_another_graph_differ() {
    let home = Home::with_example("digits-cnn");
    home.ok(&format!("calibrate model.onnx --data calib.npz {} --samples 8 -o ranges.json", preprocess("digits-cnn")));
    std::fs::copy(example("digits-vit").join("model.onnx"), home.path("other.onnx")).expect("a copy");
    let ran = home.run("quantize other.onnx --ranges ranges.json -o no.onnx").expect(2);
    assert!(ran.stderr.contains("only in the ranges") && ran.stderr.contains("only in this model"), "{}", ran.text());
    assert!(!home.files().contains(&"no.onnx".to_owned()));
    insta::assert_snapshot!("other-ranges", ran.text());
}

#[test]
fn numbers_predictions_of_samples_without_names() {
    let home = Home::with_example("diabetes-mlp");
    home.ok("run model.onnx --data test.npz --samples 5 --batch 2 -o preds.h5");
    home.ok("run model.onnx --data test.npz --samples 5 -o preds.npz");
    let file = Dataset::open(home.path("preds.h5"), &DataOptions::default()).expect("our own reader reads it");
    let names: Vec<String> = file.arrays().iter().map(|(n, ..)| (*n).to_owned()).collect();
    assert_eq!(names, ["000000", "000001", "000002", "000003", "000004"]);
    let expected = Dataset::open(home.path("preds.npz"), &DataOptions::default()).expect("the archive");
    for i in 0..5 {
        let ours = &file.sample(0).expect("a sample")[i].1;
        let theirs = &expected.sample(i).expect("a sample")[0].1;
        assert_eq!(ours.bytes(), theirs.bytes());
    }
}

#[test]
fn equalizes_and_corrects_as_vitis_does() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    let made =
        |flags: &str| home.json(&format!("quantize model.onnx --data calib.npz {p} {flags} --measure=no -o q.onnx"));
    let both = made("--scheme vitis-dpu");
    let pairs = both["equalized"]["pairs"].as_array().map_or(0, Vec::len);
    assert!(pairs > 0, "{both}");
    let neither = made("--scheme vitis-dpu --equalize=no --bias-correction=no");
    assert!(neither["equalized"].is_null(), "{neither}");
    // Any static scheme has them; a mean error that is taken away can only help coarse weights.
    let sqnr = |v: &serde_json::Value| v["error"]["sqnr_db"].as_f64().expect("an error");
    let coarse = "--per-tensor --weight-bits 4 --weight-rounding nearest";
    let (plain, corrected) = (made(coarse), made(&format!("{coarse} --bias-correction")));
    println!("{} → {}; {} → {}", sqnr(&neither), sqnr(&both), sqnr(&plain), sqnr(&corrected));
    assert!(sqnr(&corrected) > sqnr(&plain), "{} {}", sqnr(&corrected), sqnr(&plain));
    assert!(sqnr(&both) > 15.0);
    // Ranges without the means do not do.
    home.ok(&format!("calibrate model.onnx --data calib.npz {p} -o ranges.json"));
    let ran = home.run("quantize model.onnx --ranges ranges.json --equalize -o no.onnx").expect(2);
    assert!(ran.stderr.contains("another model"), "{}", ran.text());
    home.ok(&format!("calibrate model.onnx --data calib.npz {p} --equalize --bias-correction -o ranges.json"));
    let flags = "--equalize --bias-correction --correct-activations=no";
    home.ok(&format!("quantize model.onnx --ranges ranges.json {flags} -o a.onnx"));
    home.ok(&format!("quantize model.onnx --data calib.npz {p} {flags} --no-check --measure=no -o b.onnx"));
    assert!(home.read("a.onnx") == home.read("b.onnx"), "ranges and samples give the same file");
}
