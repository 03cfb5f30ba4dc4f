//! Products with weights that are quantized by blocks (MatMulNBits, blocked DequantizeLinear before MatMul and Gemm), and
//! with weights of 2 and 4 bits: the codes stay packed.

use std::sync::Arc;

use narrowbit_ir::Node;
use narrowbit_kernels::Activation;
use narrowbit_kernels::blocks::{BlockShape, Blocks, LONGEST, Values, blocks_gemm, blocks_gemm_int8};
use narrowbit_kernels::panel::{Epilogue, Residual, Target};
use narrowbit_ops::microsoft::matmul_nbits::MatMulNBits;
use narrowbit_ops::quant::dequantize_linear::DequantizeLinear;
use narrowbit_tensor::{DType, Tensor, shape};

use super::Maybe;
use crate::error::StepError;
use crate::fuse::Fusion;
use crate::kernel::{BuildCx, Built, Kernel, RunCx};

/// The accuracy level of MatMulNBits that allows the rows to be rounded to int8 (com.microsoft.MatMulNBits).
const INT8_LEVEL: i64 = 4;

/// A weight by blocks as a model holds it. Codes are unsigned; `zeros` are in their terms.
struct Source {
    shape: BlockShape,
    /// Codes by column: `at(column, row)` is the place of one.
    codes: Vec<u8>,
    by_row: bool,
    /// By column and block; fewer where columns or blocks share one.
    scales: Scales,
    zeros: Option<Scales>,
    rounds: bool,
}

/// Numbers of columns and blocks, and the steps between them.
struct Scales {
    values: Vec<f32>,
    column: usize,
    block: usize,
}

impl Scales {
    /// One for each column and block, in two steps, checked against their number.
    fn new(values: Vec<f32>, (column, block): (usize, usize), shape: BlockShape) -> Option<Scales> {
        let last = (shape.n - 1) * column + (shape.blocks() - 1) * block;
        (last < values.len()).then_some(Scales { values, column, block })
    }

    fn copy(&self, column: usize, to: &mut [f32]) {
        to.iter_mut().enumerate().for_each(|(b, v)| *v = self.values[column * self.column + b * self.block]);
    }
}

/// The kernel of MatMulNBits with its epilogue.
pub fn build(cx: &BuildCx, f: &Fusion) -> Maybe {
    let Some(op) = cx.node.op.downcast::<MatMulNBits>() else { return Ok(None) };
    // The order of columns that `g_idx` gives is left to the reference.
    if cx.node.input(4).is_some() {
        return Ok(None);
    }
    let bias = match (cx.node.input(5), cx.floats(5)) {
        (None, _) => Vec::new(),
        (_, Some(bias)) if bias.len() == op.n => bias,
        _ => return Ok(None),
    };
    finish(cx, f, bias, || nbits(cx, op))
}

/// The kernel of a MatMul or Gemm whose weight is such; `None` for others.
pub fn dequantized(cx: &BuildCx, f: &Fusion) -> Maybe {
    if !is_dequantized(cx) {
        return Ok(None);
    }
    let gemm = cx.node.op.name() == "Gemm";
    if gemm && (cx.int("transA", 0) != 0 || cx.float("alpha", 1.0) != 1.0) {
        return Ok(None);
    }
    let bias = match (cx.node.input(2).filter(|_| gemm), cx.floats(2)) {
        (None, _) => Vec::new(),
        (_, Some(bias)) => bias.iter().map(|b| b * cx.float("beta", 1.0)).collect(),
        _ => return Ok(None),
    };
    finish(cx, f, bias, || dequantize(cx))
}

fn dequantizer<'a>(cx: &BuildCx<'a>) -> Option<(&'a Node, &'a DequantizeLinear)> {
    let (id, _) = cx.graph.producer(cx.node.input(1)?)?;
    let node = cx.graph.node(id);
    Some((node, node.op.downcast::<DequantizeLinear>()?))
}

/// Whether the second operand is a constant of few bits, or of 8 by blocks, behind a DequantizeLinear.
fn is_dequantized(cx: &BuildCx) -> bool {
    let Some((node, op)) = dequantizer(cx) else { return false };
    let Some(ty) = node.input(0).and_then(|x| (cx.types)(x)) else { return false };
    let few = matches!(ty.dtype, DType::I4 | DType::U4 | DType::I2 | DType::U2 | DType::F4E2M1);
    let bytes = matches!(ty.dtype, DType::I8 | DType::U8) && op.block_size > 0;
    (few || bytes) && ty.shape.len() == 2 && cx.is_constant(1) && cx.f32_shape(1).is_some()
}

