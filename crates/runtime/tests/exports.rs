//! What exporters write around attention, normalisation and layouts runs on kernels, with what the operators give.

mod support;

use narrowbit_ir::{Graph, ValueId, interp};
use narrowbit_runtime::{Options, Session, View};
use narrowbit_tensor::Tensor;

use support::{graph, list, samples, scalar, session};

/// The kernels of a graph whose results are those of the interpreter within `tolerance`, NaN where it has NaN.
#[track_caller]
fn kernels(graph: &Graph, inputs: &[Tensor], tolerance: f32) -> Vec<String> {
    let (got, profile) = session(graph, 1).profile(inputs).expect("it runs");
    let want = interp::run_tensors(graph, inputs).expect("it runs on the interpreter");
    for (got, want) in got.iter().zip(&want) {
        assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()));
        let (got, want) = (got.to_f32s().expect("numbers"), want.to_f32s().expect("numbers"));
        for (i, (g, w)) in got.iter().zip(want.iter()).enumerate() {
            assert!((g - w).abs() <= tolerance || g.is_nan() && w.is_nan(), "element {i} is {g}, not {w}");
        }
    }
    profile.rows.iter().map(|r| r.kernel.clone()).collect()
}

/// `Where(IsNaN(p), 0, p)` behind the softmax of `%s`, as `%w`.
const SAFE: &str = "const %none: f32[] = [0] %p = Softmax(%s) %lost = IsNaN(%p) %w = Where(%lost, %none, %p)\n";

/// Samples, and a mask of [1, 1, 4, 9] without a key for the second query.
fn masked(graph: &Graph) -> Vec<Tensor> {
    let mut inputs = samples(graph);
    let key = |i: usize| if i / 9 == 1 || i % 4 == 3 { f32::NEG_INFINITY } else { 0.0 };
    inputs.push(Tensor::new([1, 1, 4, 9], (0..36).map(key).collect::<Vec<f32>>()).expect("the length fits"));
    inputs.swap_remove(3);
    inputs
}

#[test]
fn runs_attention_whose_rows_may_see_no_key_as_one_kernel() {
    let inputs =
        "input %q: f32[2, 3, 4, 8] input %k: f32[2, 3, 9, 8] input %v: f32[2, 3, 9, 5] input %m: f32[1, 1, 4, 9]";
    let scores = "%kt = Transpose(%k) {perm=[0, 1, 3, 2]} %a = MatMul(%q, %kt) %s = Add(%a, %m)\n";
    let safe = graph(inputs, &format!("{scores}{SAFE}%y = MatMul(%w, %v)"), "output %y");
    assert_eq!(kernels(&safe, &masked(&safe), 1e-5), ["attention_f32"]);
    // Without it, a query that sees no key has no result.
    let plain = graph(inputs, &format!("{scores}%w = Softmax(%s) %y = MatMul(%w, %v)"), "output %y");
    assert_eq!(kernels(&plain, &masked(&plain), 1e-5), ["attention_f32"]);
    // Where others read the softmax itself, it stays as it is.
    let read = graph(inputs, &format!("{scores}{SAFE}%y = MatMul(%w, %v)"), "output %y\noutput %p");
    assert!(kernels(&read, &masked(&read), 1e-5).contains(&"select".to_string()));
}

#[test]
fn runs_quantized_attention_whose_rows_may_see_no_key_as_one_kernel() {
    let pair = |v: &str, scale: f32, zero: i32| {
        format!(
            "{}%{v}_q = QuantizeLinear(%{v}, %{v}_s, %{v}_z) %{v}_d = DequantizeLinear(%{v}_q, %{v}_s, %{v}_z)\n",
            scalar(v, "u8", scale, zero)
        )
    };
    let body = [
        pair("q", 0.0079, 127),
        pair("k", 0.0079, 126),
        pair("v", 0.0079, 128),
        "%kt = Transpose(%k_d) {perm=[0, 1, 3, 2]} %a = MatMul(%q_d, %kt) %s = Add(%a, %m)\n".into(),
        SAFE.into(),
        pair("w", 1.0 / 255.0, 0),
        "%y = MatMul(%w_d, %v_d)\n".into(),
        pair("y", 0.005, 131),
    ];
    let inputs =
        "input %q: f32[2, 3, 4, 8] input %k: f32[2, 3, 9, 8] input %v: f32[2, 3, 9, 5] input %m: f32[1, 1, 4, 9]";
    let graph = graph(inputs, &body.concat(), "output %y_q");
    let kernels = kernels(&graph, &masked(&graph), 1.0);
    assert!(
        kernels.contains(&"attention_i8".to_string()) && !kernels.contains(&"reference".to_string()),
        "{kernels:?}"
    );
}

