//! What is put in the place of Softmax and LayerNormalization, and what stays.

use std::error::Error;

use narrowbit_ir::{Model, interp, text};
use narrowbit_ops::Registry;
use narrowbit_ops::functions::{LayerMad, Shiftmax};
use narrowbit_passes::replace;
use narrowbit_tensor::Tensor;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn model(opset: i64, body: &str) -> Result<Model> {
    let mut model = text::parse_model(&format!("model opset={opset} graph \"g\" {{ {body} }}"), &Registry)?;
    narrowbit_ir::infer::annotate(&mut model.graph)?;
    Ok(model)
}

fn values(shape: &[usize], spread: f32) -> Result<Tensor> {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let len: usize = shape.iter().product();
    Ok(Tensor::new(shape.to_vec(), (0..len).map(|_| next() * spread).collect::<Vec<f32>>())?)
}

fn found(model: &Model) -> Vec<Shiftmax> {
    model.graph.nodes().filter_map(|(id, _)| Shiftmax::find(&model.graph, id)).collect()
}

/// Queries and keys from one projection, whose parts are told apart by a Split.
const PROJECTED: &str =
    "input %x: f32[1, 6, 4] const %w: f32[4, 16] = [W] const %heads: i64[5] = [1, 6, 2, 2, 4] const %ax: i64[1] = [2]
    %p = MatMul(%x, %w) %r = Reshape(%p, %heads) %q0, %k0 = Split(%r) {axis=2, num_outputs=2}
    %q1 = Squeeze(%q0, %ax) %k1 = Squeeze(%k0, %ax)
    %q = Transpose(%q1) {perm=[0, 2, 1, 3]} %k = Transpose(%k1) {perm=[0, 2, 3, 1]} %m = MatMul(%q, %k)";

fn projected(rest: &str) -> Result<Model> {
    let weights: Vec<String> = (0..64).map(|i| format!("{}", (i * 37 % 64 - 32) as f32 / 24.0)).collect();
    model(18, &format!("{} {rest}", PROJECTED.replace('W', &weights.join(", "))))
}

#[test]
fn counts_in_powers_of_e_where_the_queries_are_projected() -> Result<()> {
    let mut m = projected("const %d: f32[] = [2.8] %t = Div(%m, %d) %y = Softmax(%t) output %y")?;
    let x = [values(&[1, 6, 4], 1.5)?];
    let exact = interp::run_tensors(&m.graph, &x)?[0].to_f32s()?.into_owned();
    let done = replace::shiftmax(&mut m)?;
    assert_eq!((done.count, done.skipped.len(), found(&m).len()), (1, 0, 1));
    assert!(m.graph.nodes().all(|(_, n)| !matches!(n.op.name(), "Softmax" | "Div")), "the factor is in the weights");
    let made = interp::run_tensors(&m.graph, &x)?[0].to_f32s()?.into_owned();
    for (row, (exact, made)) in exact.chunks(6).zip(made.chunks(6)).enumerate() {
        for (e, p) in exact.iter().zip(made) {
            assert!(*p == 0.0 || p.log2().fract() == 0.0, "{p} is no power of two");
            // Logits lose up to 1, which their greatest may not, and the sum is rounded by a factor of √2.
            assert!((p / e).log2().abs() <= 1.5 + 1e-3 || *e < 2e-3, "row {row}: {p} for {e}");
        }
    }
    Ok(())
}

#[test]
fn takes_the_nearest_power_of_two_where_nothing_is_projected() -> Result<()> {
    let head = "input %q: f32[n, 5, 4] input %k: f32[n, 4, 5] %m = MatMul(%q, %k)";
    for (factor, scale) in [("0.17677669", Some(0.25)), ("0.125", Some(0.125)), ("1.1", None)] {
        let body = format!("{head} const %c: f32[] = [{factor}] %t = Mul(%c, %m) %y = Softmax(%t) output %y");
        let mut m = model(13, &body)?;
        assert_eq!(replace::shiftmax(&mut m)?.count, 1);
        let [shiftmax] = &found(&m)[..] else { return Err("it is not found".into()) };
        let scaled = m.graph.producer(shiftmax.x).map(|(n, _)| n);
        let by = scaled.and_then(|n| m.graph.const_input(n, 1)).map(|t| t.to_f64s().map(|v| v[0]));
        assert_eq!(by.transpose()?, scale, "{factor}");
    }
    Ok(())
}

