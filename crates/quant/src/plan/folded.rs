//! What folds into the rounding of the node before it.

use narrowbit_ir::{NodeId, ValueId};
use narrowbit_tensor::{DType, Tensor};

use super::layout::{Planner, all_finite};
use super::{Kind, weights};

/// Nodes that fold into the rounding of the one before them.
pub(super) struct Folded {
    /// In order.
    pub nodes: Vec<NodeId>,
    /// What the last one makes.
    pub out: ValueId,
}

impl Planner<'_> {
    /// The value that leaves an integer node: the output of the activation that folds into it, or its own.
    pub(super) fn leaving(&self, id: NodeId) -> Option<ValueId> {
        let out = self.graph.node(id).output(0)?;
        Some(self.folded(out).map_or(out, |f| f.out))
    }

    /// What alone reads a value and folds into the rounding before it: a Relu or Clip, or behind a convolution another
    /// function of each element, and what its result is multiplied by and what is added to it. On fixed-point hardware the
    /// bias that an Add gives to a MatMul, and what follows it, too.
    pub(super) fn folded(&self, out: ValueId) -> Option<Folded> {
        let Some(add) = self.added_bias(out) else { return self.folded_affine(out) };
        let out = self.graph.node(add).output(0)?;
        let rest = self.folded_function(out).unwrap_or(Folded { nodes: Vec::new(), out });
        Some(Folded { nodes: [vec![add], rest.nodes].concat(), out: rest.out })
    }

    fn added_bias(&self, out: ValueId) -> Option<NodeId> {
        let (product, _) = self.graph.producer(out).filter(|_| self.options.rounds_blocks())?;
        let weight = self.weight_const(product)?;
        let (add, _) = weights::added_bias(self.graph, &self.layout, product, weight)?;
        self.check_options(self.graph.node(add)).is_ok().then_some(add)
    }

    /// A function, and products and sums with constants behind it or without it, which convolutions need not round between.
    fn folded_affine(&self, out: ValueId) -> Option<Folded> {
        let mut folded = self.folded_function(out);
        if !self.folds_functions(out) || !self.is_convolved(out) {
            return folded;
        }
        while let Some((id, y)) = self.affine(folded.as_ref().map_or(out, |f| f.out)) {
            let nodes = folded.map_or(Vec::new(), |f| f.nodes);
            folded = Some(Folded { nodes: [nodes, vec![id]].concat(), out: y });
        }
        folded
    }

    fn is_convolved(&self, v: ValueId) -> bool {
        self.graph.producer(v).is_some_and(|(n, _)| self.graph.node(n).op.name() == "Conv")
    }

    /// The Mul or Add that alone reads an image, with a constant for all elements or one for each channel, and what it makes.
    fn affine(&self, v: ValueId) -> Option<(NodeId, ValueId)> {
        let u = self.graph.only_use(v)?;
        let node = self.graph.node(u.node);
        if !matches!(node.op.name(), "Mul" | "Add") || self.check_options(node).is_err() {
            return None;
        }
        let other = 1usize.checked_sub(u.input)?;
        let constant = self.graph.const_input(u.node, other).filter(|c| c.dtype() == DType::F32 && all_finite(c))?;
        let shape = self.facts.shape(v)?;
        let (rank, channels) = (shape.len(), shape.get(1)?.as_usize());
        let one = constant.len() == 1 && constant.rank() <= rank;
        let along = constant.shape().iter().enumerate().all(|(i, &d)| i == 1 || d == 1);
        let each = constant.rank() == rank && channels == Some(constant.len()) && along;
        (one || each).then_some((u.node, node.output(0)?))
    }

    fn folded_function(&self, out: ValueId) -> Option<Folded> {
        let act = match self.graph.only_use(out) {
            Some(u) if u.input == 0 => u.node,
            Some(_) => return None,
            None => return self.silu(out),
        };
        let node = self.graph.node(act);
        let folds = match node.op.name() {
            "Relu" => true,
            // A lower bound of zero is the zero point; an upper bound shows in the calibrated range.
            "Clip" => match self.graph.const_input(act, 1).map(Tensor::to_f32s) {
                Some(Ok(lo)) => lo.first() == Some(&0.0),
                _ => node.op.attrs().float("min").ok().flatten() == Some(0.0),
            },
            "HardSwish" | "HardSigmoid" | "Sigmoid" | "Tanh" | "LeakyRelu" | "Swish" => self.folds_functions(out),
            _ => false,
        };
        let done = Folded { nodes: vec![act], out: node.output(0)? };
        (folds && self.check_options(node).is_ok()).then_some(done)
    }

    /// `x · sigmoid(x)` of a convolution's output.
    fn silu(&self, out: ValueId) -> Option<Folded> {
        let [a, b] = self.graph.uses(out) else { return None };
        let named = |n: NodeId, name: &str| self.graph.node(n).op.name() == name;
        let (s, m) = if named(a.node, "Sigmoid") { (a.node, b.node) } else { (b.node, a.node) };
        let gate = self.graph.node(s).output(0).filter(|_| named(s, "Sigmoid") && named(m, "Mul"))?;
        let alone = self.graph.only_use(gate)?.node == m && !self.graph.is_output(out) && self.folds_functions(out);
        let allowed = [s, m].iter().all(|&n| self.check_options(self.graph.node(n)).is_ok());
        (alone && allowed).then_some(Folded { nodes: vec![s, m], out: self.graph.node(m).output(0)? })
    }

    /// Whether functions of this value fold into the rounding of the node that makes it: convolutions', which need no
    /// rounding between.
    fn folds_functions(&self, v: ValueId) -> bool {
        let conv = |n: NodeId| {
            let node = self.graph.node(n);
            matches!(node.op.name(), "Conv" | "ConvTranspose")
                && self.layout.kinds.get(&n) == Some(&Kind::Product)
                && !self.makes_fp8(node)
        };
        self.options.float_outputs && self.graph.producer(v).is_some_and(|(n, _)| conv(n))
    }
}
