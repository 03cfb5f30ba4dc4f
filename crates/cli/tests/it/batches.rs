//! Runs of the number of samples that a model fixes, and inputs whose samples lie elsewhere than along the first axis.

use std::path::Path;

use narrowbit_data::{DataOptions, Dataset, InputSpec};
use narrowbit_import::onnx::{self, SaveOptions};
use narrowbit_ir::{Attr, AttrMap};
use narrowbit_tensor::{DType, Tensor};
use narrowbit_testkit::graphs::GraphBuilder;
use serde_json::Value;

use crate::home::Home;
use crate::models::save_arrays;

const SAMPLES: usize = 10;

fn wave(shape: &[usize], step: f32) -> Tensor {
    let n = shape.iter().product::<usize>();
    Tensor::new(shape, (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<_>>()).expect("a tensor")
}

fn save(g: GraphBuilder, path: &Path) {
    onnx::save(&g.model(), path, &SaveOptions::default()).expect("the model is saved");
}

/// `y = Relu(x · w + p) · v` of two inputs, `[batch, 3, 4]` and `[batch, 5]`, and with `hard` Reshapes to the numbers of the
/// file, as exporters write them. A batch of −1 is free.
fn save_two(path: &Path, batch: i64, hard: bool) {
    let mut g = GraphBuilder::new(17);
    let (x, p) = (g.input("x", &[batch, 3, 4]), g.input("p", &[batch, 5]));
    let (rows, shape) = if hard { (batch, vec![batch, -1]) } else { (batch, vec![-1, 12]) };
    let shape = g.constant("shape", Tensor::vector(shape));
    let (w, v) = (g.constant("w", wave(&[12, 5], 0.7)), g.constant("v", wave(&[5, 6], 1.3)));
    let mut node = |name: &str, op: &str, inputs: &[_]| g.named(name, "", op, inputs, AttrMap::new()).expect("a node");
    let flat = node("flat", "Reshape", &[x, shape]);
    let product = node("product", "MatMul", &[flat, w]);
    let sum = node("sum", "Add", &[product, p]);
    let relu = node("relu", "Relu", &[sum]);
    let y = node("y", "MatMul", &[relu, v]);
    g.output(y);
    if hard {
        // Twelve rows of a sample each, whatever comes in.
        let shape = g.constant("rows", Tensor::vector(vec![rows * 3, 4]));
        let z = g.named("z", "", "Reshape", &[x, shape], AttrMap::new()).expect("Reshape");
        g.output(z);
    }
    save(g, path);
}

/// Models of free and of fixed batch, ten samples with labels, and the first eight of them.
fn home() -> Home {
    let home = Home::new();
    save_two(&home.path("free.onnx"), -1, false);
    save_two(&home.path("four.onnx"), 4, false);
    save_two(&home.path("one.onnx"), 1, false);
    save_two(&home.path("hard.onnx"), 4, true);
    save_two(&home.path("sixteen.onnx"), 16, false);
    let labels = Tensor::vector((0..SAMPLES as i64).map(|i| i % 6).collect::<Vec<_>>());
    let arrays = [("x", wave(&[SAMPLES, 3, 4], 0.31)), ("p", wave(&[SAMPLES, 5], 0.9)), ("labels", labels)];
    save_arrays(&home.path("data.npz"), &arrays);
    home
}

/// The shape and the values of an array of `rank` dimensions in a file.
fn array(home: &Home, file: &str, name: &str, rank: usize) -> (Vec<usize>, Vec<f64>) {
    let spec = InputSpec::new(name, DType::F32, vec![None; rank]);
    let data =
        Dataset::open(home.path(file), &DataOptions::default()).expect("the file").bind(&[spec]).expect("an array");
    let (_, t) = data.batch(0..data.len()).expect("the array is read").inputs.remove(0);
    (t.shape().to_vec(), t.to_f64s().expect("numbers"))
}

/// The same products in other tiles.
#[track_caller]
fn assert_close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{a} and {b}"));
}

#[test]
fn runs_a_fixed_batch_on_any_number_of_samples() {
    let home = home();
    home.ok("run free.onnx --data data.npz -o free.npz");
    let (shape, expected) = array(&home, "free.npz", "y", 2);
    assert_eq!(shape, [SAMPLES, 6]);
    for model in ["one", "four", "sixteen"] {
        for how in ["", "--interpret", "--shuffle --seed 3"] {
            home.ok(&format!("run {model}.onnx --data data.npz {how} -o out.npz"));
            home.ok(&format!("run free.onnx --data data.npz {how} -o same.npz"));
            let (shape, found) = array(&home, "out.npz", "y", 2);
            assert_eq!(shape, [SAMPLES, 6], "{model} {how}");
            assert_close(&found, &array(&home, "same.npz", "y", 2).1);
        }
    }
    // One dataset per sample, and no more.
    home.ok("run four.onnx --data data.npz -o four.h5");
    let (shape, found) = array(&home, "four.h5", "y", 2);
    assert_eq!(shape, [SAMPLES, 6]);
    assert_close(&found, &expected);
}

