mod integers;
mod parameters;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use narrowbit_ir::infer::{self, Facts};
use narrowbit_ir::{Dim, Fact, Graph, Model, Node, NodeId, TensorType, ValueId, ValueType};
use serde::Serialize;

use crate::args::Global;
use crate::fixed::IntegerArgs;
use crate::{macs, model, output};

/// Show a model as a tree: operators, shapes, parameters, multiply-accumulates, scales
///
/// Nodes stand under the path in their names (/layer1/conv1/Conv). Where a node reads or makes quantized
/// tensors, a_scale and w_scale are the scales of its activation and weight.
///
/// --integer-only shows instead that a quantized model runs on integers alone: the multipliers, shifts and bounds of
/// each node, or the first one that needs floats and why, with exit code 1.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The model (.onnx)
    file: PathBuf,
    /// Clean the graph first, as quantize does
    #[arg(long)]
    sanitize: bool,
    /// One line per node without the tree
    #[arg(long)]
    flat: bool,
    /// Show QuantizeLinear, DequantizeLinear and shape nodes too
    #[arg(long)]
    all: bool,
    /// A value for a free dimension, for instance batch=8; free dimensions count as 1
    #[arg(long, value_name = "NAME=N", value_parser = parse_dim)]
    dim: Vec<(String, usize)>,
    #[command(flatten)]
    integer: IntegerArgs,
}

fn parse_dim(text: &str) -> Result<(String, usize), String> {
    let (name, n) = text.split_once('=').ok_or("give it as NAME=N")?;
    Ok((name.to_owned(), n.parse().map_err(|_| format!("\"{n}\" is no number"))?))
}

#[derive(Serialize)]
struct Summary {
    file: PathBuf,
    producer: String,
    opset: i64,
    ir_version: i64,
    bytes: u64,
    parameters: u64,
    parameter_bytes: u64,
    macs: u64,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    metadata: BTreeMap<String, String>,
    operators: BTreeMap<String, usize>,
    nodes: Vec<Row>,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    #[serde(rename = "type")]
    ty: String,
}

#[derive(Serialize)]
struct Row {
    name: String,
    op: String,
    output: String,
    parameters: u64,
    macs: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    a_scale: Option<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    w_scale: Option<Vec<f32>>,
    #[serde(skip)]
    shown: bool,
}

