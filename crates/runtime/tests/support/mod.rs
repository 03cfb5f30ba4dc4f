//! Graphs of quantized operators in text form, and their results on kernels and on the interpreter.

#![allow(dead_code)] // Each test uses a part.

use std::fmt::Display;

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::{DType, Tensor};

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    pub fn unit(&mut self) -> f32 {
        (self.next() >> 7) as f32 / (1u32 << 23) as f32 - 1.0
    }
}

pub fn list<T: Display>(n: usize, item: impl FnMut(usize) -> T) -> String {
    let items: Vec<String> = (0..n).map(item).map(|v| v.to_string()).collect();
    format!("[{}]", items.join(", "))
}

/// A constant of random codes.
pub fn codes(name: &str, dtype: &str, shape: &[usize], seed: u64) -> String {
    let mut random = Random(seed);
    let low = if dtype == "u8" { 0 } else { -128 };
    let values = list(shape.iter().product(), |_| (random.next() % 256) as i32 + low);
    format!("const %{name}: {dtype}{shape:?} = {values}\n")
}

/// Constants of one scale and zero point.
pub fn scalar(name: &str, dtype: &str, scale: f32, zero: i32) -> String {
    format!("const %{name}_s: f32[] = [{scale}]\n const %{name}_z: {dtype}[] = [{zero}]\n")
}

/// Constants of a scale and zero point per channel; zero points are 0 where `spread` is 0.
pub fn channels(name: &str, dtype: &str, n: usize, middle: i32, spread: i32) -> String {
    let scales = list(n, |i| 0.002 + 0.0007 * (i % 5) as f32);
    let zeros = list(n, |i| middle + if spread == 0 { 0 } else { i as i32 % spread });
    format!("const %{name}_s: f32[{n}] = {scales}\n const %{name}_z: {dtype}[{n}] = {zeros}\n")
}

pub fn graph(inputs: &str, body: &str, outputs: &str) -> Graph {
    let text = format!("graph \"g\" {{\n{inputs}\n{body}\n{outputs}\n}}");
    text::parse_graph(&text, &Registry, 20).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

pub fn samples(graph: &Graph) -> Vec<Tensor> {
    let mut random = Random(7);
    let tensor = |&v| {
        let ty = graph.value(v).ty.tensor().expect("a tensor");
        let (shape, dtype) = (ty.concrete_shape().expect("a known shape"), ty.dtype.expect("a known type"));
        let len: usize = shape.iter().product();
        match dtype {
            DType::F32 => Tensor::new(shape, (0..len).map(|_| random.unit()).collect::<Vec<f32>>()),
            DType::Bool => Tensor::from_bools(shape, (0..len).map(|_| random.next() < 1 << 30).collect()),
            _ => {
                let bytes = dtype.byte_len(len).expect("it fits");
                Tensor::from_bytes(dtype, shape, (0..bytes).map(|_| random.next() as u8).collect::<Vec<u8>>())
            }
        }
        .expect("the length fits")
    };
    graph.inputs().iter().map(tensor).collect()
}

pub fn session(graph: &Graph, threads: usize) -> Session {
    Session::new(graph.clone(), Options { threads, ..Options::default() }).expect("the graph is valid")
}

/// Runs a graph; its kernels are all but `reference`, those of `expected` among them, and threads make no difference.
#[track_caller]
pub fn run(graph: &Graph, expected: &[&str]) -> (Tensor, Tensor) {
    let inputs = samples(graph);
    let (out, profile) = session(graph, 1).profile(&inputs).expect("it runs");
    let kernels: Vec<&str> = profile.rows.iter().map(|r| r.kernel.as_str()).collect();
    for k in expected {
        assert!(kernels.iter().any(|name| name.starts_with(k)), "no {k}: {kernels:?}");
    }
    let slow = ["reference", "dequantize_linear", "gemm_f32", "panel_f32", "conv_f32"];
    if !expected.is_empty() {
        assert!(!kernels.iter().any(|k| slow.iter().any(|s| k.starts_with(s))), "{kernels:?}");
    }
    for threads in [2, 4] {
        let again = session(graph, threads).run(&inputs).expect("it runs");
        assert_eq!(again[0].bytes(), out[0].bytes(), "{threads} threads");
    }
    let want = interp::run_tensors(graph, &inputs).expect("it runs on the interpreter");
    assert_eq!((out[0].dtype(), out[0].shape()), (want[0].dtype(), want[0].shape()));
    (out[0].clone(), want[0].clone())
}

/// The operators' own results, bit by bit: an exact sum, multiplied and added to in the same order.
#[track_caller]
pub fn assert_same_bits(graph: &Graph, expected: &[&str]) {
    let (got, want) = run(graph, expected);
    assert_eq!(got.bytes(), want.bytes());
}

/// The operators' own results, many different codes.
#[track_caller]
pub fn assert_same_codes(graph: &Graph, expected: &[&str]) {
    let (got, want) = run(graph, expected);
    assert_eq!(got.bytes(), want.bytes());
    let distinct: std::collections::BTreeSet<u8> = got.bytes().iter().copied().collect();
    assert!(distinct.len() > 8, "the test data exercises only {} codes", distinct.len());
}

/// Asserts `|got − want| ≤ tolerance · max(1, |want|)`, and NaN in the same places.
#[track_caller]
pub fn assert_close(got: &Tensor, want: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let (got, want) = (got.to_f32s().expect("floats"), want.to_f32s().expect("floats"));
    let near = |a: f32, b: f32| a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= tolerance * b.abs().max(1.0);
    let far = got.iter().zip(want.iter()).position(|(&a, &b)| !near(a, b));
    assert!(far.is_none(), "{what}: {:?}", far.map(|i| (i, got[i], want[i])));
}

/// Runs on all outputs, with each of some numbers of threads, on a kernel of that name.
#[track_caller]
pub fn check(graph: &Graph, inputs: &[Tensor], kernel: &str, tolerance: f32, what: &str) {
    let (_, profile) = session(graph, 1).profile(inputs).expect("it runs");
    let kernels: Vec<&str> = profile.rows.iter().map(|r| r.kernel.as_str()).collect();
    assert!(kernels.contains(&kernel) && !kernels.contains(&"reference"), "{what}: {kernels:?}");
    let want = interp::run_tensors(graph, inputs).expect("it runs on the interpreter");
    let one = session(graph, 1).run(inputs).expect("it runs");
    let three = session(graph, 3).run(inputs).expect("it runs");
    for ((a, b), want) in one.iter().zip(&three).zip(&want) {
        assert_close(a, want, tolerance, what);
        assert_eq!(a.bytes(), b.bytes(), "{what}: threads");
    }
}
