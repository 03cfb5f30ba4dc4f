//! Convolutions around a depthwise one run band by band: the same bits as one after the other.

mod support;

use narrowbit_ir::Graph;
use narrowbit_kernels::Isa;
use narrowbit_runtime::{Float, Options, Session};
use narrowbit_tensor::Tensor;
use support::{channels, codes, graph, samples, scalar};

/// Threads to which no block of the tests has rows enough.
const MANY: usize = 40;

/// The output of a graph, and the kernel that ran most convolutions at once.
fn run(graph: &Graph, threads: usize, float: Float, observe: &[&str]) -> (Tensor, String, usize) {
    let observe = observe.iter().map(|v| graph.value_named(v).expect("it is there")).collect();
    let session = Session::new(graph.clone(), Options { threads, observe }).expect("the graph is valid");
    let session = session.with_float(float).expect("the machine has it");
    let (mut out, profile) = session.profile(&samples(graph)).expect("it runs");
    let row = profile.rows.iter().max_by_key(|r| r.kernel.matches('→').count()).expect("something ran");
    assert!(row.nodes.first().is_none_or(|first| *first == row.node));
    (out.remove(0), row.kernel.clone(), row.nodes.len())
}

/// Runs a graph as `stages` convolutions of `nodes` nodes at once, and one by one.
#[track_caller]
fn same(graph: &Graph, stages: usize, nodes: usize, float: Float) {
    let (want, alone, _) = run(graph, MANY, float, &[]);
    assert!(!alone.contains('→'), "{alone}");
    for threads in [1, 2, 3] {
        let (got, kernel, count) = run(graph, threads, float, &[]);
        assert_eq!((kernel.split('→').count(), count), (stages, nodes), "{kernel}");
        assert!(got.bytes() == want.bytes(), "{threads} threads, {kernel}");
    }
}

fn constants(c: usize, wide: usize, window: usize) -> String {
    format!(
        "const %v: f32[{wide}, {c}, 1, 1] = random(1)\n const %w: f32[{wide}, 1, {window}, {window}] = random(2)\n\
         const %z: f32[{c}, {wide}, 1, 1] = random(3)\n const %b: f32[{wide}] = random(4)\n\
         const %zero: f32[] = [0.0]\n const %six: f32[] = [0.5]\n"
    )
}

/// A block with a sum at its end, of three images.
fn residual() -> Graph {
    let body = constants(8, 40, 3)
        + "%a = Conv(%x, %v, %b)\n %c = Clip(%a, %zero, %six)\n\
           %d = Conv(%c, %w) {pads=[1, 1, 1, 1], group=40}\n %e = Clip(%d, %zero, %six)\n\
           %f = Conv(%e, %z)\n %y = Add(%f, %x)";
    graph("input %x: f32[3, 8, 61, 53]", &body, "output %y")
}

#[test]
fn makes_blocks_with_a_sum_at_their_end() {
    same(&residual(), 3, 6, Float::F32);
    // What somebody looks at is made.
    let (want, _, _) = run(&residual(), 2, Float::F32, &[]);
    for (value, stages) in [("c", 2), ("e", 2)] {
        let (got, kernel, _) = run(&residual(), 2, Float::F32, &[value]);
        assert_eq!(kernel.split('→').count(), stages, "{value}: {kernel}");
        assert!(got.bytes() == want.bytes(), "{value}");
    }
}

#[test]
fn makes_steps_of_two_windows_that_hang_over_and_functions_behind_them() {
    let body = constants(7, 37, 5)
        + "%a = Conv(%x, %v, %b)\n %s = Sigmoid(%a)\n %c = Mul(%a, %s)\n\
           %d = Conv(%c, %w) {pads=[0, 2, 3, 1], strides=[2, 2], group=37}\n %e = HardSwish(%d)\n %y = Conv(%e, %z)";
    // What the last convolution reads is small.
    same(&graph("input %x: f32[1, 7, 94, 71]", &body, "output %y"), 2, 5, Float::F32);
}

