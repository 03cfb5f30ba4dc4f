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
fn leaves_cuts_and_mirrors_to_the_reference() {
    for (pads, mode) in [("[-1, 2]", "constant"), ("[1, 1]", "reflect"), ("[1, 1]", "edge")] {
        let body =
            format!("input %x: f32[4]\nconst %p: i64[2] = {pads}\n%y = Pad(%x, %p) {{mode=\"{mode}\"}}\noutput %y");
        assert_eq!(kernels(&graph(&body)), ["reference"], "{body}");
    }
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
