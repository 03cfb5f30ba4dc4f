//! The pass [`BatchnormIntoConv`].

use narrowbit_ir::{NodeId, Patch};

use super::weights::{Kind, Product};
use crate::View;
use crate::pass::{Found, OrNo, pass, unless_skipped, when};

pass! {
    /// **What it does:** moves a BatchNormalization into the weight and bias of the Conv, ConvTranspose, Gemm or
    /// MatMul (with or without Add) before it: `W' = W · γ/√(σ² + ε)`, `b' = β + (b − μ) · γ/√(σ² + ε)`.
    ///
    /// **When it applies:** at inference, where all parameters are constants and nobody else reads the product. Between
    /// MatMul and BatchNormalization a Reshape to rows may stand.
    ///
    /// **Numerical effect:** rounding: the products are computed in double precision and rounded once.
    ///
    /// **Example:** `a = Conv(x, w)`, `y = BatchNormalization(a, γ, β, μ, σ²)` → `y = Conv(x, w', b')`.
    BatchnormIntoConv = "batchnorm-into-conv", Sanitize, rule
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["BatchNormalization"])?;
    when(view.node(id).outputs.iter().skip(1).all(Option::is_none) && view.int(id, "training_mode", 0) == 0)?;
    let x = view.input(id, 0)?;
    let (scale, shift) = affine(view, id)?;
    if let Ok(rows) = view.made_by(x, &["Reshape", "Flatten"]) {
        return through_rows(view, id, rows, (&scale, &shift));
    }
    let product = Product::of(view, x)?;
    if matches!(product.kind, Kind::Gemm | Kind::MatMul) {
        // The channels of BatchNormalization are axis 1.
        when(view.rank(x) == Some(2))?;
    }
    unless_skipped(scale.len() == product.channels, "the number of channels differs from the product's")?;
    unless_skipped(scale.iter().chain(&shift).all(|v| v.is_finite()), "the variance is not positive")?;
    product.absorb(view, Some(&scale), Some(&shift), view.output(id)?)
}

/// A MatMul whose result is made a matrix of rows before its BatchNormalization.
fn through_rows(view: &View, id: NodeId, rows: NodeId, (scale, shift): (&[f64], &[f64])) -> Found<Patch> {
    let (from, to) = (view.input(rows, 0)?, view.output(rows)?);
    let product = Product::of(view, from)?;
    let last = |v| Some(view.shape(v)?.last()?.as_usize());
    let keeps_columns = last(from).or_no()? == Some(product.channels) && last(to).or_no()? == Some(product.channels);
    when(matches!(product.kind, Kind::Gemm | Kind::MatMul) && view.rank(to) == Some(2) && keeps_columns)?;
    when(view.is_single_use(to) && scale.len() == product.channels)?;
    unless_skipped(scale.iter().chain(shift).all(|v| v.is_finite()), "the variance is not positive")?;
    let mut patch = product.absorb(view, Some(scale), Some(shift), from)?;
    patch.replace(view.output(id)?, to);
    Ok(patch)
}

/// What a BatchNormalization multiplies by and adds, per channel.
fn affine(view: &View, id: NodeId) -> Found<(Vec<f64>, Vec<f64>)> {
    let parameter = |i: usize| -> Found<Vec<f64>> { Ok(view.constant(view.input(id, i)?).or_no()?.to_f64s()?) };
    let (gamma, beta) = (parameter(1)?, parameter(2)?);
    let (mean, variance) = (parameter(3)?, parameter(4)?);
    when(beta.len() == gamma.len() && mean.len() == gamma.len() && variance.len() == gamma.len())?;
    let epsilon = f64::from(view.float(id, "epsilon", 1e-5));
    let scale: Vec<f64> = gamma.iter().zip(&variance).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
    let shift = beta.iter().zip(&mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
    Ok((scale, shift))
}
