use std::sync::Arc;

use narrowbit_ir::infer::Facts;
use narrowbit_ir::{Attr, AttrMap, Dim, Graph, Node, NodeId, Op, Patch, ValueId};
use narrowbit_ops::Registry;
use narrowbit_tensor::{DType, Tensor};

use crate::SanitizeOptions;
use crate::pass::{Found, Miss, OrNo, when};

/// A graph with what is known of its values, to read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// What is known of its values.
    pub facts: &'a Facts,
    /// The version of ONNX's operator set.
    pub opset: i64,
    /// The options.
    pub options: &'a SanitizeOptions,
}

impl<'a> View<'a> {
    /// A node.
    pub fn node(&self, id: NodeId) -> &'a Node {
        self.graph.node(id)
    }

    /// Whether a node applies an operator of ONNX's own domain.
    pub fn is(&self, id: NodeId, op: &str) -> bool {
        let node = self.node(id);
        node.op.name() == op && node.op.domain().is_empty()
    }

    /// Goes on only where the node applies one of these operators of ONNX's own domain.
    ///
    /// # Errors
    /// [`Miss::No`].
    pub fn expect(&self, id: NodeId, ops: &[&str]) -> Found<()> {
        when(ops.iter().any(|op| self.is(id, op)))
    }

    /// A node's input.
    ///
    /// # Errors
    /// [`Miss::No`] where it is absent.
    pub fn input(&self, id: NodeId, i: usize) -> Found<ValueId> {
        self.node(id).input(i).or_no()
    }

    /// A node's first output.
    ///
    /// # Errors
    /// [`Miss::No`] where it is absent.
    pub fn output(&self, id: NodeId) -> Found<ValueId> {
        self.node(id).output(0).or_no()
    }

    /// The node whose first output a value is.
    ///
    /// # Errors
    /// [`Miss::No`] where there is none.
    pub fn maker(&self, value: ValueId) -> Found<NodeId> {
        match self.graph.producer(value) {
            Some((id, 0)) => Ok(id),
            _ => Err(Miss::No),
        }
    }

    /// The node that makes a value, where it applies one of these operators.
    ///
    /// # Errors
    /// [`Miss::No`].
    pub fn made_by(&self, value: ValueId, ops: &[&str]) -> Found<NodeId> {
        let id = self.maker(value)?;
        self.expect(id, ops)?;
        Ok(id)
    }

    /// The only reader of a value.
    ///
    /// # Errors
    /// [`Miss::No`] where there are more, or the value is an output.
    pub fn only_reader(&self, value: ValueId) -> Found<NodeId> {
        Ok(self.graph.only_use(value).or_no()?.node)
    }

    /// Whether nobody but one input of one node reads a value.
    pub fn is_single_use(&self, value: ValueId) -> bool {
        self.graph.only_use(value).is_some()
    }

    /// The content of a value that does not depend on the model's inputs, where known.
    pub fn constant(&self, value: ValueId) -> Option<&'a Tensor> {
        self.graph.constant(value).or_else(|| self.facts.get(value).value.as_ref())
    }

    /// The single number of a constant.
    pub fn scalar(&self, value: ValueId) -> Option<f64> {
        let t = self.constant(value).filter(|t| t.len() == 1)?;
        t.to_f64s().ok()?.first().copied()
    }

    /// The integers of a constant.
    pub fn ints(&self, value: ValueId) -> Option<Vec<i64>> {
        self.constant(value)?.to_i64s().ok()
    }

    /// The extents of a value, where its rank is known.
    pub fn shape(&self, value: ValueId) -> Option<&'a [Dim]> {
        let stated = || self.graph.value(value).ty.tensor()?.shape.as_deref();
        self.facts.shape(value).or_else(stated)
    }

    /// The number of axes of a value, where known.
    pub fn rank(&self, value: ValueId) -> Option<usize> {
        Some(self.shape(value)?.len())
    }

    /// All extents of a value as numbers.
    pub fn concrete(&self, value: ValueId) -> Option<Vec<usize>> {
        self.shape(value)?.iter().map(Dim::as_usize).collect()
    }

    /// The extents of a value from an axis on, as numbers.
    pub fn concrete_from(&self, value: ValueId, axis: usize) -> Option<Vec<usize>> {
        self.shape(value)?.get(axis..)?.iter().map(Dim::as_usize).collect()
    }

    /// Whether two values certainly have the same shape.
    pub fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        match (self.shape(a), self.shape(b)) {
            (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.same(y)),
            _ => false,
        }
    }

    /// The element type of a value, where known.
    pub fn dtype(&self, value: ValueId) -> Option<DType> {
        self.facts.dtype(value).or_else(|| self.graph.value(value).ty.tensor()?.dtype)
    }

    /// An integer attribute of a node.
    pub fn int(&self, id: NodeId, name: &str, default: i64) -> i64 {
        match self.node(id).op.attrs().get(name) {
            Some(Attr::Int(i)) => *i,
            _ => default,
        }
    }

    /// A floating-point attribute of a node.
    pub fn float(&self, id: NodeId, name: &str, default: f32) -> f32 {
        match self.node(id).op.attrs().get(name) {
            Some(Attr::Float(x)) => *x,
            _ => default,
        }
    }

    /// A string attribute of a node.
    pub fn text(&self, id: NodeId, name: &str) -> Option<String> {
        self.node(id).op.attrs().string(name).ok().flatten()
    }

    /// The axes of a node that takes them as an attribute or as an input, counted from the front.
    /// `None` where they are not given.
    ///
    /// # Errors
    /// [`Miss::No`] where they are not known or out of range.
    pub fn axes(&self, id: NodeId, input: usize, rank: usize) -> Found<Option<Vec<usize>>> {
        let list = match (self.node(id).op.attrs().ints("axes"), self.node(id).input(input)) {
            (Ok(Some(list)), _) => list,
            (_, Some(v)) => self.ints(v).or_no()?,
            _ => return Ok(None),
        };
        let axes: Option<Vec<usize>> = list.iter().map(|&a| narrowbit_tensor::shape::axis(a, rank)).collect();
        axes.or_no().map(Some)
    }

    /// An operator of ONNX's own domain at the graph's operator set.
    ///
    /// # Errors
    /// When the attributes do not fit.
    pub fn make(&self, name: &str, attrs: AttrMap) -> Found<Arc<dyn Op>> {
        Ok(Registry::make(name, self.opset, attrs)?)
    }

    /// An empty edit.
    pub fn patch(&self) -> Patch {
        Patch::new(self.graph)
    }

    /// The edit that lets all readers of a node's first output read another value, and nothing else.
    ///
    /// # Errors
    /// [`Miss::Skip`] where the output's name would be lost.
    pub fn bypass(&self, id: NodeId, by: ValueId) -> Found<Patch> {
        let out = self.output(id)?;
        when(self.node(id).outputs.iter().skip(1).flatten().all(|&v| self.is_unread(v)))?;
        if !self.graph.can_replace(out, by) {
            return Err(Miss::Skip("it makes an output of the model out of an input or another output".into()));
        }
        let mut patch = self.patch();
        patch.replace(out, by);
        Ok(patch)
    }

    /// Whether nobody reads a value and it is no output.
    pub fn is_unread(&self, value: ValueId) -> bool {
        self.graph.uses(value).is_empty() && !self.graph.is_output(value)
    }

    /// A name for a new constant, after the value that it serves.
    pub fn name_for(&self, value: ValueId, suffix: &str) -> String {
        format!("{}.{suffix}", self.graph.value(value).name)
    }
}
