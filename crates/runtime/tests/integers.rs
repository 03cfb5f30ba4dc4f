//! Quantized graphs run on integers and give what the reference interpreter gives.

use narrowbit_ir::{Graph, interp, text};
use narrowbit_kernels::Isa;
use narrowbit_kernels::isa::ISA_VARIABLE;
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::{DType, Tensor};

/// Quantizes `value` with a scale and a u8 zero point, and dequantizes it again.
fn pair(value: &str, scale: f32, zero: u8) -> String {
    format!(
        "const %{value}_s: f32[] = [{scale}]\n const %{value}_z: u8[] = [{zero}]\n\
         %{value}_q = QuantizeLinear(%{value}, %{value}_s, %{value}_z)\n\
         %{value}_d = DequantizeLinear(%{value}_q, %{value}_s, %{value}_z)\n"
    )
}

/// A constant of random i8 with a scale per channel.
fn weights(name: &str, shape: &str, seed: u32, axis: usize, channels: usize) -> String {
    let scales: Vec<String> = (0..channels).map(|i| format!("{}", 0.002 + 0.0007 * (i % 5) as f32)).collect();
    format!(
        "const %{name}_f: f32{shape} = random({seed})\n const %{name}_r: f32[] = [0.008]\n const %{name}_z: i8[] = [0]\n\
         %{name}_q = QuantizeLinear(%{name}_f, %{name}_r, %{name}_z)\n const %{name}_s: f32[{channels}] = [{}]\n\
         const %{name}_zs: i8[{channels}] = [{}]\n\
         %{name}_d = DequantizeLinear(%{name}_q, %{name}_s, %{name}_zs) {{axis={axis}}}\n",
        scales.join(", "),
        vec!["0"; channels].join(", "),
    )
}

fn graph(inputs: &str, body: &str) -> Graph {
    let text = format!("graph \"g\" {{\n{inputs}\n{body}\noutput %y_q\n}}");
    text::parse_graph(&text, &Registry, 20).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Random samples for the inputs of a graph.
fn samples(graph: &Graph) -> Vec<Tensor> {
    let mut state = 7u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let tensor = |&v| {
        let shape = graph.value(v).ty.tensor().and_then(|t| t.concrete_shape()).expect("a known shape");
        let len: usize = shape.iter().product();
        Tensor::new(shape, (0..len).map(|_| random()).collect::<Vec<f32>>()).expect("the length fits")
    };
    graph.inputs().iter().map(tensor).collect()
}

fn session(graph: &Graph, threads: usize) -> Session {
    Session::new(graph.clone(), Options { threads, ..Options::default() }).expect("the graph is valid")
}

/// Runs the graph, asserts that kernels of integers did the work (`kernel` is part of a name), that the result
/// is within one step of the interpreter's in at most one of 200 elements, and does not depend on the threads.
#[track_caller]
fn assert_runs_on_integers(graph: &Graph, kernel: &str) {
    let inputs = samples(graph);
    let (out, profile) = session(graph, 1).profile(&inputs).expect("it runs");
    let kernels: Vec<&str> = profile.rows.iter().map(|r| r.kernel.as_str()).collect();
    assert!(kernels.iter().any(|k| k.contains(kernel)), "{kernels:?}");
    assert!(!kernels.contains(&"reference"), "{kernels:?}");
    let float = ["dequantize_linear", "gemm_f32", "panel_f32", "conv_f32"];
    assert!(!kernels.iter().any(|k| float.iter().any(|f| k.starts_with(f))), "{kernels:?}");
    let want = interp::run_tensors(graph, &inputs).expect("it runs on the interpreter");
    let (got, want) = (&out[0], &want[0]);
    assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()));
    assert_eq!(got.dtype(), DType::U8);
    let steps = got.bytes().iter().zip(want.bytes()).map(|(&a, &b)| a.abs_diff(b));
    // The interpreter sums products of rounded floats and divides where kernels multiply: a value that lies on
    // a border may fall on either side.
    let (most, off) = steps.fold((0, 0), |(most, off), d| (d.max(most), off + usize::from(d > 0)));
    assert!(most <= 1 && off * 200 <= got.len(), "{off} of {} differ, by up to {most}", got.len());
    let distinct: std::collections::BTreeSet<u8> = got.bytes().iter().copied().collect();
    assert!(distinct.len() > 8, "the test data exercises only {} codes", distinct.len());
    for threads in [2, 3] {
        let again = session(graph, threads).run(&inputs).expect("it runs");
        assert_eq!(again[0].bytes(), got.bytes(), "{threads} threads");
    }
}

