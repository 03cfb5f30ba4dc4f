//! The pass [`MergeTransposes`].

use narrowbit_ir::{AttrMap, Dim, NodeId, Patch};
use narrowbit_ops::tensor::transpose::Transpose;
use narrowbit_tensor::Tensor;

use super::shape_computations::target;
use crate::View;
use crate::pass::{Found, OrNo, pass, when};

pass! {
    /// **What it does:** makes one Transpose of two in a row; a Transpose that only moves axes of extent 1 becomes a
    /// Reshape, which moves no data.
    ///
    /// **When it applies:** to two in a row always (the first one stays where others read it); to axes of extent 1
    /// where the new shape can be written as a constant.
    ///
    /// **Numerical effect:** none.
    ///
    /// **Example:** `a = Transpose(x) {perm=[0, 2, 3, 1]}`, `y = Transpose(a) {perm=[0, 3, 1, 2]}` → `y = x`.
    MergeTransposes = "merge-transposes", Sanitize, rule
}

/// The permutation of a Transpose, with its default resolved.
pub(crate) fn perm(view: &View, id: NodeId) -> Found<Vec<usize>> {
    let op = view.node(id).op.downcast::<Transpose>().or_no()?;
    let rank = view.input(id, 0).ok().and_then(|x| view.rank(x)).or(op.perm.as_ref().map(Vec::len)).or_no()?;
    Ok(op.perm(rank)?)
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Transpose"])?;
    merged(view, id).or_else(|_| as_reshape(view, id))
}

fn merged(view: &View, id: NodeId) -> Found<Patch> {
    let first = view.made_by(view.input(id, 0)?, &["Transpose"])?;
    let (outer, inner) = (perm(view, id)?, perm(view, first)?);
    when(outer.len() == inner.len())?;
    let both: Vec<i64> = outer.iter().map(|&o| inner[o] as i64).collect();
    let x = view.input(first, 0)?;
    if both.iter().enumerate().all(|(i, &p)| p == i as i64) && view.graph.can_replace(view.output(id)?, x) {
        return view.bypass(id, x);
    }
    let mut patch = view.patch();
    patch.set_op(id, view.make("Transpose", AttrMap::new().with("perm", both))?);
    patch.set_input(id, 0, Some(x));
    Ok(patch)
}

fn as_reshape(view: &View, id: NodeId) -> Found<Patch> {
    let (x, y) = (view.input(id, 0)?, view.output(id)?);
    let (perm, shape) = (perm(view, id)?, view.shape(x).or_no()?);
    when(perm.len() == shape.len())?;
    let long: Vec<usize> = perm.into_iter().filter(|&p| shape[p] != Dim::Known(1)).collect();
    when(long.is_sorted())?;
    let shape = target(view, x, y)?;
    let mut patch = view.patch();
    let shape = patch.constant(&view.name_for(y, "shape"), Tensor::vector(shape));
    patch.set_op(id, view.make("Reshape", AttrMap::new())?);
    patch.set_input(id, 1, Some(shape));
    Ok(patch)
}
