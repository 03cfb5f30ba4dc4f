//! Operators that stand for several others run on the kernels of their parts, with the interpreter's results.

mod support;

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_tensor::Tensor;

use support::{assert_close, codes, graph, list, samples, scalar, session};

/// Runs on all outputs, with kernels whose names begin so; all but the comparison of a mask has one.
#[track_caller]
fn check(graph: &Graph, inputs: &[Tensor], expected: &[&str], what: &str) {
    let (_, profile) = session(graph, 1).profile(inputs).expect("it runs");
    let ran: Vec<&str> = profile.rows.iter().map(|r| r.kernel.as_str()).collect();
    for kernel in expected {
        assert!(ran.iter().any(|r| r.starts_with(kernel)), "{what}: no {kernel} in {ran:?}");
    }
    let slow = ran.iter().filter(|r| **r == "reference").count();
    assert!(slow <= usize::from(what.contains("%m")), "{what}: {ran:?}");
    let want = interp::run_tensors(graph, inputs).expect("it runs on the interpreter");
    for threads in [1, 3] {
        let got = session(graph, threads).run(inputs).expect("it runs");
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            assert_close(got, want, 2e-5, what);
        }
    }
}

/// A constant of floats.
fn floats(name: &str, shape: &[usize], seed: u64) -> String {
    let mut random = support::Random(seed);
    format!("const %{name}: f32{shape:?} = {}\n", list(shape.iter().product(), |_| random.unit()))
}

/// The samples of a graph whose last input is a mask of 32-bit integers that hides some keys.
fn masked(graph: &Graph) -> Vec<Tensor> {
    let mut inputs = samples(graph);
    let shape = inputs.last().expect("a mask").shape().to_vec();
    let ones = (0..shape.iter().product::<usize>()).map(|i| i32::from(i % 5 != 3)).collect::<Vec<i32>>();
    *inputs.last_mut().expect("a mask") = Tensor::new(shape, ones).expect("the length fits");
    inputs
}

#[test]
fn runs_multi_head_attention_in_parts() {
    let inputs =
        "input %q: f32[2, 9, 32]\ninput %k: f32[2, 14, 32]\ninput %v: f32[2, 14, 24]\ninput %a: f32[1, 4, 9, 14]";
    let bias = floats("b", &[88], 3);
    for (tail, attrs) in [("", ""), (", %b", ", scale=0.2"), (", %b, _, %a", ""), (", _, _, %a", "")] {
        let body = format!("{bias}%y = com.microsoft.MultiHeadAttention(%q, %k, %v{tail}) {{num_heads=4{attrs}}}");
        let graph = graph(inputs, &body, "output %y");
        check(&graph, &samples(&graph), &["attention_f32"], &body[bias.len()..]);
    }
    for mask in ["[2, 9]", "[2, 9, 9]"] {
        let inputs =
            format!("input %q: f32[2, 9, 32]\ninput %k: f32[2, 9, 32]\ninput %v: f32[2, 9, 32]\ninput %m: i32{mask}");
        for attrs in ["", ", unidirectional=1", ", mask_filter_value=-50.0"] {
            let body = format!("%y = com.microsoft.MultiHeadAttention(%q, %k, %v, _, %m) {{num_heads=4{attrs}}}");
            let graph = graph(&inputs, &body, "output %y");
            check(&graph, &masked(&graph), &["attention_f32"], &format!("{mask} {body}"));
        }
    }
}

#[test]
fn runs_self_attention_with_its_projection_in_parts() {
    let inputs = "input %x: f32[2, 7, 20]\ninput %m: i32[2, 7]";
    let weights = [floats("w", &[20, 72], 5), floats("b", &[72], 6)].concat();
    for (tail, attrs) in [
        (", %b, %m", ""),
        (", _, %m", ", unidirectional=1"),
        (", %b, %m", ", qkv_hidden_sizes=[16, 16, 40]"),
        (", %b", ", scale=0.5"),
    ] {
        let body = format!("{weights}%y, _ = com.microsoft.Attention(%x, %w{tail}) {{num_heads=4{attrs}}}");
        let graph = graph(inputs, &body, "output %y");
        check(&graph, &masked(&graph), &["attention_f32"], &body[weights.len()..]);
    }
}

#[test]
fn runs_quantized_self_attention_on_integers() {
    let weights = [
        codes("w", "i8", &[20, 48], 3),
        floats("b", &[48], 6),
        scalar("w", "i8", 0.013, 0),
        "const %one: f32[] = [0.01]\nconst %z: u8[] = [117]\n".into(),
    ]
    .concat();
    let body =
        format!("{weights}%y, _ = com.microsoft.QAttention(%x, %w, %b, %one, %w_s, %m, %z, %w_z) {{num_heads=4}}");
    let graph = graph("input %x: u8[2, 7, 20]\ninput %m: i32[2, 7]", &body, "output %y");
    check(&graph, &masked(&graph), &["panel_u8i8i32", "attention_f32"], "QAttention with %m");
}

