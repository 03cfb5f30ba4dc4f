//! Resize and Upsample give the bits of the reference operators, in every layout and type that has a kernel.

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::{DType, Tensor};

fn graph(opset: i64, body: &str) -> Graph {
    let text = format!("graph \"g\" {{\n{body}\n}}");
    text::parse_graph(&text, &Registry, opset).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn samples(graph: &Graph) -> Vec<Tensor> {
    let mut state = 7u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u32
    };
    let tensor = |&v| {
        let ty = graph.value(v).ty.tensor().expect("a tensor");
        let (shape, dtype) = (ty.concrete_shape().expect("a known shape"), ty.dtype.expect("a known type"));
        let len: usize = shape.iter().product();
        match dtype {
            DType::F32 => Tensor::new(shape, (0..len).map(|_| random() as f32 / 1e9 - 1.0).collect::<Vec<f32>>()),
            _ => Tensor::from_bytes(
                dtype,
                shape,
                (0..len * dtype.bits() / 8).map(|_| random() as u8).collect::<Vec<u8>>(),
            ),
        }
        .expect("the length fits")
    };
    graph.inputs().iter().map(tensor).collect()
}

/// Runs a graph and gives the names of its kernels; the result has the interpreter's bits on any number of threads.
#[track_caller]
fn kernels(graph: &Graph) -> Vec<String> {
    let inputs = samples(graph);
    let want = interp::run_tensors(graph, &inputs).expect("it runs on the interpreter");
    let mut names = Vec::new();
    for threads in [1, 3] {
        let options = Options { threads, ..Options::default() };
        let session = Session::new(graph.clone(), options).expect("the graph is valid");
        let (out, profile) = session.profile(&inputs).expect("it runs");
        assert_eq!((out[0].dtype(), out[0].shape()), (want[0].dtype(), want[0].shape()));
        assert_eq!(out[0].bytes(), want[0].bytes(), "{threads} threads, {:?}", profile.rows);
        names = profile.rows.iter().map(|r| r.kernel.clone()).collect();
    }
    names
}

/// All rules that leave axes of scale 1 alone, whatever the rounding.
const COORDINATES: [&str; 5] =
    ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"];

#[test]
fn takes_every_nearest_rule_by_scales_and_sizes() {
    for coordinates in COORDINATES {
        for nearest in ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"] {
            for input in [
                "const %s: f32[4] = [1.0, 1.0, 2.0, 2.0]\n%y = Resize(%x, _, %s)",
                "const %s: f32[4] = [1.0, 1.0, 0.6, 1.7]\n%y = Resize(%x, _, %s)",
                "const %s: i64[4] = [2, 3, 13, 4]\n%y = Resize(%x, _, _, %s)",
            ] {
                let attrs = format!("coordinate_transformation_mode=\"{coordinates}\", nearest_mode=\"{nearest}\"");
                let body = format!("input %x: f32[2, 3, 5, 7]\n{input} {{{attrs}}}\noutput %y");
                assert_eq!(kernels(&graph(19, &body)), ["resize_nearest"], "{body}");
            }
        }
    }
}

#[test]
fn mixes_linearly_and_cubically_bit_by_bit() {
    for dtype in ["f32", "u8", "i8"] {
        for coordinates in COORDINATES {
            for (mode, extra) in
                [("linear", ""), ("cubic", ""), ("linear", ", antialias=1"), ("cubic", ", exclude_outside=1")]
            {
                for scales in ["2.0, 2.0", "0.6, 1.7", "1.5, 0.4", "1.0, 3.0", "0.5, 1.0"] {
                    let attrs = format!("mode=\"{mode}\", coordinate_transformation_mode=\"{coordinates}\"{extra}");
                    let body = format!(
                        "input %x: {dtype}[2, 3, 5, 7]\nconst %s: f32[4] = [1.0, 1.0, {scales}]\n\
                         %y = Resize(%x, _, %s) {{{attrs}}}\noutput %y"
                    );
                    assert_eq!(kernels(&graph(19, &body)), [format!("resize_{dtype}")], "{body}");
                }
            }
        }
    }
}

#[test]
fn resizes_any_two_neighbouring_axes() {
    for (shape, scales) in [
        ("[2, 5, 6]", "1.0, 1.0, 2.5"),
        ("[2, 5, 6]", "1.0, 2.0, 1.0"),
        ("[1, 4, 5, 3]", "1.0, 2.0, 1.5, 1.0"),
        ("[3, 4]", "2.0, 0.5"),
        ("[4]", "3.0"),
        ("[2, 3, 4, 5, 6]", "1.0, 1.0, 1.0, 2.0, 2.0"),
        ("[2, 2, 3]", "1.0, 1.0, 1.0"),
    ] {
        let rank = scales.split(',').count();
        for (dtype, mode) in [("f32", "nearest"), ("f32", "linear"), ("i64", "nearest"), ("i16", "nearest")] {
            let body = format!(
                "input %x: {dtype}{shape}\nconst %s: f32[{rank}] = [{scales}]\n\
                 %y = Resize(%x, _, %s) {{mode=\"{mode}\"}}\noutput %y"
            );
            let names = kernels(&graph(13, &body));
            // Where nothing changes, nothing is mixed.
            let same = mode == "linear" && scales.split(", ").all(|s| s == "1.0");
            assert!(names.iter().all(|n| n != "reference" && (n == "copy") == same), "{names:?} {body}");
        }
    }
}

