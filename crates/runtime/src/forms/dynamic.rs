//! Products of integers whose results are scaled afterwards, as DequantizeLinear → product.
//!
//! `MatMulInteger → Cast → Mul(scale_x · scale_w)` is what ONNX Runtime's `quantize_dynamic` writes, behind a
//! DynamicQuantizeLinear that finds scale_x and the zero point; ConvInteger likewise. `MatMulIntegerToFloat` and
//! `DynamicQuantizeMatMul` are the same in one node. The kernels that the rewritten form is lowered to compute
//! `f32(sum) · (scale_x · scale_w)` from the exact sum, in this order: the same bits. Products whose rows have a scale
//! each are those of [`rows`].

use narrowbit_ir::{AttrMap, Node, ValueId};
use narrowbit_tensor::{DType, Tensor};

use super::{Made, Params, Rewriter, Rule, rows};

/// The rule of an operator.
pub fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "MatMulInteger" => matmul,
        "ConvInteger" => scaled,
        "QuantizeLinear" => rows::quantize,
        "MatMulIntegerToFloat" => to_float,
        "DynamicQuantizeMatMul" => quantized_here,
        _ => return None,
    })
}

fn matmul(r: &mut Rewriter, node: &Node) -> Option<Made> {
    rows::product(r, node).or_else(|| scaled(r, node))
}

/// A tensor of integers whose scale, and maybe zero point, are values.
#[derive(Clone, Copy)]
struct Source {
    x: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
}

/// The factors of a sum: of the rows, and of the columns where it is not part of the first one.
enum Factors {
    /// A constant for both.
    Constant(ValueId),
    /// Of the left operand and the constant of the right one.
    Right(ValueId, ValueId),
    /// Of two activations.
    Both(ValueId, ValueId),
}

/// Whether a value is known to be a scalar or a vector of one element.
fn is_single(r: &Rewriter, v: ValueId) -> bool {
    let constant = r.graph.constant(v).map(|t| t.len() == 1 && t.rank() <= 1);
    let said = || Some(matches!(r.graph.value(v).ty.tensor()?.concrete_shape()?.as_slice(), [] | [1]));
    let made = || {
        let (n, output) = r.graph.producer(v)?;
        Some(r.graph.node(n).op.name() == "DynamicQuantizeLinear" && output > 0)
    };
    constant.or_else(said).unwrap_or(false) || made().unwrap_or(false)
}

fn factors(r: &Rewriter, v: ValueId) -> Option<Factors> {
    if r.graph.constant(v).is_some() {
        return Some(Factors::Constant(v));
    }
    let node = r.graph.node(r.graph.producer(v)?.0);
    let (a, b) = (node.input(0)?, node.input(1).filter(|_| node.op.name() == "Mul")?);
    let constant = |v: ValueId| r.graph.constant(v).is_some();
    let single = |v: ValueId| is_single(r, v);
    Some(match (constant(a), constant(b)) {
        (false, true) if single(a) => Factors::Right(a, b),
        (true, false) if single(b) => Factors::Right(b, a),
        (false, false) if single(a) && single(b) => Factors::Both(a, b),
        _ => return None,
    })
}

/// What follows a sum: `Cast` to floats and `Mul`; its factor and its result.
pub(super) fn scaling(r: &Rewriter, sum: ValueId) -> Option<(ValueId, ValueId)> {
    let cast = r.graph.node(r.graph.only_use(sum)?.node);
    let to_f32 = cast.op.name() == "Cast" && cast.op.attrs().int_or("to", 0) == Ok(i64::from(DType::F32.to_onnx()));
    let u = r.graph.only_use(cast.output(0).filter(|_| to_f32)?)?;
    let mul = r.graph.node(u.node);
    let factor = mul.input(1 - u.input.min(1)).filter(|_| mul.op.name() == "Mul")?;
    Some((factor, mul.output(0)?))
}

