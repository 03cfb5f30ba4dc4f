//! Products with weights by blocks run on packed codes, and give what the operators say.

use std::fmt::Display;

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

struct Random(u64);

impl Random {
    fn below(&mut self, n: i32) -> i32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as i32 % n
    }
}

fn list<T: Display>(n: usize, item: impl FnMut(usize) -> T) -> String {
    let items: Vec<String> = (0..n).map(item).map(|v| v.to_string()).collect();
    format!("[{}]", items.join(", "))
}

fn constant(name: &str, dtype: &str, shape: &[usize], low: i32, high: i32) -> String {
    let mut random = Random(shape.len() as u64 + high as u64);
    let values = list(shape.iter().product(), |_| low + random.below(high - low));
    format!("const %{name}: {dtype}{shape:?} = {values}\n")
}

fn scales(name: &str, shape: &[usize]) -> String {
    format!("const %{name}: f32{shape:?} = {}\n", list(shape.iter().product(), |i| 0.01 + 0.003 * (i % 7) as f32))
}

fn graph(rows: usize, k: usize, body: &str) -> Graph {
    let text = format!("graph \"g\" {{\ninput %x: f32[{rows}, {k}]\n{body}\noutput %y\n}}");
    text::parse_graph(&text, &Registry, 24).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Runs on a kernel whose name starts with `kernel`; results differ from the interpreter's by `tolerance` of the largest.
fn check(graph: &Graph, kernel: &str, tolerance: f32) {
    check_rounding(graph, false, kernel, tolerance);
}

/// The same, in a session that may round rows.
fn check_rounding(graph: &Graph, rounds: bool, kernel: &str, tolerance: f32) {
    let shape = graph.value(graph.inputs()[0]).ty.tensor().and_then(|t| t.concrete_shape()).expect("a shape");
    let mut random = Random(3);
    let x: Vec<f32> = (0..shape.iter().product()).map(|_| random.below(2001) as f32 / 1000.0 - 1.0).collect();
    let x = Tensor::new(shape, x).expect("as many elements");
    let inputs = [x];
    let want = interp::run_tensors(graph, &inputs).expect("the interpreter runs it");
    let want = want[0].to_f32s().expect("floats");
    let most = want.iter().fold(0f32, |a, v| a.max(v.abs()));
    for threads in [1, 3] {
        let session = Session::new(graph.clone(), Options { threads, ..Options::default() }).expect("a session");
        let session = session.with_rounded_blocks(rounds);
        let (got, profile) = session.profile(&inputs).expect("it runs");
        assert!(profile.rows.iter().any(|r| r.kernel.starts_with(kernel)), "{:?}", profile.rows);
        let got = got[0].to_f32s().expect("floats");
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want.iter()) {
            assert!((g - w).abs() <= tolerance * most, "{g} {w} of {most}");
        }
    }
}

/// Sums of up to 100 floats in another order, and codes and zero points apart.
const ORDER: f32 = 1e-5;

#[test]
fn multiplies_with_packed_codes_of_each_width() {
    for (bits, rows) in [(2, 1), (4, 1), (4, 7), (4, 40), (8, 3), (8, 40)] {
        let (k, n, block) = (100, 70, 32);
        let blocks = 4;
        let body = format!(
            "{}{}{}const %c: f32[{n}] = random(4)\n\
             %p = com.microsoft.MatMulNBits(%x, %w, %s, %z) {{K={k}, N={n}, bits={bits}, block_size={block}}}\n\
             %q = Add(%p, %c)\n%y = Relu(%q)",
            constant("w", "u8", &[n, blocks, block * bits / 8], 0, 256),
            scales("s", &[n, blocks]),
            constant("z", "u8", &[n, (blocks * bits).div_ceil(8)], 0, 256),
        );
        check(&graph(rows, k, &body), &format!("blocks_f32_{bits}bit"), ORDER);
    }
}

#[test]
fn adds_own_bias_and_takes_float_zero_points() {
    let body = format!(
        "{}{}const %z: f32[9, 2] = random(2)\nconst %c: f32[9] = random(4)\n\
         %y = com.microsoft.MatMulNBits(%x, %w, %s, %z, _, %c) {{K=32, N=9, bits=4, block_size=16}}",
        constant("w", "u8", &[9, 2, 8], 0, 256),
        scales("s", &[9, 2]),
    );
    check(&graph(5, 32, &body), "blocks_f32_4bit", ORDER);
}

#[test]
fn rounds_rows_only_where_the_model_allows_it() {
    let body = |level: usize| {
        format!(
            "{}{}%y = com.microsoft.MatMulNBits(%x, %w, %s) {{K=64, N=20, bits=4, block_size=32, accuracy_level={level}}}",
            constant("w", "u8", &[20, 2, 16], 0, 256),
            scales("s", &[20, 2]),
        )
    };
    check(&graph(3, 64, &body(0)), "blocks_f32_4bit", ORDER);
    check(&graph(3, 64, &body(1)), "blocks_f32_4bit", ORDER);
    // Half a step of 127 for each element, which mostly cancel.
    check(&graph(3, 64, &body(4)), "blocks_int8_4bit", 0.02);
}

