//! The pass [`CommonSubexpressions`].

use std::collections::HashMap;

use narrowbit_ir::{Graph, NodeId, ValueId};
use narrowbit_tensor::Tensor;

use crate::{Pass, PassCx, PassError, Stage};

/// **What it does:** computes once what several nodes compute alike.
///
/// **When it applies:** to nodes with the same operator, attributes and inputs; constants count as the same input
/// when their contents are equal. Not to random operators, operators with subgraphs, or outputs of the model
/// that would become two names of one value. Equal constants themselves stay: one goes only when the last node that
/// read it does.
///
/// **Numerical effect:** none.
///
/// **Example:** `a = Relu(x)`, `b = Relu(x)`, `y = Add(a, b)` → `a = Relu(x)`, `y = Add(a, a)`.
#[derive(Debug, Clone, Copy)]
pub struct CommonSubexpressions;

impl Pass for CommonSubexpressions {
    fn name(&self) -> &'static str {
        "common-subexpressions"
    }

    fn stage(&self) -> Stage {
        Stage::Sanitize
    }

    fn doc(&self) -> &'static str {
        "Computes once what several nodes compute alike."
    }

    fn run(&self, cx: &mut PassCx) -> Result<(), PassError> {
        // One sweep in topological order is enough: readers see the merged inputs.
        let mut same = equal_constants(cx.graph());
        let mut seen: HashMap<Key, NodeId> = HashMap::new();
        for id in cx.graph().order().to_vec() {
            if cx.stopped() || cx.graph().get_node(id).is_none() {
                continue;
            }
            let Some(key) = key(cx.graph(), id, &same) else { continue };
            let Some(&first) = seen.get(&key) else {
                seen.insert(key, id);
                continue;
            };
            self.merge(cx, first, id)?;
            same.retain(|v, _| cx.graph().get_value(*v).is_some());
        }
        Ok(())
    }
}

impl CommonSubexpressions {
    fn merge(&self, cx: &mut PassCx, first: NodeId, second: NodeId) -> Result<(), PassError> {
        let graph = cx.graph();
        let mut patch = narrowbit_ir::Patch::new(graph);
        for (a, b) in graph.node(first).outputs.iter().zip(&graph.node(second).outputs) {
            let (Some(a), Some(b)) = (a, b) else { continue };
            if !graph.can_replace(*b, *a) {
                let name = graph.node(second).name.clone();
                cx.skip(&name, "its output and an equal one are both outputs of the model");
                return Ok(());
            }
            patch.replace(*b, *a);
        }
        if patch.is_empty() { Ok(()) } else { cx.apply(self, patch) }
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    op: String,
    attrs: String,
    inputs: Vec<Option<ValueId>>,
    outputs: Vec<bool>,
}

fn key(graph: &Graph, id: NodeId, same: &HashMap<ValueId, ValueId>) -> Option<Key> {
    let node = graph.node(id);
    if !node.op.is_deterministic() || !node.op.bodies().is_empty() || node.outputs.is_empty() {
        return None;
    }
    // The debug form also tells apart operators that stand in forms of different opsets.
    let attrs = format!("{:?} {:?}", node.op, node.extra);
    Some(Key {
        op: format!("{}:{}", node.op.domain(), node.op.name()),
        attrs,
        inputs: node.inputs.iter().map(|v| v.map(|v| same.get(&v).copied().unwrap_or(v))).collect(),
        outputs: node.outputs.iter().map(Option::is_some).collect(),
    })
}

/// For each constant that equals an earlier one, that one.
fn equal_constants(graph: &Graph) -> HashMap<ValueId, ValueId> {
    let mut groups: HashMap<(u8, Vec<usize>, u64), Vec<ValueId>> = HashMap::new();
    let mut same = HashMap::new();
    for (id, _) in graph.values() {
        let Some(t) = graph.constant(id) else { continue };
        let group = groups.entry((t.dtype() as u8, t.shape().to_vec(), sample(t))).or_default();
        match group.iter().find(|&&v| graph.constant(v) == Some(t)) {
            Some(&v) => {
                same.insert(id, v);
            }
            None => group.push(id),
        }
    }
    same
}

/// A hash of a few bytes: weights are read in full only where these agree.
fn sample(t: &Tensor) -> u64 {
    let bytes = t.bytes();
    let step = (bytes.len() / 64).max(1);
    bytes
        .iter()
        .step_by(step)
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}
