//! GELU behind a product is as exact as its reader needs.

use narrowbit_ir::{interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

/// Arguments of the GELU, as the product by one gives them: far into the tail.
const LEN: usize = 512;

/// Runs `GELU(x · 1)`, rounded in a range that is found at run time; the interpreter's results beside ours.
fn run(outputs: &str) -> [Vec<Tensor>; 2] {
    let text = format!(
        "graph \"g\" {{\ninput %x: f32[{LEN}, 1]\nconst %w: f32[1, 1] = [1]\n%p = MatMul(%x, %w)\n%g = Gelu(%p)\n\
         %q, %s, %z = DynamicQuantizeLinear(%g)\n{outputs}}}"
    );
    let graph = text::parse_graph(&text, &Registry, 20).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let x: Vec<f32> = (0..LEN).map(|i| i as f32 / 64.0 - 5.25).collect();
    let inputs = [Tensor::new(vec![LEN, 1], x).expect("the length fits")];
    let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
    let got = Session::new(graph, Options::default()).expect("a valid graph").run(&inputs).expect("it runs");
    [got, want]
}

#[test]
fn gives_the_codes_of_the_interpreter_where_only_a_rounding_reads_it() {
    let [got, want] = run("output %q\noutput %z\n");
    let steps: Vec<u8> = got[0].bytes().iter().zip(want[0].bytes()).map(|(&a, &b)| a.abs_diff(b)).collect();
    let off = steps.iter().filter(|&&d| d > 0).count();
    assert!(steps.iter().all(|&d| d <= 1) && off <= LEN / 200, "{off} codes differ");
    assert_eq!(got[1].bytes(), want[1].bytes());
}

#[test]
fn keeps_its_tail_exact_where_somebody_sees_it() {
    let [got, want] = run("output %q\noutput %g\n");
    let floats = |t: &Tensor| t.to_f32s().expect("floats").into_owned();
    for (got, want) in floats(&got[1]).into_iter().zip(floats(&want[1])) {
        // The coarse one is off by up to 7e-7, half of what stands here at −5.
        assert!((got - want).abs() <= 1e-5 * want.abs() + 4e-7, "{got} is not {want}");
    }
}
