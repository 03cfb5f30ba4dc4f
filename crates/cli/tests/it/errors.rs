//! Each class of error: what is said, where it went wrong, what to do, exit code 2, nothing on stdout.

use narrowbit_import::onnx::{self, SaveOptions};
use narrowbit_ir::AttrMap;
use narrowbit_tensor::{DType, Tensor};
use narrowbit_testkit::graphs::GraphBuilder;

use crate::home::{Home, Ran};
use crate::models;

/// Checks that a command is refused and leaves no new file.
#[track_caller]
fn refuse(home: &Home, line: &str) -> Ran {
    let before = home.files();
    let ran = home.run(line).expect(2);
    assert_eq!(ran.stdout, "", "an error has no result\n{}", ran.text());
    assert!(ran.stderr.starts_with("error: ") || ran.stderr.contains("\nerror: "), "{}", ran.text());
    assert_eq!(home.files(), before, "an error leaves no files\n{}", ran.text());
    ran
}

fn linear() -> Home {
    let home = Home::new();
    models::save_linear(&home.path("model.onnx"));
    models::save_arrays(&home.path("data.npz"), &[("x", Tensor::new([2, 4], vec![0.5f32; 8]).expect("a tensor"))]);
    home
}

#[test]
fn refuses_missing_files() {
    let home = linear();
    let lines = [
        "inspect missing.onnx",
        "quantize missing.onnx --random 1 -o out.onnx",
        "quantize model.onnx --data missing.npz -o out.onnx",
        "quantize model.onnx --ranges missing.json -o out.onnx",
        "eval model.onnx --data data.npz --labels missing.npy",
        "run model.onnx --data data.npz --preprocess missing.json -o out.npz",
        "quantize model.onnx --data data.npz --config missing.toml -o out.onnx",
        "compare model.onnx missing.npz --data data.npz",
        "inspect .",
    ];
    let texts: Vec<String> = lines.iter().map(|line| refuse(&home, line).text()).collect();
    insta::assert_snapshot!("missing", texts.join("\n"));
}

#[test]
fn tells_what_compare_takes() {
    let home = linear();
    models::save_arrays(&home.path("other.npz"), &[("z", Tensor::new([2, 4], vec![0.5f32; 8]).expect("a tensor"))]);
    std::fs::copy(home.path("data.npz"), home.path("renamed.onnx")).expect("a copy");
    home.write("saved.npy", "");
    home.write("scores.csv", "0.5\n");
    let lines = [
        "compare data.npz model.onnx --data data.npz",
        "compare model.onnx other.npz --data data.npz",
        "compare model.onnx saved.npy --data data.npz",
        "compare model.onnx scores.csv --data data.npz",
        "compare model.onnx renamed.onnx --data data.npz",
    ];
    let texts: Vec<String> = lines.iter().map(|line| refuse(&home, line).text()).collect();
    insta::assert_snapshot!("compare", texts.join("\n"));
    // The help is true: what it names can be compared.
    home.ok("run model.onnx --data data.npz -o outputs.npz");
    home.ok("compare model.onnx outputs.npz --data data.npz --min-sqnr 100");
}

#[test]
fn refuses_damaged_models() {
    let home = Home::with_example("digits-cnn");
    let whole = home.read("model.onnx");
    std::fs::write(home.path("half.onnx"), &whole[..whole.len() / 2]).expect("a file");
    home.write("empty.onnx", "");
    home.write("text.onnx", "this is no model\n");
    home.write("weights.pt", "");
    let lines = ["inspect half.onnx", "inspect empty.onnx", "inspect text.onnx", "inspect weights.pt"];
    let texts: Vec<String> = lines.iter().map(|line| refuse(&home, line).text()).collect();
    insta::assert_snapshot!("damaged", texts.join("\n"));
}

#[test]
fn names_all_unknown_operators_at_once() {
    let home = Home::new();
    models::save_unknown(&home.path("model.onnx"));
    let lines = ["run model.onnx --random 1 -o out.npz", "quantize model.onnx --random 1 -o out.onnx"];
    let texts: Vec<String> = lines.iter().map(|line| refuse(&home, line).text()).collect();
    insta::assert_snapshot!("unknown-operators", texts.join("\n"));
    home.ok("inspect model.onnx");
    home.ok("convert model.onnx -o copy.onnx");
    home.ok("inspect copy.onnx");
}

