//! The pass [`MergeReshapes`].

use narrowbit_ir::{AttrMap, NodeId, Patch};
use narrowbit_tensor::Tensor;

use super::shape_computations::target;
use crate::View;
use crate::pass::{Found, pass};

pass! {
    /// **What it does:** makes one Reshape of two nodes in a row that only change the shape: Reshape, Flatten,
    /// Squeeze, Unsqueeze.
    ///
    /// **When it applies:** where the last shape can be written as a constant from the first input's (one symbol at
    /// most besides copies). The first node stays where others read it.
    ///
    /// **Numerical effect:** none.
    ///
    /// **Example:** `a = Unsqueeze(x, [0])`, `y = Reshape(a, [2, 6])` with `x: f32[3, 4]` → `y = Reshape(x, [2, 6])`.
    MergeReshapes = "merge-reshapes", Sanitize, rule
}

const VIEWS: &[&str] = &["Reshape", "Flatten", "Squeeze", "Unsqueeze"];

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, VIEWS)?;
    let first = view.made_by(view.input(id, 0)?, VIEWS)?;
    let (x, y) = (view.input(first, 0)?, view.output(id)?);
    let shape = target(view, x, y)?;
    let mut patch = view.patch();
    let shape = patch.constant(&view.name_for(y, "shape"), Tensor::vector(shape));
    patch.set_op(id, view.make("Reshape", AttrMap::new())?);
    patch.set_input(id, 0, Some(x));
    patch.set_input(id, 1, Some(shape));
    Ok(patch)
}