#[test]
fn joins_a_softmax_alone_with_its_replacement_of_nan() {
    let body = format!("{SAFE}%z = Where(%lost, %w, %none)");
    let with = graph("input %s: f32[6, 5]", SAFE, "output %w");
    let mut x: Vec<f32> = (0..30).map(|i| (i * i % 11) as f32 * 0.3).collect();
    x[10..15].fill(f32::NEG_INFINITY);
    let x = [Tensor::new([6, 5], x).expect("the length fits")];
    assert_eq!(kernels(&with, &x, 1e-6), ["softmax_rows"]);
    let read = graph("input %s: f32[6, 5]", &body, "output %w\noutput %z");
    assert!(kernels(&read, &x, 1e-6).contains(&"select".to_string()));
    // Another number in the place of NaN is another function.
    let one = graph("input %s: f32[6, 5]", &SAFE.replace("= [0]", "= [1]"), "output %w");
    assert!(kernels(&one, &x, 1e-6).contains(&"select".to_string()));
}

#[test]
fn runs_attention_that_no_fused_kernel_takes_on_the_kernels_of_its_operators() {
    // Keys that are split by rows and never transposed in a way that the kernel reads.
    let inputs = "input %q: f32[2, 3, 4, 8] input %k: f32[8, 9, 3, 2] input %v: f32[2, 1, 9, 5]";
    let body = "%kt = Transpose(%k) {perm=[3, 2, 0, 1]} %s = MatMul(%q, %kt) %p = Softmax(%s) %y = MatMul(%p, %v)";
    let graph = graph(inputs, body, "output %y");
    let kernels = kernels(&graph, &samples(&graph), 1e-5);
    assert!(!kernels.contains(&"reference".to_string()), "{kernels:?}");
    // Who asked for the weights sees them.
    let p = graph.value_named("p").expect("it is there");
    let options = Options { threads: 1, observe: [p].into() };
    let observed = Session::new(graph.clone(), options).expect("a valid graph");
    let mut seen = 0;
    let mut observer = |v: ValueId, view: View| {
        seen += usize::from(v == p) * view.bytes.len();
        Ok(())
    };
    observed.run_observed(&samples(&graph), &mut observer).expect("it runs");
    assert_eq!(seen, 2 * 3 * 4 * 9 * 4);
}

#[test]
fn runs_queries_that_share_a_head_of_keys_as_one_kernel() {
    let inputs = "input %q: f32[2, 3, 4, 8] input %k: f32[2, 1, 9, 8] input %v: f32[2, 1, 9, 5]";
    let body = "%kt = Transpose(%k) {perm=[0, 1, 3, 2]} %s = MatMul(%q, %kt) %p = Softmax(%s) %y = MatMul(%p, %v)";
    let graph = graph(inputs, body, "output %y");
    assert_eq!(kernels(&graph, &samples(&graph), 1e-5), ["attention_f32"]);
}

/// A convolution of `%x` as `%c`, `[1, 8, 5, 7]`.
const CONV: &str = "const %cw: f32[8, 4, 1, 1] = random(3) %c = Conv(%x, %cw)\n";

#[test]
fn reads_transposes_around_pixels_in_the_layout_that_is_there() {
    let norm = format!("const %g: f32[8] = {}\n", list(8, |i| 0.5 + i as f32 * 0.1));
    let body = format!(
        "{CONV}{norm}%t = Transpose(%c) {{perm=[0, 2, 3, 1]}} %n = LayerNormalization(%t, %g)\n\
         %b = Transpose(%n) {{perm=[0, 3, 1, 2]}} const %w2: f32[8, 8, 3, 3] = random(4)\n\
         %y = Conv(%b, %w2) {{pads=[1, 1, 1, 1]}}"
    );
    let plain = graph("input %x: f32[1, 4, 5, 7]", &body, "output %y");
    let found = kernels(&plain, &samples(&plain), 1e-4);
    assert!(!found.contains(&"transpose".to_string()), "{found:?}");
    // Into the layout of convolutions, and out of it.
    assert!(found.iter().filter(|k| *k == "change_layout").count() <= 2, "{found:?}");

    // Through tokens, as transformers on images have them; an output in each layout.
    let tokens = format!(
        "{CONV}const %flat: i64[3] = [1, 8, 35] const %square: i64[4] = [1, 8, 5, 7] {norm}\
         %r = Reshape(%c, %flat) %t = Transpose(%r) {{perm=[0, 2, 1]}} %n = LayerNormalization(%t, %g)\n\
         %u = Transpose(%n) {{perm=[0, 2, 1]}} %s = Reshape(%u, %square) const %w2: f32[8, 8, 3, 3] = random(4)\n\
         %z = Conv(%s, %w2) {{pads=[1, 1, 1, 1]}}"
    );
    for outputs in ["output %z", "output %z\noutput %t", "output %z\noutput %u", "output %s\noutput %r"] {
        let graph = graph("input %x: f32[1, 4, 5, 7]", &tokens, outputs);
        let found = kernels(&graph, &samples(&graph), 1e-4);
        assert!(!found.contains(&"transpose".to_string()), "{outputs}: {found:?}");
    }
    // Rows and columns change places: nothing of the kind.
    let turned = format!("{CONV}%y = Transpose(%c) {{perm=[0, 1, 3, 2]}}");
    let turned = graph("input %x: f32[1, 4, 5, 7]", &turned, "output %y");
    assert!(kernels(&turned, &samples(&turned), 1e-5).contains(&"transpose".to_string()));
}

