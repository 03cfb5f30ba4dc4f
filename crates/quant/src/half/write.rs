//! The graph in half precision.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use narrowbit_ir::infer::Facts;
use narrowbit_ir::{AttrMap, Graph, Model, NodeId, Op, Patch, TensorType, ValueId, ValueType};
use narrowbit_kernels::Exec;
use narrowbit_ops::Registry;
use narrowbit_tensor::DType;

use super::constants::Constants;
use super::{Roles, WORTH_A_CAST};
use crate::qdq::QdqError;

/// The f32 constants that nodes read outside of subgraphs, of so many elements at least, by those who read them.
fn constants(graph: &Graph, least: usize, mut readers: impl FnMut(NodeId) -> bool) -> Vec<ValueId> {
    let mut found = BTreeSet::new();
    for (id, node) in graph.nodes() {
        for &v in node.inputs.iter().flatten() {
            let fits = graph.constant(v).is_some_and(|t| t.dtype() == DType::F32 && t.len() >= least);
            if fits && readers(id) {
                found.insert(v);
            }
        }
    }
    found.into_iter().collect()
}

fn cast(opset: i64, to: DType) -> Result<Arc<dyn Op>, QdqError> {
    Ok(Registry::make("Cast", opset, AttrMap::new().with("to", i64::from(to.to_onnx())))?)
}

/// Whether the constants of a node are stored in half precision where operators compute in float32: where an operator is kept
/// float32, its constants are.
fn stores(roles: &Roles, id: NodeId) -> bool {
    use crate::plan::Reason::{Excluded, TypeNotSelected};
    roles.has(id) && !matches!(roles.reasons.get(&id), Some(Excluded | TypeNotSelected))
}

/// The nodes whose constants [`stored`] stores in half precision.
pub(super) fn readers(graph: &Graph, roles: &Roles) -> BTreeSet<NodeId> {
    let values = constants(graph, WORTH_A_CAST, |id| stores(roles, id));
    values.iter().flat_map(|&v| graph.uses(v)).map(|u| u.node).filter(|&id| stores(roles, id)).collect()
}

/// Stores the constants of the selected nodes in half precision, each behind a Cast; gives warnings.
pub(super) fn stored(model: &mut Model, roles: &Roles, to: DType, exec: &Exec) -> Result<Vec<String>, QdqError> {
    let (opset, graph) = (model.opset(), &model.graph);
    let values = constants(graph, WORTH_A_CAST, |id| stores(roles, id));
    let made = Constants::new(graph, &values, to, exec)?;
    let mut patch = Patch::new(graph);
    for &v in &values {
        let Some(t) = made.get(graph, v) else { continue };
        let name = &graph.value(v).name;
        let half = patch.constant(&format!("{name}_{}", suffix(to)), t);
        let wide = patch.node(&format!("{name}_Cast"), cast(opset, DType::F32)?, &[Some(half)]);
        for u in graph.uses(v).iter().filter(|u| stores(roles, u.node)) {
            patch.set_input(u.node, u.input, Some(wide));
        }
    }
    model.graph.apply(patch)?;
    Ok(made.warnings)
}

fn suffix(to: DType) -> &'static str {
    if to == DType::Bf16 { "bfloat16" } else { "float16" }
}

/// Lets the selected nodes compute in half precision; gives warnings.
pub(super) fn half(
    model: &mut Model,
    facts: &Facts,
    roles: &Roles,
    to: DType,
    io: bool,
    exec: &Exec,
) -> Result<Vec<String>, QdqError> {
    let (opset, graph) = (model.opset(), &model.graph);
    let values = constants(graph, 0, |id| roles.half.contains(&id));
    let made = Constants::new(graph, &values, to, exec)?;
    let mut writer = Writer { graph, facts, roles, to, opset, io, patch: Patch::new(graph), narrow: BTreeMap::new() };
    for &v in &values {
        let Some(t) = made.get(graph, v) else { continue };
        let half = writer.patch.constant(&format!("{}_{}", graph.value(v).name, suffix(to)), t);
        writer.narrow.insert(v, half);
    }
    for &id in &roles.half {
        writer.read(id)?;
    }
    for &id in &roles.half {
        writer.widen_outputs(id)?;
    }
    let lost = writer.kept_weights(exec)?;
    let ends = if io { writer.ends()? } else { Vec::new() };
    let patch = writer.patch;
    model.graph.apply(patch)?;
    for (v, ty) in ends {
        model.graph.set_type(v, ty);
    }
    Ok(made.warnings.into_iter().chain(lost).collect())
}

struct Writer<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    roles: &'a Roles,
    to: DType,
    opset: i64,
    /// Whether the graph's own inputs and outputs are half-precision too.
    io: bool,
    patch: Patch,
    /// The half-precision form of values that are made in float32.
    narrow: BTreeMap<ValueId, ValueId>,
}

