//! Which nodes run as one kernel: a product with what follows it, and attention.

mod attention;
mod heads;
mod scores;
mod staged;

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::infer::Facts;
use narrowbit_ir::{Graph, Node, NodeId, ValueId};
use narrowbit_kernels::Activation;
use narrowbit_kernels::panel::CodeSum;
use narrowbit_tensor::{DType, Tensor};

use crate::collapse::Lookup;
use crate::lower::{self, QParams, Quantized};

pub use attention::{Attention, AttentionInts, Format, IntValues};
pub use heads::Operand;
pub use scores::{Coded, Codes};
use staged::Other;
pub use staged::StepRow;

/// Nodes that run as one kernel.
#[derive(Debug, Clone, Default)]
pub struct Fusion {
    /// The nodes in order; the first is the product.
    pub nodes: Vec<NodeId>,
    /// A constant vector along the output's last axis, added to a product.
    pub bias: Option<ValueId>,
    /// A value of the output's shape, added before the activation.
    pub residual: Option<ValueId>,
    /// Applied to the sum.
    pub activation: Activation,
    /// Constants, each one for all columns or one for each, that what the activation gives is multiplied by or that are added
    /// to it, in order, before it is rounded.
    pub affine: Vec<Affine>,
    /// Whether results of a softmax that are no numbers are 0: `Where(IsNaN(w), 0, w)` behind it.
    pub guarded: bool,
    /// What the fusion makes.
    pub output: Option<ValueId>,
    /// The parts of an attention.
    pub attention: Option<Attention>,
    /// Set where the first node computes on integers.
    pub ints: Option<Ints>,
}

/// A step behind an activation, with its constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affine {
    /// A product.
    Mul(ValueId),
    /// A sum.
    Add(ValueId),
}

/// What a fusion reads and writes as integers.
#[derive(Debug, Clone)]
pub struct Ints {
    /// By data operand of the first node: the integers behind it.
    pub operands: Vec<Option<Quantized>>,
    /// The integers behind the residual.
    pub residual: Option<Quantized>,
    /// Added in the place of a residual: a constant row.
    pub row: Option<StepRow>,
    /// The format that the product is rounded to before the residual is added.
    pub stage: Option<QParams>,
    /// Set where the codes of the stage and the residual are added as they are (QLinearAdd).
    pub code_sum: Option<CodeSum>,
    /// The format of the output, where a QuantizeLinear is its last node.
    pub output: Option<QParams>,
}

