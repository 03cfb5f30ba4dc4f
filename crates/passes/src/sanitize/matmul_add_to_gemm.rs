//! The pass [`MatmulAddToGemm`].

use narrowbit_ir::{AttrMap, NodeId, Patch};

use crate::View;
use crate::pass::{Found, OrNo, pass, unless_skipped, when};

pass! {
    /// **What it does:** makes one Gemm of MatMul and the Add of a constant row.
    ///
    /// **When it applies:** to operands of two axes with a constant weight, where nobody else reads the product.
    ///
    /// **Numerical effect:** none but the order of additions in a runtime's Gemm.
    ///
    /// **Example:** `a = MatMul(x, w)`, `y = Add(a, b)` with `x: f32[batch, 64]` → `y = Gemm(x, w, b)`.
    MatmulAddToGemm = "matmul-add-to-gemm", Sanitize, rule
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Add"])?;
    let at = (0..2).find(|&i| view.graph.const_input(id, i).is_some()).or_no()?;
    let product = view.input(id, 1 - at)?;
    let matmul = view.made_by(product, &["MatMul"])?;
    let (x, w) = (view.input(matmul, 0)?, view.graph.const_input(matmul, 1).or_no()?);
    when(view.rank(x) == Some(2) && w.rank() == 2 && w.dtype().is_float())?;
    let bias = view.graph.const_input(id, at).or_no()?;
    let row = matches!(bias.shape(), [n] | [1, n] if *n == w.shape()[1]);
    when(row)?;
    unless_skipped(view.is_single_use(product), "the product has other readers")?;
    let mut patch = view.patch();
    let c = match bias.rank() {
        1 => view.input(id, at)?,
        _ => patch.constant(&view.name_for(product, "bias"), bias.reshaped([w.shape()[1]])?),
    };
    patch.set_op(matmul, view.make("Gemm", AttrMap::new())?);
    patch.set_input(matmul, 2, Some(c));
    patch.replace(view.output(id)?, product);
    Ok(patch)
}
