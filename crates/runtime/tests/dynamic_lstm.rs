//! Quantized LSTMs give what the reference operator gives.

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Operands, Options, Session};
use narrowbit_tensor::{SplitMix64, Tensor};

/// Units, features, steps and sequences.
const H: usize = 7;
const I: usize = 3;
const T: usize = 5;
const B: usize = 4;

/// A layer; what is not stated is the operator's default.
#[derive(Clone, Copy, Default)]
struct Layer<'a> {
    attrs: &'a str,
    /// The type of the weights.
    signed: bool,
    per_column: bool,
    zeros: bool,
    /// Whether sequences have lengths and first states.
    states: bool,
    /// Another input behind the first states.
    peepholes: &'a str,
}

impl Layer<'_> {
    fn graph(&self) -> Graph {
        let dirs = if self.attrs.contains("bidirectional") { 2 } else { 1 };
        let first = self.attrs.contains("layout=1");
        let mut r = SplitMix64::new(5);
        let mut text = String::new();
        let list = |values: Vec<String>| format!("[{}]", values.join(", "));
        let count = if self.per_column { dirs * 4 * H } else { dirs };
        let shape = if self.per_column { format!("[{dirs}, {}]", 4 * H) } else { format!("[{dirs}]") };
        let (ty, low) = if self.signed { ("i8", -128) } else { ("u8", 0) };
        for (name, rows) in [("w", I), ("r", H)] {
            let mut code = || (r.next_u64() % 256) as i64 + low;
            let codes = list((0..dirs * rows * 4 * H).map(|_| code().to_string()).collect());
            let middle = if self.signed { 0 } else { 128 };
            let zeros = list((0..count).map(|_| (middle + i64::from(self.zeros) * (code() % 7)).to_string()).collect());
            let scales = list((0..count).map(|i| format!("{}", 0.004 + 0.001 * (i % 5) as f32)).collect());
            text += &format!("const %{name}: {ty}[{dirs}, {rows}, {}] = {codes}\n", 4 * H);
            text += &format!("const %{name}s: f32{shape} = {scales}\nconst %{name}z: {ty}{shape} = {zeros}\n");
        }
        let (x, state) = match first {
            true => (format!("[{B}, {T}, {I}]"), format!("[{B}, {dirs}, {H}]")),
            false => (format!("[{T}, {B}, {I}]"), format!("[{dirs}, {B}, {H}]")),
        };
        let states = if self.states { "%n, %h0, %c0" } else { "_, _, _" };
        let peepholes = if self.peepholes.is_empty() { "_" } else { self.peepholes };
        let text = format!(
            "graph \"g\" {{ input %x: f32{x}\n{text}const %b: f32[{dirs}, {}] = random(3)\nconst %n: i32[4] = [5, 3, 0, 4]\n\
             const %h0: f32{state} = random(4)\nconst %c0: f32{state} = random(5)\nconst %p: f32[{dirs}, {}] = random(6)\n\
             %y, %h, %c = com.microsoft.DynamicQuantizeLSTM(%x, %w, %r, %b, {states}, {peepholes}, %ws, %wz, %rs, %rz) \
             {{hidden_size={H}{}}}\noutput %y\noutput %h\noutput %c }}",
            8 * H,
            3 * H,
            self.attrs
        );
        text::parse_graph(&text, &Registry, 14).unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    /// Runs the layer on a kernel. The sums of integers are the reference's; floats are off as those of the float layer are, by
    /// 5e-5 at the most, unless a hidden state becomes another code, for which none of these lies near enough to a border.
    #[track_caller]
    fn agrees(&self, kernel: &str) {
        let graph = self.graph();
        let shape = graph.value(graph.inputs()[0]).ty.tensor().and_then(|t| t.concrete_shape()).expect("a known shape");
        let mut r = SplitMix64::new(9);
        let x = Tensor::new(shape, (0..T * B * I).map(|_| r.normal() as f32).collect::<Vec<f32>>()).expect("it fits");
        let want = interp::run_tensors(&graph, std::slice::from_ref(&x)).expect("it runs on the interpreter");
        let mut first: Option<Vec<Tensor>> = None;
        for threads in [1, 2, 3] {
            let session = Session::new(graph.clone(), Options { threads, ..Options::default() }).expect("it is valid");
            let (out, profile) = session.profile(std::slice::from_ref(&x)).expect("it runs");
            assert_eq!(profile.rows[0].kernel, kernel, "{:?}", profile.rows);
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
}

#[test]
fn runs_every_form_on_integers() {
    for direction in ["forward", "reverse", "bidirectional"] {
        for more in ["", ", clip=0.7", ", input_forget=1"] {
            let attrs = &format!(", direction=\"{direction}\"{more}");
            for (signed, per_column, zeros) in
                [(true, true, false), (false, false, false), (false, true, true), (true, false, true)]
            {
                for states in [false, true] {
                    Layer { attrs, signed, per_column, zeros, states, peepholes: "" }.agrees("lstm_int8");
                }
            }
        }
    }
    Layer { attrs: ", layout=1, direction=\"bidirectional\"", states: true, ..Layer::default() }.agrees("lstm_int8");
}

#[test]
fn leaves_other_cells_to_the_reference() {
    Layer { attrs: ", activations=[\"Sigmoid\", \"Tanh\", \"Relu\"]", ..Layer::default() }.agrees("reference");
    Layer { peepholes: "%p", ..Layer::default() }.agrees("reference");
}

#[test]
fn says_that_it_multiplies_integers() {
    let session = Session::new(Layer::default().graph(), Options::default()).expect("it is valid");
    let x = Tensor::new([T, B, I], vec![0.5f32; T * B * I]).expect("it fits");
    let (_, profile) = session.profile(&[x]).expect("it runs");
    assert_eq!(profile.rows[0].operands, Operands::Int8);
}
