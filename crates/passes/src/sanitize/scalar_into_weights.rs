//! The pass [`ScalarIntoWeights`].

use narrowbit_ir::{NodeId, Patch, ValueId};

use super::weights::{Product, per_channel};
use crate::View;
use crate::pass::{Found, OrNo, pass, unless_skipped, when};

pass! {
    /// **What it does:** moves a constant factor (Mul, Div) behind Conv, ConvTranspose, Gemm or MatMul into the
    /// weight and bias: one factor per channel or one for all; the latter also from behind Reshape and Transpose,
    /// as the 1/√d of attention stands behind the projection of the queries.
    ///
    /// **When it applies:** where weight and bias are constants and each value on the way has one reader.
    ///
    /// **Numerical effect:** rounding of the scaled weights; none for powers of two.
    ///
    /// **Example:** `q = MatMul(x, w)`, `h = Reshape(q, s)`, `y = Mul(h, 0.125)` → `q = MatMul(x, w')`, `y = Reshape(q, s)`.
    ScalarIntoWeights = "scalar-into-weights", Sanitize, rule
}

const MOVES: &[&str] = &["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"];

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Mul", "Div"])?;
    let div = view.is(id, "Div");
    let at = (0..2).rev().find(|&i| view.graph.const_input(id, i).is_some()).or_no()?;
    when(at == 1 || !div)?;
    let (x, c) = (view.input(id, 1 - at)?, view.graph.const_input(id, at).or_no()?);
    // A constant of more axes would widen the shape.
    when(c.rank() <= view.rank(x).or_no()?)?;
    let source = if c.len() == 1 { through_moves(view, x)? } else { x };
    let product = Product::of(view, source)?;
    let rank = view.rank(source).or_no()?;
    let factors = if c.len() == 1 {
        vec![c.to_f64s()?.first().copied().or_no()?; product.channels]
    } else {
        per_channel(c, rank, product.channel_axis(rank).or_no()?, product.channels)?
    };
    let factors: Vec<f64> = factors.into_iter().map(|f| if div { 1.0 / f } else { f }).collect();
    unless_skipped(factors.iter().all(|f| f.is_finite()), "the factor is not finite")?;
    when(view.graph.can_replace(view.output(id)?, x))?;
    let mut patch = product.absorb(view, Some(&factors), None, product.output)?;
    patch.replace(view.output(id)?, x);
    Ok(patch)
}

/// What stands before the nodes that only move elements.
fn through_moves(view: &View, mut value: ValueId) -> Found<ValueId> {
    while let Ok(id) = view.made_by(value, MOVES) {
        when(view.is_single_use(value))?;
        value = view.input(id, 0)?;
    }
    Ok(value)
}
