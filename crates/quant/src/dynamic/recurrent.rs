//! Recurrent operators that go on computing on floats: their weights are stored in 8 bits, and dequantized when the file is
//! loaded. LSTMs of the usual form are those of [`super::lstm`]; there is no operator of integers for GRU and RNN.

use std::collections::BTreeMap;

use narrowbit_ir::{AttrMap, Graph, Model, NodeId, Patch};
use narrowbit_kernels::Exec;
use narrowbit_ops::Registry;
use narrowbit_tensor::Tensor;

use crate::plan::weight_params;
use crate::qdq::QdqError;
use crate::scheme::WeightScheme;

/// What must be said of these nodes, by why they are not on integers.
pub(super) fn warnings(graph: &Graph, nodes: &[(NodeId, &'static str)]) -> Vec<String> {
    let mut by_reason: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    nodes.iter().for_each(|&(id, why)| by_reason.entry(why).or_default().push(id));
    let said = |(why, ids): (&str, Vec<NodeId>)| {
        let (first, count) = (graph.node(ids[0]), ids.len());
        let (nodes, compute, their) =
            if count == 1 { ("node", "computes", "its") } else { ("nodes", "compute", "their") };
        format!(
            "{count} recurrent {nodes}, \"{}\" ({}){} {compute} on floats, {their} weights stored in 8 bits: {why}",
            first.name,
            first.op.name(),
            if count == 1 { "," } else { " first," },
        )
    };
    by_reason.into_iter().map(said).collect()
}

/// Puts both weights of each node behind a DequantizeLinear, with a scale for each output of each direction or one for all.
pub(super) fn write(model: &mut Model, nodes: &[(NodeId, WeightScheme)], exec: &Exec) -> Result<(), QdqError> {
    let (opset, graph) = (model.opset(), &model.graph);
    let mut patch = Patch::new(graph);
    for &(id, scheme) in nodes {
        for input in [1, 2] {
            let Some(v) = graph.node(id).input(input) else { continue };
            let Some(w) = graph.constant(v) else { continue };
            let &[directions, rows, columns] = w.shape() else { continue };
            let matrix = w.reshaped([directions * rows, columns])?;
            let params = weight_params(exec, &matrix, scheme, scheme.per_channel.then_some(0));
            let name = &graph.value(v).name;
            let codes = patch.constant(&format!("{name}_quantized"), params.tensor(exec, &matrix)?);
            drop(matrix);
            w.release();
            let (scale, zero) = params.tensors();
            let scale = patch.constant(&format!("{name}_scale"), scale);
            let zero = patch.constant(&format!("{name}_zero_point"), zero);
            let axis = AttrMap::new().with_opt("axis", params.axis.map(|a| a as i64));
            let dequantize = Registry::make("DequantizeLinear", opset, axis)?;
            let inputs = [Some(codes), Some(scale), Some(zero)];
            let floats = patch.node(&format!("{name}_DequantizeLinear"), dequantize, &inputs);
            let shape = [directions, rows, columns].map(|d| d as i64);
            let shape = patch.constant(&format!("{name}_shape"), Tensor::vector(shape.to_vec()));
            let reshape = Registry::make("Reshape", opset, AttrMap::new())?;
            let floats = patch.node(&format!("{name}_Reshape"), reshape, &[Some(floats), Some(shape)]);
            patch.set_input(id, input, Some(floats));
        }
    }
    model.graph.apply(patch)?;
    Ok(())
}
