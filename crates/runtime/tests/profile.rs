//! The profile tells what ran: every node of the graph is in one step, and the steps fill the run.

use narrowbit_ir::{Graph, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

fn graph(text: &str) -> Graph {
    text::parse_graph(text, &Registry, 20).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn names_all_nodes_of_a_fusion_and_the_bytes_that_it_touches() {
    let g = graph(
        "graph \"g\" {\ninput %x: f32[2,8]\nconst %w: f32[8,4] = random(1)\nconst %b: f32[4] = random(2)\n\
         %m = MatMul(%x, %w)\n%a = Add(%m, %b)\n%r = Relu(%a)\n%y = Neg(%r)\noutput %y\n}",
    );
    let session = Session::new(g.clone(), Options { threads: 1, ..Options::default() }).expect("the graph is valid");
    let x = Tensor::new([2, 8], vec![0.5f32; 16]).expect("a tensor");
    let (_, profile) = session.profile(&[x]).expect("it runs");
    let names =
        |i: usize| -> Vec<&str> { profile.rows[i].nodes.iter().map(|&n| session.graph().node(n).op.name()).collect() };
    assert_eq!(profile.rows.len(), 2, "{profile:?}");
    assert_eq!((names(0), names(1)), (vec!["MatMul", "Add", "Relu"], vec!["Neg"]));
    assert_eq!(profile.rows[0].nodes[0], profile.rows[0].node);
    // The weights and the bias are packed in the kernel.
    assert_eq!(profile.rows[0].bytes, (2 * 8 + 2 * 4) * 4);
    assert!(profile.rows.iter().all(|r| r.seconds >= 0.0 && !r.on_integers));
}
