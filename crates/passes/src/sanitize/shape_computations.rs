//! The pass [`ShapeComputations`].

use narrowbit_ir::{AttrMap, Dim, NodeId, Patch, ValueId};
use narrowbit_tensor::{DType, Tensor};

use crate::View;
use crate::pass::{Found, OrNo, pass, when};

pass! {
    /// **What it does:** gives Reshape a constant shape where the computed one is known but for symbols: extents
    /// that the input has at the same place become 0 (copied), one other becomes −1. Goes around nodes of a shape
    /// computation that certainly give back what they read, or replace some numbers in it: exporters guard each Expand
    /// with `Where(shape == −1, 1, shape)`.
    ///
    /// **When it applies:** to a Reshape where at most one extent is neither a number nor a copy; to other nodes where
    /// each element of the output is a number, or the same symbol as that of an input.
    ///
    /// **Numerical effect:** none.
    ///
    /// **Example:** `s = Concat(Gather(Shape(x), 0), [12], [64])`, `y = Reshape(x, s)` with `x: f32[batch, 768]`
    /// → `y = Reshape(x, [0, 12, 64])`.
    ShapeComputations = "shape-computations", Sanitize, rule
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    if !view.is(id, "Reshape") {
        return given_back(view, id);
    }
    let (x, shape, y) = (view.input(id, 0)?, view.input(id, 1)?, view.output(id)?);
    when(view.graph.constant(shape).is_none())?;
    let target = target(view, x, y)?;
    let mut patch = view.patch();
    let c = patch.constant(&view.graph.value(shape).name, Tensor::vector(target));
    patch.set_input(id, 1, Some(c));
    patch.set_op(id, view.make("Reshape", AttrMap::new())?);
    Ok(patch)
}

/// The input of a shape computation's node that its output equals, element by element.
fn given_back(view: &View, id: NodeId) -> Found<Patch> {
    let y = view.output(id)?;
    let wanted = view.facts.get(y).dims.as_ref().or_no()?;
    // What is known in numbers is folded.
    when(view.constant(y).is_none() && view.node(id).op.is_deterministic() && view.node(id).op.bodies().is_empty())?;
    let equals = |x: &ValueId| {
        let dims = view.facts.get(*x).dims.as_ref();
        let same = dims.is_some_and(|d| d.len() == wanted.len() && d.iter().zip(wanted).all(|(a, b)| a.same(b)));
        same && view.dtype(*x) == view.dtype(y) && view.same_shape(*x, y)
    };
    match view.node(id).inputs.iter().flatten().copied().find(equals) {
        Some(x) => view.bypass(id, x),
        None => with_other_numbers(view, id, wanted),
    }
}

/// The Concat that a node reads, with constants for the parts that the node changes into numbers.
fn with_other_numbers(view: &View, id: NodeId, wanted: &[Dim]) -> Found<Patch> {
    let y = view.output(id)?;
    when(!view.is(id, "Concat") && view.dtype(y) == Some(DType::I64) && view.rank(y) == Some(1))?;
    when(view.node(id).outputs.len() == 1)?;
    // A Cast from a Concat of another type is no such node.
    let whole = |x: &ValueId| {
        let dims = view.facts.get(*x).dims.as_ref();
        dims.is_some_and(|d| d.len() == wanted.len()) && view.dtype(*x) == Some(DType::I64)
    };
    let concat = |x: ValueId| view.made_by(x, &["Concat"]).ok();
    let concat = view.node(id).inputs.iter().flatten().copied().filter(whole).find_map(concat).or_no()?;
    let mut patch = view.patch();
    let (mut inputs, mut rest) = (Vec::new(), wanted);
    for &part in &view.node(concat).inputs {
        let part = part.or_no()?;
        let dims = view.facts.get(part).dims.as_ref().or_no()?;
        let (want, after) = rest.split_at_checked(dims.len()).or_no()?;
        rest = after;
        if dims.iter().zip(want).all(|(a, b)| a.same(b)) {
            inputs.push(Some(part));
            continue;
        }
        let numbers: Vec<i64> = want.iter().map(Dim::as_known).collect::<Option<_>>().or_no()?;
        inputs.push(Some(patch.constant(&view.graph.value(part).name, Tensor::vector(numbers))));
    }
    let op = view.make("Concat", AttrMap::new().with("axis", 0i64))?;
    let new = patch.node(&view.graph.value(y).name, op, &inputs);
    when(!view.graph.is_output(y))?;
    patch.replace(y, new);
    Ok(patch)
}

/// The constant shape that reshapes `x` to what is known of the shape of `y`.
pub(super) fn target(view: &View, x: ValueId, y: ValueId) -> Found<Vec<i64>> {
    to_target(view.shape(x), view.shape(y).or_no()?)
}

pub(super) fn to_target(x: Option<&[Dim]>, y: &[Dim]) -> Found<Vec<i64>> {
    let copied = |i: usize, d: &Dim| x.and_then(|x| x.get(i)).is_some_and(|xi| xi.same(d));
    let mut target = Vec::with_capacity(y.len());
    for (i, d) in y.iter().enumerate() {
        target.push(match d {
            // 0 would be read as a copy.
            Dim::Known(0) if !copied(i, d) => return Err(crate::Miss::No),
            Dim::Known(n) => *n,
            _ if copied(i, d) => 0,
            _ => -1,
        });
    }
    when(target.iter().filter(|&&t| t == -1).count() <= 1)?;
    // What is left is not defined beside an extent of 0.
    when(!target.contains(&-1) || !y.contains(&Dim::Known(0)))?;
    Ok(target)
}