#[test]
fn rounds_rows_where_the_session_allows_it_and_the_model_leaves_it_open() {
    let dequantized = format!(
        "{}{}%d = DequantizeLinear(%w, %s) {{axis=0, block_size=16}}\n%y = MatMul(%x, %d)",
        constant("w", "i4", &[48, 40], -8, 8),
        scales("s", &[3, 40]),
    );
    for rows in [1, 3, 60] {
        check_rounding(&graph(rows, 48, &dequantized), true, "blocks_int8_4bit", 0.02);
    }
    let nbits = |level: usize| {
        format!(
            "{}{}%y = com.microsoft.MatMulNBits(%x, %w, %s) {{K=64, N=20, bits=4, block_size=32, accuracy_level={level}}}",
            constant("w", "u8", &[20, 2, 16], 0, 256),
            scales("s", &[20, 2]),
        )
    };
    check_rounding(&graph(3, 64, &nbits(0)), true, "blocks_int8_4bit", 0.02);
    check_rounding(&graph(3, 64, &nbits(1)), true, "blocks_f32_4bit", ORDER);
    let fp4 = format!(
        "{}{}%d = DequantizeLinear(%w, %s) {{axis=0, block_size=16}}\n%y = MatMul(%x, %d)",
        fp4("w", [48, 40]),
        scales("s", &[3, 40]),
    );
    check_rounding(&graph(3, 48, &fp4), true, "blocks_f32_fp4", ORDER);
}

#[test]
fn keeps_codes_behind_dequantize_linear_packed() {
    let cases = [
        ("i4", -8, 8, "{axis=0, block_size=16}", vec![3, 40], true),
        ("u4", 0, 16, "{axis=0, block_size=16}", vec![3, 40], true),
        ("i8", -128, 128, "{axis=0, block_size=16}", vec![3, 40], false),
        ("i4", -8, 8, "{axis=1}", vec![40], true),
        ("u4", 0, 16, "", vec![], false),
    ];
    for (dtype, low, high, attributes, shape, zeros) in cases {
        let scale = if shape.is_empty() { "const %s: f32[] = [0.03]\n".to_string() } else { scales("s", &shape) };
        let zero = if zeros { constant("z", dtype, &shape, low, high) } else { String::new() };
        let body = format!(
            "{}{scale}{zero}%d = DequantizeLinear(%w, %s{}) {attributes}\n%y = MatMul(%x, %d)",
            constant("w", dtype, &[48, 40], low, high),
            if zeros { ", %z" } else { "" },
        );
        check(&graph(3, 48, &body), "blocks_f32_", ORDER);
        check(&graph(60, 48, &body), "blocks_f32_", ORDER);
    }
}

/// Values of e2m1 and powers of two, which the text form rounds to nothing else.
fn fp4(name: &str, shape: [usize; 2]) -> String {
    const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let mut random = Random(5);
    let mut value = || VALUES[random.below(8) as usize] * if random.below(2) == 0 { 1.0 } else { -1.0 };
    format!("const %{name}: f4e2m1{shape:?} = {}\n", list(shape[0] * shape[1], |_| value()))
}

fn powers(name: &str, shape: [usize; 2]) -> String {
    format!("const %{name}: f8e8m0{shape:?} = {}\n", list(shape[0] * shape[1], |i| 2f32.powi(i as i32 % 5 - 6)))
}

#[test]
fn keeps_microscaling_formats_packed() {
    let to_float = "axis=0, block_size=32, output_dtype=1";
    for rows in [1, 3, 60] {
        let own = |codes: String, scales: String, attributes: &str| {
            format!("{codes}{scales}%d = DequantizeLinear(%w, %s) {{{attributes}}}\n%y = MatMul(%x, %d)")
        };
        let fp4_byte = own(fp4("w", [80, 40]), powers("s", [3, 40]), to_float);
        check(&graph(rows, 80, &fp4_byte), "blocks_f32_fp4", ORDER);
        let fp4_float = own(fp4("w", [80, 40]), scales("s", &[3, 40]), "axis=0, block_size=32");
        check(&graph(rows, 80, &fp4_float), "blocks_f32_fp4", ORDER);
        let int8 = own(constant("w", "i8", &[80, 40], -127, 128), powers("s", [3, 40]), to_float);
        check(&graph(rows, 80, &int8), "blocks_f32_8bit", ORDER);
        for dtype in ["f8e4m3fn", "f8e5m2"] {
            let fp8 = own(constant("w", dtype, &[80, 40], -7, 8), powers("s", [3, 40]), to_float);
            check(&graph(rows, 80, &fp8), "panel_fp8", ORDER);
        }
    }
}

#[test]
fn leaves_fp4_with_a_zero_point_to_the_operator() {
    let body = format!(
        "{}{}const %z: f4e2m1[3, 40] = {}\n%d = DequantizeLinear(%w, %s, %z) {{axis=0, block_size=32}}\n%y = MatMul(%x, %d)",
        fp4("w", [80, 40]),
        scales("s", &[3, 40]),
        list(120, |_| 0),
    );
    check(&graph(3, 80, &body), "panel_f32", ORDER);
}

#[test]
fn keeps_transposed_codes_of_gemm_packed() {
    let body = format!(
        "{}{}const %c: f32[40] = random(4)\n%d = DequantizeLinear(%w, %s) {{axis=1, block_size=16}}\n\
         %y = Gemm(%x, %d, %c) {{transB=1}}",
        constant("w", "i4", &[40, 48], -8, 8),
        scales("s", &[40, 3]),
    );
    check(&graph(3, 48, &body), "blocks_f32_4bit", ORDER);
}

#[test]
fn leaves_blocks_along_the_columns_to_floats() {
    let body = format!(
        "{}{}%d = DequantizeLinear(%w, %s) {{axis=1, block_size=16}}\n%y = MatMul(%x, %d)",
        constant("w", "i4", &[48, 32], -8, 8),
        scales("s", &[48, 2]),
    );
    check(&graph(3, 48, &body), "panel_f32", ORDER);
}
