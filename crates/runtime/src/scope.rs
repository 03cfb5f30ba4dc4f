//! What is known of a graph's values while it is compiled: their types and contents, layouts and shared memory.

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::infer::Facts;
use narrowbit_ir::{Datum, EvalCx, Fact, Graph, NodeId, ValueId, check_limit};
use narrowbit_tensor::{DType, Tensor};

use crate::kernel::Concrete;

/// What weights in a narrow type go through: a DequantizeLinear, a Cast, or the table of NF4 with its scales.
const UNPACKING: &[&str] = &["DequantizeLinear", "Cast", "Gather", "Mul", "Reshape", "Slice", "Transpose"];
/// Such operators in a row at the most: as many as the table needs, and a Transpose.
const UNPACKING_STEPS: usize = 6;

/// The concrete type of a fact. Tensors that no operator may make (see [`check_limit`]) have none: a graph that asks
/// for one is cut before that node, which the error then names.
pub fn concrete(fact: &Fact) -> Option<Concrete> {
    let ty = fact.ty.tensor()?;
    let (dtype, shape) = (ty.dtype?, ty.concrete_shape()?);
    (dtype != DType::String && check_limit(dtype, &shape).is_ok()).then_some(Concrete { dtype, shape })
}

/// What is known of the graph's values.
pub struct Scope<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Types and known contents of its values.
    pub facts: &'a Facts,
    /// A value that is another one under a new shape.
    pub alias: BTreeMap<ValueId, ValueId>,
    /// Floats that stand in memory as bfloat16.
    pub rounded: BTreeSet<ValueId>,
}

impl Scope<'_> {
    /// The id of a value with its channels last: ids beyond the graph's own.
    pub fn channels_last(&self, v: ValueId) -> ValueId {
        ValueId::from_index(v.index() + self.graph.value_capacity())
    }

    /// Whether an id names a value with its channels last.
    pub fn is_channels_last(&self, v: ValueId) -> bool {
        v.index() >= self.graph.value_capacity()
    }

    /// The graph's value behind an id of either layout.
    pub fn base(&self, v: ValueId) -> ValueId {
        if self.is_channels_last(v) { ValueId::from_index(v.index() - self.graph.value_capacity()) } else { v }
    }

    /// The value whose memory a value shares.
    pub fn root(&self, mut v: ValueId) -> ValueId {
        while let Some(&x) = self.alias.get(&v) {
            v = x;
        }
        v
    }

    /// Whether a value's content does not depend on the model's inputs.
    pub fn is_constant(&self, v: ValueId) -> bool {
        !self.is_channels_last(v) && (self.facts.get(v).value.is_some() || self.unpacked(v, UNPACKING_STEPS).is_some())
    }

    /// The content of a constant value. Weights in a narrow type are computed on each call, so that only their packed
    /// form stays in memory.
    pub fn constant(&self, v: ValueId) -> Option<Tensor> {
        if self.is_channels_last(v) {
            return None;
        }
        if let Some(t) = &self.facts.get(v).value {
            return Some(t.clone());
        }
        let node = self.graph.node(self.unpacked(v, UNPACKING_STEPS)?);
        let data: Option<Vec<Option<Datum>>> = node
            .inputs
            .iter()
            .map(|i| match i {
                Some(i) => self.constant(*i).map(|t| Some(Datum::Tensor(t))),
                None => Some(None),
            })
            .collect();
        let data = data?;
        let refs: Vec<Option<&Datum>> = data.iter().map(Option::as_ref).collect();
        node.op.eval(&EvalCx::new(&refs, 1)).ok()?.into_iter().next()
    }

    /// The last of so many operators at the most that make a value from constants by unpacking them.
    fn unpacked(&self, v: ValueId, steps: usize) -> Option<NodeId> {
        let (id, _) = self.graph.producer(v)?;
        let node = self.graph.node(id);
        if steps == 0 || !UNPACKING.contains(&node.op.name()) || node.outputs.len() != 1 {
            return None;
        }
        let constant = |v: &ValueId| self.facts.get(*v).value.is_some() || self.unpacked(*v, steps - 1).is_some();
        node.inputs.iter().flatten().all(constant).then_some(id)
    }

    /// The type in which a value stands in memory.
    pub fn ty(&self, v: ValueId) -> Concrete {
        let ty = concrete(self.facts.get(self.base(v))).unwrap_or(Concrete { dtype: DType::U8, shape: vec![0] });
        if self.rounded.contains(&v) { Concrete { dtype: DType::Bf16, ..ty } } else { ty }
    }
}