fn finish(cx: &BuildCx, f: &Fusion, mut bias: Vec<f32>, source: impl FnOnce() -> Option<Source>) -> Maybe {
    let (Some(dims), Some(x), Some(out)) = (cx.f32_shape(0), cx.node.input(0), f.output) else { return Ok(None) };
    let Some((&k, rows)) = dims.split_last() else { return Ok(None) };
    if dims.len() < 2 {
        return Ok(None);
    }
    let Some(packed) = cached(cx, source)? else { return Ok(None) };
    let shape = packed.0.shape();
    if let Some(v) = f.bias {
        let Some(more) = (cx.consts)(v).and_then(|t| Some(t.to_f32s().ok()?.into_owned())) else { return Ok(None) };
        bias.resize(shape.n, 0.0);
        if more.len() != shape.n {
            return Ok(None);
        }
        bias.iter_mut().zip(more).for_each(|(b, more)| *b += more);
    }
    if shape.k != k || !(bias.is_empty() || bias.len() == shape.n) {
        return Ok(None);
    }
    let mut ins = vec![x];
    ins.extend(f.residual);
    let kernel = Product {
        m: rows.iter().product(),
        weights: packed,
        bias,
        residual: f.residual.is_some(),
        activation: f.activation,
    };
    Ok(Some(Built { kernel: Box::new(kernel), ins, outs: vec![out] }))
}

/// Writes what belongs to a column.
type ByColumn<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);
/// The packed weight, and whether rows are rounded; made once per session.
type Packed = Arc<(Blocks, bool)>;

fn cached(cx: &BuildCx, source: impl FnOnce() -> Option<Source>) -> Result<Option<Packed>, StepError> {
    /// A weight of another form.
    struct Other;
    enum Failed {
        Other(Other),
        Step(StepError),
    }
    let made = cx.weights.get(cx.id, "blocks", || {
        let source = source().ok_or(Failed::Other(Other))?;
        pack(cx, &source).map(|blocks| (blocks, source.rounds)).map_err(Failed::Step)
    });
    match made {
        Ok(packed) => Ok(Some(packed)),
        Err(Failed::Other(Other)) => Ok(None),
        Err(Failed::Step(e)) => Err(e),
    }
}

fn pack(cx: &BuildCx, source: &Source) -> Result<Blocks, StepError> {
    let BlockShape { k, n, .. } = source.shape;
    let codes = |column: usize, to: &mut [u8]| match source.by_row {
        true => to.iter_mut().enumerate().for_each(|(row, code)| *code = source.codes[row * n + column]),
        false => to.copy_from_slice(&source.codes[column * k..][..k]),
    };
    let scales = |column: usize, to: &mut [f32]| source.scales.copy(column, to);
    let zeros = |column: usize, to: &mut [f32]| {
        if let Some(zeros) = &source.zeros {
            zeros.copy(column, to);
        }
    };
    let zeros: Option<ByColumn> = source.zeros.is_some().then_some(&zeros);
    Ok(Blocks::pack(cx.exec, source.shape, &codes, &scales, zeros)?)
}

/// Whether the session lets rows be rounded where the model says nothing.
fn may_round(cx: &BuildCx, shape: BlockShape) -> bool {
    cx.exec.rounds_blocks() && shape.values == Values::Integers && shape.block <= LONGEST
}

/// Codes of `bits` each, low bits first, in rows of `bytes` bytes; the first `n` of each row.
fn rows_of_codes(data: &[u8], bits: usize, bytes: usize, n: usize) -> Vec<u8> {
    let (per, mask) = (8 / bits, (0xffu16 >> (8 - bits)) as u8);
    data.chunks_exact(bytes).flat_map(|row| (0..n).map(move |i| row[i / per] >> (bits * (i % per)) & mask)).collect()
}

/// The operands of MatMulNBits; `None` where they are not constant, or do not fit (the operator itself then says why).
fn nbits(cx: &BuildCx, op: &MatMulNBits) -> Option<Source> {
    let shape = BlockShape { k: op.k, n: op.n, bits: op.bits, block: op.block_size, values: Values::Integers };
    let (b, scales) = (cx.constant(1)?, cx.constant(2)?);
    let (blocks, bytes) = (shape.blocks(), shape.blocks().checked_mul(op.block_size / 8 * op.bits)?);
    if b.dtype() != DType::U8 || b.len() != op.n.checked_mul(bytes)? {
        return None;
    }
    let codes = rows_of_codes(b.bytes(), op.bits, bytes, op.k);
    b.release();
    let zeros = match cx.node.input(3) {
        None => None,
        Some(_) => {
            let zeros = cx.constant(3)?;
            let row = (blocks * op.bits).div_ceil(8);
            let values = match zeros.dtype() {
                DType::U8 if zeros.len() == op.n * row => {
                    rows_of_codes(zeros.bytes(), op.bits, row, blocks).into_iter().map(f32::from).collect()
                }
                DType::U8 => return None,
                _ => zeros.to_f32s().ok()?.into_owned(),
            };
            Some(Scales::new(values, (blocks, 1), shape)?)
        }
    };
    let scales = Scales::new(scales.to_f32s().ok()?.into_owned(), (blocks, 1), shape)?;
    let rounds = match op.accuracy_level {
        0 => may_round(cx, shape),
        level => level == INT8_LEVEL && shape.block <= LONGEST,
    };
    Some(Source { shape, codes, by_row: false, scales, zeros, rounds })
}

