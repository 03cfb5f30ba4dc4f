//! Functions of several nodes that fixed point computes as a whole: [`Shiftmax`] and [`LayerMad`].
//!
//! Source: QuantizeML 0.8.1, `layers/attention.py` (the softmax reads the sums of the scores, which nothing rounds, and the
//! product with the values reads its powers of two) and `layers/normalization.py` (`QuantizedLayerNormalization`, which asks
//! for rounded data and rounds its result).

use std::collections::BTreeSet;

use narrowbit_ir::{Graph, NodeId, ValueId};
use narrowbit_ops::functions::{LayerMad, Shiftmax};
use narrowbit_tensor::Tensor;

use super::layout::Planner;
use super::{Kind, Layout, QuantPlan, Reason, blocks, weights};
use crate::observe::Range;
use crate::options::QuantOptions;
use crate::scheme::quantizeml;

/// Codes of γ.
const GAMMA: (i32, i32) = (-128, 127);
/// Bits that products leave to the mantissa of the scale behind them (`scale_bits`).
const SCALE_BITS: i32 = 8;

/// The functions of a graph.
#[derive(Debug, Clone, Default)]
pub struct Functions {
    /// Softmaxes of powers of two.
    pub shiftmax: Vec<Shiftmax>,
    /// Normalizations by the mean magnitude.
    pub norms: Vec<LayerMad>,
}

/// The integers of a normalization by the mean magnitude: `y = (x · ⌊γ · 2ᵏ / Σ|x|⌋ + β) · scale · 2⁻ᵏ`, the quotient cut off
/// towards zero.
#[derive(Debug, Clone, PartialEq)]
pub struct NormParams {
    /// `γ · C` over its scale.
    pub gamma: Vec<i8>,
    /// What codes of γ are multiplied by for the quotient to be whole: `2ᵏ` steps of the data.
    pub dividend: f32,
    /// A step of the data: a power of two.
    pub step: f32,
    /// What a product of data and quotient is multiplied by: the scale of γ in 8 bits, `· 2⁻ᵏ` in steps of the data.
    pub unit: f32,
    /// In units of the result, `unit · step`.
    pub beta: Vec<i32>,
}

impl Functions {
    /// All functions of a graph.
    pub(super) fn of(graph: &Graph) -> Functions {
        Functions {
            shiftmax: graph.nodes().filter_map(|(id, _)| Shiftmax::find(graph, id)).collect(),
            norms: graph.nodes().filter_map(|(id, _)| LayerMad::find(graph, id)).collect(),
        }
    }

    /// What each reads and makes, and its nodes.
    fn all(&self) -> impl Iterator<Item = (ValueId, ValueId, &[NodeId])> {
        let shiftmax = self.shiftmax.iter().map(|s| (s.x, s.y, &s.nodes[..]));
        shiftmax.chain(self.norms.iter().map(|n| (n.x, n.y, &n.nodes[..])))
    }

    /// Whether a node reads a value as the data of a function.
    pub fn reads(&self, node: NodeId, v: ValueId) -> bool {
        self.all().any(|(x, _, nodes)| x == v && nodes.contains(&node))
    }

    fn retain(&mut self, keep: impl Fn(&[NodeId]) -> bool) {
        self.shiftmax.retain(|s| keep(&s.nodes));
        self.norms.retain(|n| keep(&n.nodes));
    }
}

