mod kernels;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use narrowbit_data::Split;
use narrowbit_ir::{Datum, EvalCx, Graph, Node, NodeId, QuantRole};
use narrowbit_tensor::Tensor;
use serde::Serialize;

use kernels::Kernel;

use crate::args::{Global, Products, Threads};
use crate::comparison::{self, Comparison};
use crate::data::DataArgs;
use crate::metrics::Deviation;
use crate::{interrupt, model, output};

/// The error above which a layer is marked.
const UNRELIABLE: f64 = 0.6;

/// Show the error of each layer of a quantized model as SMAPE, and how much of it saturates
///
/// SMAPE is the mean of |x − y| / (|x| + |y|), over all values that are not both zero: 0 where both models agree, 100 %
/// where nothing is left. The mean is that of the errors, in steps of the layer's codes: errors of one sign add up in the
/// layers behind. Saturation is the share of codes at either end of their type. A * marks layers of more than
/// 60 %, whose figures say little.
///
/// --mode kernel-distribution shows how the weights of each layer are spread instead: extremes, mean, standard deviation
/// and a histogram over ± the greatest magnitude, of the floats and of what the codes stand for, and how far apart the
/// output channels are (with one scale for all of them, the smallest gets the fewest codes).
#[derive(Debug, Args)]
pub struct Analyze {
    /// The quantized model (.onnx)
    quantized: PathBuf,
    /// The float model that it was made from (.onnx)
    float: PathBuf,
    /// Which error
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Mode::Single)]
    mode: Mode,
    /// Only layers whose names contain this
    #[arg(short, long, value_name = "TEXT")]
    layer: Option<String>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    threads: Threads,
}

/// Which error of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    /// What the layer itself adds, on the float model's inputs
    Single,
    /// All error up to the layer
    Cumulative,
    /// That of its weights alone; needs no data
    Weight,
    /// How its weights are spread before and after quantization; needs no data
    KernelDistribution,
}

#[derive(Serialize)]
struct Summary {
    quantized: PathBuf,
    float: PathBuf,
    mode: Mode,
    layers: Layers,
}

/// What is shown of the layers.
#[derive(Serialize)]
#[serde(untagged)]
enum Layers {
    Errors(Vec<Row>),
    Kernels(Vec<Kernel>),
}

#[derive(Serialize)]
struct Row {
    /// The tensor, or the node of a weight.
    name: String,
    op: String,
    smape: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    saturated: Option<f64>,
    /// The mean error in steps of the codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_steps: Option<f64>,
    unreliable: bool,
}

