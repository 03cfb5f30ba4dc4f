//! Attention: MatMul → [factor] → [mask] → Softmax → MatMul, on floats, on integers, or with scores of integers alone.

use narrowbit_ir::{Node, NodeId, ValueId};
use narrowbit_kernels::panel::Factor;
use narrowbit_ops::math::softmax::Softmax;
use narrowbit_tensor::{DType, shape};

use super::heads::{Operand, Part};
use super::scores::Coded;
use super::{Finder, Fusion};
use crate::lower::{self, QParams, Runtime};

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
    /// The weights that the values are multiplied by, where somebody asked to see them.
    pub weights: Option<ValueId>,
    /// Whether rows without a number as their weights are rows of zeros: `Where(IsNaN(w), 0, w)` behind the softmax.
    pub guarded: bool,
    /// The axes of a Transpose that follows.
    pub out_perm: Option<Vec<usize>>,
    /// Set where scores are products of integers.
    pub ints: Option<AttentionInts>,
}

/// The formats of an attention on integers.
#[derive(Debug, Clone)]
pub struct AttentionInts {
    /// Of queries and keys.
    pub operands: [Format; 2],
    /// Of weights and values; `None` where both are floats.
    pub values: Option<IntValues>,
    /// Of the output, where it is quantized.
    pub output: Option<QParams>,
    /// What the product of queries and keys goes through.
    pub factor: Factor,
    /// Set where scores are rounded to codes before the softmax.
    pub coded: Option<Coded>,
}