fn kernels(graph: &Graph) -> Vec<String> {
    let (_, profile) = session(graph, 1).profile(&samples(graph)).expect("it runs");
    profile.rows.iter().map(|r| r.kernel.clone()).collect()
}

#[test]
fn runs_a_convolution_with_bias_and_activation_on_integers() {
    for (activation, attrs) in [("Relu", ""), ("HardSwish", ""), ("Gelu", "")] {
        let body = format!(
            "{}{}const %b: f32[20] = random(5)\n%c = Conv(%x_d, %w_d, %b) {{pads=[1, 1, 1, 1], strides=[2, 2]}}\n\
             %y = {activation}(%c){attrs}\n{}",
            pair("x", 0.008, 120),
            weights("w", "[20, 6, 3, 3]", 3, 0, 20),
            pair("y", 0.01, 20),
        );
        assert_runs_on_integers(&graph("input %x: f32[2, 6, 13, 11]", &body), "panel_u8i8i32");
    }
}

#[test]
fn adds_a_residual_while_the_product_is_at_hand() {
    for (shape, conv) in [("[16, 1, 3, 3]", "depthwise_nhwc_i8"), ("[16, 16, 3, 3]", "panel_u8i8i32")] {
        let group = if conv.starts_with("depthwise") { 16 } else { 1 };
        for sum in ["%c_d, %x_d", "%x_d, %c_d"] {
            let body = format!(
                "{}{}%c = Conv(%x_d, %w_d) {{pads=[1, 1, 1, 1], group={group}}}\n{}%s = Add({sum})\n%y = Relu(%s)\n{}",
                pair("x", 0.008, 120),
                weights("w", shape, 3, 0, 16),
                pair("c", 0.01, 128),
                pair("y", 0.015, 3),
            );
            let graph = graph("input %x: f32[1, 16, 9, 10]", &body);
            assert_runs_on_integers(&graph, conv);
            assert!(!kernels(&graph).iter().any(|k| k == "binary_i8"));
        }
    }
}

#[test]
fn adds_a_residual_to_rows_that_are_given_their_axes_back() {
    let body = format!(
        "{}{}{}%g = Gemm(%x_d, %w_d)\n{}const %back: i64[3] = [2, 7, 9]\n%b = Reshape(%g_d, %back)\n%y = Add(%b, %r_d)\n{}",
        pair("x", 0.008, 121),
        pair("r", 0.01, 130),
        weights("w", "[12, 9]", 3, 1, 9),
        pair("g", 0.0061, 125),
        pair("y", 0.0117, 128)
    );
    let graph = graph("input %x: f32[14, 12]\n input %r: f32[2, 7, 9]", &body);
    assert_runs_on_integers(&graph, "i8i32");
    assert!(!kernels(&graph).iter().any(|k| k == "binary_i8"), "{:?}", kernels(&graph));
}

#[test]
fn scales_a_product_by_one_factor_before_it_is_rounded() {
    let body = format!(
        "{}{}const %f: f32[] = [0.35]\n%m = MatMul(%x_d, %w_d)\n%y = Mul(%m, %f)\n{}",
        pair("x", 0.008, 121),
        weights("w", "[12, 9]", 3, 1, 9),
        pair("y", 0.002, 128)
    );
    let graph = graph("input %x: f32[14, 12]", &body);
    assert_runs_on_integers(&graph, "i8i32");
    assert!(!kernels(&graph).iter().any(|k| k == "binary_i8"), "{:?}", kernels(&graph));
}

