//! What users are told before they find out: registers that are too narrow, files that do not shrink, settings that nothing
//! heeds, commands that go on.

use narrowbit_data::NpzWriter;
use narrowbit_import::onnx::{self, SaveOptions};
use narrowbit_ir::AttrMap;
use narrowbit_tensor::{DType, Tensor};
use narrowbit_testkit::graphs::GraphBuilder;

use crate::home::{Home, preprocess};

fn save(home: &Home, name: &str, g: GraphBuilder) {
    onnx::save(&g.model(), home.path(name), &SaveOptions::default()).expect("the model is saved");
}

fn arrays(home: &Home, name: &str, arrays: &[(&str, Tensor)]) {
    let mut npz = NpzWriter::create(home.path(name)).expect("a file");
    arrays.iter().for_each(|(name, t)| npz.append(name, t).expect("an array"));
    npz.finish().expect("the file is written");
}

fn waves(shape: &[usize], seed: f32) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::new(shape, (0..n).map(|i| (i as f32 * 0.37 + seed).sin()).collect::<Vec<_>>()).expect("a tensor")
}

/// `x [n, 3, 8, 8] → Conv → Relu → y`, which holds no other product.
fn convolution(home: &Home) {
    let mut g = GraphBuilder::new(17);
    let x = g.input("x", &[-1, 3, 8, 8]);
    let w = g.constant("w", waves(&[16, 3, 3, 3], 0.5));
    let y = g.named("c", "", "Conv", &[x, w], AttrMap::default()).expect("Conv");
    let y = g.named("y", "", "Relu", &[y], AttrMap::default()).expect("Relu");
    g.output(y);
    save(home, "conv.onnx", g);
    arrays(home, "x.npz", &[("x", waves(&[8, 3, 8, 8], 1.0))]);
}

#[test]
fn tells_that_16_bits_do_not_fit_the_register() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    let line = format!("quantize model.onnx --data calib.npz {p} --scheme quantizeml --measure=no --no-check");
    let wide = home.ok(&format!("{line} -w 16 -a 16 -o wide.onnx")).stdout;
    assert!(wide.contains("may leave the register of 32"), "{wide}");
    let checked = home.run("check wide.onnx").expect(1).stdout;
    assert!(checked.contains("saturation possible"), "{checked}");
    let narrow = home.ok(&format!("{line} -o narrow.onnx")).stdout;
    assert!(!narrow.contains("register"), "{narrow}");
    let products = home.json("check narrow.onnx")["products"].as_u64().expect("a number");
    let proved = home.json("inspect --integer-only narrow.onnx")["rows"].as_array().expect("rows").clone();
    let proved = proved.iter().filter(|r| matches!(r["op"].as_str(), Some("Conv" | "Gemm" | "MatMul"))).count();
    assert_eq!(products as usize, proved, "check sees the products that the proof has");
}

#[test]
fn goes_on_with_the_settings_that_changed_the_graph() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    let said = home.ok(&format!("calibrate model.onnx --data calib.npz {p} --scheme vitis-dpu --samples 16 -o r.json"));
    let next = said.stdout.lines().find_map(|l| l.strip_prefix("next: narrowbit ")).expect("what is next").to_owned();
    assert!(next.contains("--scheme vitis-dpu"), "{next}");
    home.ok(&next);
    let other = home.run("quantize model.onnx --ranges r.json -o x.onnx").expect(2).stderr;
    assert!(other.contains("--scheme, --equalize"), "{other}");
}

#[test]
fn refuses_flags_that_would_change_nothing() {
    let home = Home::with_example("digits-cnn");
    let p = preprocess("digits-cnn");
    for flag in ["--statistic max", "--per-tensor-activations", "--cross-layer-equalization", "--mask image"] {
        let said = home.run(&format!("quantize model.onnx --data calib.npz {p} {flag} -o x.onnx")).expect(2).stderr;
        assert!(said.contains(flag.split(' ').next().expect("a flag")) && said.contains("help: "), "{flag}: {said}");
    }
    for flag in ["--seconds nan", "--seconds=-1", "--threads 99999999999"] {
        home.run(&format!("bench model.onnx {flag}")).expect(2);
    }
    home.run("insert-rescaling model.onnx -s 2 -o 1 -d model.onnx").expect(2);
}

#[test]
fn quantizes_dynamically_what_has_convolutions_alone() {
    let home = Home::new();
    convolution(&home);
    let said = home.ok("quantize conv.onnx --approach dynamic --data x.npz --measure=no -o q.onnx").stdout;
    assert!(said.contains("no products but convolutions") && said.contains("1 of 2 compute on integers"), "{said}");
    let refused = home.run("quantize conv.onnx --approach weight-only -o w.onnx").expect(2).stderr;
    assert!(refused.contains("MatMul, Gemm"), "{refused}");
}

#[test]
fn says_that_blank_samples_tell_nothing() {
    let home = Home::new();
    convolution(&home);
    arrays(&home, "blank.npz", &[("x", Tensor::zeros(DType::F32, [4, 3, 8, 8]).expect("a tensor"))]);
    let said = home.ok("quantize conv.onnx --data blank.npz --measure=no --no-check -o q.onnx").stdout;
    assert!(said.contains("input \"x\" had the same value everywhere"), "{said}");
    let said = home.ok("quantize conv.onnx --data x.npz --measure=no --no-check -o q.onnx").stdout;
    assert!(!said.contains("same value"), "{said}");
}

#[test]
fn compares_models_whose_inputs_have_other_floats() {
    let home = Home::new();
    convolution(&home);
    let said = home.ok("quantize conv.onnx --approach float16 --io-float16 --data x.npz --measure -o h.onnx").stdout;
    assert!(said.contains("SQNR") && said.contains("speed"), "{said}");
    home.ok("compare conv.onnx h.onnx --data x.npz");
    home.ok("compare h.onnx conv.onnx --data x.npz");
}

#[test]
fn runs_caches_that_begin_empty() {
    let home = Home::new();
    let mut g = GraphBuilder::new(17);
    let (new, past) = (g.input("new", &[-1, 2, 4]), g.input("past", &[-1, -2, 4]));
    let all = g.named("all", "", "Concat", &[past, new], AttrMap::new().with("axis", 1i64)).expect("Concat");
    let w = g.constant("w", waves(&[4, 4], 0.1));
    let y = g.named("y", "", "MatMul", &[all, w], AttrMap::default()).expect("MatMul");
    g.output(y);
    save(&home, "cache.onnx", g);
    for length in [0, 3] {
        let (new, past) = (waves(&[2, 2, 4], 0.3), waves(&[2, length, 4], 0.9));
        arrays(&home, "in.npz", &[("new", new), ("past", past)]);
        home.ok("run cache.onnx --data in.npz -o out.npz");
        home.ok("quantize cache.onnx --approach dynamic --data in.npz --measure=no -o q.onnx");
    }
}
