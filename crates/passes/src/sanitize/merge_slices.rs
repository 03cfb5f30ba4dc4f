//! The pass [`MergeSlices`].

use narrowbit_ir::{AttrMap, NodeId, Patch};
use narrowbit_tensor::{Tensor, shape};

use crate::View;
use crate::pass::{Found, OrNo, pass, when};

pass! {
    /// **What it does:** makes one Slice of two in a row along different axes.
    ///
    /// **When it applies:** where all bounds are constants and only the second Slice reads the first.
    ///
    /// **Numerical effect:** none.
    ///
    /// **Example:** `a = Slice(x, [0], [8], [2], [2])`, `y = Slice(a, [0], [8], [3], [2])`
    /// → `y = Slice(x, [0, 0], [8, 8], [2, 3], [2, 2])`.
    MergeSlices = "merge-slices", Sanitize, rule
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Slice"])?;
    let a = view.input(id, 0)?;
    let first = view.made_by(a, &["Slice"])?;
    when(view.is_single_use(a))?;
    let x = view.input(first, 0)?;
    let rank = view.rank(x).or_no()?;
    let (p, q) = (bounds(view, first, rank)?, bounds(view, id, rank)?);
    when(p.axes.iter().all(|a| !q.axes.contains(a)))?;
    let y = view.output(id)?;
    let mut patch = view.patch();
    patch.set_op(id, view.make("Slice", AttrMap::new())?);
    patch.set_input(id, 0, Some(x));
    let lists = [
        ("starts", [p.starts, q.starts]),
        ("ends", [p.ends, q.ends]),
        ("axes", [p.axes, q.axes]),
        ("steps", [p.steps, q.steps]),
    ];
    for (i, (name, list)) in lists.into_iter().enumerate() {
        let c = patch.constant(&view.name_for(y, name), Tensor::vector(list.concat()));
        patch.set_input(id, i + 1, Some(c));
    }
    Ok(patch)
}

struct Bounds {
    starts: Vec<i64>,
    ends: Vec<i64>,
    axes: Vec<i64>,
    steps: Vec<i64>,
}

fn bounds(view: &View, id: NodeId, rank: usize) -> Found<Bounds> {
    let list = |i: usize| view.ints(view.input(id, i)?).or_no();
    let (starts, ends) = (list(1)?, list(2)?);
    let n = starts.len();
    let axes = if view.node(id).input(3).is_some() { list(3)? } else { (0..n as i64).collect() };
    let steps = if view.node(id).input(4).is_some() { list(4)? } else { vec![1; n] };
    when(ends.len() == n && axes.len() == n && steps.len() == n)?;
    let axes: Option<Vec<i64>> = axes.iter().map(|&a| shape::axis(a, rank).map(|a| a as i64)).collect();
    Ok(Bounds { starts, ends, axes: axes.or_no()?, steps })
}
