//! Scores of an attention that are rounded to codes on their way to the softmax, as tools write them that quantize every
//! operator: product → codes → functions of them → [mask → codes] → Softmax, or the same in QLinear operators.

use narrowbit_ir::{Node, NodeId, ValueId};
use narrowbit_kernels::panel::CodeSum;
use narrowbit_tensor::DType;

use super::Finder;
use super::attention::Scores;
use crate::lower::{self, QParams};
use narrowbit_kernels::panel::Factor;

/// What scores go through between the product and the softmax.
#[derive(Debug, Clone)]
pub struct Coded {
    /// The format of the product.
    pub product: QParams,
    /// What its codes are to the mask and the softmax, by their bits; `None` is their value in the product's format.
    pub values: Option<Box<[f32; 256]>>,
    /// How a mask of codes is added; its format has the ratio of the mask in the place of the scale.
    pub mask: Option<(CodeSum, QParams)>,
    /// The format of the sum; scale 1 where it is formed in its own steps.
    pub sum: Option<QParams>,
    /// Set where the softmax is one of codes.
    pub softmax: Option<CodeSoftmax>,
}

/// A QLinearSoftmax.
#[derive(Debug, Clone, Copy)]
pub struct CodeSoftmax {
    /// The scale of its operand.
    pub scale: f32,
    /// The format of its result.
    pub output: QParams,
}

/// The second half of the way, seen from its end.
struct Sum {
    nodes: Vec<NodeId>,
    /// The scores' codes before the mask.
    codes: ValueId,
    /// Their format as floats; `None` where they are read as codes.
    floats: Option<QParams>,
    mask: Option<ValueId>,
    mask_codes: Option<(CodeSum, QParams)>,
    sum: Option<QParams>,
}

impl<'a> Finder<'a> {
    /// The way to a Softmax or QLinearSoftmax over the last axis whose operand is made of codes.
    pub(super) fn coded_scores(&self, softmax: &Node) -> Option<(Scores<'a>, Coded)> {
        let (x, mut nodes) = (softmax.input(0)?, Vec::new());
        let (sum, softmax) = if softmax.op.name() == "QLinearSoftmax" {
            let dtype = self.facts.dtype(x)?;
            let format = |i: usize| lower::params_at(self.facts, softmax, i, dtype);
            (self.sum_of_codes(x)?, Some(CodeSoftmax { scale: format(1)?.scale, output: format(3)? }))
        } else {
            let (dequantize, _) = self.previous(x)?;
            nodes.push(dequantize);
            (self.sum_of_floats(x)?, None)
        };
        nodes.extend(sum.nodes);
        let (first, bits) = self.first_codes(sum.codes, &mut nodes);
        let (round, quantize) = self.previous(first)?;
        let product = lower::target(self.facts, quantize)?;
        let (matmul, maker) = self.previous(quantize.input(0)?).filter(|n| n.1.op.name() == "MatMul")?;
        nodes.push(round);
        let dtype = self.facts.dtype(sum.codes)?;
        let as_float = |code: i32| match sum.floats {
            Some(q) => (code - q.zero) as f32 * q.scale,
            None => code as f32,
        };
        let code = |b: u8| if dtype == DType::I8 { i32::from(b as i8) } else { i32::from(b) };
        let plain = bits.is_none() && sum.floats == Some(product);
        let bits = bits.unwrap_or_else(|| std::array::from_fn(|b| b as u8));
        let values = (!plain).then(|| Box::new(bits.map(|b| as_float(code(b)))));
        let coded = Coded { product, values, mask: sum.mask_codes, sum: sum.sum, softmax };
        Some((Scores { product: matmul, maker, nodes, factor: Factor::None, mask: sum.mask }, coded))
    }

    /// The codes that others are a function of, and the table, where the nodes between serve nobody else.
    fn first_codes(&self, codes: ValueId, nodes: &mut Vec<NodeId>) -> (ValueId, Option<[u8; 256]>) {
        let between = || {
            let lookup = self.lookups.get(&codes)?;
            let (mut v, mut found) = (codes, Vec::new());
            while v != lookup.source {
                let (id, node) = self.previous(v)?;
                let mut changing = node.inputs.iter().flatten().filter(|v| !self.is_constant(**v));
                v = *changing.next()?;
                changing.next().is_none().then_some(())?;
                found.push(id);
            }
            Some((lookup, found))
        };
        match between() {
            Some((lookup, found)) => {
                nodes.extend(found);
                (lookup.source, Some(lookup.table))
            }
            None => (codes, None),
        }
    }

    fn is_constant(&self, v: ValueId) -> bool {
        lower::is_constant(self.graph, self.facts, v)
    }

    /// What makes the codes behind a Softmax's operand: a sum with a mask, if there is one.
    fn sum_of_floats(&self, x: ValueId) -> Option<Sum> {
        let last = lower::source(self.graph, self.facts, x)?;
        let masked = || {
            let (round, quantize) = self.previous(last.value)?;
            let same = lower::target(self.facts, quantize)? == last.params;
            let (add, node) = self.previous(quantize.input(0)?).filter(|n| same && n.1.op.name() == "Add")?;
            let (a, b) = (node.input(0)?, node.input(1)?);
            let full = self.facts.shape(node.output(0)?);
            // The mask is read by all layers, the scores by this sum alone.
            let is_scores = |v: ValueId| {
                let read = self.previous(v).filter(|n| n.1.op.name() == "DequantizeLinear");
                read.is_some() && self.facts.shape(v) == full
            };
            let (scores, mask) = if is_scores(a) { (a, b) } else { (b, a) };
            let source = lower::source(self.graph, self.facts, scores).filter(|_| is_scores(scores))?;
            let (dequantize, _) = self.previous(scores)?;
            Some(Sum {
                nodes: vec![round, add, dequantize],
                codes: source.value,
                floats: Some(source.params),
                mask: Some(mask),
                mask_codes: None,
                sum: Some(last.params),
            })
        };
        let alone = || Sum {
            nodes: Vec::new(),
            codes: last.value,
            floats: Some(last.params),
            mask: None,
            mask_codes: None,
            sum: None,
        };
        Some(masked().unwrap_or_else(alone))
    }

    /// What makes the codes of a QLinearSoftmax: a QLinearAdd of a mask, if there is one.
    fn sum_of_codes(&self, codes: ValueId) -> Option<Sum> {
        let masked = || {
            let (add, node) = self.previous(codes).filter(|n| n.1.op.name() == "QLinearAdd")?;
            let found = lower::code_binary(self.facts, node)?;
            let full = self.facts.shape(codes);
            let is_scores = |i: usize| {
                let v = found.operands[i].0;
                self.previous(v).is_some() && self.facts.shape(v) == full
            };
            let i = if is_scores(0) { 0 } else { 1 };
            is_scores(i).then_some(())?;
            let (ratios, fixed) = found.sum();
            let (mask, format) = found.operands[1 - i];
            let sum = CodeSum { ratio: ratios[i], fixed, first: i == 0 };
            Some(Sum {
                nodes: vec![add],
                codes: found.operands[i].0,
                floats: None,
                mask: Some(mask),
                mask_codes: Some((sum, QParams { scale: ratios[1 - i], ..format })),
                sum: Some(QParams { scale: 1.0, zero: 0, ..found.output }),
            })
        };
        let alone = || Sum { nodes: Vec::new(), codes, floats: None, mask: None, mask_codes: None, sum: None };
        Some(masked().unwrap_or_else(alone))
    }
}
