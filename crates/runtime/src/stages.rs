//! Graphs some of whose shapes depend on what the inputs hold (NonZero, NonMaxSuppression): in parts that run one after
//! the other, so that all that is heavy is compiled as soon as its shapes are known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use narrowbit_ir::{Datum, Fact, Graph, NodeError, NodeId, OpError, ValueId, infer, interp};
use narrowbit_kernels::Exec;
use narrowbit_tensor::Tensor;

use crate::compile;
use crate::core::Core;
use crate::error::RunError;
use crate::scope::concrete;
use crate::session::{Observer, Operands, Profile, ProfileRow};
use crate::view::View;

/// The three parts of a graph.
#[derive(Debug)]
pub struct Stages {
    /// What has shapes that are known beforehand.
    head: Option<Core>,
    /// What reads only that, and has not: the reference operators run it.
    middle: Graph,
    /// All else: its shapes are known when the middle has run, or it is cut again.
    tail: Option<Core>,
}

/// Cuts of one graph; what is left then runs on the reference operators.
const MOST_CUTS: usize = 16;

impl Stages {
    /// Cuts a graph with inputs of these types.
    pub fn new(core: &Core, inputs: &BTreeMap<ValueId, Fact>) -> Result<Stages, RunError> {
        let graph = &*core.graph;
        let facts = infer::infer(graph, inputs, compile::OPTIONS)?;
        let (mut head, mut middle, mut tail) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (id, node) in graph.nodes() {
            let from_head = |v: &ValueId| graph.producer(*v).is_none_or(|(n, _)| head.contains(&n));
            let from_head = node.inputs.iter().flatten().all(from_head);
            let known = node.outputs.iter().flatten().all(|&v| concrete(facts.get(v)).is_some());
            match (from_head, known) {
                (true, true) => head.insert(id),
                (true, false) => middle.insert(id),
                (false, _) => tail.insert(id),
            };
        }
        if core.cuts() >= MOST_CUTS {
            middle.append(&mut tail);
        }
        let part = |nodes: &BTreeSet<NodeId>, stage: Option<usize>| {
            let graph = || Arc::new(graph.part(nodes));
            (!nodes.is_empty()).then(|| Core::new(graph(), core.observe.clone(), stage))
        };
        let (head, tail) = (part(&head, core.stage), part(&tail, Some(core.cuts() + 1)));
        Ok(Stages { head, middle: graph.part(&middle), tail })
    }

    /// Bytes of the arena of what is compiled beforehand.
    pub fn arena_bytes(&self, core: &Core, exec: &Exec, inputs: &[Tensor]) -> Result<usize, RunError> {
        let Some(head) = &self.head else { return Ok(0) };
        let known: BTreeMap<ValueId, &Tensor> = core.graph.inputs().iter().copied().zip(inputs).collect();
        let inputs: Vec<Tensor> = head.graph.inputs().iter().filter_map(|v| known.get(v).copied().cloned()).collect();
        head.arena_bytes(exec, &inputs)
    }

    /// As [`Core::run`], of the graph that was cut.
    pub fn run(
        &self,
        core: &Core,
        exec: &Exec,
        inputs: &[Tensor],
        observer: Observer,
        mut profile: Option<&mut Profile>,
    ) -> Result<Vec<Tensor>, RunError> {
        let inputs = inputs.iter().cloned().map(Datum::Tensor);
        let mut made: BTreeMap<ValueId, Datum> = core.graph.inputs().iter().copied().zip(inputs).collect();
        if let Some(head) = &self.head {
            run_part(head, exec, &mut made, observer, profile.as_deref_mut())?;
        }
        interpret(&self.middle, core, &mut made, observer, profile.as_deref_mut())?;
        if let Some(tail) = &self.tail {
            run_part(tail, exec, &mut made, observer, profile)?;
        }
        let output = |&v: &ValueId| match made.get(&v) {
            Some(d) => d.tensor().cloned(),
            None => core.graph.constant(v).cloned(),
        };
        let outputs: Option<Vec<Tensor>> = core.graph.outputs().iter().map(output).collect();
        outputs.ok_or_else(|| no_tensor(&core.graph).into())
    }
}

/// Runs a part on what was made before, and adds what it makes.
fn run_part(
    part: &Core,
    exec: &Exec,
    made: &mut BTreeMap<ValueId, Datum>,
    observer: Observer,
    profile: Option<&mut Profile>,
) -> Result<(), RunError> {
    let inputs: Option<Vec<Tensor>> = part.graph.inputs().iter().map(|v| made.get(v)?.tensor().cloned()).collect();
    let Some(inputs) = inputs else {
        // A sequence or an optional comes in: only the reference operators know them.
        return interpret(&part.graph, part, made, observer, profile);
    };
    let outputs = part.run(exec, &inputs, observer, profile)?;
    made.extend(part.graph.outputs().iter().copied().zip(outputs.into_iter().map(Datum::Tensor)));
    Ok(())
}

/// As [`run_part`] with the reference operators.
fn interpret(
    graph: &Graph,
    core: &Core,
    made: &mut BTreeMap<ValueId, Datum>,
    observer: Observer,
    mut profile: Option<&mut Profile>,
) -> Result<(), RunError> {
    let inputs: Option<Vec<Datum>> = graph.inputs().iter().map(|v| made.get(v).cloned()).collect();
    let inputs = inputs.ok_or_else(|| no_tensor(graph))?;
    let mut failed = None;
    let mut start = Instant::now();
    let outputs = interp::run_observed(graph, &inputs, &mut |n, v, d| {
        if let Some(profile) = profile.as_deref_mut().filter(|_| graph.node(n).output(0) == Some(v)) {
            profile.rows.push(row(n, start.elapsed().as_secs_f64()));
        }
        if let (true, Some(t), None) = (core.observe.contains(&v), d.tensor(), &failed) {
            failed = compile::aligned(t)
                .map_err(|e| e.to_string())
                .and_then(|t| {
                    observer(v, View { dtype: t.dtype(), shape: t.shape(), bytes: t.bytes(), channels_last: false })
                })
                .err();
        }
        start = Instant::now();
    })?;
    if let Some(e) = failed {
        return Err(RunError::Observer(e));
    }
    made.extend(graph.outputs().iter().copied().zip(outputs));
    Ok(())
}

fn row(id: NodeId, seconds: f64) -> ProfileRow {
    ProfileRow {
        node: id,
        nodes: vec![id],
        kernel: "reference".into(),
        on_integers: false,
        operands: Operands::F32,
        bytes: 0,
        seconds,
    }
}

fn no_tensor(graph: &Graph) -> NodeError {
    let error = OpError::Value("an output is no tensor".into());
    NodeError { node: graph.name.clone(), op: "graph".into(), error }
}
