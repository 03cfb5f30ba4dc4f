//! Where a graph with QuantizeLinear and DequantizeLinear computes on integers.

use narrowbit_ir::infer::Facts;
use narrowbit_ir::{Graph, Node, ValueId};
use narrowbit_tensor::{DType, Tensor};

/// The format of a quantized tensor: one scale and zero point for all of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QParams {
    /// u8 or i8.
    pub dtype: DType,
    /// The scale.
    pub scale: f32,
    /// The zero point.
    pub zero: i32,
}

/// A value that is quantized in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantized {
    /// The integers.
    pub value: ValueId,
    /// What they mean; scale 1 and zero point 0 stand for what `runtime` has.
    pub params: QParams,
    /// Scale and zero point that are known only at run time.
    pub runtime: Option<Runtime>,
}

/// Scale and zero point as values of one element each, or of one for each row along the last axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Runtime {
    /// The scale, f32.
    pub scale: ValueId,
    /// The zero point, of the type of the integers; absent for 0.
    pub zero: Option<ValueId>,
    /// Whether each row has its own.
    pub by_row: bool,
}

/// Integer weights behind a DequantizeLinear.
#[derive(Debug, Clone)]
pub struct IntWeights {
    /// The constant of u8 or i8.
    pub value: ValueId,
    /// One scale, or one per channel.
    pub scales: Vec<f32>,
    /// As many zero points as scales.
    pub zeros: Vec<i32>,
}

/// The scale and zero point of a QuantizeLinear or DequantizeLinear for integers of `dtype`.
fn params(facts: &Facts, node: &Node, dtype: DType) -> Option<QParams> {
    params_at(facts, node, 1, dtype)
}

/// The scale (input `i`) and zero point (input `i + 1`) that an operator has for integers of `dtype`.
pub fn params_at(facts: &Facts, node: &Node, i: usize, dtype: DType) -> Option<QParams> {
    let scale = facts.get(node.input(i)?).value.as_ref().filter(|t| t.len() == 1 && t.dtype() == DType::F32)?;
    let zero = match node.input(i + 1) {
        None => 0,
        Some(z) => single(facts.get(z).value.as_ref()?)?,
    };
    let scale = *scale.to_f32s().ok()?.first()?;
    let fits = matches!(dtype, DType::U8 | DType::I8) && scale.is_normal() && scale > 0.0;
    fits.then_some(QParams { dtype, scale, zero })
}

fn single(t: &Tensor) -> Option<i32> {
    let values = t.to_i64s().ok()?;
    (values.len() == 1).then(|| i32::try_from(values[0]).ok())?
}

/// The integers that a value is dequantized from, unless they are constant.
pub fn source(graph: &Graph, facts: &Facts, v: ValueId) -> Option<Quantized> {
    let node = graph.node(graph.producer(v)?.0);
    let x = node.input(0).filter(|_| node.op.name() == "DequantizeLinear")?;
    if facts.get(x).value.is_some() || facts.dtype(v) != Some(DType::F32) {
        return None;
    }
    Some(Quantized { value: x, params: params(facts, node, facts.dtype(x)?)?, runtime: None })
}

/// As [`source`], also with a scale and zero point that are made at run time: one of each.
pub fn any_source(graph: &Graph, facts: &Facts, v: ValueId) -> Option<Quantized> {
    let fixed = source(graph, facts, v);
    if fixed.is_some() {
        return fixed;
    }
    let node = graph.node(graph.producer(v)?.0);
    let x = node.input(0).filter(|_| node.op.name() == "DequantizeLinear")?;
    let dtype = facts.dtype(x).filter(|d| matches!(d, DType::U8 | DType::I8))?;
    let single = |v: ValueId| facts.shape(v).is_some_and(|s| s.len() <= 1 && s.iter().all(|d| d.as_usize() == Some(1)));
    let (scale, zero) = (node.input(1)?, node.input(2));
    let by_row = is_blocked_by_row(facts, node, x);
    let shaped = |v: ValueId| if by_row { is_column(facts, v, x) } else { single(v) };
    let fits = facts.dtype(scale) == Some(DType::F32) && shaped(scale) && zero.is_none_or(shaped);
    let made = facts.get(x).value.is_none() && facts.dtype(v) == Some(DType::F32);
    let params = QParams { dtype, scale: 1.0, zero: 0 };
    (fits && made).then_some(Quantized { value: x, params, runtime: Some(Runtime { scale, zero, by_row }) })
}

