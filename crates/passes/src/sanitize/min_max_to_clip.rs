//! The pass [`MinMaxToClip`].

use narrowbit_ir::{AttrMap, NodeId, Patch, ValueId};
use narrowbit_tensor::{DType, Tensor};

use crate::View;
use crate::pass::{Found, OrNo, pass, when};

pass! {
    /// **What it does:** makes one Clip of two nodes in a row that limit values: Min and Max with a constant number,
    /// Relu, Clip.
    ///
    /// **When it applies:** where only the second node reads the first, at least one of them has an upper bound, and
    /// the bounds are in order.
    ///
    /// **Numerical effect:** none.
    ///
    /// **Example:** `a = Relu(x)`, `y = Min(a, 6)` → `y = Clip(x, 0, 6)`.
    MinMaxToClip = "min-max-to-clip", Sanitize, rule
}

/// What a limiting node reads, and its bounds.
#[derive(Debug, Clone, Copy)]
struct Limit {
    x: ValueId,
    low: f64,
    high: f64,
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    let second = limit(view, id)?;
    let first_id = view.maker(second.x)?;
    let first = limit(view, first_id)?;
    when(view.is_single_use(second.x))?;
    // The second node's bounds win.
    let (low, high) = (first.low.clamp(second.low, second.high), first.high.clamp(second.low, second.high));
    let dtype = view.dtype(first.x).or_no()?;
    when(matches!(dtype, DType::F32 | DType::F16 | DType::F64) && (high < f64::INFINITY && low > f64::NEG_INFINITY))?;
    let y = view.output(id)?;
    let mut patch = view.patch();
    let low = patch.constant(&view.name_for(y, "min"), Tensor::from_f64s(dtype, [], &[low])?);
    let high = patch.constant(&view.name_for(y, "max"), Tensor::from_f64s(dtype, [], &[high])?);
    let clip = view.make("Clip", AttrMap::new())?;
    let out = patch.node(&view.node(id).name, clip, &[Some(first.x), Some(low), Some(high)]);
    patch.replace(y, out);
    Ok(patch)
}

fn limit(view: &View, id: NodeId) -> Found<Limit> {
    view.expect(id, &["Relu", "Clip", "Min", "Max"])?;
    let node = view.node(id);
    let (mut x, mut low, mut high) = (view.input(id, 0)?, f64::NEG_INFINITY, f64::INFINITY);
    match node.op.name() {
        "Relu" => low = 0.0,
        "Clip" => {
            let bound = |i: usize, open: f64| node.input(i).map_or(Ok(open), |v| view.scalar(v).or_no());
            (low, high) = (bound(1, low)?, bound(2, high)?);
        }
        name => {
            when(node.inputs.len() == 2)?;
            let at = (0..2).find(|&i| node.input(i).is_some_and(|v| view.scalar(v).is_some())).or_no()?;
            x = view.input(id, 1 - at)?;
            let c = view.input(id, at)?;
            // A constant of more axes would widen the shape.
            when(view.rank(c).or_no()? <= view.rank(x).or_no()?)?;
            let v = view.scalar(c).or_no()?;
            if name == "Min" { high = v } else { low = v }
        }
    }
    when(low <= high)?;
    Ok(Limit { x, low, high })
}
