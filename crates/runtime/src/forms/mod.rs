//! The other ways to write a quantized network, brought to the one that [`crate::lower`] knows.
//!
//! QLinear products ([`qoperator`]) and products of integers with their scaling behind them ([`dynamic`]) mean the
//! same as DequantizeLinear → operator → QuantizeLinear; a [`batchnorm`] that is left behind an integer convolution is
//! a part of its weights' scales, and so is a scale per channel of what a depthwise convolution reads ([`channels`]).
//! They are rewritten when a session is made, so that one lowering serves every tool's files. What a rule does not
//! know stays as it is and runs on its own `eval`.

mod batchnorm;
mod channels;
mod dynamic;
mod half;
mod qoperator;
mod rows;

pub use half::widen;

use std::collections::BTreeMap;
use std::sync::Arc;

use narrowbit_ir::{AttrMap, Datum, EvalCx, Graph, Node, Op, OpSource, Patch, PatchError, ValueId};
use narrowbit_ops::Registry;
use narrowbit_tensor::{DType, Element, Tensor};

/// The opset whose forms are written: the first that has all of them.
const OPSET: i64 = 21;

/// The graph with QuantizeLinear and DequantizeLinear instead of operators on integers; `None` where it has none.
///
/// # Errors
/// Never for a graph that verifies.
pub fn to_qdq(graph: &Graph) -> Result<Option<Graph>, PatchError> {
    let to_qdq = |name: &str| {
        let other: Option<Rule> = match name {
            "BatchNormalization" => Some(batchnorm::fold),
            "DequantizeLinear" => Some(single),
            _ => None,
        };
        qoperator::rule(name).or_else(|| dynamic::rule(name)).or(other)
    };
    let first = pass(graph, &to_qdq)?;
    let second = pass(first.as_ref().unwrap_or(graph), &channels::rule)?;
    Ok(second.or(first))
}

/// A constant of one element behind a DequantizeLinear: a factor or a bound that a tool quantized with all the rest.
fn single(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let known = |v: &ValueId| Some(Datum::Tensor(r.graph.constant(*v)?.clone()));
    let inputs: Option<Vec<Datum>> = node.inputs.iter().flatten().map(known).collect();
    let (inputs, y) = (inputs?, node.output(0)?);
    let one = inputs.first().is_some_and(|x| matches!(x, Datum::Tensor(t) if t.len() == 1));
    if !one || inputs.len() != node.inputs.len() || r.graph.is_output(y) {
        return None;
    }
    let refs: Vec<Option<&Datum>> = inputs.iter().map(Some).collect();
    let value = node.op.eval(&EvalCx::new(&refs, 1)).ok()?.into_iter().next()?;
    let dtype = Some(value.dtype());
    Some(Made { value: r.patch.constant(&r.graph.value(y).name, value), dtype, of: None })
}

/// One edit of the whole graph by the rules of its operators.
fn pass(graph: &Graph, rule: &dyn Fn(&str) -> Option<Rule>) -> Result<Option<Graph>, PatchError> {
    let mut rewriter = Rewriter::new(graph);
    for (_, node) in graph.nodes() {
        if let (Some(y), Some(rule)) = (node.output(0), rule(node.op.name()))
            && let Some(made) = rule(&mut rewriter, node)
        {
            rewriter.replace(made.of.unwrap_or(y), made.value, made.dtype);
        }
    }
    if rewriter.moved.is_empty() {
        return Ok(None);
    }
    let mut graph = graph.clone();
    graph.apply(rewriter.patch)?;
    Ok(Some(graph))
}

/// Scale and zero point of a tensor: one for all, or one per channel.
#[derive(Debug, Clone)]
struct Params {
    scales: Vec<f32>,
    zeros: Vec<i64>,
    dtype: DType,
}

/// One edit of the whole graph, in the order of its nodes.
struct Rewriter<'a> {
    graph: &'a Graph,
    patch: Patch,
    /// What stands for a value of the graph from here on.
    moved: BTreeMap<ValueId, ValueId>,
    /// The element types of values that nothing else tells.
    dtypes: BTreeMap<ValueId, DType>,
    /// Codes, scale and zero point that were made of floats here.
    ranges: BTreeMap<ValueId, [Option<ValueId>; 3]>,
    /// Codes whose rows have a scale each.
    rows: BTreeMap<ValueId, rows::Rows>,
}