#[test]
fn scales_channels_of_images_by_a_gate_in_their_layout() {
    let body = format!(
        "{CONV}%m = GlobalAveragePool(%c) const %gw: f32[8, 8, 1, 1] = random(5) %h = Conv(%m, %gw) %gate = Sigmoid(%h)\n\
         %y = Mul(%c, %gate) %o = Mul(%gate, %c) %z = Sub(%c, %gate)"
    );
    let graph = graph("input %x: f32[2, 4, 5, 7]", &body, "output %y\noutput %o\noutput %z");
    let found = kernels(&graph, &samples(&graph), 1e-5);
    assert!(found.contains(&"binary_f32".to_string()) && !found.contains(&"reference".to_string()), "{found:?}");
}

#[test]
fn runs_gates_and_batch_normalization_between_codes_on_integers() {
    let codes = |v: &str, of: &str, scale: f32| {
        format!(
            "{}%{v} = QuantizeLinear({of}, %{v}_s, %{v}_z) %{v}_d = DequantizeLinear(%{v}, %{v}_s, %{v}_z)\n",
            scalar(v, "u8", scale, 120)
        )
    };
    let vectors = format!(
        "const %gamma: f32[6] = {} const %beta: f32[6] = {} const %mean: f32[6] = {} const %var: f32[6] = {}\n",
        list(6, |i| 0.9 - 0.3 * i as f32),
        list(6, |i| 0.1 * i as f32),
        list(6, |i| 0.05 * i as f32 - 0.1),
        list(6, |i| 0.5 + 0.1 * i as f32)
    );
    // Kernels multiply by the inverse of a scale, where operators divide: a value on a border may fall on either side.
    for n in [1, 2] {
        let input = format!("input %a: u8[{n}, 6, 5, 7] input %b: u8[{n}, 6, 1, 1]");
        let read = "const %s: f32[] = [0.013] const %z: u8[] = [118] %a_d = DequantizeLinear(%a, %s, %z)\n";
        let gate = "const %t: f32[] = [0.0041] %b_d = DequantizeLinear(%b, %t, %z)\n";
        for product in ["Mul(%a_d, %b_d)", "Mul(%b_d, %a_d)", "Sub(%a_d, %b_d)", "Add(%b_d, %a_d)"] {
            let body = format!("{read}{gate}%m = {product}\n{}", codes("y", "%m", 0.011));
            let graph = graph(&input, &body, "output %y");
            assert_eq!(kernels(&graph, &samples(&graph), 1.0), ["binary_i8"]);
        }
        let norm = "%m = BatchNormalization(%a_d, %gamma, %beta, %mean, %var) %r = Relu(%m)\n";
        let body = format!("{read}{vectors}{norm}{}", codes("y", "%r", 0.009));
        let graph = graph(&input, &body, "output %y");
        let found = kernels(&graph, &samples(&graph), 1.0);
        assert_eq!(found, ["batch_norm_i8"]);
    }
}

#[test]
fn moves_chosen_elements_of_any_width_on_kernels() {
    let body = "const %i: i64[2, 3, 4] = [0, 1, 2, -1, 2, 2, 1, 0, 0, 0, 1, -3, 1, 1, 1, 1, 2, 0, 2, 0, -2, -1, 0, 1]\n\
                %r = GatherElements(%x, %i) {axis=-1} %o = GatherElements(%x, %i) {axis=1}\n\
                %w = Where(%c, %r, %o) %narrow = Cast(%w) {to=@u8} %y = Where(%c, %narrow, %b)";
    let inputs = "input %x: f32[2, 3, 4] input %c: bool[2, 1, 4] input %b: u8[1, 3, 1]";
    let graph = graph(inputs, &body.replace("{to=@u8}", "{to=2}"), "output %w\noutput %y");
    let found = kernels(&graph, &samples(&graph), 0.0);
    assert!(found.contains(&"gather_elements".to_string()) && found.contains(&"select".to_string()), "{found:?}");
    // An index that is out of range is an error, and no panic.
    let bad = body.replace("[0, 1, 2, -1", "[4, 1, 2, -1").replace("{to=@u8}", "{to=2}");
    let bad = self::graph(inputs, &bad, "output %w");
    let error = session(&bad, 1).run(&samples(&bad)).expect_err("it refuses");
    assert!(error.to_string().contains("index 4 is outside of"), "{error}");
}
