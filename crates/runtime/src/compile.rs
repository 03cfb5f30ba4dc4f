//! From a graph and concrete input shapes to a list of steps over planned memory.

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::infer::{self, Facts};
use narrowbit_ir::{Def, Fact, Graph, Node, NodeId, ValueId};
use narrowbit_kernels::Exec;
use narrowbit_tensor::{DType, Tensor, TensorError, memory};

use crate::bands;
use crate::collapse::{self, Lookup};
use crate::error::RunError;
use crate::fuse::{self, Fusion};
use crate::kernel::{BuildCx, Built, Concrete, Kernel};
use crate::memory::{self as slots, Life};
use crate::ops;
use crate::rounded_rows;
use crate::scope::{Scope, concrete};
use crate::weights::Weights;

/// Where a value's bytes are while the plan runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The caller's input of that position.
    Input(usize),
    /// A constant of the plan.
    Const(usize),
    /// A slot of the arena.
    Slot(usize),
}

/// One step of a plan.
pub struct Step {
    /// The node that it computes (the first one of a fusion).
    pub node: NodeId,
    /// All nodes that it computes; none where it only moves channels.
    pub nodes: Vec<NodeId>,
    /// The kernel.
    pub kernel: Box<dyn Kernel>,
    /// The operands, by index of [`Plan::values`].
    pub ins: Vec<usize>,
    /// The results, by index of [`Plan::values`].
    pub outs: Vec<usize>,
    /// The operand whose memory the first result takes over.
    pub in_place: Option<usize>,
    /// Whether it only moves the channels of a value that another step made.
    pub converts: bool,
}

/// A value of a plan.
#[derive(Debug, Clone)]
pub struct PlanValue {
    /// The value of the graph.
    pub id: ValueId,
    /// Its type.
    pub ty: Concrete,
    /// Where it is.
    pub place: Place,
    /// Whether the second axis is the innermost one in memory (NHWC).
    pub channels_last: bool,
}

/// A compiled graph for one set of input shapes.
pub struct Plan {
    /// The steps in order.
    pub steps: Vec<Step>,
    /// Every value that a step touches or that is an output.
    pub values: Vec<PlanValue>,
    /// Constants that steps read.
    pub consts: Vec<Tensor>,
    /// Bytes of each slot.
    pub slots: Vec<usize>,
    /// The outputs, by index of `values`.
    pub outputs: Vec<usize>,
}

/// Why a graph could not be compiled for these shapes.
pub enum CompileError {
    /// A shape depends on the content of an input: the graph has to run in stages.
    Dynamic,
    /// The model or its inputs are wrong.
    Run(RunError),
}

impl From<RunError> for CompileError {
    fn from(e: RunError) -> CompileError {
        CompileError::Run(e)
    }
}

/// How far constants are folded to find shapes.
pub const OPTIONS: infer::Options = infer::Options { max_folded: 1 << 16, strict: true };

/// Compiles `graph` for inputs of the given types. Values in `keep` are made as such: no fusion
/// swallows them.
pub fn compile(
    graph: &Graph,
    inputs: &BTreeMap<ValueId, Fact>,
    keep: &BTreeSet<ValueId>,
    exec: &Exec,
    weights: &Weights,
) -> Result<Plan, CompileError> {
    let facts = infer::infer(graph, inputs, OPTIONS).map_err(RunError::from)?;
    if !is_static(graph, &facts) {
        return Err(CompileError::Dynamic);
    }
    let mut compiler = Compiler::new(graph, &facts, keep, exec, weights);
    compiler.steps()?;
    compiler.drop_unused();
    if exec.bf16() {
        compiler.round_between();
    }
    compiler.join_bands();
    Ok(compiler.finish()?)
}

/// Elements of a constant in panels of a kernel, at the most: the columns of each of `groups` are filled up.
fn padded(shape: &[usize], groups: usize) -> usize {
    /// Columns of the widest panel.
    const PANEL: usize = 64;
    let elements: usize = shape.iter().product();
    let columns = match *shape {
        [] | [_] => return 0,
        [rows, columns] => rows.min(columns),
        // Of a convolution, transposed or not.
        [first, second, ..] => (first / groups.max(1)).min(second.max(1)),
    };
    let columns = columns.max(1);
    (elements / columns).saturating_mul(columns.next_multiple_of(PANEL))
}

fn is_static(graph: &Graph, facts: &Facts) -> bool {
    let known = |v: &ValueId| concrete(facts.get(*v)).is_some();
    graph.nodes().all(|(_, n)| n.outputs.iter().flatten().all(known))
}