#[test]
fn refuses_data_that_do_not_fit() {
    let home = linear();
    let save = |name: &str, array: &str, t: Tensor| models::save_arrays(&home.path(name), &[(array, t)]);
    save("narrow.npz", "x", Tensor::new([2, 3], vec![0.5f32; 6]).expect("a tensor"));
    save("nan.npz", "x", Tensor::new([2, 4], [[0.5f32; 4], [0.0, f32::NAN, 0.0, 0.0]].concat()).expect("a tensor"));
    save("empty.npz", "x", Tensor::new([0, 4], Vec::<f32>::new()).expect("a tensor"));
    home.write("text.npz", "this is no archive\n");
    let lines = [
        "run model.onnx -o out.npz",
        "quantize model.onnx -o out.onnx",
        "run model.onnx --data narrow.npz -o out.npz",
        "run model.onnx --data nan.npz -o out.npz",
        "quantize model.onnx --data nan.npz -o out.onnx",
        "run model.onnx --data empty.npz -o out.npz",
        "run model.onnx --data text.npz -o out.npz",
        "run model.onnx --data data.npz --samples 0 -o out.npz",
        "eval model.onnx --data data.npz",
        "bench model.onnx --runs 0",
        "inspect model.onnx --dim batch=2",
    ];
    let texts: Vec<String> = lines.iter().map(|line| refuse(&home, line).text()).collect();
    insta::assert_snapshot!("data", texts.join("\n"));
}

#[test]
fn refuses_images_and_labels_that_do_not_fit() {
    let home = Home::with_example("digits-cnn");
    let images = || Tensor::new([2, 8, 8, 1], vec![7u8; 128]).expect("images");
    let labelled = |name: &str, labels: Vec<i64>| {
        let labels = Tensor::new([labels.len()], labels).expect("labels");
        models::save_arrays(&home.path(name), &[("images", images()), ("labels", labels)]);
    };
    labelled("range.npz", vec![3, 10]);
    labelled("negative.npz", vec![3, -1]);
    labelled("few.npz", vec![3]);
    let lines = [
        "eval model.onnx --data range.npz --preprocess case.json",
        "eval model.onnx --data negative.npz --preprocess case.json",
        "eval model.onnx --data few.npz --preprocess case.json",
        "eval model.onnx --data test.npz --layout nhwc",
        "eval model.onnx --data test.npz --layout chwn",
        "eval model.onnx --data test.npz --metric miou --preprocess case.json",
        "eval model.onnx --data test.npz --output nothing --preprocess case.json",
        "eval model.onnx --data test.npz --mean 1,2 --layout nchw",
        "eval model.onnx --data test.npz --range 0 --layout nchw",
    ];
    let texts: Vec<String> = lines.iter().map(|line| refuse(&home, line).text()).collect();
    insta::assert_snapshot!("images", texts.join("\n"));
}

#[test]
fn refuses_settings_that_make_no_sense() {
    let home = linear();
    home.write("unknown.toml", "methud = \"minmax\"\n");
    home.write("unknown.json", "{\"activations\": {\"int\": \"int8\", \"bits\": 4}}");
    home.write("broken.toml", "method = \n");
    home.write("percentile.toml", "method = { percentile = nan }\n");
    home.write("scale.toml", "scael = 2\n");
    home.ok("calibrate model.onnx --data data.npz -o ranges.json");
    home.write(
        "foreign.json",
        &String::from_utf8_lossy(&home.read("ranges.json")).replace("\"graph\":\"", "\"graph\":\"0"),
    );
    home.write("half.json", "{\"format\": \"narrowbit-ranges/1\",");
    let lines = [
        "quantize model.onnx --data data.npz --config unknown.toml -o out.onnx",
        "quantize model.onnx --data data.npz --config unknown.json -o out.onnx",
        "quantize model.onnx --data data.npz --config broken.toml -o out.onnx",
        "run model.onnx --data data.npz --preprocess scale.toml -o out.npz",
        "quantize model.onnx --data data.npz --exclude [a -o out.onnx",
        "quantize model.onnx --data data.npz --exclude-regex (a -o out.onnx",
        "quantize model.onnx --data data.npz --percentile 120 -o out.onnx",
        "quantize model.onnx --data data.npz --op-types Frobnicate -o out.onnx",
        "quantize model.onnx --data data.npz --op-types MatMul,conv -o out.onnx",
        "calibrate model.onnx --data data.npz --op-types Softmax -o out.json",
        "quantize model.onnx --data data.npz --op-types Conv -o out.onnx",
        "quantize model.onnx --data data.npz --config percentile.toml -o out.onnx",
        "quantize model.onnx --data data.npz --ranges ranges.json -o out.onnx",
        "quantize model.onnx --ranges foreign.json -o out.onnx",
        "quantize model.onnx --ranges half.json -o out.onnx",
        "quantize model.onnx --ranges data.npz -o out.onnx",
    ];
    let texts: Vec<String> = lines.iter().map(|line| refuse(&home, line).text()).collect();
    insta::assert_snapshot!("settings", texts.join("\n"));
}

