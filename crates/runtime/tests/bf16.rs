//! Products of floats with operands rounded to bfloat16.

use narrowbit_ir::{Graph, interp, text};
use narrowbit_kernels::Isa;
use narrowbit_kernels::isa::ISA_VARIABLE;
use narrowbit_ops::Registry;
use narrowbit_runtime::{Float, Options, Session};
use narrowbit_tensor::Tensor;

const EMULATED: &str = "amx-emulated";

/// A convolution of three channels, one of many, and a product.
fn graph() -> Graph {
    let text = "graph \"g\" {\ninput %x: f32[1, 3, 9, 11]\n const %v: f32[40, 3, 3, 3] = random(1)\n\
        const %w: f32[40, 40, 3, 3] = random(2)\n const %b: f32[40] = random(3)\n const %m: f32[40, 21] = random(4)\n\
        const %s: i64[2] = [-1, 40]\n\
        %a = Conv(%x, %v, %b) {pads=[1, 1, 1, 1], strides=[2, 2]}\n %c = Relu(%a)\n %d = Conv(%c, %w) {pads=[1, 1, 1, 1]}\n\
        %t = Transpose(%d) {perm=[0, 2, 3, 1]}\n %r = Reshape(%t, %s)\n %y = MatMul(%r, %m)\noutput %y\n}";
    text::parse_graph(text, &Registry, 20).unwrap_or_else(|e| panic!("{e}"))
}

fn session() -> Session {
    Session::new(graph(), Options { threads: 2, ..Options::default() }).expect("a session")
}

#[test]
fn rounds_operands_where_the_machine_multiplies_bfloat16() {
    if !Isa::from_env().expect("a tier of this machine").multiplies_bf16() {
        return;
    }
    let x: Vec<f32> = (0..297).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let inputs = [Tensor::new([1, 3, 9, 11], x).expect("as many elements")];
    let session = session().with_float(Float::Bf16).expect("it has bfloat16");
    let (got, profile) = session.profile(&inputs).expect("it runs");
    let products = profile.rows.iter().filter(|r| r.kernel.starts_with("panel_bf16f32")).count();
    assert_eq!(products, 3, "{:?}", profile.rows);
    let want = interp::run_tensors(&graph(), &inputs).expect("it runs on the interpreter");
    let (got, want) = (got[0].to_f32s().expect("floats"), want[0].to_f32s().expect("floats"));
    let most = want.iter().fold(0f32, |a, v| a.max(v.abs()));
    let error = got.iter().zip(want.iter()).map(|(g, w)| (g - w).abs()).fold(0f32, f32::max);
    // Six roundings by up to 2⁻⁹ on the way, which mostly cancel; and not none.
    assert!(error <= most / 64.0 && error > 0.0, "{error} of {most}");
}

#[test]
fn rounds_operands_on_emulated_tiles() {
    if std::env::var(ISA_VARIABLE).is_ok_and(|isa| isa == EMULATED) {
        return;
    }
    let tests = std::env::current_exe().expect("this file's tests");
    let run = std::process::Command::new(tests).env(ISA_VARIABLE, EMULATED).output().expect("they start");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
}

#[test]
fn refuses_bfloat16_that_no_instruction_multiplies() {
    if Isa::from_env().expect("a tier of this machine").multiplies_bf16() {
        return;
    }
    let error = session().with_float(Float::Bf16).expect_err("it has none");
    assert!(error.to_string().contains("AVX512-BF16"), "{error}");
    assert!(session().with_float(Float::F32).is_ok());
}