#[test]
fn makes_dilated_windows_behind_a_first_layer() {
    let body = "const %v: f32[36, 3, 3, 3] = random(1)\n const %w: f32[36, 1, 3, 3] = random(2)\n\
                const %z: f32[9, 36, 1, 1] = random(3)\n\
                %a = Conv(%x, %v) {pads=[1, 1, 1, 1], strides=[2, 2]}\n %c = Relu(%a)\n\
                %d = Conv(%c, %w) {pads=[4, 4, 4, 4], dilations=[4, 4], group=36}\n %y = Conv(%d, %z)";
    same(&graph("input %x: f32[1, 3, 131, 127]", body, "output %y"), 3, 4, Float::F32);
}

#[test]
fn leaves_alone_what_others_read_too() {
    let body = constants(8, 40, 3)
        + "%c = Conv(%x, %v, %b)\n %d = Conv(%c, %w) {pads=[1, 1, 1, 1], group=40}\n %f = Conv(%d, %z)\n\
           %g = Conv(%c, %z)\n %y = Add(%f, %g)";
    let g = graph("input %x: f32[1, 8, 61, 53]", &body, "output %y\noutput %d");
    let (_, kernel, _) = run(&g, 1, Float::F32, &[]);
    assert!(!kernel.contains('→'), "{kernel}");
}

#[test]
fn makes_blocks_of_integers() {
    let (narrow, wide) = (8, 40);
    let quantized = |name: &str, shape: &[usize], seed: u64| {
        codes(&format!("{name}q"), "i8", shape, seed) + &channels(name, "i8", shape[0], 0, 0)
    };
    let body = quantized("v", &[wide, narrow, 1, 1], 1)
        + &quantized("w", &[wide, 1, 3, 3], 2)
        + &quantized("z", &[narrow, wide, 1, 1], 3)
        + &["x", "a", "d", "y"].map(|name| scalar(name, "u8", 0.03, 117)).concat()
        + "%xf = DequantizeLinear(%x, %x_s, %x_z)\n\
           %vf = DequantizeLinear(%vq, %v_s, %v_z) {axis=0}\n %wf = DequantizeLinear(%wq, %w_s, %w_z) {axis=0}\n\
           %zf = DequantizeLinear(%zq, %z_s, %z_z) {axis=0}\n\
           %a = Conv(%xf, %vf)\n %ar = Relu(%a)\n %aq = QuantizeLinear(%ar, %a_s, %a_z)\n\
           %af = DequantizeLinear(%aq, %a_s, %a_z)\n\
           %d = Conv(%af, %wf) {pads=[1, 1, 1, 1], group=40}\n %dq = QuantizeLinear(%d, %d_s, %d_z)\n\
           %df = DequantizeLinear(%dq, %d_s, %d_z)\n\
           %e = Conv(%df, %zf)\n %f = Add(%e, %xf)\n %y = QuantizeLinear(%f, %y_s, %y_z)";
    let g = graph("input %x: u8[2, 8, 117, 109]", &body, "output %y");
    let (_, kernel, _) = run(&g, 1, Float::F32, &[]);
    assert_eq!(kernel.matches('→').count(), 2, "{kernel}");
    let (want, _, _) = run(&g, MANY, Float::F32, &[]);
    for threads in [1, 2, 3] {
        assert!(run(&g, threads, Float::F32, &[]).0.bytes() == want.bytes(), "{threads} threads");
    }
}

#[test]
fn makes_blocks_of_bfloat16() {
    if Isa::from_env().expect("a tier of this machine").multiplies_bf16() {
        let body = constants(8, 40, 3)
            + "%a = Conv(%x, %v, %b)\n %c = Clip(%a, %zero, %six)\n\
               %d = Conv(%c, %w) {pads=[1, 1, 1, 1], group=40}\n %e = Clip(%d, %zero, %six)\n %f = Conv(%e, %z)\n\
               %y = Conv(%f, %v)";
        same(&graph("input %x: f32[1, 8, 81, 83]", &body, "output %y"), 3, 5, Float::Bf16);
    }
}
