//! The pass [`ConvAddBias`].

use narrowbit_ir::{NodeId, Patch};

use super::weights::{Kind, Product, per_channel};
use crate::View;
use crate::pass::{Found, OrNo, pass, when};

pass! {
    /// **What it does:** moves a constant that is added to (or subtracted from) the output of Conv, ConvTranspose or
    /// Gemm into its bias.
    ///
    /// **When it applies:** where the constant has one number per channel or one for all, and nobody else reads the
    /// product.
    ///
    /// **Numerical effect:** rounding, where there was a bias already: the sum of both is rounded once.
    ///
    /// **Example:** `a = Conv(x, w)`, `y = Add(a, c)` with `c: f32[1, 8, 1, 1]` → `y = Conv(x, w, c')`, `c': f32[8]`.
    ConvAddBias = "conv-add-bias", Sanitize, rule
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Add", "Sub"])?;
    let minus = view.is(id, "Sub");
    let at = (0..2).rev().find(|&i| view.graph.const_input(id, i).is_some()).or_no()?;
    when(at == 1 || !minus)?;
    let (x, c) = (view.input(id, 1 - at)?, view.graph.const_input(id, at).or_no()?);
    let product = Product::of(view, x)?;
    when(product.kind != Kind::MatMul)?;
    let rank = view.rank(x).or_no()?;
    let mut shift = per_channel(c, rank, product.channel_axis(rank).or_no()?, product.channels)?;
    if minus {
        shift.iter_mut().for_each(|v| *v = -*v);
    }
    product.absorb(view, None, Some(&shift), view.output(id)?)
}
