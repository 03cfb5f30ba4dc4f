//! Graphs that ask for more memory than an operator may take end in an error that names the node.

use narrowbit_ir::text;
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

fn error(body: &str) -> String {
    let graph = text::parse_graph(&format!("graph \"g\" {{ input %x: f32[1] {body} output %y }}"), &Registry, 17);
    let session = Session::new(graph.unwrap(), Options { threads: 1, ..Options::default() }).unwrap();
    session.run(&[Tensor::vector(vec![1f32])]).unwrap_err().to_string()
}

#[test]
fn refuses_tensors_that_no_memory_holds() {
    let huge = error("const %s: i64[2] = [1099511627776, 4] %e = Expand(%x, %s) @\"big\" %y = Relu(%e)");
    assert!(huge.contains("big") && huge.contains("would take more than"), "{huge}");
    let beside_zero =
        error("const %s: i64[3] = [0, 1099511627776, 1099511627776] %e = Expand(%x, %s) @\"empty\" %y = Relu(%e)");
    assert!(beside_zero.contains("empty"), "{beside_zero}");
}