impl Planner<'_> {
    /// Takes the function that begins with a node, if integers reach it; gives what it makes.
    pub(super) fn function(&mut self, first: NodeId, integer: &BTreeSet<ValueId>) -> Option<ValueId> {
        let begins = |nodes: &[NodeId]| nodes.first() == Some(&first);
        let (x, y, nodes) = self.functions.all().find(|(_, _, nodes)| begins(nodes))?;
        let nodes = nodes.to_vec();
        let allowed = nodes.iter().all(|&n| self.check_options(self.graph.node(n)).is_ok());
        if !integer.contains(&x) || !allowed {
            return None;
        }
        self.layout.kinds.extend(nodes.iter().map(|&n| (n, Kind::Fused)));
        self.layout.kinds.extend(nodes.last().map(|&n| (n, Kind::Function)));
        let (found, taken) = (&self.functions, &mut self.layout.functions);
        taken.shiftmax.extend(found.shiftmax.iter().filter(|s| begins(&s.nodes)).cloned());
        taken.norms.extend(found.norms.iter().filter(|n| begins(&n.nodes)).cloned());
        Some(y)
    }

    /// Makes the nodes of a function float whose last node is.
    pub(super) fn dissolve(&mut self, last: NodeId) {
        let ends = |nodes: &[NodeId]| nodes.last() == Some(&last);
        let inner: Vec<NodeId> = self
            .layout
            .functions
            .all()
            .filter(|f| ends(f.2))
            .flat_map(|f| f.2.to_vec())
            .filter(|&n| n != last)
            .collect();
        for n in inner {
            self.layout.kinds.remove(&n);
            self.layout.reasons.insert(n, Reason::FloatConsumer);
        }
        self.layout.functions.retain(|nodes| !ends(nodes));
    }

    /// Data of normalizations are rounded; what a softmax of powers of two makes has its step already.
    pub(super) fn function_ends(&mut self) {
        for n in &self.layout.functions.norms {
            self.points.extend(blocks::sources(self.graph, &self.layout.kinds, n.x));
        }
        for s in &self.layout.functions.shiftmax {
            self.points.remove(&s.y);
        }
    }
}

impl Layout {
    /// Forgets the functions that are float after all.
    pub(super) fn forget_functions(&mut self) {
        let kinds = &self.kinds;
        self.functions.retain(|nodes| nodes.last().is_some_and(|n| kinds.get(n) == Some(&Kind::Function)));
    }
}

/// A constant, also one that an Expand repeats: a class token for each sample.
pub(super) fn constant(graph: &Graph, v: ValueId) -> Option<&Tensor> {
    let repeated = || graph.producer(v).filter(|p| graph.node(p.0).op.name() == "Expand");
    graph.constant(v).or_else(|| graph.const_input(repeated()?.0, 0))
}

/// Chooses the numbers of the normalizations.
pub(super) fn plan(graph: &Graph, options: &QuantOptions, plan: &mut QuantPlan) {
    let made = |f: &LayerMad| {
        let step = weights::input_scales(graph, plan, f.div, f.x).into_iter().reduce(f32::min)?;
        let row = |node, i| graph.const_input(node, i).and_then(|t| t.to_f32s().ok().map(|v| v.into_owned()));
        let (gamma, beta) = (row(f.div, 0)?, row(f.add.0, f.add.1)?);
        Some((f.clone(), numbers(&gamma, &beta, step, options.buffer_bits())))
    };
    plan.norms = plan.layout.functions.norms.iter().filter_map(made).collect();
}

/// The numbers for γ · C and β, data of this step, and a register of so many bits.
fn numbers(gamma: &[f32], beta: &[f32], step: f32, buffer: u8) -> NormParams {
    let peak = f64::from(gamma.iter().fold(0f32, |m, g| m.max(g.abs())));
    let scale = quantizeml::weight_scale(Range { min: -peak, max: peak }, GAMMA);
    let code = |g: &f32| (g / scale).round_ties_even().clamp(GAMMA.0 as f32, GAMMA.1 as f32) as i8;
    // As many bits as the register has beside the sign, the scale and γ.
    let room = i32::from(buffer) - 1 - SCALE_BITS - quantizeml::value_bits(GAMMA);
    let room = room.max(0);
    let whole = 2f32.powi(room);
    NormParams {
        gamma: gamma.iter().map(code).collect(),
        dividend: whole * step,
        step,
        unit: quantizeml::quantized_scale(scale) / (whole * step),
        beta: quantizeml::bias_codes(beta, &[scale], &[room]),
    }
}