#[test]
fn multiplies_and_shifts_behind_a_function_before_the_rounding() {
    let row = |name: &str, shape: &str, from: f32| {
        let values: Vec<String> = (0..16).map(|i| format!("{}", from + 0.05 * (i % 5) as f32)).collect();
        format!("const %{name}: f32{shape} = [{}]\n", values.join(", "))
    };
    let scalars = "const %f: f32[1] = [0.35]\nconst %s: f32[] = [-0.4]\n".to_owned();
    let channels = row("f", "[1, 16, 1, 1]", -0.15) + &row("s", "[1, 16, 1, 1]", 0.1);
    let steps = [
        "%m = Mul(%f, %h)\n%y = Add(%m, %s)\n",
        "%y = Add(%s, %h)\n",
        "%m = Add(%h, %s)\n%k = Mul(%m, %f)\n%y = Add(%k, %f)\n",
    ];
    let convolutions = [
        ("[16, 1, 3, 3]", 16, "depthwise_nhwc_i8"),
        ("[16, 16, 3, 3]", 1, "panel_u8i8i32"),
        ("[16, 4, 3, 3]", 4, "i8i32"),
    ];
    for (shape, group, kernel) in convolutions {
        for (function, constants, steps) in ["HardSwish", "Relu", "Sigmoid"]
            .iter()
            .flat_map(|f| [&scalars, &channels].into_iter().flat_map(move |c| steps.map(|s| (f, c, s))))
        {
            let body = format!(
                "{}{}{constants}%c = Conv(%x_d, %w_d) {{pads=[1, 1, 1, 1], group={group}}}\n%h = {function}(%c)\n{steps}{}",
                pair("x", 0.008, 120),
                weights("w", shape, 3, 0, 16),
                pair("y", 0.005, 130),
            );
            let graph = graph("input %x: f32[1, 16, 9, 10]", &body);
            assert_runs_on_integers(&graph, kernel);
            let kernels = kernels(&graph);
            assert!(!kernels.iter().any(|k| k.contains("binary") || k.contains("unary")), "{kernels:?}");
        }
    }
    let row = row("f", "[16]", 0.2) + &row("s", "[16]", -0.1);
    for product in ["MatMul(%x_d, %w_d)", "Gemm(%x_d, %w_d)"] {
        let body = format!(
            "{}{}{row}%c = {product}\n%h = HardSwish(%c)\n%m = Mul(%h, %f)\n%y = Add(%m, %s)\n{}",
            pair("x", 0.008, 121),
            weights("w", "[12, 16]", 3, 1, 16),
            pair("y", 0.002, 128)
        );
        let graph = graph("input %x: f32[14, 12]", &body);
        assert_runs_on_integers(&graph, "i8i32");
        let kernels = kernels(&graph);
        assert!(!kernels.iter().any(|k| k.contains("binary")), "{kernels:?}");
    }
}

#[test]
fn leaves_what_is_multiplied_in_other_places_to_other_kernels() {
    // A factor for each line of the image, and a product that no rounding follows.
    let lines = "const %f: f32[1, 1, 9, 1] = random(4)\n%h = HardSwish(%c)\n%y = Mul(%h, %f)\n";
    let read_twice = "const %f: f32[] = [0.5]\n%h = HardSwish(%c)\n%m = Mul(%h, %f)\n%y = Add(%m, %h)\n";
    for rest in [lines, read_twice] {
        let body = format!(
            "{}{}%c = Conv(%x_d, %w_d) {{pads=[1, 1, 1, 1]}}\n{rest}{}",
            pair("x", 0.008, 120),
            weights("w", "[16, 16, 3, 3]", 3, 0, 16),
            pair("y", 0.004, 60),
        );
        let graph = graph("input %x: f32[1, 16, 9, 10]", &body);
        assert_runs_on_integers(&graph, "panel_u8i8i32");
        let kernels = kernels(&graph);
        assert!(kernels.iter().any(|k| k.contains("binary")), "{kernels:?}");
    }
}

#[test]
fn adds_what_no_product_makes_by_itself() {
    // The product is read twice, and the sum of the two others has no product.
    let body = format!(
        "{}{}{}%c = Conv(%x_d, %w_d)\n{}%s = Add(%c_d, %x_d)\n%t = Relu(%s)\n{}%u = Add(%t_d, %z_d)\n{}\
         %m = Mul(%u_d, %c_d)\n%y = Relu(%m)\n{}",
        pair("x", 0.008, 120),
        pair("z", 0.008, 128),
        weights("w", "[16, 16, 1, 1]", 3, 0, 16),
        pair("c", 0.01, 128),
        pair("t", 0.015, 3),
        pair("u", 0.02, 60),
        pair("y", 0.015, 3),
    );
    let graph = graph("input %x: f32[1, 16, 9, 10]\ninput %z: f32[1, 16, 9, 10]", &body);
    assert_runs_on_integers(&graph, "panel_u8i8i32");
    assert_eq!(kernels(&graph).iter().filter(|k| *k == "binary_i8").count(), 3);
}