#[test]
fn upsamples_as_the_old_operator() {
    for (opset, mode) in [(9, "nearest"), (9, "linear"), (10, "nearest")] {
        let op = if opset == 9 { "Upsample" } else { "Resize" };
        let body = format!(
            "input %x: f32[1, 3, 5, 4]\nconst %s: f32[4] = [1.0, 1.0, 2.0, 3.0]\n%y = {op}(%x, %s) {{mode=\"{mode}\"}}\noutput %y"
        );
        assert!(!kernels(&graph(opset, &body)).contains(&"reference".to_owned()), "{body}");
    }
}

/// Between quantized convolutions a nearest Resize moves codes, channels last.
#[test]
fn resizes_codes_between_convolutions_in_their_layout() {
    let pair = |v: &str| {
        format!(
            "const %{v}_s: f32[] = [0.02]\nconst %{v}_z: u8[] = [128]\n%{v}_q = QuantizeLinear(%{v}, %{v}_s, %{v}_z)\n\
             %{v}_d = DequantizeLinear(%{v}_q, %{v}_s, %{v}_z)\n"
        )
    };
    let weights = |w: &str| {
        format!(
            "const %{w}_f: f32[8, 8, 3, 3] = random(3)\nconst %{w}_s: f32[] = [0.01]\nconst %{w}_z: i8[] = [0]\n\
             %{w}_q = QuantizeLinear(%{w}_f, %{w}_s, %{w}_z)\n%{w}_d = DequantizeLinear(%{w}_q, %{w}_s, %{w}_z)\n"
        )
    };
    let body = format!(
        "input %x: f32[1, 8, 6, 5]\n{}{}{}%c = Conv(%x_d, %u_d) {{pads=[1, 1, 1, 1]}}\n{}\
         const %two: f32[4] = [1.0, 1.0, 2.0, 2.0]\n\
         %r = Resize(%c_d, _, %two) {{coordinate_transformation_mode=\"asymmetric\", nearest_mode=\"floor\"}}\n\
         %r_q = QuantizeLinear(%r, %c_s, %c_z)\n%r_d = DequantizeLinear(%r_q, %c_s, %c_z)\n\
         %y = Conv(%r_d, %w_d) {{pads=[1, 1, 1, 1]}}\n{}output %y_q",
        pair("x"),
        weights("u"),
        weights("w"),
        pair("c"),
        pair("y"),
    );
    let graph = graph(13, &body);
    let session = Session::new(graph.clone(), Options::default()).expect("the graph is valid");
    let (_, profile) = session.profile(&samples(&graph)).expect("it runs");
    let names: Vec<&str> = profile.rows.iter().map(|r| r.kernel.as_str()).collect();
    let at = names.iter().position(|n| *n == "resize_nearest").expect("it has a kernel");
    assert!(names[at - 1].starts_with("panel") && names[at + 1].starts_with("panel"), "{names:?}");
}

/// This rule lies half an element further: with some roundings along the channels as well.
#[test]
fn takes_the_old_rule_of_tensorflow_where_it_leaves_the_channels_alone() {
    for (nearest, kernel) in
        [("round_prefer_floor", "resize_nearest"), ("floor", "resize_nearest"), ("ceil", "reference")]
    {
        let body = format!(
            "input %x: f32[1, 3, 4, 5]\nconst %s: f32[4] = [1.0, 1.0, 2.0, 1.5]\n%y = Resize(%x, _, %s) \
             {{coordinate_transformation_mode=\"tf_half_pixel_for_nn\", nearest_mode=\"{nearest}\"}}\noutput %y"
        );
        assert_eq!(kernels(&graph(11, &body)), [kernel], "{nearest}");
    }
}

/// A region of interest reaches beyond the input, and a value stands there: no kernel knows it.
#[test]
fn leaves_regions_to_the_reference() {
    for mode in ["nearest", "linear"] {
        let body = format!(
            "input %x: f32[1, 1, 4, 4]\nconst %r: f32[8] = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.5, 1.5]\n\
             const %s: i64[4] = [1, 1, 3, 3]\n%y = Resize(%x, %r, _, %s) {{mode=\"{mode}\", \
             coordinate_transformation_mode=\"tf_crop_and_resize\", extrapolation_value=9.0}}\noutput %y"
        );
        assert_eq!(kernels(&graph(13, &body)), ["reference"]);
    }
}
