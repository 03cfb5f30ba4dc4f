//! Which nodes run as one kernel: a product with what follows it, and attention.

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::infer::Facts;
use narrowbit_ir::{Graph, Node, NodeId, ValueId};
use narrowbit_kernels::Activation;
use narrowbit_tensor::{DType, Tensor};

use crate::lower::{self, QParams, Quantized};

/// Nodes that run as one kernel.
#[derive(Debug, Clone, Default)]
pub struct Fusion {
    /// The nodes in order; the first is the product.
    pub nodes: Vec<NodeId>,
    /// A constant vector along the output's last axis, added to a product.
    pub bias: Option<ValueId>,
    /// A value of the output's shape, added before the activation.
    pub residual: Option<ValueId>,
    /// Applied last.
    pub activation: Activation,
    /// What the fusion makes.
    pub output: Option<ValueId>,
    /// The parts of an attention.
    pub attention: Option<Attention>,
    /// Set where the first node computes on integers.
    pub ints: Option<Ints>,
}

/// What a fusion reads and writes as integers.
#[derive(Debug, Clone)]
pub struct Ints {
    /// By data operand of the first node: the integers behind it.
    pub operands: Vec<Option<Quantized>>,
    /// The integers behind the residual.
    pub residual: Option<Quantized>,
    /// The format that the product is rounded to before the residual is added.
    pub stage: Option<QParams>,
    /// The format of the output, where a QuantizeLinear is its last node.
    pub output: Option<QParams>,
}

/// `softmax(q · kᵀ · scale + mask) · v`.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Queries, `[…, queries, depth]`.
    pub q: Operand,
    /// Transposed keys, `[…, depth, keys]`.
    pub kt: Operand,
    /// Values, `[…, keys, value depth]`.
    pub v: Operand,
    /// The factor of the scores.
    pub scale: f32,
    /// Added to the scores.
    pub mask: Option<ValueId>,
    /// The softmax of the scores, where somebody asked to see it.
    pub weights: Option<ValueId>,
    /// The axes of a Transpose that follows.
    pub out_perm: Option<Vec<usize>>,
}

/// A value read through a Transpose.
#[derive(Debug, Clone)]
pub struct Operand {
    /// The value in memory.
    pub value: ValueId,
    /// The axes of the Transpose, if there is one.
    pub perm: Option<Vec<usize>>,
}

/// Finds the fusions of a graph, by their first node. Values in `keep` are not swallowed.
pub fn find(graph: &Graph, facts: &Facts, keep: &BTreeSet<ValueId>) -> BTreeMap<NodeId, Fusion> {
    let mut finder = Finder { graph, facts, keep, taken: BTreeSet::new(), found: BTreeMap::new() };
    for (id, node) in graph.nodes() {
        if node.op.name() == "Softmax" {
            finder.attention(id, node);
        }
    }
    for (id, node) in graph.nodes() {
        let product = matches!(node.op.name(), "Conv" | "ConvTranspose" | "MatMul" | "MatMulNBits" | "Gemm");
        if product && !finder.taken.contains(&id) {
            finder.product(id, node);
        }
    }
    for (id, node) in graph.nodes() {
        if !finder.taken.contains(&id) {
            finder.elementwise(id, node);
        }
    }
    finder.found
}

struct Finder<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    keep: &'a BTreeSet<ValueId>,
    taken: BTreeSet<NodeId>,
    found: BTreeMap<NodeId, Fusion>,
}

/// The nodes behind a quantized product that add something to it.
struct StagedSum {
    nodes: Vec<NodeId>,
    residual: ValueId,
    source: Quantized,
    activation: Activation,
    output: QParams,
    y: ValueId,
}

impl<'a> Finder<'a> {
    /// The node that alone reads a value which nobody asked to see.
    fn next(&self, v: ValueId) -> Option<(NodeId, &'a Node, usize)> {
        self.reader(v).filter(|_| !self.keep.contains(&v))
    }

    /// The node that alone reads a value.
    fn reader(&self, v: ValueId) -> Option<(NodeId, &'a Node, usize)> {
        let u = self.graph.only_use(v)?;
        let free = !self.taken.contains(&u.node);
        free.then(|| (u.node, self.graph.node(u.node), u.input))
    }