#[test]
fn runs_products_of_activations_on_integers() {
    let body = format!(
        "{}{}%t = Transpose(%b_d) {{perm=[0, 2, 1]}}\n{}%p = MatMul(%a_d, %t_d)\n%y = Softmax(%p)\n{}",
        pair("a", 0.008, 120),
        pair("b", 0.009, 131),
        pair("t", 0.009, 131),
        pair("y", 0.002, 0),
    );
    assert_runs_on_integers(&graph("input %a: f32[3, 17, 20]\n input %b: f32[3, 33, 20]", &body), "panel_matmul_i8");
}

#[test]
fn runs_a_transposed_convolution_whose_windows_tile_on_integers() {
    let cases = [
        ("f32[2, 7, 5, 6]", "[7, 9, 2, 2]", "strides=[2, 2]", "Relu"),
        ("f32[1, 6, 4, 3]", "[6, 9, 1, 3]", "strides=[1, 3], auto_pad=\"VALID\"", "HardSwish"),
        ("f32[2, 20, 11]", "[20, 9, 4]", "strides=[4]", "Relu"),
    ];
    for (x, w, attrs, activation) in cases {
        let body = format!(
            "{}{}const %b: f32[9] = random(5)\n%c = ConvTranspose(%x_d, %w_d, %b) {{{attrs}}}\n%y = {activation}(%c)\n{}",
            pair("x", 0.008, 120),
            weights("w", w, 3, 1, 9),
            pair("y", 0.012, 20),
        );
        assert_runs_on_integers(&graph(&format!("input %x: {x}"), &body), "panel_u8i8i32");
    }
}

#[test]
fn leaves_transposed_convolutions_of_float_weights_to_floats() {
    let body = format!(
        "{}const %w: f32[8, 4, 3, 3] = random(3)\n%y = ConvTranspose(%x_d, %w) {{strides=[2, 2]}}\n{}",
        pair("x", 0.008, 120),
        pair("y", 0.012, 120),
    );
    let kernels = kernels(&graph("input %x: f32[1, 8, 5, 6]", &body));
    assert!(kernels.iter().all(|k| k != "reference" && !k.contains("i8i32")), "{kernels:?}");
}

/// Queries, keys and values as a model has them that splits rows into heads, with a mask, and the result's rows put
/// together again; `scores` makes %n from %qt_d and %kt_d.
fn attention(scores: &str) -> Graph {
    let head = |x: &str, perm: &str, scale: f32, zero: u8| {
        let moved = format!("%{x}t = Transpose(%{x}_d) {{perm={perm}}}\n{}", pair(&format!("{x}t"), scale, zero));
        format!("{}{moved}", pair(x, scale, zero))
    };
    let body = format!(
        "{}{}{}const %f: f32[] = [3.5]\n{scores}%m = Add(%n, %mask)\n%w = Softmax(%m)\n{}\
         %o = MatMul(%w_d, %vt_d)\n{}%y = Transpose(%o_d) {{perm=[0, 2, 1, 3]}}\n{}",
        head("q", "[0, 2, 1, 3]", 0.008, 120),
        head("k", "[0, 2, 3, 1]", 0.009, 131),
        head("v", "[0, 2, 1, 3]", 0.0085, 126),
        pair("w", 1.0 / 255.0, 0),
        pair("o", 0.005, 128),
        pair("y", 0.005, 128),
    );
    let inputs = "input %q: f32[2, 19, 3, 20]\n input %k: f32[2, 45, 3, 20]\n input %v: f32[2, 45, 3, 37]\n \
                  input %mask: f32[2, 1, 1, 45]";
    graph(inputs, &body)
}

#[test]
fn runs_attention_as_one_kernel_with_the_bits_of_its_operators() {
    let product = "MatMul(%qt_d, %kt_d)\n";
    for scores in [
        format!("%n = {product}"),
        format!("%p = {product}%n = Mul(%p, %f)\n"),
        format!("%p = {product}%n = Div(%p, %f)\n"),
    ] {
        let graph = attention(&scores);
        assert_runs_on_integers(&graph, "attention_i8");
        let fused = kernels(&graph);
        assert!(!fused.iter().any(|k| k == "transpose" || k == "softmax_rows"), "{fused:?}");
        // Whoever looks at the softmax sees it, and gets the same result from kernels of their own.
        let inputs = samples(&graph);
        let observe = [graph.value_named("w").expect("it is there")].into();
        let apart = Session::new(graph.clone(), Options { threads: 1, observe }).expect("the graph is valid");
        let (want, profile) = apart.profile(&inputs).expect("it runs");
        assert!(!profile.rows.iter().any(|r| r.kernel == "attention_i8"));
        assert_eq!(session(&graph, 2).run(&inputs).expect("it runs")[0].bytes(), want[0].bytes());
    }
}

