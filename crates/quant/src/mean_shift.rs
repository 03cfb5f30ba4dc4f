//! By how much rounding activations moves the means of what products read.
//!
//! Rounding has no mean where values spread over many steps. Behind HardSwish, SiLU or GELU most of them lie within one step
//! around zero, whose width a few great values decide, and a constant that is added to codes is off by a part of a step
//! everywhere. Such errors have one sign in a whole channel and add up over the inputs of a product; its bias can take them up.
//!
//! Measured on a few samples: the float model gets a second copy of what stands between its products, with the plan's roundings
//! in it. The copy starts anew from the float sums of each product, so that all products are measured in one run, each for
//! itself, and what has been corrected before is not corrected again. Convolutions alone are: a mean over pixels takes a few
//! samples, and MiniLM loses 0.002 of its correlation where its products are corrected by five.
//!
//! Source: Nagel et al. 2019 (arXiv 1906.04721), section 4.2, with the means of both the weights' and the activations' errors:
//! `E[W̃x̃] − E[Wx] = W̃ · (E[x̃] − E[x]) + (W̃ − W) · E[x]`; [`crate::plan`] has the second part.

use std::collections::BTreeMap;
use std::sync::Arc;

use narrowbit_ir::infer::{self, Facts};
use narrowbit_ir::{AttrMap, Graph, Node, NodeId, Op, OpError, QuantRole, ValueId};
use narrowbit_kernels::Exec;
use narrowbit_ops::Registry;
use narrowbit_tensor::{DType, Tensor};

use crate::calibrate::{ByChannel, CalibrateError, Calibrator, ChannelAxis};
use crate::observe::Stats;
use crate::options::QuantOptions;
use crate::plan::{ActivationParams, Layout, QuantPlan, correction};
use crate::qdq::QdqError;
use crate::quantize::QuantizeError;
use crate::ranges::Ranges;

/// How far rounding moves the mean of each channel of a product's input, in the input's unit, by the product and that input.
pub type MeanShifts = BTreeMap<NodeId, Vec<f64>>;

/// What is not computed a second time: the copy goes on from the float results.
const COSTLY: &[&str] = &["LSTM", "GRU", "RNN", "If", "Loop", "Scan", "NonMaxSuppression"];

/// The products that are measured, with what they read.
fn wanted(graph: &Graph, layout: &Layout) -> BTreeMap<NodeId, (ValueId, ByChannel)> {
    let mut wanted = correction::products(graph, layout);
    // A mean over pixels is one of thousands of values on a few samples already, that over tokens or vectors is not.
    wanted.retain(|_, (_, by)| by.axis == ChannelAxis::Second);
    wanted
}

/// Whether samples would tell something of a layout that these settings let biases take up.
pub(crate) fn applies(graph: &Graph, layout: &Layout, options: &QuantOptions) -> bool {
    let own = options.overrides.iter().filter_map(|o| o.activations);
    let has_steps = own.chain([options.activations]).any(|s| !s.format.is_float());
    options.correct_activations && has_steps && !wanted(graph, layout).is_empty()
}

/// Runs the float model on samples (`inputs` of each run) beside the plan's roundings. Products whose input is not rounded, or
/// has channels of which nothing is known, are left out. `mask` is the input whose zeros mark padding.
///
/// # Errors
/// When the model can't be run.
pub(crate) fn measure(
    graph: &Graph,
    plan: &QuantPlan,
    opset: i64,
    (inputs, mask): (&[Vec<Tensor>], Option<usize>),
    exec: &Exec,
) -> Result<MeanShifts, QuantizeError> {
    let wanted = wanted(graph, &plan.layout);
    if wanted.is_empty() || inputs.is_empty() {
        return Ok(MeanShifts::new());
    }
    let facts = infer::infer(graph, &Default::default(), infer::Options { max_folded: 1024, strict: true })?;
    let beside = Beside { graph, facts: &facts, plan, opset, made: graph.clone(), copies: BTreeMap::new() };
    let (made, pairs) = beside.build(&wanted)?;
    let observed: Vec<ValueId> = pairs.values().flat_map(|p| [p.float, p.rounded]).collect();
    if observed.is_empty() {
        return Ok(MeanShifts::new());
    }
    let channels = pairs.values().flat_map(|p| [(p.float, p.channels), (p.rounded, p.channels)]).collect();
    // Behind the last convolution nothing is wanted: of a vision transformer, that is all but its patches.
    let made = made.making(&observed.iter().copied().collect());
    let calibrator = Calibrator::with_channels(&made, &observed, &channels, false, exec.threads(), Ranges::default())?;
    let mut calibrator = match mask {
        Some(mask) => calibrator.with_mask(mask),
        None => calibrator,
    };
    calibrator.add(inputs.iter().map(|i| Ok::<_, CalibrateError>((i.clone(), 1))), |_, _| {})?;
    let ranges = calibrator.into_ranges();
    let record = |v: ValueId| ranges.tensors.get(&made.value(v).name);
    let of = |(id, p): (NodeId, Pair)| Some((id, shift(record(p.float)?, record(p.rounded)?, p.step)?));
    Ok(pairs.into_iter().filter_map(of).collect())
}

