use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use narrowbit_import::onnx::{self, ExternalData, SaveOptions};
use serde::Serialize;

use crate::args::Global;
use crate::{model, output};

/// Read a model and write it again as ONNX, with or without external data
///
/// Operators, attributes, metadata and functions that narrowbit does not know are kept.
#[derive(Debug, Args)]
pub struct Convert {
    /// The model
    model: PathBuf,
    /// Where to write it (.onnx)
    #[arg(short, long, value_name = "OUT.onnx")]
    output: PathBuf,
    /// Where weights go: into OUT.onnx.data beside the model, or into the model itself
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = External::Auto)]
    external_data: External,
}

/// Where weights go.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum External {
    /// Beside the model when it would exceed 2 GB
    Auto,
    /// Always beside the model
    Always,
    /// Never: a model over 2 GB is an error
    Never,
}

#[derive(Serialize)]
struct Summary {
    model: PathBuf,
    output: PathBuf,
    bytes_before: u64,
    bytes_after: u64,
}

impl Convert {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        let model = model::load(&self.model)?;
        let external_data = match self.external_data {
            External::Auto => ExternalData::Auto,
            External::Always => ExternalData::Always,
            External::Never => ExternalData::Never,
        };
        onnx::save(&model, &self.output, &SaveOptions { external_data, ..SaveOptions::default() })?;
        let summary = Summary {
            model: self.model.clone(),
            output: self.output.clone(),
            bytes_before: model::size_on_disk(&self.model)?,
            bytes_after: model::size_on_disk(&self.output)?,
        };
        if global.json {
            output::json(&summary)?;
        } else {
            output::print(&format!(
                "{} → {} ({})\n",
                summary.model.display(),
                summary.output.display(),
                output::bytes(summary.bytes_after)
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