/// `MatMulInteger` or `ConvInteger` (a, b, a_zero, b_zero) with its scaling.
fn scaled(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let (factor, mut of) = scaling(r, node.output(0)?)?;
    let conv = node.op.name() == "ConvInteger";
    let (a, b) = (r.input(node, 0)?, node.input(1)?);
    let (a_scale, b_scale) = match factors(r, factor)? {
        Factors::Constant(s) => (r.patch.constant(&format!("{}_one", node.name), Tensor::scalar(1f32)), s),
        Factors::Right(x, w) => (x, w),
        // Only the product of both matters.
        Factors::Both(x, y) => (x, y),
    };
    let left = Source { x: a, scale: a_scale, zero: zero(r, node, 2)? };
    let a = r.floats(&format!("{}_a", node.name), left)?;
    let b = right(r, node, b, b_scale, 3)?;
    if !conv {
        let y = r.add(&node.name, "MatMul", &[Some(a), Some(b)], AttrMap::new())?;
        return Some(Made { of: Some(of), ..Made::float(y) });
    }
    let mut inputs = vec![Some(a), Some(b)];
    if let Some((bias, y)) = channel_bias(r, node, of) {
        inputs.push(Some(bias));
        of = y;
    }
    let y = r.add(&node.name, "Conv", &inputs, node.op.attrs())?;
    Some(Made { of: Some(of), ..Made::float(y) })
}

/// A zero point that is one for all rows: `Some(None)` where it is absent, `None` where it has another form.
fn zero(r: &Rewriter, node: &Node, i: usize) -> Option<Option<ValueId>> {
    match node.input(i) {
        None => Some(None),
        Some(z) => is_single(r, z).then_some(Some(z)),
    }
}

/// The right operand as floats: constant weights, or an activation.
fn right(r: &mut Rewriter, node: &Node, b: ValueId, scale: ValueId, zero_at: usize) -> Option<ValueId> {
    let name = format!("{}_b", node.name);
    if r.graph.constant(b).is_none() {
        let zero = zero(r, node, zero_at)?;
        is_single(r, scale).then_some(())?;
        let x = r.moved.get(&b).copied().unwrap_or(b);
        return r.floats(&name, Source { x, scale, zero });
    }
    let p = weights(r, node, b, scale, zero_at)?;
    let axis = if node.op.name() == "ConvInteger" { 0 } else { -1 };
    r.dequantize(&name, b, &p, axis)
}

/// Scales and zero points of constant weights: one, or one per output channel.
pub(super) fn weights(r: &Rewriter, node: &Node, b: ValueId, scale: ValueId, zero_at: usize) -> Option<Params> {
    let (w, s) = (r.graph.constant(b)?, r.graph.constant(scale)?);
    let conv = node.op.name() == "ConvInteger";
    let channels = if conv { w.shape().first() } else { w.shape().last() }.copied()?;
    // The axis of the result that the channels lie on, counted from the back.
    let behind = if conv { w.rank().checked_sub(2)? } else { 0 };
    let along = |t: &Tensor| {
        let from_back = t.shape().iter().rev().position(|&d| d != 1);
        t.len() == 1 || t.len() == channels && (channels == 1 || from_back == Some(behind))
    };
    let scales = s.to_f32s().ok().filter(|_| s.dtype() == DType::F32 && along(s))?.into_owned();
    let zeros = match node.input(zero_at) {
        None => vec![0],
        Some(z) => r.graph.constant(z)?.to_i64s().ok()?,
    };
    let count = scales.len().max(zeros.len());
    let fits = |n: usize| n == 1 || n == count && n == channels;
    let int8 = matches!(w.dtype(), DType::U8 | DType::I8);
    let spread = |n: usize, i: usize| if n == 1 { 0 } else { i };
    // With fewer than two axes the columns have no axis of their own.
    let shaped = w.rank() >= 2 && (count == 1 || conv || w.rank() == 2);
    (int8 && shaped && fits(scales.len()) && fits(zeros.len())).then(|| Params {
        scales: (0..count).map(|i| scales[spread(scales.len(), i)]).collect(),
        zeros: (0..count).map(|i| zeros[spread(zeros.len(), i)]).collect(),
        dtype: w.dtype(),
    })
}

