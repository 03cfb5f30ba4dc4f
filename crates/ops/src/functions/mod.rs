//! Functions that files write in standard operators, declared once for those who write them and those who recognise them:
//! the passes, the planner, the lowering to integers.
//!
//! They are QuantizeML's replacements of Softmax and LayerNormalization, which fixed-point hardware can compute. A custom
//! operator would hide them from every other runtime; written out, the file means the same everywhere.

mod layer_mad;
mod shiftmax;

pub use layer_mad::LayerMad;
pub use shiftmax::Shiftmax;

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Graph, Node, NodeId, Op, OpError, Patch, ValueId};
use narrowbit_tensor::Tensor;

use crate::Registry;
use crate::math::reduce::Reduce;

/// How far a number in a file may be off, relative to the number that is meant.
const TOLERANCE: f64 = 1e-6;

/// Walks from the last node of a function to its first, and keeps the nodes on the way.
struct Walk<'a> {
    graph: &'a Graph,
    nodes: Vec<NodeId>,
}

impl<'a> Walk<'a> {
    fn new(graph: &'a Graph) -> Walk<'a> {
        Walk { graph, nodes: Vec::new() }
    }

    /// The node that makes a value, if it is of this operator of ONNX's own domain.
    fn made_by(&mut self, v: ValueId, op: &str) -> Option<&'a Node> {
        let (id, _) = self.graph.producer(v)?;
        self.take(id, op)
    }

    fn take(&mut self, id: NodeId, op: &str) -> Option<&'a Node> {
        let node = self.graph.node(id);
        if node.op.name() != op || !node.op.domain().is_empty() {
            return None;
        }
        if !self.nodes.contains(&id) {
            self.nodes.push(id);
        }
        Some(node)
    }

    /// The other operand of a Mul with this number.
    fn times(&mut self, v: ValueId, factor: f64) -> Option<ValueId> {
        let node = self.made_by(v, "Mul")?;
        let (a, b) = (node.input(0)?, node.input(1)?);
        if self.is_number(b, factor) {
            return Some(a);
        }
        self.is_number(a, factor).then_some(b)
    }

    fn is_number(&self, v: ValueId, wanted: f64) -> bool {
        let number = || self.graph.constant(v).filter(|t| t.len() == 1)?.to_f64s().ok()?.first().copied();
        number().is_some_and(|x| (x - wanted).abs() <= TOLERANCE * wanted.abs())
    }

    /// What a reduction over the last axis, which stays with extent 1, reads.
    fn reduced(&mut self, v: ValueId, op: &str) -> Option<ValueId> {
        let node = self.made_by(v, op)?;
        let x = node.input(0)?;
        let reduce: &Reduce = node.op.downcast()?;
        let axes = match &reduce.axes {
            Some(axes) => axes.clone(),
            None => self.graph.constant(node.input(1)?)?.to_i64s().ok()?,
        };
        let rank = self.graph.value(x).ty.tensor().and_then(|t| t.shape.as_ref()).map(|s| s.len() as i64);
        let last = matches!(axes[..], [a] if a == -1 || Some(a + 1) == rank);
        (reduce.keepdims && last).then_some(x)
    }

    /// The nodes in topological order, if nobody outside of them reads what the others than `last` make.
    fn finish(mut self, last: NodeId) -> Option<Vec<NodeId>> {
        let graph = self.graph;
        let inner = self.nodes.iter().filter(|&&n| n != last).flat_map(|&n| graph.node(n).outputs.iter().flatten());
        let own = |v: &ValueId| !graph.is_output(*v) && graph.uses(*v).iter().all(|u| self.nodes.contains(&u.node));
        if !inner.clone().all(own) {
            return None;
        }
        // What is read is found before who reads it: the walk goes backwards, but values are read more than once.
        let depends = |n: NodeId, on: NodeId| {
            graph.node(n).inputs.iter().flatten().any(|&v| graph.producer(v).is_some_and(|p| p.0 == on))
        };
        let mut sorted = Vec::with_capacity(self.nodes.len());
        while !self.nodes.is_empty() {
            let ready = |&n: &NodeId| !self.nodes.iter().any(|&m| depends(n, m));
            let at = self.nodes.iter().position(ready)?;
            sorted.push(self.nodes.remove(at));
        }
        Some(sorted)
    }
}

/// Adds the nodes of a function to a patch, under names that begin with the function's.
struct Writer<'a> {
    patch: &'a mut Patch,
    opset: i64,
    name: &'a str,
}

impl Writer<'_> {
    fn node(&mut self, suffix: &str, op: &str, inputs: &[ValueId]) -> Result<ValueId, OpError> {
        let op = Registry::make(op, self.opset, AttrMap::new())?;
        Ok(self.add(suffix, op, inputs))
    }

    fn add(&mut self, suffix: &str, op: Arc<dyn Op>, inputs: &[ValueId]) -> ValueId {
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        self.patch.node(&format!("{}_{suffix}", self.name), op, &inputs)
    }

    fn number(&mut self, suffix: &str, value: f32) -> ValueId {
        self.patch.constant(&format!("{}_{suffix}", self.name), Tensor::scalar(value))
    }

    /// A reduction over the last axis; axes are an input from opset `since` on.
    fn reduce(&mut self, suffix: &str, op: &str, since: i64, x: ValueId) -> Result<ValueId, OpError> {
        if self.opset < since {
            let op = Registry::make(op, self.opset, AttrMap::new().with("axes", vec![-1i64]))?;
            return Ok(self.add(suffix, op, &[x]));
        }
        let axes = self.patch.constant(&format!("{}_{suffix}_axes", self.name), Tensor::vector(vec![-1i64]));
        self.node(suffix, op, &[x, axes])
    }
}
