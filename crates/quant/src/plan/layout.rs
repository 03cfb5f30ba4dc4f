use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::{AttrMap, Graph, Node, NodeId, QuantRole, ValueId, infer::Facts};
use narrowbit_tensor::{DType, Tensor};

use super::functions::{self, Functions};
use super::{Reason, blocks, channels};
use crate::approach::Approach;
use crate::mixture::Others;
use crate::options::{Matcher, PatternError, QuantOptions};
use crate::scheme::Formula;

/// How a node takes part in integer computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A product with a constant weight, or of two activations.
    Product,
    /// Arithmetic whose inputs and output are integers: Add, Mul, GlobalAveragePool.
    Arithmetic,
    /// Moves integers: Reshape, MaxPool, Concat.
    Movement,
    /// Folds into the rounding of the node before it: Relu after Conv.
    Fused,
    /// The last node of a function of several nodes that fixed point computes as a whole ([`Layout::functions`]); the others
    /// are [`Kind::Fused`].
    Function,
    /// Reads a table that is stored in 8 bits.
    Embedding,
}

/// Which nodes compute on integers and which values carry them.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// How each integer node takes part.
    pub kinds: BTreeMap<NodeId, Kind>,
    /// Why each other node stays float.
    pub reasons: BTreeMap<NodeId, Reason>,
    /// The functions of several nodes among the integer ones.
    pub functions: Functions,
    /// What becomes of the nodes that are not static; nothing but in a mixture.
    pub others: Others,
    groups: Vec<Vec<ValueId>>,
    group_of: BTreeMap<ValueId, usize>,
}

/// Arithmetic with an integer kernel of its own, here and in ONNX Runtime.
pub(crate) const ARITHMETIC: &[&str] = &[
    "Add",
    "Mul",
    "AveragePool",
    "GlobalAveragePool",
    "LeakyRelu",
    "Sigmoid",
    "HardSwish",
    "HardSigmoid",
    "Relu",
    "Clip",
];

/// Movement whose output has one element for each of its input, in another order at the most:
/// quantizing before or after it gives the same integers.
const ONE_TO_ONE: &[&str] = &["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"];

impl Layout {
    /// Decides for every node of a sanitized graph; products and tables are those whose approach is `approach`.
    ///
    /// # Errors
    /// When an override can't be read.
    pub fn new(
        graph: &Graph,
        facts: &Facts,
        options: &QuantOptions,
        approach: Approach,
    ) -> Result<Layout, PatternError> {
        let matcher = Matcher::new(&options.overrides)?;
        let functions = if options.rounds_blocks() { Functions::of(graph) } else { Functions::default() };
        let (layout, points) = (Layout::default(), BTreeSet::new());
        let mut planner = Planner { graph, facts, options, approach, matcher, functions, layout, points };
        planner.products();
        planner.embeddings();
        planner.flow();
        planner.stop();
        planner.prune();
        planner.lift();
        planner.points();
        planner.group();
        planner.explain();
        Ok(planner.layout)
    }

    /// Sets of values that share scale and zero point, in a fixed order.
    pub fn groups(&self) -> impl Iterator<Item = &[ValueId]> {
        self.groups.iter().map(Vec::as_slice)
    }

    /// Whether a value is quantized.
    pub fn is_quantized(&self, v: ValueId) -> bool {
        self.group_of.contains_key(&v)
    }

    /// The values that calibration has to observe: all that are quantized and not constant.
    pub fn observed(&self, graph: &Graph) -> Vec<ValueId> {
        self.group_of.keys().copied().filter(|&v| graph.constant(v).is_none()).collect()
    }

    /// Whether a node computes on integers that it reads (embeddings do not).
    pub fn is_integer(&self, n: NodeId) -> bool {
        self.kinds.get(&n).is_some_and(|k| *k != Kind::Embedding)
    }
}

