use std::collections::BTreeMap;

use narrowbit_ir::{Graph, NodeId, QuantRole, ValueId};

use super::{Kind, QuantPlan};
use crate::scheme::{Formula, vitis};

/// Moves the positions of outputs that a DPU's shifter can't reach (see [`vitis::Positions`]), in the order of the
/// graph, and gives by how many bits the sums of each product are then shifted.
pub(super) fn correct(graph: &Graph, plan: &mut QuantPlan) -> BTreeMap<NodeId, i32> {
    let mut cuts = BTreeMap::new();
    for (id, _) in graph.nodes() {
        let Some((output, p)) = positions(graph, plan, id) else { continue };
        let Some(position) = p.corrected().output else { continue };
        cuts.insert(id, p.weight + p.input - position);
        if p.output == Some(position) {
            continue;
        }
        // All that shares the output's scale moves with it.
        let group = plan.layout.groups().find(|g| g.contains(&output)).map(<[_]>::to_vec).unwrap_or_default();
        for v in group {
            if let Some(a) = plan.activations.get_mut(&v) {
                a.point.scale = vitis::scale_of(position);
                a.range = vitis::range_of(position, vitis::bits_of(a.scheme.code_range()));
            }
        }
    }
    cuts
}

/// The quantized output of a product with a weight, and the positions around it.
fn positions(graph: &Graph, plan: &QuantPlan, id: NodeId) -> Option<(ValueId, vitis::Positions)> {
    let product = plan.layout.kinds.get(&id) == Some(&Kind::Product);
    let node = Some(graph.node(id)).filter(|_| product)?;
    let QuantRole::Weighted { data, weight, .. } = node.op.quant() else { return None };
    let input = plan.activations.get(&node.input(data)?)?;
    let w = plan.weights.get(&(id, weight)).filter(|w| w.scheme.formula == Formula::Vitis)?;
    let own = node.output(0)?;
    let folded = || {
        let reader = graph.only_use(own)?.node;
        graph.node(reader).output(0).filter(|_| plan.layout.kinds.get(&reader) == Some(&Kind::Fused))
    };
    let output = folded().unwrap_or(own);
    let made = plan.activations.get(&output)?;
    let vitis_made = made.scheme.formula == Formula::Vitis && input.scheme.formula == Formula::Vitis;
    let positions = vitis::Positions {
        input: vitis::position_of(input.point.scale),
        weight: vitis::position_of(w.points.first()?.scale),
        bias: None,
        output: Some(vitis::position_of(made.point.scale)),
    };
    vitis_made.then_some((output, positions))
}
