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

/// A bottleneck: what its convolutions hand on, depthwise ones too, and what is added to its end.
fn bottleneck(end: &str) -> Graph {
    let text = format!(
        "graph \"g\" {{\ninput %x: f32[1, 16, 9, 11]\n const %u: f32[16, 16, 1, 1] = random(5)\n\
         const %v: f32[32, 16, 1, 1] = random(1)\n const %w: f32[32, 1, 3, 3] = random(2)\n\
         const %z: f32[16, 32, 1, 1] = random(3)\n\
         %s = Conv(%x, %u)\n %a = Conv(%s, %v)\n %b = Relu(%a)\n %c = Conv(%b, %w) {{pads=[1, 1, 1, 1], group=32}}\n\
         %d = Relu(%c)\n %e = Conv(%d, %z)\n %f = Add(%e, %s)\n %y = Conv(%f, %u)\n{end}\n}}"
    );
    text::parse_graph(&text, &Registry, 20).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn hands_images_on_as_bfloat16() {
    if !Isa::from_env().expect("a tier of this machine").multiplies_bf16() {
        return;
    }
    let x: Vec<f32> = (0..16 * 99).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let inputs = [Tensor::new([1, 16, 9, 11], x).expect("as many elements")];
    let run = |graph: &Graph, observe: &[&str]| {
        let observe = observe.iter().map(|v| graph.value_named(v).expect("it is there")).collect();
        let session = Session::new(graph.clone(), Options { threads: 2, observe }).expect("a session");
        let session = session.with_float(Float::Bf16).expect("it has bfloat16");
        let (got, profile) = session.profile(&inputs).expect("it runs");
        (got, profile.rows.iter().map(|r| r.bytes).collect::<Vec<_>>())
    };
    let graph = bottleneck("output %y");
    let (got, bytes) = run(&graph, &[]);
    let want = interp::run_tensors(&graph, &inputs).expect("it runs on the interpreter");
    let (values, wanted) = (got[0].to_f32s().expect("floats"), want[0].to_f32s().expect("floats"));
    let most = wanted.iter().fold(0f32, |a, v| a.max(v.abs()));
    let error = values.iter().zip(wanted.iter()).map(|(g, w)| (g - w).abs()).fold(0f32, f32::max);
    assert!(error <= most / 32.0 && error > 0.0, "{error} of {most}");
    // In the order of the graph, behind the input's change of layout: floats in, bfloat16 between, floats out.
    let image = 16 * 99;
    let between = [2 * image + 2 * 2 * image, 2 * 2 * 2 * image, (4 + 2 + 2) * image];
    assert_eq!(bytes[2..5], between, "{bytes:?}");
    // What is an output, or observed, stays in floats.
    let (_, observed) = run(&graph, &["b"]);
    assert_eq!(observed[2..4], [2 * image + 4 * 2 * image, (4 + 2) * 2 * image], "{observed:?}");
    let (_, shown) = run(&bottleneck("output %y\noutput %s"), &[]);
    assert!(shown[1] > bytes[1] && shown[2] > bytes[2], "{shown:?} {bytes:?}");
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
