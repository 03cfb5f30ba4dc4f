//! Weights in few bits, a scale for each block along the summed axis; operators compute on floats.
//!
//! A weight is written as a blocked DequantizeLinear before the product, which ONNX Runtime turns into its MatMulNBits
//! when it loads the file, or as MatMulNBits outright. Codes, scales and zero points are those of [`block`], by one of
//! three algorithms; NF4, which no operator knows, is a table of 16 numbers read by Gather. The formats of OCP
//! Microscaling are blocks of 32 whose scale is the power of two that their definition says.

mod block;
mod pack;
mod rounding;
mod table;
mod write;

use pack::Blocks;
use std::collections::BTreeMap;

use narrowbit_ir::{ConstId, Graph, Model, Node, NodeId};
use narrowbit_kernels::Exec;

use crate::approach::{Approach, BlockFormat, BlockType, WeightOnlyOptions};
use crate::gptq::{Report, Rounder};
use crate::options::{Matcher, QuantOptions, WeightRounding};
use crate::plan::Reason;
use crate::quantize::{Converted, NodeFate, QuantizeError};
use crate::select::{Selection, select};

/// Operator types whose weights are quantized unless the user names some.
const USUAL: [&str; 2] = ["MatMul", "Gemm"];

/// Whose weights are quantized by blocks in a graph.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    found: Selection,
    jobs: Vec<Job>,
    /// Weights that are rounded by samples already.
    rounded: BTreeMap<Key, Blocks>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Quantizes the weights of a sanitized model in place, one after the other, so that floats of one weight at most are in
/// memory.
///
/// # Errors
/// When the settings can't be written, or the model is quantized already or holds nothing of the kind.
pub(crate) fn quantize(
    model: &mut Model,
    options: &QuantOptions,
    rounder: Option<&mut Rounder>,
    exec: &Exec,
) -> Result<Converted, QuantizeError> {
    let mut chosen = choose(model, options)?;
    if chosen.found.is_empty() {
        let blocks = || {
            QuantizeError::Nothing(" (weights by blocks are those of MatMul, Gemm, Gather, LSTM, GRU and RNN)".into())
        };
        let convolved = chosen.found.reasons.values().any(|r| *r == Reason::NoBlocks);
        return Err(match chosen.found.filled(model) {
            // Of types that nobody asked for there is no form, whatever is asked for.
            Err(QuantizeError::Nothing(why)) if options.op_types.is_empty() && why.contains("--op-types") => blocks(),
            Err(e) if !convolved => e,
            _ => blocks(),
        });
    }
    let fates = model.graph.nodes().map(|(id, node)| chosen.fate(id, node)).collect();
    let rounding = rounder.map(|r| chosen.round(&model.graph, r, exec)).transpose()?;
    let warnings = std::mem::take(&mut chosen.warnings);
    write(model, chosen, exec)?;
    Ok(Converted { fates, warnings, rounding })
}

/// Selects the products and tables whose constants are quantized.
///
/// # Errors
/// When the settings of one can't be written.
pub(crate) fn choose(model: &Model, options: &QuantOptions) -> Result<Chosen, QuantizeError> {
    options.overrides.iter().filter_map(|o| o.weight_only).chain([options.weight_only]).try_for_each(|w| w.check())?;
    // Tables are quantized only where they are asked for: Gather among the operator types.
    let options = QuantOptions { embeddings: true, ..options.clone() };
    let mut found = select(model, &options, Approach::WeightOnly, &USUAL)?;
    let convolution = |id: &NodeId| model.graph.node(*id).op.name() == "Conv";
    let convolutions: Vec<NodeId> = found.products.iter().copied().filter(convolution).collect();
    found.products.retain(|id| !convolution(id));
    found.reasons.extend(convolutions.into_iter().map(|id| (id, Reason::NoBlocks)));
    let matcher = Matcher::new(&options.overrides)?;
    let of = |&node: &NodeId| {
        let own = || matcher.of(model.graph.node(node));
        let blocks = own().find_map(|o| o.weight_only).unwrap_or(options.weight_only);
        let rounding = options.rounding_of_blocks(own().find_map(|o| o.weight_rounding), &blocks);
        Job { node, options: blocks, rounding }
    };
    let jobs: Vec<Job> = found.products.iter().chain(&found.tables).chain(&found.recurrent).map(of).collect();
    let needed = jobs.iter().map(|j| j.options.opset()).max().unwrap_or(0);
    if model.opset() < needed {
        return Err(crate::approach::ApproachError::Opset(model.opset(), needed).into());
    }
    let warnings = warnings(&model.graph, &jobs);
    Ok(Chosen { found, jobs, rounded: BTreeMap::new(), warnings })
}

/// Rewrites what was chosen in a graph whose nodes are still those that it was chosen in.
///
/// # Errors
/// When the graph can't be rewritten.
pub(crate) fn write(model: &mut Model, chosen: Chosen, exec: &Exec) -> Result<(), QuantizeError> {
    Ok(write::all(model, &chosen.jobs, chosen.rounded, exec)?)
}

