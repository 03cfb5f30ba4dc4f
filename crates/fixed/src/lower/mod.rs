//! From a graph with QuantizeLinear and DequantizeLinear nodes to a program of integers.

mod arithmetic;
mod constant;
mod convert;
mod curve;
mod movement;
mod pair;
mod product;
mod rows;
mod shiftmax;
mod window;

pub(crate) use constant::data;

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::infer::{self, Facts};
use narrowbit_ir::{Dim, Fact, Graph, Node, NodeError, NodeId, TensorType, ValueId, ValueType};
use narrowbit_kernels::Exec;
use narrowbit_ops::functions::Shiftmax;
use narrowbit_tensor::Tensor;

use crate::proof::{Proof, ProofRow, bits_of};
use crate::run::{Data, Line, Program, Register, Rounding, Step, Width};
use crate::value::{Codes, Fixed, Layout, Unit};

/// The shapes of the graph's inputs.
pub type Shapes = BTreeMap<ValueId, Vec<usize>>;

/// What the integers are like beyond what the graph says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// What shifts do halfway between two integers.
    pub rounding: Rounding,
    /// The bits of a register in which products saturate, and their products with a mantissa; `None` for registers that
    /// hold all there can be.
    pub buffer_bits: Option<u8>,
    /// The most bits of a multiplier.
    pub multiplier_bits: u32,
}

impl Default for Options {
    /// As the graph says, with multipliers of 8 bits.
    fn default() -> Options {
        Options { rounding: Rounding::HalfEven, buffer_bits: None, multiplier_bits: 8 }
    }
}

/// Why a graph has no program.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LowerError {
    /// A node between the first QuantizeLinear and the last DequantizeLinear needs floats.
    #[error("node \"{node}\" ({op}) needs floats: {why}")]
    NeedsFloats {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// What has no integer form.
        why: String,
    },
    /// No node quantizes anything.
    #[error("the model has no QuantizeLinear\nhelp: quantize it first, for instance with --scheme quantizeml")]
    NotQuantized,
    /// The graph contradicts itself.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// A result of the program.
#[derive(Debug, Clone)]
pub struct Output {
    /// The graph's value.
    pub value: ValueId,
    /// What its integers stand for.
    pub unit: Unit,
    /// The integer of zero.
    pub zero: i64,
    /// The shape.
    pub shape: Vec<usize>,
    /// Where each element lies, in the order of the shape.
    pub positions: Vec<u32>,
    /// Whether the graph has the integers themselves there, not what they stand for.
    pub codes: bool,
}

/// A graph lowered to integers.
#[derive(Debug)]
pub struct Lowered {
    /// What runs.
    pub program: Program,
    /// What it does, node by node.
    pub proof: Proof,
    /// The graph's values that the program reads: codes.
    pub inputs: Vec<ValueId>,
    /// What it makes.
    pub outputs: Vec<Output>,
    /// Nodes that run before, on floats.
    pub before: BTreeSet<NodeId>,
    /// Nodes that run after.
    pub after: BTreeSet<NodeId>,
    /// The shapes of integers, which the graph reads; those of the inputs decide them.
    pub folded: Vec<(ValueId, Tensor)>,
}

/// Lowers a graph for inputs of some shapes.
///
/// # Errors
/// The first node between a QuantizeLinear and a DequantizeLinear that needs floats.
pub fn lower(graph: &Graph, shapes: &Shapes, options: Options, exec: &Exec) -> Result<Lowered, LowerError> {
    let fact = |s: &Vec<usize>, v: &ValueId| {
        let dtype = graph.value(*v).ty.tensor().and_then(|t| t.dtype);
        let dims = s.iter().map(|&d| Dim::from(d)).collect();
        Fact { ty: ValueType::Tensor(TensorType { dtype, shape: Some(dims) }), ..Fact::default() }
    };
    let bound = shapes.iter().map(|(v, s)| (*v, fact(s, v))).collect();
    let facts = infer::infer(graph, &bound, infer::Options { max_folded: 4096, strict: true })?;
    let mut cx = Lowering {
        graph,
        facts,
        options,
        exec,
        states: BTreeMap::new(),
        widths: Vec::new(),
        lens: Vec::new(),
        program: Program::default(),
        proof: Proof::default(),
        inputs: Vec::new(),
        before: BTreeSet::new(),
        after: BTreeSet::new(),
        folded: Vec::new(),
        shiftmax: shiftmax::all(graph),
        inner: BTreeSet::new(),
        shares: BTreeMap::new(),
        reason: None,
    };
    for (id, node) in graph.nodes() {
        cx.node(id, node)?;
    }
    cx.finish()
}

