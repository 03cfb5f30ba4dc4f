use std::collections::BTreeSet;
use std::sync::Arc;

use narrowbit_ir::infer::Facts;
use narrowbit_ir::{Body, Graph, Model, NodeId, Op, Patch, ValueType};

use crate::pass::{PassCx, facts_of};
use crate::sanitize::upgrade_opset;
use crate::{Pass, PassError, PassReport, Report, SanitizeOptions, Skipped, Stage, passes};

/// Rounds over all passes before the manager stops looking for a fixed point.
const MAX_ROUNDS: usize = 12;

/// Subgraphs nested deeper than this are left alone.
const MAX_DEPTH: usize = 16;

/// Runs passes in order, again and again until none of them changes the model.
pub struct Manager<'a> {
    passes: Vec<&'static dyn Pass>,
    options: &'a SanitizeOptions,
    report: Report,
    budget: usize,
    dumps: usize,
    /// What is known of the main graph, until it changes.
    facts: Option<Facts>,
}

impl<'a> Manager<'a> {
    /// A manager of all passes that the options ask for.
    ///
    /// # Errors
    /// When the options name a pass that does not exist.
    pub fn new(options: &'a SanitizeOptions) -> Result<Manager<'a>, PassError> {
        let all = passes();
        for name in &options.disabled {
            check_name(all, name)?;
        }
        let on = |p: &&&'static dyn Pass| {
            let stage = p.stage() != Stage::Equalize && (options.fuse || p.stage() != Stage::Fuse);
            stage && !options.disabled.iter().any(|d| d == p.name())
        };
        Ok(Manager::of(all.iter().filter(on).copied().collect(), options))
    }

