//! The quantized examples in ONNX Runtime: it makes the same integers, and its integer kernels take them.

use std::collections::BTreeMap;
use std::path::Path;

use narrowbit_data::{DataOptions, Dataset, InputSpec, NpzWriter, Preprocess};
use narrowbit_import::onnx;
use narrowbit_ir::{Datum, EvalCx, Graph, ValueId, interp};
use narrowbit_tensor::{DType, Tensor};
use serde_json::Value;

use crate::home::{EXAMPLES, Home, preprocess, python};

/// The samples that a model is compared on.
pub fn samples(graph: &Graph, data: &Path, case: &Path, n: usize) -> Vec<(String, Tensor)> {
    let spec = |&v| {
        let value = graph.value(v);
        let ty = value.ty.tensor().expect("a tensor");
        let shape: Vec<Option<usize>> = ty.shape.iter().flatten().map(|d| d.as_usize()).collect();
        InputSpec::new(value.name.clone(), ty.dtype.unwrap_or(DType::F32), shape)
    };
    let options = DataOptions { preprocess: preprocessing(case), ..DataOptions::default() };
    let data = Dataset::open(data, &options).expect("the data");
    let specs: Vec<InputSpec> = graph.inputs().iter().map(spec).collect();
    data.bind(&specs).expect("data that fit").batch(0..n).expect("samples").inputs
}

/// The preprocessing of a case's images, where it has images.
fn preprocessing(case: &Path) -> Preprocess {
    let text = std::fs::read_to_string(case).expect("case.json");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    let images = value["preprocess"].is_object();
    if images { Preprocess::from_json(&text).expect("preprocessing") } else { Preprocess::default() }
}

/// Runs a quantized model on the reference interpreter and in ONNX Runtime; what `ort_agree.py` reports of both.
pub fn agreement(home: &Home, model: &str, data: &Path, case: &Path, n: usize) -> Option<Value> {
    narrowbit_testkit::paths::python()?;
    let graph = onnx::load(home.path(model)).expect("the quantized model").graph;
    let inputs = samples(&graph, data, case, n);
    let mut ours: BTreeMap<String, Tensor> = BTreeMap::new();
    let fed: Vec<Datum> = inputs.iter().map(|(_, t)| Datum::Tensor(t.clone())).collect();
    let outputs = interp::run_observed(&graph, &fed, &mut |_, v, d| {
        let Datum::Tensor(t) = d else { return };
        if matches!(t.dtype(), DType::I8 | DType::U8) {
            ours.insert(graph.value(v).name.clone(), t.clone());
        }
    })
    .expect("the interpreter runs it");
    for (&v, d) in graph.outputs().iter().zip(outputs) {
        let Datum::Tensor(t) = d else { panic!("an output is no tensor") };
        ours.insert(graph.value(v).name.clone(), t);
    }
    let folder = tempfile::tempdir().expect("a folder");
    save(&folder.path().join("inputs.npz"), inputs.iter().map(|(n, t)| (n.clone(), t)));
    save(&folder.path().join("ours.npz"), ours.values().enumerate().map(|(i, t)| (format!("t{i}"), t)));
    let names: Vec<&String> = ours.keys().collect();
    std::fs::write(folder.path().join("names.json"), serde_json::to_string(&names).expect("JSON")).expect("a file");
    let mut report = python("ort_agree.py", &[&home.path(model), folder.path()])?.expect(0).json();
    report["forced"] = forced(&graph, &inputs, &theirs(folder.path()));
    Some(report)
}

/// ONNX Runtime's integer tensors, as `ort_agree.py` has written them.
fn theirs(folder: &Path) -> BTreeMap<String, Tensor> {
    let text = std::fs::read(folder.join("theirs.json")).expect("their names");
    let described: Vec<Value> = serde_json::from_slice(&text).expect("JSON");
    let tensor = |(i, d): (usize, &Value)| {
        let shape: Vec<usize> = serde_json::from_value(d["shape"].clone()).expect("a shape");
        let bytes = std::fs::read(folder.join(format!("{i}.bin"))).expect("a tensor");
        let t = match d["signed"] == true {
            true => Tensor::new(shape, bytes.into_iter().map(u8::cast_signed).collect::<Vec<_>>()),
            false => Tensor::new(shape, bytes),
        };
        (d["name"].as_str().expect("a name").to_owned(), t.expect("a tensor"))
    };
    described.iter().enumerate().map(tensor).collect()
}

/// Runs the graph operator by operator and goes on with ONNX Runtime's codes wherever there are some: what is
/// compared is what the operators between two quantized tensors make of the same codes. Over the whole graph, a
/// value on a rounding border that falls to the other side moves many others behind it.
fn forced(graph: &Graph, inputs: &[(String, Tensor)], theirs: &BTreeMap<String, Tensor>) -> Value {
    let mut made: BTreeMap<ValueId, Datum> = BTreeMap::new();
    graph.inputs().iter().zip(inputs).for_each(|(&v, (_, t))| drop(made.insert(v, Datum::Tensor(t.clone()))));
    let (mut values, mut different, mut most, mut worst) = (0usize, 0usize, 0i32, String::new());
    for (_, node) in graph.nodes() {
        let constant = |v: &ValueId| graph.constant(*v).map(|t| Datum::Tensor(t.clone()));
        let held: Vec<Option<Datum>> =
            node.inputs.iter().map(|v| v.as_ref().and_then(|v| made.get(v).cloned().or_else(|| constant(v)))).collect();
        let refs: Vec<Option<&Datum>> = held.iter().map(Option::as_ref).collect();
        let outs = node.op.eval(&EvalCx::new(&refs, node.outputs.len())).expect("the operator runs");
        for (v, ours) in node.outputs.iter().zip(outs) {
            let Some(v) = *v else { continue };
            let name = &graph.value(v).name;
            let codes = matches!(ours.dtype(), DType::I8 | DType::U8).then(|| theirs.get(name)).flatten();
            if let Some(t) = codes {
                let (a, b) = (ours.to_f64s().expect("codes"), t.to_f64s().expect("codes"));
                let steps = a.iter().zip(b.iter()).map(|(a, b)| (a - b).abs() as i32);
                values += a.len();
                different += steps.clone().filter(|&s| s > 0).count();
                let here = steps.max().unwrap_or(0);
                if here > most {
                    (most, worst) = (here, name.clone());
                }
            }
            made.insert(v, Datum::Tensor(codes.cloned().unwrap_or(ours)));
        }
    }
    serde_json::json!({"values": values, "different": different, "most_steps": most, "worst_tensor": worst})
}

