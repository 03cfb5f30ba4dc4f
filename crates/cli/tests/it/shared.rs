//! The models of the folder `shared`, on a few samples; `tests/shared_metrics.py` measures them on all.

use std::path::Path;

use narrowbit_testkit::paths;

use crate::home::{Home, binary, python};
use crate::onnxruntime::{agreement, assert_agrees};

/// Case, model, calibration data, test data, samples to compare integers on.
const MODELS: [(&str, &str, &str, &str, usize); 7] = [
    ("cifar10-resnet20", "model.onnx", "calib.npz", "test.npz", 2),
    ("cifar10-resnet20", "model_bn.onnx", "calib.npz", "test.npz", 1),
    ("mlperf-tiny-ic", "model.onnx", "calib.npz", "test.npz", 2),
    ("mlperf-tiny-kws", "model.onnx", "calib.npz", "test.npz", 4),
    ("unet-camvid", "model.onnx", "data.h5", "test.npz", 1),
    ("fashion-mnist-vit", "model.onnx", "calib.npz", "test.npz", 2),
    ("minilm-sts", "model.onnx", "calib.npz", "test_a.npz", 1),
];

#[test]
fn gives_the_float_outputs_of_onnx_runtime() {
    let Some(shared) = paths::shared_dir() else { return };
    let Some(ran) = python("shared_float.py", &[Path::new(binary()), &shared]) else { return };
    println!("{}", ran.stdout);
    ran.expect(0);
}

#[test]
fn makes_the_integers_of_onnx_runtime_on_real_models() {
    let Some(shared) = paths::shared_dir() else { return };
    let mut wrong = Vec::new();
    for (case, model, calib, test, n) in MODELS {
        let folder = shared.join("models").join(case);
        let home = Home::new();
        let (model, calib) = (folder.join(model), folder.join(calib));
        let case_file = folder.join("case.json");
        let preprocessed = case != "minilm-sts" && case != "mlperf-tiny-kws";
        let (model, calib) = (model.display().to_string(), calib.display().to_string());
        let mut args = vec!["quantize", &model, "--data", &calib, "--samples", "8", "-o", "int8.onnx", "--no-check"];
        let path = case_file.display().to_string();
        if preprocessed {
            args.extend(["--preprocess", &path]);
        }
        home.run_args(&args).expect(0);
        let Some(report) = agreement(&home, "int8.onnx", &folder.join(test), &case_file, n) else { return };
        let check = std::panic::catch_unwind(|| assert_agrees(&model, &report));
        if check.is_err() {
            wrong.push(model);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
