//! Programs against the reference interpreter on the same graph, and graphs that have none.

use narrowbit_fixed::{Dyadic, FixedModel, LowerError, Options, Rounding, Shapes, lower};
use narrowbit_ir::{Graph, interp, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_tensor::Tensor;

fn graph(body: &str) -> Graph {
    let text = format!("model opset=21 graph \"g\" {{\n{}\n}}", with_codes(body));
    text::parse_model(&text, &Registry).unwrap_or_else(|e| panic!("{e}\n{text}")).graph
}

/// The text with `type[shape] = codes(seed)` filled in: integers all over the type.
fn with_codes(body: &str) -> String {
    let mut parts = body.split("] = codes(");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (kind, shape) = out[out.rfind(": ").unwrap() + 2..].split_once('[').unwrap();
        let len: usize = shape.split(", ").map(|d| d.parse::<usize>().unwrap()).product();
        let (seed, rest) = part.split_once(')').unwrap();
        let shift = if kind == "i16" { 16 } else { 24 };
        let mut state: u32 = seed.parse().unwrap();
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if kind == "u8" { i64::from(state >> shift) } else { i64::from(state as i32 >> shift) }
        };
        let codes: Vec<String> = (0..len).map(|_| next().to_string()).collect();
        out.push_str(&format!("] = [{}]{rest}", codes.join(", ")));
    }
    out
}

fn exec() -> Exec {
    Exec::new(Isa::detect(), 2)
}

/// Values all over a range, the same at each run.
fn samples(shape: &[usize], spread: f32) -> Tensor {
    let len: usize = shape.iter().product();
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    Tensor::new(shape.to_vec(), (0..len).map(|_| next() * spread).collect::<Vec<f32>>()).unwrap()
}

/// Checks that a graph's program gives the interpreter's results, bit for bit; its number of proof rows.
#[track_caller]
fn agrees(graph: &Graph, inputs: &[Tensor]) -> usize {
    let expected = interp::run_tensors(graph, inputs).unwrap();
    let shapes: Shapes = graph.inputs().iter().copied().zip(inputs.iter().map(|t| t.shape().to_vec())).collect();
    let rows = lower(graph, &shapes, Options::default(), &exec()).unwrap().proof.rows.len();
    let model = FixedModel::new(graph.clone(), Options::default(), exec());
    // Twice: the second run finds its program.
    for _ in 0..2 {
        let found = model.run(inputs).unwrap();
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(&expected) {
            assert_eq!((f.shape(), f.dtype()), (e.shape(), e.dtype()));
            assert_eq!(f.to_f64s().unwrap(), e.to_f64s().unwrap());
        }
    }
    rows
}

/// A residual block with scales per channel, an aligned bias, and a mean.
const BLOCK: &str = r#"
    input %x: f32[n, 3, 8, 8]
    const %sx: f32[] = [0.0078125] const %z: i8[] = [0]
    const %w: i8[4, 3, 3, 3] = codes(1) const %sw: f32[4] = [0.00390625, 0.0029296875, 0.00634765625, 0.001953125] const %zw: i8[4] = [0, 0, 0, 0]
    const %b: i32[4] = [100, -200, 300, -4000] const %zb: i32[4] = [0, 0, 0, 0]
    const %sb: f32[4] = [0.000030517578125, 0.00002288818359375, 0.0000495910644531250, 0.0000152587890625]
    const %s1: f32[] = [0.0625] const %s2: f32[] = [0.125]
    const %w2: i8[4, 4, 1, 1] = codes(2) const %w3: i8[4, 1, 3, 3] = codes(3)
    %qx = QuantizeLinear(%x, %sx, %z) %dx = DequantizeLinear(%qx, %sx, %z)
    %dw = DequantizeLinear(%w, %sw, %zw) {axis=0} %db = DequantizeLinear(%b, %sb, %zb) {axis=0}
    %c = Conv(%dx, %dw, %db) {pads=[1, 1, 1, 1]} %r = Relu(%c)
    %q1 = QuantizeLinear(%r, %s1, %z) %d1 = DequantizeLinear(%q1, %s1, %z)
    %dw2 = DequantizeLinear(%w2, %sx, %z) %c2 = Conv(%d1, %dw2)
    %q2 = QuantizeLinear(%c2, %s2, %z) %d2 = DequantizeLinear(%q2, %s2, %z)
    %dw3 = DequantizeLinear(%w3, %sx, %z) %c3 = Conv(%d1, %dw3) {group=4, pads=[1, 1, 1, 1]}
    %q3 = QuantizeLinear(%c3, %s1, %z) %d3 = DequantizeLinear(%q3, %s1, %z)
    %a = Add(%d2, %d3) %ra = Relu(%a)
    %qa = QuantizeLinear(%ra, %s2, %z) %da = DequantizeLinear(%qa, %s2, %z)
