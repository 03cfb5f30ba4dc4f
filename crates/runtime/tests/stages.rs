//! Graphs whose shapes depend on data run in compiled parts, with the results of the reference operators.

use std::collections::BTreeSet;

use narrowbit_ir::{Model, interp, text};
use narrowbit_ops::Registry;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

/// Chooses the rows of a product whose first element is positive, and multiplies them again.
const CHOOSE: &str = "model opset=17 graph \"g\" { input %x: f32[n, 8]
    const %w: f32[8, 8] = random(1) const %v: f32[8, 5] = random(2) const %zero: f32[1] = [0]
    const %start: i64[1] = [0] const %end: i64[1] = [1] const %axis: i64[1] = [1] const %flat: i64[1] = [-1]
    %t = Identity(%flat) %p = MatMul(%x, %w) %f = Slice(%p, %start, %end, %axis) %g = Greater(%f, %zero) %m = Reshape(%g, %flat)
    %c = Compress(%p, %m) {axis=0} %r = Relu(%c) %q = MatMul(%r, %v)
    %s = Shape(%q) %k = Reshape(%p, %t) %y = Reshape(%q, %s)
    %i = NonZero(%q) %j = Transpose(%i)
    output %y output %j output %k }";

fn model() -> Model {
    text::parse_model(CHOOSE, &Registry).unwrap()
}

fn input(rows: usize, seed: u64) -> Tensor {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    Tensor::new([rows, 8], (0..rows * 8).map(|_| next()).collect::<Vec<f32>>()).unwrap()
}

/// Elements as f64.
fn numbers(t: &Tensor) -> Vec<f64> {
    t.to_f64s().unwrap().to_vec()
}

#[test]
fn gives_the_results_of_the_reference_operators() {
    let graph = model().graph;
    let session = Session::new(graph.clone(), Options { threads: 2, ..Options::default() }).unwrap();
    // More shapes than programs are kept for; some of them with no row at all.
    for seed in 0..40 {
        let x = [input(1 + seed as usize % 7, seed)];
        let (got, want) = (session.run(&x).unwrap(), interp::run_tensors(&graph, &x).unwrap());
        for (a, b) in got.iter().zip(&want) {
            assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()), "seed {seed}");
            // Sums of eight products in another order.
            assert!(numbers(a).iter().zip(numbers(b)).all(|(a, b)| (a - b).abs() < 1e-5), "seed {seed}");
        }
    }
}

#[test]
fn compiles_products_before_and_behind_the_cut() {
    let graph = model().graph;
    let session = Session::new(graph, Options { threads: 1, ..Options::default() }).unwrap();
    let (_, profile) = session.profile(&[input(6, 3)]).unwrap();
    let kernels = |op: &str| -> Vec<&str> {
        let rows = profile.rows.iter().filter(|r| session.graph().node(r.node).op.name() == op);
        rows.map(|r| r.kernel.as_str()).collect()
    };
    assert_eq!(kernels("MatMul").len(), 2);
    assert!(kernels("MatMul").iter().all(|k| k.contains("_f32_")), "{:?}", kernels("MatMul"));
    assert_eq!((kernels("Compress"), kernels("NonZero")), (vec!["reference"], vec!["reference"]));
    assert!(session.arena_bytes(&[input(6, 3)]).unwrap() > 0);
}

#[test]
fn shows_the_values_of_all_parts_once() {
    let graph = model().graph;
    let named = |n: &str| graph.value_named(n).unwrap();
    let observe: BTreeSet<_> = ["x", "p", "c", "q", "y"].map(named).into();
    let session = Session::new(graph.clone(), Options { threads: 1, observe: observe.clone() }).unwrap();
    let mut seen = Vec::new();
    let see = &mut |v, _: narrowbit_runtime::View| {
        seen.push(v);
        Ok(())
    };
    session.run_observed(&[input(5, 9)], see).unwrap();
    assert_eq!(seen.len(), observe.len());
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), observe);
}
