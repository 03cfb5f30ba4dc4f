use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use narrowbit_quant::encodings::{Encodings, Format, Part};
use narrowbit_quant::options::QuantOptions;
use serde::Serialize;

use crate::args::Global;
use crate::{fixed, model, output};

/// Write the scales and zero points of a quantized model in another tool's format
///
/// Takes them from QuantizeLinear and DequantizeLinear, whoever has written the model, and names tensors as the float
/// model does. `quantize --encodings` reads the file again.
#[derive(Debug, Args)]
pub struct ExportEncodings {
    /// The quantized model (.onnx)
    model: PathBuf,
    /// The format
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: FormatArg,
    /// Where to write them (.json)
    #[arg(short, long, value_name = "OUT.json")]
    output: PathBuf,
}

/// A format of encodings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// quant_info.json of Vitis AI: bits and fix positions; for scales that are powers of two
    Vitis,
    /// AIMET's encodings, version 1.0.0
    Aimet,
    /// AIMET's encodings, version 0.6.1
    #[value(name = "aimet-0.6.1")]
    AimetV0,
    /// TensorQuantOverrides of ONNX Runtime's quantize_static, types by name
    Ort,
}

impl From<FormatArg> for Format {
    fn from(f: FormatArg) -> Format {
        match f {
            FormatArg::Vitis => Format::Vitis,
            FormatArg::Aimet => Format::Aimet,
            FormatArg::AimetV0 => Format::AimetV0,
            FormatArg::Ort => Format::Ort,
        }
    }
}

#[derive(Serialize)]
struct Summary {
    model: PathBuf,
    output: PathBuf,
    /// Tensors in the file, by kind.
    tensors: BTreeMap<&'static str, usize>,
    /// Tensors that the format has no place for.
    ignored: Vec<String>,
    /// What who reads the file has to know.
    warnings: Vec<String>,
}

impl ExportEncodings {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        let model = model::load(&self.model)?;
        let mut found = Encodings::of_graph(&model.graph).with_context(|| self.model.display().to_string())?;
        let settings = fixed::settings(&model);
        found.bias_corrected = settings.as_ref().is_some_and(|o| o.bias_correction);
        let text = found.write(self.to.into())?;
        let io = || self.output.display().to_string();
        let mut file = narrowbit_tensor::staged::beside(&self.output).with_context(io)?;
        file.write_all(text.as_bytes()).with_context(io)?;
        file.persist(&self.output).map_err(|e| e.error).with_context(io)?;
        let mut tensors = BTreeMap::new();
        for e in found.tensors.values() {
            let kind = if e.part == Some(Part::Param) { "weights" } else { "activations" };
            *tensors.entry(kind).or_insert(0) += 1;
        }
        let summary = Summary {
            model: self.model.clone(),
            output: self.output.clone(),
            tensors,
            ignored: found.ignored,
            warnings: settings.as_ref().and_then(another_graph).into_iter().map(str::to_owned).collect(),
        };
        if global.json {
            output::json(&summary)?;
        } else {
            let of = |kind: &str| summary.tensors.get(kind).copied().unwrap_or(0);
            let mut text = format!(
                "{} activations and {} weights of {}, in {}\n",
                of("activations"),
                of("weights"),
                self.model.display(),
                self.output.display()
            );
            summary.ignored.iter().for_each(|i| text.push_str(&format!("left out: {i}\n")));
            summary.warnings.iter().for_each(|w| text.push_str(&format!("warning: {w}\n")));
            output::print(&text)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Says that the float model has other numbers than those that the scales are of.
fn another_graph(o: &QuantOptions) -> Option<&'static str> {
    if !o.rates.is_empty() {
        return Some(
            "activations and weights were multiplied (…_equalized), and this format does not say by what: the file fits no float model (quantize with --cross-layer-equalization=no, or let `narrowbit config` write the rates)",
        );
    }
    o.equalize.then_some(
        "weights were equalized (…_equalized) before they were quantized: the file fits a model whose channels are evened out in the same way (`quantize --equalize --encodings`)",
    )
}