    /// The node that makes a value which it alone serves.
    fn previous(&self, v: ValueId) -> Option<(NodeId, &'a Node)> {
        let (id, _) = self.graph.producer(v)?;
        self.graph.only_use(v)?;
        let free = !self.keep.contains(&v) && !self.taken.contains(&id);
        free.then(|| (id, self.graph.node(id)))
    }

    fn product(&mut self, root: NodeId, node: &Node) {
        let Some(mut out) = node.output(0) else { return };
        if self.facts.dtype(out) != Some(DType::F32) {
            return;
        }
        let operands = lower::product_operands(self.graph, self.facts, node);
        let mut f = Fusion { nodes: vec![root], ..Fusion::default() };
        if matches!(node.op.name(), "MatMul" | "MatMulNBits")
            && let Some((id, bias, y)) = self.bias(out)
        {
            f.nodes.push(id);
            f.bias = Some(bias);
            out = y;
        }
        if node.op.name() != "ConvTranspose"
            && self.facts.shape(out).is_some_and(|s| s.len() <= 4)
            && let Some((id, residual, y)) = self.residual(out)
        {
            f.nodes.push(id);
            f.residual = Some(residual);
            out = y;
        }
        if let Some((ids, activation, y)) = self.activation(out) {
            f.nodes.extend(ids);
            f.activation = activation;
            out = y;
        }
        if let Some(operands) = operands {
            out = self.ints(&mut f, operands, out);
        } else if f.nodes.len() == 1 {
            return;
        }
        f.output = Some(out);
        self.take(root, f);
    }

    /// Lets a fusion compute on integers, and takes the QuantizeLinear of its output in.
    fn ints(&self, f: &mut Fusion, operands: Vec<Option<Quantized>>, mut out: ValueId) -> ValueId {
        let residual = f.residual.and_then(|r| lower::source(self.graph, self.facts, r));
        let mut output = None;
        if let Some((id, node, 0)) = self.next(out)
            && let (Some(params), Some(y)) = (lower::target(self.facts, node), node.output(0))
        {
            f.nodes.push(id);
            (output, out) = (Some(params), y);
        }
        let mut ints = Ints { operands, residual, stage: None, output };
        if let Some(sum) = self.staged_sum(f, &ints, out) {
            f.nodes.extend(sum.nodes);
            (f.residual, f.activation, out) = (Some(sum.residual), sum.activation, sum.y);
            ints = Ints { residual: Some(sum.source), stage: ints.output, output: Some(sum.output), ..ints };
        }
        f.ints = Some(ints);
        out
    }

    /// The sum that a quantized product goes into, with a clamp and a QuantizeLinear behind it: the sum is made while the
    /// product is at hand.
    fn staged_sum(&self, f: &Fusion, ints: &Ints, codes: ValueId) -> Option<StagedSum> {
        let weighted = ints.operands.len() == 2 && ints.operands[1].is_none();
        if !weighted || f.residual.is_some() || f.activation != Activation::None {
            return None;
        }
        let (dq, node, _) = self.next(codes).filter(|n| n.1.op.name() == "DequantizeLinear" && n.2 == 0)?;
        let read = node.output(0)?;
        if lower::source(self.graph, self.facts, read)?.params != ints.output? {
            return None;
        }
        let (add, residual, mut out) = self.residual(read)?;
        let source = lower::source(self.graph, self.facts, residual)?;
        let mut sum = vec![dq, add];
        let mut activation = Activation::None;
        if let Some((ids, act, y)) = self.activation(out) {
            sum.extend(ids);
            (activation, out) = (act, y);
        }
        if !matches!(activation, Activation::None | Activation::Relu | Activation::Clip { .. }) {
            return None;
        }
        let (q, node, _) = self.next(out).filter(|n| n.2 == 0)?;
        let (output, y) = (lower::target(self.facts, node)?, node.output(0)?);
        sum.push(q);
        Some(StagedSum { nodes: sum, residual, source, activation, output, y })
    }

