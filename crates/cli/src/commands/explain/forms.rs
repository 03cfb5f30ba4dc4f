//! Tensors that are explained by more than a range: scales of run time, blocks, biases, scales by channel.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use narrowbit_data::{Fill, Split};
use narrowbit_ir::{Graph, Model, Node, NodeId, QuantRole, ValueId};
use narrowbit_quant::approach::{Approach, WeightOnlyOptions};
use narrowbit_quant::explain::{self, ByChannel, Explanation, RunTime};
use narrowbit_quant::options::{Matcher, QuantOptions};
use narrowbit_quant::plan::QuantPlan;
use narrowbit_quant::quantize;
use narrowbit_quant::ranges::Ranges;
use narrowbit_quant::scheme::{ActivationScheme, Formula};
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::Tensor;

use super::{Explain, Summary};
use crate::commands::calibrate::Job;
use crate::{data, interrupt};

impl Explain {
    /// The approach that decides what becomes of a tensor: that of the first product or table that reads it, or of what makes it.
    pub(super) fn approach(&self, graph: &Graph, v: ValueId, options: &QuantOptions) -> Result<Approach> {
        let matcher = Matcher::new(&options.overrides)?;
        let readers = graph.uses(v).iter().map(|u| u.node);
        let weighs = |id: &NodeId| {
            let node = graph.node(*id);
            matches!(node.op.quant(), QuantRole::Weighted { .. }) || node.op.name() == "Gather"
        };
        let deciding = readers.clone().find(weighs).or_else(|| readers.clone().next());
        let deciding = deciding.or_else(|| graph.producer(v).map(|p| p.0));
        Ok(deciding.map_or(options.approach, |id| options.approach_of(&matcher, graph.node(id))))
    }

    /// A weight by blocks, if it has a form by blocks.
    pub(super) fn blocks(&self, graph: &Graph, v: ValueId, w: &Tensor, options: &QuantOptions) -> Result<Summary> {
        let matcher = Matcher::new(&options.overrides)?;
        let reader = graph.uses(v).iter().find_map(|u| Some((u.node, by_column(graph.node(u.node), u.input)?)));
        let Some((id, by_column)) = reader.filter(|_| w.rank() == 2) else {
            bail!(
                "\"{}\" {:?} has no form by blocks: weights by blocks are matrices of MatMul and Gemm and tables of Gather",
                self.tensor,
                w.shape()
            )
        };
        let node = graph.node(id);
        let own: WeightOnlyOptions = matcher.of(node).find_map(|o| o.weight_only).unwrap_or(options.weight_only);
        own.check()?;
        let explanation = explain::blocks(&self.threads.exec()?, w, by_column, own)?;
        let role = format!("the constant of {} \"{}\", by blocks", node.op.name(), node.name);
        Ok(self.found("weight", role, w.len() as u64, explanation))
    }

    /// An activation whose range is found at run time.
    pub(super) fn at_run_time(&self, model: &Model, v: ValueId, options: &QuantOptions) -> Result<Summary> {
        let graph = &model.graph;
        let matcher = Matcher::new(&options.overrides)?;
        let products = graph.uses(v).iter().filter(|u| by_column(graph.node(u.node), 1).is_some() && u.input == 0);
        let reader = products.map(|u| u.node).find(|&n| graph.const_input(n, 1).is_some());
        let own = reader.and_then(|n| matcher.of(graph.node(n)).find_map(|o| o.dynamic)).unwrap_or(options.dynamic);
        let mut seen = RunTime::default();
        self.each_run(model, v, &mut |t| {
            let columns = t.shape().last().copied().unwrap_or(1);
            seen.add(&t.to_f32s()?, columns);
            Ok(())
        })?;
        let role = match reader {
            Some(n) => format!("read by {} \"{}\", dynamic", graph.node(n).op.name(), graph.node(n).name),
            None => "no dynamic product with a constant weight reads it".to_owned(),
        };
        let explanation = seen.explanation(own.granularity).context("the tensor is empty on these samples")?;
        Ok(self.found("activation", role, seen.count(), explanation))
    }

    /// A bias, whose scales are those of the product that the plan finds; `None` where a constant is none, or stays float.
    pub(super) fn bias(&self, model: &Model, v: ValueId, options: &QuantOptions) -> Result<Option<Summary>> {
        let graph = &model.graph;
        if !reads_as_bias(graph, v) {
            return Ok(None);
        }
        if !self.has_samples() && self.ranges.is_none() {
            bail!(
                "\"{}\" is a bias: its scale is that of the activation times that of the weight\nhelp: give samples with --data, or ranges with --ranges",
                self.tensor
            );
        }
        let plan = self.plan(model, options)?;
        let reader = graph.uses(v).iter().map(|u| (u.node, u.input)).find(|key| plan.biases.contains_key(key));
        let Some((id, input)) = reader else { return Ok(None) };
        let (params, b) = (&plan.biases[&(id, input)], graph.constant(v).context("a constant")?);
        let product = product_of(graph, id).unwrap_or(id);
        let QuantRole::Weighted { data, weight, .. } = graph.node(product).op.quant() else { return Ok(None) };
        let x = graph.node(product).input(data).context("an input")?;
        let inputs = match (plan.channel_scales.get(&x), plan.activations.get(&x)) {
            (Some(scales), _) => scales.clone(),
            (None, Some(a)) => vec![a.point.scale],
            (None, None) => Vec::new(),
        };
        let w = plan.weights.get(&(product, weight)).context("a weight")?;
        let scales: Vec<f32> = w.points.iter().map(|p| p.scale).collect();
        let explanation = explain::bias(b, params, (&inputs, &scales), w.scheme.formula)?;
        let node = graph.node(product);
        let role = format!("the bias of {} \"{}\"", node.op.name(), node.name);
        Ok(Some(self.found("bias", role, b.len() as u64, explanation)))
    }

