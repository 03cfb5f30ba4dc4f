//! Mixtures: an approach for each node, by exceptions of the settings.
//!
//! Each approach selects its nodes in the float graph before anything is rewritten; [`Others`] in the
//! [`Layout`] holds what the approaches beside the static one have selected, so that report, calibration and rewriting
//! read one decision. The forms are written one after the other: static first, whose plan is keyed by values of
//! the float graph; then dynamic and weight-only products, which read what their inputs have become; half precision at
//! the end, with a Cast wherever it meets another form.

use std::collections::BTreeMap;

use narrowbit_ir::{Graph, Model, Node, NodeId};
use narrowbit_kernels::Exec;

use crate::approach::{Approach, ApproachError, NoForm};
use crate::gptq::{Report, Rounder};
use crate::options::{Matcher, Override, QuantOptions};
use crate::plan::{Layout, Reason};
use crate::quantize::{NodeFate, QuantizeError, facts, forget_types};
use crate::scheme::{ActivationScheme, Preset};
use crate::{dynamic, half, weight_only};

impl QuantOptions {
    /// The approach that an exception names for a node.
    pub fn own_approach(&self, matcher: &Matcher, node: &Node) -> Option<Approach> {
        matcher.of(node).find_map(|o| o.approach)
    }

    /// The approach of a node.
    pub fn approach_of(&self, matcher: &Matcher, node: &Node) -> Approach {
        self.own_approach(matcher, node).unwrap_or(self.approach)
    }

    /// Whether the settings let a node be quantized, as far as exceptions and operator types say.
    pub(crate) fn selects(&self, matcher: &Matcher, node: &Node) -> Result<(), Reason> {
        match matcher.of(node).find(|o| o.float.is_some() || o.approach.is_some()) {
            Some(o) if o.float == Some(true) => return Err(Reason::Excluded),
            Some(_) => return Ok(()),
            None => {}
        }
        let selected = self.op_types.is_empty() || self.op_types.iter().any(|t| t == node.op.name());
        if selected { Ok(()) } else { Err(Reason::TypeNotSelected) }
    }

    /// The approaches that nodes may have, each once; that of the whole job first.
    pub fn approaches(&self) -> Vec<Approach> {
        let mut all = vec![self.approach];
        for approach in self.overrides.iter().filter_map(|o| o.approach) {
            if !all.contains(&approach) {
                all.push(approach);
            }
        }
        all
    }

    /// Whether nodes may have an approach.
    pub fn uses(&self, approach: Approach) -> bool {
        self.approaches().contains(&approach)
    }

    /// Whether nodes may have different approaches.
    pub fn is_mixture(&self) -> bool {
        self.approaches().len() > 1
    }
}

/// What becomes of the nodes of a mixture that are not static.
#[derive(Debug, Clone, Default)]
pub struct Others {
    dynamic: Option<dynamic::Chosen>,
    blocks: Option<weight_only::Chosen>,
    half: Vec<half::Chosen>,
    /// What becomes of each node that is not static.
    fates: BTreeMap<NodeId, NodeFate>,
    /// What the user should know.
    warnings: Vec<String>,
}

/// Refuses exceptions that contradict themselves.
pub(crate) fn check_exceptions(options: &QuantOptions) -> Result<(), ApproachError> {
    for o in &options.overrides {
        let Some(approach) = o.approach else { continue };
        if o.float == Some(true) {
            return Err(ApproachError::FloatApproach(o.to_string(), approach));
        }
        if approach == Approach::Dynamic && o.activations.is_some_and(|a| a != ActivationScheme::default()) {
            return Err(ApproachError::DynamicActivations(o.to_string()));
        }
    }
    Ok(())
}

/// Refuses a mixture that the rest of the job does not go with.
fn check(options: &QuantOptions) -> Result<(), ApproachError> {
    let other = options.approaches().into_iter().find(|a| *a != Approach::Static);
    match (options.scheme, other) {
        (Some(Preset::Quantizeml), Some(other)) => return Err(ApproachError::MixedFixed("quantizeml", other)),
        (Some(Preset::VitisDpu), Some(other)) => return Err(ApproachError::MixedFixed("vitis-dpu", other)),
        _ => {}
    }
    if options.form != Default::default() {
        return Err(ApproachError::MixedForm);
    }
    if options.half.io && !options.approach.is_half() {
        return Err(ApproachError::MixedIo);
    }
    Ok(())
}

impl Others {
    /// Selects in a sanitized graph what is not static, beside a layout of what is.
    ///
    /// # Errors
    /// When settings contradict each other, or an exception names an approach that none of its nodes can have.
    pub(crate) fn choose(model: &Model, options: &QuantOptions, layout: &Layout) -> Result<Others, QuantizeError> {
        check(options)?;
        let mut others = Others::default();
        for approach in options.approaches() {
            match approach {
                Approach::Static => {}
                Approach::Dynamic => others.dynamic = Some(dynamic::choose(model, options)?),
                Approach::WeightOnly => others.blocks = Some(weight_only::choose(model, options)?),
                Approach::Float16 | Approach::Bfloat16 => {
                    // What static nodes fold or move has its form already.
                    let taken = |id: NodeId| layout.kinds.contains_key(&id);
                    others.half.push(half::choose(model, options, approach, taken)?);
                }
            }
        }
        let matcher = Matcher::new(&options.overrides)?;
        for (id, node) in model.graph.nodes() {
            let approach = options.approach_of(&matcher, node);
            if approach != Approach::Static && !layout.kinds.contains_key(&id) {
                others.fates.insert(id, others.fate(id, node, approach));
            }
        }
        others.warnings.extend(others.dynamic.iter().flat_map(|d| d.warnings.clone()));
        others.warnings.extend(others.blocks.iter().flat_map(|b| b.warnings.clone()));
        others.check_exceptions(&model.graph, &matcher, options, layout)?;
        Ok(others)
    }

