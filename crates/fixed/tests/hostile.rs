//! Damaged quantized graphs, whose text still parses, become a program or an error: no panic, bounded memory; and what has
//! a program runs.

use std::panic::{AssertUnwindSafe, catch_unwind};

use narrowbit_fixed::{FixedModel, Options, Rounding, Shapes, lower};
use narrowbit_ir::{Graph, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_tensor::{DType, Tensor};
use narrowbit_testkit::hostile;
use narrowbit_testkit::random::Random;

const ROUNDS: usize = 10_000;
const MEMORY: usize = 1 << 30;
/// Larger inputs are lowered only.
const MOST_ELEMENTS: usize = 4096;

/// Small graphs with all that lowering knows.
const SEEDS: [&str; 7] = [
    r#"input %x: f32[n, 2, 4, 4] const %s: f32[] = [0.0625] const %t: f32[] = [0.25] const %z: i8[] = [0]
    const %w: i8[2, 2, 1, 1] = [3, -4, 127, 90] const %sw: f32[2] = [0.125, 0.046875] const %zw: i8[2] = [0, 0]
    const %b: i32[2] = [100, -7] const %sb: f32[2] = [0.0078125, 0.0029296875] const %zb: i32[2] = [0, 0]
    const %v: i8[2, 1, 3, 3] = [1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -2, -3, -4, -5, -6, -7, -8, -9]
    %q = QuantizeLinear(%x, %s, %z) %d = DequantizeLinear(%q, %s, %z) %dw = DequantizeLinear(%w, %sw, %zw) {axis=0}
    %db = DequantizeLinear(%b, %sb, %zb) {axis=0} %c = Conv(%d, %dw, %db) {pads=[0, 0, 0, 0], strides=[1, 1]} %r = Relu(%c)
    %q1 = QuantizeLinear(%r, %t, %z) %d1 = DequantizeLinear(%q1, %t, %z) %dv = DequantizeLinear(%v, %s, %z)
    %e = Conv(%d1, %dv) {group=2, pads=[1, 1, 1, 1], dilations=[1, 1]} %q2 = QuantizeLinear(%e, %t, %z)
    %d2 = DequantizeLinear(%q2, %t, %z) %a = Add(%d1, %d2) %qa = QuantizeLinear(%a, %t, %z)
    %da = DequantizeLinear(%qa, %t, %z) %p = MaxPool(%da) {kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0]}
    %g = GlobalAveragePool(%p) %qg = QuantizeLinear(%g, %s, %z) %y = DequantizeLinear(%qg, %s, %z) output %y output %qa"#,
    r#"input %x: f32[n, 4] const %s: f32[] = [0.03125] const %z: u8[] = [37] const %zo: i8[] = [-5]
    const %w: u8[4, 3] = [0, 255, 7, 9, 120, 121, 3, 4, 200, 1, 2, 99] const %sw: f32[3] = [0.5, 0.25, 0.75]
    const %zw: u8[3] = [120, 120, 120] const %lo: f32[] = [-0.5] const %hi: f32[] = [1.75] const %so: f32[] = [0.25]
    %q = QuantizeLinear(%x, %s, %z) %d = DequantizeLinear(%q, %s, %z) %dw = DequantizeLinear(%w, %sw, %zw) {axis=1}
    %m = MatMul(%d, %dw) %k = Clip(%m, %lo, %hi) %qk = QuantizeLinear(%k, %so, %zo) %dk = DequantizeLinear(%qk, %so, %zo)
    %h = HardSwish(%dk) {alpha=0.5} %qh = QuantizeLinear(%h, %so, %zo) %dh = DequantizeLinear(%qh, %so, %zo)
    %u = Mul(%dh, %dk) %qu = QuantizeLinear(%u, %so, %zo) %y = Softmax(%dk) {axis=1} output %y output %qu"#,
    r#"input %x: f32[n, 4, 4, 2] const %s: f32[] = [0.125] const %z: i8[] = [0] const %shape: i64[2] = [-1, 16]
    const %st: i64[1] = [1] const %en: i64[1] = [4] const %ax: i64[1] = [2] const %one: i64[1] = [1]
    const %pads: i64[8] = [0, 1, 0, 0, 0, 0, 0, 2] const %i: i64[2] = [1, 0]
    %q = QuantizeLinear(%x, %s, %z) %d = DequantizeLinear(%q, %s, %z) %t = Transpose(%d) {perm=[0, 3, 1, 2]}
    %l = Slice(%t, %st, %en, %ax, %one) %p = Pad(%l, %pads) %qp = QuantizeLinear(%p, %s, %z)
    %c = Concat(%t, %t) {axis=1} %e = DepthToSpace(%c) {blocksize=2} %qe = QuantizeLinear(%e, %s, %z)
    %j = Gather(%t, %i) {axis=1} %f = Reshape(%j, %shape) %qf = QuantizeLinear(%f, %s, %z)
    %o, %v = Split(%t) {axis=2, num_outputs=2} %k = AveragePool(%o) {kernel_shape=[2, 3], count_include_pad=1}
    %qk = QuantizeLinear(%k, %s, %z) %n = ReduceMean(%v) {axes=[2, 3], keepdims=1} %qn = QuantizeLinear(%n, %s, %z)
    output %qp output %qe output %qf output %qk output %qn"#,
    r#"input %x: f32[n, 2, 3, 3] const %s: f32[] = [0.0009765625] const %z: i16[] = [0] const %w: i16[2, 2, 2, 2] =
    [300, -300, 32767, -32768, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] const %so: f32[] = [0.5] const %up: f32[4] = [1, 1, 2, 2]
    %q = QuantizeLinear(%x, %s, %z) %d = DequantizeLinear(%q, %s, %z) %dw = DequantizeLinear(%w, %s, %z)
    %c = ConvTranspose(%d, %dw) {strides=[2, 2], pads=[1, 0, 0, 1], output_padding=[1, 0]} %qc = QuantizeLinear(%c, %so, %z)
    %dc = DequantizeLinear(%qc, %so, %z) %r = Resize(%dc, _, %up) {mode="nearest"} %b = Sub(%r, %r) %qb = QuantizeLinear(%b, %so, %z)
    output %qb"#,
    r#"input %x: f32[n, 2, 4, 4] const %s: f32[2] = [0.0625, 0.25] const %t: f32[] = [0.25] const %z: i8[2] = [0, 0] const %o: i8[] = [0]
    const %v: i8[2, 1, 3, 3] = [1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -2, -3, -4, -5, -6, -7, -8, -9] const %w: i8[2, 2, 1, 1] = [3, -4, 127, 90]
    const %most: f32[1, 2, 1, 1] = [7.9375, 31.75] const %least: f32[] = [-1.5] %q = QuantizeLinear(%x, %t, %o)
    %d = DequantizeLinear(%q, %t, %o) %dw = DequantizeLinear(%w, %t, %o) %c = Conv(%d, %dw) %m = Min(%c, %most) %k = Max(%m, %least)
    %q1 = QuantizeLinear(%k, %s, %z) {axis=1} %d1 = DequantizeLinear(%q1, %s, %z) {axis=1} %dv = DequantizeLinear(%v, %t, %o)
    %e = Conv(%d1, %dv) {group=2, pads=[1, 1, 1, 1]} %f = Conv(%d1, %dw) %a = Add(%e, %d1) %g = GlobalAveragePool(%a)
    %qa = QuantizeLinear(%a, %s, %z) {axis=1} %qf = QuantizeLinear(%f, %t, %o) %qg = QuantizeLinear(%g, %t, %o) output %qa output %qf output %qg"#,
    // A softmax of powers of two, written out, between two products of activations.
    r#"input %x: f32[n, 3, 4] const %s: f32[] = [0.125] const %z: i8[] = [0] const %two: f32[] = [2] const %ln: f32[] = [1.442695]
    const %up: f32[] = [1024] const %down: f32[] = [0.0009765625] const %ax: i64[1] = [-1] const %h: f32[] = [0.5]
    %q = QuantizeLinear(%x, %s, %z) %d = DequantizeLinear(%q, %s, %z) %t = Transpose(%d) {perm=[0, 2, 1]} %m = MatMul(%d, %t)
    %v = Mul(%m, %h) %f = Floor(%v) %g = ReduceMax(%f, %ax) {keepdims=1} %l = Sub(%f, %g) %e = Pow(%two, %l) %a = ReduceSum(%e, %ax) {keepdims=1}
    %b = Log(%a) %c = Mul(%b, %ln) %i = Round(%c) %j = Sub(%l, %i) %k = Pow(%two, %j) %n = Mul(%k, %up) %o = Floor(%n)
    %p = Mul(%o, %down) %r = MatMul(%p, %d) %u = QuantizeLinear(%r, %s, %z) output %u"#,
    // A normalization by the mean magnitude.
    r#"input %x: f32[n, 2, 4] const %s: f32[] = [0.25] const %z: i8[] = [0] const %zb: i32[] = [0] const %ax: i64[1] = [-1]
    const %g: i8[4] = [127, -3, 50, 0] const %sg: f32[] = [256] const %b: i32[4] = [100, -200, 3000, 0] const %sb: f32[] = [0.0009765625]
    const %w: f32[] = [0.00390625] %q = QuantizeLinear(%x, %s, %z) %d = DequantizeLinear(%q, %s, %z) %dg = DequantizeLinear(%g, %sg, %z)
    %db = DequantizeLinear(%b, %sb, %zb) %a = Abs(%d) %t = ReduceSum(%a, %ax) {keepdims=1} %c = Clip(%t, %s) %u = Div(%dg, %c)
    %i = Cast(%u) {to=6} %f = Cast(%i) {to=1} %m = Mul(%d, %f) %n = Mul(%m, %w) %r = Add(%n, %db) %y = QuantizeLinear(%r, %s, %z) output %y"#,
];

