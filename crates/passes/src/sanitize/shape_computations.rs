//! The pass [`ShapeComputations`].

use narrowbit_ir::{AttrMap, Dim, NodeId, Patch, ValueId};
use narrowbit_tensor::Tensor;

use crate::View;
use crate::pass::{Found, OrNo, pass, when};

pass! {
    /// **What it does:** gives Reshape a constant shape where the computed one is known but for symbols: extents
    /// that the input has at the same place become 0 (copied), one other becomes −1.
    ///
    /// **When it applies:** where at most one extent is neither a number nor a copy.
    ///
    /// **Numerical effect:** none.
    ///
    /// **Example:** `s = Concat(Gather(Shape(x), 0), [12], [64])`, `y = Reshape(x, s)` with `x: f32[batch, 768]`
    /// → `y = Reshape(x, [0, 12, 64])`.
    ShapeComputations = "shape-computations", Sanitize, rule
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Reshape"])?;
    let (x, shape, y) = (view.input(id, 0)?, view.input(id, 1)?, view.output(id)?);
    when(view.graph.constant(shape).is_none())?;
    let target = target(view, x, y)?;
    let mut patch = view.patch();
    let c = patch.constant(&view.graph.value(shape).name, Tensor::vector(target));
    patch.set_input(id, 1, Some(c));
    patch.set_op(id, view.make("Reshape", AttrMap::new())?);
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
