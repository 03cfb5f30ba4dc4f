//! The pass [`GemmAlphaBeta`].

use narrowbit_ir::{NodeId, Patch};
use narrowbit_tensor::Tensor;

use crate::View;
use crate::pass::{Found, OrNo, pass, when};

pass! {
    /// **What it does:** makes Gemm plain: `alpha` and `beta` move into the constants.
    /// `transB` stays: it moves no data.
    ///
    /// **When it applies:** where the operand concerned is a constant.
    ///
    /// **Numerical effect:** rounding of the scaled constants; none for powers of two.
    ///
    /// **Example:** `y = Gemm(x, w, b) {alpha=0.5}` → `y = Gemm(x, w/2, b)`.
    GemmAlphaBeta = "gemm-alpha-beta", Sanitize, rule
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Gemm"])?;
    let (alpha, beta) = (view.float(id, "alpha", 1.0), view.float(id, "beta", 1.0));
    let mut attrs = view.node(id).op.attrs();
    let mut patch = view.patch();
    let mut changed = false;
    if alpha != 1.0 && view.graph.const_input(id, 1).is_some() {
        scale(view, &mut patch, id, 1, alpha)?;
        attrs.take("alpha");
        changed = true;
    }
    if beta != 1.0 && view.node(id).input(2).is_none() {
        attrs.take("beta");
        changed = true;
    } else if beta != 1.0 && view.graph.const_input(id, 2).is_some() {
        scale(view, &mut patch, id, 2, beta)?;
        attrs.take("beta");
        changed = true;
    }
    when(changed)?;
    patch.set_op(id, view.make("Gemm", attrs)?);
    Ok(patch)
}

fn scale(view: &View, patch: &mut Patch, id: NodeId, input: usize, factor: f32) -> Found<()> {
    let (v, t) = (view.input(id, input)?, view.graph.const_input(id, input).or_no()?);
    when(t.dtype().is_float() && !t.dtype().is_minifloat() && factor.is_finite())?;
    let values = t.to_f32s()?.iter().map(|x| x * factor).collect();
    let c = patch.constant(&view.graph.value(v).name, Tensor::from_f32s(t.dtype(), t.shape(), values)?);
    patch.set_input(id, input, Some(c));
    Ok(())
}