    /// A manager of the named passes, in the given order.
    ///
    /// # Errors
    /// When there is no such pass.
    pub fn only(names: &[&str], options: &'a SanitizeOptions) -> Result<Manager<'a>, PassError> {
        let found = names.iter().map(|name| check_name(passes(), name)).collect::<Result<_, _>>()?;
        Ok(Manager::of(found, options))
    }

    fn of(passes: Vec<&'static dyn Pass>, options: &'a SanitizeOptions) -> Manager<'a> {
        let entry = |p: &&'static dyn Pass| PassReport {
            name: p.name(),
            stage: p.stage(),
            rewrites: 0,
            skips: BTreeSet::new(),
        };
        let report = Report { passes: passes.iter().map(entry).collect(), ..Report::default() };
        Manager { passes, options, report, budget: options.stop_after.unwrap_or(usize::MAX), dumps: 0, facts: None }
    }

    /// Runs the passes on a model.
    ///
    /// # Errors
    /// When a node contradicts its operator, a function can't be expanded, or a dump can't be written.
    pub fn run(mut self, model: &mut Model) -> Result<Report, PassError> {
        (self.report.nodes_before, self.report.opset_before) = (model.graph.node_count(), model.opset());
        for stages in [&[Stage::Prepare][..], &[Stage::Prepare, Stage::Sanitize], &[Stage::Sanitize, Stage::Fuse]] {
            self.fixed_point(model, stages)?;
        }
        self.fixed_point(model, &[Stage::Equalize])?;
        self.report.stopped = self.budget == 0;
        (self.report.nodes_after, self.report.opset_after) = (model.graph.node_count(), model.opset());
        Ok(self.report)
    }

    fn fixed_point(&mut self, model: &mut Model, stages: &[Stage]) -> Result<(), PassError> {
        for _ in 0..MAX_ROUNDS {
            let before = self.report.rewrites();
            for i in 0..self.passes.len() {
                let done = self.budget == 0;
                if stages.contains(&self.passes[i].stage()) && !done {
                    self.run_pass(model, i)?;
                }
            }
            if self.report.rewrites() == before || self.budget == 0 {
                return Ok(());
            }
        }
        tracing::debug!("passes did not reach a fixed point in {MAX_ROUNDS} rounds");
        Ok(())
    }

    fn run_pass(&mut self, model: &mut Model, i: usize) -> Result<(), PassError> {
        let pass = self.passes[i];
        // What a later round applies is no longer skipped.
        self.report.passes[i].skips.clear();
        let rewrites = match pass.name() {
            "inline-functions" => self.inline(model)?,
            "upgrade-opset" => self.upgrade(model, i),
            _ => self.run_graph_pass(model, i)?,
        };
        self.report.passes[i].rewrites += rewrites;
        if rewrites == 0 {
            return Ok(());
        }
        if matches!(pass.name(), "inline-functions" | "upgrade-opset") {
            self.facts = None;
        }
        tracing::debug!("{}: {rewrites} rewrites, {} nodes", pass.name(), model.graph.node_count());
        if self.options.verify {
            model.graph.verify().map_err(|error| PassError::Verify { pass: pass.name(), error })?;
        }
        self.dump(model, pass.name())
    }

    fn inline(&mut self, model: &mut Model) -> Result<usize, PassError> {
        if model.functions.is_empty() {
            return Ok(0);
        }
        narrowbit_import::onnx::inline_functions(model)?;
        self.budget = self.budget.saturating_sub(1);
        Ok(1)
    }

    fn upgrade(&mut self, model: &mut Model, i: usize) -> usize {
        if model.opset() >= self.options.min_opset {
            return 0;
        }
        match upgrade_opset::upgrade(model, self.options.min_opset) {
            Ok(()) => {
                self.budget = self.budget.saturating_sub(1);
                1
            }
            Err(e) => {
                self.report.passes[i].skips.insert(Skipped { node: e.node, reason: e.error.to_string() });
                0
            }
        }
    }

    fn run_graph_pass(&mut self, model: &mut Model, i: usize) -> Result<usize, PassError> {
        let (pass, opset) = (self.passes[i], model.opset());
        let raise = pass.opset() > opset;
        // Operators that stand in older forms can't be told from those that a pass would make.
        if pass.stage() != Stage::Prepare && opset < 13 && self.options.min_opset >= 13 {
            return Ok(0);
        }
        if raise {
            if pass.opset() > self.options.max_opset {
                return Ok(0);
            }
            if let Err(e) = upgrade_opset::check(model, pass.opset()) {
                self.report.passes[i].skips.insert(Skipped { node: e.node, reason: e.error.to_string() });
                return Ok(0);
            }
        }
        let before = raise.then(|| (model.graph.clone(), self.budget));
        let rewrites = self.run_graph(&mut model.graph, i, opset, "", 0)?;
        let Some((graph, budget)) = before.filter(|_| rewrites > 0) else { return Ok(rewrites) };
        self.facts = None;
        // Some nodes tell only when they are raised that they can't be.
        if let Err(e) = upgrade_opset::upgrade(model, pass.opset()) {
            (model.graph, self.budget) = (graph, budget);
            self.report.passes[i].skips.insert(Skipped { node: e.node, reason: e.error.to_string() });
            return Ok(0);
        }
        Ok(rewrites)
    }

    fn run_graph(
        &mut self,
        graph: &mut Graph,
        i: usize,
        opset: i64,
        place: &str,
        depth: usize,
    ) -> Result<usize, PassError> {
        let mut rewrites = self.run_bodies(graph, i, opset, place, depth)?;
        let known = if depth == 0 && rewrites == 0 { self.facts.take() } else { None };
        let facts = known.unwrap_or_else(|| facts_of(graph));
        let mut cx = PassCx {
            graph,
            facts,
            stale: false,
            opset,
            options: self.options,
            place,
            budget: &mut self.budget,
            rewrites: 0,
            skips: BTreeSet::new(),
        };
        self.passes[i].run(&mut cx)?;
        rewrites += cx.rewrites;
        let (skips, facts) = (cx.skips, (!cx.stale).then_some(cx.facts));
        if depth == 0 {
            self.facts = facts;
        }
        self.report.passes[i].skips.extend(skips);
        Ok(rewrites)
    }

    fn run_bodies(
        &mut self,
        graph: &mut Graph,
        i: usize,
        opset: i64,
        place: &str,
        depth: usize,
    ) -> Result<usize, PassError> {
        let with_bodies: Vec<NodeId> =
            graph.nodes().filter(|(_, n)| !n.op.bodies().is_empty()).map(|(id, _)| id).collect();
        let mut rewrites = 0;
        for id in with_bodies {
            if depth == MAX_DEPTH || self.budget == 0 {
                break;
            }
            let mut bodies = bodies(graph, id);
            let place = format!("{place}{}/", graph.node(id).name);
            let mut changed = 0;
            for body in &mut bodies {
                changed += self.run_graph(&mut body.graph, i, opset, &place, depth + 1)?;
            }
            if let Some(op) = graph.node(id).op.with_bodies(bodies).filter(|_| changed > 0) {
                replace_op(graph, id, op).map_err(|error| PassError::Patch { pass: self.passes[i].name(), error })?;
                rewrites += changed;
            }
        }
        Ok(rewrites)
    }

    fn dump(&mut self, model: &Model, pass: &str) -> Result<(), PassError> {
        let Some(dir) = &self.options.dump_dir else { return Ok(()) };
        let path = dir.join(format!("{:03}-{pass}.nb", self.dumps));
        self.dumps += 1;
        let write = || {
            std::fs::create_dir_all(dir)?;
            std::fs::write(&path, narrowbit_ir::text::print_model(model))
        };
        write().map_err(|error| PassError::Dump { path: path.clone(), error })
    }
}

fn check_name(all: &'static [&'static dyn Pass], name: &str) -> Result<&'static dyn Pass, PassError> {
    let names = || all.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
    all.iter().find(|p| p.name() == name).copied().ok_or_else(|| PassError::UnknownPass(name.into(), names()))
}

/// The bodies of a node; captured inputs get the types that the graph around states.
fn bodies(graph: &Graph, id: NodeId) -> Vec<Body> {
    let node = graph.node(id);
    let mut bodies: Vec<Body> = node.op.bodies().into_iter().map(|(_, b)| b.clone()).collect();
    for body in &mut bodies {
        let inner = body.graph.inputs().to_vec();
        for (&inner, outer) in inner.iter().rev().zip(node.inputs.iter().rev()).take(body.captures) {
            let Some(ty) = outer.map(|v| graph.value(v).ty.clone()).filter(|t| *t != ValueType::Unknown) else {
                continue;
            };
            body.graph.set_type(inner, ty);
        }
    }
    bodies
}

pub(crate) fn replace_op(graph: &mut Graph, id: NodeId, op: Arc<dyn Op>) -> Result<(), narrowbit_ir::PatchError> {
    let mut patch = Patch::new(graph);
    patch.set_op(id, op);
    graph.apply(patch)
}
