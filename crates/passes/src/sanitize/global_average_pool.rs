//! The pass [`GlobalAveragePool`].

use narrowbit_ir::{AttrMap, NodeId, Patch};

use crate::View;
use crate::pass::{Found, OrNo, pass, when};

pass! {
    /// **What it does:** writes the mean over all spatial axes as GlobalAveragePool.
    ///
    /// **When it applies:** to ReduceMean over the axes from 2 on of a tensor of 4 or 5 axes (Flatten follows where
    /// the axes are dropped), and to AveragePool whose window is the whole plane.
    ///
    /// **Numerical effect:** none but the order of additions.
    ///
    /// **Example:** `y = ReduceMean(x) {axes=[2, 3], keepdims=0}` → `p = GlobalAveragePool(x)`, `y = Flatten(p)`.
    GlobalAveragePool = "reducemean-to-globalaveragepool", Sanitize, rule
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    let x = view.input(id, 0)?;
    let rank = view.rank(x).or_no()?;
    when(matches!(rank, 4 | 5) && view.dtype(x).or_no()?.is_float())?;
    let pool = view.make("GlobalAveragePool", AttrMap::new())?;
    let mut patch = view.patch();
    if view.is(id, "AveragePool") {
        whole_plane(view, id, rank)?;
        patch.set_op(id, pool);
        return Ok(patch);
    }
    view.expect(id, &["ReduceMean"])?;
    let mut axes = view.axes(id, 1, rank)?.or_no()?;
    axes.sort_unstable();
    when(axes.iter().copied().eq(2..rank))?;
    let y = view.output(id)?;
    let pooled = patch.node(&view.node(id).name, pool, &[Some(x)]);
    if view.int(id, "keepdims", 1) != 0 {
        patch.replace(y, pooled);
    } else {
        let flat = patch.node(&view.name_for(y, "flatten"), view.make("Flatten", AttrMap::new())?, &[Some(pooled)]);
        patch.replace(y, flat);
    }
    Ok(patch)
}

fn whole_plane(view: &View, id: NodeId, rank: usize) -> Found<()> {
    let shape = view.concrete_from(view.input(id, 0)?, 2).or_no()?;
    let attrs = view.node(id).op.attrs();
    let kernel = attrs.clone().ints("kernel_shape")?.or_no()?;
    when(kernel.len() == rank - 2 && kernel.iter().zip(&shape).all(|(&k, &s)| k == s as i64))?;
    let all = |name: &str, neutral: i64| -> Found<bool> {
        Ok(attrs.clone().ints(name)?.is_none_or(|v| v.iter().all(|&p| p == neutral)))
    };
    when(all("pads", 0)? && all("dilations", 1)?)?;
    // With the SAME paddings a window that covers the plane may still be padded by a stride.
    when(matches!(view.text(id, "auto_pad").as_deref(), None | Some("NOTSET" | "VALID")))
}
