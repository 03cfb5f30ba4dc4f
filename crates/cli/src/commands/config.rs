use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use narrowbit_ir::{Graph, Node, NodeId, QuantRole, ValueId};
use narrowbit_ops::functions::{LayerMad, Shiftmax};
use narrowbit_quant::encodings::{Decided, Encodings};
use narrowbit_quant::options::Override;
use narrowbit_quant::scheme::Formula;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::args::Global;
use crate::{fixed, measure, model, output};

/// Write the decisions of a quantized model into a file, to edit and to quantize again with
///
/// The JSON holds the settings that the model was quantized with; for each node whether it is quantized, and the tensors
/// that it reads and makes; for each tensor its type, bits, axis, scales and zero points, by the name in the float model
/// (and `_equalized`, where `rates` say by what it was multiplied).
/// `quantize -c FILE` takes the settings, `quantized` of nodes, and all of the tensors: without samples, if every tensor
/// has scales. A tensor whose type, bits or axis are edited gets scales of its own again, as does one whose scales are
/// taken out. Biases follow from the scales. Of models without calibrated scales (--approach) the settings say all.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// The constant that it multiplies by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<String>,
    /// The quantized tensors that it reads, and the one that its result is rounded to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output: Option<String>,
}

/// Decisions of nodes and of tensors.
#[derive(Debug, Default)]
pub struct Decisions {
    nodes: Vec<Decision>,
    tensors: BTreeMap<String, Decided>,
}

