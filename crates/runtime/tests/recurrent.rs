//! LSTM and GRU give what the reference operators give.

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, RunError, Session};
use narrowbit_tensor::Tensor;

fn graph(body: &str) -> Graph {
    let text = format!("graph \"g\" {{\n{body}\n}}");
    text::parse_graph(&text, &Registry, 14).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn floats(shape: &[usize], seed: u32) -> Tensor {
    let mut state = u64::from(seed) + 7;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let len: usize = shape.iter().product();
    Tensor::new(shape, (0..len).map(|_| random()).collect::<Vec<f32>>()).expect("the length fits")
}

/// A layer of 7 units over 3 features, 5 steps and 4 sequences, with all outputs added up to one.
fn layer(op: &str, gates: usize, attrs: &str, lens: &str, states: &str) -> Graph {
    let two = attrs.contains("bidirectional");
    let (dirs, first) = (if two { 2 } else { 1 }, attrs.contains("layout=1"));
    let x = if first { "[4, 5, 3]" } else { "[5, 4, 3]" };
    let outs = if op == "LSTM" { "%y, %h, %c" } else { "%y, %h" };
    let last = if op == "LSTM" { "output %c" } else { "" };
    let rows = gates * 7;
    graph(&format!(
        "input %x: f32{x}\nconst %w: f32[{dirs}, {rows}, 3] = random(1)\nconst %r: f32[{dirs}, {rows}, 7] = random(2)\n\
         const %b: f32[{dirs}, {}] = random(3)\nconst %n: i32[4] = [5, 3, 0, 4]\n\
         const %h0: f32{1} = random(4)\nconst %c0: f32{1} = random(5)\n\
         {outs} = {op}(%x, %w, %r, %b{lens}{states}) {{hidden_size=7{attrs}}}\noutput %y\noutput %h\n{last}",
        2 * rows,
        if first { format!("[4, {dirs}, 7]") } else { format!("[{dirs}, 4, 7]") },
    ))
}

/// Runs a graph on its kernel. A gate's argument is a sum of 12 products of numbers below 1, off by 12 · 2⁻²⁴ · 12 < 1e-5 at
/// the most; slopes up to 1 pass that on through 5 steps.
#[track_caller]
fn agrees(graph: &Graph, kernel: &str) {
    let shape = graph.value(graph.inputs()[0]).ty.tensor().and_then(|t| t.concrete_shape()).expect("a known shape");
    let x = floats(&shape, 9);
    let want = interp::run_tensors(graph, std::slice::from_ref(&x)).expect("it runs on the interpreter");
    let mut first: Option<Vec<Tensor>> = None;
    for threads in [1, 2, 3] {
        let session = Session::new(graph.clone(), Options { threads, ..Options::default() }).expect("it is valid");
        let (out, profile) = session.profile(std::slice::from_ref(&x)).expect("it runs");
        assert!(profile.rows.iter().any(|r| r.kernel == kernel), "{:?}", profile.rows);
        for (got, want) in out.iter().zip(&want) {
            assert_eq!(got.shape(), want.shape());
            let (got, want) = (got.to_f32s().expect("floats"), want.to_f32s().expect("floats"));
            let worst = got.iter().zip(want.iter()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 5e-5, "off by {worst}");
        }
        let bytes = |t: &[Tensor]| t.iter().map(|t| t.bytes().to_vec()).collect::<Vec<_>>();
        let first = first.get_or_insert_with(|| out.clone());
        assert_eq!(bytes(first), bytes(&out), "{threads} threads");
    }
}

#[test]
fn runs_every_form_of_both_layers() {
    for (op, gates, forms) in [("LSTM", 4, ["", ", input_forget=1"]), ("GRU", 3, ["", ", linear_before_reset=1"])] {
        let kernel = if op == "LSTM" { "lstm_f32" } else { "gru_f32" };
        for form in forms {
            for direction in ["forward", "reverse", "bidirectional"] {
                for layout in ["", ", layout=1", ", clip=0.7"] {
                    let attrs = format!(", direction=\"{direction}\"{layout}{form}");
                    agrees(&layer(op, gates, &attrs, "", ""), kernel);
                    let states = if op == "LSTM" { ", %h0, %c0" } else { ", %h0" };
                    agrees(&layer(op, gates, &attrs, ", %n", states), kernel);
                }
            }
        }
    }
}

/// Other functions and peepholes have no kernel, and run all the same.
#[test]
fn leaves_other_cells_to_the_reference() {
    let attrs = ", activations=[\"Sigmoid\", \"Tanh\", \"Relu\"]";
    agrees(&layer("LSTM", 4, attrs, "", ""), "reference");
    let peepholes = "input %x: f32[2, 1, 3]\nconst %w: f32[1, 8, 3] = random(1)\nconst %r: f32[1, 8, 2] = random(2)\n\
                     const %p: f32[1, 6] = random(3)\n%y = LSTM(%x, %w, %r, _, _, _, _, %p)\noutput %y";
    agrees(&graph(peepholes), "reference");
    let weights = "input %x: f32[2, 1, 3]\ninput %w: f32[1, 8, 3]\nconst %r: f32[1, 8, 2] = random(2)\n\
                   %y = LSTM(%x, %w, %r)\noutput %y";
    let graph = graph(weights);
    let session = Session::new(graph, Options::default()).expect("it is valid");
    let (_, profile) = session.profile(&[floats(&[2, 1, 3], 1), floats(&[1, 8, 3], 2)]).expect("it runs");
    assert_eq!(profile.rows[0].kernel, "reference");
}

#[test]
fn refuses_sequences_longer_than_the_input() {
    let body = "input %x: f32[2, 1, 3]\ninput %n: i32[1]\nconst %w: f32[1, 8, 3] = random(1)\n\
                const %r: f32[1, 8, 2] = random(2)\n%y = LSTM(%x, %w, %r, _, %n)\noutput %y";
    let session = Session::new(graph(body), Options::default()).expect("it is valid");
    let run = |n: i32| session.run(&[floats(&[2, 1, 3], 1), Tensor::vector(vec![n])]);
    assert!(run(2).is_ok());
    for n in [3, -1, i32::MIN] {
        assert!(matches!(run(n), Err(RunError::Kernel { .. })), "{n}");
    }
}