    /// A sum, product or function of quantized values that is quantized again.
    fn elementwise(&mut self, root: NodeId, node: &Node) {
        let Some(mut out) = node.output(0) else { return };
        let Some(operands) = lower::elementwise_operands(self.graph, self.facts, node) else { return };
        let mut f = Fusion { nodes: vec![root], ..Fusion::default() };
        if operands.len() == 2
            && let Some((ids, activation, y)) = self.activation(out)
        {
            f.nodes.extend(ids);
            (f.activation, out) = (activation, y);
        }
        out = self.ints(&mut f, operands, out);
        if f.ints.as_ref().is_some_and(|ints| ints.output.is_some()) {
            f.output = Some(out);
            self.take(root, f);
        }
    }

    fn take(&mut self, root: NodeId, mut f: Fusion) {
        let place: BTreeMap<NodeId, usize> = self.graph.order().iter().enumerate().map(|(i, &n)| (n, i)).collect();
        f.nodes[1..].sort_by_key(|n| place[n]);
        self.taken.extend(f.nodes.iter().copied());
        self.found.insert(root, f);
    }

    /// An Add of a constant vector along the last axis.
    fn bias(&self, out: ValueId) -> Option<(NodeId, ValueId, ValueId)> {
        let (id, node, at) = self.next(out)?;
        let bias = node.input(1 - at.min(1)).filter(|_| node.op.name() == "Add")?;
        let out_shape = self.facts.shape(out)?;
        let last = out_shape.last()?.as_usize()?;
        let shape = self.facts.shape(bias)?;
        let row = shape.iter().rev().enumerate().all(|(i, d)| d.as_usize() == Some(if i == 0 { last } else { 1 }));
        let fits = row && !shape.is_empty() && shape.len() <= out_shape.len();
        let constant = self.facts.dtype(bias) == Some(DType::F32) && lower::is_constant(self.graph, self.facts, bias);
        (fits && constant).then_some((id, bias, node.output(0)?))
    }

    /// An Add of a value of the same shape.
    fn residual(&self, out: ValueId) -> Option<(NodeId, ValueId, ValueId)> {
        let (id, node, at) = self.next(out)?;
        let other = node.input(1 - at.min(1)).filter(|&o| node.op.name() == "Add" && o != out)?;
        let same = self.facts.get(other).ty == self.facts.get(out).ty && self.facts.get(other).value.is_none();
        same.then_some((id, other, node.output(0)?))
    }

    fn activation(&self, out: ValueId) -> Option<(Vec<NodeId>, Activation, ValueId)> {
        if let Some(silu) = self.silu(out) {
            return Some(silu);
        }
        let (id, node, at) = self.next(out)?;
        let known = |v: ValueId| self.facts.get(v).value.clone();
        let act = activation(node, &known).filter(|_| at == 0)?;
        Some((vec![id], act, node.output(0)?))
    }

    /// `x · sigmoid(x)` in two nodes.
    fn silu(&self, out: ValueId) -> Option<(Vec<NodeId>, Activation, ValueId)> {
        let [a, b] = self.graph.uses(out) else { return None };
        if self.keep.contains(&out) || self.graph.is_output(out) {
            return None;
        }
        let named = |n: NodeId, name: &str| self.graph.node(n).op.name() == name && !self.taken.contains(&n);
        let (s, m) = if named(a.node, "Sigmoid") { (a.node, b.node) } else { (b.node, a.node) };
        let gate = self.graph.node(s).output(0)?;
        let fits = named(s, "Sigmoid") && named(m, "Mul") && self.graph.only_use(gate)?.node == m;
        let ok = fits && !self.keep.contains(&gate);
        ok.then_some((vec![s, m], Activation::Silu { alpha: 1.0 }, self.graph.node(m).output(0)?))
    }

    /// MatMul → [scale] → [mask] → Softmax → MatMul.
    fn attention(&mut self, softmax: NodeId, node: &Node) {
        if let Some((root, f)) = self.match_attention(softmax, node) {
            self.take(root, f);
        }
    }