/// Whether the blocks of a DequantizeLinear are the rows along the last axis.
fn is_blocked_by_row(facts: &Facts, node: &Node, x: ValueId) -> bool {
    let mut attrs = node.op.attrs();
    let (block, axis) = (attrs.int_or("block_size", 0).unwrap_or(0), attrs.int_or("axis", 1).unwrap_or(1));
    let Some(shape) = facts.shape(x) else { return false };
    let last = narrowbit_tensor::shape::axis(axis, shape.len()).is_some_and(|a| a + 1 == shape.len());
    let columns = shape.last().and_then(|d| d.as_usize()).and_then(|d| i64::try_from(d).ok());
    last && block > 0 && columns.is_some_and(|c| c <= block)
}

/// Whether a value has one element for each row of `x` along the last axis.
fn is_column(facts: &Facts, v: ValueId, x: ValueId) -> bool {
    let (Some([rows @ .., one]), Some([all @ .., _])) = (facts.shape(v), facts.shape(x)) else { return false };
    let same =
        |(a, b): (&narrowbit_ir::Dim, &narrowbit_ir::Dim)| a.as_usize().is_some() && a.as_usize() == b.as_usize();
    one.as_usize() == Some(1) && rows.len() == all.len() && rows.iter().zip(all).all(same)
}

/// A sum or product of two tensors of codes (QLinearAdd, QLinearMul).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CodeBinary {
    /// The codes of both operands, and what they mean.
    pub operands: [(ValueId, QParams); 2],
    /// The format of the result.
    pub output: QParams,
}

impl CodeBinary {
    /// The scales of a sum's operands over that of its result, and the result's zero point less theirs in its units, in
    /// the arithmetic of ONNX Runtime's QLinearAdd.
    pub fn sum(&self) -> ([f32; 2], f32) {
        let [(_, a), (_, b)] = self.operands;
        let ratios = [a.scale / self.output.scale, b.scale / self.output.scale];
        (ratios, self.output.zero as f32 - ratios[0].mul_add(a.zero as f32, ratios[1] * b.zero as f32))
    }
}

/// The operands of a QLinearAdd or QLinearMul whose formats are known.
pub fn code_binary(facts: &Facts, node: &Node) -> Option<CodeBinary> {
    let (a, b) = (node.input(0)?, node.input(3)?);
    let dtype = facts.dtype(a).filter(|d| facts.dtype(b) == Some(*d))?;
    let format = |i: usize| params_at(facts, node, i, dtype);
    matches!(node.op.name(), "QLinearAdd" | "QLinearMul").then_some(())?;
    Some(CodeBinary { operands: [(a, format(1)?), (b, format(4)?)], output: format(6)? })
}

/// The format that a QuantizeLinear gives.
pub fn target(facts: &Facts, node: &Node) -> Option<QParams> {
    let y = node.output(0).filter(|_| node.op.name() == "QuantizeLinear")?;
    if facts.dtype(node.input(0)?) != Some(DType::F32) {
        return None;
    }
    params(facts, node, facts.dtype(y)?)
}

/// The weights that a constant is dequantized from, with scales along `axis` of `rank`.
pub fn weights(graph: &Graph, facts: &Facts, v: ValueId, axis: usize) -> Option<IntWeights> {
    let node = graph.node(graph.producer(v)?.0);
    let x = node.input(0).filter(|_| node.op.name() == "DequantizeLinear")?;
    let t = facts.get(x).value.as_ref().filter(|t| matches!(t.dtype(), DType::U8 | DType::I8))?;
    let scales = facts.get(node.input(1)?).value.as_ref().filter(|t| t.rank() <= 1 && t.dtype() == DType::F32)?;
    let attrs = node.op.attrs();
    if attrs.clone().int_or("block_size", 0).ok()? != 0 {
        return None;
    }
    if scales.len() != 1 {
        let along = attrs.clone().int_or("axis", 1).ok()?;
        let along = narrowbit_tensor::shape::axis(along, t.rank())?;
        if along != axis || t.shape()[axis] != scales.len() {
            return None;
        }
    }
    let zeros = match node.input(2) {
        None => vec![0; scales.len()],
        Some(z) => facts.get(z).value.as_ref()?.to_i64s().ok()?.iter().map(|&z| z as i32).collect(),
    };
    let scales = scales.to_f32s().ok()?.into_owned();
    (zeros.len() == scales.len()).then_some(IntWeights { value: x, scales, zeros })
}

/// Phases of a transposed convolution for which one of its own each still pays.
pub const MOST_PHASES: usize = 64;