#[test]
fn runs_attention_as_one_kernel_where_heads_are_shared() {
    let body = format!(
        "{}{}{}%p = MatMul(%a_d, %b_d)\n%w = Softmax(%p)\n{}%y = MatMul(%w_d, %c_d)\n{}",
        pair("a", 0.008, 120),
        pair("b", 0.009, 131),
        pair("c", 0.009, 125),
        pair("w", 1.0 / 255.0, 0),
        pair("y", 0.005, 128),
    );
    // One head of keys and values for three of queries.
    let inputs = "input %a: f32[3, 9, 20]\n input %b: f32[1, 20, 33]\n input %c: f32[1, 33, 20]";
    assert_runs_on_integers(&graph(inputs, &body), "attention_i8");
}

#[test]
fn runs_movements_pools_and_tables_on_integers() {
    let body = format!(
        "{}{}%c = Conv(%x_d, %w_d)\n{}%m = MaxPool(%c_d) {{kernel_shape=[2, 2], strides=[2, 2]}}\n{}\
         %h = Sigmoid(%m_d)\n{}%v = GlobalAveragePool(%h_d)\n{}%y = Flatten(%v_d)\n{}",
        pair("x", 0.008, 120),
        weights("w", "[40, 8, 1, 1]", 3, 0, 40),
        pair("c", 0.01, 128),
        pair("m", 0.01, 128),
        pair("h", 0.0039, 0),
        pair("v", 0.003, 0),
        pair("y", 0.003, 0),
    );
    let graph = graph("input %x: f32[4, 8, 8, 6]", &body);
    for kernel in ["panel_u8i8i32", "max_pool_nhwc", "lookup_i8", "average_pool_nhwc_i8"] {
        assert_runs_on_integers(&graph, kernel);
    }
}

#[test]
fn runs_a_product_with_bias_and_gelu_on_integers() {
    let body = format!(
        "{}{}const %b: f32[30] = random(9)\n%p = MatMul(%x_d, %w_d)\n%s = Add(%p, %b)\n%y = Gelu(%s)\n{}",
        pair("x", 0.008, 120),
        weights("w", "[50, 30]", 4, 1, 30),
        pair("y", 0.01, 20),
    );
    assert_runs_on_integers(&graph("input %x: f32[2, 9, 50]", &body), "panel_u8i8i32");
}

#[test]
fn keeps_what_is_observed() {
    let body = format!(
        "{}{}%c = Conv(%x_d, %w_d)\n%y = Relu(%c)\n{}",
        pair("x", 0.008, 120),
        weights("w", "[8, 4, 3, 3]", 3, 0, 8),
        pair("y", 0.01, 20),
    );
    let graph = graph("input %x: f32[1, 4, 7, 6]", &body);
    let inputs = samples(&graph);
    let seen: Vec<_> = ["c", "y", "x_d"].iter().map(|n| graph.value_named(n).expect("it is there")).collect();
    let options = Options { threads: 1, observe: seen.iter().copied().collect() };
    let session = Session::new(graph.clone(), options).expect("the graph is valid");
    let mut got = std::collections::BTreeMap::new();
    let mut observer = |v, view: narrowbit_runtime::View<'_>| {
        let old = got.insert(v, view.to_tensor().map_err(|e| e.to_string())?);
        old.is_none().then_some(()).ok_or_else(|| "seen twice".to_string())
    };
    session.run_observed(&inputs, &mut observer).expect("it runs");
    let data: Vec<_> = inputs.iter().cloned().map(narrowbit_ir::Datum::Tensor).collect();
    let mut checked = 0;
    interp::run_observed(&graph, &data, &mut |_, v, d| {
        if let (Some(got), Some(want)) = (got.get(&v), d.tensor()) {
            let (got, want) = (got.to_f32s().expect("floats"), want.to_f32s().expect("floats"));
            assert!(got.iter().zip(want.iter()).all(|(a, b)| (a - b).abs() <= 1e-4), "{v}");
            checked += 1;
        }
    })
    .expect("it runs on the interpreter");
    assert_eq!(checked, seen.len());
}