struct Compiler<'a> {
    scope: Scope<'a>,
    keep: &'a BTreeSet<ValueId>,
    exec: &'a Exec,
    weights: &'a Weights,
    fusions: BTreeMap<NodeId, Fusion>,
    swallowed: BTreeMap<NodeId, NodeId>,
    /// Codes that are functions of other codes.
    lookups: BTreeMap<ValueId, Lookup>,
    steps: Vec<(NodeId, Built)>,
    /// Nodes that a step computes, too, behind the node that stands for it.
    joined: Vec<(NodeId, NodeId)>,
    /// What the steps make, by id and layout.
    made: BTreeSet<ValueId>,
    /// Those of them that only were converted from the other layout.
    converted: BTreeSet<ValueId>,
}

impl<'a> Compiler<'a> {
    fn new(
        graph: &'a Graph,
        facts: &'a Facts,
        keep: &'a BTreeSet<ValueId>,
        exec: &'a Exec,
        weights: &'a Weights,
    ) -> Compiler<'a> {
        let scope = Scope { graph, facts, alias: BTreeMap::new(), rounded: BTreeSet::new() };
        let lookups = collapse::find(graph, facts, &|v| scope.constant(v));
        let fusions = fuse::find(graph, facts, keep, &lookups);
        let swallowed = fusions.iter().flat_map(|(&root, f)| f.nodes.iter().map(move |&n| (n, root))).collect();
        Compiler {
            scope,
            keep,
            exec,
            weights,
            fusions,
            swallowed,
            lookups,
            steps: Vec::new(),
            joined: Vec::new(),
            made: BTreeSet::new(),
            converted: BTreeSet::new(),
        }
    }

    fn steps(&mut self) -> Result<(), CompileError> {
        for &id in self.scope.graph.order() {
            match self.swallowed.get(&id).copied() {
                // A fusion runs where its last node stands: only there are all its operands ready.
                Some(root) if self.fusions[&root].nodes.last() == Some(&id) => self.fusion(root)?,
                Some(_) => {}
                None => self.node(id)?,
            }
        }
        let last = self.scope.graph.order().last().copied();
        for &v in self.scope.graph.outputs() {
            if let Some(node) = last {
                self.ensure(node, v);
            }
        }
        Ok(())
    }

    /// One step, or its nodes one by one where no kernel takes them together.
    fn fusion(&mut self, root: NodeId) -> Result<(), CompileError> {
        if let Some(built) = self.build(root, self.fusions.get(&root))? {
            self.push(root, built);
            return Ok(());
        }
        let Some(fusion) = self.fusions.remove(&root) else { return Ok(()) };
        let nodes = self.scope.graph.order().iter().filter(|n| fusion.nodes.contains(n));
        nodes.copied().try_for_each(|n| self.node(n))
    }

    /// Adds a step, after the conversions of layout that its operands need.
    fn push(&mut self, node: NodeId, built: Built) {
        for &v in &built.ins {
            self.ensure(node, v);
        }
        self.made.extend(built.outs.iter().copied());
        self.steps.push((node, built));
    }

    /// Makes sure that a value stands in memory in the layout of its id.
    fn ensure(&mut self, node: NodeId, id: ValueId) {
        let last = self.scope.is_channels_last(id);
        let id = if last { id } else { self.scope.root(id) };
        // A Transpose made it in the other layout of another value.
        if self.made.contains(&id) || !last && self.scope.is_channels_last(id) {
            return;
        }
        let from = if last { self.scope.base(id) } else { self.scope.channels_last(id) };
        if !last && !self.made.contains(&from) {
            return;
        }
        if last {
            self.ensure(node, from);
        }
        let kernel = ops::change_layout(&self.scope.ty(id), last);
        self.made.insert(id);
        self.converted.insert(id);
        self.steps.push((node, Built { kernel, ins: vec![from], outs: vec![id] }));
    }

    /// Drops the steps whose results nobody reads or asked to see: most are a
    /// DequantizeLinear before integer kernels.
    fn drop_unused(&mut self) {
        let scope = &self.scope;
        let mut read: BTreeSet<ValueId> = scope.graph.outputs().iter().map(|&v| scope.root(v)).collect();
        let mut kept = Vec::with_capacity(self.steps.len());
        for (node, built) in self.steps.drain(..).rev() {
            let wanted = |v: &ValueId| read.contains(v) || self.keep.contains(&scope.base(*v));
            if built.outs.iter().any(wanted) {
                read.extend(built.ins.iter().map(|&v| scope.root(v)));
                kept.push((node, built));
            }
        }
        kept.reverse();
        self.steps = kept;
    }

    /// What somebody else than steps reads, in both layouts.
    fn kept(&self) -> BTreeSet<ValueId> {
        let (scope, kept) = (&self.scope, self.keep.iter().chain(self.scope.graph.outputs()));
        kept.flat_map(|&v| [scope.root(v), scope.root(scope.channels_last(v))]).collect()
    }

    /// Lets floats that one kernel makes and others multiply or add stand in memory as bfloat16, where all of these can: half
    /// of the bytes, and rounded once.
    fn round_between(&mut self) {
        let scope = &self.scope;
        let kept = self.kept();
        let mut made = BTreeSet::new();
        for (_, built) in self.steps.iter().filter(|(_, built)| built.kernel.makes_bf16()) {
            made.extend(
                built.outs.first().filter(|&&v| scope.ty(v).dtype == DType::F32 && !kept.contains(&scope.root(v))),
            );
        }
        for (_, built) in &self.steps {
            for (i, &v) in built.ins.iter().enumerate() {
                if scope.root(v) != v || !built.kernel.reads_bf16(i) {
                    made.remove(&scope.root(v));
                }
            }
        }
        self.scope.rounded = made;
    }

    /// Lets steps that hand each other more than the second cache holds run together, some rows at a time.
    fn join_bands(&mut self) {
        let scope = &self.scope;
        let kept = self.kept();
        let values = bands::Values {
            ty: &|v| scope.ty(v),
            root: &|v| scope.root(v),
            is_kept: &|v| kept.contains(&scope.root(v)),
        };
        (self.steps, self.joined) = bands::join(std::mem::take(&mut self.steps), &values, self.exec);
        let (steps, joined) = rounded_rows::join(std::mem::take(&mut self.steps), &values, self.exec);
        self.steps = steps;
        self.joined.extend(joined);
    }

    fn node(&mut self, id: NodeId) -> Result<(), CompileError> {
        let node = self.scope.graph.node(id);
        let folded = node.outputs.iter().flatten().all(|&v| self.scope.is_constant(v));
        if folded {
            return Ok(());
        }
        // An alias is made by no step, so that no observer would see it.
        if let (true, Some(x), Some(y)) = (ops::is_alias(node), node.input(0), node.output(0))
            && !self.keep.contains(&y)
        {
            self.reshaped(x, y);
            return Ok(());
        }
        if self.is_relabelled(node) {
            return Ok(());
        }
        if let Some(built) = self.build(id, None)? {
            self.push(id, built);
        }
        Ok(())
    }

    /// A value that is another one under a new shape. Where only its pixels are arranged anew, it stands in memory with its
    /// channels last, too, if the other does.
    fn reshaped(&mut self, x: ValueId, y: ValueId) {
        let (from, to) = (self.scope.ty(x).shape, self.scope.ty(y).shape);
        let same_channels = from.len() > 2 && to.len() > 2 && from[..2] == to[..2];
        if same_channels && self.stands_last(x) {
            let (from, to) = (self.scope.channels_last(x), self.scope.channels_last(y));
            self.scope.alias.insert(to, from);
            self.made.insert(to);
        }
        self.scope.alias.insert(y, x);
    }

    /// Whether a value stands in memory with its channels last, as a step made it, and not the plain way.
    fn stands_last(&self, v: ValueId) -> bool {
        let made = |v: ValueId| {
            let root = self.scope.root(v);
            self.made.contains(&root) && !self.converted.contains(&root)
        };
        made(self.scope.channels_last(v)) && !made(v)
    }

    /// Whether a Transpose only says in which layout the memory of its operand is read: it moves the channels of what stands
    /// with its channels last behind the pixels, or those of what is plain before them.
    fn is_relabelled(&mut self, node: &Node) -> bool {
        let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { return false };
        let rank = self.scope.ty(x).shape.len();
        if node.op.name() != "Transpose" || rank < 3 || self.keep.contains(&y) {
            return false;
        }
        let Some(perm) = node.op.attrs().ints("perm").ok().flatten() else { return false };
        let behind: Vec<i64> = [0].into_iter().chain(2..rank as i64).chain([1]).collect();
        let before: Vec<i64> = [0, rank as i64 - 1].into_iter().chain(1..rank as i64 - 1).collect();
        if perm == behind && self.stands_last(x) {
            self.scope.alias.insert(y, self.scope.channels_last(x));
            return true;
        }
        let root = self.scope.root(x);
        if perm == before && self.made.contains(&root) && !self.converted.contains(&root) {
            let last = self.scope.channels_last(y);
            self.scope.alias.insert(last, x);
            self.made.insert(last);
            return true;
        }
        false
    }

    /// The kernel of a node or of a fusion; `None` for a fusion that no kernel takes.
    fn build(&self, id: NodeId, fusion: Option<&Fusion>) -> Result<Option<Built>, CompileError> {
        let types = |v: ValueId| concrete(self.scope.facts.get(v));
        let consts = |v: ValueId| self.scope.constant(v);
        let is_const = |v: ValueId| self.scope.is_constant(v);
        let channels_last = |v: ValueId| self.scope.channels_last(v);
        let is_made = |v: ValueId| {
            let root = self.scope.root(v);
            self.made.contains(&root) && !self.converted.contains(&root)
        };
        let cx = BuildCx {
            graph: self.scope.graph,
            id,
            node: self.scope.graph.node(id),
            types: &types,
            consts: &consts,
            is_const: &is_const,
            facts: self.scope.facts,
            channels_last: &channels_last,
            is_made: &is_made,
            exec: self.exec,
            weights: self.weights,
        };
        let made = fusion.map_or(cx.node.output(0), |f| f.output);
        if let Some((y, lookup)) = made.and_then(|y| Some((y, self.lookups.get(&y)?))) {
            return Ok(Some(ops::lookup(&cx, lookup, y)));
        }
        self.check_packing(id, fusion)
            .map_err(|error| RunError::Kernel { node: cx.node.name.clone(), error: error.into() })?;
        let built = match fusion {
            Some(f) => ops::fused(&cx, f),
            None => ops::build(&cx).map(Some),
        };
        built.map_err(|error| RunError::Kernel { node: cx.node.name.clone(), error }.into())
    }

    /// Checks that there is memory to unpack and to pack the constants that a step reads, where that is still to be done.
    fn check_packing(&self, id: NodeId, fusion: Option<&Fusion>) -> Result<(), TensorError> {
        if self.weights.has(id) {
            return Ok(());
        }
        let nodes = fusion.map_or_else(|| vec![id], |f| f.nodes.clone());
        let read = nodes.iter().flat_map(|&n| &self.scope.graph.node(n).inputs).flatten();
        let constants = read.filter(|v| self.scope.is_constant(**v));
        let types = constants.filter_map(|v| concrete(self.scope.facts.get(*v)));
        let op = &self.scope.graph.node(id).op;
        // The rows of a table are read where they stand.
        if op.name().starts_with("Gather") {
            return Ok(());
        }
        let groups = op.attrs().int_or("group", 1).ok().and_then(|g| usize::try_from(g).ok()).unwrap_or(1);
        let (plain, full) = types.fold((0usize, 0usize), |(plain, full), ty| {
            (plain.saturating_add(ty.len()), full.saturating_add(padded(&ty.shape, groups)))
        });
        let bytes = |floats: usize| floats.saturating_mul(size_of::<f32>());
        memory::check(bytes(plain), bytes(full))
    }

    fn finish(self) -> Result<Plan, RunError> {
        let lifetimes = Lifetimes::new(&self.scope, &self.steps);
        let layout = slots::plan(&lifetimes.lives);
        let mut table = Table {
            scope: &self.scope,
            slot_of: lifetimes.life_of.iter().map(|(&v, &l)| (v, layout.slot_of[l])).collect(),
            values: Vec::new(),
            index: BTreeMap::new(),
            consts: Vec::new(),
            failed: None,
        };
        let outputs = self.scope.graph.outputs().iter().map(|&v| table.value(v)).collect();
        let (fusions, joined) = (&self.fusions, &self.joined);
        let steps = self.steps.into_iter().zip(lifetimes.in_place).map(|((node, built), in_place)| {
            let converts = built.kernel.name() == ops::LAYOUT_CHANGE;
            let of = |node: NodeId| fusions.get(&node).map_or_else(|| vec![node], |f| f.nodes.clone());
            let others = joined.iter().filter(|(first, _)| *first == node).map(|&(_, other)| other);
            let nodes = || [node].into_iter().chain(others).flat_map(of).collect();
            Step {
                node,
                nodes: if converts { Vec::new() } else { nodes() },
                ins: built.ins.iter().map(|&v| table.value(v)).collect(),
                outs: built.outs.iter().map(|&v| table.value(v)).collect(),
                converts,
                kernel: built.kernel,
                in_place,
            }
        });
        let steps = steps.collect();
        if let Some((node, error)) = table.failed {
            return Err(RunError::Kernel { node, error: error.into() });
        }
        Ok(Plan { steps, values: table.values, consts: table.consts, slots: layout.slots, outputs })
    }
}