/// The axis of a product's weights that its output channels lie on.
pub fn channel_axis(node: &Node, rank: usize) -> usize {
    match node.op.name() {
        "Conv" => 0,
        "ConvTranspose" => 1,
        "Gemm" if node.op.attrs().int_or("transB", 0).is_ok_and(|t| t != 0) => 0,
        _ => rank.saturating_sub(1),
    }
}

/// The operands of a Conv, MatMul or Gemm that can run on integers; the second one is `None`
/// where it is weights.
pub fn product_operands(graph: &Graph, facts: &Facts, node: &Node) -> Option<Vec<Option<Quantized>>> {
    let x = any_source(graph, facts, node.input(0)?)?;
    let w = node.input(1)?;
    let (rank, w_rank) = (facts.shape(x.value)?.len(), facts.shape(w)?.len());
    let constant = |v: Option<ValueId>| v.is_none_or(|v| is_constant(graph, facts, v));
    let weighted = weights(graph, facts, w, channel_axis(node, w_rank)).is_some();
    let by_row = |q: &Quantized| q.runtime.is_some_and(|r| r.by_row);
    match node.op.name() {
        "Conv" if by_row(&x) => None,
        "Conv" => ((3..=5).contains(&rank) && weighted && constant(node.input(2))).then(|| vec![Some(x), None]),
        "ConvTranspose" => {
            let fits = (3..=5).contains(&rank) && weighted && constant(node.input(2)) && !by_row(&x);
            (fits && has_phases(facts, node)).then(|| vec![Some(x), None])
        }
        "Gemm" => {
            let plain = node.op.attrs().int_or("transA", 0).ok()? == 0;
            let rows = node.input(2).is_none_or(|c| bias_row(graph, facts, c, node));
            (plain && weighted && rows).then(|| vec![Some(x), None])
        }
        // The rows of a stack's products have one format.
        "MatMul" if weighted => (rank >= 2 && (w_rank == 2 || w_rank > 2 && !by_row(&x))).then(|| vec![Some(x), None]),
        "MatMul" => {
            let b = any_source(graph, facts, w).filter(|b| !by_row(b) && !by_row(&x))?;
            (rank >= 2 && w_rank >= 2).then(|| vec![Some(x), Some(b)])
        }
        _ => None,
    }
}

/// Whether a ConvTranspose has so few phases that a convolution for each of them pays, or tiles its output.
fn has_phases(facts: &Facts, node: &Node) -> bool {
    let known = |v: Option<ValueId>| {
        v.and_then(|v| facts.shape(v)).is_some_and(|s| s.iter().all(|d| d.as_usize().is_some_and(|n| n > 0)))
    };
    let strides = node.op.attrs().ints("strides").ok().flatten().unwrap_or_default();
    let count = strides.iter().try_fold(1i64, |all, &s| all.checked_mul(s));
    let windows = node.input(1).and_then(|w| facts.shape(w)?.get(2..)?.iter().map(|d| d.as_usize()).collect());
    let tiles = windows.is_some_and(|w: Vec<usize>| w.iter().map(|&k| k as i64).eq(strides.iter().copied()));
    let few = count.is_some_and(|n| n <= MOST_PHASES as i64);
    known(node.input(0)) && known(node.input(1)) && known(node.output(0)) && (tiles || few)
}

/// Whether a value does not depend on the model's inputs: a constant, or one behind a DequantizeLinear.
pub fn is_constant(graph: &Graph, facts: &Facts, v: ValueId) -> bool {
    let known = |v: ValueId| facts.get(v).value.is_some();
    let dequantized = |v: ValueId| {
        graph.producer(v).is_some_and(|(n, _)| {
            let node = graph.node(n);
            node.op.name() == "DequantizeLinear" && node.inputs.iter().flatten().all(|&v| known(v))
        })
    };
    known(v) || dequantized(v)
}

/// Whether a Gemm's third operand is a constant row, one element per column.
fn bias_row(graph: &Graph, facts: &Facts, c: ValueId, node: &Node) -> bool {
    let columns = node.output(0).and_then(|y| facts.shape(y)?.last()?.as_usize());
    let shape: Option<Vec<usize>> = facts.shape(c).map(|s| s.iter().map(|d| d.as_usize().unwrap_or(0)).collect());
    let row =
        shape.is_some_and(|s| s.last().copied() == columns && s.iter().product::<usize>() == columns.unwrap_or(0));
    row && is_constant(graph, facts, c)
}

