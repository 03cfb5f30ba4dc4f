//! Small models and data sets that the tests need beside the examples.

use std::path::Path;
use std::sync::Arc;

use narrowbit_data::{DataOptions, Dataset, NpzWriter};
use narrowbit_import::onnx::{self, SaveOptions};
use narrowbit_ir::{AttrMap, Opaque};
use narrowbit_tensor::Tensor;
use narrowbit_testkit::graphs::GraphBuilder;

/// `x [n, 4] → MatMul → Relu → y [n, 3]`.
pub fn save_linear(path: &Path) {
    let mut g = GraphBuilder::new(17);
    let x = g.input("x", &[-1, 4]);
    let weight = Tensor::new([4, 3], (0..12).map(|i| i as f32 / 8.0 - 0.7).collect::<Vec<_>>()).expect("a tensor");
    let w = g.constant("w", weight);
    let product = g.named("product", "", "MatMul", &[x, w], AttrMap::default()).expect("MatMul");
    let y = g.named("y", "", "Relu", &[product], AttrMap::default()).expect("Relu");
    g.output(y);
    onnx::save(&g.model(), path, &SaveOptions::default()).expect("the model is saved");
}

/// The linear model with three nodes of two operators that nobody knows.
pub fn save_unknown(path: &Path) {
    let mut g = GraphBuilder::new(17);
    let x = g.input("x", &[-1, 4]);
    let y = g.named("known", "", "Relu", &[x], AttrMap::default()).expect("Relu");
    let mut model = g.model();
    let mut last = y;
    for (name, domain, op) in
        [("first", "", "Frobnicate"), ("second", "com.example", "Twist"), ("third", "", "Frobnicate")]
    {
        let op = Opaque { domain: domain.into(), name: op.into(), attrs: AttrMap::default() };
        let id = model.graph.add_node(name, Arc::new(op), vec![Some(last)], &[Some(name)]);
        last = model.graph.node(id).output(0).expect("an output");
    }
    model.graph.add_output(last);
    model.opsets.insert("com.example".into(), 1);
    onnx::save(&model, path, &SaveOptions::default()).expect("the model is saved");
}

/// An .npz with some rows of the samples in another one, without labels.
pub fn save_rows(from: &Path, to: &Path, rows: std::ops::Range<usize>) {
    let data = Dataset::open(from, &DataOptions::default()).expect("the data is read");
    let samples = data.batch(rows).expect("rows").inputs;
    let [(_, images)] = &samples[..] else { panic!("{}: several arrays", from.display()) };
    save_arrays(to, &[("images", images.clone())]);
}

/// An .npz with `n` rows of the diabetes model's 10 features, each another mixture of a few waves.
pub fn save_features(to: &Path, n: usize) {
    let value = |i: usize| ((i as f32 * 0.37).sin() + (i as f32 * 0.0113).cos() * 0.5) * 0.1;
    save_arrays(
        to,
        &[("features", Tensor::new([n, 10], (0..n * 10).map(value).collect::<Vec<_>>()).expect("a tensor"))],
    );
}

/// An .npz of arrays.
pub fn save_arrays(to: &Path, arrays: &[(&str, Tensor)]) {
    let mut out = NpzWriter::create(to).expect("a file");
    arrays.iter().for_each(|(name, t)| out.add(*name, t).expect("an array is written"));
    out.finish().expect("the file is written");
}