pub(super) struct Planner<'a> {
    pub(super) graph: &'a Graph,
    pub(super) facts: &'a Facts,
    pub(super) options: &'a QuantOptions,
    /// That of the products and tables.
    approach: Approach,
    matcher: Matcher<'a>,
    /// All functions that could be computed as a whole.
    pub(super) functions: Functions,
    pub(super) layout: Layout,
    pub(super) points: BTreeSet<ValueId>,
}

impl Planner<'_> {
    /// Step 1: products with a weight are where integers pay.
    fn products(&mut self) {
        let mut found = Vec::new();
        for (id, node) in self.graph.nodes() {
            if let QuantRole::Weighted { data, weight, bias, .. } = node.op.quant() {
                match self.check_product(id, node, data, weight, bias) {
                    Ok(()) => found.push(id),
                    Err(r) => {
                        self.layout.reasons.insert(id, r);
                    }
                }
            }
        }
        // The first and the last product of all, whatever the approach of each.
        let own: BTreeSet<NodeId> = found.iter().copied().collect();
        let counts = |n: &NodeId| {
            let other = self.layout.reasons.get(n) == Some(&Reason::OtherApproach);
            (other || own.contains(n)) && self.weight_const(*n).is_some()
        };
        let weighted: Vec<NodeId> = self.graph.order().iter().copied().filter(counts).collect();
        let first = weighted.first().copied().filter(|_| self.options.keep_first);
        let rest = || weighted.iter().copied().filter(|&n| Some(n) != first);
        let depthwise = |n: NodeId| self.options.keep_depthwise && channels::is_depthwise(self.graph, n);
        // Not all that is left.
        let keeps = !rest().all(depthwise);
        let left: Vec<NodeId> = rest().filter(|&n| !(keeps && depthwise(n))).collect();
        let last = left.last().copied().filter(|_| self.options.keep_last && left.len() > 1);
        for id in found {
            // Whose approach is named is asked for.
            let named = self.options.own_approach(&self.matcher, self.graph.node(id)).is_some();
            let reason = if (Some(id) == first || Some(id) == last) && !named {
                Reason::EdgeLayer
            } else if keeps && depthwise(id) && !named {
                Reason::Depthwise
            } else {
                self.layout.kinds.insert(id, Kind::Product);
                continue;
            };
            self.layout.reasons.insert(id, reason);
        }
    }

    pub(super) fn weight_const(&self, id: NodeId) -> Option<&Tensor> {
        match self.graph.node(id).op.quant() {
            QuantRole::Weighted { weight, .. } => self.graph.const_input(id, weight),
            _ => None,
        }
    }

    fn check_product(
        &self,
        id: NodeId,
        node: &Node,
        data: usize,
        weight: usize,
        bias: Option<usize>,
    ) -> Result<(), Reason> {
        self.check_approach(node)?;
        self.check_options(node)?;
        let is_f32 = |i: usize| node.input(i).is_some_and(|v| self.facts.dtype(v) == Some(DType::F32));
        if !is_f32(data) || !is_f32(weight) {
            return Err(Reason::NotFloatData);
        }
        if node.input(data).is_some_and(|v| self.graph.constant(v).is_some()) {
            return Err(Reason::WeightNotConstant);
        }
        match self.graph.const_input(id, weight) {
            Some(w) if w.rank() < 2 => return Err(Reason::Form),
            Some(w) if !all_finite(w) => return Err(Reason::WeightNotFinite),
            None if node.op.name() != "MatMul" => return Err(Reason::WeightNotConstant),
            _ => {}
        }
        if let Some(b) = bias.and_then(|i| node.input(i)) {
            let b = self.graph.constant(b).ok_or(Reason::Form)?;
            if !all_finite(b) {
                return Err(Reason::WeightNotFinite);
            }
        }
        self.check_form(node)
    }

    /// Attributes that integer kernels have no counterpart for.
    fn check_form(&self, node: &Node) -> Result<(), Reason> {
        let mut attrs: AttrMap = node.op.attrs();
        let int = |a: &mut AttrMap, name| a.int_or(name, 0).unwrap_or(0);
        let one = |a: &mut AttrMap, name| a.float_or(name, 1.0).unwrap_or(0.0) == 1.0;
        let ok = match node.op.name() {
            "Gemm" => {
                let has_c = node.input(2).is_some();
                let c = node.input(2).and_then(|c| self.graph.constant(c));
                let c_is_row = c.is_none_or(|t| t.rank() == 1 || t.rank() == 2 && t.shape()[0] == 1);
                int(&mut attrs, "transA") == 0
                    && one(&mut attrs, "alpha")
                    && (one(&mut attrs, "beta") || !has_c)
                    && c_is_row
            }
            "Conv" | "ConvTranspose" => self.is_of_images(node),
            _ => true,
        };
        if ok { Ok(()) } else { Err(Reason::Form) }
    }

    /// Whether a convolution is one of images, or of volumes whose planes are such.
    fn is_of_images(&self, node: &Node) -> bool {
        let Some(w) = node.input(1).and_then(|v| self.graph.constant(v)) else { return true };
        w.rank() <= if node.op.name() == "Conv" { 5 } else { 4 }
    }

    /// Whether a product or a table is one of this approach.
    fn check_approach(&self, node: &Node) -> Result<(), Reason> {
        let own = self.options.approach_of(&self.matcher, node);
        if own == self.approach { Ok(()) } else { Err(Reason::OtherApproach) }
    }

    pub(super) fn check_options(&self, node: &Node) -> Result<(), Reason> {
        // Half precision has a form of all nodes; the other approaches are about products and tables.
        if self.options.own_approach(&self.matcher, node).is_some_and(|a| a.is_half() && a != self.approach) {
            return Err(Reason::OtherApproach);
        }
        self.options.selects(&self.matcher, node)
    }

    /// Tables read by Gather are stored in 8 bits; the rows read are dequantized.
    fn embeddings(&mut self) {
        /// Smaller tables are shape computations or not worth a node.
        const MIN_ELEMENTS: usize = 4096;
        if !self.options.embeddings {
            return;
        }
        for (id, node) in self.graph.nodes().filter(|(_, n)| n.op.name() == "Gather") {
            let Some(table) = self.graph.const_input(id, 0) else { continue };
            let fits = table.dtype() == DType::F32 && table.rank() == 2 && table.len() >= MIN_ELEMENTS;
            let axis_0 = node.op.attrs().int_or("axis", 0) == Ok(0);
            let only = node.input(0).is_some_and(|v| self.graph.uses(v).len() == 1);
            let weights = self.matcher.of(node).find_map(|o| o.weights).unwrap_or(self.options.weights);
            let fp8 = weights.format.is_float() && self.approach != Approach::WeightOnly;
            let asked = || self.check_approach(node).is_ok() && self.check_options(node).is_ok();
            if fits && !fp8 && axis_0 && only && all_finite(table) && asked() {
                self.layout.kinds.insert(id, Kind::Embedding);
            }
        }
    }

    /// Whether a product's output is an integer too. Convolutions have only that form in other runtimes;
    /// Gemm and MatMul hand on floats unless integers are asked for.
    fn makes_integers(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let rounds = self.options.rounds_blocks() || matches!(node.op.name(), "Conv" | "ConvTranspose");
        rounds && !self.makes_fp8(node)
    }

    /// Whether a node's operands are fp8: products of them are floats, and nothing but products takes them.
    pub(super) fn makes_fp8(&self, node: &Node) -> bool {
        let own = self.matcher.of(node).find_map(|o| o.activations);
        own.unwrap_or(self.options.activations).format.is_float()
    }

    /// Step 2: in topological order, find what integers reach without a conversion.
    fn flow(&mut self) {
        let mut integer: BTreeSet<ValueId> = BTreeSet::new();
        for (id, node) in self.graph.nodes() {
            if let Some(y) = self.function(id, &integer) {
                integer.insert(y);
                continue;
            }
            let kind = match self.layout.kinds.get(&id) {
                Some(Kind::Product) if self.makes_integers(id) => Some(Kind::Product),
                Some(_) => None,
                None => self.reached(id, node, &integer),
            };
            let Some(kind) = kind else { continue };
            self.layout.kinds.insert(id, kind);
            match kind {
                Kind::Movement => integer.extend(self.float_outputs(node)),
                Kind::Fused => {}
                _ => {
                    integer.extend(self.leaving(id));
                    for act in node.output(0).and_then(|o| self.folded(o)).map_or(Vec::new(), |f| f.nodes) {
                        self.layout.kinds.insert(act, Kind::Fused);
                    }
                }
            }
        }
        self.points = integer;
    }

    /// Fixed-point hardware ends where the first operator has no integer form.
    fn stop(&mut self) {
        if self.options.rounds_blocks() {
            let is_float = |v| self.facts.dtype(v) == Some(DType::F32);
            blocks::stop(self.graph, &mut self.layout.kinds, &mut self.layout.reasons, is_float);
            self.layout.forget_functions();
        }
    }

    /// Products whose outputs are floats for want of readers, where the settings ask for it; what folded into them is
    /// float as well.
    fn float_ends(&mut self) -> BTreeSet<NodeId> {
        let products = self.layout.kinds.iter().filter(|(_, k)| **k == Kind::Product && self.options.float_outputs);
        let ends: BTreeSet<NodeId> = products
            .map(|(&id, _)| id)
            .filter(|&id| self.makes_integers(id) && !self.is_read_by_integers(id))
            .collect();
        for &id in &ends {
            self.unfold(id);
        }
        ends
    }

    fn float_outputs(&self, node: &Node) -> Vec<ValueId> {
        let is_f32 = |v: &ValueId| self.facts.dtype(*v) == Some(DType::F32);
        node.outputs.iter().flatten().copied().filter(is_f32).collect()
    }

    fn reached(&self, _id: NodeId, node: &Node, integer: &BTreeSet<ValueId>) -> Option<Kind> {
        self.check_options(node).ok().filter(|()| !self.makes_fp8(node))?;
        let first = node.input(0).is_some_and(|v| integer.contains(&v));
        match node.op.quant() {
            QuantRole::Transparent => first.then_some(Kind::Movement),
            QuantRole::Arithmetic { same_scale } => {
                let name = node.op.name();
                let known = same_scale || ARITHMETIC.contains(&name);
                let operands: Vec<ValueId> = match name {
                    // Bounds are no operands.
                    "Clip" => node.input(0).into_iter().collect(),
                    _ => node.inputs.iter().flatten().copied().collect(),
                };
                let dtype = |v: &ValueId| self.facts.dtype(*v) == Some(DType::F32);
                let constant = |v: ValueId| match self.options.rounds_blocks() {
                    true => functions::constant(self.graph, v),
                    false => self.graph.constant(v),
                };
                let ready = |v: &ValueId| integer.contains(v) || constant(*v).is_some_and(all_finite);
                let any = operands.iter().any(|v| integer.contains(v));
                let ok = known && any && operands.iter().all(|v| dtype(v) && ready(v));
                ok.then_some(if same_scale { Kind::Movement } else { Kind::Arithmetic })
            }
            // A table of codes, on fixed-point hardware as here.
            QuantRole::Float if node.op.name() == "Gelu" && self.options.rounds_blocks() => {
                first.then_some(Kind::Arithmetic)
            }
            _ => None,
        }
    }

    /// Step 3: what nothing integer reads goes back to float, until nothing changes.
    fn prune(&mut self) {
        loop {
            let idle: Vec<NodeId> = self
                .layout
                .kinds
                .iter()
                .filter(|(_, k)| matches!(k, Kind::Arithmetic | Kind::Movement | Kind::Function))
                .map(|(&id, _)| id)
                .filter(|&id| !self.is_read_by_integers(id))
                .collect();
            if idle.is_empty() {
                return;
            }
            for id in idle {
                self.layout.kinds.remove(&id);
                self.layout.reasons.insert(id, Reason::FloatConsumer);
                self.unfold(id);
                self.dissolve(id);
            }
        }
    }

    /// Makes what folded into a node float as well.
    fn unfold(&mut self, id: NodeId) {
        for act in self.graph.node(id).output(0).and_then(|o| self.folded(o)).map_or(Vec::new(), |f| f.nodes) {
            self.layout.kinds.remove(&act);
            self.layout.reasons.insert(act, Reason::FloatConsumer);
        }
    }

    fn is_read_by_integers(&self, id: NodeId) -> bool {
        let outs = self.graph.node(id).outputs.iter().flatten().copied();
        let outs = outs.chain(self.leaving(id));
        let reads = |v: ValueId, u: &narrowbit_ir::Use| {
            let plain = self.layout.is_integer(u.node) && self.layout.kinds[&u.node] != Kind::Fused;
            plain && self.reads_integer(u.node, u.input) || self.layout.functions.reads(u.node, v)
        };
        outs.flat_map(|v| self.graph.uses(v).iter().map(move |u| (v, u))).any(|(v, u)| reads(v, u))
    }

    /// Whether an integer node reads this input as integers (and not as a shape, an axis, a bound).
    fn reads_integer(&self, id: NodeId, input: usize) -> bool {
        let node = self.graph.node(id);
        match (self.layout.kinds.get(&id), node.op.quant()) {
            (Some(Kind::Product), QuantRole::Weighted { data, weight, .. }) => {
                input == data || input == weight && self.graph.const_input(id, weight).is_none()
            }
            (Some(Kind::Arithmetic), _) => input == 0 || node.op.name() != "Clip",
            (Some(Kind::Movement), QuantRole::Arithmetic { .. }) => true,
            (Some(Kind::Movement), _) => input == 0,
            _ => false,
        }
    }

    /// Step 4: where a float reaches a product through Reshape and Transpose, quantize before them, so
    /// that they move a quarter of the bytes.
    fn lift(&mut self) {
        let ids: Vec<NodeId> = self.graph.order().iter().rev().copied().collect();
        for id in ids {
            let node = self.graph.node(id);
            let candidate =
                !self.layout.kinds.contains_key(&id) && ONE_TO_ONE.contains(&node.op.name()) && !self.makes_fp8(node);
            let Some(out) = node.output(0).filter(|_| candidate) else { continue };
            let f32_out = self.facts.dtype(out) == Some(DType::F32);
            let uses = self.graph.uses(out);
            let all_integer = uses.iter().all(|u| self.reads_integer(u.node, u.input));
            if f32_out
                && !uses.is_empty()
                && all_integer
                && !self.graph.is_output(out)
                && self.check_options(node).is_ok()
            {
                self.layout.kinds.insert(id, Kind::Movement);
            }
        }
    }

    /// Step 5: the values that carry integers: all that integer nodes read or make.
    fn points(&mut self) {
        if self.options.rounds_blocks() {
            self.points = blocks::ends(self.graph, &self.layout.kinds, |id, i| self.reads_integer(id, i));
            self.function_ends();
            return;
        }
        let mut points = BTreeSet::new();
        let ends = self.float_ends();
        for (id, node) in self.graph.nodes() {
            let Some(&kind) = self.layout.kinds.get(&id) else { continue };
            let reads = node.inputs.iter().enumerate().filter(|(i, _)| self.reads_integer(id, *i));
            points.extend(reads.filter_map(|(_, v)| *v));
            match kind {
                Kind::Product if self.makes_integers(id) && !ends.contains(&id) => points.extend(self.leaving(id)),
                Kind::Arithmetic => points.extend(self.leaving(id)),
                Kind::Movement => points.extend(self.float_outputs(node)),
                _ => {}
            }
        }
        // A Gemm whose activation's output is quantized anyway rounds only once, at its end.
        for (id, _) in self.graph.nodes() {
            let floats = self.layout.kinds.get(&id) == Some(&Kind::Product) && !self.makes_integers(id);
            if floats && !self.makes_fp8(self.graph.node(id)) {
                let folded = self.graph.node(id).output(0).and_then(|o| self.folded(o));
                for act in folded.filter(|f| points.contains(&f.out)).map_or(Vec::new(), |f| f.nodes) {
                    self.layout.kinds.insert(act, Kind::Fused);
                }
            }
        }
        self.points = points;
    }

    /// Step 6: movement hands its scale on; Concat and friends share one.
    fn group(&mut self) {
        let mut parent: BTreeMap<ValueId, ValueId> = self.points.iter().map(|&v| (v, v)).collect();
        for (id, node) in self.graph.nodes() {
            // Where blocks end, each value is rounded by itself, and ONNX Runtime's tool has scales of its own for all that a
            // Concat reads and makes.
            let own = self.options.activations.formula == Formula::Onnxruntime
                && matches!(node.op.quant(), QuantRole::Arithmetic { .. });
            if self.layout.kinds.get(&id) != Some(&Kind::Movement) || self.options.rounds_blocks() || own {
                continue;
            }
            let reads =
                node.inputs.iter().enumerate().filter(|(i, _)| self.reads_integer(id, *i)).filter_map(|(_, v)| *v);
            let mut members = reads.chain(node.outputs.iter().flatten().copied()).filter(|v| self.points.contains(v));
            let Some(first) = members.next() else { continue };
            let root = find(&parent, first);
            let rest: Vec<ValueId> = members.collect();
            for v in rest {
                let other = find(&parent, v);
                parent.insert(other.max(root), other.min(root));
                parent.insert(find(&parent, v), find(&parent, first));
            }
        }
        let mut groups: BTreeMap<ValueId, Vec<ValueId>> = BTreeMap::new();
        for &v in &self.points {
            groups.entry(find(&parent, v)).or_default().push(v);
        }
        for (i, (_, members)) in groups.into_iter().enumerate() {
            self.layout.group_of.extend(members.iter().map(|&v| (v, i)));
            self.layout.groups.push(members);
        }
    }

    /// Step 7: a reason for each node that stays float.
    fn explain(&mut self) {
        for (id, node) in self.graph.nodes() {
            if self.layout.kinds.contains_key(&id) {
                self.layout.reasons.remove(&id);
                continue;
            }
            let makes_f32 = node.outputs.iter().flatten().any(|&v| self.facts.dtype(v) == Some(DType::F32));
            let table = node.op.name() == "Gather" && self.graph.const_input(id, 0).is_some();
            let reason = match node.op.quant() {
                _ if !makes_f32 => Reason::NotFloatData,
                _ if self.layout.reasons.contains_key(&id) => continue,
                QuantRole::Arithmetic { same_scale: false } if !ARITHMETIC.contains(&node.op.name()) => {
                    Reason::FloatOperator
                }
                QuantRole::Transparent | QuantRole::Arithmetic { .. } => match self.check_options(node) {
                    Err(r) => r,
                    Ok(()) if table && (!self.options.embeddings || self.options.weights.format.is_float()) => {
                        Reason::Excluded
                    }
                    Ok(()) if table => Reason::Table,
                    Ok(()) => Reason::FloatInput,
                },
                _ => Reason::FloatOperator,
            };
            self.layout.reasons.insert(id, reason);
        }
    }
}

fn find(parent: &BTreeMap<ValueId, ValueId>, mut v: ValueId) -> ValueId {
    while parent[&v] != v {
        v = parent[&v];
    }
    v
}

pub(crate) fn all_finite(t: &Tensor) -> bool {
    if t.dtype() != DType::F32 {
        return t.to_f32s().is_ok_and(|v| v.iter().all(|x| x.is_finite()));
    }
    // Straight from the file's bytes, which need not be aligned; in parts that the compiler makes vectors of.
    let bad = |part: &[u8]| part.chunks_exact(4).fold(false, |bad, b| bad | !value(b).is_finite());
    !t.bytes().chunks(1 << 12).any(bad)
}

/// A little-endian float of four bytes.
fn value(bytes: &[u8]) -> f32 {
    f32::from_le_bytes(bytes.try_into().unwrap_or_default())
}
