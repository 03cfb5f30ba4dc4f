//! The pass [`PadIntoWindow`].

use narrowbit_ir::{AttrMap, NodeId, Patch, ValueId};
use narrowbit_tensor::shape;

use crate::View;
use crate::pass::{Found, OrNo, pass, unless_skipped, when};

pass! {
    /// **What it does:** moves a Pad into the `pads` of the Conv, AveragePool or MaxPool behind it.
    ///
    /// **When it applies:** to constant padding of spatial axes by amounts ≥ 0. Conv: padding with 0. AveragePool:
    /// padding with 0, where it counts the padding (or has none of its own, and then counts it). MaxPool: padding
    /// with −∞, or with 0 where the input has no negative numbers, by less than the window.
    ///
    /// **Numerical effect:** none.
    ///
    /// **Example:** `a = Pad(x, [0, 0, 1, 1, 0, 0, 1, 1])`, `y = Conv(a, w)` → `y = Conv(x, w) {pads=[1, 1, 1, 1]}`.
    PadIntoWindow = "pad-into-window", Sanitize, rule
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Conv", "AveragePool", "MaxPool"])?;
    let a = view.input(id, 0)?;
    let pad = view.made_by(a, &["Pad"])?;
    let x = view.input(pad, 0)?;
    let rank = view.rank(x).or_no()?;
    when(rank > 2 && matches!(view.text(pad, "mode").as_deref(), None | Some("constant")))?;
    let amounts = amounts(view, pad, rank)?;
    let spatial = |i: usize| i % rank >= 2;
    unless_skipped(
        amounts.iter().enumerate().all(|(i, &p)| p >= 0 && (p == 0 || spatial(i))),
        "it pads batch or channels, or crops",
    )?;
    let mut attrs = view.node(id).op.attrs();
    unless_skipped(
        matches!(view.text(id, "auto_pad").as_deref(), None | Some("NOTSET" | "VALID")),
        "the window computes its own padding (auto_pad)",
    )?;
    attrs.take("auto_pad");
    let own = attrs.clone().ints("pads")?.unwrap_or_else(|| vec![0; 2 * (rank - 2)]);
    when(own.len() == 2 * (rank - 2))?;
    let added: Vec<i64> = (0..2 * rank).filter(|&i| spatial(i)).map(|i| amounts[i]).collect();
    let value = match view.node(pad).input(2) {
        Some(v) => view.scalar(v).or_no()?,
        None => 0.0,
    };
    allow(view, id, &mut attrs, Padding { x, value, own: &own, added: &added })?;
    let pads: Vec<i64> = own.iter().zip(&added).map(|(a, b)| a.saturating_add(*b)).collect();
    attrs.set("pads", pads);
    let mut patch = view.patch();
    patch.set_op(id, view.make(view.node(id).op.name(), attrs)?);
    patch.set_input(id, 0, Some(x));
    Ok(patch)
}

struct Padding<'a> {
    x: ValueId,
    value: f64,
    own: &'a [i64],
    added: &'a [i64],
}

/// Whether the operator pads in the same way; sets what it takes.
fn allow(view: &View, id: NodeId, attrs: &mut AttrMap, p: Padding) -> Found<()> {
    let none_of_its_own = p.own.iter().all(|&p| p == 0);
    let ceil = view.int(id, "ceil_mode", 0) != 0;
    match view.node(id).op.name() {
        "Conv" => unless_skipped(p.value == 0.0, "it does not pad with 0"),
        "AveragePool" => {
            unless_skipped(p.value == 0.0 && !ceil, "it does not pad with 0, or the window has ceil_mode")?;
            let counts = view.int(id, "count_include_pad", 0) != 0;
            unless_skipped(counts || none_of_its_own, "the average does not count its own padding")?;
            within_window(attrs, p.own, p.added)?;
            attrs.set("count_include_pad", 1i64);
            Ok(())
        }
        _ => {
            unless_skipped(view.node(id).outputs.len() == 1 && !ceil, "the pool gives indices or has ceil_mode")?;
            within_window(attrs, p.own, p.added)?;
            let same = p.value == f64::NEG_INFINITY || p.value == 0.0 && none_of_its_own && is_positive(view, p.x);
            unless_skipped(same, "the maximum would not see the padding's value")
        }
    }
}

/// Pools refuse padding as wide as the window.
fn within_window(attrs: &AttrMap, own: &[i64], added: &[i64]) -> Found<()> {
    let kernel = attrs.clone().ints("kernel_shape")?.or_no()?;
    when(2 * kernel.len() == own.len())?;
    let fits = own.iter().zip(added).enumerate().all(|(i, (a, b))| a.saturating_add(*b) < kernel[i % kernel.len()]);
    unless_skipped(fits, "the padding is as wide as the window")
}

fn is_positive(view: &View, x: ValueId) -> bool {
    view.made_by(x, &["Relu", "Sigmoid", "Abs", "Exp"]).is_ok()
        || view.made_by(x, &["Clip"]).is_ok_and(|c| view.node(c).input(1).and_then(|v| view.scalar(v)) >= Some(0.0))
}

/// Begins and ends for all axes, as Pad of `rank` axes takes them.
fn amounts(view: &View, pad: NodeId, rank: usize) -> Found<Vec<i64>> {
    let given = view.ints(view.input(pad, 1)?).or_no()?;
    let Some(v) = view.node(pad).input(3) else {
        when(given.len() == 2 * rank)?;
        return Ok(given);
    };
    let axes = view.ints(v).or_no()?;
    when(given.len() == 2 * axes.len())?;
    let mut all = vec![0; 2 * rank];
    for (i, &a) in axes.iter().enumerate() {
        let a = shape::axis(a, rank).or_no()?;
        (all[a], all[rank + a]) = (given[i], given[i + axes.len()]);
    }
    Ok(all)
}
