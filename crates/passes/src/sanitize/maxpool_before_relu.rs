//! The pass [`MaxpoolBeforeRelu`].

use narrowbit_ir::{AttrMap, NodeId, Patch};

use crate::View;
use crate::pass::{Found, pass, unless_skipped, when};

pass! {
    /// **What it does:** swaps Relu and the MaxPool behind it, so that Relu works on fewer elements.
    ///
    /// **When it applies:** where only the MaxPool reads the Relu, and Relu does not stand behind a product or an
    /// addition: there it costs nothing, because runtimes compute both in one go.
    ///
    /// **Numerical effect:** none: both keep the order of numbers.
    ///
    /// **Example:** `a = Relu(x)`, `y = MaxPool(a)` → `a = MaxPool(x)`, `y = Relu(a)`.
    MaxpoolBeforeRelu = "maxpool-before-relu", Sanitize, rule
}

const FUSED: &[&str] = &["Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "BatchNormalization"];

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["MaxPool"])?;
    when(view.node(id).outputs.iter().skip(1).all(Option::is_none))?;
    let a = view.input(id, 0)?;
    let relu = view.made_by(a, &["Relu"])?;
    when(view.is_single_use(a))?;
    let x = view.input(relu, 0)?;
    unless_skipped(view.made_by(x, FUSED).is_err(), "the Relu before it is part of a product or addition")?;
    let y = view.output(id)?;
    let mut patch = view.patch();
    let pooled = patch.node(&view.node(id).name, view.node(id).op.clone(), &[Some(x)]);
    let out = patch.node(&view.node(relu).name, view.make("Relu", AttrMap::new())?, &[Some(pooled)]);
    patch.replace(y, out);
    Ok(patch)
}
