//! Scatters, gathers by tuples and running sums have the bits of the reference operators, on kernels.

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::{DType, Tensor};

fn graph(body: &str) -> Graph {
    let text = format!("graph \"g\" {{\n{body}\n}}");
    text::parse_graph(&text, &Registry, 18).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Values for every input: floats of many sizes, indices from −2 to 1, other elements as they come.
fn inputs(graph: &Graph) -> Vec<Tensor> {
    let input = |&v| {
        let ty = graph.value(v).ty.tensor().expect("a tensor");
        let (shape, dtype) = (ty.concrete_shape().expect("a known shape"), ty.dtype.expect("a known type"));
        let len: usize = shape.iter().product();
        let index = |i: usize| ((i * 2654435761) >> 7 & 3) as i64 - 2;
        match dtype {
            DType::F32 => Tensor::new(shape, (0..len).map(|i| (i * 37 % 101) as f32 / 7.0 - 6.0).collect::<Vec<f32>>()),
            DType::I64 => Tensor::new(shape, (0..len).map(index).collect::<Vec<i64>>()),
            DType::I32 => Tensor::new(shape, (0..len).map(|i| index(i) as i32).collect::<Vec<i32>>()),
            _ => Tensor::from_bytes(
                dtype,
                shape,
                (0..len * dtype.bits() / 8).map(|i| (i * 37) as u8).collect::<Vec<_>>(),
            ),
        }
        .expect("the length fits")
    };
    graph.inputs().iter().map(input).collect()
}

/// The names of a graph's kernels; its result has the interpreter's bits on one and on three threads.
#[track_caller]
fn kernels(body: &str) -> Vec<String> {
    let graph = graph(body);
    let x = inputs(&graph);
    let want = interp::run_tensors(&graph, &x).expect("it runs on the interpreter");
    let mut names = Vec::new();
    for threads in [1, 3] {
        let options = Options { threads, ..Options::default() };
        let session = Session::new(graph.clone(), options).expect("it is valid");
        let (out, profile) = session.profile(&x).expect("it runs");
        assert_eq!((out[0].shape(), out[0].bytes()), (want[0].shape(), want[0].bytes()), "{body}");
        names = profile.rows.iter().map(|r| r.kernel.clone()).collect();
    }
    names
}

#[test]
fn scatters_rows_of_tuples() {
    for (dtype, reduction) in [
        ("f32", "none"),
        ("f32", "add"),
        ("f32", "mul"),
        ("f32", "max"),
        ("f32", "min"),
        ("u8", "none"),
        ("i64", "none"),
    ] {
        for (data, index, updates) in [
            ("[2, 3, 40]", "i64[70, 1]", "[70, 3, 40]"),
            ("[2, 2, 40]", "i64[2, 35, 2]", "[2, 35, 40]"),
            ("[3, 2]", "i64[9, 2]", "[9]"),
            ("[2, 2500]", "i64[60, 1]", "[60, 2500]"),
        ] {
            let body = format!(
                "input %x: {dtype}{data}\ninput %i: {index}\ninput %u: {dtype}{updates}\n\
                 %y = ScatterND(%x, %i, %u) {{reduction=\"{reduction}\"}}\noutput %y"
            );
            assert_eq!(kernels(&body), ["scatter_rows"], "{body}");
        }
    }
}

#[test]
fn scatters_elements_and_rows_of_equal_indices() {
    for (dtype, reduction) in [("f32", "none"), ("f32", "add"), ("f32", "max"), ("u8", "none")] {
        for (data, updates, axis) in [
            ("[2, 3, 4]", "[6, 3, 4]", 0),
            ("[3, 2, 4]", "[2, 5, 3]", 1),
            ("[3, 3, 4]", "[3, 3, 9]", -1),
            ("[5]", "[9]", 0),
        ] {
            let body = format!(
                "input %x: {dtype}{data}\ninput %i: i32{updates}\ninput %u: {dtype}{updates}\n\
                 %y = ScatterElements(%x, %i, %u) {{axis={axis}, reduction=\"{reduction}\"}}\noutput %y"
            );
            assert!(kernels(&body)[0].starts_with("scatter"), "{body}");
        }
    }
}

/// Graph networks repeat a column of indices for each feature: the column itself is read.
#[test]
fn reads_the_column_that_an_expand_repeats() {
    for (axis, column, shape) in [(0, "[300, 1]", "[300, 64]"), (1, "[2, 30, 1]", "[2, 30, 64]")] {
        let data = if axis == 0 { "[50, 64]" } else { "[2, 5, 64]" };
        let rank = axis + 2;
        let body = format!(
            "input %x: f32{data}\ninput %i: i64{column}\ninput %u: f32{shape}\nconst %s: i64[{rank}] = {shape}\n\
             %e = Expand(%i, %s)\n%y = ScatterElements(%x, %e, %u) {{axis={axis}, reduction=\"add\"}}\noutput %y"
        );
        assert_eq!(kernels(&body), ["scatter_rows"], "{body}");
        // Another reader of the column's rows keeps them.
        let body = body.replace("output %y", "output %y\noutput %e");
        assert_eq!(kernels(&body), ["expand", "scatter_rows"], "{body}");
    }
}

#[test]
fn scatters_equal_and_unequal_rows_of_one_plan() {
    let body = "input %x: f32[3, 4]\ninput %i: i64[2, 4]\ninput %u: f32[2, 4]\n\
                %y = ScatterElements(%x, %i, %u) {axis=0, reduction=\"add\"}\noutput %y";
    let graph = graph(body);
    let session = Session::new(graph.clone(), Options::default()).expect("it is valid");
    let [x, _, u] = inputs(&graph).try_into().expect("three inputs");
    for indices in [vec![2i64, 2, 2, 2, -3, -3, -3, -3], vec![2, 2, 2, 1, 0, 0, 0, 0]] {
        let i = Tensor::new([2, 4], indices).expect("eight elements");
        let all = [x.clone(), i, u.clone()];
        let want = interp::run_tensors(&graph, &all).expect("it runs on the interpreter");
        assert_eq!(session.run(&all).expect("it runs")[0].bytes(), want[0].bytes());
    }
    for index in [3i64, -4, i64::MIN, i64::MAX] {
        let i = Tensor::new([2, 4], vec![index; 8]).expect("eight elements");
        assert!(session.run(&[x.clone(), i, u.clone()]).is_err(), "{index}");
    }
}

#[test]
fn gathers_rows_of_tuples() {
    for dtype in ["f32", "u8", "i64"] {
        for (data, index, batch) in
            [("[2, 3, 40]", "i64[70, 1]", 0), ("[2, 2, 4]", "i32[2, 5, 2]", 0), ("[2, 3, 4]", "i64[2, 5, 1]", 1)]
        {
            let body = format!(
                "input %x: {dtype}{data}\ninput %i: {index}\n%y = GatherND(%x, %i) {{batch_dims={batch}}}\noutput %y"
            );
            assert_eq!(kernels(&body), ["gather_rows"], "{body}");
        }
    }
}

#[test]
fn runs_sums_along_any_axis() {
    for (axis, attrs) in [(0, ""), (1, " {exclusive=1}"), (-1, " {reverse=1}"), (2, " {exclusive=1, reverse=1}")] {
        let body =
            format!("input %x: f32[2, 30, 70]\nconst %a: i64[] = [{axis}]\n%y = CumSum(%x, %a){attrs}\noutput %y");
        assert_eq!(kernels(&body), ["running_sum_f32"], "{body}");
    }
    // Over what a step made, whose memory it takes.
    let body = "input %x: f32[30, 70]\nconst %a: i64[] = [0]\n%n = Neg(%x)\n%y = CumSum(%n, %a)\noutput %y";
    assert_eq!(kernels(body), ["unary_f32", "running_sum_f32"]);
}