/// The most elements of a tensor: what a hostile shape can ask for.
const MOST_ELEMENTS: usize = 1 << 28;

/// Checks that a tensor is of a size that programs are made for. An extent of 0 does not excuse the others: there are
/// tables with an entry for each channel.
fn fits(shape: &[usize]) -> Result<(), Why> {
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1))).filter(|n| *n <= MOST_ELEMENTS);
    count.map(|_| ()).ok_or_else(|| format!("a tensor of shape {shape:?} is too large"))
}

/// Why a node has no integer form, as the end of a sentence.
type Why = String;

/// What is known of a value.
#[derive(Debug, Clone)]
enum State {
    /// Integers, and whether the graph has them as they are (not what they stand for).
    Ints { fixed: Fixed, codes: bool, clip: Clip },
    /// Constant integers behind a DequantizeLinear.
    Constant(Codes),
    /// A function of one element, on its way into a table.
    Curve(curve::Curve),
    /// A float behind the program.
    After,
}

/// Bounds that wait for the rounding behind them, which they commute with: none, one, or one for each channel of an image.
#[derive(Debug, Clone, PartialEq, Default)]
struct Clip {
    low: Vec<crate::Dyadic>,
    high: Vec<crate::Dyadic>,
}

struct Lowering<'a> {
    graph: &'a Graph,
    facts: Facts,
    options: Options,
    exec: &'a Exec,
    states: BTreeMap<ValueId, State>,
    /// Width and number of integers of each register.
    widths: Vec<Width>,
    lens: Vec<usize>,
    program: Program,
    proof: Proof,
    inputs: Vec<ValueId>,
    before: BTreeSet<NodeId>,
    after: BTreeSet<NodeId>,
    folded: Vec<(ValueId, Tensor)>,
    /// The softmaxes of powers of two that the graph writes in several nodes, by the first of these.
    shiftmax: BTreeMap<NodeId, Shiftmax>,
    /// The nodes of those that the program computes, but for their first.
    inner: BTreeSet<NodeId>,
    /// Quotients by the sum of some value's magnitudes: that value, and the greatest magnitude of a dividend, which bounds the
    /// product of the two.
    shares: BTreeMap<ValueId, (ValueId, i64)>,
    /// The first node without integer form, and why.
    reason: Option<(NodeId, Why)>,
}