    /// What becomes of a node that has an approach other than static.
    fn fate(&self, id: NodeId, node: &Node, approach: Approach) -> NodeFate {
        let of_half = || self.half.iter().find(|h| h.approach() == approach);
        let found = match approach {
            Approach::Dynamic => self.dynamic.as_ref().map(|d| d.fate(id, node)),
            Approach::WeightOnly => self.blocks.as_ref().map(|b| b.fate(id, node)),
            _ => of_half().map(|h| h.fate(id, node)),
        };
        NodeFate { approach: Some(approach), ..found.unwrap_or_else(|| NodeFate::new(node, None)) }
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        !self.fates.values().any(NodeFate::is_done)
    }

    /// What becomes of a node that is not static.
    pub fn fate_of(&self, id: NodeId) -> Option<&NodeFate> {
        self.fates.get(&id)
    }

    /// What the user should know; complete once the graph is rewritten.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Refuses an exception whose approach no node has that it is about, unless later ones take all of them.
    fn check_exceptions(
        &self,
        graph: &Graph,
        matcher: &Matcher,
        options: &QuantOptions,
        layout: &Layout,
    ) -> Result<(), ApproachError> {
        let decides = |o: &Override, node: &Node| {
            let named = matcher.of(node).find(|o| o.approach.is_some());
            named.is_some_and(|n| std::ptr::eq(n, o))
        };
        for o in options.overrides.iter().filter(|o| o.approach.is_some()) {
            let about: Vec<(NodeId, &Node)> = graph.nodes().filter(|(_, n)| decides(o, n)).collect();
            let (Some(approach), Some(first)) = (o.approach, about.first()) else { continue };
            let done = |id: NodeId| match approach {
                Approach::Static => layout.kinds.contains_key(&id),
                _ => self.fates.get(&id).is_some_and(NodeFate::is_done),
            };
            if about.iter().any(|(id, _)| done(*id)) {
                continue;
            }
            let weighted = |(_, n): &&(NodeId, &Node)| matches!(n.op.quant(), narrowbit_ir::QuantRole::Weighted { .. });
            // A product's reason says more than that of what stands beside it.
            let (id, node) = about.iter().find(weighted).unwrap_or(first);
            let of_fate = self.fates.get(id).and_then(|f| f.why.clone());
            let why = of_fate.or_else(|| layout.reasons.get(id).map(ToString::to_string));
            let why = why.unwrap_or_else(|| Reason::NoWeight.to_string());
            return Err(ApproachError::NoForm(Box::new(NoForm {
                exception: o.to_string(),
                nodes: about.len(),
                approach,
                node: node.name.clone(),
                op: node.op.name().to_owned(),
                why,
                help: help(approach),
            })));
        }
        Ok(())
    }

    /// Rounds weights by samples, on the float graph, where the settings say so.
    pub(crate) fn round(
        &mut self,
        graph: &Graph,
        rounder: &mut Rounder,
        exec: &Exec,
    ) -> Result<Option<Report>, QuantizeError> {
        self.blocks.as_mut().map(|b| b.round(graph, rounder, exec)).transpose()
    }

    /// Writes what was selected into a graph whose static nodes have their form.
    pub(crate) fn write(
        &mut self,
        model: &mut Model,
        options: &QuantOptions,
        exec: &Exec,
    ) -> Result<(), QuantizeError> {
        if let Some(chosen) = self.dynamic.take() {
            dynamic::write(model, &chosen, exec)?;
        }
        if let Some(chosen) = self.blocks.take() {
            weight_only::write(model, chosen, exec)?;
        }
        for chosen in std::mem::take(&mut self.half) {
            forget_types(model);
            let io = options.half.io && chosen.approach() == options.approach;
            self.warnings.extend(half::write(model, &facts(model)?, &chosen, io, exec)?);
        }
        Ok(())
    }

    /// What becomes of all nodes of a graph that is not rewritten yet, in its order.
    pub(crate) fn fates(&self, graph: &Graph, layout: &Layout) -> Vec<NodeFate> {
        let of_static = |id: NodeId, node: &Node| {
            let fate = NodeFate::new(node, layout.reasons.get(&id).copied());
            let approach = (!self.fates.is_empty()).then_some(Approach::Static);
            NodeFate { integer: layout.kinds.contains_key(&id), approach, ..fate }
        };
        let of = |(id, node): (NodeId, &Node)| self.fates.get(&id).cloned().unwrap_or_else(|| of_static(id, node));
        graph.nodes().map(of).collect()
    }
}

/// What to do about an exception that is about nothing.
fn help(approach: Approach) -> &'static str {
    match approach {
        Approach::Static | Approach::Dynamic => {
            "name a Conv, Gemm, MatMul with a constant weight, or the Gather of a table, or both products of an attention"
        }
        Approach::WeightOnly => "name a MatMul, Gemm or Gather with a constant",
        _ => "name an operator that is written in half precision (`narrowbit quantize --help`)",
    }
}