/// Finds the fusions of a graph, by their first node. Values in `keep` are not swallowed; `lookups` are those of
/// [`crate::collapse`].
pub fn find(
    graph: &Graph,
    facts: &Facts,
    keep: &BTreeSet<ValueId>,
    lookups: &BTreeMap<ValueId, Lookup>,
) -> BTreeMap<NodeId, Fusion> {
    let mut finder = Finder { graph, facts, keep, lookups, taken: BTreeSet::new(), found: BTreeMap::new() };
    for (id, node) in graph.nodes() {
        if matches!(node.op.name(), "Softmax" | "QLinearSoftmax") {
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
    lookups: &'a BTreeMap<ValueId, Lookup>,
    taken: BTreeSet<NodeId>,
    found: BTreeMap<NodeId, Fusion>,
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
            && self.facts.shape(out).is_some_and(|s| s.len() <= 5)
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
            // Products of two activations have no factors of columns.
            if operands.get(1).is_some_and(Option::is_none) {
                out = self.affine(&mut f, node, out);
            }
            out = self.ints(&mut f, node, operands, out);
        } else if f.nodes.len() == 1 {
            return;
        }
        if f.activation == Activation::GeluErf && self.is_rounded_at_run_time(out) {
            f.activation = Activation::GeluErfCoarse;
        }
        f.output = Some(out);
        self.take(root, f);
    }

    /// Whether nobody sees a value before it is rounded to 8 bits in a range that is found at run time.
    fn is_rounded_at_run_time(&self, v: ValueId) -> bool {
        let dynamic = |id| matches!(self.graph.node(id).op.name(), "DynamicQuantizeLinear" | "DynamicQuantizeRows");
        let seen = self.keep.contains(&v) || self.graph.is_output(v);
        !seen && self.graph.uses(v).iter().all(|u| dynamic(u.node))
    }

    /// Takes in the products and sums with a constant, or one for each column, that stand before a QuantizeLinear: what gives
    /// channels their units, scales queries, evens out what a product behind it reads (NNCF), or was learned behind an
    /// activation (PaddlePaddle's LearnableAffineBlock).
    fn affine(&self, f: &mut Fusion, product: &Node, out: ValueId) -> ValueId {
        let (mut nodes, mut steps, mut end) = (Vec::new(), Vec::new(), out);
        while let Some((id, step, y)) = self.affine_step(product, end) {
            nodes.push(id);
            steps.push(step);
            end = y;
        }
        let rounded = self.next(end).is_some_and(|n| n.2 == 0 && lower::target(self.facts, n.1).is_some());
        if !rounded {
            return out;
        }
        f.nodes.extend(nodes);
        f.affine = steps;
        end
    }

    fn affine_step(&self, product: &Node, out: ValueId) -> Option<(NodeId, Affine, ValueId)> {
        let (id, node, at) = self.next(out).filter(|n| matches!(n.1.op.name(), "Mul" | "Add"))?;
        let (constant, y) = (node.input(1 - at.min(1))?, node.output(0)?);
        let known = self.facts.get(constant).value.is_some() && self.facts.dtype(constant) == Some(DType::F32);
        let single = self.scalar(constant).is_some() && self.facts.shape(y) == self.facts.shape(out);
        let by_column = match product.op.name() {
            "Conv" => single || self.is_per_channel(constant, out)?,
            "MatMul" | "Gemm" => single || self.is_row(constant, out)?,
            _ => false,
        };
        let step = if node.op.name() == "Mul" { Affine::Mul(constant) } else { Affine::Add(constant) };
        (known && by_column).then_some((id, step, y))
    }

    /// Lets a fusion compute on integers, and takes the QuantizeLinear of its output in.
    fn ints(&self, f: &mut Fusion, node: &Node, operands: Vec<Option<Quantized>>, mut out: ValueId) -> ValueId {
        let residual = f.residual.and_then(|r| lower::source(self.graph, self.facts, r));
        let mut output = None;
        if let Some((id, node, 0)) = self.next(out)
            && let (Some(params), Some(y)) = (lower::target(self.facts, node), node.output(0))
        {
            f.nodes.push(id);
            (output, out) = (Some(params), y);
        }
        let mut ints = Ints { operands, residual, row: None, stage: None, code_sum: None, output };
        if let Some(sum) = self.staged_sum(node, f, &ints, out) {
            f.nodes.extend(sum.nodes);
            (f.residual, f.activation, out) = (sum.other.value(), sum.activation, sum.y);
            let (stage, output) = (ints.output, Some(sum.output));
            let (residual, row) = match sum.other {
                Other::Codes(codes) => (Some(codes), None),
                Other::Row(row) => (None, Some(row)),
            };
            ints = Ints { residual, row, stage, code_sum: sum.codes, output, ..ints };
        }
        f.ints = Some(ints);
        out
    }

    /// A sum, product or function of quantized values that is quantized again, or a softmax with its guard.
    fn elementwise(&mut self, root: NodeId, node: &Node) {
        let Some(mut out) = node.output(0) else { return };
        let Some(operands) = lower::elementwise_operands(self.graph, self.facts, node) else { return };
        let mut f = Fusion { nodes: vec![root], ..Fusion::default() };
        if (operands.len() == 2 || node.op.name() == "BatchNormalization")
            && let Some((ids, activation, y)) = self.activation(out)
        {
            f.nodes.extend(ids);
            (f.activation, out) = (activation, y);
        }
        if node.op.name() == "Softmax"
            && let Some((ids, y)) = self.guard(out)
        {
            f.nodes.extend(ids);
            (f.guarded, out) = (true, y);
        }
        out = self.ints(&mut f, node, operands, out);
        if f.guarded || f.ints.as_ref().is_some_and(|ints| ints.output.is_some()) {
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
        let fits = self.is_row(bias, out)?;
        let constant = self.facts.dtype(bias) == Some(DType::F32) && lower::is_constant(self.graph, self.facts, bias);
        (fits && constant).then_some((id, bias, node.output(0)?))
    }

    /// Whether a value goes along the second axis of another one of as many axes.
    fn is_per_channel(&self, row: ValueId, of: ValueId) -> Option<bool> {
        let dims = |v: ValueId| -> Option<Vec<usize>> { self.facts.shape(v)?.iter().map(|d| d.as_usize()).collect() };
        let (long, short) = (dims(of)?, dims(row)?);
        Some(short.len() == long.len() && lower::spread(&long, &short) == Some(1))
    }

    /// Whether a value goes along the last axis of another one, alike in all its rows.
    fn is_row(&self, row: ValueId, of: ValueId) -> Option<bool> {
        let (shape, full) = (self.facts.shape(row)?, self.facts.shape(of)?);
        let last = full.last()?.as_usize()?;
        let along = shape.iter().rev().enumerate().all(|(i, d)| d.as_usize() == Some(if i == 0 { last } else { 1 }));
        Some(along && !shape.is_empty() && shape.len() <= full.len())
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

    fn scalar(&self, v: ValueId) -> Option<f32> {
        let t = self.facts.get(v).value.as_ref().filter(|t| t.len() == 1)?;
        t.to_f32s().ok()?.first().copied()
    }
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
