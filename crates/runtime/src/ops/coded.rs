//! Products with operands in fp8, and with weights in half precision: they stay in memory as they are in the file and are
//! widened on the way into the product, which the scales go behind.

use std::sync::Arc;

use narrowbit_ir::{Node, ValueId};
use narrowbit_kernels::Activation;
use narrowbit_kernels::codes::Code;
use narrowbit_kernels::conv::{Conv2dParams, Taps};
use narrowbit_kernels::gemm::BatchDim;
use narrowbit_kernels::panel::{
    CodedPanels, CodedWeights, Elements, Epilogue, FloatMatMul, Residual, coded_conv2d_nhwc, coded_gemm,
    panel_float_matmul,
};
use narrowbit_tensor::{DType, Tensor, shape};

use super::images::plane;
use super::{Maybe, matmul};
use crate::error::StepError;
use crate::fuse::Fusion;
use crate::kernel::{BuildCx, Built, Kernel, RunCx};
use crate::lower;
use crate::session::Operands;
use crate::weights::Form;

/// The format of an element type of 8 bits that is not an integer.
pub(super) fn fp8(dtype: DType) -> Option<Code> {
    match dtype {
        DType::F8E4M3Fn => Some(Code::E4m3),
        DType::F8E5M2 => Some(Code::E5m2),
        _ => None,
    }
}

/// An operand that is made while the model runs.
#[derive(Clone, Copy)]
struct Made {
    value: ValueId,
    /// The format of codes; floats without.
    code: Option<Code>,
    scale: f32,
}

/// The codes behind input `i`, or its floats.
fn made(cx: &BuildCx, i: usize) -> Option<Made> {
    let v = cx.node.input(i)?;
    Some(coded(cx, v).unwrap_or(Made { value: v, code: None, scale: 1.0 }))
}

/// The node that makes a value, if it has that name.
fn producer<'a>(cx: &BuildCx<'a>, v: ValueId, name: &str) -> Option<&'a Node> {
    Some(cx.graph.node(cx.graph.producer(v)?.0)).filter(|node| node.op.name() == name)
}

fn known(cx: &BuildCx, v: ValueId) -> Option<Tensor> {
    cx.facts.get(v).value.clone()
}

/// Scales of a DequantizeLinear to floats whose zero points are 0.
fn scales(cx: &BuildCx, node: &Node) -> Option<Tensor> {
    let zero = match node.input(2) {
        Some(z) => known(cx, z)?.to_f32s().ok()?.iter().all(|&z| z == 0.0),
        None => true,
    };
    known(cx, node.input(1)?).filter(|t| zero && matches!(t.dtype(), DType::F32 | DType::F8E8M0))
}

fn coded(cx: &BuildCx, v: ValueId) -> Option<Made> {
    let node = producer(cx, v, "DequantizeLinear")?;
    let value = node.input(0).filter(|&x| cx.facts.get(x).value.is_none())?;
    let code = fp8(cx.facts.dtype(value)?)?;
    let scale = scales(cx, node).filter(|t| t.len() == 1)?.to_f32s().ok()?[0];
    Some(Made { value, code: Some(code), scale })
}

/// Constant weights in a format of fewer bits.
struct Narrow {
    code: Code,
    data: Tensor,
    /// One scale, one per column, or none; by blocks if `block` is set.
    scales: Vec<f32>,
    /// Rows of a block, and whether blocks are the first axis of the scales.
    block: Option<(usize, bool)>,
}