/// What stands where a number, a type or an operator stood.
const NUMBERS: [&str; 20] = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "16",
    "100",
    "127",
    "-128",
    "255",
    "40",
    "-2147483648",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "0.3",
    "1e-45",
    "3.4e38",
    "-0.5",
];
const TYPES: [&str; 10] = ["f32", "f16", "i8", "u8", "i16", "u16", "i32", "i64", "i4", "f8e4m3fn"];
const OPERATORS: [&str; 29] = [
    "QuantizeLinear",
    "DequantizeLinear",
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "Relu",
    "Clip",
    "Add",
    "Mul",
    "Sub",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "ReduceMean",
    "Reshape",
    "Transpose",
    "Concat",
    "Flatten",
    "Squeeze",
    "Sigmoid",
    "LeakyRelu",
    "Abs",
    "Floor",
    "Div",
    "Cast",
    "ReduceSum",
    "Max",
];

/// The text in words: names, numbers, and each other character by itself.
fn words(text: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut open = false;
    for c in text.chars() {
        let belongs = c.is_ascii_alphanumeric() || "%_.-".contains(c);
        match all.last_mut() {
            Some(last) if open && belongs => last.push(c),
            _ => all.push(c.into()),
        }
        open = belongs;
    }
    all
}

fn mutate(random: &mut Random) -> String {
    let mut all = words(SEEDS[random.below(SEEDS.len())]);
    let named: Vec<String> = all.iter().filter(|w| w.starts_with('%')).cloned().collect();
    for _ in 0..=random.below(3) {
        let at = random.below(all.len());
        let word = &mut all[at];
        if word.starts_with('%') {
            *word = named[random.below(named.len())].clone();
        } else if word.parse::<f64>().is_ok() {
            *word = NUMBERS[random.below(NUMBERS.len())].into();
        } else if DType::from_name(word).is_some() {
            *word = TYPES[random.below(TYPES.len())].into();
        } else if word.starts_with(|c: char| c.is_ascii_uppercase()) {
            *word = OPERATORS[random.below(OPERATORS.len())].into();
        } else if random.below(4) == 0 {
            word.clear();
        }
    }
    all.concat()
}

