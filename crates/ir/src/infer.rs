//! Type and shape inference over a graph, with symbolic dimensions.

use std::collections::BTreeMap;

use narrowbit_tensor::{DType, Tensor};

use crate::{
    Datum, Dim, EvalCx, Fact, Graph, InferCx, Node, NodeError, NodeId, OpError, TensorType, ValueId, ValueType,
};

/// What is known of each value of a graph.
#[derive(Debug, Clone, Default)]
pub struct Facts(Vec<Fact>);

impl Facts {
    /// What is known of a value; nothing for ids of another graph.
    pub fn get(&self, id: ValueId) -> &Fact {
        static NOTHING: Fact = Fact { ty: ValueType::Unknown, value: None, dims: None };
        self.0.get(id.index()).unwrap_or(&NOTHING)
    }

    /// The element type of a value, where known.
    pub fn dtype(&self, id: ValueId) -> Option<DType> {
        self.get(id).dtype()
    }

    /// The extents of a value, where its rank is known.
    pub fn shape(&self, id: ValueId) -> Option<&[Dim]> {
        self.get(id).shape()
    }
}

/// How far inference goes.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Nodes on constants are computed when each output has at most this many elements.
    pub max_folded: usize,
    /// Whether a node whose inputs contradict its operator is an error; otherwise its outputs are unknown.
    pub strict: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { max_folded: 1024, strict: true }
    }
}

/// Infers a fact for each value of `graph`.
///
/// `inputs` refines the types of graph inputs (for instance to a concrete batch and
/// sequence length). Types that the file states are used where inference knows less.
///
/// # Errors
/// When a node's inputs contradict its operator (with [`Options::strict`]).
pub fn infer(graph: &Graph, inputs: &BTreeMap<ValueId, Fact>, options: Options) -> Result<Facts, NodeError> {
    let mut facts = Facts(vec![Fact::default(); graph.value_capacity()]);
    for (id, value) in graph.values() {
        facts.0[id.index()] = match graph.constant(id) {
            Some(t) => Fact::constant(t.clone()),
            None => Fact { ty: value.ty.clone(), ..Fact::default() },
        };
    }
    // Stated types of inner values are only a fallback: with concrete inputs they are too weak.
    for &id in graph.inputs() {
        if let Some(given) = inputs.get(&id) {
            let stated = std::mem::take(&mut facts.0[id.index()]);
            facts.0[id.index()] = merge(given.clone(), &stated.ty);
        }
    }
    for (id, node) in graph.nodes() {
        let outs = match infer_node(graph, id, &facts, options) {
            Ok(outs) => outs,
            Err(error) if options.strict => {
                return Err(NodeError { node: node.name.clone(), op: node.op.name().into(), error });
            }
            Err(_) => Vec::new(),
        };
        let outs = outs.into_iter().chain(std::iter::repeat(Fact::default()));
        for (&v, fact) in node.outputs.iter().zip(outs) {
            let Some(v) = v else { continue };
            let stated = std::mem::take(&mut facts.0[v.index()]);
            facts.0[v.index()] = merge(fact, &stated.ty);
        }
    }
    Ok(facts)
}

/// Infers the types of all values with the stated input types and writes them into the graph.
///
/// # Errors
/// As [`infer`] with strict options.
pub fn annotate(graph: &mut Graph) -> Result<Facts, NodeError> {
    let facts = infer(graph, &BTreeMap::new(), Options::default())?;
    let ids: Vec<ValueId> = graph.values().map(|(id, _)| id).collect();
    for id in ids {
        if facts.get(id).ty != ValueType::Unknown {
            graph.set_type(id, facts.get(id).ty.clone());
        }
    }
    Ok(facts)
}

fn infer_node(graph: &Graph, id: NodeId, facts: &Facts, options: Options) -> Result<Vec<Fact>, OpError> {
    let node = graph.node(id);
    let ins: Vec<Option<&Fact>> = node.inputs.iter().map(|v| v.map(|v| facts.get(v))).collect();
    let mut outs = node.op.infer(&InferCx::new(&ins, node.outputs.len()))?;
    outs.truncate(node.outputs.len());
    if let Some(values) = fold(node, &ins, &outs, options.max_folded) {
        return Ok(values.into_iter().map(Fact::constant).collect());
    }
    Ok(outs)
}

/// Computes a node on constants, where that is small and certain to be repeatable.
fn fold(node: &Node, ins: &[Option<&Fact>], outs: &[Fact], max: usize) -> Option<Vec<Tensor>> {
    let small = |f: &Fact| {
        let shape = f.ty.tensor()?.concrete_shape()?;
        Some(shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))? <= max)
    };
    let sure = node.op.is_deterministic() && node.op.bodies().is_empty();
    if max == 0 || !sure || outs.is_empty() || !outs.iter().all(|f| small(f) == Some(true)) {
        return None;
    }
    let data: Option<Vec<Option<Datum>>> = ins
        .iter()
        .map(|f| match f {
            None => Some(None),
            Some(f) => f.value.clone().filter(|v| v.len() <= max.saturating_mul(16)).map(|v| Some(Datum::Tensor(v))),
        })
        .collect();
    let data = data?;
    let refs: Vec<Option<&Datum>> = data.iter().map(Option::as_ref).collect();
    let cx = EvalCx::new(&refs, node.outputs.len());
    cx.check_memory().ok()?;
    node.op.eval(&cx).ok()
}

/// The inferred fact, completed from what the file states where inference knows less.
fn merge(mut fact: Fact, stated: &ValueType) -> Fact {
    match (&mut fact.ty, stated) {
        (ValueType::Unknown, _) => fact.ty = stated.clone(),
        (ValueType::Tensor(t), ValueType::Tensor(s)) => merge_tensor(t, s),
        _ => {}
    }
    fact
}

fn merge_tensor(t: &mut TensorType, stated: &TensorType) {
    t.dtype = t.dtype.or(stated.dtype);
    match (&mut t.shape, &stated.shape) {
        (None, s) => t.shape.clone_from(s),
        (Some(a), Some(b)) if a.len() == b.len() => {
            for (x, y) in a.iter_mut().zip(b) {
                if *x == Dim::Unknown {
                    *x = y.clone();
                }
            }
        }
        _ => {}
    }
}