/// A constant of `[1, channels, 1 ..]` that is added to a convolution's result: as a vector, and the sum.
fn channel_bias(r: &mut Rewriter, node: &Node, v: ValueId) -> Option<(ValueId, ValueId)> {
    let w = r.graph.constant(node.input(1)?)?;
    let (rank, channels) = (w.rank(), *w.shape().first()?);
    let u = r.graph.only_use(v)?;
    let add = r.graph.node(u.node);
    let t = r.graph.constant(add.input(1 - u.input.min(1)).filter(|_| add.op.name() == "Add")?)?;
    let tail = t.shape().iter().rev().take_while(|&&d| d == 1).count();
    let per_channel = t.len() == channels && t.rank() <= rank && (channels > 1 && tail == rank - 2);
    let vector = t.reshaped([channels]).ok().filter(|_| per_channel && t.dtype() == DType::F32)?;
    let y = add.output(0)?;
    Some((r.patch.constant(&format!("{}_bias", node.name), vector), y))
}

/// a, b, a_scale, b_scale, a_zero, b_zero, bias.
fn to_float(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let (a, b) = (r.input(node, 0)?, node.input(1)?);
    let scale = node.input(2).filter(|&s| is_single(r, s))?;
    let left = Source { x: a, scale, zero: zero(r, node, 4)? };
    product(r, node, left, (b, node.input(3)?, 5), 6)
}

/// a (floats), b, b_scale, b_zero, bias.
fn quantized_here(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    r.graph.constant(b)?;
    let left = r.quantized(node, a)?;
    product(r, node, left, (b, node.input(2)?, 3), 4)
}

fn product(
    r: &mut Rewriter,
    node: &Node,
    left: Source,
    (b, b_scale, b_zero): (ValueId, ValueId, usize),
    bias: usize,
) -> Option<Made> {
    let a = r.floats(&format!("{}_a", node.name), left)?;
    let b = right(r, node, b, b_scale, b_zero)?;
    let y = r.add(&node.name, "MatMul", &[Some(a), Some(b)], AttrMap::new())?;
    let Some(bias) = r.input(node, bias) else { return Some(Made::float(y)) };
    Some(Made::float(r.add(&format!("{}_sum", node.name), "Add", &[Some(y), Some(bias)], AttrMap::new())?))
}

impl Rewriter<'_> {
    /// A tensor with a scale that is a value, as floats.
    fn floats(&mut self, name: &str, s: Source) -> Option<ValueId> {
        let moved = |v: ValueId| self.moved.get(&v).copied().unwrap_or(v);
        let inputs: Vec<Option<ValueId>> = [s.x, s.scale].into_iter().chain(s.zero).map(|v| Some(moved(v))).collect();
        self.add(&format!("{name}_dequantized"), "DequantizeLinear", &inputs, AttrMap::new())
    }

    /// What a DynamicQuantizeLinear makes of `x`: that of the graph, where there is one.
    fn quantized(&mut self, node: &Node, x: ValueId) -> Option<Source> {
        let graph = self.graph;
        let there = graph.uses(x).iter().map(|u| graph.node(u.node)).find(|n| n.op.name() == "DynamicQuantizeLinear");
        let outputs = match (there, self.ranges.get(&x)) {
            (Some(n), _) => [n.output(0), n.output(1), n.output(2)],
            (None, Some(&made)) => made,
            (None, None) => {
                let op = self.make("DynamicQuantizeLinear", AttrMap::new())?;
                let names = ["codes", "scale", "zero_point"].map(|s| format!("{}_{s}", node.name));
                let from = self.moved.get(&x).copied().unwrap_or(x);
                let outputs = names.each_ref().map(|n| Some(n.as_str()));
                let made = self.patch.node_outputs(&format!("{}_range", node.name), op, &[Some(from)], &outputs);
                let made = [*made.first()?, *made.get(1)?, *made.get(2)?];
                self.ranges.insert(x, made);
                made
            }
        };
        let [Some(codes), Some(scale), zero] = outputs else { return None };
        Some(Source { x: codes, scale, zero })
    }
}