"#;

#[test]
fn gives_the_codes_of_a_residual_block() {
    let tail = r#"%p = MaxPool(%da) {kernel_shape=[2, 2], strides=[2, 2]} %g = GlobalAveragePool(%p)
        %qg = QuantizeLinear(%g, %s2, %z) %dg = DequantizeLinear(%qg, %s2, %z) output %dg output %qa"#;
    let g = graph(&format!("{BLOCK}{tail}"));
    assert!(agrees(&g, &[samples(&[2, 3, 8, 8], 1.2)]) > 10);
    assert!(agrees(&g, &[samples(&[1, 3, 8, 8], 0.4)]) > 10);
}

#[test]
fn divides_means_by_numbers_that_are_no_power_of_two() {
    let tail = r#"%p = AveragePool(%da) {kernel_shape=[3, 3], strides=[2, 2]}
        %qp = QuantizeLinear(%p, %s1, %z) output %qp"#;
    agrees(&graph(&format!("{BLOCK}{tail}")), &[samples(&[2, 3, 8, 8], 1.0)]);
}

#[test]
fn hands_on_sums_of_the_last_product_and_what_is_behind_them() {
    let tail = r#"const %k: i8[256, 5] = codes(9) const %shape: i64[2] = [-1, 256] const %s5: f32[5] = [0.5, 0.25, 0.75, 1.0, 0.0625] const %z5: i8[5] = [0, 0, 0, 0, 0]
        const %b5: i32[5] = [1, 2, 3, 4, 5] const %sb5: f32[5] = [0.0625, 0.03125, 0.09375, 0.125, 0.0078125] const %zb5: i32[5] = [0, 0, 0, 0, 0]
        %f = Reshape(%da, %shape) %dk = DequantizeLinear(%k, %s5, %z5) {axis=1} %dbk = DequantizeLinear(%b5, %sb5, %zb5) {axis=0}
        %y = Gemm(%f, %dk, %dbk) %soft = Softmax(%y) output %y output %soft"#;
    let g = graph(&format!("{BLOCK}{tail}"));
    agrees(&g, &[samples(&[3, 3, 8, 8], 1.0)]);
    let shapes: Shapes = [(g.inputs()[0], vec![1, 3, 8, 8])].into();
    let proof = lower(&g, &shapes, Options::default(), &exec()).unwrap().proof;
    assert_eq!(proof.after, ["Softmax"]);
    assert!(proof.first_after.unwrap().contains("no integer form"));
    let gemm = proof.rows.iter().find(|r| r.op == "Gemm").unwrap();
    assert!(gemm.bits <= 24 && gemm.bounds.0 < 0 && gemm.bounds.1 > 0, "{gemm:?}");
}

