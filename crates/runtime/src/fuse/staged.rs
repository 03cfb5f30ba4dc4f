//! Sums behind a quantized product that are made while the product is at hand: of codes that are read as floats, or of
//! codes as they are (QLinearAdd).

use narrowbit_ir::{Node, NodeId, ValueId};
use narrowbit_kernels::Activation;
use narrowbit_kernels::panel::CodeSum;

use super::{Finder, Fusion, Ints};
use crate::lower::{self, QParams, Quantized};

/// A constant row of steps of one scale, along the last axis.
#[derive(Debug, Clone)]
pub struct StepRow {
    /// Steps, whole or not.
    pub steps: Vec<f32>,
    /// What one is worth.
    pub scale: f32,
}

/// What is added to a product.
pub(super) enum Other {
    /// A tensor of its shape.
    Codes(Quantized),
    /// A constant.
    Row(StepRow),
}

impl Other {
    pub fn value(&self) -> Option<ValueId> {
        if let Other::Codes(q) = self { Some(q.value) } else { None }
    }
}

/// The nodes behind a quantized product that add something to it.
pub(super) struct StagedSum {
    pub nodes: Vec<NodeId>,
    pub other: Other,
    /// Set where codes are added as they are.
    pub codes: Option<CodeSum>,
    pub activation: Activation,
    pub output: QParams,
    pub y: ValueId,
}

impl<'a> Finder<'a> {
    /// The sum that a quantized product goes into, with a clamp and a QuantizeLinear behind it: the sum is made while the
    /// product is at hand.
    pub(super) fn staged_sum(&self, product: &Node, f: &Fusion, ints: &Ints, codes: ValueId) -> Option<StagedSum> {
        let weighted = ints.operands.len() == 2 && ints.operands[1].is_none();
        if !weighted || f.residual.is_some() || !f.affine.is_empty() || f.activation != Activation::None {
            return None;
        }
        ints.output?;
        // Columns of these are the last axis.
        let rows = matches!(product.op.name(), "MatMul" | "Gemm");
        self.code_sum(codes, rows).or_else(|| self.float_sum(ints, codes, rows))
    }

    /// The Reshape that alone reads a product's codes and leaves their rows as they are, as those of a Gemm are given their
    /// axes back, and what it makes.
    fn regained(&self, codes: ValueId) -> Option<(NodeId, ValueId)> {
        let (id, node, _) = self.next(codes).filter(|n| n.1.op.name() == "Reshape" && n.2 == 0)?;
        let last = |v: ValueId| self.facts.shape(v)?.last()?.as_usize();
        let y = node.output(0)?;
        (last(y)? == last(codes)?).then_some((id, y))
    }

    /// A QLinearAdd of a product's codes and others.
    fn code_sum(&self, codes: ValueId, rows: bool) -> Option<StagedSum> {
        let (mut nodes, mut codes) = (Vec::new(), codes);
        if let Some((id, y)) = self.regained(codes).filter(|_| rows) {
            nodes.push(id);
            codes = y;
        }
        let (add, node, _) = self.next(codes).filter(|n| n.1.op.name() == "QLinearAdd")?;
        let (found, y) = (lower::code_binary(self.facts, node)?, node.output(0)?);
        let first = found.operands[0].0 == codes;
        let (other, format) = found.operands[usize::from(first)];
        let (ratios, fixed) = found.sum();
        let scale = ratios[usize::from(first)];
        let other = match self.facts.get(other).value.as_ref() {
            Some(t) => {
                let fits = rows && self.is_row(other, codes)?;
                let steps = t.to_i64s().ok().filter(|_| fits)?;
                Other::Row(StepRow { steps: steps.into_iter().map(|c| c as f32).collect(), scale })
            }
            None => {
                let same = self.facts.get(other).ty == self.facts.get(codes).ty && other != codes;
                let params = QParams { scale, zero: 0, ..format };
                same.then_some(Other::Codes(Quantized { value: other, params, runtime: None }))?
            }
        };
        let sum = CodeSum { ratio: ratios[usize::from(!first)], fixed, first };
        nodes.push(add);
        let (activation, output) = (Activation::None, found.output);
        Some(StagedSum { nodes, other, codes: Some(sum), activation, output, y })
    }

    /// An Add of a product's codes and others, both read as floats.
    fn float_sum(&self, ints: &Ints, codes: ValueId, rows: bool) -> Option<StagedSum> {
        let (mut nodes, mut codes) = (Vec::new(), codes);
        if let Some((id, y)) = self.regained(codes).filter(|_| rows) {
            nodes.push(id);
            codes = y;
        }
        let (dq, node, _) = self.next(codes).filter(|n| n.1.op.name() == "DequantizeLinear" && n.2 == 0)?;
        let read = node.output(0)?;
        if lower::source(self.graph, self.facts, read)?.params != ints.output? {
            return None;
        }
        let (add, other, mut out) = match self.residual(read) {
            Some((add, residual, out)) => (add, Other::Codes(lower::source(self.graph, self.facts, residual)?), out),
            None => {
                let (add, bias, out) = self.bias(read).filter(|_| rows)?;
                let steps = self.facts.get(bias).value.as_ref()?.to_f32s().ok()?.into_owned();
                (add, Other::Row(StepRow { steps, scale: 1.0 }), out)
            }
        };
        nodes.extend([dq, add]);
        let mut activation = Activation::None;
        if let Some((ids, act, y)) = self.activation(out) {
            nodes.extend(ids);
            (activation, out) = (act, y);
        }
        if !matches!(activation, Activation::None | Activation::Relu | Activation::Clip { .. }) {
            return None;
        }
        let (q, node, _) = self.next(out).filter(|n| n.2 == 0)?;
        let (output, y) = (lower::target(self.facts, node)?, node.output(0)?);
        nodes.push(q);
        Some(StagedSum { nodes, other, codes: None, activation, output, y })
    }
}
