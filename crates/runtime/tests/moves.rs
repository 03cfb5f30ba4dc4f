//! Operators that only move elements, or name the place of one, give the operator's own bits in every layout and type.

mod support;

use narrowbit_ir::interp;

use support::{graph, samples, session};

/// The names of the kernels; the results have the interpreter's bits on any number of threads.
#[track_caller]
fn kernels(inputs: &str, body: &str) -> Vec<String> {
    let graph = graph(inputs, body, "output %y");
    let inputs = samples(&graph);
    let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
    let mut names = Vec::new();
    for threads in [1, 3] {
        let (out, profile) = session(&graph, threads).profile(&inputs).expect("it runs");
        assert_eq!((out[0].dtype(), out[0].shape()), (want[0].dtype(), want[0].shape()), "{body}");
        assert_eq!(out[0].bytes(), want[0].bytes(), "{body}: {threads} threads");
        names = profile.rows.iter().map(|r| r.kernel.clone()).collect();
    }
    names
}

#[test]
fn moves_channels_to_pixels_and_back() {
    for dtype in ["f32", "u8", "i64"] {
        for mode in ["DCR", "CRD"] {
            for (block, shape) in [(2, "[2, 20, 5, 7]"), (3, "[1, 18, 1, 4]"), (1, "[1, 3, 2, 2]")] {
                let input = format!("input %x: {dtype}{shape}");
                let deep = format!("%y = DepthToSpace(%x) {{blocksize={block}, mode=\"{mode}\"}}");
                assert_eq!(kernels(&input, &deep), ["depth_to_space"]);
            }
            for (block, shape) in [(2, "[2, 3, 10, 14]"), (3, "[1, 5, 3, 9]")] {
                let input = format!("input %x: {dtype}{shape}");
                let shallow = format!("%y = SpaceToDepth(%x) {{blocksize={block}, mode=\"{mode}\"}}");
                assert_eq!(kernels(&input, &shallow), ["space_to_depth"]);
            }
        }
    }
}

#[test]
fn moves_channels_to_pixels_where_channels_are_last() {
    for dtype in ["f32", "u8"] {
        for mode in ["DCR", "CRD"] {
            for op in ["DepthToSpace", "SpaceToDepth"] {
                let body = format!(
                    "%p = MaxPool(%x) {{kernel_shape=[3, 3], pads=[1, 1, 1, 1]}}\n\
                     %d = {op}(%p) {{blocksize=2, mode=\"{mode}\"}}\n%y = MaxPool(%d) {{kernel_shape=[2, 2]}}"
                );
                let ran = kernels(&format!("input %x: {dtype}[2, 20, 8, 14]"), &body);
                let changes = ran.iter().filter(|k| *k == "change_layout").count();
                assert!(changes <= 2 && !ran.iter().any(|k| k == "reference"), "{ran:?}");
            }
        }
    }
}

#[test]
fn repeats_along_all_axes() {
    for dtype in ["f32", "u8", "i64"] {
        for (shape, repeats) in [("[3, 4]", "[2, 3]"), ("[2, 1, 5]", "[1, 4, 1]"), ("[2, 3, 2, 2]", "[2, 1, 3, 2]")] {
            let rank = shape.matches(',').count() + 1;
            let body = format!("const %r: i64[{rank}] = {repeats}\n%y = Tile(%x, %r)");
            assert_eq!(kernels(&format!("input %x: {dtype}{shape}"), &body), ["tile"]);
        }
    }
}

#[test]
fn names_the_place_of_the_extreme() {
    for op in ["ArgMax", "ArgMin"] {
        for attrs in ["", ", keepdims=0", ", select_last_index=1"] {
            for axis in [0, 1, -1] {
                let body = format!("%y = {op}(%x) {{axis={axis}{attrs}}}");
                assert_eq!(kernels("input %x: f32[3, 21, 5, 40]", &body), ["arg_extreme_f32"]);
            }
        }
    }
    // The classes of the pixels of a network whose channels are last.
    let body = "%p = MaxPool(%x) {kernel_shape=[3, 3]}\n%y = ArgMax(%p) {axis=1}";
    let ran = kernels("input %x: f32[2, 21, 9, 14]", body);
    assert!(
        ran.iter().filter(|k| *k == "change_layout").count() <= 1 && !ran.iter().any(|k| k == "reference"),
        "{ran:?}"
    );
}
