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

/// Converts a sanitized model in place.
///
/// # Errors
/// When the model is quantized or holds no float32, or an override can't be read.
pub(crate) fn convert(model: &mut Model, options: &QuantOptions, exec: &Exec) -> Result<Converted, QuantizeError> {
    let to = if options.approach == Approach::Bfloat16 { DType::Bf16 } else { DType::F16 };
    let compute = options.half.compute(options.approach);
    if compute == Compute::Float32 && options.half.io {
        return Err(ApproachError::HalfIo.into());
    }
    if let Some(name) = options.op_types.iter().find(|n| !types::HALF.contains(&n.as_str())) {
        return Err(ApproachError::HalfType(name.clone(), types::HALF.join(" ")).into());
    }
    refuse_quantized(&model.graph)?;
    let facts = facts(model)?;
    let roles = Roles::new(&model.graph, &facts, options)?;
    if roles.half.is_empty() {
        let why = roles.reasons.values().max().map(|r| format!(" ({r})")).unwrap_or_default();
        return Err(QuantizeError::Nothing(why));
    }
    let (stored, mut warnings) = match compute {
        Compute::Half => write::half(model, &facts, &roles, to, options.half.io, exec)?,
        Compute::Float32 => write::stored(model, &roles, to, exec)?,
    };
    if compute == Compute::Half && to == DType::Bf16 {
        warnings.push(
            "ONNX Runtime has no bfloat16 operators on CPUs: leave out --compute half for a file that it runs".into(),
        );
    }
    Ok(Converted { fates: fates(&roles, &stored, to), warnings, ..Converted::default() })
}

/// Which nodes become half-precision ones, and why the others do not.
#[derive(Debug)]
struct Roles {
    half: BTreeSet<NodeId>,
    reasons: BTreeMap<NodeId, Reason>,
    /// Name and operator of each node, in topological order: as they were.
    nodes: Vec<(NodeId, String, String)>,
}

impl Roles {
    fn new(graph: &Graph, facts: &Facts, options: &QuantOptions) -> Result<Roles, QuantizeError> {
        let matcher = Matcher::new(&options.overrides)?;
        let mut roles = Roles { half: BTreeSet::new(), reasons: BTreeMap::new(), nodes: Vec::new() };
        for (id, node) in graph.nodes() {
            roles.nodes.push((id, node.name.clone(), node.op.name().into()));
            match role(node, facts, &matcher, options) {
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
    match matcher.of(node).find_map(|o| o.float) {
        Some(true) => return Err(Reason::Excluded),
        Some(false) => return Ok(()),
        None => {}
    }
    let named = options.op_types.is_empty() || options.op_types.iter().any(|t| t == name);
    if named { Ok(()) } else { Err(Reason::TypeNotSelected) }
}

/// `stored`: the nodes that compute in half precision or read constants of it.
fn fates(roles: &Roles, stored: &BTreeSet<NodeId>, to: DType) -> Vec<NodeFate> {
    let name = if to == DType::Bf16 { "bfloat16" } else { "float16" };
    let fate = |(id, node, op): &(NodeId, String, String)| {
        let is_stored = stored.contains(id);
        let reason = roles.reasons.get(id).copied().or((!is_stored).then_some(Reason::NoWeight));
        let reason = reason.filter(|_| !is_stored);
        NodeFate {
            node: node.clone(),
            op: op.clone(),
            integer: false,
            stored: is_stored.then(|| name.to_owned()),
            reason: reason.map(Reason::code),
            why: reason.map(|r| r.to_string()),
        }
    };
    roles.nodes.iter().map(fate).collect()
}

#[cfg(test)]
mod tests;
