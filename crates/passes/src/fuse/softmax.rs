//! The pass [`Softmax`].

use std::sync::LazyLock;

use narrowbit_ir::{AttrMap, NodeId, Patch};

use crate::View;
use crate::pass::{Found, OrNo, pass, when};
use crate::pattern::{Expr, any, op, var};

pass! {
    /// **What it does:** writes `exp(x) / Σ exp(x)`, with or without the maximum subtracted, as one Softmax.
    ///
    /// **When it applies:** to sums over one axis that is kept; where nobody else reads the inner values.
    ///
    /// **Numerical effect:** rounding; Softmax also does not overflow where `exp(x)` did.
    ///
    /// **Example:** `e = Exp(x)`, `s = ReduceSum(e, [-1])`, `y = Div(e, s)` → `y = Softmax(x)`.
    Softmax = "softmax", Fuse, rule
}

static SOFTMAX: LazyLock<Expr> = LazyLock::new(|| {
    let shifted = var("x") - op("ReduceMax", [var("x")]).label("max");
    let e = |x: Expr| op("Exp", [x]).named("e");
    let quotient = |x: Expr| e(x.clone()) / op("ReduceSum", [e(x)]).label("sum");
    any([quotient(shifted), quotient(var("x"))])
});

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Div"])?;
    let found = SOFTMAX.find(view, id)?;
    let x = found.value("x")?;
    let rank = view.rank(x).or_no()?;
    let axis = kept_axis(view, found.node("sum")?, rank)?;
    if let Ok(max) = found.node("max") {
        when(kept_axis(view, max, rank)? == axis)?;
    }
    let mut patch = view.patch();
    let op = view.make("Softmax", AttrMap::new().with("axis", axis as i64 - rank as i64))?;
    let y = patch.node(&view.node(id).name, op, &[Some(x)]);
    patch.replace(view.output(id)?, y);
    Ok(patch)
}

fn kept_axis(view: &View, reduce: NodeId, rank: usize) -> Found<usize> {
    when(view.int(reduce, "keepdims", 1) != 0)?;
    match view.axes(reduce, 1, rank)?.or_no()?.as_slice() {
        [axis] => Ok(*axis),
        _ => Err(crate::Miss::No),
    }
}
