//! The pass [`ConstantFolding`].

use narrowbit_ir::{Datum, Dim, EvalCx, NodeId, Patch, ValueId, check_limit};
use narrowbit_tensor::{DType, Tensor};

use crate::View;
use crate::pass::{Found, Miss, OrNo, pass, when};

pass! {
    /// **What it does:** computes nodes whose inputs are constants, and parts of shapes that are known although
    /// the tensor is not.
    ///
    /// **When it applies:** to repeatable operators without subgraphs; not to QuantizeLinear, DequantizeLinear and
    /// their like, whose integer operands are the point of the file; not where the result would take more than
    /// `max_growth` bytes beyond what it is computed from; not where the value is an output of the model.
    ///
    /// **Numerical effect:** that of the reference interpreter instead of the runtime's: the last bit may differ.
    ///
    /// **Example:** `s = Shape(x)` with `x: f32[1, 3, 8, 8]`, `y = Reshape(x, s)` → `y = Reshape(x, [1, 3, 8, 8])`.
    ConstantFolding = "constant-folding", Prepare, fold
}

/// Their operands are kept: folding would turn integers into floats.
const KEPT: &[&str] = &["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"];

fn fold(view: &View, id: NodeId) -> Found<Patch> {
    let node = view.node(id);
    when(node.op.is_deterministic() && node.op.bodies().is_empty() && !KEPT.contains(&node.op.name()))?;
    let outputs: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
    when(!outputs.is_empty() && !outputs.iter().any(|&v| view.graph.is_output(v)))?;
    // What inference computed from dequantized weights must not take their place.
    let floats = outputs.iter().any(|&v| view.dtype(v).is_none_or(DType::is_float));
    when(!floats || node.inputs.iter().flatten().all(|&v| view.graph.constant(v).is_some()))?;
    let values = match outputs.iter().map(|&v| known(view, v)).collect::<Option<Vec<Tensor>>>() {
        Some(values) => values,
        None => compute(view, id)?,
    };
    when(values.len() == outputs.len())?;
    let mut patch = view.patch();
    for (&old, tensor) in outputs.iter().zip(values) {
        let new = patch.constant(&view.graph.value(old).name, tensor);
        patch.replace(old, new);
    }
    Ok(patch)
}

/// The content that inference found.
fn known(view: &View, v: ValueId) -> Option<Tensor> {
    let fact = view.facts.get(v);
    if let Some(t) = &fact.value {
        return Some(t.clone());
    }
    let dims: Vec<i64> = fact.dims.as_ref()?.iter().map(Dim::as_known).collect::<Option<_>>()?;
    let dtype = fact.dtype().filter(|d| matches!(d, DType::I64 | DType::I32))?;
    let shape = match fact.shape()? {
        [] if dims.len() == 1 => vec![],
        [n] if n.as_usize().is_none_or(|n| n == dims.len()) => vec![dims.len()],
        _ => return None,
    };
    Tensor::from_i64s(dtype, shape, &dims).ok()
}

fn compute(view: &View, id: NodeId) -> Found<Vec<Tensor>> {
    let node = view.node(id);
    let mut given = 0usize;
    let mut data: Vec<Option<Datum>> = Vec::with_capacity(node.inputs.len());
    for v in &node.inputs {
        data.push(match v {
            None => None,
            Some(v) => {
                let t = view.constant(*v).or_no()?;
                given = given.saturating_add(t.bytes().len());
                Some(Datum::Tensor(t.clone()))
            }
        });
    }
    let mut made = 0usize;
    for v in node.outputs.iter().flatten() {
        let (dtype, shape) = (view.dtype(*v).or_no()?, view.concrete(*v).or_no()?);
        made = made.saturating_add(dtype.byte_len(check_limit(dtype, &shape)?).or_no()?);
    }
    let limit = given.saturating_add(view.options.max_growth);
    if made > limit {
        return Err(Miss::Skip(format!("the constant would take {made} bytes, at most {limit} are allowed")));
    }
    let refs: Vec<Option<&Datum>> = data.iter().map(Option::as_ref).collect();
    let made = node.op.eval(&EvalCx::new(&refs, node.outputs.len()))?;
    let wanted = node.outputs.iter().zip(made).filter(|(o, _)| o.is_some());
    Ok(wanted.map(|(_, t)| t).collect())
}
