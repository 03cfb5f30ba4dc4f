//! The pass [`RmsNorm`].

use std::sync::LazyLock;

use narrowbit_ir::{AttrMap, NodeId, Patch, ValueId};

use super::layer_norm::last_axes;
use crate::View;
use crate::pass::{Found, OrNo, pass, when};
use crate::pattern::{Expr, op, over_sqrt, scalar, square, var};

pass! {
    /// **What it does:** writes `x / √(mean(x²) + ε) · scale` as one RMSNormalization.
    ///
    /// **When it applies:** to means over the last axes, kept, with a constant scale of the normalised shape; where
    /// nobody else reads the inner values; only where `max_opset` allows opset 23. ([`find`] recognises it in any model.)
    ///
    /// **Numerical effect:** none but rounding.
    ///
    /// **Example:** `p = Pow(x, 2)`, `v = ReduceMean(p)`, `e = Add(v, 1e-6)`, `s = Sqrt(e)`, `d = Div(x, s)`,
    /// `y = Mul(d, w)` → `y = RMSNormalization(x, w)`.
    RmsNorm = "rms-norm", Fuse @ 23, rule
}

static NORMALIZED: LazyLock<Expr> = LazyLock::new(|| {
    let square = square(var("x"));
    over_sqrt(var("x"), op("ReduceMean", [square]).label("mean") + scalar("epsilon"))
});

/// The parts of a normalisation by the root mean square that is written in primitive operators.
#[derive(Debug, Clone)]
pub struct RmsNormParts {
    /// What is normalised.
    pub x: ValueId,
    /// The scale.
    pub scale: ValueId,
    /// The first normalised axis.
    pub axis: usize,
    /// Added to the mean square.
    pub epsilon: f32,
    /// The nodes of the match, the last one first.
    pub nodes: Vec<NodeId>,
}

/// Recognises the normalisation whose last node, a Mul by a constant scale, is `id`.
///
/// # Errors
/// [`crate::Miss`] where there is none.
pub fn find(view: &View, id: NodeId) -> Found<RmsNormParts> {
    view.expect(id, &["Mul"])?;
    let at = (0..2).find(|&i| view.graph.const_input(id, i).is_some()).or_no()?;
    let (scale, normalized) = (view.input(id, at)?, view.input(id, 1 - at)?);
    let found = NORMALIZED.find(view, view.maker(normalized)?)?;
    when(view.is_single_use(normalized))?;
    let x = found.value("x")?;
    let rank = view.rank(x).or_no()?;
    let axis = last_axes(view, found.node("mean")?, rank)?;
    when(view.graph.constant(scale).or_no()?.shape() == view.concrete_from(x, axis).or_no()?)?;
    let epsilon = view.scalar(found.value("epsilon")?).or_no()? as f32;
    let nodes = [&[id], found.nodes()].concat();
    Ok(RmsNormParts { x, scale, axis, epsilon, nodes })
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    let parts = find(view, id)?;
    let rank = view.rank(parts.x).or_no()?;
    let attrs = AttrMap::new().with("axis", parts.axis as i64 - rank as i64).with("epsilon", parts.epsilon);
    let mut patch = view.patch();
    let op = view.make("RMSNormalization", attrs)?;
    let y = patch.node(&view.node(id).name, op, &[Some(parts.x), Some(parts.scale)]);
    patch.replace(view.output(id)?, y);
    Ok(patch)
}