/// The operands of a binary or unary operator that can run on integers.
pub fn elementwise_operands(graph: &Graph, facts: &Facts, node: &Node) -> Option<Vec<Option<Quantized>>> {
    match node.op.name() {
        "Add" | "Sub" | "Mul" if node.inputs.len() == 2 && !by_table(graph, facts, node) => {
            let operands: Vec<_> = node.inputs.iter().map(|v| source(graph, facts, (*v)?)).collect();
            let float = node.inputs.iter().flatten().all(|&v| facts.dtype(v) == Some(DType::F32));
            // Floats times a constant row before their rounding are the kernel's too.
            let scaled = node.op.name() == "Mul" && node.inputs.iter().flatten().any(|&v| is_constant(graph, facts, v));
            let any = scaled || operands.iter().any(Option::is_some);
            (float && any && repeats(graph, facts, node)).then_some(operands)
        }
        "GlobalAveragePool" | "AveragePool" => {
            let x = source(graph, facts, node.input(0)?)?;
            (3..=5).contains(&facts.shape(x.value)?.len()).then(|| vec![Some(x)])
        }
        "Softmax" | "LayerNormalization" | "RMSNormalization" | "BatchNormalization" => {
            let plain = node.outputs.iter().flatten().count() == 1;
            let x = node.input(0)?;
            let float = facts.dtype(x) == Some(DType::F32);
            (plain && float).then(|| vec![source(graph, facts, x)])
        }
        "Relu" | "Sigmoid" | "Tanh" | "Gelu" | "FastGelu" | "QuickGelu" | "HardSwish" | "Swish"
            if node.inputs.len() == 1 && source(graph, facts, node.input(0)?).is_none() =>
        {
            (facts.dtype(node.input(0)?) == Some(DType::F32)).then(|| vec![None])
        }
        name if is_function(name) && node.outputs.iter().flatten().count() == 1 => {
            let x = source(graph, facts, node.input(0)?)?;
            let same = facts.shape(x.value)? == facts.shape(node.output(0)?)?;
            let known = |v: &ValueId| facts.get(*v).value.as_ref().is_some_and(|t| t.len() == 1);
            (same && node.inputs.iter().skip(1).flatten().all(known)).then(|| vec![Some(x)])
        }
        _ => None,
    }
}

/// Whether an operator of two operands is a function of its first one: the second is a single constant.
fn by_table(graph: &Graph, facts: &Facts, node: &Node) -> bool {
    let single = node.input(1).and_then(|v| facts.get(v).value.as_ref()).is_some_and(|t| t.len() == 1);
    single && node.input(0).is_some_and(|v| source(graph, facts, v).is_some())
}

/// Whether the kernel of two operands knows how they repeat: both of the result's shape, one of them a
/// constant of one element, along the last axis, or per channel of images, or one an element per image and channel.
fn repeats(graph: &Graph, facts: &Facts, node: &Node) -> bool {
    let shape = |v: Option<ValueId>| {
        let dims: Option<Vec<usize>> = facts.shape(v?)?.iter().map(|d| d.as_usize()).collect();
        dims
    };
    let (Some(y), Some(a), Some(b)) = (shape(node.output(0)), shape(node.input(0)), shape(node.input(1))) else {
        return false;
    };
    if a == y && b == y {
        return true;
    }
    let constant = |i: usize| node.input(i).is_some_and(|v| is_constant(graph, facts, v));
    let commutes = node.op.name() != "Sub";
    let along = |x: &[usize]| spread(&y, x).is_some();
    let fits = |i: usize, x: &[usize]| if constant(i) { along(x) } else { is_by_image(&y, x) };
    let right = a == y && !constant(0) && fits(1, &b);
    right || commutes && b == y && !constant(1) && fits(0, &a)
}

/// Whether `x` has one element for each image and channel of `y`, `[n, c, …]`.
pub fn is_by_image(y: &[usize], x: &[usize]) -> bool {
    y.len() > 2 && x.len() == y.len() && x[..2] == y[..2] && x[2..].iter().all(|&d| d == 1)
}

/// The axis of `y` that the elements of a smaller operand go along; the axis is `y`'s rank for a single element.
pub fn spread(y: &[usize], x: &[usize]) -> Option<usize> {
    if x.len() > y.len() {
        return None;
    }
    let first = y.len() - x.len();
    let long: Vec<usize> = (0..x.len()).filter(|&i| x[i] != 1).collect();
    match long[..] {
        [] => Some(y.len()),
        [i] if x[i] == y[first + i] => Some(first + i),
        _ => None,
    }
}

/// Operators that map each element by itself: a table of 256 entries computes them on integers.
pub fn is_function(name: &str) -> bool {
    let functions = [
        "Abs",
        "Add",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Div",
        "Elu",
        "Erf",
        "Exp",
        "FastGelu",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Log",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "PRelu",
        "Pow",
        "QuickGelu",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    ];
    functions.contains(&name)
}