    fn match_attention(&self, softmax: NodeId, node: &Node) -> Option<(NodeId, Fusion)> {
        let (scores, probs) = (node.input(0)?, node.output(0)?);
        let shape = self.facts.shape(scores)?;
        let axis = node.op.attrs().int_or("axis", -1).ok()?;
        if axis != -1 && axis != shape.len() as i64 - 1 || !(3..=4).contains(&shape.len()) {
            return None;
        }
        let weights = self.keep.contains(&probs).then_some(probs);
        let (second, last, _) = self.reader(probs).filter(|n| n.1.op.name() == "MatMul" && n.2 == 0)?;
        let mut nodes = vec![softmax];
        let (mut scale, mut mask) = (1.0f32, None);
        let (mut id, mut maker) = self.previous(scores)?;
        if maker.op.name() == "Add" {
            let (x, m) = self.product_side(maker)?;
            nodes.push(id);
            mask = Some(m);
            (id, maker) = self.previous(x)?;
        }
        if matches!(maker.op.name(), "Mul" | "Div") {
            let factor = self.scalar(maker.input(1)?)?;
            scale = if maker.op.name() == "Mul" { factor } else { 1.0 / factor };
            nodes.push(id);
            (id, maker) = self.previous(maker.input(0)?)?;
        }
        if maker.op.name() != "MatMul" {
            return None;
        }
        nodes.push(second);
        nodes.insert(0, id);
        let rank = shape.len();
        let fits = |v: ValueId| {
            self.facts.dtype(v) == Some(DType::F32) && self.facts.shape(v).is_some_and(|s| s.len() == rank)
        };
        let (q, kt, v) = (maker.input(0)?, maker.input(1)?, last.input(1)?);
        if ![q, kt, v].into_iter().all(fits) {
            return None;
        }
        let mut operand = |v, scale: Option<&mut f32>| self.operand(v, scale, &mut nodes);
        let (q, kt) = (operand(q, Some(&mut scale)), operand(kt, Some(&mut scale)));
        let v = operand(v, None);
        let mut out = last.output(0)?;
        let mut out_perm = None;
        if let Some((t, node, _)) = self.next(out).filter(|n| n.1.op.name() == "Transpose")
            && let (Some(perm), Some(y)) = (perm(node, rank), node.output(0))
        {
            nodes.push(t);
            (out, out_perm) = (y, Some(perm));
        }
        let attention = Attention { q, kt, v, scale, mask, weights, out_perm };
        Some((id, Fusion { nodes, output: Some(out), attention: Some(attention), ..Fusion::default() }))
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

    fn scalar(&self, v: ValueId) -> Option<f32> {
        let t = self.facts.get(v).value.as_ref().filter(|t| t.len() == 1)?;
        t.to_f32s().ok()?.first().copied()
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

/// The activation that a node computes, where it is one that kernels fuse.
pub fn activation(node: &Node, constant: &dyn Fn(ValueId) -> Option<Tensor>) -> Option<Activation> {
    let mut attrs = node.op.attrs();
    let bound = |i: usize, default: f32| match node.input(i) {
        None => Some(default),
        Some(v) => constant(v)?.to_f32s().ok()?.first().copied(),
    };
    Some(match node.op.name() {
        "Relu" => Activation::Relu,
        "Clip" => {
            let lo = attrs.float("min").ok()?.or(bound(1, f32::NEG_INFINITY))?;
            let hi = attrs.float("max").ok()?.or(bound(2, f32::INFINITY))?;
            Activation::Clip { lo, hi }
        }
        "LeakyRelu" => Activation::LeakyRelu { alpha: attrs.float_or("alpha", 0.01).ok()? },
        "Sigmoid" => Activation::Sigmoid,
        "Tanh" => Activation::Tanh,
        "HardSwish" => Activation::HardSwish,
        "HardSigmoid" => Activation::HardSigmoid {
            alpha: attrs.float_or("alpha", 0.2).ok()?,
            beta: attrs.float_or("beta", 0.5).ok()?,
        },
        "Swish" => Activation::Silu { alpha: attrs.float_or("alpha", 1.0).ok()? },
        "QuickGelu" => Activation::Silu { alpha: attrs.float_or("alpha", 1.702).ok()? },
        "FastGelu" if node.input(1).is_none() => Activation::GeluTanh,
        "Gelu" => match attrs.string("approximate").ok()?.as_deref() {
            Some("tanh") => Activation::GeluTanh,
            _ => Activation::GeluErf,
        },
        _ => return None,
    })
}
