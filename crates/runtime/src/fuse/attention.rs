//! Attention: MatMul → [factor] → [mask] → Softmax → MatMul, on floats or on integers.

use narrowbit_ir::{Node, NodeId, ValueId};
use narrowbit_kernels::panel::Factor;
use narrowbit_tensor::{DType, shape};

use super::scores::Coded;
use super::{Finder, Fusion};
use crate::lower::{self, QParams, Runtime};
use crate::ops::is_zero_for_nan;

/// `softmax(q · kᵀ · scale + mask) · v`.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Queries, `[…, queries, depth]`.
    pub q: Operand,
    /// Transposed keys, `[…, depth, keys]`.
    pub kt: Operand,
    /// Values, `[…, keys, value depth]`.
    pub v: Operand,
    /// The factor of the scores; 1 on integers, which have `factor`.
    pub scale: f32,
    /// Added to the scores.
    pub mask: Option<ValueId>,
    /// Whether the softmax gives 0 where its formula gives no number.
    pub nan_as_zero: bool,
    /// The softmax of the scores, where somebody asked to see it.
    pub weights: Option<ValueId>,
    /// The axes of a Transpose that follows.
    pub out_perm: Option<Vec<usize>>,
    /// Set where both products are of integers: then so are the operands' values.
    pub ints: Option<AttentionInts>,
}

/// A value read through a Transpose.
#[derive(Debug, Clone)]
pub struct Operand {
    /// The value in memory.
    pub value: ValueId,
    /// The axes of the Transpose, if there is one.
    pub perm: Option<Vec<usize>>,
}

/// The formats of an attention on integers.
#[derive(Debug, Clone)]
pub struct AttentionInts {
    /// Of queries, keys and values.
    pub operands: [Format; 3],
    /// Of the softmax's results; by row, what is left of it without the greatest result of each row.
    pub weights: Format,
    /// Whether each row of the softmax's results is rounded as parts of its greatest one.
    pub by_row: bool,
    /// Of the output, where it is quantized.
    pub output: Option<QParams>,
    /// What the product of queries and keys goes through.
    pub factor: Factor,
    /// Set where scores are rounded to codes before the softmax.
    pub coded: Option<Coded>,
}

/// A format that is known, or made at run time.
pub type Format = (QParams, Option<Runtime>);

/// The softmax's results as integers.
struct Rounded {
    nodes: Vec<NodeId>,
    weights: Format,
    /// The greatest result of each row, where they are parts of it.
    greatest: Option<ValueId>,
    /// The integers as floats.
    floats: ValueId,
}

/// What leads from a product to a Softmax.
pub(super) struct Scores<'a> {
    pub product: NodeId,
    pub maker: &'a Node,
    /// The nodes between the two.
    pub nodes: Vec<NodeId>,
    pub factor: Factor,
    pub mask: Option<ValueId>,
}

/// What follows the product with the values.
struct Tail {
    nodes: Vec<NodeId>,
    output: Option<QParams>,
    perm: Option<Vec<usize>>,
    y: ValueId,
}

impl<'a> Finder<'a> {
    /// The attention around a Softmax.
    pub(super) fn attention(&mut self, softmax: NodeId, node: &'a Node) {
        let found = self.match_ints(softmax, node).or_else(|| self.match_floats(softmax, node));
        if let Some((root, f)) = found {
            self.take(root, f);
        }
    }

    /// Whether a Softmax goes along the last of three or four axes.
    fn softens_last(&self, node: &Node) -> Option<()> {
        let rank = self.facts.shape(node.input(0)?)?.len();
        let mut attrs = node.op.attrs();
        // Before opset 13 the default is the second axis, and a row spans all axes from it on.
        let old = node.op.name() == "QLinearSoftmax" && attrs.int_or("opset", 13).ok()? < 13;
        let axis = attrs.int_or("axis", if old { 1 } else { -1 }).ok()?;
        ((axis == -1 || axis == rank as i64 - 1) && (3..=4).contains(&rank)).then_some(())
    }

