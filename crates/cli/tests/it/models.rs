//! Small models and data sets that the tests need beside the examples.

use std::path::Path;
use std::sync::Arc;

use narrowbit_data::{DataOptions, Dataset, NpzWriter};
use narrowbit_import::onnx::{self, SaveOptions};
use narrowbit_ir::{Attr, AttrMap, Opaque};
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

/// `x [n, 512] → MatMul → Relu → MatMul → y [n, 512]`: a million weights, beside which nothing else in the file counts.
pub fn save_heavy(path: &Path) {
    let mut g = GraphBuilder::new(21);
    let mut y = g.input("x", &[-1, 512]);
    for (name, [k, n]) in [("a", [512usize, 1024]), ("b", [1024, 512])] {
        let values: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.77).sin() * 0.05).collect();
        let w = g.constant(&format!("{name}_w"), Tensor::new([k, n], values).expect("a tensor"));
        y = g.named(name, "", "MatMul", &[y, w], AttrMap::default()).expect("MatMul");
        if name == "a" {
            y = g.named("relu", "", "Relu", &[y], AttrMap::default()).expect("Relu");
        }
    }
    g.output(y);
    onnx::save(&g.model(), path, &SaveOptions::default()).expect("the model is saved");
}

/// `x [n, 10] → LayerNormalization → MatMul → y [n, 6]`, where the normalisation makes two channels 256 times larger and
/// the weights behind it take that back.
pub fn save_outliers(path: &Path) {
    const CHANNELS: usize = 10;
    let gain = |c: usize| if c % 5 == 2 { 256.0 } else { 1.0 };
    let mut g = GraphBuilder::new(17);
    let x = g.input("x", &[-1, CHANNELS as i64]);
    let scale = g.constant("scale", Tensor::vector((0..CHANNELS).map(|c| gain(c) as f32).collect::<Vec<_>>()));
    let normal = g.named("normal", "", "LayerNormalization", &[x, scale], AttrMap::default()).expect("a norm");
    let weight = |i: usize| ((i as f32 * 0.77).sin() / gain(i / 6) as f32) * 0.5;
    let w = g.constant("w", Tensor::new([CHANNELS, 6], (0..60).map(weight).collect::<Vec<_>>()).expect("a tensor"));
    let y = g.named("y", "", "MatMul", &[normal, w], AttrMap::default()).expect("MatMul");
    g.output(y);
    onnx::save(&g.model(), path, &SaveOptions::default()).expect("the model is saved");
}

/// `x [n, 2] → MatMul → Relu → y [n, 1]`, and an output whose shape depends on how many elements of y are not zero.
pub fn save_counting(path: &Path) {
    let mut g = GraphBuilder::new(17);
    let x = g.input("x", &[-1, 2]);
    let w = g.constant("w", Tensor::new([2, 1], vec![1f32, -1.0]).expect("a tensor"));
    let product = g.named("product", "", "MatMul", &[x, w], AttrMap::default()).expect("MatMul");
    let y = g.named("y", "", "Relu", &[product], AttrMap::default()).expect("Relu");
    let places = g.named("places", "", "NonZero", &[y], AttrMap::default()).expect("NonZero");
    g.output(y);
    g.output(places);
    onnx::save(&g.model(), path, &SaveOptions::default()).expect("the model is saved");
}

/// `x [n, 4] → ReduceSum → total`, a result without dimensions, beside `y = Relu(x)`.
pub fn save_total(path: &Path) {
    let mut g = GraphBuilder::new(17);
    let x = g.input("x", &[-1, 4]);
    let mut attrs = AttrMap::new();
    attrs.set("keepdims", Attr::Int(0));
    let total = g.named("total", "", "ReduceSum", &[x], attrs).expect("ReduceSum");
    let y = g.named("y", "", "Relu", &[x], AttrMap::default()).expect("Relu");
    g.output(total);
    g.output(y);
    onnx::save(&g.model(), path, &SaveOptions::default()).expect("the model is saved");
}

/// The linear model with a Reshape before it, a metadata value of `length` letters, and its weight in `file`.
pub fn save_described(path: &Path, length: usize, file: &str) {
    let mut g = GraphBuilder::new(17);
    let x = g.input("x", &[-1, 2, 128]);
    let shape = g.constant("shape", Tensor::vector(vec![-1i64, 256]));
    let rows = g.named("rows", "", "Reshape", &[x, shape], AttrMap::default()).expect("Reshape");
    let w = g.constant("w", Tensor::new([256, 3], vec![0.5f32; 768]).expect("a tensor"));
    let y = g.named("y", "", "MatMul", &[rows, w], AttrMap::default()).expect("MatMul");
    g.output(y);
    let mut model = g.model();
    model.set_metadata("story", "s".repeat(length));
    let external = SaveOptions { external_data: onnx::ExternalData::Always, ..SaveOptions::default() };
    onnx::save(&model, path, &external).expect("the model is saved");
    // The name of the data file has the length of the one that it replaces.
    let (data, called) = (path.with_extension("onnx.data"), path.file_name().expect("a name").to_string_lossy());
    let old = format!("{called}.data");
    assert_eq!(old.len(), file.len());
    let bytes = std::fs::read(path).expect("the model");
    let at = bytes.windows(old.len()).position(|w| w == old.as_bytes()).expect("the location");
    let renamed = [&bytes[..at], file.as_bytes(), &bytes[at + old.len()..]].concat();
    std::fs::write(path, renamed).expect("the model");
    std::fs::rename(data, path.with_file_name(file)).expect("the data");
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