/// The operands of a DequantizeLinear before a product.
fn dequantize(cx: &BuildCx) -> Option<Source> {
    let (node, op) = dequantizer(cx)?;
    let constant = |i: usize| (cx.consts)(node.input(i)?);
    let (x, scales) = (constant(0)?, constant(1)?);
    let transposed = cx.node.op.name() == "Gemm" && cx.int("transB", 0) != 0;
    let &[d0, d1] = x.shape() else { return None };
    let (k, n) = if transposed { (d1, d0) } else { (d0, d1) };
    let k_axis = usize::from(transposed);
    let bits = x.dtype().bits();
    let axis = shape::axis(op.axis.unwrap_or(1), 2)?;
    let (block, steps) = match (op.block_size, scales.len()) {
        (0, 1) => (k.next_multiple_of(16), (0, 0)),
        // A scale for each column.
        (0, len) if axis != k_axis && len == n => (k.next_multiple_of(16), (1, 0)),
        (block, _) if block > 0 && axis == k_axis => {
            let blocks = k.div_ceil(block);
            let expected = if transposed { [n, blocks] } else { [blocks, n] };
            (scales.shape() == expected).then_some((block, if transposed { (blocks, 1) } else { (1, n) }))?
        }
        _ => return None,
    };
    let fp4 = x.dtype() == DType::F4E2M1;
    let values = if fp4 { Values::E2m1 } else { Values::Integers };
    let shape = BlockShape { k, n, bits, block, values };
    if !block.is_multiple_of(16) || k * n == 0 || fp4 && node.input(2).is_some() {
        return None;
    }
    // Signed codes are made unsigned: their middle is 0.
    let middle = 1u8 << (bits - 1);
    let signed = matches!(x.dtype(), DType::I8 | DType::I4 | DType::I2);
    let flip = if signed { middle } else { 0 };
    let mask = (0xffu16 >> (8 - bits)) as u8;
    let codes: Vec<u8> = match bits {
        8 => x.bytes().iter().map(|c| c ^ flip).collect(),
        _ => x.codes().ok()?.into_iter().map(|c| (c & mask) ^ flip).collect(),
    };
    x.release();
    let zeros = match node.input(2) {
        None if signed || fp4 => None,
        None => Some(Scales::new(vec![0.0], (0, 0), shape)?),
        Some(_) => {
            let zeros: Tensor = constant(2)?;
            let of = |z: &i64| (*z + if signed { i64::from(middle) } else { 0 }) as f32;
            Some(Scales::new(zeros.to_i64s().ok()?.iter().map(of).collect(), steps, shape)?)
        }
    };
    let scales = Scales::new(scales.to_f32s().ok()?.into_owned(), steps, shape)?;
    Some(Source { shape, codes, by_row: !transposed, scales, zeros, rounds: may_round(cx, shape) })
}

struct Product {
    m: usize,
    weights: Packed,
    bias: Vec<f32>,
    /// Whether the second operand is added.
    residual: bool,
    activation: Activation,
}

impl Kernel for Product {
    fn name(&self) -> &str {
        let shape = self.weights.0.shape();
        match (shape.bits, self.weights.1) {
            _ if shape.values == Values::E2m1 => "blocks_f32_fp4",
            (2, false) => "blocks_f32_2bit",
            (4, false) => "blocks_f32_4bit",
            (_, false) => "blocks_f32_8bit",
            (2, true) => "blocks_int8_2bit",
            (4, true) => "blocks_int8_4bit",
            (_, true) => "blocks_int8_8bit",
        }
    }

    fn on_integers(&self) -> bool {
        self.weights.1
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let residual = if self.residual { Residual::F32(cx.f32s(1)?) } else { Residual::None };
        let epilogue = Epilogue { bias: &self.bias, residual, activation: self.activation, ..Epilogue::default() };
        let (exec, x, m) = (cx.exec, cx.f32s(0)?, self.m);
        let (weights, rounds) = &*self.weights;
        let y = Target::F32(cx.out_f32s()?);
        let product = if *rounds { blocks_gemm_int8 } else { blocks_gemm };
        Ok(product(exec, x, m, weights, &epilogue, y)?)
    }
}