#[test]
fn moves_integers_as_the_operators_do() {
    let tail = r#"const %st: i64[1] = [1] const %en: i64[1] = [4] const %ax: i64[1] = [1] const %one: i64[1] = [1] const %pads: i64[8] = [0, 1, 0, 0, 0, 0, 0, 2]
        %t = Transpose(%da) {perm=[0, 2, 3, 1]} %qt = QuantizeLinear(%t, %s2, %z)
        %s = Slice(%da, %st, %en, %ax, %one) %p = Pad(%s, %pads) %qp = QuantizeLinear(%p, %s2, %z)
        %c4 = Concat(%da, %d3) {axis=1} %qc = QuantizeLinear(%c4, %s1, %z)
        %dt = DepthToSpace(%da) {blocksize=2} %qd = QuantizeLinear(%dt, %s2, %z)
        output %qt output %qp output %qc output %qd"#;
    agrees(&graph(&format!("{BLOCK}{tail}")), &[samples(&[2, 3, 8, 8], 1.0)]);
}

#[test]
fn transposes_convolutions() {
    for attrs in ["strides=[2, 2]", "strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]", "pads=[2, 0, 0, 2]"] {
        let tail = format!(
            r#"const %wt: i8[4, 3, 3, 3] = codes(7) %dwt = DequantizeLinear(%wt, %sx, %z)
            %ct = ConvTranspose(%da, %dwt) {{{attrs}}} %qt = QuantizeLinear(%ct, %s2, %z) output %qt"#
        );
        agrees(&graph(&format!("{BLOCK}{tail}")), &[samples(&[2, 3, 8, 8], 1.0)]);
    }
}

#[test]
fn heeds_zero_points_and_clips() {
    let g = graph(
        r#"input %x: f32[n, 6, 5, 5] const %s: f32[] = [0.03125] const %z: u8[] = [37] const %w: u8[8, 6, 3, 3] = codes(4)
        const %zw: u8[] = [120] const %sw: f32[] = [0.00390625] const %lo: f32[] = [-0.5] const %hi: f32[] = [1.7] const %so: f32[] = [0.25] const %zo: i8[] = [-5]
        %q = QuantizeLinear(%x, %s, %z) %d = DequantizeLinear(%q, %s, %z) %dw = DequantizeLinear(%w, %sw, %zw)
        %c = Conv(%d, %dw) {pads=[1, 1, 1, 1], strides=[2, 2]} %k = Clip(%c, %lo, %hi) %y = QuantizeLinear(%k, %so, %zo)
        %m = Mul(%d, %d) %ym = QuantizeLinear(%m, %so, %z) output %y output %ym"#,
    );
    agrees(&g, &[samples(&[2, 6, 5, 5], 5.0)]);
}

#[test]
fn multiplies_wide_codes_in_wide_registers() {
    let g = graph(
        r#"input %x: f32[n, 64] const %s: f32[] = [0.0009765625] const %z: i16[] = [0] const %w: i16[64, 8] = codes(5)
        const %sw: f32[] = [0.000030517578125] const %so: f32[] = [0.5]
        %q = QuantizeLinear(%x, %s, %z) %d = DequantizeLinear(%q, %s, %z) %dw = DequantizeLinear(%w, %sw, %z)
        %y = MatMul(%d, %dw) %qy = QuantizeLinear(%y, %so, %z) output %qy"#,
    );
    agrees(&g, &[samples(&[4, 64], 20.0)]);
}

#[test]
fn looks_functions_of_one_element_up() {
    let tail = r#"%h = HardSwish(%da) %qh = QuantizeLinear(%h, %s1, %z) %dh = DequantizeLinear(%qh, %s1, %z)
        %t = Sigmoid(%dh) %qt = QuantizeLinear(%t, %sx, %z) output %qt output %qh"#;
    agrees(&graph(&format!("{BLOCK}{tail}")), &[samples(&[2, 3, 8, 8], 1.0)]);
}

/// One product whose result lies halfway between two codes for odd inputs.
const HALVES: &str = r#"input %x: f32[n, 1] const %one: f32[] = [1.0] const %two: f32[] = [2.0] const %z: i8[] = [0] const %w: i8[1, 1] = [1]
    %q = QuantizeLinear(%x, %one, %z) %d = DequantizeLinear(%q, %one, %z) %dw = DequantizeLinear(%w, %one, %z)
    %y = MatMul(%d, %dw) %qy = QuantizeLinear(%y, %two, %z) output %qy"#;