#[test]
fn leaves_softmax_that_is_none_of_scores() -> Result<()> {
    let why = |body: &str| -> Result<String> {
        let mut m = model(18, body)?;
        let done = replace::shiftmax(&mut m)?;
        assert_eq!((done.count, found(&m).len()), (0, 0));
        Ok(done.skipped[0].1.clone())
    };
    let head = "input %q: f32[n, 5, 5] input %k: f32[n, 5, 5] %m = MatMul(%q, %k)";
    assert!(why(&format!("{head} %y = Softmax(%m) {{axis=1}} output %y"))?.contains("last axis"));
    assert!(why(&format!("{head} %a = Add(%m, %k) %y = Softmax(%a) output %y"))?.contains("on the way"));
    assert!(why(&format!("{head} %y = Softmax(%m) output %y output %m"))?.contains("read elsewhere"));
    assert!(
        why(&format!("{head} const %c: f32[] = [-1] %t = Mul(%m, %c) %y = Softmax(%t) output %y"))?
            .contains("above zero")
    );
    let weights =
        "input %q: f32[n, 2] const %w: f32[2, 2] = [1, 2, 3, 4] %m = MatMul(%q, %w) %y = Softmax(%m) output %y";
    assert!(why(weights)?.contains("attention"));
    assert!(why("input %q: f32[n, 2] %y = Softmax(%q) output %y")?.contains("attention"));
    Ok(())
}

#[test]
fn normalizes_by_the_mean_magnitude() -> Result<()> {
    for opset in [17, 20] {
        let mut m = model(
            opset,
            "input %x: f32[3, 4] const %s: f32[4] = [1, 2, -3, 0.5] const %b: f32[4] = [0.5, 0, 1, -1]
             %y = LayerNormalization(%x, %s, %b) {axis=-1} output %y",
        )?;
        assert_eq!(replace::layer_mad(&mut m)?.count, 1);
        let found: Vec<_> = m.graph.nodes().filter_map(|(id, _)| LayerMad::find(&m.graph, id)).collect();
        assert_eq!(found.len(), 1);
        // A row of zeros gives the bias.
        let x = [Tensor::new(vec![3, 4], vec![1f32, -2.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1e-3, 0.0, 0.0, 0.0])?];
        let y = interp::run_tensors(&m.graph, &x)?[0].to_f32s()?.into_owned();
        let factor = (2.0f32 / std::f32::consts::PI).sqrt() / 2.0;
        let wanted = [factor + 0.5, -4.0 * factor, -9.0 * factor + 1.0, factor - 1.0, 0.5, 0.0, 1.0, -1.0];
        for (a, b) in y.iter().zip(wanted) {
            // A handful of roundings.
            assert!((a - b).abs() < 1e-5, "{a} for {b}");
        }
        // One value alone is four times the mean magnitude.
        assert!((y[8] - (8.0 * factor + 0.5)).abs() < 1e-5, "{}", y[8]);
    }
    Ok(())
}

#[test]
fn leaves_normalizations_of_another_form() -> Result<()> {
    let why = |body: &str| -> Result<String> {
        let mut m = model(17, body)?;
        let done = replace::layer_mad(&mut m)?;
        assert_eq!(done.count, 0);
        Ok(done.skipped[0].1.clone())
    };
    let head = "input %x: f32[2, 3, 2] const %s: f32[3, 2] = [1, 2, 3, 4, 5, 6] const %t: f32[2] = [1, 2]";
    assert!(why(&format!("{head} %y = LayerNormalization(%x, %s) {{axis=1}} output %y"))?.contains("last axis"));
    assert!(
        why(&format!("{head} %y, %m = LayerNormalization(%x, %t) {{axis=2}} output %y output %m"))?.contains("mean")
    );
    let run_time = "input %x: f32[2, 2] input %s: f32[2] %y = LayerNormalization(%x, %s) output %y";
    assert!(why(run_time)?.contains("no constant"));
    Ok(())
}

#[test]
fn finds_no_function_of_other_numbers() -> Result<()> {
    let mut m = model(18, "input %q: f32[2, 5] input %k: f32[5, 5] %m = MatMul(%q, %k) %y = Softmax(%m) output %y")?;
    replace::shiftmax(&mut m)?;
    let text = text::print_model(&m);
    let count = |text: &str| -> Result<usize> { Ok(found(&text::parse_model(text, &Registry)?).len()) };
    assert_eq!(count(&text)?, 1);
    for (from, to) in [
        ("f32[] = 2\n", "f32[] = 3\n"),
        ("1024", "512"),
        ("[-1]", "[0]"),
        ("Round(", "Ceil("),
        ("ReduceMax(", "ReduceMin("),
    ] {
        assert!(text.contains(from), "{from}: {text}");
        assert_eq!(count(&text.replace(from, to))?, 0, "{from}");
    }
    Ok(())
}