/// The formats of an attention's second product.
#[derive(Debug, Clone)]
pub struct IntValues {
    /// Of the values.
    pub values: Format,
    /// Of the softmax's results; by row, what is left of it without the greatest result of each row.
    pub weights: Format,
    /// Whether each row of the softmax's results is rounded as parts of its greatest one.
    pub by_row: bool,
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
        let found = self.match_ints(softmax, node).or_else(|| self.match_mixed(softmax, node));
        let found = found.or_else(|| self.match_floats(softmax, node));
        if let Some((root, f)) = found {
            self.take(root, f);
        }
    }

    /// Whether a Softmax goes along the last of three or four axes.
    fn softens_last(&self, node: &Node) -> Option<()> {
        let rank = self.facts.shape(node.input(0)?)?.len();
        let mut attrs = node.op.attrs();
        // Before opset 13 the default is the second axis, and a row spans all axes from it on.
        let old = match node.op.downcast::<Softmax>() {
            Some(softmax) => softmax.flattened,
            None => attrs.int_or("opset", 13).ok()? < 13,
        };
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

    /// `Where(IsNaN(w), 0, w)` of a softmax's results, and its nodes: what PyTorch puts behind a softmax whose keys may all
    /// be hidden.
    pub(super) fn guard(&self, probs: ValueId) -> Option<(Vec<NodeId>, ValueId)> {
        let [a, b] = self.graph.uses(probs) else { return None };
        let name = |id: NodeId| self.graph.node(id).op.name();
        let (test, choice) = if name(a.node) == "IsNaN" { (a.node, b) } else { (b.node, a) };
        let (flags, node) = (self.graph.node(test).output(0)?, self.graph.node(choice.node));
        let chosen = node.op.name() == "Where" && choice.input == 2 && node.input(0) == Some(flags);
        let zero = node.input(1).and_then(|v| self.scalar(v)) == Some(0.0);
        let hidden = [probs, flags].iter().all(|v| !self.keep.contains(v) && !self.graph.is_output(*v));
        let free = ![test, choice.node].iter().any(|n| self.taken.contains(n)) && self.graph.only_use(flags).is_some();
        let y = node.output(0).filter(|y| self.facts.shape(*y) == self.facts.shape(probs))?;
        (name(test) == "IsNaN" && chosen && zero && hidden && free).then(|| (vec![test, choice.node], y))
    }

    /// The weights of a softmax's values: its results, guarded or not, and the nodes of the guard.
    fn weights(&self, probs: ValueId) -> (ValueId, Vec<NodeId>) {
        self.guard(probs).map_or((probs, Vec::new()), |(nodes, y)| (y, nodes))
    }

    /// Scores of integers, and values of floats (NNCF).
    fn match_mixed(&self, softmax: NodeId, node: &Node) -> Option<(NodeId, Fusion)> {
        let (weights, guard) = self.weights(node.output(0).filter(|_| node.op.name() == "Softmax")?);
        let (second, last, _) = self.next(weights).filter(|n| n.1.op.name() == "MatMul" && n.2 == 0)?;
        let found = self.scores(node)?;
        let sources = [found.maker.input(0)?, found.maker.input(1)?, last.input(1)?];
        self.check_shapes(sources, found.mask, DType::F32)?;
        let guarded = !guard.is_empty();
        let mut nodes = [vec![found.product, softmax, second], found.nodes, guard].concat();
        let [(q, fq), (kt, fk)] = [(0, Part::Queries), (1, Part::Keys)]
            .map(|(i, part)| {
                let source = lower::any_source(self.graph, self.facts, sources[i]);
                let source = source.filter(|s| s.runtime.is_none_or(|r| !r.by_row));
                source.map(|s| (self.moved_codes(sources[i], s.value, part, &mut nodes), (s.params, s.runtime)))
            })
            .map(Option::unzip);
        let (q, kt, operands) = (q?, kt?, [fq?, fk?]);
        let v = self.operand(sources[2], Part::Values, None, &mut nodes);
        let [kt, v] = self.before_repeats([kt, v], sources[0]);
        let tail = self.tail(last.output(0)?)?;
        nodes.extend(tail.nodes);
        let ints = AttentionInts { operands, values: None, output: tail.output, factor: found.factor, coded: None };
        let attention = Attention {
            q,
            kt,
            v,
            scale: 1.0,
            mask: found.mask,
            weights: None,
            guarded,
            out_perm: tail.perm,
            ints: Some(ints),
        };
        let fusion = Fusion { nodes, output: Some(tail.y), attention: Some(attention), ..Fusion::default() };
        Some((found.product, fusion))
    }

    fn match_floats(&self, softmax: NodeId, node: &Node) -> Option<(NodeId, Fusion)> {
        let (probs, guard) = self.weights(node.output(0).filter(|_| node.op.name() == "Softmax")?);
        let weights = self.keep.contains(&probs).then_some(probs);
        let guarded = !guard.is_empty();
        let (second, last, _) = self.reader(probs).filter(|n| n.1.op.name() == "MatMul" && n.2 == 0)?;
        let found = self.scores(node)?;
        let mut scale = match found.factor {
            Factor::None => 1.0,
            Factor::Mul(by) => by,
            Factor::Div(by) => 1.0 / by,
        };
        let mut nodes = [vec![found.product, softmax, second], found.nodes, guard].concat();
        let rank = self.facts.shape(probs)?.len();
        let sources = [found.maker.input(0)?, found.maker.input(1)?, last.input(1)?];
        if !sources.iter().all(|&v| self.facts.dtype(v) == Some(DType::F32)) {
            return None;
        }
        self.check_shapes(sources, found.mask, DType::F32)?;
        let mut operand = |i: usize, part, scale: Option<&mut f32>| self.operand(sources[i], part, scale, &mut nodes);
        let (q, kt) = (operand(0, Part::Queries, Some(&mut scale)), operand(1, Part::Keys, Some(&mut scale)));
        let v = operand(2, Part::Values, None);
        let [kt, v] = self.before_repeats([kt, v], sources[0]);
        let mut out = last.output(0)?;
        let mut out_perm = None;
        if let Some((t, perm, y)) = self.transpose(out, rank) {
            nodes.push(t);
            (out, out_perm) = (y, Some(perm));
        }
        let attention = Attention { q, kt, v, scale, mask: found.mask, weights, guarded, out_perm, ints: None };
        Some((found.product, Fusion { nodes, output: Some(out), attention: Some(attention), ..Fusion::default() }))
    }

    /// Both products on integers, with the weights quantized between them.
    fn match_ints(&self, softmax: NodeId, node: &Node) -> Option<(NodeId, Fusion)> {
        let (probs, guard) = self.weights(node.output(0)?);
        let guarded = !guard.is_empty();
        let rounded = match node.op.name() {
            "Softmax" => self.rounded(probs).or_else(|| self.rounded_by_row(probs))?,
            _ => self.rounded_codes(node, probs)?,
        };
        let (second, last, _) = self.next(rounded.floats).filter(|n| n.1.op.name() == "MatMul" && n.2 == 0)?;
        let (found, coded) = match self.scores(node) {
            Some(found) => (found, None),
            None => {
                let plain = rounded.greatest.is_none() && !guarded;
                self.coded_scores(node).filter(|_| plain).map(|(s, c)| (s, Some(c)))?
            }
        };
        self.softens_last(node)?;
        let sources = [found.maker.input(0)?, found.maker.input(1)?, last.input(1)?];
        let of_mask = coded.as_ref().and_then(|c| c.mask).map_or(DType::F32, |m| m.1.dtype);
        self.check_shapes(sources, found.mask, of_mask)?;
        let mut nodes = [vec![found.product, softmax, second], rounded.nodes, found.nodes, guard].concat();
        let (mut operands, mut formats) = (Vec::new(), Vec::new());
        for (&v, part) in sources.iter().zip([Part::Queries, Part::Keys, Part::Values]) {
            let source = lower::any_source(self.graph, self.facts, v)?;
            if source.runtime.is_some_and(|r| r.by_row || coded.is_some()) {
                return None;
            }
            operands.push(self.moved_codes(v, source.value, part, &mut nodes));
            formats.push((source.params, source.runtime));
        }
        let [q, kt, v] = <[Operand; 3]>::try_from(operands).ok()?;
        let [kt, v] = self.before_repeats([kt, v], sources[0]);
        let [fq, fk, values] = <[Format; 3]>::try_from(formats).ok()?;
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
        let by_row = rounded.greatest.is_some();
        let ints = AttentionInts {
            operands: [fq, fk],
            values: Some(IntValues { values, weights: rounded.weights, by_row }),
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
            weights: None,
            guarded,
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

    /// Whether the kernels take operands of these shapes: batches are the same in all, or 1 for keys and values, which have as
    /// many heads as queries, or one for all of them; nothing is empty, and rows of the mask are as long as those of the
    /// scores and of type `of_mask`.
    fn check_shapes(&self, [q, kt, v]: [ValueId; 3], mask: Option<ValueId>, of_mask: DType) -> Option<()> {
        let dims = |v: ValueId| self.extents(v).filter(|d| (3..=4).contains(&d.len()) && !d.contains(&0));
        let (q, kt, v) = (dims(q)?, dims(kt)?, dims(v)?);
        let lead = q.len() - 2;
        let shared =
            |of: &[usize]| of.len() == q.len() && of[..lead].iter().zip(&q).all(|(n, all)| n == all || *n == 1);
        if !shared(&kt) || !shared(&v) || kt[..lead] != v[..lead] || q[lead + 1] != kt[lead] || kt[lead + 1] != v[lead]
        {
            return None;
        }
        let Some(mask) = mask else { return Some(()) };
        let full = [&q[..=lead], &[kt[lead + 1]]].concat();
        let shape =
            self.extents(mask).filter(|m| m.last() == full.last() && self.facts.dtype(mask) == Some(of_mask))?;
        (shape::broadcast(&shape, &full).ok()? == full).then_some(())
    }

    /// A QuantizeLinear and a Transpose behind the second product, in either order.
    fn tail(&self, out: ValueId) -> Option<Tail> {
        let rank = self.facts.shape(out)?.len();
        let mut tail = Tail { nodes: Vec::new(), output: None, perm: None, y: out };
        for _ in 0..2 {
            if let Some((t, perm, y)) = self.transpose(tail.y, rank).filter(|_| tail.perm.is_none()) {
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