impl Writer<'_> {
    fn is_f32(&self, v: ValueId) -> bool {
        self.facts.dtype(v) == Some(DType::F32)
    }

    fn is_half(&self, v: ValueId) -> bool {
        match self.graph.producer(v) {
            Some((n, _)) => self.roles.half.contains(&n),
            None => self.io && self.graph.constant(v).is_none(),
        }
    }

    /// Lets a half-precision node read half-precision values.
    fn read(&mut self, id: NodeId) -> Result<(), QdqError> {
        let node = self.graph.node(id);
        for (i, v) in node.inputs.iter().enumerate() {
            let Some(v) = v.filter(|&v| self.is_f32(v) && !self.is_half(v)) else { continue };
            let half = match self.narrow.get(&v) {
                Some(&half) => half,
                None => {
                    let name = format!("{}_{}", self.graph.value(v).name, suffix(self.to));
                    let half = self.patch.node(&name, cast(self.opset, self.to)?, &[Some(v)]);
                    self.narrow.insert(v, half);
                    half
                }
            };
            self.patch.set_input(id, i, Some(half));
        }
        Ok(())
    }

    /// Gives float32 nodes and the graph's outputs a float32 form of what a half-precision node makes.
    fn widen_outputs(&mut self, id: NodeId) -> Result<(), QdqError> {
        for &v in self.graph.node(id).outputs.iter().flatten() {
            if self.is_f32(v) {
                self.widen(v, self.graph.is_output(v) && !self.io)?;
            }
        }
        Ok(())
    }

    fn widen(&mut self, v: ValueId, output: bool) -> Result<(), QdqError> {
        let kept = |u: &&narrowbit_ir::Use| !self.roles.half.contains(&u.node);
        let readers: Vec<_> = self.graph.uses(v).iter().filter(kept).copied().collect();
        if readers.is_empty() && !output {
            return Ok(());
        }
        let name = format!("{}_float32", self.graph.value(v).name);
        let wide = self.patch.node(&name, cast(self.opset, DType::F32)?, &[Some(v)]);
        if output {
            // All readers move to the new value, which takes over the name; those in half precision go back.
            self.patch.replace(v, wide);
            let half = self.graph.uses(v).iter().filter(|u| self.roles.half.contains(&u.node));
            half.for_each(|u| self.patch.set_input(u.node, u.input, Some(v)));
            let name = format!("{}_{}", self.graph.value(v).name, suffix(self.to));
            self.patch.rename(v, &name);
        } else {
            readers.iter().for_each(|u| self.patch.set_input(u.node, u.input, Some(wide)));
        }
        Ok(())
    }

    /// Large constants that only float32 nodes read are stored in half precision too.
    fn kept_weights(&mut self, exec: &Exec) -> Result<Vec<String>, QdqError> {
        let kept = |id: NodeId| self.roles.reasons.get(&id) == Some(&crate::plan::Reason::NoHalfForm);
        let values = constants(self.graph, WORTH_A_CAST, kept);
        let made = Constants::new(self.graph, &values, self.to, exec)?;
        for &v in &values {
            let Some(t) = made.get(self.graph, v) else { continue };
            let name = &self.graph.value(v).name;
            let half = self.patch.constant(&format!("{name}_{}", suffix(self.to)), t);
            let wide = self.patch.node(&format!("{name}_Cast"), cast(self.opset, DType::F32)?, &[Some(half)]);
            for u in self.graph.uses(v).iter().filter(|u| kept(u.node)) {
                self.patch.set_input(u.node, u.input, Some(wide));
            }
        }
        Ok(made.warnings)
    }

    /// The new types of the graph's inputs and outputs, and what has to stand between them and float32 nodes.
    fn ends(&mut self) -> Result<Vec<(ValueId, ValueType)>, QdqError> {
        let mut types = Vec::new();
        let (facts, graph) = (self.facts, self.graph);
        let floats = |v: &&ValueId| facts.dtype(**v) == Some(DType::F32);
        for &v in graph.inputs().iter().filter(floats) {
            self.widen(v, false)?;
            types.extend(self.half_type(v).map(|ty| (v, ty)));
        }
        for &v in graph.outputs().iter().filter(floats) {
            if self.is_half(v) {
                types.extend(self.half_type(v).map(|ty| (v, ty)));
                continue;
            }
            let name = format!("{}_{}", self.graph.value(v).name, suffix(self.to));
            let half = self.patch.node(&name, cast(self.opset, self.to)?, &[Some(v)]);
            self.patch.replace(v, half);
            for u in graph.uses(v).iter().filter(|u| !self.roles.half.contains(&u.node)) {
                self.patch.set_input(u.node, u.input, Some(v));
            }
            if let Some(ty) = self.half_type(v) {
                self.patch.set_type(half, ty);
            }
        }
        Ok(types)
    }

    fn half_type(&self, v: ValueId) -> Option<ValueType> {
        let ty = self.graph.value(v).ty.tensor()?;
        Some(ValueType::Tensor(TensorType { dtype: Some(self.to), shape: ty.shape.clone() }))
    }
}