/// The shift of each channel, less what chance explains: the mean of n roundings has a variance of step²/12n, which is taken
/// off the square of what was found.
fn shift(float: &Stats, rounded: &Stats, step: f64) -> Option<Vec<f64>> {
    let (float, rounded) = (float.means.as_ref()?, rounded.means.as_ref()?);
    let (from, to) = (float.means(), rounded.means());
    let chance = step * step / 12.0 / float.count().max(1) as f64;
    let sure = |d: f64| d * (1.0 - chance / (d * d).max(f64::MIN_POSITIVE)).max(0.0);
    (from.len() == to.len() && !from.is_empty()).then(|| from.iter().zip(&to).map(|(a, b)| sure(b - a)).collect())
}

/// What a product reads in the float model, and in the copy with roundings.
#[derive(Clone, Copy)]
struct Pair {
    float: ValueId,
    rounded: ValueId,
    channels: ByChannel,
    /// The width of the last rounding's steps, the greatest of all channels'.
    step: f64,
}

/// The float graph while it gets the copy beside it.
struct Beside<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    plan: &'a QuantPlan,
    opset: i64,
    made: Graph,
    /// What stands in the copy for a value, before it is rounded, and rounded.
    copies: BTreeMap<(ValueId, bool), ValueId>,
}

impl Beside<'_> {
    fn build(
        mut self,
        wanted: &BTreeMap<NodeId, (ValueId, ByChannel)>,
    ) -> Result<(Graph, BTreeMap<NodeId, Pair>), QdqError> {
        let mut pairs = BTreeMap::new();
        for (id, node) in self.graph.nodes() {
            if let Some(&(float, channels)) = wanted.get(&id) {
                let rounded = self.read(float, id)?;
                let params = self.plan.activations.get(&float);
                if let Some(params) = params.filter(|_| rounded != float) {
                    let step = f64::from(params.point.scale);
                    pairs.insert(id, Pair { float, rounded, channels, step });
                }
            }
            if self.is_copied(node) {
                self.copy(id, node)?;
            }
        }
        Ok((self.made, pairs))
    }

    /// Products hand on float sums; shapes and the like do not depend on roundings.
    fn is_copied(&self, node: &Node) -> bool {
        let floats = node.outputs.iter().flatten().any(|&v| self.facts.dtype(v) == Some(DType::F32));
        let product = matches!(node.op.quant(), QuantRole::Weighted { .. });
        floats && !product && !COSTLY.contains(&node.op.name())
    }

    fn copy(&mut self, id: NodeId, node: &Node) -> Result<(), QdqError> {
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for input in &node.inputs {
            inputs.push(input.map(|v| self.read(v, id)).transpose()?);
        }
        if inputs == node.inputs {
            return Ok(());
        }
        let names: Vec<Option<String>> =
            node.outputs.iter().map(|o| o.map(|v| format!("{}_rounded", self.graph.value(v).name))).collect();
        let names: Vec<Option<&str>> = names.iter().map(Option::as_deref).collect();
        let copy = self.made.add_node(&format!("{}_rounded", node.name), node.op.clone(), inputs, &names);
        let made = self.made.node(copy).outputs.clone();
        let pairs = node.outputs.iter().zip(made).filter_map(|(&of, v)| Some(((of?, false), v?)));
        self.copies.extend(pairs);
        Ok(())
    }

    /// What a node reads in the copy: rounded if integers read it or make it ([`crate::qdq::insert`]).
    fn read(&mut self, v: ValueId, reader: NodeId) -> Result<ValueId, QdqError> {
        let by_integers = self.graph.producer(v).is_some_and(|(n, _)| self.plan.layout.is_integer(n));
        let rounded = self.plan.layout.is_integer(reader) || by_integers;
        let source = self.copies.get(&(v, false)).copied().unwrap_or(v);
        // Codes of floats have no steps that are everywhere alike, and those of fewer bits saturate by a Clip.
        let plain = |p: &&ActivationParams| !p.scheme.format.is_float() && !p.scheme.needs_clip();
        let Some(params) = self.plan.activations.get(&v).filter(|p| rounded && plain(p)) else { return Ok(source) };
        if let Some(&done) = self.copies.get(&(v, true)) {
            return Ok(done);
        }
        let done = self.rounded(v, source, params)?;
        self.copies.insert((v, true), done);
        Ok(done)
    }

    fn rounded(&mut self, v: ValueId, source: ValueId, params: &ActivationParams) -> Result<ValueId, QdqError> {
        let name = self.graph.value(v).name.clone();
        let (scale, zero, axis) = self.plan.format(v, params)?;
        let scale = Some(self.made.add_const(&format!("{name}_scale"), scale));
        let zero = Some(self.made.add_const(&format!("{name}_zero_point"), zero));
        let mut convert = |op: &str, x: ValueId| -> Result<ValueId, OpError> {
            let op: Arc<dyn Op> =
                Registry::make(op, self.opset, AttrMap::new().with_opt("axis", axis.map(|a| a as i64)))?;
            let node = self.made.add_node("", op, vec![Some(x), scale, zero], &[Some(&format!("{name}_rounded"))]);
            Ok(self.made.node(node).output(0).unwrap_or(x))
        };
        let codes = convert("QuantizeLinear", source)?;
        Ok(convert("DequantizeLinear", codes)?)
    }
}
