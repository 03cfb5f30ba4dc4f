//! A graph with what is known of its values, for edits that need shapes.

use std::collections::BTreeMap;
use std::sync::Arc;

use narrowbit_ir::infer::{self, Facts};
use narrowbit_ir::{AttrMap, Dim, Graph, Node, NodeId, Op, OpSource, Patch, PatchError, ValueId};
use narrowbit_ops::Registry;
use narrowbit_tensor::{DType, Tensor};

/// The opset whose forms are written: the first that has all of them.
const OPSET: i64 = 21;
/// Constants of more elements are not folded: only shapes and scalars are asked for.
const OPTIONS: infer::Options = infer::Options { max_folded: 1024, strict: false };

/// A graph and its facts, for any input shapes that it takes.
pub struct Scene<'a> {
    pub graph: &'a Graph,
    facts: Facts,
}

/// Edits a graph until `next` finds nothing more, or `most` times; `None` where there is nothing to do.
///
/// # Errors
/// Never for a graph that verifies.
pub fn rewrite(
    graph: &Graph,
    most: usize,
    next: impl Fn(&Scene) -> Option<Patch>,
) -> Result<Option<Graph>, PatchError> {
    let mut edited: Option<Graph> = None;
    for _ in 0..most {
        let graph = edited.as_ref().unwrap_or(graph);
        let Ok(facts) = infer::infer(graph, &BTreeMap::new(), OPTIONS) else { break };
        let Some(patch) = next(&Scene { graph, facts }) else { break };
        let mut graph = graph.clone();
        graph.apply(patch)?;
        edited = Some(graph);
    }
    Ok(edited)
}

impl<'a> Scene<'a> {
    /// The node that makes a value.
    pub fn maker(&self, v: ValueId) -> Option<(NodeId, &'a Node)> {
        let (id, _) = self.graph.producer(v)?;
        let node = self.graph.node(id);
        node.op.domain().is_empty().then_some((id, node))
    }

    /// The node of this operator that makes a value for one reader alone.
    pub fn only_made_by(&self, v: ValueId, names: &[&str]) -> Option<&'a Node> {
        let (_, node) = self.maker(v)?;
        let alone = self.graph.only_use(v).is_some() && !self.graph.is_output(v);
        (alone && names.contains(&node.op.name()) && node.outputs.len() == 1).then_some(node)
    }

    /// The node that alone reads a value, as its first input.
    pub fn only_reader(&self, v: ValueId) -> Option<&'a Node> {
        let only = self.graph.only_use(v).filter(|u| u.input == 0 && !self.graph.is_output(v))?;
        Some(self.graph.node(only.node))
    }

    /// The extents of a value.
    pub fn shape(&self, v: ValueId) -> Option<&[Dim]> {
        self.facts.shape(v)
    }

    /// The element type of a value.
    pub fn dtype(&self, v: ValueId) -> Option<DType> {
        self.graph.constant(v).map(Tensor::dtype).or_else(|| self.facts.dtype(v))
    }

    /// The extents of a value, where all are numbers.
    pub fn extents(&self, v: ValueId) -> Option<Vec<usize>> {
        self.shape(v)?.iter().map(|d| d.as_usize()).collect()
    }

    /// Whether two values have the same extents.
    pub fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        self.shape(a).zip(self.shape(b)).is_some_and(|(a, b)| same(a, b))
    }

    /// The content of a constant, or of what was folded to one.
    pub fn constant(&self, v: ValueId) -> Option<&Tensor> {
        self.graph.constant(v).or(self.facts.get(v).value.as_ref())
    }

    /// The axes of a Transpose of a value.
    pub fn perm(&self, node: &Node) -> Option<Vec<usize>> {
        let rank = self.shape(node.input(0)?)?.len();
        let perm = match node.op.attrs().ints("perm").ok()? {
            Some(perm) => perm,
            None => (0..rank as i64).rev().collect(),
        };
        let axes: Option<Vec<usize>> = perm.iter().map(|&a| usize::try_from(a).ok().filter(|&a| a < rank)).collect();
        axes.filter(|a| a.len() == rank)
    }
}

/// Whether extents are known to be the same.
pub fn same(a: &[Dim], b: &[Dim]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b))
}

/// An operator of ONNX's own domain.
pub fn op(name: &str, mut attrs: AttrMap) -> Option<Arc<dyn Op>> {
    Registry.build("", name, OPSET, &mut attrs)?.ok()
}