fn save<'a>(path: &Path, arrays: impl Iterator<Item = (String, &'a Tensor)>) {
    let mut out = NpzWriter::create(path).expect("a file");
    arrays.for_each(|(name, t)| out.add(name, t).expect("an array"));
    out.finish().expect("a file");
}

/// Checks that at least 99.9 % of the codes that the operators make of the same codes are equal and none more than
/// one step apart; and that over the whole graph what rounding has moved stays small.
#[track_caller]
pub fn assert_agrees(name: &str, report: &Value) {
    let forced = &report["forced"];
    println!(
        "{name}: {} tensors; of the same codes {} of {} differ, by {} at most; over the whole graph {} of {}, by {}, first {}",
        report["tensors"],
        forced["different"],
        forced["values"],
        forced["most_steps"],
        report["different"],
        report["values"],
        report["most_steps"],
        report["first"]
    );
    let number = |v: &Value| v.as_f64().unwrap_or_else(|| panic!("{name}: {report}"));
    assert!(number(&forced["values"]) > 0.0 && report["values"] == forced["values"], "{name}: {report}");
    assert!(report["missing"].as_array().is_some_and(Vec::is_empty), "{name}: {report}");
    assert!(number(&forced["different"]) <= 0.001 * number(&forced["values"]), "{name}: {report}");
    assert!(number(&forced["most_steps"]) <= 1.0, "{name}: {report}");
    // One value on a border in the first of six attention blocks has moved 3 % of all codes behind it.
    assert!(number(&report["different"]) <= 0.05 * number(&report["values"]), "{name}: {report}");
    // … and left 32 dB of a MiniLM whose ranges leave padding out, of whose 3 million codes 2 differ where both are
    // given the same (`forced`).
    assert!(number(&report["plain_sqnr_db"]) > 30.0, "{name}: {report}");
}

/// The number of nodes of an operator in the model that ONNX Runtime has optimized.
fn count(report: &Value, op: &str) -> u64 {
    report["operators"][op].as_u64().unwrap_or(0)
}

fn quantized(example: &str, flags: &str) -> Option<Value> {
    let home = Home::with_example(example);
    let p = preprocess(example);
    home.ok(&format!("quantize model.onnx --data calib.npz {p} {flags} -o int8.onnx"));
    agreement(&home, "int8.onnx", &home.path("test.npz"), &home.path("case.json"), 32)
}

#[test]
fn makes_the_integers_of_onnx_runtime() {
    for example in EXAMPLES {
        for flags in ["", "--activations int8 --symmetric", "--per-tensor --asymmetric-weights --weights uint8"] {
            let Some(report) = quantized(example, flags) else { return };
            assert_agrees(&format!("{example} {flags}"), &report);
        }
    }
}

#[test]
fn makes_the_integers_of_onnx_runtime_from_integer_operators() {
    if narrowbit_testkit::paths::peers_saturate() {
        return;
    }
    for example in EXAMPLES {
        let Some(report) = quantized(example, "--format qoperator") else { return };
        assert_agrees(example, &report);
    }
}

#[test]
fn keeps_the_fusions_of_onnx_runtime() {
    if narrowbit_testkit::paths::peers_saturate() {
        return;
    }
    let Some(cnn) = quantized("digits-cnn", "--target onnxruntime") else { return };
    for op in ["QLinearConv", "QLinearAdd", "QGemm"] {
        assert!(count(&cnn, op) > 0, "no {op}: {}", cnn["operators"]);
    }
    for op in ["Conv", "FusedConv", "Gemm", "Add"] {
        assert_eq!(count(&cnn, op), 0, "a float {op}: {}", cnn["operators"]);
    }
    let Some(mlp) = quantized("diabetes-mlp", "") else { return };
    assert_eq!((count(&mlp, "QGemm") + count(&mlp, "QLinearMatMul"), count(&mlp, "Gemm")), (3, 0), "{mlp}");
    let Some(vit) = quantized("digits-vit", "--target onnxruntime") else { return };
    let fused = count(&vit, "QLinearMatMul") + count(&vit, "MatMulIntegerToFloat") + count(&vit, "QGemm");
    // Four products with weights in each of three layers, and the head.
    assert!(fused >= 13, "{vit}");
    assert_eq!(count(&vit, "Gemm") + count(&vit, "MatMul"), 0, "a float product: {vit}");
    for (name, report) in [("cnn", cnn), ("mlp", mlp), ("vit", vit)] {
        assert_eq!(report["dequantized_weights"], 0, "{name}: weights become floats at each run: {report}");
        // Its integer kernels round at other places: a step here and there.
        assert!(report["optimized_sqnr_db"].as_f64() > Some(25.0), "{name}: {report}");
    }
}
