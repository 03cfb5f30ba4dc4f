use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use narrowbit_ir::{Graph, Node, NodeId, QuantRole, ValueId};
use narrowbit_quant::options::{Override, QuantOptions};
use narrowbit_quant::scheme::{NumberFormat, WeightScheme};
use narrowbit_tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::args::Global;
use crate::{fixed, measure, model, output};

/// Write the decisions of a quantized model into a file, to edit and to quantize again with
///
/// The JSON holds the settings that the model was quantized with, and for each node whether it is quantized, the types,
/// scales, zero points and fraction bits of what it reads and makes. `quantize -c FILE` heeds the settings, and of each
/// node `quantized` and the type, bits and per-channel of its weights; scales and zero points are results and come from
/// the calibration again.
#[derive(Debug, Args)]
pub struct Config {
    /// The quantized model (.onnx)
    model: PathBuf,
    /// Where to write the decisions (.json)
    #[arg(short, long, value_name = "CONFIG.json")]
    output: PathBuf,
}

/// What was decided of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Decision {
    node: String,
    op: String,
    quantized: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<Weights>,
    /// What it reads, and what its result is rounded to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<Code>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Code>,
}

/// The form of a weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Weights {
    #[serde(rename = "type")]
    format: NumberFormat,
    #[serde(skip_serializing_if = "Option::is_none")]
    bits: Option<u8>,
    per_channel: bool,
    scales: Vec<f32>,
    zero_points: Vec<i64>,
}

/// The form of an activation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Code {
    tensor: String,
    #[serde(rename = "type")]
    dtype: String,
    scales: Vec<f32>,
    zero_points: Vec<i64>,
    /// Where the scale is a power of two.
    #[serde(skip_serializing_if = "Option::is_none")]
    fraction_bits: Option<i32>,
}

