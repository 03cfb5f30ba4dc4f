//! The pass [`ScalarIntoWeights`].

use std::ops::Range;

use narrowbit_ir::{Dim, NodeId, Patch, ValueId};
use narrowbit_tensor::{Tensor, shape};

use super::merge_transposes;
use super::weights::{Product, per_channel};
use crate::View;
use crate::pass::{Found, OrNo, pass, unless_skipped, when};

pass! {
    /// **What it does:** moves a constant factor (Mul, Div) behind Conv, ConvTranspose, Gemm or MatMul into the
    /// weight and bias: one factor per channel or one for all; the latter also from behind Reshape and Transpose,
    /// as the 1/√d of attention stands behind the projection of the queries, and from behind the Split or Gather
    /// that takes the queries out of one projection for queries, keys and values.
    ///
    /// **When it applies:** where weight and bias are constants and each value on the way has one reader; a part of
    /// the channels must be taken by one node only.
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
    let factors: Factors =
        if c.len() == 1 { Factors::All(c.to_f64s()?.first().copied().or_no()?) } else { Factors::Channels(c) };
    let mut patch = absorbed(view, x, factors, div)?;
    when(view.graph.can_replace(view.output(id)?, x))?;
    patch.replace(view.output(id)?, x);
    Ok(patch)
}

/// What a value is multiplied or divided by.
pub(crate) enum Factors<'a> {
    /// The same for all channels.
    All(f64),
    /// A constant that has one for each channel.
    Channels(&'a Tensor),
}

/// The edit that multiplies (or divides) a value by moving the factors into the product that makes it, also from behind what
/// only moves elements.
pub(crate) fn absorbed(view: &View, x: ValueId, factors: Factors<'_>, div: bool) -> Found<Patch> {
    let (source, part) = match factors {
        Factors::All(_) => through_moves(view, x)?,
        Factors::Channels(_) => (x, None),
    };
    let product = Product::of(view, source)?;
    let rank = view.rank(source).or_no()?;
    let factors = match (factors, part) {
        (Factors::All(factor), None) => vec![factor; product.channels],
        (Factors::All(factor), Some(part)) => {
            when(product.channel_axis(rank) == rank.checked_sub(1))?;
            (0..product.channels).map(|c| if part.holds(c) { factor } else { 1.0 }).collect()
        }
        (Factors::Channels(c), _) => per_channel(c, rank, product.channel_axis(rank).or_no()?, product.channels)?,
    };
    let factors: Vec<f64> = factors.into_iter().map(|f| if div { 1.0 / f } else { f }).collect();
    unless_skipped(factors.iter().all(|f| f.is_finite()), "the factor is not finite")?;
    product.absorb(view, Some(&factors), None, product.output)
}

/// Some of the channels: those whose index along one of the axes that they are divided into lies in a range.
struct Part {
    range: Range<usize>,
    /// The extent of that axis, and the product of those after it.
    extent: usize,
    inner: usize,
}

impl Part {
    fn holds(&self, channel: usize) -> bool {
        self.range.contains(&(channel / self.inner % self.extent))
    }
}

/// What stands before the nodes that only move elements, and which of its channels come through.
fn through_moves(view: &View, mut value: ValueId) -> Found<(ValueId, Option<Part>)> {
    while let Ok(id) = view.made_by(value, MOVES) {
        when(view.is_single_use(value))?;
        value = view.input(id, 0)?;
    }
    let Ok(id) = view.made_by(value, &["Split", "Gather"]) else { return Ok((value, None)) };
    when(view.is_single_use(value))?;
    let packed = view.input(id, 0)?;
    let rank = view.rank(packed).or_no()?;
    let mut axis = shape::axis(view.int(id, "axis", 0), rank).or_no()?;
    let range = if view.is(id, "Split") { piece(view, id, value, axis)? } else { row(view, id, packed)? };
    value = packed;
    // Up to the Reshape that divides the channels, following the axis.
    loop {
        let by = view.made_by(value, &["Transpose", "Reshape"])?;
        // The parts have been told apart above.
        when(value == packed || view.is_single_use(value))?;
        if view.is(by, "Reshape") {
            return Ok((view.input(by, 0)?, Some(channels(view, by, axis, range)?)));
        }
        axis = *merge_transposes::perm(view, by)?.get(axis).or_no()?;
        value = view.input(by, 0)?;
    }
}

/// The range of an axis that a Split hands on as `value`; nobody but the Split may read its input.
fn piece(view: &View, split: NodeId, value: ValueId, axis: usize) -> Found<Range<usize>> {
    when(view.is_single_use(view.input(split, 0)?))?;
    let mut from = 0;
    for out in &view.node(split).outputs {
        let out = out.or_no()?;
        let n = view.shape(out).and_then(|s| s.get(axis)?.as_usize()).or_no()?;
        if out == value {
            return Ok(from..from + n);
        }
        from += n;
    }
    Err(crate::Miss::No)
}

/// The place that a Gather of one index reads, where all readers of `packed` are such and none reads the same.
fn row(view: &View, gather: NodeId, packed: ValueId) -> Found<Range<usize>> {
    let index = |id: NodeId| -> Found<usize> {
        view.expect(id, &["Gather"])?;
        when(view.input(id, 0)? == packed && view.int(id, "axis", 0) == view.int(gather, "axis", 0))?;
        usize::try_from(view.scalar(view.input(id, 1)?).or_no()? as i64).ok().or_no()
    };
    let own = index(gather)?;
    when(!view.graph.is_output(packed))?;
    for reader in view.graph.uses(packed).iter().filter(|u| u.node != gather) {
        when(index(reader.node)? != own)?;
    }
    Ok(own..own + 1)
}

/// The channels that come to lie in a range of an axis when a Reshape divides the last axis into several.
fn channels(view: &View, reshape: NodeId, axis: usize, range: Range<usize>) -> Found<Part> {
    let channels = view.shape(view.input(reshape, 0)?).and_then(|s| s.last()?.as_usize()).or_no()?;
    let y = view.shape(view.output(reshape)?).or_no()?;
    let (mut first, mut product) = (y.len(), 1usize);
    while product < channels && first > 0 {
        first -= 1;
        product = product.checked_mul(y[first].as_usize().or_no()?).or_no()?;
    }
    when(product == channels && axis >= first)?;
    let inner = y[axis + 1..].iter().map(Dim::as_usize).product::<Option<usize>>().or_no()?;
    let extent = y[axis].as_usize().or_no()?;
    when(inner > 0 && range.end <= extent)?;
    Ok(Part { range, extent, inner })
}