/// The weights of a product whose columns lie along `axis` and whose rows lie along `depth`.
fn narrow(cx: &BuildCx, axis: usize, depth: usize) -> Option<Narrow> {
    let v = cx.node.input(1)?;
    if let Some(node) = producer(cx, v, "Cast") {
        let data = known(cx, node.input(0)?)?;
        let code = match data.dtype() {
            DType::F16 => Code::F16,
            DType::Bf16 => Code::Bf16,
            _ => return None,
        };
        return Some(Narrow { code, data, scales: Vec::new(), block: None });
    }
    let node = producer(cx, v, "DequantizeLinear")?;
    let data = known(cx, node.input(0)?)?;
    let code = fp8(data.dtype())?;
    let found = scales(cx, node)?;
    let mut attrs = node.op.attrs();
    let along = shape::axis(attrs.int_or("axis", 1).ok()?, data.rank());
    let rows = usize::try_from(attrs.int_or("block_size", 0).ok()?).ok()?;
    let block = match rows {
        0 => {
            let fits =
                found.len() == 1 || found.rank() == 1 && along == Some(axis) && found.len() == data.shape()[axis];
            fits.then_some(None)?
        }
        rows => {
            let mut blocks = data.shape().to_vec();
            *blocks.get_mut(depth)? = data.shape()[depth].div_ceil(rows);
            (along == Some(depth) && data.rank() == 2 && found.shape() == blocks).then_some(Some((rows, depth == 0)))?
        }
    };
    Some(Narrow { code, data, scales: found.to_f32s().ok()?.into_owned(), block })
}

impl Narrow {
    /// Factors of the columns' sums, with one for all.
    fn epilogue(&self, factor: f32, columns: usize) -> Vec<f32> {
        let each = match (self.block.is_some(), &self.scales[..]) {
            (true, _) | (_, []) if factor == 1.0 => return Vec::new(),
            (true, _) | (_, []) => vec![1.0; columns],
            (_, &[one]) => vec![one; columns],
            (_, all) => all.to_vec(),
        };
        each.into_iter().map(|scale| scale * factor).collect()
    }

    /// The packed weights of groups, columns and rows, made once for a session; `index` tells where an element stands.
    fn pack(
        self,
        cx: &BuildCx,
        form: Form,
        shape: [usize; 3],
        bf16: bool,
        index: impl Fn(usize, usize, usize) -> usize + Sync,
    ) -> Result<Arc<CodedPanels>, StepError> {
        cx.weights.get(cx.id, form, || {
            let (bytes, wide) = (self.data.bytes(), self.code.size() == 2);
            let element = |g: usize, c: usize, row: usize| {
                let i = index(g, c, row);
                if wide { u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]) } else { u16::from(bytes[i]) }
            };
            let [_, n, k] = shape;
            let blocks = self.block.map_or(1, |(rows, _)| k.div_ceil(rows));
            let by_block = |_: usize, c: usize, block: usize| match self.block {
                Some((_, true)) => self.scales[block * n + c],
                _ => self.scales[c * blocks + block],
            };
            let by_block: &dyn Fn(usize, usize, usize) -> f32 = &by_block;
            let blocks = self.block.map(|(rows, _)| (rows, by_block));
            let weights = CodedWeights { code: self.code, shape, element: &element, blocks };
            let packed = CodedPanels::pack(cx.exec, &weights, bf16)?;
            self.data.release();
            Ok(packed)
        })
    }
}

/// A MatMul or Gemm; `None` where it has no operand in such a format and floats are not rounded.
pub fn product(cx: &BuildCx, f: &Fusion) -> Maybe {
    if cx.is_constant(1) { weighted(cx, f) } else { Ok(of_two(cx, f)) }
}

