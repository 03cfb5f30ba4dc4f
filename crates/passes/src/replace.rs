//! Replacements that change the function of a model, for hardware that lacks the exact one. They run only where they are asked
//! for, and are no [passes](crate::passes()), which keep the function.
//!
//! QuantizeML computes no Softmax and no LayerNormalization on integers; it has [Shiftmax] and [LayerMad] instead. Its models are
//! built with them and trained; [`shiftmax`] and [`layer_mad`] put them into a trained model, as close to the functions that were
//! there as constants allow.

use std::f64::consts::{LOG2_E, PI};

use narrowbit_ir::{Model, NodeId, Patch, ValueId, infer};
use narrowbit_ops::functions::{LayerMad, Shiftmax};
use narrowbit_tensor::{Tensor, shape};

use crate::pass::{Found, OrNo, facts_of, unless_skipped, when};
use crate::sanitize::scalar_into_weights::{Factors, absorbed};
use crate::{Miss, PassError, SanitizeOptions, View};

/// What was replaced, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replaced {
    /// The number of functions that were replaced.
    pub count: usize,
    /// Nodes that were left alone, with the reason.
    pub skipped: Vec<(String, String)>,
}

/// Replaces the Softmax over the last axis of attention's scores by [Shiftmax]. That counts in powers of two: the factor
/// `log2 e` that turns them into powers of e, and the constant factors between the scores and the Softmax, go into the
/// projection of queries or keys. Where neither product has a constant weight, scores are multiplied by the power of two that is
/// nearest to these factors, as QuantizeML does (`2^−round(log2 √d)`, `layers/attention.py`), and the base stays 2.
///
/// # Errors
/// When a node contradicts its operator, or the edit does not fit the graph.
pub fn shiftmax(model: &mut Model) -> Result<Replaced, PassError> {
    each(model, "Softmax", soft)
}

/// Replaces LayerNormalization over the last axis, with constant scale and bias, by [LayerMad] with γ · √(2/π): of normally
/// distributed values the mean magnitude is √(2/π) of the standard deviation. The mean is taken for zero. QuantizeML leaves γ as it
/// is and trains ("a tuning step will be required", `layers/normalization.py`).
///
/// # Errors
/// As [`shiftmax`].
pub fn layer_mad(model: &mut Model) -> Result<Replaced, PassError> {
    each(model, "LayerNormalization", norm)
}

fn each(model: &mut Model, op: &str, rule: fn(&View, NodeId) -> Found<Patch>) -> Result<Replaced, PassError> {
    let options = SanitizeOptions::default();
    let mut replaced = Replaced::default();
    let ids: Vec<NodeId> = model.graph.order().to_vec();
    for id in ids {
        let Some(node) = model.graph.get_node(id).filter(|n| n.op.name() == op && n.op.domain().is_empty()) else {
            continue;
        };
        let name = node.name.clone();
        let facts = facts_of(&model.graph);
        let view = View { graph: &model.graph, facts: &facts, opset: model.opset(), options: &options };
        match rule(&view, id) {
            Ok(patch) => {
                model.graph.apply(patch).map_err(|error| PassError::Patch { pass: "replace", error })?;
                replaced.count += 1;
            }
            Err(Miss::Skip(why)) => replaced.skipped.push((name, why)),
            Err(Miss::No) => replaced.skipped.push((name, "its form is another one".into())),
        }
    }
    if replaced.count > 0 {
        infer::annotate(&mut model.graph)?;
    }
    Ok(replaced)
}

/// Whether a node works along the last axis.
fn is_last(view: &View, id: NodeId) -> Found<bool> {
    let rank = view.rank(view.input(id, 0)?).or_no()?;
    Ok(shape::axis(view.int(id, "axis", -1), rank) == rank.checked_sub(1))
}

