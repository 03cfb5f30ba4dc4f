//! float16 and bfloat16: weights in half the bytes, and operators in half precision where that keeps the results.
//!
//! With `Compute::Half` every operator of [`types`]'s list becomes one on half-precision tensors; others, those that need
//! the range or the precision of float32 among them, stay, behind a Cast of what they read and before one of what they
//! make. With `Compute::Float32` only the constants are stored in half precision, each behind a Cast: every runtime
//! reads that, and computes as before.

mod constants;
mod types;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::infer::Facts;
use narrowbit_ir::{Graph, Model, Node, NodeId};
use narrowbit_kernels::Exec;
use narrowbit_tensor::DType;

use crate::approach::{Approach, ApproachError, Compute};
use crate::options::{Matcher, QuantOptions};
use crate::plan::Reason;
use crate::quantize::{Converted, NodeFate, QuantizeError, facts, refuse_quantized};

/// Constants with fewer elements stay float32 where they would need a Cast of their own.
const WORTH_A_CAST: usize = 256;

/// What is in half precision in a graph.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    /// float16 or bfloat16.
    approach: Approach,
    compute: Compute,
    roles: Roles,
    /// The nodes that compute in half precision or read constants of it.
    reached: BTreeSet<NodeId>,
}

/// Converts a sanitized model in place.
///
/// # Errors
/// When the model is quantized or holds no float32, or an override can't be read.
pub(crate) fn convert(model: &mut Model, options: &QuantOptions, exec: &Exec) -> Result<Converted, QuantizeError> {
    refuse_quantized(&model.graph)?;
    let chosen = choose(model, options, options.approach, |_| false)?;
    if chosen.roles.half.is_empty() {
        let why = chosen.roles.reasons.values().max().map(|r| format!(" ({r})")).unwrap_or_default();
        return Err(QuantizeError::Nothing(why));
    }
    let fates = model.graph.nodes().map(|(id, node)| chosen.fate(id, node)).collect();
    let warnings = write(model, &facts(model)?, &chosen, options.half.io, exec)?;
    Ok(Converted { fates, warnings, ..Converted::default() })
}

/// Selects the nodes of a half precision, but for those that are `taken`.
///
/// # Errors
/// When the settings contradict each other, or an override can't be read.
pub(crate) fn choose(
    model: &Model,
    options: &QuantOptions,
    approach: Approach,
    taken: impl Fn(NodeId) -> bool,
) -> Result<Chosen, QuantizeError> {
    let compute = options.half.compute(approach);
    if compute == Compute::Float32 && options.half.io && approach == options.approach {
        return Err(ApproachError::HalfIo.into());
    }
    // Those of a mixture are for its other approaches, too.
    if let Some(name) = options.op_types.iter().find(|n| !types::HALF.contains(&n.as_str()) && !options.is_mixture()) {
        return Err(ApproachError::HalfType(name.clone(), types::HALF.join(" ")).into());
    }
    let roles = Roles::new(&model.graph, &facts(model)?, options, approach, taken)?;
    let reached = match compute {
        Compute::Half => roles.half.clone(),
        Compute::Float32 => write::readers(&model.graph, &roles),
    };
    Ok(Chosen { approach, compute, roles, reached })
}

/// Writes what was chosen into a graph that still has those nodes, whose values `facts` are about; gives what the user should
/// know.
///
/// # Errors
/// When the graph can't be rewritten.
pub(crate) fn write(
    model: &mut Model,
    facts: &Facts,
    chosen: &Chosen,
    io: bool,
    exec: &Exec,
) -> Result<Vec<String>, QuantizeError> {
    let to = chosen.dtype();
    let mut warnings = match chosen.compute {
        Compute::Half => write::half(model, facts, &chosen.roles, to, io, exec)?,
        Compute::Float32 => write::stored(model, &chosen.roles, to, exec)?,
    };
    if chosen.compute == Compute::Half && to == DType::Bf16 {
        warnings.push(
            "ONNX Runtime has no bfloat16 operators on CPUs: leave out --compute half for a file that it runs".into(),
        );
    }
    Ok(warnings)
}

impl Chosen {
    /// float16 or bfloat16.
    pub fn approach(&self) -> Approach {
        self.approach
    }

    fn dtype(&self) -> DType {
        if self.approach == Approach::Bfloat16 { DType::Bf16 } else { DType::F16 }
    }

    /// What becomes of a node.
    pub fn fate(&self, id: NodeId, node: &Node) -> NodeFate {
        if self.reached.contains(&id) {
            return NodeFate { stored: Some(self.approach.to_string()), ..NodeFate::new(node, None) };
        }
        NodeFate::new(node, Some(self.roles.reasons.get(&id).copied().unwrap_or(Reason::NoWeight)))
    }
}

/// Which nodes become half-precision ones, and why the others do not.
#[derive(Debug, Clone, Default)]
struct Roles {
    half: BTreeSet<NodeId>,
    reasons: BTreeMap<NodeId, Reason>,
}

impl Roles {
    fn new(
        graph: &Graph,
        facts: &Facts,
        options: &QuantOptions,
        approach: Approach,
        taken: impl Fn(NodeId) -> bool,
    ) -> Result<Roles, QuantizeError> {
        let matcher = Matcher::new(&options.overrides)?;
        let mut roles = Roles::default();
        for (id, node) in graph.nodes() {
            let own = options.approach_of(&matcher, node) == approach && !taken(id);
            let role = if own { role(node, facts, &matcher, options) } else { Err(Reason::OtherApproach) };
            match role {
                Ok(()) => {
                    roles.half.insert(id);
                }
                Err(reason) => {
                    roles.reasons.insert(id, reason);
                }
            }
        }
        Ok(roles)
    }

    /// Whether a node is one of these: not one that was written since, nor one of another approach.
    fn has(&self, id: NodeId) -> bool {
        self.half.contains(&id) || self.reasons.get(&id).is_some_and(|r| *r != Reason::OtherApproach)
    }
}

fn role(node: &Node, facts: &Facts, matcher: &Matcher, options: &QuantOptions) -> Result<(), Reason> {
    let floats = |v: &narrowbit_ir::ValueId| facts.dtype(*v) == Some(DType::F32);
    if !node.outputs.iter().flatten().any(floats) {
        return Err(Reason::NotFloatData);
    }
    let name = node.op.name();
    if !types::HALF.contains(&name) || !node.op.domain().is_empty() {
        return Err(if types::SENSITIVE.contains(&name) { Reason::Sensitive } else { Reason::NoHalfForm });
    }
    options.selects(matcher, node)
}

#[cfg(test)]
mod tests;