#[test]
fn measures_the_samples_alone() {
    let home = home();
    let [free, four] =
        ["free", "four"].map(|m| home.json(&format!("eval {m}.onnx --data data.npz --reference free.onnx")));
    assert_eq!(free["samples"], SAMPLES);
    assert_eq!(free["scores"], four["scores"]);
    assert_eq!(four["agreement"]["top1"], 1.0);
    let ran = home.json("compare four.onnx four.onnx --data data.npz");
    assert_eq!(
        (ran["samples"].clone(), ran["outputs"][0]["cumulative"]["max_error"].as_f64()),
        (SAMPLES.into(), Some(0.0))
    );
    home.ok("run free.onnx --data data.npz -o saved.npz");
    home.ok("compare four.onnx saved.npz --data data.npz --min-sqnr 90");
}

#[test]
fn compares_models_on_runs_that_serve_both() {
    let home = home();
    // Whichever of them fixes the batch; ten samples are two runs of four and a part of a third.
    for (a, b) in [("free", "four"), ("four", "free")] {
        let ran = home.json(&format!("compare {a}.onnx {b}.onnx --data data.npz --min-sqnr 90"));
        assert_eq!(ran["samples"], SAMPLES);
    }
    let refused = home.run("compare four.onnx sixteen.onnx --data data.npz").expect(2).text();
    for part in ["input \"x\" is f32[4, 3, 4] in A and f32[16, 3, 4] in B", "help: compare models of the same batch"] {
        assert!(refused.contains(part), "{refused}");
    }
}

#[test]
fn calibrates_a_fixed_batch_on_real_samples_and_says_which_count_twice() {
    let home = home();
    home.ok("calibrate free.onnx --data data.npz -o free.json");
    let ran = home.ok("calibrate four.onnx --data data.npz -o four.json");
    assert!(
        ran.stdout.contains("over 10 samples") && ran.stdout.contains("note: 2 samples were run again"),
        "{}",
        ran.text()
    );
    let read = |name: &str| -> Value { serde_json::from_slice(&home.read(name)).expect("a ranges file") };
    let (free, four) = (read("free.json"), read("four.json"));
    assert_eq!((&free["samples"], &four["samples"], &four["repeated"]), (&10.into(), &10.into(), &2.into()));
    assert!(free.get("repeated").is_none());
    for (name, stats) in four["tensors"].as_object().expect("tensors") {
        let of = &free["tensors"][name];
        for end in ["min", "max"] {
            assert_close(&[stats[end].as_f64().expect("a number")], &[of[end].as_f64().expect("a number")]);
        }
        let count = |s: &Value| s["count"].as_u64().expect("a number");
        assert_eq!(count(stats) * 10, count(of) * 12, "{name}: ten samples, two of them twice");
    }
    // It goes on behind the last whole run, whose two samples come again.
    home.ok("calibrate four.onnx --data data.npz --samples 8 -o part.json");
    assert!(read("part.json").get("repeated").is_none());
    home.ok("calibrate four.onnx --data data.npz --resume -o part.json");
    assert_eq!(read("part.json")["tensors"], four["tensors"]);

    let ran = home.json("quantize four.onnx --data data.npz --measure=no -o int8.onnx");
    assert_eq!((&ran["samples"], &ran["batch"], &ran["error"]["samples"]), (&10.into(), &4.into(), &10.into()));
    assert!(ran["warnings"].to_string().contains("2 samples were run again"), "{ran}");
    let scores = &ran["error"]["float"];
    assert_eq!(*scores, home.json("eval free.onnx --data data.npz")["scores"], "the two are in no metric");
    let about = home.ok("inspect int8.onnx").stdout;
    assert!(about.contains("10 samples of data.npz, 2 of them again"), "{about}");
    home.ok("quantize four.onnx --data data.npz --approach weight-only --measure=no -o int4.onnx");
    home.ok("quantize four.onnx --data data.npz --scheme quantizeml --measure=no -o fixed.onnx");
    home.ok("bench four.onnx int8.onnx --runs 2 --warmup 1");
    home.ok("compare four.onnx int8.onnx --data data.npz --min-sqnr 20");
    home.ok("analyze int8.onnx four.onnx --data data.npz");
    home.ok("explain four.onnx product --data data.npz");
}

