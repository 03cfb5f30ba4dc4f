//! Pad gives the bits of the reference operator, in every layout and width.

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::{DType, Tensor};

fn graph(body: &str) -> Graph {
    let text = format!("graph \"g\" {{\n{body}\n}}");
    text::parse_graph(&text, &Registry, 18).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The names of a graph's kernels; its result has the interpreter's bits.
#[track_caller]
fn kernels(graph: &Graph) -> Vec<String> {
    let ty = graph.value(graph.inputs()[0]).ty.tensor().expect("a tensor");
    let (shape, dtype) = (ty.concrete_shape().expect("a known shape"), ty.dtype.expect("a known type"));
    let len: usize = shape.iter().product();
    let x = match dtype {
        DType::F32 => Tensor::new(shape, (0..len).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect::<Vec<f32>>()),
        _ => Tensor::from_bytes(dtype, shape, (0..len * dtype.bits() / 8).map(|i| (i * 37) as u8).collect::<Vec<u8>>()),
    };
    let x = [x.expect("the length fits")];
    let want = interp::run_tensors(graph, &x).expect("it runs on the interpreter");
    let session = Session::new(graph.clone(), Options::default()).expect("it is valid");
    let (out, profile) = session.profile(&x).expect("it runs");
    assert_eq!((out[0].shape(), out[0].bytes()), (want[0].shape(), want[0].bytes()));
    profile.rows.iter().map(|r| r.kernel.clone()).collect()
}

#[test]
fn pads_with_any_value_on_chosen_axes() {
    for (dtype, value) in [("f32", "const %v: f32[] = [1.5]\n"), ("i64", "const %v: i64[1] = [7]\n"), ("u8", "")] {
        let v = if value.is_empty() { "_" } else { "%v" };
        for (pads, axes) in [
            ("const %p: i64[6] = [0, 1, 2, 0, 3, 0]\n", ""),
            ("const %p: i64[4] = [1, 0, 2, 5]\nconst %a: i64[2] = [-1, 0]\n", ", %a"),
        ] {
            let body = format!("input %x: {dtype}[2, 3, 4]\n{value}{pads}%y = Pad(%x, %p, {v}{axes})\noutput %y");
            assert_eq!(kernels(&graph(&body)), ["pad"], "{body}");
        }
    }
}

#[test]
fn cuts_off_mirrors_repeats_and_wraps() {
    for (pads, mode) in [("[-1, 2]", "constant"), ("[3, 1]", "reflect"), ("[9, 1]", "edge"), ("[5, -1]", "wrap")] {
        for dtype in ["f32", "u8", "i64", "i16"] {
            let body = format!(
                "input %x: {dtype}[3, 4, 2]\nconst %p: i64[2] = {pads}\nconst %a: i64[1] = [1]\n\
                 %y = Pad(%x, %p, _, %a) {{mode=\"{mode}\"}}\noutput %y"
            );
            assert_eq!(kernels(&graph(&body)), ["pad"], "{body}");
        }
    }
}

#[test]
fn reads_a_value_that_another_step_makes() {
    let body = "input %x: f32[2, 3]\nconst %p: i64[4] = [0, 1, 0, 2]\nconst %o: i64[2] = [0, 1]\n\
                %v = ReduceMax(%x, %o) {keepdims=0}\n%y = Pad(%x, %p, %v)\noutput %y";
    assert!(kernels(&graph(body)).contains(&"pad".to_owned()));
}

/// Copies of codes are codes: nothing is dequantized on the way, and what is rounded behind a Pad is rounded before it.
#[test]
fn mirrors_codes_of_quantized_values() {
    let head = "input %x: f32[1, 2, 9]\nconst %s: f32[] = [0.02]\nconst %z: u8[] = [100]\n\
                const %p: i64[6] = [0, 0, 3, 0, 0, 2]\n";
    let between = "%q = QuantizeLinear(%x, %s, %z)\n%d = DequantizeLinear(%q, %s, %z)\n\
                   %a = Pad(%d, %p) {mode=\"reflect\"}\n%y = QuantizeLinear(%a, %s, %z)\noutput %y";
    assert_eq!(kernels(&graph(&format!("{head}{between}"))), ["quantize_linear", "pad"]);
    let behind = "%n = Neg(%x)\n%a = Pad(%n, %p) {mode=\"edge\"}\n%y = QuantizeLinear(%a, %s, %z)\noutput %y";
    assert_eq!(kernels(&graph(&format!("{head}{behind}"))), ["unary_f32", "quantize_linear", "pad"]);
}

/// Zeros around quantized values are their zero point; another value need not be one of their codes.
#[test]
fn pads_codes_with_their_zero_point() {
    for (value, codes) in [("_", true), ("%v", false)] {
        let body = format!(
            "input %x: f32[1, 2, 3, 3]\nconst %s: f32[] = [0.02]\nconst %z: u8[] = [100]\nconst %v: f32[] = [0.37]\n\
             const %p: i64[8] = [0, 0, 1, 1, 0, 0, 2, 2]\n%q = QuantizeLinear(%x, %s, %z)\n\
             %d = DequantizeLinear(%q, %s, %z)\n%a = Pad(%d, %p, {value})\n%y = QuantizeLinear(%a, %s, %z)\noutput %y"
        );
        let names = kernels(&graph(&body));
        assert_eq!(names.contains(&"dequantize_linear".to_owned()), !codes, "{names:?}");
        assert!(names.contains(&"pad".to_owned()));
    }
}