/// From when to when each value is needed.
struct Lifetimes<'a> {
    scope: &'a Scope<'a>,
    last_use: BTreeMap<ValueId, usize>,
    lives: Vec<Life>,
    life_of: BTreeMap<ValueId, usize>,
    /// By step: the operand whose memory the first output takes over.
    in_place: Vec<Option<usize>>,
}

impl<'a> Lifetimes<'a> {
    fn new(scope: &'a Scope<'a>, steps: &[(NodeId, Built)]) -> Lifetimes<'a> {
        let mut last_use = BTreeMap::new();
        for (i, (_, built)) in steps.iter().enumerate() {
            last_use.extend(built.ins.iter().chain(&built.outs).map(|&v| (scope.root(v), i)));
        }
        last_use.extend(scope.graph.outputs().iter().map(|&v| (scope.root(v), steps.len())));
        let mut all = Lifetimes { scope, last_use, lives: Vec::new(), life_of: BTreeMap::new(), in_place: Vec::new() };
        for (i, (_, built)) in steps.iter().enumerate() {
            all.step(i, built);
        }
        all
    }

    fn step(&mut self, i: usize, built: &Built) {
        let taken = built.kernel.in_place().filter(|&k| self.may_take(i, built, k));
        self.in_place.push(taken);
        for (o, &v) in built.outs.iter().enumerate() {
            let from = taken.filter(|_| o == 0).map(|k| self.scope.root(built.ins[k]));
            let life = Life {
                bytes: self.scope.ty(v).bytes(),
                from: i,
                to: self.last_use.get(&v).copied().unwrap_or(i),
                takes_over: from.and_then(|r| self.life_of.get(&r).copied()),
            };
            self.life_of.insert(v, self.lives.len());
            self.lives.push(life);
        }
    }

    /// Whether the first output may take over operand `k`: nothing reads that later, and no other
    /// operand of this step is the same memory.
    fn may_take(&self, i: usize, built: &Built, k: usize) -> bool {
        let (Some(&x), Some(&y)) = (built.ins.get(k), built.outs.first()) else { return false };
        let root = self.scope.root(x);
        let once = built.ins.iter().filter(|&&v| self.scope.root(v) == root).count() == 1;
        let last = self.last_use.get(&root) == Some(&i);
        once && last && self.life_of.contains_key(&root) && self.scope.ty(x).bytes() == self.scope.ty(y).bytes()
    }
}

