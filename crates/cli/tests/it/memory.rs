//! A model that needs more memory than there is ends in an error that names the node, not in an abort.

use narrowbit_import::onnx::{self, SaveOptions};
use narrowbit_ir::AttrMap;
use narrowbit_tensor::Tensor;
use narrowbit_testkit::graphs::GraphBuilder;

use crate::home::{Home, binary, code};
use crate::models;

/// Runs a command that may have so many KiB of addresses.
#[cfg(unix)]
fn run_within(home: &Home, kib: usize, line: &str) -> (i32, String) {
    let script = format!("ulimit -v {kib}; exec {} {line}", binary());
    let out = home.command("sh").args(["-c", &script]).output().expect("a shell");
    (code(out.status), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// `x [n, 4]`, doubled so many times along its last axis; `counted` makes the shape depend on what x holds.
fn save_doubling(home: &Home, times: usize, counted: bool) {
    let mut g = GraphBuilder::new(17);
    let mut y = g.input("x", &[-1, 4]);
    if counted {
        let places = g.named("places", "", "NonZero", &[y], AttrMap::default()).expect("NonZero");
        y = g.named("cast", "", "Cast", &[places], AttrMap::default().with("to", 1i64)).expect("Cast");
    }
    for i in 0..times {
        let axis = AttrMap::default().with("axis", 1i64);
        y = g.named(&format!("double_{i}"), "", "Concat", &[y, y], axis).expect("Concat");
    }
    g.output(y);
    onnx::save(&g.model(), home.path("model.onnx"), &SaveOptions::default()).expect("the model is saved");
    let x = Tensor::new([1, 4], vec![1f32; 4]).expect("a tensor");
    models::save_arrays(&home.path("x.npz"), &[("x", x)]);
}

#[cfg(unix)]
#[test]
fn names_the_node_that_there_is_no_memory_for() {
    // Compiled beforehand, and run operator by operator.
    for counted in [false, true] {
        let home = Home::new();
        save_doubling(&home, 26, counted);
        let (code, stderr) = run_within(&home, 600_000, "run model.onnx --threads 1 --data x.npz -o y.npz");
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("in node \"double_"), "the error names the node: {stderr}");
        assert!(
            stderr.contains(" GB, the result of this node") && stderr.contains("not that much memory left"),
            "{stderr}"
        );
        assert!(stderr.contains("help: "), "{stderr}");
        assert!(!home.files().contains(&"y.npz".to_string()), "nothing is left behind");
    }
}

#[cfg(unix)]
#[test]
fn names_the_node_whose_weights_can_not_be_packed() {
    let home = Home::new();
    let mut g = GraphBuilder::new(17);
    let x = g.input("x", &[-1, 4000]);
    let weight = Tensor::new([4000, 4000], vec![0.5f32; 16_000_000]).expect("a tensor");
    let w = g.constant("w", weight);
    let y = g.named("product", "", "MatMul", &[x, w], AttrMap::default()).expect("MatMul");
    g.output(y);
    onnx::save(&g.model(), home.path("model.onnx"), &SaveOptions::default()).expect("the model is saved");
    let x = Tensor::new([1, 4000], vec![1f32; 4000]).expect("a tensor");
    models::save_arrays(&home.path("x.npz"), &[("x", x)]);
    let (code, stderr) = run_within(&home, 230_000, "run model.onnx --threads 1 --data x.npz -o y.npz");
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("in node \"product\"") && stderr.contains("not that much memory left"), "{stderr}");
}

#[cfg(unix)]
#[test]
fn runs_what_memory_there_is_enough_for() {
    for counted in [false, true] {
        let home = Home::new();
        save_doubling(&home, 16, counted);
        let (code, stderr) = run_within(&home, 600_000, "run model.onnx --threads 1 --data x.npz -o y.npz");
        assert_eq!(code, 0, "{stderr}");
    }
}
