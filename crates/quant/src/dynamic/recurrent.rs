//! Recurrent operators: their weights are stored in 8 bits, and dequantized when the file is loaded.
//!
//! `com.microsoft.DynamicQuantizeLSTM` would multiply integers, but rounds the hidden state anew in each step with a range of its
//! own, for which the runtime has the reference operator alone, and there is no such operator for GRU and RNN.

use narrowbit_ir::{AttrMap, Graph, Model, NodeId, Patch};
use narrowbit_kernels::Exec;
use narrowbit_ops::Registry;
use narrowbit_tensor::Tensor;

use crate::plan::weight_params;
use crate::qdq::QdqError;
use crate::scheme::WeightScheme;

/// What must be said of these nodes.
pub(super) fn warning(graph: &Graph, nodes: &[NodeId]) -> Option<String> {
    let first = graph.node(*nodes.first()?);
    Some(format!(
        "{} recurrent nodes, \"{}\" ({}) first, compute on floats: only their weights are stored in 8 bits, because there is no kernel of integers for them here",
        nodes.len(),
        first.name,
        first.op.name()
    ))
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
