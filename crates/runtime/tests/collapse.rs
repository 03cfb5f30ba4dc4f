//! Elementwise nodes that depend on one tensor of codes run as one table, with the bits of the operators themselves.

use narrowbit_ir::{Graph, interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::{DType, Tensor};

fn graph(inputs: &str, body: &str) -> Graph {
    let text = format!("graph \"g\" {{\n{inputs}\n{body}\noutput %y\n}}");
    text::parse_graph(&text, &Registry, 20).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The constants `%{name}_s` and `%{name}_z`.
fn format_of(name: &str, scale: f32, zero: i32) -> String {
    format!("const %{name}_s: f32[] = [{scale}]\nconst %{name}_z: u8[] = [{zero}]\n")
}

/// `op`, its result quantized as `%{name}` and read back as `%{name}_d`.
fn quantized(name: &str, op: &str, scale: f32, zero: i32) -> String {
    format!(
        "{}%{name}_f = {op}\n%{name} = QuantizeLinear(%{name}_f, %{name}_s, %{name}_z)\n\
         %{name}_d = DequantizeLinear(%{name}, %{name}_s, %{name}_z)\n",
        format_of(name, scale, zero)
    )
}

/// Every code, as often as the shape has room.
fn all_codes(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    Tensor::from_bytes(DType::U8, shape.to_vec(), (0..len).map(|i| (i % 256) as u8).collect::<Vec<u8>>())
        .expect("bytes")
}

/// Runs a graph on the runtime with the interpreter's bits; the kernels that it took.
#[track_caller]
fn kernels(graph: &Graph, inputs: &[Tensor]) -> Vec<String> {
    let session = Session::new(graph.clone(), Options { threads: 1, ..Options::default() }).expect("a valid graph");
    let (got, profile) = session.profile(inputs).expect("it runs");
    let want = interp::run_tensors(graph, inputs).expect("it runs on the interpreter");
    assert_eq!((got[0].dtype(), got[0].shape()), (want[0].dtype(), want[0].shape()));
    assert_eq!(got[0].bytes(), want[0].bytes());
    profile.rows.iter().map(|r| r.kernel.clone()).collect()
}

const GELU_CONSTANTS: &str = "const %root: f32[] = [1.4142135]\nconst %one: f32[] = [1]\nconst %half: f32[1] = [0.5]\n";

#[test]
fn runs_gelu_in_quantized_parts_as_one_table() {
    let body = [
        GELU_CONSTANTS.to_owned(),
        format_of("x", 0.031, 131),
        "%x_d = DequantizeLinear(%x, %x_s, %x_z)\n".to_owned(),
        quantized("a", "Div(%x_d, %root)", 0.022, 131),
        quantized("b", "Erf(%a_d)", 2.0 / 255.0, 128),
        quantized("c", "Add(%b_d, %one)", 2.0 / 255.0, 0),
        quantized("d", "Mul(%x_d, %c_d)", 0.033, 11),
        format!("{}%y_f = Mul(%d_d, %half)\n%y = QuantizeLinear(%y_f, %y_s, %y_z)", format_of("y", 0.016, 11)),
    ];
    let graph = graph("input %x: u8[3, 171]", &body.concat());
    assert_eq!(kernels(&graph, &[all_codes(&[3, 171])]), ["lookup_i8"]);
}

#[test]
fn runs_floats_between_codes_as_one_table() {
    let body = format!(
        "{GELU_CONSTANTS}{}{}%x_d = DequantizeLinear(%x, %x_s, %x_z)\n%e = Exp(%x_d)\n%t = Tanh(%e)\n\
         %m = Mul(%t, %x_d)\n%y = QuantizeLinear(%m, %y_s, %y_z)",
        format_of("x", 0.02, 100),
        format_of("y", 0.013, 140)
    );
    assert_eq!(kernels(&graph("input %x: u8[300]", &body), &[all_codes(&[300])]), ["lookup_i8"]);
}

#[test]
fn adds_and_multiplies_constants_as_the_operator_does_where_results_are_ties() {
    for (op, first, second) in [("Add", "x", "c"), ("Add", "c", "x"), ("Mul", "x", "c"), ("Mul", "c", "x")] {
        // Sums in halves of a code behind an odd zero point: rounding before or after it is added differs.
        let body = format!(
            "{}{}{}const %c: u8[1] = [9]\n%y = com.microsoft.QLinear{op}(%{first}, %{first}_s, %{first}_z, %{second}, \
             %{second}_s, %{second}_z, %y_s, %y_z)",
            format_of("x", 0.5, 128),
            format_of("c", 1.0, 8),
            format_of("y", 1.0, 77)
        );
        assert_eq!(kernels(&graph("input %x: u8[4, 77]", &body), &[all_codes(&[4, 77])]), ["lookup_i8"], "{op}");
    }
}

#[test]
fn leaves_sums_of_two_tensors_and_of_other_shapes_alone() {
    let sum = |other: &str| {
        format!(
            "{}{}%x_d = DequantizeLinear(%x, %x_s, %x_z)\n{other}\n%s = Add(%x_d, %o)\n%y = QuantizeLinear(%s, %y_s, %y_z)",
            format_of("x", 0.02, 100),
            format_of("y", 0.037, 90)
        )
    };
    let two = graph("input %x: u8[300]\ninput %o: f32[300]", &sum(""));
    let floats = Tensor::new([300], (0..300).map(|i| i as f32 * 0.01).collect::<Vec<f32>>()).expect("floats");
    assert!(!kernels(&two, &[all_codes(&[300]), floats]).contains(&"lookup_i8".to_owned()));
    let several = graph("input %x: u8[300]", &sum("const %o: f32[2, 1] = [0.25, -1]"));
    assert!(!kernels(&several, &[all_codes(&[300])]).contains(&"lookup_i8".to_owned()));
    // A constant of one element that adds an axis: the result is no longer of the codes' shape.
    let longer = graph("input %x: u8[300]", &sum("const %o: f32[1, 1] = [0.25]"));
    assert!(!kernels(&longer, &[all_codes(&[300])]).contains(&"lookup_i8".to_owned()));
}