fn weighted(cx: &BuildCx, f: &Fusion) -> Maybe {
    let (Some(a), Some(b), Some(x), Some(out)) = (cx.f32_shape(0), cx.f32_shape(1), made(cx, 0), f.output) else {
        return Ok(None);
    };
    let gemm = cx.node.op.name() == "Gemm";
    let turned = gemm && cx.int("transB", 0) != 0;
    let ([b0, b1], Some((&k, rows))) = (&b[..], a.split_last()) else { return Ok(None) };
    let (depth, n) = if turned { (*b1, *b0) } else { (*b0, *b1) };
    let odd = gemm && cx.int("transA", 0) != 0 || depth != k || rows.is_empty() || k * n == 0;
    let axis = lower::channel_axis(cx.node, 2);
    let Some(w) = narrow(cx, axis, 1 - axis).filter(|_| !odd) else { return Ok(None) };
    // Half precision is rounded where all floats are: to panels of the same size.
    let Some(bias) = bias(cx, f, n).filter(|_| w.code.size() == 1 || !cx.exec.bf16()) else { return Ok(None) };
    let bf16 = cx.exec.takes_bf16(x.code.is_some());
    let factor = x.scale * if gemm { cx.float("alpha", 1.0) } else { 1.0 };
    let (scales, exact) = (w.epilogue(factor, n), w.code.size() == 1 && x.code.is_some());
    let at = move |_: usize, c: usize, row: usize| if turned { c * k + row } else { row * n + c };
    let form = if bf16 { "coded-bf16" } else { "coded" };
    let weights = w.pack(cx, form.into(), [1, n, k], bf16, at)?;
    let shape = Shape::Rows([rows.iter().product(), k]);
    let (residual, activation) = (f.residual.is_some(), f.activation);
    let kernel = Coded { shape, x: x.code, weights, scales, bias, residual, activation, exact };
    let ins = [x.value].into_iter().chain(f.residual).collect();
    Ok(Some(Built { kernel: Box::new(kernel), ins, outs: vec![out] }))
}

/// The sum of what is added to each column; `None` where that is no constant row.
fn bias(cx: &BuildCx, f: &Fusion, n: usize) -> Option<Vec<f32>> {
    let mut bias = Vec::new();
    if let Some(v) = f.bias {
        bias = (cx.consts)(v)?.to_f32s().ok()?.into_owned();
    }
    if cx.node.op.name() == "Gemm" && cx.node.input(2).is_some() {
        let beta = cx.float("beta", 1.0);
        let row = cx.constant(2).filter(|t| t.shape().last() == Some(&n))?;
        bias = row.to_f32s().ok()?.iter().map(|b| b * beta).collect();
    }
    (bias.is_empty() || bias.len() == n).then_some(bias)
}

/// A product of two operands that are made while the model runs.
fn of_two(cx: &BuildCx, f: &Fusion) -> Option<Built> {
    let (a, b, out) = (made(cx, 0)?, made(cx, 1)?, f.output?);
    let narrow = a.code.is_some() || b.code.is_some() || cx.exec.bf16();
    if !narrow || cx.node.op.name() != "MatMul" || f.residual.is_some() || f.bias.is_some() {
        return None;
    }
    let problem = matmul::problem(&cx.f32_shape(0)?, &cx.f32_shape(1)?)?;
    if problem.shape.contains(&0) {
        return None;
    }
    let codes = [a.code, b.code];
    let exact = codes.iter().all(Option::is_some);
    let bf16 = cx.exec.takes_bf16(exact);
    let (shape, batch, activation) = (problem.shape, problem.batch, f.activation);
    let kernel = OfTwo { codes, shape, batch, scale: a.scale * b.scale, activation, exact, bf16 };
    Some(Built { kernel: Box::new(kernel), ins: vec![a.value, b.value], outs: vec![out] })
}