/// Shapes for the inputs, whose free extents are `n`.
fn shapes(graph: &Graph, n: usize) -> Option<Shapes> {
    let of = |v| {
        let dims = graph.value(v).ty.tensor()?.shape.as_ref()?;
        Some((
            v,
            dims.iter()
                .map(|d| d.as_known().map_or(Some(n), |d| usize::try_from(d).ok()))
                .collect::<Option<Vec<_>>>()?,
        ))
    };
    graph.inputs().iter().map(|&v| of(v)).collect()
}

/// Lowers a graph in several ways, and runs it where that works; whether it does.
fn exercise(graph: &Graph, exec: &Exec) -> bool {
    let mut works = false;
    for (rounding, buffer_bits, multiplier_bits) in [(Rounding::HalfEven, None, 24), (Rounding::HalfUp, Some(12), 8)] {
        let options = Options { rounding, buffer_bits, multiplier_bits };
        for n in [0, 2] {
            let Some(shapes) = shapes(graph, n) else { return works };
            let lowered = lower(graph, &shapes, options, exec).is_ok();
            let small = |s: &Vec<usize>| {
                s.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_some_and(|n| n <= MOST_ELEMENTS)
            };
            if !shapes.values().all(small) {
                continue;
            }
            let input = |v| {
                let dtype = graph.value(v).ty.tensor().and_then(|t| t.dtype).unwrap_or(DType::F32);
                let len: usize = shapes[&v].iter().product();
                let values = (0..len).map(|i| (i * 37 % 101) as f32 * 0.05 - 2.5).collect();
                Tensor::from_f32s(dtype, shapes[&v].clone(), values).ok()
            };
            let Some(inputs) = graph.inputs().iter().map(|&v| input(v)).collect::<Option<Vec<_>>>() else { continue };
            let model = FixedModel::new(graph.clone(), options, Exec::new(Isa::detect(), 1));
            works |= model.run(&inputs).is_ok() && lowered;
        }
    }
    works
}

