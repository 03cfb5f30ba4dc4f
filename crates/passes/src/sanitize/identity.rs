//! The pass [`Identity`].

use narrowbit_ir::{Dim, NodeId, Patch, ValueId};
use narrowbit_ops::tensor::resample::Coordinates;
use narrowbit_ops::tensor::resize::Resize;
use narrowbit_tensor::DType;

use crate::View;
use crate::pass::{Found, OrNo, pass, when};

pass! {
    /// **What it does:** removes nodes that give back their input: Identity, Dropout at inference, Cast to the same
    /// type, Reshape/Expand/Flatten/Squeeze/Unsqueeze/Slice/Pad/Tile/Resize to the same shape, Transpose in place,
    /// Concat and Split of one, Sum/Max/Min/Mean of one, Mul and Div by 1, Add and Sub of 0, Pow 1.
    ///
    /// **When it applies:** where the shapes are certainly the same, symbols included. Not where an output of the
    /// model would become another name of an input or of another output.
    ///
    /// **Numerical effect:** none, except that −0 + 0 is 0 and stays −0 here.
    ///
    /// **Example:** `y = Mul(x, 1)`, `z = Relu(y)` → `z = Relu(x)`.
    Identity = "identity", Sanitize, rule
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    let node = view.node(id);
    when(node.op.domain().is_empty())?;
    let by = match node.op.name() {
        "Identity" => view.input(id, 0)?,
        "Dropout" => dropout(view, id)?,
        "Cast" | "CastLike" => cast(view, id)?,
        "Reshape" | "Expand" | "Flatten" | "Squeeze" | "Unsqueeze" | "Tile" => same_shape(view, id)?,
        "Slice" => slice(view, id)?,
        "Pad" => pad(view, id)?,
        "Transpose" => transpose(view, id)?,
        "Resize" => resize(view, id)?,
        "Concat" | "Sum" | "Max" | "Min" | "Mean" => {
            when(node.inputs.len() == 1)?;
            view.input(id, 0)?
        }
        "Split" => {
            when(node.outputs.len() == 1)?;
            view.input(id, 0)?
        }
        "Mul" => either(view, id, 1.0)?,
        "Add" => either(view, id, 0.0)?,
        "Div" | "Pow" => right(view, id, 1.0)?,
        "Sub" => right(view, id, 0.0)?,
        _ => return Err(crate::Miss::No),
    };
    view.bypass(id, by)
}

/// The mode is inference where input 2 is absent or false.
fn dropout(view: &View, id: NodeId) -> Found<ValueId> {
    let training = view.node(id).input(2);
    when(training.is_none_or(|v| view.scalar(v) == Some(0.0)))?;
    view.input(id, 0)
}

fn cast(view: &View, id: NodeId) -> Found<ValueId> {
    let x = view.input(id, 0)?;
    let (from, to) = (view.dtype(x).or_no()?, view.dtype(view.output(id)?).or_no()?);
    when(from == to)?;
    Ok(x)
}

fn same_shape(view: &View, id: NodeId) -> Found<ValueId> {
    let x = view.input(id, 0)?;
    when(view.same_shape(x, view.output(id)?))?;
    Ok(x)
}

/// Same extents alone do not do: a reversal keeps them.
fn slice(view: &View, id: NodeId) -> Found<ValueId> {
    let x = same_shape(view, id)?;
    let forward = |v: ValueId| view.ints(v).is_some_and(|s| s.iter().all(|&s| s == 1));
    when(view.node(id).input(4).is_none_or(forward))?;
    Ok(x)
}

/// Same extents alone do not do: a negative pad on one side may cancel one on the other.
fn pad(view: &View, id: NodeId) -> Found<ValueId> {
    let pads = view.input(id, 1)?;
    when(view.ints(pads).or_no()?.iter().all(|&p| p == 0))?;
    view.input(id, 0)
}

/// Of known extents, where the coordinates of a scale of 1 are those of the input.
fn resize(view: &View, id: NodeId) -> Found<ValueId> {
    let x = view.input(id, 0)?;
    let op = view.node(id).op.downcast::<Resize>().or_no()?;
    let shape = view.concrete(x).or_no()?;
    let constant = |i: usize| view.constant(view.node(id).input(i)?).cloned();
    let axes = op.sampling(&shape, &constant)?;
    let moves = matches!(op.method.coordinates, Coordinates::TfHalfPixelForNn | Coordinates::TfCropAndResize);
    when(!moves && axes.iter().all(|a| a.from == a.to && a.scale == 1.0))?;
    Ok(x)
}

fn transpose(view: &View, id: NodeId) -> Found<ValueId> {
    let x = view.input(id, 0)?;
    let perm = super::merge_transposes::perm(view, id)?;
    when(perm.iter().enumerate().all(|(i, &p)| i == p))?;
    Ok(x)
}

fn either(view: &View, id: NodeId, neutral: f64) -> Found<ValueId> {
    right(view, id, neutral).or_else(|_| operand(view, id, 1, 0, neutral))
}

fn right(view: &View, id: NodeId, neutral: f64) -> Found<ValueId> {
    operand(view, id, 0, 1, neutral)
}

/// The operand `x` where all elements of the other one are `neutral`, and it does not widen the shape.
fn operand(view: &View, id: NodeId, x: usize, other: usize, neutral: f64) -> Found<ValueId> {
    let (x, other) = (view.input(id, x)?, view.input(id, other)?);
    let c = view.constant(other).or_no()?;
    when(matches!(c.dtype(), DType::F32 | DType::F64 | DType::F16 | DType::Bf16) || c.dtype().is_int())?;
    // Long constants are rarely neutral: the first element decides almost always.
    let short = c.len() <= 1 << 16;
    when(short && !c.is_empty() && c.to_f64s()?.iter().all(|&v| v == neutral))?;
    when(view.same_shape(x, view.output(id)?) || c.len() == 1 && fits(view.shape(x).or_no()?, c.rank()))?;
    when(view.dtype(x) == view.dtype(view.output(id)?) || view.dtype(view.output(id)?).is_none())?;
    Ok(x)
}

fn fits(x: &[Dim], rank: usize) -> bool {
    rank <= x.len()
}