#[test]
fn tells_outputs_that_do_not_show_their_samples() {
    let home = home();
    // [12, 4] from [4, 3, 4]: a multiple of the batch is no proof, because the file says so whatever comes in.
    let ran = home.run("run hard.onnx --data data.npz -o out.npz").expect(2);
    assert!(ran.stderr.contains("output \"z\"") && ran.stderr.contains("[12, 4]"), "{}", ran.text());
    assert!(ran.stderr.contains("2 samples of the last run") && ran.stderr.contains("--samples"), "{}", ran.text());
    assert!(!home.files().contains(&"out.npz".to_owned()));
    home.ok("run hard.onnx --data data.npz --samples 8 -o out.npz");
    assert_eq!(array(&home, "out.npz", "y", 2).0, [8, 6]);
    let ran = home.ok("compare hard.onnx hard.onnx --data data.npz");
    assert!(ran.stderr.contains("do not show which part"), "{}", ran.text());
    home.ok("eval hard.onnx --data data.npz --samples 8");
}

#[test]
fn refuses_a_batch_that_the_file_contradicts() {
    let home = home();
    for (line, parts) in [
        ("run four.onnx --data data.npz --batch 3 -o o.npz", ["--batch 3", "fixed at 4", "f32[4, 3, 4]"]),
        ("eval one.onnx --data data.npz --batch 8", ["--batch 8", "fixed at 1", "\"x\""]),
        ("calibrate four.onnx --data data.npz --batch 8 -o o.json", ["--batch 8", "fixed at 4", "leave --batch out"]),
        ("quantize four.onnx --data data.npz --batch 8 -o o.onnx", ["--batch 8", "fixed at 4", "leave --batch out"]),
        ("compare four.onnx four.onnx --data data.npz --batch 2", ["--batch 2", "fixed at 4", "leave --batch out"]),
        ("bench four.onnx --batch 2", ["--batch 2", "fixed at 4", "four.onnx"]),
        ("run free.onnx --data data.npz --batch 0 -o o.npz", ["--batch", "at least 1", ""]),
        ("run free.onnx --data data.npz --batch-axis z=1 -o o.npz", ["no input \"z\"", "help: it has x, p", ""]),
        ("run free.onnx --data data.npz --batch-axis x=3 -o o.npz", ["--batch-axis x=3", "axes count from 0", ""]),
        ("run free.onnx --data data.npz --batch-axis x=a -o o.npz", ["\"a\" is no axis", "none", ""]),
    ] {
        let ran = home.run(line).expect(2);
        parts.iter().for_each(|p| assert!(ran.stderr.contains(p), "{p}\n{}", ran.text()));
    }
    home.ok("run four.onnx --data data.npz --batch 4 -o o.npz");
}

/// `x [steps, samples, 5]` through an LSTM: the last state, `y [samples, 2]`, and all of them, `z [steps, samples, 3]`.
fn save_recurrent(path: &Path, samples: i64) {
    let mut g = GraphBuilder::new(17);
    let x = g.input("x", &[7, samples, 5]);
    let w = g.constant("w", wave(&[1, 12, 5], 0.4));
    let r = g.constant("r", wave(&[1, 12, 3], 1.1));
    let mut attrs = AttrMap::new();
    attrs.set("hidden_size", Attr::Int(3));
    let all = g.named("all", "", "LSTM", &[x, w, r], attrs).expect("LSTM");
    let axes = g.constant("axes", Tensor::vector(vec![1i64]));
    let z = g.named("z", "", "Squeeze", &[all, axes], AttrMap::new()).expect("Squeeze");
    let last = g.constant("last", Tensor::scalar(6i64));
    let state = g.named("state", "", "Gather", &[z, last], AttrMap::new()).expect("Gather");
    let v = g.constant("v", wave(&[3, 2], 1.7));
    let y = g.named("y", "", "MatMul", &[state, v], AttrMap::new()).expect("MatMul");
    g.output(y);
    g.output(z);
    save(g, path);
}

