//! LSTMs as ONNX Runtime's `com.microsoft.DynamicQuantizeLSTM`: both products on integers.
//!
//! X is rounded with one range for all steps and samples of a run; the hidden states, of all samples together, are rounded anew in
//! each step with a range of their own, and what is lost there goes on to the next steps. So the results of a sample depend on
//! those beside it a little, which is the operator's definition and not ours: `lstm = "float"` keeps them apart.

use narrowbit_ir::{Graph, Model, Node, NodeId, OpError, OpSource, Patch};
use narrowbit_kernels::Exec;
use narrowbit_ops::Registry;
use narrowbit_ops::nn::recurrent::{Function, Lstm};
use narrowbit_tensor::{Tensor, TensorError};

use super::{DEEPEST, transpose_bytes};
use crate::approach::LstmProducts;
use crate::plan::weight_params;
use crate::qdq::QdqError;
use crate::scheme::WeightScheme;

const MICROSOFT: &str = "com.microsoft";
/// Positions of biases and peepholes.
const BIASES: usize = 3;
const PEEPHOLES: usize = 7;
/// Inputs in front of the scales.
const PLAIN_INPUTS: usize = 8;

/// Whether a recurrent operator with constant weights has the operator's form.
///
/// # Errors
/// Why it has not.
pub(super) fn check(
    graph: &Graph,
    node: &Node,
    scheme: &WeightScheme,
    wanted: LstmProducts,
) -> Result<(), &'static str> {
    let Some(lstm) = node.op.downcast::<Lstm>() else {
        return Err("ONNX Runtime has an operator of integers for LSTM alone (DynamicQuantizeLSTM)");
    };
    if wanted == LstmProducts::Float {
        return Err("the settings keep LSTMs on floats");
    }
    let usual = [Function::Sigmoid, Function::Tanh, Function::Tanh].iter().cycle();
    if !lstm.attrs.activations.iter().map(|a| &a.function).eq(usual.take(lstm.attrs.activations.len())) {
        return Err("the kernels of integers have the usual functions only (Sigmoid, Tanh, Tanh)");
    }
    if node.input(PEEPHOLES).is_some() {
        return Err("the kernels of integers have no peepholes");
    }
    if lstm.attrs.batch_first {
        return Err("DynamicQuantizeLSTM has time first (layout 0) only");
    }
    if !scheme.symmetric && scheme.per_channel {
        return Err("DynamicQuantizeLSTM has one zero point for all channels, and the settings ask for one each");
    }
    let constant = |i: usize| node.input(i).and_then(|v| graph.constant(v));
    let (Some(w), Some(r)) = (constant(1), constant(2)) else { return Err("its weights are not constant") };
    if node.input(BIASES).is_some_and(|v| graph.constant(v).is_none()) {
        return Err("its biases are not constant");
    }
    match (w.shape(), r.shape()) {
        (&[dirs, rows, input], &[r_dirs, r_rows, hidden])
            if (r_dirs, r_rows) == (dirs, rows) && hidden.checked_mul(4) == Some(rows) =>
        {
            if input.max(hidden) <= DEEPEST { Ok(()) } else { Err("its sums might not fit in 32 bits") }
        }
        _ => Err("its weights do not fit together"),
    }
}

/// Puts the operator in the place of each node: codes with the columns of all gates side by side, and a scale for each column or, alike
/// in all directions, one for each direction.
pub(super) fn write(model: &mut Model, nodes: &[(NodeId, WeightScheme)], exec: &Exec) -> Result<(), QdqError> {
    if nodes.is_empty() {
        return Ok(());
    }
    let mut patch = Patch::new(&model.graph);
    for &(id, scheme) in nodes {
        replace(&model.graph, &mut patch, id, scheme, exec)?;
    }
    model.graph.apply(patch)?;
    model.opsets.entry(MICROSOFT.into()).or_insert(1);
    Ok(())
}

fn replace(graph: &Graph, patch: &mut Patch, id: NodeId, scheme: WeightScheme, exec: &Exec) -> Result<(), QdqError> {
    let node = graph.node(id);
    let mut inputs: Vec<_> = (0..PLAIN_INPUTS).map(|i| node.input(i)).collect();
    let mut hidden = 0;
    for place in [1, 2] {
        let Some(v) = node.input(place) else { return Ok(()) };
        let Some(w) = graph.constant(v) else { return Ok(()) };
        let &[dirs, rows, columns] = w.shape() else { return Ok(()) };
        // R's, which is the last.
        hidden = columns as i64;
        let [codes, scale, zero] = quantized(w, [dirs, rows, columns], scheme, exec)?;
        w.release();
        let name = &graph.value(v).name;
        inputs[place] = Some(patch.constant(&format!("{name}_quantized"), codes));
        inputs.push(Some(patch.constant(&format!("{name}_scale"), scale)));
        inputs.push(Some(patch.constant(&format!("{name}_zero_point"), zero)));
    }
    let mut attrs = node.op.attrs().with("hidden_size", hidden);
    let op = Registry.build(MICROSOFT, "DynamicQuantizeLSTM", 1, &mut attrs);
    let op = op.unwrap_or_else(|| Err(OpError::Unsupported("operator DynamicQuantizeLSTM".into())))?;
    let name = format!("{}_quant", node.name);
    let names: Vec<String> = (0..node.outputs.len()).map(|i| format!("{name}_{i}")).collect();
    let wanted: Vec<Option<&str>> = node.outputs.iter().zip(&names).map(|(v, name)| v.map(|_| name.as_str())).collect();
    let made = patch.node_outputs(&name, op, &inputs, &wanted);
    for (old, new) in node.outputs.iter().zip(made) {
        if let (Some(old), Some(new)) = (*old, new) {
            patch.replace(old, new);
        }
    }
    Ok(())
}

/// Codes `[directions, columns, rows]` of a weight `[directions, rows, columns]`, with scales and zero points of each direction or
/// each of its rows.
fn quantized(
    w: &Tensor,
    [dirs, rows, columns]: [usize; 3],
    scheme: WeightScheme,
    exec: &Exec,
) -> Result<[Tensor; 3], QdqError> {
    let matrix = w.reshaped([dirs * rows, columns])?;
    let params = weight_params(exec, &matrix, scheme, scheme.per_channel.then_some(0));
    let codes = params.tensor(exec, &matrix)?;
    let turned: Vec<u8> =
        codes.bytes().chunks_exact(rows * columns).flat_map(|d| transpose_bytes(d, rows, columns)).collect();
    let codes = Tensor::from_bytes(codes.dtype(), [dirs, columns, rows], turned)?;
    let (scale, zero) = params.tensors();
    let along = |t: &Tensor| -> Result<Tensor, TensorError> {
        match params.axis {
            Some(_) => t.reshaped([dirs, rows]),
            None => Tensor::from_bytes(t.dtype(), [dirs], t.bytes().repeat(dirs)),
        }
    };
    Ok([codes, along(&scale)?, along(&zero)?])
}