#[test]
fn says_what_a_new_user_mistook() {
    let home = linear();
    // A model in half precision.
    let mut g = GraphBuilder::new(17);
    let x = g.typed_input("x", DType::F16, &[-1, 4]);
    let w = g.constant("w", Tensor::from_f64s(DType::F16, [4, 3], &[0.5; 12]).expect("a tensor"));
    let y = g.named("y", "", "MatMul", &[x, w], AttrMap::default()).expect("MatMul");
    g.output(y);
    onnx::save(&g.model(), home.path("half.onnx"), &SaveOptions::default()).expect("the model is saved");
    let lines = [
        "quantize half.onnx --data data.npz -o out.onnx",
        "run data.npz --data data.npz -o out.npz",
        "run model.onnx --data data.npz -o out.csv",
        "quantize model.onnx --data data.npz -o model.onnx",
    ];
    let texts: Vec<String> = lines.iter().map(|line| refuse(&home, line).text()).collect();
    insta::assert_snapshot!("mistaken", texts.join("\n"));
    // Half precision runs, all the same.
    home.ok("run half.onnx --data data.npz -o half.npz");
}

#[test]
fn warns_of_pixels_that_nobody_scaled() {
    let home = Home::with_example("digits-cnn");
    let warning = "gets pixels as they are, 0 to 255";
    let raw = home.ok("eval model.onnx --data test.npz --samples 4");
    assert!(raw.stderr.contains(warning) && raw.stderr.contains("--scale 1"), "{}", raw.text());
    for flags in ["--preprocess case.json", "--scale 1"] {
        let told = home.ok(&format!("eval model.onnx --data test.npz --samples 4 {flags}"));
        assert!(!told.stderr.contains(warning), "{}", told.text());
    }
}

#[test]
fn writes_no_model_that_can_not_be_compared() {
    let home = Home::new();
    models::save_counting(&home.path("model.onnx"));
    // The difference of the features is lost in 8 bits: fewer elements are above zero.
    let rows = [[1.0f32, 0.9999], [-1.0, 1.0], [0.5, 0.4999], [0.25, -1.0]].concat();
    models::save_arrays(&home.path("data.npz"), &[("x", Tensor::new([4, 2], rows).expect("a tensor"))]);
    home.write("out.onnx", "what stood here before\n");
    let ran = refuse(&home, "quantize model.onnx --data data.npz --batch 4 -o out.onnx");
    assert!(ran.stderr.contains("was not written") && ran.stderr.contains("--no-check"), "{}", ran.text());
    assert_eq!(home.read("out.onnx"), b"what stood here before\n");
    home.ok("quantize model.onnx --data data.npz --batch 4 --no-check -o out.onnx");
    home.ok("inspect out.onnx");
}

#[test]
fn refuses_ranges_without_the_histograms_that_a_method_needs() {
    let home = linear();
    home.ok("calibrate model.onnx --data data.npz --no-histograms -o ranges.json");
    let ran = refuse(&home, "quantize model.onnx --ranges ranges.json --method entropy -o out.onnx");
    insta::assert_snapshot!("no-histograms", ran.text());
}

#[test]
fn refuses_to_quantize_a_quantized_model() {
    let home = Home::with_example("diabetes-mlp");
    home.ok("quantize model.onnx --data calib.npz -o int8.onnx");
    let ran = refuse(&home, "quantize int8.onnx --data calib.npz -o twice.onnx");
    insta::assert_snapshot!("quantized", ran.text());
}

#[test]
fn refuses_outputs_that_can_not_be_written() {
    let home = linear();
    std::fs::create_dir(home.path("folder")).expect("a folder");
    let mut texts = Vec::new();
    for out in ["missing/out", "folder"] {
        for line in [
            "sanitize model.onnx -o",
            "convert model.onnx -o",
            "calibrate model.onnx --data data.npz -o",
            "quantize model.onnx --data data.npz -o",
            "run model.onnx --data data.npz -o",
        ] {
            texts.push(refuse(&home, &format!("{line} {out}")).text());
        }
    }
    assert!(std::fs::read_dir(home.path("folder")).expect("the folder").next().is_none());
    insta::assert_snapshot!("unwritable", texts.join("\n"));
}

#[test]
fn refuses_counts_of_nothing_and_beyond_all_patience() {
    let home = linear();
    for (flags, text) in [
        ("--data data.npz --samples 0", "'--samples <N>': at least 1"),
        ("--random 0", "'--random <N>': at least 1"),
        ("--random 99999999999999", "'--random <N>': more than 10000000 samples"),
        ("--random some", "'--random <N>': no whole number"),
        ("--random 2 --batch 0", "--batch must be at least 1"),
    ] {
        let ran = refuse(&home, &format!("calibrate model.onnx {flags} -o r.json"));
        assert!(ran.stderr.contains(text), "{flags}: {}", ran.stderr);
    }
}