#[test]
fn knows_that_recurrent_networks_have_time_first() {
    let home = Home::new();
    for (name, samples) in [("free", -1), ("one", 1), ("four", 4), ("seven", 7)] {
        save_recurrent(&home.path(&format!("{name}.onnx")), samples);
    }
    save_arrays(&home.path("data.npz"), &[("x", wave(&[SAMPLES, 7, 5], 0.23))]);
    home.ok("run one.onnx --data data.npz -o one.npz");
    let (y, z) = (array(&home, "one.npz", "y", 2), array(&home, "one.npz", "z", 3));
    assert_eq!((&y.0[..], &z.0[..]), (&[SAMPLES, 2][..], &[SAMPLES, 7, 3][..]));
    for line in ["free.onnx", "free.onnx --batch 4", "four.onnx", "seven.onnx"] {
        home.ok(&format!("run {line} --data data.npz -o out.npz"));
        for (name, expected) in [("y", &y), ("z", &z)] {
            let found = array(&home, "out.npz", name, expected.0.len());
            assert_eq!(found.0, expected.0, "{line}");
            assert_close(&found.1, &expected.1);
        }
    }
    home.ok("quantize four.onnx --data data.npz --measure=no -o int8.onnx");
    home.ok("compare four.onnx int8.onnx --data data.npz --min-sqnr 15");
    // As the model takes it, all samples at once: what the axes are is said.
    save_arrays(&home.path("turned.npz"), &[("x", wave(&[7, SAMPLES, 5], 0.23))]);
    let ran = home.run("run free.onnx --data turned.npz -o o.npz").expect(2);
    assert!(
        ran.stderr.contains("lie along its axis 1") && ran.stderr.contains("axis 0 counts samples"),
        "{}",
        ran.text()
    );
    // Who knows better says so.
    save_arrays(&home.path("batch.npz"), &[("x", wave(&[7, 4, 5], 0.23))]);
    home.ok("run four.onnx --data batch.npz --batch-axis x=0 -o whole.npz");
}

#[test]
fn takes_inputs_that_all_samples_share() {
    let home = Home::new();
    let mut g = GraphBuilder::new(17);
    let (x, t, k) = (g.input("x", &[-1, 6]), g.input("t", &[6, 3]), g.input("k", &[]));
    let product = g.named("product", "", "MatMul", &[x, t], AttrMap::new()).expect("MatMul");
    let y = g.named("y", "", "Mul", &[product, k], AttrMap::new()).expect("Mul");
    g.output(y);
    save(g, &home.path("model.onnx"));
    let (x, table) = (wave(&[SAMPLES, 6], 0.3), wave(&[6, 3], 0.8));
    let data = |name: &str, t: Tensor, k: Tensor| {
        save_arrays(&home.path(name), &[("x", x.clone()), ("t", t), ("k", k)]);
    };
    let each = table.to_f32s().expect("floats").repeat(SAMPLES);
    data("shared.npz", table.clone(), Tensor::scalar(2f32));
    data("each.npz", Tensor::new([SAMPLES, 6, 3], each).expect("a tensor"), Tensor::vector(vec![2f32; SAMPLES]));
    data("differ.npz", table, Tensor::vector((0..SAMPLES).map(|i| i as f32).collect::<Vec<_>>()));
    home.ok("run model.onnx --data shared.npz -o shared_out.npz");
    for line in ["each.npz", "each.npz --batch 4", "shared.npz --batch 4"] {
        home.ok(&format!("run model.onnx --data {line} -o out.npz"));
        assert_close(&array(&home, "out.npz", "y", 2).1, &array(&home, "shared_out.npz", "y", 2).1);
    }
    home.ok("run model.onnx --data differ.npz -o out.npz");
    let ran = home.run("run model.onnx --data differ.npz --batch 4 -o no.npz").expect(2);
    assert!(ran.stderr.contains("\"k\" (f32[]) has no batch axis, but samples 0 and 1 differ"), "{}", ran.text());
}

#[test]
fn stacks_the_results_of_a_model_without_a_batch_axis() {
    let home = Home::new();
    let mut g = GraphBuilder::new(17);
    let x = g.input("x", &[5]);
    let w = g.constant("w", wave(&[5, 3], 0.7));
    let y = g.named("y", "", "MatMul", &[x, w], AttrMap::new()).expect("MatMul");
    g.output(y);
    save(g, &home.path("model.onnx"));
    save_arrays(&home.path("data.npz"), &[("x", wave(&[SAMPLES, 5], 0.3))]);
    home.ok("run model.onnx --data data.npz -o out.npz");
    assert_eq!(array(&home, "out.npz", "y", 2).0, [SAMPLES, 3]);
    home.ok("quantize model.onnx --data data.npz --measure=no -o int8.onnx");
    home.ok("compare model.onnx int8.onnx --data data.npz --min-sqnr 20");
    let ran = home.run("run model.onnx --data data.npz --batch 2 -o no.npz").expect(2);
    assert!(ran.stderr.contains("no input of the model has a batch axis: \"x\" is f32[5]"), "{}", ran.text());
}