impl Config {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        let model = model::load(&self.model)?;
        let settings = fixed::settings(&model);
        let decisions = decisions(&model.graph, settings.as_ref());
        if !decisions.iter().any(|d| d.quantized) {
            bail!("{}: no node is quantized\nhelp: `narrowbit quantize` makes a quantized model", self.model.display());
        }
        let mut all = serde_json::to_value(settings.unwrap_or_default())?;
        if let Some(map) = all.as_object_mut() {
            map.insert("nodes".into(), serde_json::to_value(&decisions)?);
        }
        write(&self.output, &(serde_json::to_string_pretty(&all)? + "\n"))?;
        if global.json {
            output::json(&all)?;
        } else {
            let quantized = decisions.iter().filter(|d| d.quantized).count();
            output::print(&format!(
                "{}: {quantized} of {} nodes are quantized, decisions in {}\n",
                self.model.display(),
                decisions.len(),
                self.output.display()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes beside the target and renames.
fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let named = || path.display().to_string();
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(named)?;
    file.write_all(text.as_bytes()).with_context(named)?;
    file.persist(path).map_err(|e| e.error).with_context(named)?;
    Ok(())
}

/// Takes the decisions out of a configuration and gives them as exceptions.
pub fn take_decisions(text: &mut Value) -> Result<Vec<Decision>, serde_json::Error> {
    match text.as_object_mut().and_then(|map| map.remove("nodes")) {
        Some(nodes) => serde_json::from_value(nodes),
        None => Ok(Vec::new()),
    }
}

/// The exceptions that decisions stand for.
pub fn overrides(decisions: &[Decision], options: &QuantOptions) -> Vec<Override> {
    let one = |d: &Decision| -> Option<Override> {
        let name = Some(measure::glob(&d.node));
        if !d.quantized {
            return Some(Override { name, float: Some(true), ..Override::default() });
        }
        let w = d.weights.as_ref()?;
        let own = WeightScheme { format: w.format, bits: w.bits, per_channel: w.per_channel, ..options.weights };
        (own != options.weights).then(|| Override { name, weights: Some(own), ..Override::default() })
    };
    decisions.iter().filter_map(one).collect()
}

fn decisions(graph: &Graph, settings: Option<&QuantOptions>) -> Vec<Decision> {
    let form = ["QuantizeLinear", "DequantizeLinear", "Constant"];
    let nodes = graph.nodes().filter(|(_, n)| !form.contains(&n.op.name()));
    nodes.map(|(id, node)| decision(graph, id, node, settings)).collect()
}

fn decision(graph: &Graph, id: NodeId, node: &Node, settings: Option<&QuantOptions>) -> Decision {
    let data = match node.op.quant() {
        QuantRole::Weighted { data, .. } => vec![data],
        QuantRole::Arithmetic { .. } if node.op.name() != "Clip" => (0..node.inputs.len()).collect(),
        _ => vec![0],
    };
    let float = data.iter().filter_map(|&i| node.input(i)).find(|&v| !reads_integers(graph, v));
    let why = float.map(|v| format!("\"{}\" is not quantized", graph.value(v).name));
    let read = data.iter().filter_map(|&i| parameters(graph, node.input(i)?, "DequantizeLinear")).collect();
    let output = output_of(graph, id).and_then(|v| quantizer(graph, v));
    let weights = match node.op.quant() {
        QuantRole::Weighted { weight, .. } => node.input(weight).and_then(|v| weights(graph, v, settings)),
        _ => None,
    };
    Decision {
        node: node.name.clone(),
        op: node.op.name().into(),
        quantized: why.is_none(),
        why,
        weights,
        inputs: read,
        output,
    }
}

/// Whether a value comes from a DequantizeLinear, also by way of what folds into the rounding behind it.
fn reads_integers(graph: &Graph, v: ValueId) -> bool {
    let Some((id, _)) = graph.producer(v) else { return false };
    let node = graph.node(id);
    let weighted = |n: &Node| matches!(n.op.quant(), QuantRole::Weighted { .. });
    let folds = weighted(node) || ["Relu", "Clip", "Add", "Mul", "Abs"].contains(&node.op.name());
    node.op.name() == "DequantizeLinear" || folds && node.input(0).is_some_and(|x| reads_integers(graph, x))
}

/// The value that a node's result is rounded as: its own, or that of the Relu or Clip behind it.
fn output_of(graph: &Graph, id: NodeId) -> Option<ValueId> {
    let mut v = graph.node(id).output(0)?;
    while let Some(u) = graph.only_use(v) {
        let node = graph.node(u.node);
        match node.op.name() {
            "Relu" | "Clip" => v = node.output(0)?,
            _ => break,
        }
    }
    Some(v)
}

fn quantizer(graph: &Graph, v: ValueId) -> Option<Code> {
    let q = graph.uses(v).iter().map(|u| u.node).find(|&n| graph.node(n).op.name() == "QuantizeLinear")?;
    code(graph, q, graph.value(v).name.clone())
}

fn parameters(graph: &Graph, v: ValueId, op: &str) -> Option<Code> {
    let (id, _) = graph.producer(v).filter(|(n, _)| graph.node(*n).op.name() == op)?;
    let codes = graph.node(id).input(0)?;
    if graph.constant(codes).is_some() {
        return None;
    }
    code(graph, id, graph.value(codes).name.clone())
}

fn code(graph: &Graph, id: NodeId, tensor: String) -> Option<Code> {
    let scales = graph.const_input(id, 1)?.to_f32s().ok()?.into_owned();
    let zero = graph.const_input(id, 2);
    let dtype = zero.map_or(DType::U8, Tensor::dtype).to_string();
    let zero_points = zero.and_then(|z| z.to_i64s().ok()).unwrap_or_default();
    let power = |s: f32| s.is_normal() && s.to_bits() & 0x7f_ffff == 0;
    let fraction_bits = match scales[..] {
        [s] if power(s) => Some(127 - (s.to_bits() >> 23) as i32),
        _ => None,
    };
    Some(Code { tensor, dtype, scales, zero_points, fraction_bits })
}

fn weights(graph: &Graph, v: ValueId, settings: Option<&QuantOptions>) -> Option<Weights> {
    let (id, _) = graph.producer(v).filter(|(n, _)| graph.node(*n).op.name() == "DequantizeLinear")?;
    let codes = graph.const_input(id, 0)?;
    let format = format_of(codes.dtype())?;
    let found = code(graph, id, String::new())?;
    let narrow = settings.is_some_and(|o| o.weights.bits.is_some() || o.input_weight_bits.is_some());
    let bits = codes.to_i64s().ok().filter(|_| narrow).map(|c| bits_of(&c, format.is_signed()));
    Some(Weights {
        format,
        bits,
        per_channel: found.scales.len() > 1,
        scales: found.scales,
        zero_points: found.zero_points,
    })
}

/// The bits of the narrowest codes that hold all of these.
fn bits_of(codes: &[i64], signed: bool) -> u8 {
    let fits = |b: &u8| match signed {
        true => codes.iter().all(|c| (-(1i64 << (b - 1))..1i64 << (b - 1)).contains(c)),
        false => codes.iter().all(|c| (0..1i64 << b).contains(c)),
    };
    (2..=16).find(fits).unwrap_or(16)
}

fn format_of(dtype: DType) -> Option<NumberFormat> {
    Some(match dtype {
        DType::I8 => NumberFormat::Int8,
        DType::U8 => NumberFormat::Uint8,
        DType::I16 => NumberFormat::Int16,
        DType::U16 => NumberFormat::Uint16,
        DType::I4 => NumberFormat::Int4,
        DType::U4 => NumberFormat::Uint4,
        _ => return None,
    })
}
