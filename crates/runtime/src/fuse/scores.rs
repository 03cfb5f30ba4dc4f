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
    /// What its codes are to the mask and the softmax.
    pub values: Codes,
    /// How a mask of codes is added; its format has the ratio of the mask in the place of the scale.
    pub mask: Option<(CodeSum, QParams)>,
    /// The format of the sum; scale 1 where it is formed in its own steps.
    pub sum: Option<QParams>,
    /// Set where the softmax is one of codes.
    pub softmax: Option<CodeSoftmax>,
}

/// What codes become.
#[derive(Debug, Clone)]
pub enum Codes {
    /// Their values in their own format.
    Scaled,
    /// Steps of another size, within bounds: what each is worth, and what none are.
    Linear { ratio: f32, bounds: [f32; 2], scale: f32, offset: f32 },
    /// By their bits.
    Table(Box<[f32; 256]>),
}

/// A QLinearSoftmax.
#[derive(Debug, Clone, Copy)]
pub struct CodeSoftmax {
    /// The scale of its operand.
    pub scale: f32,
    /// The format of its result.
    pub output: QParams,
}

fn code(dtype: DType, bits: u8) -> i32 {
    if dtype == DType::I8 { i32::from(bits as i8) } else { i32::from(bits) }
}

/// A table of codes, by the bits of those of `from`, as steps of another size; read as floats of a format, or as they are.
/// `None` where one of the 256 would differ.
fn linear(from: QParams, codes: &[i32; 256], floats: Option<QParams>) -> Option<Codes> {
    let by_steps: Vec<(f32, i32)> =
        (0..=255u8).map(|b| ((code(from.dtype, b) - from.zero) as f32, codes[usize::from(b)])).collect();
    let none = by_steps.iter().find(|(k, _)| *k == 0.0)?.1;
    let [low, high] = [codes.iter().min()?, codes.iter().max()?].map(|c| (c - none) as f32);
    // Each result within the bounds says between which ratios the one is.
    let (mut least, mut most) = (f32::NEG_INFINITY, f32::INFINITY);
    for &(k, c) in by_steps.iter().filter(|(k, _)| *k != 0.0) {
        let r = (c - none) as f32;
        let ends = [(r - 0.5) / k, (r + 0.5) / k];
        if r > low && r < high {
            (least, most) = (least.max(ends[0].min(ends[1])), most.min(ends[0].max(ends[1])));
        }
    }
    let ratio = 0.5 * (least + most);
    let same = |&(k, c): &(f32, i32)| (k * ratio).round_ties_even().min(high).max(low) == (c - none) as f32;
    let (scale, offset) = match floats {
        Some(q) if q.zero == none => (q.scale, -0.0),
        Some(_) => return None,
        None => (1.0, none as f32),
    };
    let found = Codes::Linear { ratio, bounds: [low, high], scale, offset };
    (ratio.is_finite() && by_steps.iter().all(same)).then_some(found)
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
        let values = match (bits, sum.floats) {
            (None, Some(format)) if format == product => Codes::Scaled,
            (bits, floats) => {
                let bits = bits.unwrap_or_else(|| std::array::from_fn(|b| b as u8));
                let codes = bits.map(|b| code(dtype, b));
                linear(product, &codes, floats).unwrap_or_else(|| {
                    let value = |c: i32| floats.map_or(c as f32, |q| (c - q.zero) as f32 * q.scale);
                    Codes::Table(Box::new(codes.map(value)))
                })
            }
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: QParams = QParams { dtype: DType::U8, scale: 0.1, zero: 100 };

    fn table(f: impl Fn(i32) -> i32) -> [i32; 256] {
        std::array::from_fn(|b| f(b as i32 - 100))
    }

    #[test]
    fn tells_steps_of_another_size_from_other_tables() {
        let scaled = table(|k| ((k as f32 * 0.37).round_ties_even() as i32 + 30).clamp(0, 255));
        let Some(Codes::Linear { ratio, bounds, scale, offset }) = linear(FROM, &scaled, None) else {
            panic!("steps of 0.37");
        };
        assert!((ratio - 0.37).abs() < 0.002, "{ratio}");
        assert_eq!((bounds, scale, offset), ([-30.0, 57.0], 1.0, 30.0));
        let floats = QParams { dtype: DType::U8, scale: 0.5, zero: 30 };
        assert!(matches!(linear(FROM, &scaled, Some(floats)), Some(Codes::Linear { scale: 0.5, offset: 0.0, .. })));
        // Without steps there would be a value.
        assert!(linear(FROM, &scaled, Some(QParams { zero: 29, ..floats })).is_none());
        assert!(linear(FROM, &table(|k| (k * k / 100).min(255)), None).is_none());
        assert!(linear(FROM, &table(|_| 7), None).is_none());
        let mut odd = scaled;
        odd[200] += 1;
        assert!(linear(FROM, &odd, None).is_none());
    }
}