impl Lowering<'_> {
    fn node(&mut self, id: NodeId, node: &Node) -> Result<(), LowerError> {
        if self.inner.contains(&id) {
            return Ok(());
        }
        let state = |v: &ValueId| self.states.get(v);
        let mut read = node.inputs.iter().flatten();
        let after = node.inputs.iter().flatten().any(|v| matches!(state(v), Some(State::After)));
        let ints = read.any(|v| matches!(state(v), Some(State::Ints { .. } | State::Curve(_))));
        if node.op.name() == "QuantizeLinear" && after {
            return Err(self.needs_floats());
        }
        if after {
            self.leave(id, node);
            return Ok(());
        }
        if let Some(known) = self.known(node).filter(|_| ints) {
            self.folded.push(known);
            return Ok(());
        }
        let done = match node.op.name() {
            "QuantizeLinear" if !ints => self.enter(id, node),
            "DequantizeLinear" if !ints => self.constant_or_input(id, node),
            _ if !ints => {
                self.before.insert(id);
                return Ok(());
            }
            _ => self.compute(id, node),
        };
        if let Err(why) = done {
            self.reason.get_or_insert((id, why));
            // Codes on one side of it are the program's, on the other nobody's.
            if node.op.name() == "QuantizeLinear" || ints && node.op.name() == "DequantizeLinear" {
                return Err(self.needs_floats());
            }
            self.leave(id, node);
        }
        Ok(())
    }

    /// What a Shape makes: that of a tensor says nothing of its integers.
    fn known(&self, node: &Node) -> Option<(ValueId, Tensor)> {
        let v = node.output(0).filter(|_| matches!(node.op.name(), "Shape" | "Size"))?;
        Some((v, self.facts.get(v).value.clone()?))
    }

    fn leave(&mut self, id: NodeId, node: &Node) {
        self.after.insert(id);
        self.states.extend(node.outputs.iter().flatten().map(|&v| (v, State::After)));
    }

    fn needs_floats(&self) -> LowerError {
        let Some((id, why)) = &self.reason else { return LowerError::NotQuantized };
        let node = self.graph.node(*id);
        LowerError::NeedsFloats { node: node.name.clone(), op: node.op.name().into(), why: why.clone() }
    }

    fn compute(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        if let Some(s) = self.shiftmax.get(&id).cloned() {
            return self.shift_softmax(node, &s);
        }
        if self.is_curve(node) {
            return self.curve(id, node);
        }
        if let Some(State::Curve(c)) = node.input(0).and_then(|v| self.states.get(&v)).cloned()
            && node.op.name() == "QuantizeLinear"
        {
            return self.tabulate(id, node, c);
        }
        match node.op.name() {
            "QuantizeLinear" => self.quantize(id, node),
            "DequantizeLinear" => self.dequantize(node),
            "Conv" | "ConvTranspose" | "Gemm" | "MatMul" => self.product(id, node),
            "Relu" | "Clip" | "Min" | "Max" => self.clip(id, node),
            "Mul" | "Div" if self.factor(node).is_some() => self.scale(id, node),
            "Add" | "Sub" | "Mul" => self.join(id, node),
            "Div" => self.quotient(id, node),
            "Cast" => self.cast(id, node),
            "Abs" => self.magnitude(id, node),
            "ReduceSum" => self.total(id, node),
            "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" | "ReduceMean" => self.pool(id, node),
            _ => self.movement(id, node),
        }
    }

    /// The integers of an input that has no constant or pending bounds.
    fn ints(&mut self, node: &Node, i: usize) -> Result<Fixed, Why> {
        let v = node.input(i).ok_or_else(|| format!("input {i} is missing"))?;
        match self.states.get(&v).cloned() {
            Some(State::Ints { fixed, clip, .. }) => self.settle(fixed, clip),
            Some(State::Constant(codes)) => Ok(self.constant(&codes)),
            _ => Err(format!("input \"{}\" is a float", self.graph.value(v).name)),
        }
    }

    /// As [`Lowering::ints`], where integers of the graph itself, which wrap around, are no operand.
    fn reals(&mut self, node: &Node, i: usize) -> Result<Fixed, Why> {
        match node.input(i).and_then(|v| self.states.get(&v)) {
            Some(State::Ints { codes: true, .. }) => Err("it computes with codes".into()),
            _ => self.ints(node, i),
        }
    }

    fn shape(&self, v: ValueId) -> Result<Vec<usize>, Why> {
        let shape = self.facts.get(v).ty.tensor().and_then(TensorType::concrete_shape);
        let shape: Result<Vec<usize>, Why> =
            shape.ok_or_else(|| format!("the shape of \"{}\" is only known at run time", self.graph.value(v).name));
        let shape = shape?;
        fits(&shape)?;
        Ok(shape)
    }

    /// Adds a register.
    fn register(&mut self, width: Width, len: usize) -> Register {
        self.widths.push(width);
        self.lens.push(len);
        self.widths.len() - 1
    }

    /// Adds a step.
    fn step(&mut self, step: Step, from: &[Register], width: Width, len: usize) -> Register {
        let to = self.register(width, len);
        self.program.lines.push(Line { step, from: from.to_vec(), to, width, done: Vec::new() });
        to
    }

    /// Integers that the program holds from the start.
    fn constant(&mut self, codes: &Codes) -> Fixed {
        let bounds = codes.values.iter().fold((0, 0), |(lo, hi), &v| (v.min(lo), v.max(hi)));
        let width = Width::wide(bounds);
        let register = self.register(width, codes.values.len());
        self.program.constants.push((register, Data::of(width, &codes.values)));
        let (shape, unit) = (codes.shape.clone(), codes.unit.clone());
        Fixed { register, shape, layout: Layout::Plain, unit, zero: 0, bounds }
    }

    fn set(&mut self, node: &Node, fixed: Fixed) {
        if let Some(v) = node.output(0) {
            self.states.insert(v, State::Ints { fixed, codes: false, clip: Clip::default() });
        }
    }

    fn row(&mut self, id: NodeId, integers: String, bounds: (i64, i64)) -> &mut ProofRow {
        let node = self.graph.node(id);
        self.proof.rows.push(ProofRow {
            node: node.name.clone(),
            op: node.op.name().into(),
            integers,
            multiplier_bits: None,
            shift: None,
            bounds,
            bits: bits_of(bounds),
            saturates: false,
        });
        let last = self.proof.rows.len() - 1;
        &mut self.proof.rows[last]
    }

    /// The tensor in a layout.
    fn laid(&mut self, x: Fixed, layout: Layout) -> Fixed {
        if x.layout == layout {
            return x;
        }
        let to = Fixed { layout, ..x.clone() };
        let (from, to) = (x.layout.positions(&x.shape), to.layout.positions(&x.shape));
        let mut indices = vec![0; from.len()];
        from.iter().zip(&to).for_each(|(&f, &t)| indices[t as usize] = f);
        let register = self.gathered(&[x.register], indices, 0, self.widths[x.register]);
        Fixed { register, layout, ..x }
    }

    /// A gather, or the register itself where that changes nothing.
    fn gathered(&mut self, from: &[Register], indices: Vec<u32>, fill: i64, width: Width) -> Register {
        let same = indices.iter().enumerate().all(|(i, &x)| i == x as usize);
        match from {
            [r] if same && self.widths[*r] == width && self.lens[*r] == indices.len() => *r,
            _ => {
                let len = indices.len();
                self.step(Step::Gather(indices, fill), from, width, len)
            }
        }
    }

    fn finish(mut self) -> Result<Lowered, LowerError> {
        if self.inputs.is_empty() {
            return Err(LowerError::NotQuantized);
        }
        let mut outputs = Vec::new();
        let wanted: Vec<ValueId> = self.states.keys().copied().filter(|&v| self.is_wanted(v)).collect();
        for v in wanted {
            if matches!(self.states.get(&v), Some(State::Curve(_))) {
                return Err(self.at_end(v, "its result is used before it is rounded".into()));
            }
            let Some(State::Ints { fixed, codes, clip }) = self.states.get(&v).cloned() else { continue };
            let fixed = self.settle(fixed, clip).map_err(|why| self.at_end(v, why))?;
            let positions = fixed.layout.positions(&fixed.shape);
            self.program.outputs.push(fixed.register);
            outputs.push(Output { value: v, unit: fixed.unit, zero: fixed.zero, shape: fixed.shape, positions, codes });
        }
        self.program.registers = self.widths.len();
        self.program.finish();
        let name = |id: &NodeId| self.graph.node(*id).name.clone();
        let out = |id: &&NodeId| self.graph.node(**id).output(0);
        let constant = |id: &&NodeId| out(id).is_some_and(|v| matches!(self.states.get(&v), Some(State::Constant(_))));
        self.proof.before = self.before.iter().filter(|id| !constant(id)).map(name).collect();
        self.proof.after = self.after.iter().map(name).collect();
        self.proof.first_after = self.reason.as_ref().map(|(id, why)| {
            let node = self.graph.node(*id);
            format!("{} ({}): {why}", node.name, node.op.name())
        });
        let Lowering { program, proof, inputs, before, after, folded, .. } = self;
        Ok(Lowered { program, proof, inputs, outputs, before, after, folded })
    }

    /// Whether the graph or a node behind the program reads a value.
    fn is_wanted(&self, v: ValueId) -> bool {
        self.graph.is_output(v) || self.graph.uses(v).iter().any(|u| self.after.contains(&u.node))
    }

    fn at_end(&self, v: ValueId, why: Why) -> LowerError {
        let node = self.graph.producer(v).map(|(n, _)| self.graph.node(n));
        let (name, op) = node.map_or_else(Default::default, |n| (n.name.clone(), n.op.name().to_owned()));
        LowerError::NeedsFloats { node: name, op, why }
    }
}
