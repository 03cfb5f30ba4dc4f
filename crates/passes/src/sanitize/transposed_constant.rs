//! The pass [`TransposedConstant`].

use narrowbit_ir::{NodeId, Patch};

use crate::View;
use crate::pass::{Found, OrNo, pass, when};

pass! {
    /// **What it does:** lets Gemm read a transposed operand itself (`transA`, `transB`) instead of through Transpose.
    /// (The Transpose of a constant is folded by `constant-folding`.)
    ///
    /// **When it applies:** to operands of two axes.
    ///
    /// **Numerical effect:** none.
    ///
    /// **Example:** `t = Transpose(w)`, `y = Gemm(x, t)` → `y = Gemm(x, w) {transB=1}`.
    TransposedConstant = "transposed-constant", Sanitize, rule
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Gemm"])?;
    operand(view, id, 0, "transA").or_else(|_| operand(view, id, 1, "transB"))
}

fn operand(view: &View, id: NodeId, input: usize, attr: &str) -> Found<Patch> {
    let transpose = view.made_by(view.input(id, input)?, &["Transpose"])?;
    when(super::merge_transposes::perm(view, transpose)? == [1, 0])?;
    let source = view.node(transpose).input(0).or_no()?;
    let attrs = view.node(id).op.attrs().with(attr, i64::from(view.int(id, attr, 0) == 0));
    let mut patch = view.patch();
    patch.set_op(id, view.make("Gemm", attrs)?);
    patch.set_input(id, input, Some(source));
    Ok(patch)
}