fn soft(view: &View, id: NodeId) -> Found<Patch> {
    unless_skipped(is_last(view, id)?, "it is not over the last axis")?;
    let y = view.output(id)?;
    let (mut scores, mut factor) = (view.input(id, 0)?, 1.0);
    let product = loop {
        let Ok(maker) = view.maker(scores) else {
            return Err(Miss::Skip("it is not of attention's scores".into()));
        };
        if view.is(maker, "MatMul") {
            break maker;
        }
        let Some((x, by)) = scaled(view, maker) else {
            return Err(Miss::Skip(format!("its scores pass \"{}\" on the way", view.node(maker).name)));
        };
        (scores, factor) = (x, factor * by);
    };
    let both = (0..2).all(|i| view.graph.const_input(product, i).is_none());
    unless_skipped(both, "it is not of attention's scores")?;
    unless_skipped(factor.is_normal() && factor > 0.0, "its scores have a factor that is not above zero")?;
    unless_skipped(view.is_single_use(scores), format!("\"{}\" is read elsewhere", view.graph.value(scores).name))?;
    let folded =
        (0..2).find_map(|i| absorbed(view, view.input(product, i).ok()?, Factors::All(factor * LOG2_E), false).ok());
    let name = &view.node(id).name;
    let (mut patch, x) = match folded {
        Some(patch) => (patch, scores),
        None => nearest(view, name, scores, factor)?,
    };
    let made = Shiftmax::write(&mut patch, view.opset, name, x)?;
    patch.replace(y, made);
    Ok(patch)
}

/// What a Mul or Div multiplies by a constant number.
fn scaled(view: &View, id: NodeId) -> Option<(ValueId, f64)> {
    let (a, b) = (view.node(id).input(0)?, view.node(id).input(1)?);
    match view.node(id).op.name() {
        "Div" => view.scalar(b).map(|c| (a, 1.0 / c)),
        "Mul" => view.scalar(b).map(|c| (a, c)).or_else(|| view.scalar(a).map(|c| (b, c))),
        _ => None,
    }
}

/// The scores times the power of two nearest to a factor.
fn nearest(view: &View, name: &str, scores: ValueId, factor: f64) -> Found<(Patch, ValueId)> {
    let mut patch = view.patch();
    // In single precision, as the tool: √32 is halfway between two powers.
    let exponent = f64::from((factor as f32).log2().round_ties_even());
    if exponent == 0.0 {
        return Ok((patch, scores));
    }
    when(exponent.abs() <= 100.0)?;
    let c = patch.constant(&format!("{name}_scale"), Tensor::scalar(2f32.powi(exponent as i32)));
    let mul = view.make("Mul", Default::default())?;
    let x = patch.node(&format!("{name}_Scale"), mul, &[Some(scores), Some(c)]);
    Ok((patch, x))
}

fn norm(view: &View, id: NodeId) -> Found<Patch> {
    unless_skipped(is_last(view, id)?, "it is not over the last axis alone")?;
    let (x, y) = (view.input(id, 0)?, view.output(id)?);
    let unread = view.node(id).outputs.iter().skip(1).flatten().all(|&v| view.is_unread(v));
    unless_skipped(unread, "its mean or deviation is read")?;
    let constant = |v: ValueId| view.graph.constant(v).and_then(|t| t.to_f32s().ok().map(|v| v.into_owned()));
    let Some(gamma) = constant(view.input(id, 1)?) else {
        return Err(Miss::Skip("its scale is no constant".into()));
    };
    let beta = match view.node(id).input(2) {
        None => vec![0.0; gamma.len()],
        Some(b) => constant(b).ok_or_else(|| Miss::Skip("its bias is no constant".into()))?,
    };
    let gamma: Vec<f32> = gamma.iter().map(|&g| (f64::from(g) * (2.0 / PI).sqrt()) as f32).collect();
    let mut patch = view.patch();
    let made = LayerMad::write(&mut patch, view.opset, &view.node(id).name, x, &gamma, &beta)?;
    patch.replace(y, made);
    Ok(patch)
}