#[test]
fn runs_attention_of_onnx_in_parts() {
    let parse = |inputs: &str, body: &str| {
        let text = format!("graph \"g\" {{\n{inputs}\n{body}\noutput %y\n}}");
        text::parse_graph(&text, &Registry, 23).unwrap_or_else(|e| panic!("{e}\n{text}"))
    };
    let joined = "input %q: f32[2, 6, 32]\ninput %k: f32[2, 11, 32]\ninput %v: f32[2, 11, 24]\ninput %m: f32[6, 11]";
    let apart =
        "input %q: f32[2, 4, 6, 8]\ninput %k: f32[2, 4, 11, 8]\ninput %v: f32[2, 4, 11, 5]\ninput %m: f32[2, 1, 6, 11]";
    for (inputs, heads) in [(joined, "q_num_heads=4, kv_num_heads=4, "), (apart, "")] {
        for (mask, attrs) in [("", "scale=0.4"), (", %m", "is_causal=0"), ("", "is_causal=1"), (", %m", "is_causal=1")]
        {
            let body = format!("%y = Attention(%q, %k, %v{mask}) {{{heads}{attrs}}}");
            let graph = parse(inputs, &body);
            check(&graph, &samples(&graph), &["attention_f32"], &body);
        }
    }
    // What has no parts runs as a whole.
    let body = "%y = Attention(%q, %k, %v) {q_num_heads=4, kv_num_heads=4, softcap=3.0}";
    let graph = parse(joined, body);
    let (_, profile) = session(&graph, 1).profile(&samples(&graph)).expect("it runs");
    assert!(profile.rows.iter().any(|r| r.kernel == "reference"), "{:?}", profile.rows);
}

#[test]
fn runs_normalisations_of_sums_in_parts() {
    let inputs = "input %x: f32[2, 5, 24]\ninput %s: f32[2, 5, 24]";
    let constants = [floats("g", &[24], 5), floats("e", &[24], 6), floats("b", &[24], 7)].concat();
    for (call, outputs) in [
        ("%y = com.microsoft.SkipLayerNormalization(%x, %s, %g, %e)", "output %y"),
        ("%y, _, _, %z = com.microsoft.SkipLayerNormalization(%x, %s, %g, _, %b)", "output %y\noutput %z"),
        ("%y = com.microsoft.SkipSimplifiedLayerNormalization(%x, %s, %g)", "output %y"),
        ("%y, _, _, %z = com.microsoft.SkipSimplifiedLayerNormalization(%x, %s, %g, %b)", "output %y\noutput %z"),
        // One behind the other.
        (
            "%a, _, _, %z = com.microsoft.SkipLayerNormalization(%x, %s, %g, %e)\n\
             %y = com.microsoft.SkipLayerNormalization(%a, %z, %g, %e)",
            "output %y",
        ),
    ] {
        let graph = graph(inputs, &format!("{constants}{call}"), outputs);
        let expected = if call.contains("Simplified") { "rms_norm" } else { "layer_norm" };
        check(&graph, &samples(&graph), &[expected], call);
    }
}

#[test]
fn runs_embeddings_in_parts() {
    let constants = [
        floats("words", &[30, 16], 1),
        floats("places", &[12, 16], 2),
        floats("segments", &[2, 16], 3),
        floats("g", &[16], 4),
        floats("b", &[16], 5),
    ]
    .concat();
    for (call, positions) in [
        ("%y = com.microsoft.EmbedLayerNormalization(%i, %s, %words, %places, %segments, %g, %b)", false),
        ("%y, _, %z = com.microsoft.EmbedLayerNormalization(%i, _, %words, %places, _, %g, %b, _, %p)", true),
    ] {
        let inputs = "input %i: i32[2, 6]\ninput %s: i32[2, 6]\ninput %p: i32[2, 6]";
        let outputs = if positions { "output %y\noutput %z" } else { "output %y" };
        let graph = graph(inputs, &format!("{constants}{call}"), outputs);
        let ids = |most: i32, step: i32| {
            Tensor::new([2, 6], (0..12).map(|i| i * step % most).collect::<Vec<i32>>()).expect("the length fits")
        };
        check(&graph, &[ids(30, 7), ids(2, 1), ids(12, 5)], &["layer_norm", "gather"], call);
    }
}