/// A convolution of images with their channels last, with weights in fp8.
pub fn conv(cx: &BuildCx, f: &Fusion, (p, seen): (&Conv2dParams, &Taps), y: &[usize]) -> Maybe {
    let (Some(x), Some(out)) = (made(cx, 0), f.output) else { return Ok(None) };
    let (n, channels, taps) = (p.oc / p.groups, p.c / p.groups, p.kh * p.kw);
    // Few columns leave the panels empty: depthwise convolutions have a kernel on floats.
    if n < 8 || channels * taps == 0 || p.output()? != plane(y) {
        return Ok(None);
    }
    let Some(w) = narrow(cx, 0, 1).filter(|w| w.code.size() == 1 && w.block.is_none()) else { return Ok(None) };
    let bias = cx.floats(2).unwrap_or_default();
    if !(bias.is_empty() || bias.len() == p.oc) {
        return Ok(None);
    }
    let bf16 = cx.exec.takes_bf16(x.code.is_some());
    let (scales, exact) = (w.epilogue(x.scale, p.oc), x.code.is_some());
    let window = |g: usize, c: usize, row: usize| ((g * n + c) * channels + row % channels) * seen.whole();
    let at = |g: usize, c: usize, row: usize| window(g, c, row) + seen.place(row / channels);
    let form = if bf16 { "coded-bf16" } else { "coded" };
    let weights = w.pack(cx, (form, seen).into(), [p.groups, n, channels * taps], bf16, at)?;
    let (shape, residual, activation) = (Shape::Image(*p), f.residual.is_some(), f.activation);
    let kernel = Coded { shape, x: x.code, weights, scales, bias, residual, activation, exact };
    let ins = [x.value].into_iter().chain(f.residual).map(cx.channels_last).collect();
    Ok(Some(Built { kernel: Box::new(kernel), ins, outs: vec![(cx.channels_last)(out)] }))
}

/// What weights are multiplied with.
enum Shape {
    /// So many rows of so many elements.
    Rows([usize; 2]),
    Image(Conv2dParams),
}

struct Coded {
    shape: Shape,
    x: Option<Code>,
    weights: Arc<CodedPanels>,
    scales: Vec<f32>,
    bias: Vec<f32>,
    residual: bool,
    activation: Activation,
    /// Whether both operands are fp8.
    exact: bool,
}

/// Operand `i` of a run.
fn elements<'a>(cx: &RunCx<'a>, i: usize, code: Option<Code>) -> Result<Elements<'a>, StepError> {
    Ok(match code {
        Some(code) => Elements::Coded(code, cx.view(i)?.bytes),
        None => Elements::F32(cx.f32s(i)?),
    })
}

fn operands(exact: bool, bf16: bool) -> Operands {
    match (exact, bf16) {
        (true, _) => Operands::Fp8,
        (_, true) => Operands::Bf16,
        _ => Operands::F32,
    }
}

impl Kernel for Coded {
    fn name(&self) -> &str {
        self.weights.kernel_name()
    }

    fn operands(&self) -> Operands {
        operands(self.exact, self.weights.multiplies_bf16())
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let residual = if self.residual { Residual::F32(cx.f32s(1)?) } else { Residual::None };
        let (scales, bias, activation) = (&self.scales[..], &self.bias[..], self.activation);
        let epilogue = Epilogue { scales, bias, residual, activation, ..Epilogue::default() };
        let (exec, x) = (cx.exec, elements(cx, 0, self.x)?);
        let y = cx.out_f32s()?;
        let done = match &self.shape {
            Shape::Rows([m, k]) => coded_gemm(exec, x, (*m, *k, *k), &self.weights, &epilogue, y),
            Shape::Image(p) => coded_conv2d_nhwc(exec, p, x, &self.weights, &epilogue, y),
        };
        Ok(done?)
    }
}

struct OfTwo {
    codes: [Option<Code>; 2],
    shape: [usize; 3],
    batch: Vec<BatchDim>,
    scale: f32,
    activation: Activation,
    exact: bool,
    bf16: bool,
}

impl Kernel for OfTwo {
    fn name(&self) -> &str {
        match (self.codes, self.bf16) {
            ([None, None], true) => "panel_matmul_bf16",
            ([None, None], false) => "panel_matmul_f32",
            (_, true) => "panel_matmul_fp8_as_bf16",
            (_, false) => "panel_matmul_fp8_as_f32",
        }
    }

    fn operands(&self) -> Operands {
        operands(self.exact, self.bf16)
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let (a, b) = (elements(cx, 0, self.codes[0])?, elements(cx, 1, self.codes[1])?);
        let OfTwo { shape, scale, activation, .. } = *self;
        let p = FloatMatMul { a, b, shape, batch: &self.batch, scale, activation };
        let exec = cx.exec;
        Ok(panel_float_matmul(exec, &p, cx.out_f32s()?)?)
    }
}
