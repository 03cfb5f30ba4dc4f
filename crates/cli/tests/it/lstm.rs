//! LSTMs that `--approach dynamic` puts on integers, in ONNX Runtime and in our own runtime.

use std::path::Path;

use narrowbit_data::NpzWriter;
use narrowbit_import::onnx::{self, SaveOptions};
use narrowbit_ir::{Attr, AttrMap, interp};
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::{SplitMix64, Tensor};
use narrowbit_testkit::graphs::GraphBuilder;

use crate::home::{Home, python};

/// Steps, samples, features, units.
const T: usize = 12;
const B: usize = 3;
const I: usize = 20;
const H: usize = 24;

fn normal(shape: &[usize], deviation: f64, seed: u64) -> Tensor {
    let mut r = SplitMix64::new(seed);
    let n = shape.iter().product::<usize>();
    Tensor::new(shape, (0..n).map(|_| (deviation * r.normal()) as f32).collect::<Vec<_>>()).expect("a tensor")
}

/// Both directions of an LSTM with biases and first states; all hidden states, and the last states.
fn save_layer(path: &Path) {
    let mut g = GraphBuilder::new(17);
    let x = g.input("x", &[T as i64, B as i64, I as i64]);
    let w = g.constant("w", normal(&[2, 4 * H, I], 0.2, 1));
    let r = g.constant("r", normal(&[2, 4 * H, H], 0.2, 2));
    let b = g.constant("b", normal(&[2, 8 * H], 0.1, 3));
    let lens = g.constant("lens", Tensor::vector(vec![T as i32; B]));
    let (h, c) = (g.constant("h0", normal(&[2, B, H], 0.5, 4)), g.constant("c0", normal(&[2, B, H], 0.5, 5)));
    let mut attrs = AttrMap::new();
    attrs.set("hidden_size", Attr::Int(H as i64));
    attrs.set("direction", Attr::Str("bidirectional".into()));
    let y = g.named("y", "", "LSTM", &[x, w, r, b, lens, h, c], attrs).expect("LSTM");
    g.output(y);
    onnx::save(&g.model(), path, &SaveOptions::default()).expect("the model is saved");
}

fn save(path: &Path, name: &str, t: &Tensor) {
    let mut out = NpzWriter::create(path).expect("a file");
    out.add(name, t).expect("an array");
    out.finish().expect("a file");
}

fn sqnr(want: &Tensor, got: &Tensor) -> f64 {
    let (want, got) = (want.to_f64s().expect("floats"), got.to_f64s().expect("floats"));
    let noise: f64 = want.iter().zip(got.iter()).map(|(a, b)| (a - b).powi(2)).sum();
    10.0 * (want.iter().map(|a| a * a).sum::<f64>() / noise.max(1e-30)).log10()
}

/// The products of integers are the same; what differs are the last bits of sigmoid and tanh, and a hidden state here and there that
/// these let become another code, which is the noise of one rounding among thousands. Codes of 7 bits, because ONNX Runtime's
/// kernels saturate those of 8 on some processors.
#[test]
fn dynamic_lstms_run_alike_in_onnx_runtime_and_here() {
    let home = Home::new();
    save_layer(&home.path("model.onnx"));
    let x = normal(&[T, B, I], 1.0, 6);
    let float = onnx::load(home.path("model.onnx")).expect("the model").graph;
    let want = interp::run_tensors(&float, std::slice::from_ref(&x)).expect("it runs");
    for (flags, least) in [("", 30.0), ("--granularity tensor --per-tensor", 28.0), ("--weights uint8", 30.0)] {
        let line = format!("quantize model.onnx --approach dynamic {flags} --reduce-range");
        home.ok(&format!("{line} --target onnxruntime --no-check --measure=no -o out.onnx"));
        let graph = onnx::load(home.path("out.onnx")).expect("the file").graph;
        assert!(graph.nodes().any(|(_, n)| n.op.name() == "DynamicQuantizeLSTM"), "{flags}");
        let defined = interp::run_tensors(&graph, std::slice::from_ref(&x)).expect("the interpreter runs it");
        let session = Session::new(graph, Options { threads: 1, ..Options::default() }).expect("it is valid");
        let (ours, profile) = session.profile(std::slice::from_ref(&x)).expect("it runs");
        assert!(profile.rows.iter().any(|r| r.kernel == "lstm_int8"), "{:?}", profile.rows);
        let (near, loss) = (sqnr(&defined[0], &ours[0]), sqnr(&want[0], &ours[0]));
        println!("{flags}: {near:.1} dB beside the definition, {loss:.1} dB beside the float model");
        assert!(near > 60.0, "{flags}: {near} dB");
        assert!(loss > least, "{flags}: {loss} dB beside the float model");
        let folder = tempfile::tempdir().expect("a folder");
        save(&folder.path().join("inputs.npz"), "x", &x);
        save(&folder.path().join("ours.npz"), "t0", &ours[0]);
        let Some(ran) = python("target_run.py", &[&home.path("out.onnx"), folder.path()]) else { continue };
        let report = ran.expect(0).json();
        println!("{flags}: {report}");
        let there = report["onnxruntime"]["sqnr_db"].as_f64().unwrap_or(-1e9);
        assert!(there > 60.0, "{flags}: {report}");
        // OpenVINO leaves out what the operator rounds, which the table says.
        let rounded = report["openvino"]["sqnr_db"].as_f64().is_some_and(|db| db > 55.0);
        assert!(!rounded, "{flags}: {report}");
    }
}

#[test]
fn lstms_stay_floats_where_a_target_or_the_settings_want_it() {
    let home = Home::new();
    save_layer(&home.path("model.onnx"));
    let has = |file: &str, op: &str| {
        let graph = onnx::load(home.path(file)).expect("the file").graph;
        graph.nodes().any(|(_, n)| n.op.name() == op)
    };
    let ran = home.ok("quantize model.onnx --approach dynamic --target openvino --measure=no -o out.onnx");
    assert!(ran.stdout.contains("adapted: LSTMs compute on floats, their weights in 8 bits"), "{}", ran.text());
    assert!(has("out.onnx", "LSTM") && has("out.onnx", "DequantizeLinear"));
    std::fs::write(home.path("float.toml"), "approach = \"dynamic\"\n[dynamic]\nlstm = \"float\"\n").expect("a file");
    let ran = home.ok("quantize model.onnx -c float.toml --measure=no -o float.onnx");
    assert!(
        ran.stderr.contains("\"y\" (LSTM), computes on floats") || ran.stdout.contains("(LSTM), computes on floats")
    );
    assert!(has("float.onnx", "LSTM") && !has("float.onnx", "DynamicQuantizeLSTM"));
    home.ok("quantize model.onnx --approach dynamic --measure=no -o int.onnx");
    assert!(has("int.onnx", "DynamicQuantizeLSTM"));
}
