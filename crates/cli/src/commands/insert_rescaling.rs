use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use narrowbit_import::onnx;
use narrowbit_ir::{AttrMap, Model, Patch, ValueId};
use narrowbit_ops::Registry;
use narrowbit_tensor::{DType, Tensor};
use serde::Serialize;

use crate::args::Global;
use crate::{model, output};

/// Put x·scale + offset behind an input of a model, so that it takes raw values
///
/// What --scale and --offset of the preprocessing do then stands in the model: leave them away there. For instance
/// -s 0.00784314 -o -1 for pixels of 0 … 255 that the network wants from −1 to 1.
#[derive(Debug, Args)]
pub struct InsertRescaling {
    /// The model (.onnx)
    model: PathBuf,
    /// The factor
    #[arg(short, long, value_name = "S", allow_hyphen_values = true)]
    scale: f32,
    /// Added after the factor
    #[arg(short, long, value_name = "O", allow_hyphen_values = true)]
    offset: f32,
    /// Where to write the model (.onnx)
    #[arg(short, long, value_name = "OUT.onnx")]
    destination: PathBuf,
    /// Which input, by name [default: the only one]
    #[arg(long, value_name = "NAME")]
    input: Option<String>,
}

#[derive(Serialize)]
struct Summary {
    model: PathBuf,
    destination: PathBuf,
    input: String,
    scale: f32,
    offset: f32,
}

impl InsertRescaling {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        if !(self.scale.is_finite() && self.offset.is_finite()) || self.scale == 0.0 {
            bail!("the scale must be finite and not zero, the offset finite");
        }
        model::check_apart(&self.model, &self.destination, "the model that takes other values", "raw.onnx")?;
        let mut model = model::load(&self.model)?;
        let x = self.chosen(&model)?;
        let input = model.graph.value(x).name.clone();
        rescale(&mut model, x, self.scale, self.offset)?;
        onnx::save(&model, &self.destination, &onnx::SaveOptions::default())?;
        let summary = Summary {
            model: self.model.clone(),
            destination: self.destination.clone(),
            input,
            scale: self.scale,
            offset: self.offset,
        };
        if global.json {
            output::json(&summary)?;
        } else {
            output::print(&format!(
                "{} → {}: input \"{}\" is read as x · {} + {}\n  leave --scale and --offset away when you prepare data for it\n",
                summary.model.display(),
                summary.destination.display(),
                summary.input,
                summary.scale,
                summary.offset
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn chosen(&self, model: &Model) -> Result<ValueId> {
        let graph = &model.graph;
        let names: Vec<&str> = graph.inputs().iter().map(|&v| graph.value(v).name.as_str()).collect();
        let list = names.join(", ");
        let found = match (&self.input, graph.inputs()) {
            (Some(name), inputs) => {
                let at = names.iter().position(|n| n == name).map(|i| inputs[i]);
                at.ok_or_else(|| anyhow!("the model has no input \"{name}\"\nhelp: it has {list}"))?
            }
            (None, &[only]) => only,
            (None, _) => bail!("the model has several inputs\nhelp: choose one with --input: {list}"),
        };
        let dtype = graph.value(found).ty.tensor().and_then(|t| t.dtype);
        if dtype != Some(DType::F32) {
            let name = &graph.value(found).name;
            bail!("input \"{name}\" is no float32 tensor\nhelp: only those can be rescaled");
        }
        Ok(found)
    }
}

/// Lets all readers of an input read `x · scale + offset`.
fn rescale(model: &mut Model, x: ValueId, scale: f32, offset: f32) -> Result<()> {
    let opset = model.opset();
    let graph = &mut model.graph;
    let name = graph.value(x).name.clone();
    if graph.is_output(x) {
        bail!("input \"{name}\" is an output, too");
    }
    let mut patch = Patch::new(graph);
    let scale = patch.constant(&format!("{name}_scale"), Tensor::scalar(scale));
    let offset = patch.constant(&format!("{name}_offset"), Tensor::scalar(offset));
    let op = |op: &str| Registry::make(op, opset, AttrMap::new());
    let scaled = patch.node(&format!("{name}_scaled"), op("Mul")?, &[Some(x), Some(scale)]);
    let moved = patch.node(&format!("{name}_rescaled"), op("Add")?, &[Some(scaled), Some(offset)]);
    for u in graph.uses(x) {
        patch.set_input(u.node, u.input, Some(moved));
    }
    graph.apply(patch)?;
    Ok(())
}