fn parse(body: &str) -> Option<Graph> {
    text::parse_model(&format!("model opset=21 graph \"g\" {{\n{body}\n}}"), &Registry).ok().map(|m| m.graph)
}

#[test]
fn lowers_and_runs_the_seeds() {
    let exec = Exec::new(Isa::detect(), 1);
    for seed in SEEDS {
        assert!(parse(seed).is_some_and(|g| exercise(&g, &exec)), "{seed}");
        assert_eq!(words(seed).concat(), seed);
    }
}

#[test]
fn refuses_windows_without_values_and_extents_that_a_zero_hides() {
    let exec = Exec::new(Isa::detect(), 1);
    let of = |shape: &str, n: usize| {
        let body = format!(
            "input %x: f32[{shape}] const %s: f32[] = [0.5] const %z: i8[] = [0] %q = QuantizeLinear(%x, %s, %z)
            %d = DequantizeLinear(%q, %s, %z) %g = GlobalAveragePool(%d) %y = QuantizeLinear(%g, %s, %z) output %y"
        );
        let graph = parse(&body).expect("a graph");
        let shapes = shapes(&graph, n).expect("shapes");
        lower(&graph, &shapes, Options::default(), &exec).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(of("1, 2, n, 4", 3), Ok(()));
    assert!(of("1, 2, n, 4", 0).is_err_and(|e| e.contains("holds no value")));
    assert!(of("n, 4294967296, 4, 4", 0).is_err_and(|e| e.contains("too large")));
}

#[test]
fn survives_damaged_graphs() {
    let (mut random, exec) = (Random::new(29), Exec::new(Isa::detect(), 1));
    let (mut read, mut lowered) = (0, 0);
    for _ in 0..ROUNDS {
        let body = mutate(&mut random);
        let Some(graph) = parse(&body) else { continue };
        read += 1;
        match catch_unwind(AssertUnwindSafe(|| exercise(&graph, &exec))) {
            Ok(works) => lowered += usize::from(works),
            Err(_) => panic!("this graph makes a panic:\n{body}"),
        }
    }
    assert!(read > ROUNDS / 10 && lowered > ROUNDS / 100, "of {ROUNDS} mutations {read} are read, {lowered} run");
    hostile::assert_memory_below(MEMORY);
}