    /// An activation that the plan gives a scale for each channel; `None` where it does not.
    pub(super) fn by_channel(&self, model: &Model, v: ValueId, options: &QuantOptions) -> Result<Option<Summary>> {
        let layout = quantize::layout(model, options)?;
        if !quantize::channels(&model.graph, &layout, options).contains_key(&v) || !self.has_samples() {
            return Ok(None);
        }
        let plan = self.plan(model, options)?;
        let (Some(scales), Some(params)) = (plan.channel_scales.get(&v), plan.activations.get(&v)) else {
            return Ok(None);
        };
        let mut seen = ByChannel::new(*params, scales.clone());
        self.each_run(model, v, &mut |t| {
            seen.add(&t.to_f32s()?, t.shape());
            Ok(())
        })?;
        let role = "quantized with these settings".to_owned();
        Ok(Some(self.found("activation", role, seen.count(), seen.explanation())))
    }

    /// How fixed-point hardware holds an activation: without a sign where samples have none, in the bits of its place.
    pub(super) fn fixed_scheme(
        &self,
        model: &Model,
        v: ValueId,
        options: &QuantOptions,
    ) -> Result<Option<ActivationScheme>> {
        if options.activations.formula != Formula::Quantizeml {
            return Ok(None);
        }
        Ok(self.plan(model, options)?.activations.get(&v).map(|a| a.scheme))
    }

    pub(super) fn has_samples(&self) -> bool {
        self.data.data.is_some() || self.data.random.is_some()
    }

    pub(super) fn found(&self, kind: &'static str, role: String, count: u64, explanation: Explanation) -> Summary {
        let (model, tensor) = (self.model.clone(), self.tensor.clone());
        Summary { model, tensor, kind, role, count, rounding: None, explanation }
    }

    /// The plan that `quantize` would make on the samples or ranges, before anything is corrected by samples.
    fn plan(&self, model: &Model, options: &QuantOptions) -> Result<QuantPlan> {
        let (graph, layout) = (&model.graph, quantize::layout(model, options)?);
        let ranges = match &self.ranges {
            Some(path) => Ranges::load(path)?,
            None => {
                let dataset = self.data.open(graph, Split::Calibration)?;
                let job = Job {
                    threads: self.threads.threads,
                    runs: self.data.calibration_runs(graph, &dataset, options)?,
                    histograms: quantize::needs_histograms(graph, &layout, options),
                    positions: options.position_bits(),
                    channels: quantize::channels(graph, &layout, options),
                    also: Vec::new(),
                    mask: self.mask.input(graph)?,
                    float: Default::default(),
                    skip: 0,
                    keep: false,
                };
                let done = job.run(model, &layout, &dataset, Ranges::default())?;
                if done.stopped {
                    bail!("stopped by Ctrl-C");
                }
                done.ranges
            }
        };
        ranges.check(graph)?;
        Ok(QuantPlan::new(graph, layout, &ranges.tensors, options, &self.threads.exec()?)?)
    }

    /// What a value holds in each run of the samples.
    fn each_run(&self, model: &Model, v: ValueId, look: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<()> {
        let graph = &model.graph;
        if !self.has_samples() {
            bail!(
                "what \"{}\" holds is looked at row by row or channel by channel, which ranges do not tell\nhelp: give samples with --data",
                self.tensor
            );
        }
        let dataset = self.data.open(graph, Split::Calibration)?;
        let runs = self.data.runs(graph, &dataset)?;
        let place = graph.inputs().iter().position(|&i| i == v);
        let session = match place {
            Some(_) => None,
            None => {
                let mut part = graph.making(&BTreeSet::from([v]));
                part.add_output(v);
                Some(Session::new(part, Options { threads: self.threads.threads, ..Options::default() })?)
            }
        };
        for batch in runs.batches(&dataset, 0, Fill::First) {
            if interrupt::requested() {
                bail!("stopped by Ctrl-C");
            }
            let inputs = data::tensors(batch?);
            match (&session, place) {
                (Some(session), _) => session.run(&inputs)?.first().map_or(Ok(()), &mut *look)?,
                (None, Some(i)) => look(&inputs[i])?,
                (None, None) => {}
            }
        }
        Ok(())
    }
}

/// Whether the weight of a product, or the table of a Gather, that a node has as this input, has the summed axis last.
fn by_column(node: &Node, input: usize) -> Option<bool> {
    match (node.op.name(), input) {
        ("MatMul", 1) => Some(false),
        ("Gemm", 1) => Some(node.op.attrs().int_or("transB", 0).is_ok_and(|t| t != 0)),
        ("Gather", 0) => Some(true),
        _ => None,
    }
}

/// Whether a product has a constant for its bias, or an Add behind a MatMul with a constant weight does.
fn reads_as_bias(graph: &Graph, v: ValueId) -> bool {
    graph.uses(v).iter().any(|u| match graph.node(u.node).op.quant() {
        QuantRole::Weighted { bias, .. } => bias == Some(u.input),
        _ => product_of(graph, u.node).is_some_and(|n| n != u.node) && graph.constant(v).is_some_and(|t| t.rank() == 1),
    })
}

/// The product that a node is, or that an Add stands behind.
fn product_of(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let weighted = |id: NodeId| matches!(graph.node(id).op.quant(), QuantRole::Weighted { .. });
    if weighted(id) {
        return Some(id);
    }
    let node = graph.node(id);
    let makers = node.inputs.iter().flatten().filter_map(|&v| graph.producer(v)).map(|p| p.0);
    makers.into_iter().find(|&n| node.op.name() == "Add" && graph.node(n).op.name() == "MatMul")
}