impl<'a> Rewriter<'a> {
    fn new(graph: &'a Graph) -> Rewriter<'a> {
        Rewriter {
            graph,
            patch: Patch::new(graph),
            moved: BTreeMap::new(),
            dtypes: BTreeMap::new(),
            ranges: BTreeMap::new(),
            rows: BTreeMap::new(),
        }
    }

    fn replace(&mut self, old: ValueId, new: ValueId, dtype: Option<DType>) {
        self.patch.replace(old, new);
        self.moved.insert(old, new);
        self.dtypes.extend(dtype.map(|d| (old, d)));
    }

    /// What stands for input `i` of a node.
    fn input(&self, node: &Node, i: usize) -> Option<ValueId> {
        let v = node.input(i)?;
        Some(self.moved.get(&v).copied().unwrap_or(v))
    }

    /// The element type of a value of the graph, where it is known.
    fn dtype(&self, v: ValueId) -> Option<DType> {
        let constant = self.graph.constant(v).map(Tensor::dtype);
        let said = || self.graph.value(v).ty.tensor()?.dtype;
        constant.or_else(|| self.dtypes.get(&v).copied()).or_else(said)
    }

    fn make(&self, name: &str, mut attrs: AttrMap) -> Option<Arc<dyn Op>> {
        Registry.build("", name, OPSET, &mut attrs)?.ok()
    }

    /// A node of ONNX's own domain with one output.
    fn add(&mut self, name: &str, op: &str, inputs: &[Option<ValueId>], attrs: AttrMap) -> Option<ValueId> {
        let op = self.make(op, attrs)?;
        Some(self.patch.node(name, op, inputs))
    }

    /// Constant scales (input `i`) and zero points (input `i + 1`; 0 where absent) of 8-bit data.
    fn params(&self, node: &Node, i: usize, data: Option<ValueId>) -> Option<Params> {
        let scale = self.graph.constant(node.input(i)?).filter(|t| t.dtype() == DType::F32 && !t.is_empty())?;
        let zero = node.input(i + 1).map(|z| self.graph.constant(z));
        let (zeros, dtype) = match zero {
            Some(zero) => (zero?.to_i64s().ok()?, zero?.dtype()),
            None => (vec![0], self.dtype(data?)?),
        };
        let scales = scale.to_f32s().ok()?.into_owned();
        let count = scales.len().max(zeros.len());
        let fits = |n: usize| n == 1 || n == count;
        let known = matches!(dtype, DType::U8 | DType::I8) && fits(scales.len()) && fits(zeros.len());
        let spread = |n: usize, i: usize| if n == 1 { 0 } else { i };
        known.then(|| Params {
            scales: (0..count).map(|i| scales[spread(scales.len(), i)]).collect(),
            zeros: (0..count).map(|i| zeros[spread(zeros.len(), i)]).collect(),
            dtype,
        })
    }

    /// As [`Rewriter::params`], of one scale for all.
    fn single(&self, node: &Node, i: usize, data: Option<ValueId>) -> Option<Params> {
        self.params(node, i, data).filter(|p| p.scales.len() == 1)
    }

    /// Constants of scale and zero point, and the attributes that go with them.
    fn constants(&mut self, name: &str, p: &Params, axis: i64) -> Option<(ValueId, ValueId, AttrMap)> {
        let (shape, attrs) = match p.scales.len() {
            1 => (Vec::new(), AttrMap::new()),
            n => (vec![n], AttrMap::new().with("axis", axis)),
        };
        let zeros = Tensor::from_i64s(p.dtype, shape.clone(), &p.zeros).ok()?;
        let scales = Tensor::new(shape, p.scales.clone()).ok()?;
        let scale = self.patch.constant(&format!("{name}_scale"), scales);
        Some((scale, self.patch.constant(&format!("{name}_zero_point"), zeros), attrs))
    }

    fn dequantize(&mut self, name: &str, x: ValueId, p: &Params, axis: i64) -> Option<ValueId> {
        let name = format!("{name}_dequantized");
        let (scale, zero, attrs) = self.constants(&name, p, axis)?;
        self.add(&name, "DequantizeLinear", &[Some(x), Some(scale), Some(zero)], attrs)
    }

    fn quantize(&mut self, name: &str, x: ValueId, p: &Params) -> Option<Made> {
        let name = format!("{name}_quantized");
        let (scale, zero, attrs) = self.constants(&name, p, 0)?;
        let y = self.add(&name, "QuantizeLinear", &[Some(x), Some(scale), Some(zero)], attrs)?;
        Some(Made { value: y, dtype: Some(p.dtype), of: None })
    }

    /// The elements of a constant, where it is one.
    fn elements<T: Element>(&self, v: ValueId) -> Option<Vec<T>> {
        Some(self.graph.constant(v)?.slice::<T>().ok()?.into_owned())
    }
}

/// What stands for a node's result.
struct Made {
    value: ValueId,
    /// Its element type, where it is known.
    dtype: Option<DType>,
    /// The value that it replaces; `None` is the node's output.
    of: Option<ValueId>,
}

impl Made {
    fn float(value: ValueId) -> Made {
        Made { value, dtype: Some(DType::F32), of: None }
    }
}

type Rule = fn(&mut Rewriter, &Node) -> Option<Made>;