impl Inspect {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        if self.integer.integer_only {
            return integers::run(self, global);
        }
        let mut model = model::load(&self.file)?;
        if self.sanitize {
            model::sanitize(&mut model)?;
        }
        let summary = self.summary(&model)?;
        if global.json {
            output::json(&summary)?;
        } else {
            output::print(&self.text(&summary))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn summary(&self, model: &Model) -> Result<Summary> {
        let graph = &model.graph;
        let facts = self.facts(graph)?;
        let nodes: Vec<Row> = graph.nodes().map(|(id, node)| row(graph, &facts, id, node)).collect();
        let parameters = parameters::of_graph(graph);
        let mut operators = BTreeMap::new();
        graph.nodes().for_each(|(_, n)| *operators.entry(n.op.name().to_owned()).or_insert(0) += 1);
        let tensor = |&v: &ValueId| Tensor { name: graph.value(v).name.clone(), ty: graph.value(v).ty.to_string() };
        Ok(Summary {
            file: self.file.clone(),
            producer: format!("{} {}", model.producer_name, model.producer_version).trim().to_owned(),
            opset: model.opset(),
            ir_version: model.ir_version,
            bytes: model::size_on_disk(&self.file)?,
            parameters: parameters.count,
            parameter_bytes: parameters.bytes,
            macs: nodes.iter().map(|r| r.macs).sum(),
            inputs: graph.inputs().iter().map(tensor).collect(),
            outputs: graph.outputs().iter().map(tensor).collect(),
            metadata: model.metadata.iter().cloned().collect(),
            operators,
            nodes,
        })
    }

    /// Facts with every free dimension bound.
    fn facts(&self, graph: &Graph) -> Result<Facts> {
        let mut used = vec![false; self.dim.len()];
        let mut inputs = BTreeMap::new();
        for &v in graph.inputs() {
            let Some(ty) = graph.value(v).ty.tensor() else { continue };
            let mut bind = |d: &Dim| match d {
                Dim::Known(_) => d.clone(),
                Dim::Sym(s) => {
                    let found = self.dim.iter().position(|(n, _)| **n == **s);
                    found.iter().for_each(|&i| used[i] = true);
                    Dim::from(found.map_or(1, |i| self.dim[i].1))
                }
                Dim::Unknown => Dim::Known(1),
            };
            let shape = ty.shape.as_ref().map(|s| s.iter().map(&mut bind).collect());
            let ty = ValueType::Tensor(TensorType { dtype: ty.dtype, shape });
            inputs.insert(v, Fact { ty, ..Fact::default() });
        }
        if let Some(i) = used.iter().position(|u| !u) {
            bail!("no input has a dimension called \"{}\"", self.dim[i].0);
        }
        Ok(infer::infer(graph, &inputs, infer::Options { max_folded: 1024, strict: false })?)
    }

    fn text(&self, s: &Summary) -> String {
        let mut out = format!(
            "{}  opset {}, {}, {} parameters, {} multiply-accumulates\n",
            s.file.display(),
            s.opset,
            output::bytes(s.bytes),
            output::count(s.parameters),
            output::count(s.macs)
        );
        s.inputs.iter().for_each(|t| out.push_str(&format!("  input   {}: {}\n", t.name, t.ty)));
        s.outputs.iter().for_each(|t| out.push_str(&format!("  output  {}: {}\n", t.name, t.ty)));
        s.metadata.iter().for_each(|(k, v)| out.push_str(&format!("  {}: {}\n", brief(k), brief(v))));
        let shown: Vec<&Row> = s.nodes.iter().filter(|r| self.all || r.shown).collect();
        let rows: Vec<Vec<String>> = match self.flat {
            true => shown.iter().map(|r| cells(r, r.name.clone())).collect(),
            false => tree(&shown),
        };
        out.push_str(&output::table(&["operator", "name", "output", "params", "MACs", "scales"], &rows));
        let hidden = s.nodes.len() - shown.len();
        if hidden > 0 {
            out.push_str(&format!("{hidden} nodes that convert or compute shapes are not shown (--all shows them)\n"));
        }
        out
    }
}

fn cells(r: &Row, name: String) -> Vec<String> {
    let number = |n: u64| if n == 0 { String::new() } else { output::count(n) };
    let scale = |label: &str, s: &Option<Vec<f32>>| match s.as_deref() {
        None | Some([]) => String::new(),
        Some([one]) => format!("{label}=[{one}] "),
        Some(many) => {
            let (lo, hi) = many.iter().fold((f32::INFINITY, 0f32), |(a, b), &x| (a.min(x), b.max(x)));
            format!("{label}=[{lo} … {hi}; {}] ", many.len())
        }
    };
    let scales = format!("{}{}", scale("a_scale", &r.a_scale), scale("w_scale", &r.w_scale));
    vec![r.op.clone(), name, r.output.clone(), number(r.parameters), number(r.macs), scales.trim_end().to_owned()]
}

/// The nodes in order, with a line for each folder of their names when it is first entered.
fn tree(rows: &[&Row]) -> Vec<Vec<String>> {
    let mut out = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    for r in rows {
        let path: Vec<&str> = r.name.split('/').filter(|p| !p.is_empty()).collect();
        let folders = &path[..path.len().saturating_sub(1)];
        let common = open.iter().zip(folders).take_while(|(a, b)| a == b).count();
        for (depth, f) in folders.iter().enumerate().skip(common) {
            out.push(vec![String::new(), format!("{}{f}/", "  ".repeat(depth))]);
        }
        open = folders.to_vec();
        let leaf = path.last().copied().unwrap_or_default();
        out.push(cells(r, format!("{}{leaf}", "  ".repeat(folders.len()))));
    }
    out
}

fn row(graph: &Graph, facts: &Facts, id: NodeId, node: &Node) -> Row {
    let op = node.op.name();
    let converts = matches!(op, "QuantizeLinear" | "DequantizeLinear");
    let output = node.outputs.iter().flatten().next();
    let float = output.is_some_and(|&v| facts.dtype(v).is_none_or(|d| d.is_float() || d.bits() <= 8));
    let folded = output.is_some_and(|&v| facts.get(v).value.is_some());
    let (a_scale, w_scale) = scales(graph, id, node);
    Row {
        name: node.name.clone(),
        op: op.to_owned(),
        output: output.map_or(String::new(), |&v| facts.get(v).ty.to_string()),
        parameters: if converts { 0 } else { parameters::of_node(graph, node) },
        macs: macs::of_node(facts, node).unwrap_or(0),
        a_scale,
        w_scale,
        shown: !converts && float && !folded && op != "Constant",
    }
}

/// A text for one line of a terminal: without line breaks, and cut where it is long.
fn brief(text: &str) -> String {
    const SHOWN: usize = 160;
    let line = |text: &str| text.replace(|c: char| c.is_control(), " ");
    match text.char_indices().nth(SHOWN) {
        None => line(text),
        Some((end, _)) => format!("{}… ({} characters)", line(&text[..end]), text.chars().count()),
    }
}

/// The scales of the first activation and the first weight that a node reads.
fn scales(graph: &Graph, id: NodeId, node: &Node) -> (Option<Vec<f32>>, Option<Vec<f32>>) {
    let of = |n: NodeId, i: usize| graph.const_input(n, i).and_then(|t| t.to_f32s().ok().map(|s| s.into_owned()));
    match node.op.name() {
        "QuantizeLinear" | "DequantizeLinear" => return (of(id, 1), None),
        "QLinearConv" | "QLinearMatMul" => return (of(id, 1), of(id, 4)),
        "QGemm" => return (of(id, 1), of(id, 4)),
        _ => {}
    }
    let (mut a, mut w) = (None, None);
    for &v in node.inputs.iter().flatten() {
        let Some((dq, _)) = graph.producer(v).filter(|(n, _)| graph.node(*n).op.name() == "DequantizeLinear") else {
            continue;
        };
        let constant = graph.const_input(dq, 0).is_some();
        let slot = if constant { &mut w } else { &mut a };
        *slot = slot.take().or_else(|| of(dq, 1));
    }
    (a, w)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_long_texts_and_tells_their_length() {
        assert_eq!(brief("a\nb"), "a b");
        let long = "ä".repeat(200);
        assert_eq!(brief(&long), format!("{}… (200 characters)", "ä".repeat(160)));
        assert_eq!(brief(&long[..320]), long[..320]);
    }

    #[test]
    fn opens_each_folder_once() {
        let row = |name: &str| Row {
            name: name.into(),
            op: "Relu".into(),
            output: String::new(),
            parameters: 0,
            macs: 0,
            a_scale: None,
            w_scale: None,
            shown: true,
        };
        let rows = [row("/a/b/x"), row("/a/b/y"), row("/a/z"), row("plain")];
        let names: Vec<String> = tree(&rows.iter().collect::<Vec<_>>()).into_iter().map(|c| c[1].clone()).collect();
        assert_eq!(names, ["a/", "  b/", "    x", "    y", "  z", "plain"]);
    }
}