/// Collects the values of a plan, each once.
struct Table<'a> {
    scope: &'a Scope<'a>,
    slot_of: BTreeMap<ValueId, usize>,
    values: Vec<PlanValue>,
    index: BTreeMap<ValueId, usize>,
    consts: Vec<Tensor>,
    /// The first constant that there was no memory for.
    failed: Option<(String, TensorError)>,
}

impl Table<'_> {
    fn value(&mut self, id: ValueId) -> usize {
        if let Some(&i) = self.index.get(&id) {
            return i;
        }
        let (root, graph) = (self.scope.root(id), self.scope.graph);
        let channels_last = self.scope.is_channels_last(id);
        let place = if let Some(t) = self.scope.constant(root) {
            self.consts.push(aligned(&t).unwrap_or_else(|e| {
                self.failed.get_or_insert((graph.value(self.scope.base(root)).name.clone(), e));
                t
            }));
            Place::Const(self.consts.len() - 1)
        } else if !self.scope.is_channels_last(root) && graph.value(root).def == Def::Input {
            Place::Input(graph.inputs().iter().position(|&v| v == root).unwrap_or(0))
        } else {
            Place::Slot(self.slot_of.get(&root).copied().unwrap_or(0))
        };
        self.values.push(PlanValue { id: self.scope.base(id), ty: self.scope.ty(id), place, channels_last });
        self.index.insert(id, self.values.len() - 1);
        self.values.len() - 1
    }
}

/// The tensor itself where its bytes are aligned for every element type, else a copy.
/// Bytes of a mapped file may stand anywhere.
///
/// # Errors
/// There is no memory for a copy.
pub fn aligned(t: &Tensor) -> Result<Tensor, TensorError> {
    if t.bytes().as_ptr().align_offset(8) == 0 {
        return Ok(t.clone());
    }
    memory::check(t.bytes().len(), t.bytes().len())?;
    let words: Vec<u64> = t.bytes().chunks(8).map(le_word).collect();
    let bytes = bytemuck::cast_slice(&words)[..t.bytes().len()].to_vec();
    Tensor::from_bytes(t.dtype(), t.shape(), bytes)
}

fn le_word(chunk: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..chunk.len()].copy_from_slice(chunk);
    u64::from_ne_bytes(word)
}
