use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use narrowbit_import::onnx;
use narrowbit_passes::SanitizeOptions;
use serde::Serialize;

use crate::args::Global;
use crate::{model, output};

/// Clean a model's graph: fold constants and BatchNorm, fuse, remove what does nothing
///
/// The outputs stay the same within float rounding; names of inputs, outputs and surviving tensors stay.
#[derive(Debug, Args)]
pub struct Sanitize {
    /// The model (.onnx)
    model: PathBuf,
    /// Where to write the cleaned model (.onnx)
    #[arg(short, long, value_name = "OUT.onnx")]
    output: PathBuf,
    /// Write the graph as text into this folder after each pass that changed something
    #[arg(long, value_name = "DIR")]
    dump_passes: Option<PathBuf>,
    /// Stop after so many rewrites: the way to find one that goes wrong
    #[arg(long, value_name = "N")]
    stop_after: Option<usize>,
}

#[derive(Serialize)]
struct Summary {
    model: PathBuf,
    output: PathBuf,
    nodes_before: usize,
    nodes_after: usize,
    bytes_before: u64,
    bytes_after: u64,
    passes: Vec<PassRow>,
}

#[derive(Serialize)]
struct PassRow {
    pass: String,
    rewrites: usize,
}

impl Sanitize {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        let mut model = model::load(&self.model)?;
        onnx::inline_functions(&mut model)?;
        let nodes_before = model.graph.node_count();
        let options = SanitizeOptions {
            dump_dir: self.dump_passes.clone(),
            stop_after: self.stop_after,
            ..SanitizeOptions::default()
        };
        let report = narrowbit_passes::sanitize(&mut model, &options)?;
        onnx::save(&model, &self.output, &onnx::SaveOptions::default())?;
        let summary = Summary {
            model: self.model.clone(),
            output: self.output.clone(),
            nodes_before,
            nodes_after: model.graph.node_count(),
            bytes_before: model::size_on_disk(&self.model)?,
            bytes_after: model::size_on_disk(&self.output)?,
            passes: report
                .passes
                .iter()
                .filter(|p| p.rewrites > 0)
                .map(|p| PassRow { pass: p.name.to_owned(), rewrites: p.rewrites })
                .collect(),
        };
        if global.json {
            output::json(&summary)?;
        } else {
            let mut text = format!(
                "{} → {}: {} → {} nodes, {} → {}\n",
                summary.model.display(),
                summary.output.display(),
                summary.nodes_before,
                summary.nodes_after,
                output::bytes(summary.bytes_before),
                output::bytes(summary.bytes_after)
            );
            summary.passes.iter().for_each(|p| text.push_str(&format!("  {:5} {}\n", p.rewrites, p.pass)));
            output::print(&text)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
