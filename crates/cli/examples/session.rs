//! The library in a few lines: load a model, clean it, run it (the example of README.md).

use narrowbit_import::onnx;
use narrowbit_passes::{SanitizeOptions, sanitize};
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut model = onnx::load("examples/digits-cnn/model.onnx")?;
    sanitize(&mut model, &SanitizeOptions::default())?;
    let session = Session::new(model.graph, Options::default())?; // one thread per core
    let image = Tensor::new([1, 1, 8, 8], vec![0f32; 64])?;
    let outputs = session.run(&[image])?; // in the order of the graph's outputs
    println!("{:?}", outputs[0].to_f32s()?);
    Ok(())
}