impl Analyze {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        interrupt::install();
        let mut float = model::load_runnable(&self.float)?;
        model::sanitize(&mut float)?;
        let quantized = model::load_runnable(&self.quantized)?;
        check_related(&float.graph, &quantized.graph)?;
        model::scale_as(&mut float, &quantized);
        let of = |name: &str| self.layer.as_deref().is_none_or(|text| name.contains(text));
        let layers = match self.mode {
            Mode::KernelDistribution => {
                let mut all = kernels::kernels(&float.graph, &quantized.graph)?;
                all.retain(|k| of(&k.name));
                Layers::Kernels(all)
            }
            mode => {
                let mut all = match mode {
                    Mode::Weight => weights(&float.graph, &quantized.graph)?,
                    _ => self.layers(&float.graph, &quantized.graph)?,
                };
                all.retain(|r| of(&r.name));
                Layers::Errors(all)
            }
        };
        let none = match &layers {
            Layers::Errors(rows) => rows.is_empty(),
            Layers::Kernels(rows) => !rows.iter().any(Kernel::is_quantized),
        };
        if none {
            bail!(
                "the models have no such layer in common\nhelp: the quantized model must have been made from the float one; --layer takes a part of a layer's name"
            );
        }
        let (quantized, float) = (self.quantized.clone(), self.float.clone());
        let summary = Summary { quantized, float, mode: self.mode, layers };
        if global.json {
            output::json(&summary)?;
        } else {
            output::print(&text(&summary))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn layers(&self, float: &Graph, quantized: &Graph) -> Result<Vec<Row>> {
        let dataset = self.data.open(comparison::narrower(float, quantized)?, Split::Test)?;
        let single = self.mode == Mode::Single;
        let mut comparison = Comparison::new(float, quantized, self.threads.threads, single, Products::default())?;
        comparison.run("analyzing", &dataset, &self.data.runs(float, &dataset)?)?;
        let row = |r: comparison::TensorRow| {
            let figures = if single { r.isolated? } else { r.cumulative };
            let mean_steps = r.mean_steps(figures);
            Some(Row { mean_steps, ..Row::new(r.name, r.op, figures.smape, r.saturated) })
        };
        Ok(comparison.tensors().into_iter().filter_map(row).collect())
    }
}

/// Refuses models of which one was not made from the other: names of inputs, outputs and of some layers are often the same.
fn check_related(float: &Graph, quantized: &Graph) -> Result<()> {
    let names: BTreeSet<&str> = quantized.nodes().map(|(_, n)| n.name.as_str()).collect();
    let values: BTreeSet<&str> = quantized.values().map(|(_, v)| v.name.as_str()).collect();
    let known = |node: &Node| {
        // As QDQ files have it, and integer operators of this and other tools.
        let has = |name: &str| names.contains(name) || values.contains(name);
        let made = node.output(0).map_or("", |v| float.value(v).name.as_str());
        let ending = ["_quant", "_quantized", "_MatMulNBits", "_MatMul"];
        [node.name.as_str(), made].iter().any(|n| has(n) || ending.iter().any(|e| has(&format!("{n}{e}"))))
    };
    let reads_constant = |id: NodeId, node: &Node| match node.op.quant() {
        QuantRole::Weighted { weight, .. } => float.const_input(id, weight).is_some(),
        _ => false,
    };
    let layers: Vec<&Node> = float.nodes().filter(|(id, n)| reads_constant(*id, n)).map(|(_, n)| n).collect();
    let shared = layers.iter().filter(|n| known(n)).count();
    if 2 * shared < layers.len() {
        bail!(
            "the quantized model has {shared} of the float model's {} layers with weights, so that it was not made from it\nhelp: give the float model that it was made from",
            layers.len()
        );
    }
    Ok(())
}

impl Row {
    fn new(name: String, op: String, smape: f64, saturated: Option<f64>) -> Row {
        Row { name, op, smape, saturated, mean_steps: None, unreliable: smape > UNRELIABLE }
    }
}

/// The error of each weight that has become integers, by the names of nodes.
fn weights(float: &Graph, quantized: &Graph) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (id, node) in float.nodes() {
        let QuantRole::Weighted { weight, .. } = node.op.quant() else { continue };
        let (Some(w), Some(other)) = (float.const_input(id, weight), quantized.node_named(&node.name)) else {
            continue;
        };
        let Some((codes, values)) = dequantized(quantized, quantized.node(other), weight) else { continue };
        if values.shape() != w.shape() {
            continue;
        }
        let mut d = Deviation::default();
        d.add(w, &values)?;
        rows.push(Row::new(node.name.clone(), node.op.name().into(), d.figures().smape, ends(&codes)));
    }
    Ok(rows)
}

/// The codes of a weight, and what they stand for.
fn dequantized(graph: &Graph, node: &Node, input: usize) -> Option<(Tensor, Tensor)> {
    let (id, _) = graph.producer(node.input(input)?)?;
    let dq = graph.node(id);
    if dq.op.name() != "DequantizeLinear" {
        return None;
    }
    let read: Vec<Option<Datum>> =
        (0..dq.inputs.len()).map(|i| graph.const_input(id, i).cloned().map(Datum::Tensor)).collect();
    let refs: Vec<Option<&Datum>> = read.iter().map(Option::as_ref).collect();
    let values = dq.op.eval(&EvalCx::new(&refs, 1)).ok()?.into_iter().next()?;
    Some((graph.const_input(id, 0)?.clone(), values))
}

/// The share of codes at the least or the greatest one of all.
fn ends(codes: &Tensor) -> Option<f64> {
    let codes = codes.to_i64s().ok()?;
    let (low, high) = (codes.iter().min()?, codes.iter().max()?);
    let at_end = codes.iter().filter(|c| *c == low || *c == high).count();
    Some(at_end as f64 / codes.len() as f64)
}

fn text(s: &Summary) -> String {
    let percent = |x: f64| format!("{:.2} %", x * 100.0);
    let row = |r: &Row| {
        let mark = if r.unreliable { "*" } else { "" };
        let saturated = r.saturated.map_or(String::new(), percent);
        let mean = r.mean_steps.map_or(String::new(), comparison::steps_text);
        vec![format!("{}{mark}", r.name), r.op.clone(), percent(r.smape), mean, saturated]
    };
    let mut out = format!("{} against {}\n", s.quantized.display(), s.float.display());
    let layers = match &s.layers {
        Layers::Errors(layers) => layers,
        Layers::Kernels(kernels) => return out + &kernels::table(kernels),
    };
    let rows: Vec<Vec<String>> = layers.iter().map(row).collect();
    out.push_str(&output::table(&["layer", "operator", "SMAPE", "mean (steps)", "saturated"], &rows));
    if layers.iter().any(|r| r.unreliable) {
        out.push_str("* more than 60 %: unreliable\n");
    }
    out
}