#[test]
fn tells_the_tier_that_ran() {
    let isa = Isa::from_env().expect("a tier of this machine");
    let body = format!(
        "{}{}%y = MatMul(%x_d, %w_d)\n{}",
        pair("x", 0.008, 120),
        weights("w", "[16, 30]", 4, 1, 30),
        pair("y", 0.01, 120)
    );
    let graph = graph("input %x: f32[4, 16]", &body);
    let (_, profile) = session(&graph, 1).profile(&samples(&graph)).expect("it runs");
    // A name of a kernel ends with its tier's, in one word.
    let best = isa.to_string().replace('-', "_");
    assert!(profile.rows.iter().any(|r| r.kernel.ends_with(&best)), "{:?}", profile.rows);
}

/// All tests of this file again, with tiles that are emulated: packing, tails, gathered windows and both signs of
/// activations, from the graph to the results.
#[test]
fn runs_the_same_on_emulated_tiles() {
    const EMULATED: &str = "amx-emulated";
    if std::env::var(ISA_VARIABLE).is_ok_and(|isa| isa == EMULATED) {
        return;
    }
    let tests = std::env::current_exe().expect("this file's tests");
    let run = std::process::Command::new(tests).env(ISA_VARIABLE, EMULATED).output().expect("they start");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
}

/// Along the channels of a detector's boxes, and over all axes from the given one on before opset 13.
#[test]
fn runs_softmax_along_any_axis_between_integers() {
    for (axis, kernel) in [(1, "softmax_columns"), (2, "softmax_columns"), (3, "softmax_rows")] {
        let body = format!("{}%y = Softmax(%x_d) {{axis={axis}}}\n{}", pair("x", 0.03, 128), pair("y", 1.0 / 255.0, 0));
        let graph = graph("input %x: f32[2, 16, 4, 37]", &body);
        assert_eq!(kernels(&graph), ["quantize_linear", kernel]);
        assert_runs_on_integers(&graph, kernel);
    }
    let body = format!("{}%y = Softmax(%x_d)\n{}", pair("x", 0.03, 128), pair("y", 1.0 / 255.0, 0));
    let text = format!("graph \"g\" {{\ninput %x: f32[3, 4, 5]\n{body}\noutput %y_q\n}}");
    let graph = text::parse_graph(&text, &Registry, 12).expect("it is valid");
    assert_runs_on_integers(&graph, "softmax_rows");
}

/// The kernels of a network whose convolution reads a Concat of another one's result and a function of that.
fn kernels_behind_concat(extra: &str, attrs: &str, w: &str) -> Vec<String> {
    let body = format!(
        "{}{}{}%p = Conv(%x_d, %u_d) {{pads=[1, 1, 1, 1]}}\n{}%a = Relu(%p_d)\n{}%j = Concat(%a_d, %p_d) {{axis=1}}\n\
         %c = Conv(%j, %w_d) {{{attrs}}}\n{extra}{}",
        pair("x", 0.008, 120),
        weights("w", w, 3, 0, 20),
        weights("u", "[6, 6, 3, 3]", 4, 0, 6),
        pair("p", 0.01, 120),
        pair("a", 0.01, 120),
        pair("y", 0.01, 120),
    );
    let graph = graph("input %x: f32[2, 6, 13, 11]", &body);
    assert_runs_on_integers(&graph, "panel_u8i8i32");
    kernels(&graph)
}

#[test]
fn reads_the_parts_of_a_concat_in_a_convolution() {
    let kernels = kernels_behind_concat("%y = Relu(%c)\n", "pads=[1, 1, 1, 1]", "[20, 12, 3, 3]");
    assert!(!kernels.iter().any(|k| k == "concat"), "{kernels:?}");
}

#[test]
fn joins_what_others_read_too_and_pixels_without_neighbours() {
    let two = "%d = Conv(%j, %w_d) {pads=[1, 1, 1, 1]}\n%y = Add(%c, %d)\n";
    let others = kernels_behind_concat(two, "pads=[1, 1, 1, 1]", "[20, 12, 3, 3]");
    let pixels = kernels_behind_concat("%y = Relu(%c)\n", "", "[20, 12, 1, 1]");
    for kernels in [others, pixels] {
        assert!(kernels.iter().any(|k| k == "concat"), "{kernels:?}");
    }
}