#[test]
fn rounds_halves_up_or_to_even_as_asked() {
    let g = graph(HALVES);
    let x = Tensor::new([6, 1], vec![-3f32, -1.0, 1.0, 3.0, 5.0, 4.0]).unwrap();
    for (rounding, expected) in [(Rounding::HalfEven, [-2, 0, 0, 2, 2, 2]), (Rounding::HalfUp, [-1, 0, 1, 2, 3, 2])] {
        let model = FixedModel::new(g.clone(), Options { rounding, ..Options::default() }, exec());
        assert_eq!(model.run(std::slice::from_ref(&x)).unwrap()[0].to_i64s().unwrap(), expected, "{rounding:?}");
    }
}

#[test]
fn saturates_a_narrow_buffer_and_says_that_it_may() {
    let g = graph(&HALVES.replace("[1, 1] = [1]", "[1, 1] = [100]"));
    let options = Options { buffer_bits: Some(8), ..Options::default() };
    let x = Tensor::new([2, 1], vec![1f32, 3.0]).unwrap();
    let shapes: Shapes = [(g.inputs()[0], vec![2, 1])].into();
    let proof = lower(&g, &shapes, options, &exec()).unwrap().proof;
    assert!(proof.rows[0].saturates && proof.rows[0].bounds == (-12800, 12700), "{proof:?}");
    let y = FixedModel::new(g, options, exec()).run(&[x]).unwrap();
    // 300 saturates at 127, and 63.5 rounds to even.
    assert_eq!(y[0].to_i64s().unwrap(), [50, 64]);
}

