//! What decoders of texts have: rotation by positions and attention with a cache, with the interpreter's results.

mod support;

use narrowbit_ir::{Graph, interp};
use narrowbit_tensor::Tensor;

use support::{assert_close, check, graph, samples, session};

fn ints(shape: &[usize], values: impl Iterator<Item = i64>) -> Tensor {
    Tensor::new(shape, values.collect::<Vec<i64>>()).expect("the length fits")
}

#[test]
fn rotates_heads_as_both_operators() {
    let cases = [
        ("f32[2, 3, 5, 16]", "RotaryEmbedding(%x, %c, %s, %i)", 8, true),
        ("f32[2, 3, 5, 16]", "RotaryEmbedding(%x, %c, %s, %i) {interleaved=1}", 8, true),
        ("f32[2, 5, 48]", "RotaryEmbedding(%x, %c, %s, %i) {num_heads=3, rotary_embedding_dim=6}", 3, true),
        ("f32[2, 5, 48]", "com.microsoft.RotaryEmbedding(%x, %i, %c, %s)", 8, true),
        ("f32[2, 5, 48]", "com.microsoft.RotaryEmbedding(%x, %i, %c, %s) {interleaved=1}", 8, false),
        ("f32[2, 3, 5, 16]", "com.microsoft.RotaryEmbedding(%x, %i, %c, %s)", 8, false),
    ];
    for (ty, call, half, each) in cases {
        let ids = if each { "i64[2, 5]" } else { "i64[1]" };
        let inputs = format!("input %x: {ty}\ninput %c: f32[9, {half}]\ninput %s: f32[9, {half}]\ninput %i: {ids}");
        let graph = graph(&inputs, &format!("%y = {call}"), "output %y");
        let mut data = samples(&graph);
        data[3] = if each { ints(&[2, 5], (0..10).map(|i| i * 7 % 9)) } else { ints(&[1], [3].into_iter()) };
        check(&graph, &data, "rotate_f32", 5e-7, call);
        data[3] = if each { ints(&[2, 5], 0..10) } else { ints(&[1], [5].into_iter()) };
        let error = session(&graph, 1).run(&data).expect_err("the caches have nine positions").to_string();
        assert!(error.contains("position_ids has 9"), "{error}");
    }
}

/// Inputs of a GroupQueryAttention with `past` rows in the cache and `length` new ones.
fn attention(past: usize, length: usize, packed: bool, attrs: &str) -> Graph {
    let (heads, kv, size, all) = (6, 2, 20, past + length);
    let width = if packed { (heads + 2 * kv) * size } else { heads * size };
    let cache = |name: &str| match past {
        0 => String::new(),
        _ => format!("input %{name}: f32[2, {kv}, {past}, {size}]\n"),
    };
    let (k, v) = if packed { ("_", "_") } else { ("%k", "%v") };
    let parts = match packed {
        true => String::new(),
        false => format!("input %k: f32[2, {length}, {}]\ninput %v: f32[2, {length}, {}]\n", kv * size, kv * size),
    };
    let rotary = attrs.contains("do_rotary");
    let angles =
        if rotary { format!("input %c: f32[{}, 8]\ninput %s: f32[{}, 8]\n", all + 3, all + 3) } else { String::new() };
    let inputs =
        format!("input %q: f32[2, {length}, {width}]\n{parts}{}{}{angles}input %n: i32[2]", cache("pk"), cache("pv"));
    let (pk, pv) = if past == 0 { ("_", "_") } else { ("%pk", "%pv") };
    let tail = if rotary { ", %c, %s" } else { "" };
    let body = format!(
        "const %t: i32[] = [{all}]\n%y, %ok, %ov = com.microsoft.GroupQueryAttention(%q, {k}, {v}, {pk}, {pv}, %n, %t{tail}) \
         {{num_heads={heads}, kv_num_heads={kv}{attrs}}}"
    );
    graph(&inputs, &body, "output %y\noutput %ok\noutput %ov")
}

#[test]
fn attends_with_a_cache_as_the_operator() {
    for (past, length) in [(0, 1), (0, 9), (33, 1), (12, 2), (12, 5)] {
        for packed in [false, true] {
            for attrs in
                ["", ", do_rotary=1", ", do_rotary=1, rotary_interleaved=1, scale=0.3", ", local_window_size=4"]
            {
                let graph = attention(past, length, packed, attrs);
                let mut inputs = samples(&graph);
                let lengths = inputs.len() - 1;
                let all = (past + length) as i32;
                // The second batch entry has less in its cache.
                let shorter = if past == 0 { all } else { all - 3 };
                inputs[lengths] = Tensor::vector(vec![all - 1, shorter - 1]);
                let what = format!("{past} and {length} rows, packed {packed}{attrs}");
                check(&graph, &inputs, "group_attention_f32", 2e-5, &what);
            }
        }
    }
}

#[test]
fn refuses_lengths_that_the_cache_does_not_have() {
    let graph = attention(12, 1, false, "");
    let mut inputs = samples(&graph);
    let lengths = inputs.len() - 1;
    inputs[lengths] = Tensor::vector(vec![12i32, 13]);
    let error = session(&graph, 1).run(&inputs).expect_err("there are thirteen rows").to_string();
    assert!(error.contains("seqlens_k has 13"), "{error}");
}

#[test]
fn leaves_capped_scores_to_the_operator() {
    let graph = attention(0, 4, false, ", softcap=5.0");
    let mut inputs = samples(&graph);
    let lengths = inputs.len() - 1;
    inputs[lengths] = Tensor::vector(vec![3i32, 3]);
    let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
    let got = session(&graph, 1).run(&inputs).expect("it runs");
    assert_close(&got[0], &want[0], 1e-6, "softcap");
}