impl Chosen {
    /// Rounds weights by samples where the settings say so; `graph` is the float one.
    ///
    /// # Errors
    /// When a sample can't be read or the float model can't be run on it, or the user asks to stop.
    pub fn round(&mut self, graph: &Graph, rounder: &mut Rounder, exec: &Exec) -> Result<Report, QuantizeError> {
        let (rounded, report) = rounding::round(graph, &self.jobs, rounder, exec)?;
        self.rounded = rounded;
        Ok(report)
    }

    /// What becomes of a node.
    pub fn fate(&self, id: NodeId, node: &Node) -> NodeFate {
        let stored = self.jobs.iter().find(|j| j.node == id).map(|j| j.options.codes.to_string());
        NodeFate { stored, ..NodeFate::new(node, self.found.reasons.get(&id).copied()) }
    }
}

/// A quantized matrix beside the floats that it was, for explanations.
pub(crate) struct Quantized<'a> {
    values: &'a [f32],
    blocks: Blocks,
    by_column: bool,
}

/// A block: its numbers, and each value with what stands for it and whether it lies beyond the codes.
pub(crate) struct Block {
    pub scale: f32,
    pub zero: i32,
    pub values: Vec<(f32, f32, bool)>,
}

impl<'a> Quantized<'a> {
    /// Quantizes a matrix, `[n, k]` where `by_column` and `[k, n]` otherwise; `None` where there are no two axes.
    pub fn new(
        exec: &Exec,
        values: &'a [f32],
        shape: &[usize],
        by_column: bool,
        options: WeightOnlyOptions,
    ) -> Option<Quantized<'a>> {
        let &[rows, columns] = shape else { return None };
        let (n, k) = if by_column { (rows, columns) } else { (columns, rows) };
        let blocks = Blocks::new(exec, pack::Matrix { values, n, k, by_column }, options);
        Some(Quantized { values, blocks, by_column })
    }

    /// Blocks of an output.
    pub fn per_column(&self) -> usize {
        self.blocks.blocks().max(1)
    }

    /// All blocks, output by output.
    pub fn blocks(&self) -> impl Iterator<Item = Block> {
        let b = &self.blocks;
        let (length, per) = (b.options.block, self.per_column());
        (0..b.n * b.blocks()).map(move |at| {
            let (column, first) = (at / per, at % per * length);
            let (scale, zero) = (b.scales[at], b.zeros.as_ref().map_or(0, |z| z[at]));
            let known = block::Values::new(b.options.codes);
            let range = b.options.codes.code_range();
            let value = |k: usize| {
                let place = if self.by_column { column * b.k + k } else { k * b.n + column };
                let x = self.values[place];
                let code = x / scale + f32::from(zero);
                let beyond = range.is_some_and(|(lo, hi)| code < lo as f32 - 0.501 || code > hi as f32 + 0.501);
                (x, known.round(x, scale, zero).1, beyond)
            };
            Block { scale, zero: zero.into(), values: (first..(first + length).min(b.k)).map(value).collect() }
        })
    }
}

/// A node whose constant is quantized.
#[derive(Debug, Clone, Copy)]
struct Job {
    node: NodeId,
    options: WeightOnlyOptions,
    rounding: WeightRounding,
}

/// What makes two nodes share a quantized constant: the constant, its orientation, and the settings.
type Key = (ConstId, bool, String);

/// Whether a product's weight is `[n, k]`.
fn is_transposed(node: &Node) -> bool {
    node.op.name() == "Gemm" && node.op.attrs().int_or("transB", 0).is_ok_and(|t| t != 0)
}

fn warnings(graph: &Graph, jobs: &[Job]) -> Vec<String> {
    // What ONNX Runtime makes MatMulNBits of.
    let multiplies = |j: &&Job| matches!(graph.node(j.node).op.name(), "MatMul" | "Gemm");
    let qdq = |j: &Job| j.options.format == BlockFormat::Qdq;
    let integers = |j: &Job| j.options.codes.code_range().is_some();
    let mut all = Vec::new();
    if jobs.iter().filter(multiplies).any(|j| qdq(j) && integers(j)) {
        all.push(
            "ONNX Runtime rounds the activations of such products to 8 bits unless the session sets \
                  session.qdq_matmulnbits_accuracy_level to 1"
                .to_owned(),
        );
    }
    // Measured with 1.31.1: the same file is right without optimizations, and as MatMulNBits in any case.
    if jobs.iter().any(|j| qdq(j) && matches!(j.options.codes, BlockType::Int2 | BlockType::Uint2)) {
        all.push(
            "ONNX Runtime 1.31 gives wrong results for 2-bit blocks behind DequantizeLinear when it optimizes: \
                  write them with --format matmulnbits for it"
                .to_owned(),
        );
    }
    if jobs.iter().any(|j| j.options.codes == BlockType::Nf4) {
        all.push(
            "no ONNX operator knows nf4: other runtimes read the table when they load the file, and then hold \
                  these weights as float32"
                .to_owned(),
        );
    }
    all
}

#[cfg(test)]
mod tests;
