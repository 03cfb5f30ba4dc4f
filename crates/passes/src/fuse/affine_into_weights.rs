//! The pass [`AffineIntoWeights`].

use narrowbit_ir::{AttrMap, NodeId, Patch, ValueId};
use narrowbit_tensor::{DType, Tensor};

use crate::View;
use crate::pass::{Found, OrNo, pass, unless_skipped, when};
use crate::sanitize::weights::{Kind, Product};

pass! {
    /// **What it does:** moves a number by which a value is multiplied or divided, or which is added to or subtracted from
    /// it, into the weights and biases of the products that read the value. A convolution that pads reads zeros that stand
    /// behind the addition: there the addition stays, and only the factor before it moves, `a·x + b = a · (x + b/a)`.
    ///
    /// **When it applies:** where all readers are Conv, ConvTranspose, Gemm or MatMul with a weight of their own; additions
    /// to Conv and Gemm. A factor for each channel stays: it decides how even the channels are when they are rounded. Runs
    /// behind the recognition of functions, whose last factor it would take.
    ///
    /// **Numerical effect:** rounding of the scaled weights, and of the biases; none for powers of two.
    ///
    /// **Example:** `h = HardSwish(c)`, `m = Mul(h, 2)`, `a = Add(m, 3)`, `y = Conv(a, w, b)` →
    /// `h = HardSwish(c)`, `y = Conv(h, 2w, b + 3·Σw)`.
    AffineIntoWeights = "affine-into-weights", Fuse, rule
}

/// What the name of a value ends in that a factor was taken from.
const SUFFIX: &str = "unscaled";

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Mul", "Div", "Add", "Sub"])?;
    let y = view.output(id)?;
    // First, so that a skipped match is one that readers would have let happen.
    operands(view, id)?;
    let products = products(view, y)?;
    if view.is(id, "Mul") || view.is(id, "Div") {
        let (x, factor) = factor(view, id)?;
        return scaled(view, &products, factor, x);
    }
    let (x, shift) = shift(view, id)?;
    if products.iter().all(|p| reads_no_padding(view, p)) {
        return shifted(view, &products, shift, x);
    }
    // The factor before the addition.
    let before = view.maker(x)?;
    let (inner, factor) = factor_of(view, before, x)?;
    let moved = shift / factor;
    unless_skipped((moved as f32).is_finite(), "the number over the factor is not finite")?;
    let mut patch = scaled_patch(view, &products, factor)?;
    let constant = patch.constant(&view.name_for(y, "shift"), Tensor::scalar(moved as f32));
    let add = view.make("Add", AttrMap::new())?;
    let added = patch.node(&view.name_for(y, SUFFIX), add, &[Some(inner), Some(constant)]);
    // Not `replace`: what lacks the factor must not bear the name of what had it.
    products.iter().for_each(|p| patch.set_input(p.id, 0, Some(added)));
    Ok(patch)
}

/// What a Mul or Div multiplies by one number, and that number.
fn factor(view: &View, id: NodeId) -> Found<(ValueId, f64)> {
    view.expect(id, &["Mul", "Div"])?;
    let (x, c) = operands(view, id)?;
    let factor = if view.is(id, "Div") { 1.0 / c } else { c };
    unless_skipped((factor as f32).is_normal(), "the factor is 0 or not finite")?;
    Ok((x, factor))
}

/// As [`factor`], of a value that nobody else reads.
fn factor_of(view: &View, id: NodeId, value: ValueId) -> Found<(ValueId, f64)> {
    let found = factor(view, id)?;
    when(view.is_single_use(value))?;
    Ok(found)
}

/// What an Add or Sub adds one number to, and that number.
fn shift(view: &View, id: NodeId) -> Found<(ValueId, f64)> {
    view.expect(id, &["Add", "Sub"])?;
    let (x, c) = operands(view, id)?;
    unless_skipped((c as f32).is_finite(), "the number is not finite")?;
    Ok((x, if view.is(id, "Sub") { -c } else { c }))
}

/// The operand that is no constant, and the single number that the other one is, which must stand behind it in a Div or Sub.
fn operands(view: &View, id: NodeId) -> Found<(ValueId, f64)> {
    let ordered = view.is(id, "Div") || view.is(id, "Sub");
    let at = (0..2).rev().find(|&i| view.graph.const_input(id, i).is_some()).or_no()?;
    when(at == 1 || !ordered)?;
    let (x, c) = (view.input(id, 1 - at)?, view.graph.const_input(id, at).or_no()?);
    // A constant of more axes would widen the shape.
    when(c.len() == 1 && c.rank() <= view.rank(x).or_no()? && view.graph.constant(x).is_none())?;
    Ok((x, c.to_f64s()?.first().copied().or_no()?))
}

/// The products that read a value, where nobody else does.
fn products<'a>(view: &View<'a>, value: ValueId) -> Found<Vec<Product<'a>>> {
    when(!view.graph.is_output(value))?;
    let mut found = Vec::new();
    for reader in view.graph.uses(value) {
        when(reader.input == 0)?;
        let product = Product::at(view, reader.node)?;
        // Half precision may not hold what was scaled.
        when(product.weight.dtype() == DType::F32)?;
        unless_skipped(
            view.is_single_use(view.input(product.id, 1)?),
            format!("other readers of the weight of node \"{}\"", view.node(product.id).name),
        )?;
        found.push(product);
    }
    when(!found.is_empty())?;
    Ok(found)
}

fn scaled(view: &View, products: &[Product], factor: f64, x: ValueId) -> Found<Patch> {
    let mut patch = scaled_patch(view, products, factor)?;
    products.iter().for_each(|p| patch.set_input(p.id, 0, Some(x)));
    Ok(patch)
}

/// The edit that multiplies the weights.
fn scaled_patch(view: &View, products: &[Product], factor: f64) -> Found<Patch> {
    let mut patch = view.patch();
    for p in products {
        let weight = p.weight_times(factor)?;
        let finite = weight.to_f32s()?.iter().all(|w| w.is_finite());
        unless_skipped(finite, "the scaled weights are not finite")?;
        let w = patch.constant(&view.graph.value(view.input(p.id, 1)?).name, weight);
        patch.set_input(p.id, 1, Some(w));
    }
    Ok(patch)
}

fn shifted(view: &View, products: &[Product], shift: f64, x: ValueId) -> Found<Patch> {
    let mut patch = view.patch();
    for p in products {
        let shifts: Vec<f64> = p.channel_sums(view)?.iter().map(|sum| shift * sum).collect();
        unless_skipped(shifts.iter().all(|s| (*s as f32).is_finite()), "the shifted biases are not finite")?;
        p.edit(view, &mut patch, None, Some(&shifts))?;
        patch.set_input(p.id, 0, Some(x));
    }
    Ok(patch)
}

/// Whether a product reads nothing but the value, every element of a window.
fn reads_no_padding(view: &View, p: &Product) -> bool {
    let mut attrs = view.node(p.id).op.attrs();
    match p.kind {
        Kind::Conv => {
            let padded = attrs.ints("pads").ok().flatten().is_some_and(|pads| pads.iter().any(|&p| p != 0));
            !padded && matches!(view.text(p.id, "auto_pad").as_deref(), None | Some("NOTSET" | "VALID"))
        }
        Kind::Gemm => view.float(p.id, "alpha", 1.0) == 1.0,
        // The results at the borders of a transposed convolution have fewer terms.
        Kind::ConvTranspose | Kind::MatMul => false,
    }
}
