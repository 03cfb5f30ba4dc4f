//! Integer-only execution of a model, as the scheme that quantized it has it.

use std::path::Path;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use narrowbit_fixed::{FixedModel, LowerError, Lowered, Options, Rounding, Shapes};
use narrowbit_ir::Model;
use narrowbit_kernels::{Exec, Isa};
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::scheme::Preset;

use crate::model;

/// Whether and how a model runs on integers alone.
#[derive(Debug, Clone, Args)]
pub struct IntegerArgs {
    /// Integers alone from QuantizeLinear to the last DequantizeLinear; says which node is the first that needs floats
    #[arg(long)]
    pub integer_only: bool,
    /// What shifts do halfway between two integers [default: as the model's scheme, or half-even]
    #[arg(long, value_enum, value_name = "HOW", requires = "integer_only")]
    pub rounding: Option<RoundingArg>,
}

/// What a shift does halfway between two integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoundingArg {
    /// To the even one, as QuantizeLinear does: the codes of the file
    HalfEven,
    /// Up: the codes of fixed-point hardware
    HalfUp,
}

impl IntegerArgs {
    /// The options for a model.
    pub fn options(&self, model: &Model) -> Options {
        let own = settings(model);
        let preset = own.as_ref().and_then(|o| o.scheme);
        let hardware = matches!(preset, Some(Preset::Quantizeml | Preset::VitisDpu));
        let rounding = match self.rounding {
            Some(RoundingArg::HalfUp) => Rounding::HalfUp,
            Some(RoundingArg::HalfEven) => Rounding::HalfEven,
            None if hardware => Rounding::HalfUp,
            None => Rounding::HalfEven,
        };
        let buffer_bits = own.filter(|_| preset == Some(Preset::Quantizeml)).map(|o| o.buffer_bits());
        Options { rounding, buffer_bits, ..Options::default() }
    }

    /// The model, ready to run.
    pub fn load(&self, path: &Path, threads: usize) -> Result<FixedModel> {
        let mut model = model::load_runnable(path)?;
        model::sanitize(&mut model)?;
        let options = self.options(&model);
        let exec = exec(threads)?;
        // What can't run is said before the data are read.
        lowered(&model, &model::smallest_shapes(&model.graph)?, options, &exec)
            .with_context(|| format!("{} does not run on integers alone", path.display()))?;
        Ok(FixedModel::new(model.graph, options, exec))
    }
}

/// The settings that a file of ours was quantized with.
pub fn settings(model: &Model) -> Option<QuantOptions> {
    let text = model.metadata.iter().find(|(k, _)| k == "narrowbit.quantize").map(|(_, v)| v)?;
    serde_json::from_str(text).ok()
}

/// A model's integers.
pub fn lowered(model: &Model, shapes: &Shapes, options: Options, exec: &Exec) -> Result<Lowered, LowerError> {
    narrowbit_fixed::lower(&model.graph, shapes, options, exec)
}

/// Threads to compute with, all if 0.
pub fn exec(threads: usize) -> Result<Exec> {
    let all = || std::thread::available_parallelism().map_or(1, |n| n.get());
    Ok(Exec::new(Isa::from_env()?, if threads == 0 { all() } else { threads }))
}
