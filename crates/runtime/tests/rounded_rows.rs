//! Products whose rows are rounded with formats of their own, a few rows at a time: the same bits as one after the other.

mod support;

use narrowbit_ir::Graph;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;
use support::{Random, graph, list, samples};

const JOINED: &str = "→ dynamic_quantize_rows_u8";

/// `%{y}`: the product of `%{x}` [1, rows, k] with a scale and zero point per row, and `n` columns of weights.
fn row_product(x: &str, y: &str, k: usize, n: usize) -> String {
    let mut random = Random(k as u64);
    let w: Vec<i64> = (0..k * n).map(|_| i64::from(random.next() % 256) - 128).collect();
    let sums = list(n, |j| (0..k).map(|i| w[i * n + j]).sum::<i64>());
    let scales = list(n, |i| 0.002 + 0.0007 * (i % 5) as f32);
    format!(
        "const %{y}w: i8[{k}, {n}] = {}\n const %{y}w_s: f32[{n}] = {scales}\n const %{y}sums: i32[{n}] = {sums}\n\
         %{y}low0 = ReduceMin(%{x}, %axes)\n %{y}high0 = ReduceMax(%{x}, %axes)\n\
         %{y}low = Clip(%{y}low0, _, %none)\n %{y}high = Clip(%{y}high0, %none)\n %{y}range = Sub(%{y}high, %{y}low)\n\
         %{y}step = Div(%{y}range, %steps)\n %{y}scale = Clip(%{y}step, %least)\n %{y}ratio = Div(%{y}low, %{y}scale)\n\
         %{y}whole = Round(%{y}ratio)\n %{y}positive = Abs(%{y}whole)\n %{y}zero = Cast(%{y}positive) {{to=2}}\n\
         %{y}codes = QuantizeLinear(%{x}, %{y}scale, %{y}zero) {{axis=-1, block_size={k}}}\n\
         %{y}zero32 = Cast(%{y}zero) {{to=6}}\n %{y}sum = MatMulInteger(%{y}codes, %{y}w)\n\
         %{y}shift = Mul(%{y}zero32, %{y}sums)\n %{y}shifted = Sub(%{y}sum, %{y}shift)\n\
         %{y}f = Cast(%{y}shifted) {{to=1}}\n %{y}scales = Mul(%{y}scale, %{y}w_s)\n %{y} = Mul(%{y}f, %{y}scales)\n",
        list(k * n, |i| w[i])
    )
}

/// Two products with a function between them, of so many rows.
fn two(rows: usize) -> Graph {
    let (k, n) = (12, 960);
    let body = String::from(
        "const %axes: i64[1] = [-1]\n const %none: f32[] = [0]\n const %steps: f32[] = [255]\n\
         const %least: f32[] = [1e-37]\n",
    ) + &row_product("x", "h", k, n)
        + "%a = Relu(%h)\n"
        + &row_product("a", "y", n, 7);
    graph(&format!("input %x: f32[1, {rows}, {k}]"), &body, "output %y")
}

fn run(graph: &Graph, threads: usize, observe: &[&str]) -> (Tensor, Vec<String>) {
    let observe = observe.iter().map(|v| graph.value_named(v).expect("it is there")).collect();
    let session = Session::new(graph.clone(), Options { threads, observe }).expect("the graph is valid");
    let (mut out, profile) = session.profile(&samples(graph)).expect("it runs");
    (out.remove(0), profile.rows.into_iter().map(|r| r.kernel).collect())
}

#[test]
fn rounds_rows_as_they_are_made() {
    let g = two(1111);
    let (want, kernels) = run(&g, 1, &["a"]);
    assert!(!kernels.iter().any(|k| k.ends_with(JOINED)), "{kernels:?}");
    for threads in [1, 2, 3] {
        let (got, kernels) = run(&g, threads, &[]);
        // The processor's tiles make all rows at once.
        let tiles = kernels.iter().any(|k| k.contains("amx"));
        assert_eq!(kernels.iter().filter(|k| k.ends_with(JOINED)).count(), usize::from(!tiles), "{kernels:?}");
        assert!(got.bytes() == want.bytes(), "{threads} threads");
    }
}

#[test]
fn makes_few_rows_at_once() {
    let (_, kernels) = run(&two(64), 2, &[]);
    assert!(!kernels.iter().any(|k| k.contains('→')), "{kernels:?}");
}