    /// The scores of a Softmax over the last of three or four axes.
    fn scores(&self, node: &Node) -> Option<Scores<'a>> {
        let scores = node.input(0)?;
        self.softens_last(node)?;
        let (mut nodes, mut factor, mut mask) = (Vec::new(), Factor::None, None);
        let (mut product, mut maker) = self.previous(scores)?;
        if maker.op.name() == "Add" {
            let (x, m) = self.product_side(maker)?;
            nodes.push(product);
            mask = Some(m);
            (product, maker) = self.previous(x)?;
        }
        if matches!(maker.op.name(), "Mul" | "Div") {
            let by = self.scalar(maker.input(1)?)?;
            factor = if maker.op.name() == "Mul" { Factor::Mul(by) } else { Factor::Div(by) };
            nodes.push(product);
            (product, maker) = self.previous(maker.input(0)?)?;
        }
        (maker.op.name() == "MatMul").then_some(Scores { product, maker, nodes, factor, mask })
    }

    fn match_floats(&self, softmax: NodeId, node: &Node) -> Option<(NodeId, Fusion)> {
        let probs = node.output(0).filter(|_| node.op.name() == "Softmax")?;
        let weights = self.keep.contains(&probs).then_some(probs);
        let (second, last, _) = self.reader(probs).filter(|n| n.1.op.name() == "MatMul" && n.2 == 0)?;
        let found = self.scores(node)?;
        let mut scale = match found.factor {
            Factor::None => 1.0,
            Factor::Mul(by) => by,
            Factor::Div(by) => 1.0 / by,
        };
        let mut nodes = vec![found.product, softmax, second];
        nodes.extend(found.nodes);
        let rank = self.facts.shape(probs)?.len();
        let fits = |v: ValueId| {
            self.facts.dtype(v) == Some(DType::F32) && self.facts.shape(v).is_some_and(|s| s.len() == rank)
        };
        let (q, kt, v) = (found.maker.input(0)?, found.maker.input(1)?, last.input(1)?);
        if ![q, kt, v].into_iter().all(fits) {
            return None;
        }
        let mut operand = |v, scale: Option<&mut f32>| self.operand(v, scale, &mut nodes);
        let (q, kt) = (operand(q, Some(&mut scale)), operand(kt, Some(&mut scale)));
        let v = operand(v, None);
        let mut out = last.output(0)?;
        let mut out_perm = None;
        if let Some((t, perm, y)) = self.transpose(out, rank) {
            nodes.push(t);
            (out, out_perm) = (y, Some(perm));
        }
        let (mask, nan_as_zero) = (found.mask, is_zero_for_nan(node));
        let attention = Attention { q, kt, v, scale, mask, nan_as_zero, weights, out_perm, ints: None };
        Some((found.product, Fusion { nodes, output: Some(out), attention: Some(attention), ..Fusion::default() }))
    }

    /// Both products on integers, with the weights quantized between them.
    fn match_ints(&self, softmax: NodeId, node: &Node) -> Option<(NodeId, Fusion)> {
        let probs = node.output(0)?;
        let rounded = match node.op.name() {
            "Softmax" => self.rounded(probs).or_else(|| self.rounded_by_row(probs))?,
            _ => self.rounded_codes(node, probs)?,
        };
        let (second, last, _) = self.next(rounded.floats).filter(|n| n.1.op.name() == "MatMul" && n.2 == 0)?;
        let (found, coded) = match self.scores(node) {
            Some(found) => (found, None),
            None => self.coded_scores(node).filter(|_| rounded.greatest.is_none()).map(|(s, c)| (s, Some(c)))?,
        };
        self.softens_last(node)?;
        let sources = [found.maker.input(0)?, found.maker.input(1)?, last.input(1)?];
        let of_mask = coded.as_ref().and_then(|c| c.mask).map_or(DType::F32, |m| m.1.dtype);
        self.check_shapes(sources, found.mask, of_mask)?;
        let mut nodes = vec![found.product, softmax, second];
        nodes.extend(rounded.nodes);
        nodes.extend(found.nodes);
        let mut operands = Vec::new();
        let mut formats = Vec::new();
        for (i, &v) in sources.iter().enumerate() {
            let source = lower::any_source(self.graph, self.facts, v)?;
            if source.runtime.is_some_and(|r| r.by_row || coded.is_some()) {
                return None;
            }
            operands.push(self.moved_codes(v, source.value, i == 1, &mut nodes));
            formats.push((source.params, source.runtime));
        }
        let [q, kt, v] = <[Operand; 3]>::try_from(operands).ok()?;
        let mut out = last.output(0)?;
        if let Some(greatest) = rounded.greatest {
            let (id, mul, at) = self.next(out).filter(|n| n.1.op.name() == "Mul")?;
            if mul.input(1 - at.min(1)) != Some(greatest) {
                return None;
            }
            nodes.push(id);
            out = mul.output(0)?;
        }
        let tail = self.tail(out)?;
        nodes.extend(tail.nodes);
        let ints = AttentionInts {
            operands: formats.try_into().ok()?,
            weights: rounded.weights,
            by_row: rounded.greatest.is_some(),
            output: tail.output,
            factor: found.factor,
            coded,
        };
        let attention = Attention {
            q,
            kt,
            v,
            scale: 1.0,
            mask: found.mask,
            nan_as_zero: is_zero_for_nan(node),
            weights: None,
            out_perm: tail.perm,
            ints: Some(ints),
        };
        let fusion = Fusion { nodes, output: Some(tail.y), attention: Some(attention), ..Fusion::default() };
        Some((found.product, fusion))
    }

    /// The results of a QLinearSoftmax.
    fn rounded_codes(&self, softmax: &Node, codes: ValueId) -> Option<Rounded> {
        let format = lower::params_at(self.facts, softmax, 3, self.facts.dtype(codes)?)?;
        let (read, floats) = self.dequantized(codes)?;
        let same = lower::source(self.graph, self.facts, floats)?.params == format;
        same.then(|| Rounded { nodes: vec![read], weights: (format, None), greatest: None, floats })
    }

    /// The softmax's results in one format.
    fn rounded(&self, probs: ValueId) -> Option<Rounded> {
        let (round, quantize, _) = self.next(probs).filter(|n| n.2 == 0)?;
        let (format, codes) = (lower::target(self.facts, quantize)?, quantize.output(0)?);
        let (read, floats) = self.dequantized(codes)?;
        let same = lower::source(self.graph, self.facts, floats)?.params == format;
        same.then(|| Rounded { nodes: vec![round, read], weights: (format, None), greatest: None, floats })
    }

    /// The softmax's results over the greatest of each row, as u8 from 0 to 1.
    fn rounded_by_row(&self, probs: ValueId) -> Option<Rounded> {
        let [a, b] = self.graph.uses(probs) else { return None };
        let named = |id: NodeId, name: &str| self.graph.node(id).op.name() == name && !self.taken.contains(&id);
        let (most, div) = if named(a.node, "ReduceMax") { (a.node, b) } else { (b.node, a) };
        let fits = named(most, "ReduceMax") && named(div.node, "Div") && div.input == 0;
        let greatest = self.graph.node(most).output(0).filter(|_| fits && self.reduces_last(most))?;
        let (parts, hidden) = (self.graph.node(div.node), [probs, greatest]);
        let [c, d] = self.graph.uses(greatest) else { return None };
        let seen = |v: &ValueId| self.keep.contains(v) || self.graph.is_output(*v);
        if parts.input(1) != Some(greatest) || ![c.node, d.node].contains(&div.node) || hidden.iter().any(seen) {
            return None;
        }
        let (round, quantize, _) = self.next(parts.output(0)?).filter(|n| n.2 == 0)?;
        let format = lower::target(self.facts, quantize)?;
        if format != (QParams { dtype: DType::U8, scale: 1.0 / 255.0, zero: 0 }) {
            return None;
        }
        let (read, floats) = self.dequantized(quantize.output(0)?)?;
        let source = lower::any_source(self.graph, self.facts, floats)?;
        let is_zero =
            |z: ValueId| self.facts.get(z).value.as_ref().is_some_and(|t| t.to_i64s().is_ok_and(|z| z == [0]));
        let plain = source.params.zero == 0 && source.runtime.is_none_or(|r| r.zero.is_none_or(is_zero) && !r.by_row);
        let weights = (source.params, source.runtime);
        let nodes = vec![most, div.node, round, read];
        plain.then_some(Rounded { nodes, weights, greatest: Some(greatest), floats })
    }

    /// The DequantizeLinear that alone reads codes, and what it makes.
    fn dequantized(&self, codes: ValueId) -> Option<(NodeId, ValueId)> {
        let (read, node, _) = self.next(codes).filter(|n| n.1.op.name() == "DequantizeLinear" && n.2 == 0)?;
        Some((read, node.output(0)?))
    }

    /// Whether a reduction is along the last axis alone, and keeps it.
    fn reduces_last(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let mut attrs = node.op.attrs();
        let axes = match node.input(1) {
            Some(axes) => self.facts.get(axes).value.as_ref().and_then(|t| t.to_i64s().ok()),
            None => attrs.ints("axes").ok().flatten(),
        };
        let rank = node.input(0).and_then(|x| self.facts.shape(x)).map_or(0, <[_]>::len) as i64;
        axes.is_some_and(|a| a == [-1] || a == [rank - 1]) && attrs.int_or("keepdims", 1) == Ok(1)
    }

    /// Whether the kernel on integers takes operands of these shapes: batches and heads are the same in all, nothing is
    /// empty, and rows of the mask are as long as those of the scores and of type `of_mask`.
    fn check_shapes(&self, [q, kt, v]: [ValueId; 3], mask: Option<ValueId>, of_mask: DType) -> Option<()> {
        let dims = |v: ValueId| -> Option<Vec<usize>> {
            let dims: Option<Vec<usize>> = self.facts.shape(v)?.iter().map(|d| d.as_usize()).collect();
            dims.filter(|d| (3..=4).contains(&d.len()) && !d.contains(&0))
        };
        let (q, kt, v) = (dims(q)?, dims(kt)?, dims(v)?);
        let lead = q.len() - 2;
        let alike = kt.len() == q.len() && v.len() == q.len() && q[..lead] == kt[..lead] && q[..lead] == v[..lead];
        if !alike || q[lead + 1] != kt[lead] || kt[lead + 1] != v[lead] {
            return None;
        }
        let Some(mask) = mask else { return Some(()) };
        let full = [&q[..=lead], &[kt[lead + 1]]].concat();
        let shape: Option<Vec<usize>> = self.facts.shape(mask)?.iter().map(|d| d.as_usize()).collect();
        let shape = shape.filter(|m| m.last() == full.last() && self.facts.dtype(mask) == Some(of_mask))?;
        (shape::broadcast(&shape, &full).ok()? == full).then_some(())
    }

    /// The integers behind `v`, read through a Transpose that serves nobody else and leaves columns contiguous, or, if
    /// `either`, rows.
    fn moved_codes(&self, v: ValueId, codes: ValueId, either: bool, nodes: &mut Vec<NodeId>) -> Operand {
        let rank = self.facts.shape(v).map_or(0, <[_]>::len);
        let through = || {
            let (dequantize, _) = self.previous(v)?;
            let (id, node) = self.previous(codes).filter(|n| n.1.op.name() == "Transpose")?;
            let axes = perm(node, rank)?;
            let last = axes.iter().position(|&axis| axis + 1 == rank)?;
            let fits = last + 1 == rank || either && last + 2 == rank;
            fits.then_some((dequantize, id, node.input(0)?, axes))
        };
        let Some((dequantize, id, value, axes)) = through() else { return Operand { value: codes, perm: None } };
        nodes.extend([dequantize, id]);
        Operand { value, perm: Some(axes) }
    }

    /// A QuantizeLinear and a Transpose behind the second product, in either order.
    fn tail(&self, out: ValueId) -> Option<Tail> {
        let rank = self.facts.shape(out)?.len();
        let mut tail = Tail { nodes: Vec::new(), output: None, perm: None, y: out };
        for _ in 0..2 {
            if let Some((t, perm, y)) = self.transpose(tail.y, rank).filter(|_| tail.perm.is_none()) {
                // Rows of the result stay contiguous.
                if perm.last() != Some(&(rank - 1)) {
                    break;
                }
                tail.nodes.push(t);
                (tail.perm, tail.y) = (Some(perm), y);
            } else if let Some((id, node, 0)) = self.next(tail.y)
                && let (Some(params), Some(y)) = (lower::target(self.facts, node), node.output(0))
            {
                tail.nodes.push(id);
                (tail.output, tail.y) = (Some(params), y);
            }
        }
        Some(tail)
    }

    /// The Transpose that alone reads a value, and what it makes.
    fn transpose(&self, v: ValueId, rank: usize) -> Option<(NodeId, Vec<usize>, ValueId)> {
        let (id, node, _) = self.next(v).filter(|n| n.1.op.name() == "Transpose")?;
        Some((id, perm(node, rank)?, node.output(0)?))
    }

    /// Looks through a Transpose and, for factors of the scores, through a product with a scalar.
    fn operand(&self, mut v: ValueId, mut scale: Option<&mut f32>, nodes: &mut Vec<NodeId>) -> Operand {
        let rank = self.facts.shape(v).map_or(0, <[_]>::len);
        let mut found = None;
        while let Some((id, node)) = self.previous(v) {
            let Some(x) = node.input(0) else { break };
            let factor = node.input(1).and_then(|f| self.scalar(f));
            match (node.op.name(), &mut scale, factor) {
                ("Transpose", _, _) if found.is_none() => match perm(node, rank) {
                    Some(p) => found = Some(p),
                    None => break,
                },
                ("Mul", Some(s), Some(f)) => **s *= f,
                ("Div", Some(s), Some(f)) => **s /= f,
                _ => break,
            }
            nodes.push(id);
            v = x;
        }
        Operand { value: v, perm: found }
    }

    /// Which operand of the mask's Add is the scores, and which the mask.
    fn product_side(&self, add: &Node) -> Option<(ValueId, ValueId)> {
        let (a, b) = (add.input(0)?, add.input(1)?);
        let is_scores = |v: ValueId| {
            self.graph
                .producer(v)
                .is_some_and(|(n, _)| matches!(self.graph.node(n).op.name(), "MatMul" | "Mul" | "Div"))
                && self.facts.get(v).ty == self.facts.get(add.outputs[0].unwrap_or(v)).ty
        };
        let out = add.output(0)?;
        let full = |v: ValueId| self.facts.shape(v) == self.facts.shape(out);
        if is_scores(a) && full(a) { Some((a, b)) } else { (is_scores(b) && full(b)).then_some((b, a)) }
    }
}

/// The axes of a Transpose of the given rank.
fn perm(node: &Node, rank: usize) -> Option<Vec<usize>> {
    let axes = match node.op.attrs().ints("perm").ok()? {
        Some(p) => p,
        None => (0..rank as i64).rev().collect(),
    };
    let axes: Option<Vec<usize>> = axes.into_iter().map(|a| usize::try_from(a).ok().filter(|&a| a < rank)).collect();
    axes.filter(|a| a.len() == rank)
}