fn refusal(body: &str) -> String {
    let g = graph(body);
    let shapes: Shapes = g.inputs().iter().map(|&v| (v, vec![1, 1])).collect();
    match lower(&g, &shapes, Options::default(), &exec()) {
        Err(LowerError::NeedsFloats { node, why, .. }) => format!("{node}: {why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_the_first_node_that_needs_floats() {
    let odd = refusal(&HALVES.replace("%two: f32[] = [2.0]", "%two: f32[] = [0.3]"));
    assert_eq!(odd.split(':').next(), Some("QuantizeLinear_1"), "{odd}");
    let curve = refusal(&HALVES.replace("%qy = QuantizeLinear(%y", "%e = Exp(%y) %qy = QuantizeLinear(%e"));
    assert!(curve.contains("no integer form"), "{curve}");
    let wide =
        refusal(&HALVES.replace(
            "%dw = DequantizeLinear(%w, %one, %z)",
            "const %s: f32[] = [0.1] %dw = DequantizeLinear(%w, %s, %z)",
        ));
    assert!(wide.contains("24 bits") || wide.contains("multipliers have 8"), "{wide}");
}

#[test]
fn refuses_what_is_not_quantized_and_inputs_that_do_not_fit() {
    let g = graph("input %x: f32[n, 1] %y = Relu(%x) output %y");
    let shapes: Shapes = [(g.inputs()[0], vec![1, 1])].into();
    assert!(matches!(lower(&g, &shapes, Options::default(), &exec()), Err(LowerError::NotQuantized)));
    let model = FixedModel::new(graph(HALVES), Options::default(), exec());
    assert!(model.run(&[]).is_err());
    assert!(model.run(&[Tensor::zeros(narrowbit_tensor::DType::F32, [2, 7]).unwrap()]).is_err());
}

#[test]
fn keeps_numbers_exact() {
    assert_eq!(Dyadic::of_bits(0.75f32.to_bits()), Some(Dyadic::new(3, 2)));
}

/// Codes with a scale for each of four channels, behind a convolution with bounds for each.
const CHANNELS: &str = r#"input %x: f32[n, 3, 8, 8] const %sx: f32[] = [0.0078125] const %z: i8[] = [0] const %six: f32[] = [6.0] const %none: f32[] = [0.0]
    const %w: i8[4, 3, 3, 3] = codes(1) const %sw: f32[4] = [0.00390625, 0.0029296875, 0.00634765625, 0.001953125] const %zw: i8[4] = [0, 0, 0, 0]
    const %s4: f32[4] = [0.0625, 0.015625, 0.125, 0.03125] const %t4: f32[4] = [0.5, 0.25, 0.125, 1.0]
    const %most: f32[1, 4, 1, 1] = [7.9375, 1.984375, 15.875, 3.96875] const %least: f32[1, 4, 1, 1] = [-4.0, -1.0, -8.0, -2.0]
    const %s: f32[] = [0.25] const %v: i8[4, 1, 3, 3] = codes(3) const %w2: i8[4, 4, 1, 1] = codes(2)
    %qx = QuantizeLinear(%x, %sx, %z) %dx = DequantizeLinear(%qx, %sx, %z) %dw = DequantizeLinear(%w, %sw, %zw) {axis=0}
    %c = Conv(%dx, %dw) {pads=[1, 1, 1, 1]} %r = Clip(%c, %none, %six) %m = Min(%r, %most)
    %q1 = QuantizeLinear(%m, %s4, %zw) {axis=1} %d1 = DequantizeLinear(%q1, %s4, %zw) {axis=1}
    %dv = DequantizeLinear(%v, %sx, %z) %e = Conv(%d1, %dv) {group=4, pads=[1, 1, 1, 1]} %lo = Min(%e, %most) %hi = Max(%lo, %least)
    %q2 = QuantizeLinear(%hi, %t4, %zw) {axis=1} %d2 = DequantizeLinear(%q2, %t4, %zw) {axis=1}
"#;

#[test]
fn keeps_the_scales_of_channels_apart_or_aligns_them() {
    let tail = r#"%dw2 = DequantizeLinear(%w2, %sx, %z) %f = Conv(%d2, %dw2) %qf = QuantizeLinear(%f, %s, %z)
        %a = Add(%d1, %d2) %ra = Relu(%a) %qa = QuantizeLinear(%ra, %t4, %zw) {axis=1}
        %k = Concat(%d1, %d2) {axis=1} %qk = QuantizeLinear(%k, %s, %z)
        %p = MaxPool(%d2) {kernel_shape=[2, 2], strides=[2, 2]} %qp = QuantizeLinear(%p, %s, %z)
        %g = GlobalAveragePool(%ra) %qg = QuantizeLinear(%g, %s, %z) %h = ReduceMean(%f) {axes=[2, 3], keepdims=0} %qh = QuantizeLinear(%h, %s, %z)
        output %q1 output %q2 output %qf output %qa output %qk output %qp output %qg output %qh output %d2"#;
    agrees(&graph(&format!("{CHANNELS}{tail}")), &[samples(&[2, 3, 8, 8], 1.0)]);
}

#[test]
fn multiplies_channels_aligned_in_rows() {
    let tail = r#"const %k: i8[256, 5] = codes(9) const %shape: i64[2] = [-1, 256] %i = Reshape(%d2, %shape)
        %dk = DequantizeLinear(%k, %s, %z) %y = Gemm(%i, %dk) output %y"#;
    agrees(&graph(&format!("{CHANNELS}{tail}")), &[samples(&[3, 3, 8, 8], 1.0)]);
}

#[test]
fn refuses_scales_along_another_axis_and_bounds_that_are_no_row() {
    let other = format!("{CHANNELS} output %q2").replace("%q2 = QuantizeLinear(%hi, %t4, %zw) {axis=1}", "const %s8: f32[8] = [1, 1, 1, 1, 1, 1, 1, 2] const %z8: i8[8] = [0, 0, 0, 0, 0, 0, 0, 0] %q2 = QuantizeLinear(%hi, %s8, %z8) {axis=2}");
    let other = other.replace("%d2 = DequantizeLinear(%q2, %t4, %zw) {axis=1}", "");
    let column = format!("{CHANNELS} output %q2")
        .replace("%lo = Min(%e, %most)", "const %column: f32[8, 1] = [1, 2, 3, 4, 5, 6, 7, 8] %lo = Min(%e, %column)");
    for (text, why) in [(other, "axis"), (column, "bounds are no row")] {
        let g = graph(&text);
        let shapes: Shapes = [(g.inputs()[0], vec![1, 3, 8, 8])].into();
        let error = lower(&g, &shapes, Options::default(), &exec()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

/// What the proof says of the products of a graph, in order.
fn products(g: &Graph, shape: &[usize]) -> Vec<String> {
    let shapes: Shapes = [(g.inputs()[0], shape.to_vec())].into();
    let rows = lower(g, &shapes, Options::default(), &exec()).unwrap().proof.rows;
    rows.into_iter().filter(|r| matches!(r.op.as_str(), "Conv" | "Gemm")).map(|r| r.integers).collect()
}

#[test]
fn shifts_weights_instead_of_data_where_channels_differ() {
    let tail = r#"const %w8: i8[5, 8, 3, 3] = codes(8) const %k: i8[320, 5] = codes(9) const %shape: i64[2] = [-1, 320]
        const %s5: f32[5] = [0.5, 0.25, 2.0, 1.0, 0.5] const %z5: i8[5] = [0, 0, 0, 0, 0]
        const %z1: u8[] = [0] %r1 = Relu(%e) %q3 = QuantizeLinear(%r1, %s, %z1) %d3 = DequantizeLinear(%q3, %s, %z1)
        %k8 = Concat(%d2, %d3) {axis=1} %dw8 = DequantizeLinear(%w8, %sx, %z) %f = Conv(%k8, %dw8) {pads=[1, 1, 1, 1]}
        %qf = QuantizeLinear(%f, %s5, %z5) {axis=1} %df = DequantizeLinear(%qf, %s5, %z5) {axis=1}
        %i = Reshape(%df, %shape) %dk = DequantizeLinear(%k, %s, %z) %y = Gemm(%i, %dk) output %y output %qf"#;
    let g = graph(&format!("{CHANNELS}{tail}"));
    agrees(&g, &[samples(&[2, 3, 8, 8], 1.0)]);
    let rows = products(&g, &[2, 3, 8, 8]);
    // The codes of one operand of Concat need 9 bits with the other's: plain loops; the rest stays codes.
    assert!(
        rows[2].starts_with("products in a 32-bit accumulator") && rows[2].contains("of aligned channels"),
        "{rows:?}"
    );
    assert!(
        rows[3].starts_with("8-bit products of weights of 2 bytes") && rows[3].contains("of aligned channels"),
        "{rows:?}"
    );
    assert!(rows[1].starts_with("products of each channel"), "{rows:?}");
    let signed = graph(&format!("{CHANNELS}{tail}").replace("%z1: u8[]", "%z1: i8[]"));
    agrees(&signed, &[samples(&[2, 3, 8, 8], 1.0)]);
    assert!(products(&signed, &[2, 3, 8, 8])[2].starts_with("8-bit products of weights of 2 bytes"));
}

#[test]
fn aligns_elements_that_leave_their_channels() {
    let tail = r#"const %w16: i8[4, 16, 1, 1] = codes(8) %t = SpaceToDepth(%d2) {blocksize=2} %dw = DequantizeLinear(%w16, %sx, %z)
        %f = Conv(%t, %dw) %p = Transpose(%d2) {perm=[0, 2, 3, 1]} %qp = QuantizeLinear(%p, %s, %z) output %f output %qp"#;
    let g = graph(&format!("{CHANNELS}{}", tail.replace("%dw ", "%dw16 ").replace("%dw)", "%dw16)")));
    agrees(&g, &[samples(&[2, 3, 8, 8], 1.0)]);
}