impl Config {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        let model = model::load(&self.model)?;
        let settings = fixed::settings(&model);
        let scaled = settings.as_ref().is_none_or(|o| o.approach.needs_ranges());
        let blocks = settings.as_ref().is_some_and(|o| o.activations.formula == Formula::Quantizeml);
        let nodes = if scaled { decisions(&model.graph, blocks) } else { Vec::new() };
        let tensors = if scaled { Encodings::decided(&model.graph, settings.as_ref()) } else { BTreeMap::new() };
        if scaled && !nodes.iter().any(|d| d.quantized) {
            bail!("{}: no node is quantized\nhelp: `narrowbit quantize` makes a quantized model", self.model.display());
        }
        let mut all = serde_json::to_value(settings.unwrap_or_default())?;
        if let Some(map) = all.as_object_mut().filter(|_| scaled) {
            map.insert("nodes".into(), serde_json::to_value(&nodes)?);
            map.insert("tensors".into(), serde_json::to_value(&tensors)?);
        }
        write(&self.output, &(serde_json::to_string_pretty(&all)? + "\n"))?;
        if global.json {
            output::json(&all)?;
        } else {
            let (file, quantized) = (self.model.display(), nodes.iter().filter(|d| d.quantized).count());
            let what = match scaled {
                true => format!("{quantized} of {} nodes are quantized, decisions in", nodes.len()),
                false => "all follows from the settings, which are in".to_owned(),
            };
            output::print(&format!("{file}: {what} {}\n", self.output.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes beside the target and renames.
fn write(path: &Path, text: &str) -> Result<()> {
    let named = || path.display().to_string();
    let mut file = narrowbit_tensor::staged::beside(path).with_context(named)?;
    file.write_all(text.as_bytes()).with_context(named)?;
    file.persist(path).map_err(|e| e.error).with_context(named)?;
    Ok(())
}

impl Decisions {
    /// Takes the decisions out of a configuration; `None` where it holds none.
    ///
    /// # Errors
    /// When they have another form.
    pub fn take(text: &mut Value) -> Result<Option<Decisions>, serde_json::Error> {
        let Some(map) = text.as_object_mut() else { return Ok(None) };
        let (nodes, tensors) = (map.remove("nodes"), map.remove("tensors"));
        if nodes.is_none() && tensors.is_none() {
            return Ok(None);
        }
        let nodes = nodes.map(serde_json::from_value).transpose()?.unwrap_or_default();
        let tensors = tensors.map(serde_json::from_value).transpose()?.unwrap_or_default();
        Ok(Some(Decisions { nodes, tensors }))
    }

    /// The exceptions that those of nodes stand for.
    pub fn overrides(&self) -> impl Iterator<Item = Override> {
        let float = |d: &Decision| {
            let name = Some(measure::glob(&d.node));
            (!d.quantized).then(|| Override { name, float: Some(true), ..Override::default() })
        };
        self.nodes.iter().filter_map(float)
    }

    /// The scales and types of tensors.
    ///
    /// # Errors
    /// When an entry contradicts itself.
    pub fn encodings(&self) -> Result<Encodings> {
        Encodings::of_decided(&self.tensors).map_err(|why| anyhow!("{why}"))
    }
}

/// Where integers are rounded at the ends of blocks only: what is computed as a whole before these.
#[derive(Debug, Default)]
struct Blocks {
    /// The nodes of functions of several nodes.
    nodes: BTreeSet<NodeId>,
    /// What the functions make.
    results: BTreeSet<ValueId>,
}

impl Blocks {
    fn of(graph: &Graph) -> Blocks {
        let mut found = Blocks::default();
        for (id, node) in graph.nodes() {
            let nodes = Shiftmax::find(graph, id).map(|s| s.nodes);
            let Some(nodes) = nodes.or_else(|| Some(LayerMad::find_quantized(graph, id)?.1)) else { continue };
            found.nodes.extend(nodes);
            found.results.extend(node.output(0));
        }
        found
    }
}

/// `blocks` is there where integers are rounded at the ends of blocks only.
fn decisions(graph: &Graph, blocks: bool) -> Vec<Decision> {
    let blocks = blocks.then(|| Blocks::of(graph));
    let blocks = blocks.as_ref();
    let form = ["QuantizeLinear", "DequantizeLinear", "Constant"];
    let nodes = graph.nodes().filter(|(_, n)| !form.contains(&n.op.name()));
    nodes.map(|(id, node)| decision(graph, id, node, blocks)).collect()
}

fn decision(graph: &Graph, id: NodeId, node: &Node, blocks: Option<&Blocks>) -> Decision {
    let data = match node.op.quant() {
        QuantRole::Weighted { data, .. } => vec![data],
        QuantRole::Arithmetic { .. } if node.op.name() != "Clip" => (0..node.inputs.len()).collect(),
        _ => vec![0],
    };
    let whole = blocks.is_some_and(|b| b.nodes.contains(&id));
    let float = data.iter().filter_map(|&i| node.input(i)).find(|&v| !whole && !reads_integers(graph, v, blocks));
    let why = float.map(|v| format!("\"{}\" is not quantized", graph.value(v).name));
    let name = |v| Some(Encodings::name_of(graph, dequantizer(graph, v)?)).flatten();
    let inputs = data.iter().filter_map(|&i| name(node.input(i)?)).collect();
    let output = output_of(graph, id).and_then(|v| Encodings::name_of(graph, quantizer(graph, v)?));
    let weight = match node.op.quant() {
        QuantRole::Weighted { weight, .. } => node.input(weight).and_then(name),
        _ => None,
    };
    Decision {
        node: node.name.clone(),
        op: node.op.name().into(),
        quantized: why.is_none(),
        why,
        weight,
        inputs,
        output,
    }
}

/// What runs on wide integers before the end of a block, beside what folds into a rounding everywhere.
const WIDE: [&str; 14] = [
    "Min",
    "Max",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Concat",
    "Split",
    "Slice",
    "Gather",
];

/// Whether a value comes from a DequantizeLinear, also by way of what folds into the rounding behind it.
fn reads_integers(graph: &Graph, v: ValueId, blocks: Option<&Blocks>) -> bool {
    if blocks.is_some_and(|b| b.results.contains(&v)) {
        return true;
    }
    let Some((id, _)) = graph.producer(v) else { return false };
    let (node, name) = (graph.node(id), graph.node(id).op.name());
    let weighted = |n: &Node| matches!(n.op.quant(), QuantRole::Weighted { .. });
    let folds = weighted(node)
        || ["Relu", "Clip", "Add", "Mul", "Abs"].contains(&name)
        || blocks.is_some() && WIDE.contains(&name);
    name == "DequantizeLinear" || folds && node.input(0).is_some_and(|x| reads_integers(graph, x, blocks))
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

/// The QuantizeLinear that reads a value.
fn quantizer(graph: &Graph, v: ValueId) -> Option<NodeId> {
    graph.uses(v).iter().map(|u| u.node).find(|&n| graph.node(n).op.name() == "QuantizeLinear")
}

/// The DequantizeLinear that makes a value.
fn dequantizer(graph: &Graph, v: ValueId) -> Option<NodeId> {
    graph.producer(v).map(|(n, _)| n).filter(|&n| graph.node(n).op.name() == "DequantizeLinear")
}
