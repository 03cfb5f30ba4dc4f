//! Products, sums and functions of 8-bit integers, with what follows them up to the
//! QuantizeLinear of their result.

use std::sync::Arc;

use narrowbit_ir::ValueId;
use narrowbit_kernels::Activation;
use narrowbit_kernels::conv::Conv2dParams;
use narrowbit_kernels::integer::{
    DepthwiseWeights, PoolNhwcParams, Quant, RowNorm, avg_pool2d_nhwc, depthwise_nhwc, depthwise_nhwc_pack,
    layer_norm_rows, softmax_columns, softmax_rows, unary_rows,
};
use narrowbit_kernels::panel::{
    CodeSum, Epilogue, IntMatMul, Panels, Residual, RowParams, Rows, Stage, Target, conv2d_nhwc, conv2d_nhwc_fits,
    conv2d_nhwc_pack, panel_gemm, panel_gemm_pack, panel_matmul,
};
use narrowbit_tensor::{DType, Tensor};

use super::conv::{params, plane, window};
use super::{Maybe, integer_binary, table};
use crate::error::StepError;
use crate::fuse::{Fusion, Ints, StepRow};
use crate::kernel::{BuildCx, Built, Kernel, RunCx, Simple};
use crate::lower::{self, IntWeights, QParams, Quantized};

/// The kernel of a fusion on integers.
pub fn build(cx: &BuildCx, f: &Fusion) -> Maybe {
    let Some(ints) = &f.ints else { return Ok(None) };
    match cx.node.op.name() {
        "Conv" => conv(cx, f, ints),
        "ConvTranspose" => super::int_transpose::build(cx, f, ints),
        "MatMul" | "Gemm" if ints.operands.get(1).is_some_and(Option::is_none) => gemm(cx, f, ints),
        "MatMul" => Ok(matmul(cx, f, ints)),
        "GlobalAveragePool" | "AveragePool" => Ok(mean(cx, f, ints)),
        "Softmax" | "LayerNormalization" | "RMSNormalization" => Ok(rowwise(cx, f, ints)),
        _ if ints.operands == [None] => Ok(function(cx, f, ints)),
        _ if ints.operands.len() == 1 => table::function(cx, f, ints),
        _ => Ok(integer_binary::build(cx, f, ints)),
    }
}

/// Weights as the kernels take them: i8, with their scales and zero points by column.
pub(super) struct Loaded {
    pub data: Vec<i8>,
    pub scales: Vec<f32>,
    /// Empty where all are 0.
    pub zeros: Vec<i32>,
}

pub(super) fn load(cx: &BuildCx, w: &IntWeights, columns: usize) -> Option<Loaded> {
    let t = (cx.consts)(w.value)?;
    let (flip, shift) = if t.dtype() == DType::U8 { (0x80, 128) } else { (0, 0) };
    let data = t.bytes().iter().map(|&b| (b ^ flip) as i8).collect();
    t.release();
    let spread = |i: usize| if w.scales.len() == 1 { 0 } else { i };
    let zeros: Vec<i32> = (0..columns).map(|i| w.zeros[spread(i)] - shift).collect();
    let zeros = if zeros.iter().all(|&z| z == 0) { Vec::new() } else { zeros };
    Some(Loaded { data, scales: (0..columns).map(|i| w.scales[spread(i)]).collect(), zeros })
}

/// Everything of an epilogue but the residual.
pub(super) struct Finish {
    offsets: Vec<i32>,
    scales: Vec<f32>,
    weight_zeros: Vec<i32>,
    bias: Vec<f32>,
    activation: Activation,
    /// By column, or empty: what multiplies the activation's results.
    pub factors: Vec<f32>,
    output: Option<Codes>,
    /// What happens between the product and the residual.
    stage: Option<Stage>,
    /// The format that the sums are rounded to first.
    first: Option<QParams>,
    code_sum: Option<CodeSum>,
    /// A constant row in the place of a residual.
    row: Option<StepRow>,
    /// Where the residual stands among the operands, and what it means.
    pub residual: Option<(usize, Option<QParams>)>,
    /// Set where the format of the rows is made at run time.
    runtime: Option<RowFormat>,
}

/// The codes that results are rounded to.
#[derive(Clone, Copy)]
pub(super) struct Codes {
    pub dtype: DType,
    /// What a result is multiplied by to be a number of steps.
    pub inverse: f32,
    pub zero: i32,
}

impl From<QParams> for Codes {
    fn from(q: QParams) -> Codes {
        Codes { dtype: q.dtype, inverse: 1.0 / q.scale, zero: q.zero }
    }
}

/// The activation in units of `1 / inverse`, where it only bounds: what comes before a rounding can then be in steps.
pub(super) fn in_steps(activation: Activation, inverse: f32) -> Option<Activation> {
    match activation {
        Activation::None | Activation::Relu => Some(activation),
        Activation::Clip { lo, hi } => Some(Activation::Clip { lo: lo * inverse, hi: hi * inverse }),
        _ => None,
    }
}

/// Rows whose scale and zero point are operands.
struct RowFormat {
    dtype: DType,
    scale_at: usize,
    zero_at: Option<usize>,
    /// By column: the sum of the weights, less the depth times their zero point.
    column_sums: Vec<i32>,
    /// Whether each row has a scale and zero point of its own.
    by_row: bool,
}

/// Scale and zero point of the rows of one run.
pub(super) struct Format {
    /// One for each row, where they have their own.
    row_scales: Vec<f32>,
    /// As many zero points, as kernels see them.
    row_zeros: Vec<i32>,
    /// The zero point as the rows have it, where it is one.
    pub zero: i32,
    /// One for each column, where the rows have one format.
    offsets: Vec<i32>,
    scales: Vec<f32>,
}

/// The single element of an operand of u8 or i8.
fn zero_point(cx: &RunCx, i: usize) -> Result<i32, StepError> {
    let view = cx.view(i)?;
    let byte = view.bytes.first().copied().unwrap_or(0);
    Ok(if view.dtype == DType::I8 { i32::from(byte as i8) } else { i32::from(byte) })
}

/// The scale and zero point of a tensor whose `runtime` they are, at `ins[at]` and `ins[at + 1]`.
pub(super) fn runtime_params(cx: &RunCx, at: usize, zero: bool) -> Result<(f32, i32), StepError> {
    let scale = cx.f32s(at)?.first().copied().unwrap_or(1.0);
    Ok((scale, if zero { zero_point(cx, at + 1)? } else { 0 }))
}

/// Adds the operands that hold a format to those of a kernel.
fn push_format(ins: &mut Vec<ValueId>, q: Quantized) -> Option<usize> {
    let runtime = q.runtime?;
    let at = ins.len();
    ins.push(runtime.scale);
    ins.extend(runtime.zero);
    Some(at)
}

impl Finish {
    /// `rows` is the format of the rows, `k` the depth of the product, `alpha` a factor of it.
    pub fn new(f: &Fusion, ints: &Ints, rows: QParams, w: Loaded, sums: &[i32], (k, alpha): (usize, f32)) -> Finish {
        // Kernels read i8 rows with 128 added.
        let zero = rows.zero + if rows.dtype == DType::I8 { 128 } else { 0 };
        let zero_of = |i: usize| w.zeros.get(i).copied().unwrap_or(0);
        let offset = |i: usize| {
            let sum = sums[i].wrapping_sub((k as i32).wrapping_mul(zero_of(i)));
            zero.wrapping_mul(sum).wrapping_neg()
        };
        Finish {
            offsets: (0..sums.len()).map(offset).collect(),
            scales: w.scales.iter().map(|s| alpha * rows.scale * s).collect(),
            weight_zeros: w.zeros,
            bias: Vec::new(),
            activation: f.activation,
            factors: Vec::new(),
            // Codes are added in units of the result's, its zero point included.
            output: ints.output.map(|q| match ints.code_sum {
                Some(_) => Codes { dtype: q.dtype, inverse: 1.0, zero: 0 },
                None => Codes::from(q),
            }),
            stage: ints.stage.map(|q| stage(q, 1.0 / q.scale, ints.code_sum)),
            first: ints.stage.or(ints.output),
            code_sum: ints.code_sum,
            row: ints.row.clone(),
            residual: None,
            runtime: None,
        }
    }

    /// Lets the factors of the sums give steps of the first rounding at once, `scale_x · scale_w / scale_y`: one rounding
    /// less, and the arithmetic of QLinearConv, QLinearMatMul and QGemm. To be called after a bias was added; where
    /// something must be added or applied to floats first, nothing changes.
    pub fn at_once(&mut self) {
        let Some(first) = self.first else { return };
        let inverse = 1.0 / first.scale;
        let ratios: Vec<f32> = self.scales.iter().map(|s| s / first.scale).collect();
        let floats = !self.bias.is_empty() || !self.factors.is_empty() || self.runtime.is_some();
        if floats || !ratios.iter().all(|r| r.is_finite()) {
            return;
        }
        if self.stage.is_some() {
            self.stage = Some(stage(first, 1.0, self.code_sum));
        } else if let (None, Some(activation), Some(output)) =
            (self.residual, in_steps(self.activation, inverse), &mut self.output)
        {
            (self.activation, output.inverse) = (activation, 1.0);
        } else {
            return;
        }
        self.scales = ratios;
    }

    /// Lets the format of the rows come from operands, which it adds to `ins`. To be called before a bias is added. One format
    /// for all rows becomes offsets and scales of the columns, once for each run; rows of their own stay with the rows.
    pub fn at_run_time(&mut self, x: Quantized, ins: &mut Vec<ValueId>, sums: &[i32], k: usize) {
        let Some(scale_at) = push_format(ins, x) else { return };
        let zero_of = |i: usize| self.weight_zeros.get(i).copied().unwrap_or(0);
        let corrected = |(i, s): (usize, &i32)| s.wrapping_sub((k as i32).wrapping_mul(zero_of(i)));
        let column_sums = sums.iter().enumerate().map(corrected).collect();
        let zero_at = x.runtime.and_then(|r| r.zero).map(|_| scale_at + 1);
        self.offsets.fill(0);
        let by_row = x.runtime.is_some_and(|r| r.by_row);
        self.runtime = Some(RowFormat { dtype: x.params.dtype, scale_at, zero_at, column_sums, by_row });
    }

    /// What the operands say of the rows.
    pub fn format(&self, cx: &RunCx) -> Result<Option<Format>, StepError> {
        let Some(f) = &self.runtime else { return Ok(None) };
        let shift = if f.dtype == DType::I8 { 128 } else { 0 };
        if f.by_row {
            let row_scales = cx.f32s(f.scale_at)?.to_vec();
            let zero = |b: &u8| if f.dtype == DType::I8 { i32::from(*b as i8) } else { i32::from(*b) };
            let row_zeros = match f.zero_at {
                Some(at) => cx.view(at)?.bytes.iter().map(|b| zero(b) + shift).collect(),
                None => vec![shift; row_scales.len()],
            };
            return Ok(Some(Format { row_scales, row_zeros, zero: 0, offsets: Vec::new(), scales: Vec::new() }));
        }
        let (scale, zero) = runtime_params(cx, f.scale_at, f.zero_at.is_some())?;
        let shifted = zero + shift;
        let offsets = f.column_sums.iter().map(|s| shifted.wrapping_mul(*s).wrapping_neg()).collect();
        let scales = self.scales.iter().map(|s| scale * s).collect();
        Ok(Some(Format { row_scales: Vec::new(), row_zeros: Vec::new(), zero, offsets, scales }))
    }

    /// Adds a bias of whole steps of each column's scale.
    pub fn add_steps(&mut self, steps: impl IntoIterator<Item = i32>) {
        self.offsets.iter_mut().zip(steps).for_each(|(o, s)| *o = o.wrapping_add(s));
    }

    /// Whether `unit` is what a step of each column is worth, but for the order of its multiplications.
    fn has_units(&self, unit: &[f32]) -> bool {
        let near = |(i, s): (usize, &f32)| {
            let u = unit[if unit.len() == 1 { 0 } else { i }];
            (u - s).abs() <= 1e-6 * s.abs()
        };
        self.runtime.is_none()
            && (unit.len() == 1 || unit.len() == self.scales.len())
            && self.scales.iter().enumerate().all(near)
    }

    /// Adds a bias: exactly as integers where it is a multiple of each column's scale, as a
    /// bias that was quantized with that scale is.
    pub fn add_bias(&mut self, bias: &[f32]) {
        let whole = |(b, s): (&f32, &f32)| {
            let steps = b / s;
            let near = steps.round_ties_even();
            (near.abs() < 1e9 && (steps - near).abs() <= 1e-6 * near.abs().max(1.0)).then_some(near as i32)
        };
        if self.runtime.is_some() {
            self.bias = bias.to_vec();
            return;
        }
        match bias.iter().zip(&self.scales).map(whole).collect::<Option<Vec<i32>>>() {
            Some(steps) => self.add_steps(steps),
            None => self.bias = bias.to_vec(),
        }
    }

    pub fn epilogue<'a>(&'a self, cx: &RunCx<'a>, format: &'a Option<Format>) -> Result<Epilogue<'a>, StepError> {
        let residual = match self.residual {
            None => self.row.as_ref().map_or(Residual::None, |r| Residual::Row(&r.steps, r.scale)),
            Some((i, None)) => Residual::F32(cx.f32s(i)?),
            Some((i, Some(q))) if q.dtype == DType::U8 => Residual::U8(cx.view(i)?.slice()?, q.scale, q.zero),
            Some((i, Some(q))) => Residual::I8(cx.view(i)?.slice()?, q.scale, q.zero),
        };
        let mut epilogue = Epilogue {
            offsets: &self.offsets,
            scales: &self.scales,
            weight_zeros: &self.weight_zeros,
            bias: &self.bias,
            stage: self.stage,
            residual,
            activation: self.activation,
            factors: &self.factors,
            rows: None,
        };
        match (&self.runtime, format) {
            (Some(r), Some(f)) if !r.by_row => (epilogue.offsets, epilogue.scales) = (&f.offsets, &f.scales),
            (Some(r), Some(f)) => {
                let rows = RowParams { scales: &f.row_scales, zeros: &f.row_zeros, column_sums: &r.column_sums };
                epilogue.rows = Some(rows);
            }
            _ => {}
        }
        Ok(epilogue)
    }

    pub fn target<'a>(&self, cx: &'a mut RunCx) -> Result<Target<'a>, StepError> {
        target(self.output, cx)
    }
}

/// The rounding before a sum.
fn stage(q: QParams, inverse: f32, sum: Option<CodeSum>) -> Stage {
    let signed = q.dtype == DType::I8;
    match sum {
        Some(sum) => Stage::of_codes(signed, inverse, q.zero, sum),
        None => Stage::new(signed, inverse, q.scale, q.zero),
    }
}

/// A constant bias of integers behind a DequantizeLinear with the columns' own steps, as integers: floats would round those
/// of over 24 bits.
pub(super) fn bias_steps(cx: &BuildCx, v: ValueId, finish: &Finish, columns: usize) -> Option<Vec<i32>> {
    let node = cx.graph.node(cx.graph.producer(v)?.0);
    let plain = node.op.name() == "DequantizeLinear" && node.input(2).is_none();
    let codes = (cx.consts)(node.input(0).filter(|_| plain)?).filter(|t| t.dtype() == DType::I32)?;
    let unit = (cx.consts)(node.input(1)?)?;
    let fits = codes.len() == columns && finish.has_units(&unit.to_f32s().ok()?);
    fits.then(|| codes.slice::<i32>().ok().map(|c| c.into_owned()))?
}

/// The result, in the codes that it is rounded to or as floats.
pub(super) fn target<'a>(output: Option<impl Into<Codes>>, cx: &'a mut RunCx) -> Result<Target<'a>, StepError> {
    let missing = narrowbit_ir::OpError::MissingInput(0);
    let out = cx.outs.first_mut().ok_or(missing)?;
    Ok(match output.map(Into::into) {
        None => Target::F32(out.slice()?),
        Some(Codes { dtype: DType::U8, inverse, zero }) => Target::U8(out.slice()?, inverse, zero),
        Some(Codes { inverse, zero, .. }) => Target::I8(out.slice()?, inverse, zero),
    })
}

pub(super) fn rows<'a>(cx: &RunCx<'a>, dtype: DType) -> Result<Rows<'a>, StepError> {
    rows_at(cx, 0, dtype)
}

pub(super) fn rows_at<'a>(cx: &RunCx<'a>, i: usize, dtype: DType) -> Result<Rows<'a>, StepError> {
    let x = cx.view(i)?;
    Ok(if dtype == DType::U8 { Rows::U8(x.slice()?) } else { Rows::I8(x.slice()?) })
}

/// What multiplies the columns of a product.
fn factors(cx: &BuildCx, v: ValueId) -> Option<Vec<f32>> {
    Some((cx.consts)(v)?.to_f32s().ok()?.into_owned())
}

struct Conv {
    p: Conv2dParams,
    input: QParams,
    weights: ConvWeights,
    finish: Finish,
}

enum ConvWeights {
    Panels(Arc<Panels>),
    Depthwise(Arc<DepthwiseWeights>),
}

impl ConvWeights {
    fn new(cx: &BuildCx, p: &Conv2dParams, w: &mut Loaded) -> Result<ConvWeights, StepError> {
        if p.groups > 1 && p.groups == p.c && p.oc == p.c {
            let pack = || depthwise_nhwc_pack(cx.exec, p, &w.data, &w.zeros).map_err(StepError::from);
            let packed = cx.weights.get(cx.id, "depthwise-i8", pack)?;
            // They were taken off when the weights were packed.
            w.zeros.clear();
            return Ok(ConvWeights::Depthwise(packed));
        }
        let pack = || conv2d_nhwc_pack(cx.exec, p, &w.data).map_err(StepError::from);
        Ok(ConvWeights::Panels(cx.weights.get(cx.id, "conv-i8", pack)?))
    }

    fn column_sums(&self) -> &[i32] {
        match self {
            ConvWeights::Panels(w) => w.column_sums(),
            ConvWeights::Depthwise(w) => w.column_sums(),
        }
    }
}

fn conv(cx: &BuildCx, f: &Fusion, ints: &Ints) -> Maybe {
    let Some((kernel, ins, out)) = plan_conv(cx, f, ints)? else { return Ok(None) };
    Ok(Some(Built { kernel: Box::new(kernel), ins, outs: vec![out] }))
}

fn plan_conv(cx: &BuildCx, f: &Fusion, ints: &Ints) -> Result<Option<(Conv, Vec<ValueId>, ValueId)>, StepError> {
    let shape = |v: Option<ValueId>| v.and_then(|v| (cx.types)(v)).map(|t| t.shape);
    let (Some(Some(x)), Some(out)) = (ints.operands.first(), f.output) else { return Ok(None) };
    let (Some(dims), Some(w), Some(y)) = (shape(Some(x.value)), shape(cx.node.input(1)), shape(cx.node.output(0)))
    else {
        return Ok(None);
    };
    let Some(window) = window(cx, &dims, &w, &y, false) else { return Ok(None) };
    let p = params(cx, &window, &dims, &w);
    if p.output()? != plane(&y) || !conv2d_nhwc_fits(&p, 1) {
        return Ok(None);
    }
    let Some(weights) = cx.node.input(1).and_then(|v| cx.int_weights(v, 0)) else { return Ok(None) };
    let Some(mut loaded) = load(cx, &weights, p.oc) else { return Ok(None) };
    let packed = ConvWeights::new(cx, &p, &mut loaded)?;
    let depth = p.c / p.groups * p.kh * p.kw;
    let mut finish = Finish::new(f, ints, x.params, loaded, packed.column_sums(), (depth, 1.0));
    let mut ins = vec![(cx.channels_last)(x.value)];
    finish.at_run_time(*x, &mut ins, packed.column_sums(), depth);
    if let Some(v) = cx.node.input(2) {
        if let Some(steps) = bias_steps(cx, v, &finish, p.oc) {
            finish.add_steps(steps);
        } else {
            let Some(bias) = cx.floats(2) else { return Ok(None) };
            finish.add_bias(&bias);
        }
    }
    if let Some(factor) = f.factor {
        let Some(values) = factors(cx, factor) else { return Ok(None) };
        finish.factors = values;
    }
    if let Some(r) = f.residual {
        finish.residual = Some((ins.len(), ints.residual.map(|q| q.params)));
        ins.push((cx.channels_last)(ints.residual.map_or(r, |q| q.value)));
    }
    finish.at_once();
    let out = (cx.channels_last)(out);
    Ok(Some((Conv { p, input: x.params, weights: packed, finish }, ins, out)))
}

impl Kernel for Conv {
    fn on_integers(&self) -> bool {
        true
    }

    fn name(&self) -> &str {
        match &self.weights {
            ConvWeights::Panels(w) => w.kernel().name,
            ConvWeights::Depthwise(_) => "depthwise_nhwc_i8",
        }
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let format = self.finish.format(cx)?;
        let (exec, x, epilogue) = (cx.exec, rows(cx, self.input.dtype)?, self.finish.epilogue(cx, &format)?);
        let (y, zero) = (self.finish.target(cx)?, format.as_ref().map_or(self.input.zero, |f| f.zero));
        let done = match &self.weights {
            ConvWeights::Panels(w) => conv2d_nhwc(exec, &self.p, x, zero, w, &epilogue, y),
            ConvWeights::Depthwise(w) => depthwise_nhwc(exec, &self.p, x, zero, w, &epilogue, y),
        };
        Ok(done?)
    }
}

struct Gemm {
    m: usize,
    k: usize,
    input: QParams,
    weights: Arc<Panels>,
    finish: Finish,
}

fn gemm(cx: &BuildCx, f: &Fusion, ints: &Ints) -> Maybe {
    let (Some(Some(x)), Some(out), Some(w)) = (ints.operands.first(), f.output, cx.node.input(1)) else {
        return Ok(None);
    };
    let (Some(dims), Some(shape)) = ((cx.types)(x.value), (cx.types)(w)) else { return Ok(None) };
    let transposed = cx.node.op.name() == "Gemm" && cx.int("transB", 0) != 0;
    let &[w0, w1] = shape.shape.as_slice() else { return Ok(None) };
    let (k, n) = if transposed { (w1, w0) } else { (w0, w1) };
    let Some((&last, rows)) = dims.shape.split_last() else { return Ok(None) };
    let axis = lower::channel_axis(cx.node, 2);
    let Some(weights) = cx.int_weights(w, axis).filter(|_| last == k) else { return Ok(None) };
    let Some(loaded) = load(cx, &weights, n) else { return Ok(None) };
    let packed = cx.weights.get(cx.id, "gemm-i8", || {
        panel_gemm_pack(cx.exec, (k, n), &loaded.data, transposed).map_err(StepError::from)
    })?;
    let is_gemm = cx.node.op.name() == "Gemm";
    let alpha = if is_gemm { cx.float("alpha", 1.0) } else { 1.0 };
    let mut finish = Finish::new(f, ints, x.params, loaded, packed.column_sums(), (k, alpha));
    let mut ins = vec![x.value];
    finish.at_run_time(*x, &mut ins, packed.column_sums(), k);
    let row = |t: Tensor, beta: f32| Some(t.to_f32s().ok()?.iter().map(|v| v * beta).collect::<Vec<f32>>());
    let bias = match (f.bias, cx.node.input(2)) {
        (Some(v), _) => Some((v, 1.0)),
        (None, Some(v)) if is_gemm => Some((v, cx.float("beta", 1.0))),
        _ => None,
    };
    if let Some((v, factor)) = bias
        && let Some(steps) = bias_steps(cx, v, &finish, n).filter(|_| factor == 1.0)
    {
        finish.add_steps(steps);
    } else if let Some((v, factor)) = bias {
        let Some(bias) = (cx.consts)(v).and_then(|t| row(t, factor)) else { return Ok(None) };
        finish.add_bias(&bias);
    }
    if let Some(factor) = f.factor {
        let Some(values) = factors(cx, factor) else { return Ok(None) };
        finish.factors = values;
    }
    if let Some(r) = f.residual {
        finish.residual = Some((ins.len(), ints.residual.map(|q| q.params)));
        ins.push(ints.residual.map_or(r, |q| q.value));
    }
    finish.at_once();
    let kernel = Gemm { m: rows.iter().product(), k, input: x.params, weights: packed, finish };
    Ok(Some(Built { kernel: Box::new(kernel), ins, outs: vec![out] }))
}

impl Kernel for Gemm {
    fn on_integers(&self) -> bool {
        true
    }

    fn name(&self) -> &str {
        self.weights.kernel().name
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let format = self.finish.format(cx)?;
        let (exec, x, epilogue) = (cx.exec, rows(cx, self.input.dtype)?, self.finish.epilogue(cx, &format)?);
        let y = self.finish.target(cx)?;
        Ok(panel_gemm(exec, x, (self.m, self.k, self.k), &self.weights, &epilogue, y)?)
    }
}

/// The product of two quantized activations.
fn matmul(cx: &BuildCx, f: &Fusion, ints: &Ints) -> Option<Built> {
    let [Some(a), Some(b)] = ints.operands.as_slice() else { return None };
    let (a, b, out) = (*a, *b, f.output?);
    let (da, db) = ((cx.types)(a.value)?.shape, (cx.types)(b.value)?.shape);
    let problem = super::matmul::problem(&da, &db)?;
    if f.residual.is_some() || f.bias.is_some() || problem.shape.contains(&0) {
        return None;
    }
    let (mut activation, mut output, mut steps) = (f.activation, ints.output.map(Codes::from), 1.0);
    let mut ins = vec![a.value, b.value];
    let (a_at, b_at) = (push_format(&mut ins, a), push_format(&mut ins, b));
    // As `Finish::at_once`.
    if let (Some(y), Some(codes), Some(bounds), None, None) =
        (ints.output, &mut output, ints.output.and_then(|y| in_steps(activation, 1.0 / y.scale)), a.runtime, b.runtime)
        && (a.params.scale * b.params.scale / y.scale).is_finite()
    {
        (activation, codes.inverse, steps) = (bounds, 1.0, y.scale);
    }
    let run = move |cx: &mut RunCx| {
        let params = |q: Quantized, at: Option<usize>| match (at, q.runtime) {
            (Some(at), Some(r)) => runtime_params(cx, at, r.zero.is_some()),
            _ => Ok((q.params.scale, q.params.zero)),
        };
        let ((a_scale, a_zero), (b_scale, b_zero)) = (params(a, a_at)?, params(b, b_at)?);
        let p = IntMatMul {
            a: (rows_at(cx, 0, a.params.dtype)?, a_zero),
            b: (rows_at(cx, 1, b.params.dtype)?, b_zero),
            shape: problem.shape,
            batch: &problem.batch,
            scale: a_scale * b_scale / steps,
            activation,
        };
        let exec = cx.exec;
        Ok(panel_matmul(exec, &p, target(output, cx)?)?)
    };
    let kernel = Box::new(Simple { name: "panel_matmul_i8", in_place: None, on_integers: true, run });
    Some(Built { kernel, ins, outs: vec![out] })
}

pub(super) fn quant<'a>(cx: &RunCx<'a>, i: usize, q: QParams) -> Result<Quant<'a>, StepError> {
    let x = cx.view(i)?;
    Ok(match q.dtype {
        DType::U8 => Quant::U8(x.slice()?, q.scale, q.zero),
        _ => Quant::I8(x.slice()?, q.scale, q.zero),
    })
}

/// The mean of windows or of whole planes.
fn mean(cx: &BuildCx, f: &Fusion, ints: &Ints) -> Option<Built> {
    let (&[Some(x)], out) = (ints.operands.as_slice(), f.output?) else { return None };
    let dims = (cx.types)(x.value)?.shape;
    let [n, pixels, c] = super::pool::image(&dims)?;
    let global = cx.node.op.name() == "GlobalAveragePool";
    let p = match global {
        true => PoolNhwcParams {
            n,
            h: 1,
            w: pixels,
            c,
            window: [1, pixels],
            strides: [1, 1],
            pads: [0; 4],
            dilations: [1, 1],
            out: [1, 1],
        },
        false => super::pool::params(cx, &dims)?,
    };
    let (divisor, output) = (super::pool::divisor(cx), ints.output);
    let kernel = crate::kernel::simple("average_pool_nhwc_i8", move |cx| {
        let (exec, x) = (cx.exec, quant(cx, 0, x.params)?);
        Ok(avg_pool2d_nhwc(exec, &p, divisor, x, target(output, cx)?)?)
    });
    // One pixel: both layouts are the same.
    let out = if global { out } else { (cx.channels_last)(out) };
    Some(Built { kernel, ins: vec![(cx.channels_last)(x.value)], outs: vec![out] })
}

/// A source of quantized values or of floats.
fn any_quant<'a>(cx: &RunCx<'a>, q: Option<QParams>) -> Result<Quant<'a>, StepError> {
    match q {
        Some(q) => quant(cx, 0, q),
        None => Ok(Quant::F32(cx.f32s(0)?)),
    }
}

/// Softmax of any axis or a normalisation of the last ones, between integers or from floats to integers.
fn rowwise(cx: &BuildCx, f: &Fusion, ints: &Ints) -> Option<Built> {
    let (source, out) = (*ints.operands.first()?, f.output?);
    let x = source.map_or(cx.node.input(0)?, |q| q.value);
    let dims = cx.f32_shape(0)?;
    if cx.node.op.name() == "Softmax" {
        return soft(cx, source, &dims, (x, out), ints.output);
    }
    let axis = narrowbit_tensor::shape::axis(cx.int("axis", -1), dims.len())?;
    let columns: usize = dims[axis..].iter().product();
    let shape = [dims[..axis].iter().product(), columns];
    let (input, output) = (source.map(|q| q.params), ints.output);
    let vector = |i: usize| cx.floats(i).filter(|v| v.len() == columns);
    let (scale, bias) = (vector(1)?, vector(2));
    if bias.is_none() && cx.node.input(2).is_some() {
        return None;
    }
    let (epsilon, rms) = (cx.float("epsilon", 1e-5), cx.node.op.name() == "RMSNormalization");
    let kernel = crate::kernel::simple(if rms { "rms_norm_rows" } else { "layer_norm_rows" }, move |cx| {
        let norm = RowNorm { scale: Some(&scale), bias: bias.as_deref(), epsilon, rms };
        let (exec, x) = (cx.exec, any_quant(cx, input)?);
        Ok(layer_norm_rows(exec, x, shape, &norm, target(output, cx)?)?)
    });
    Some(Built { kernel, ins: vec![x], outs: vec![out] })
}

/// Softmax along any axis.
fn soft(
    cx: &BuildCx,
    source: Option<Quantized>,
    dims: &[usize],
    (x, out): (ValueId, ValueId),
    output: Option<QParams>,
) -> Option<Built> {
    let (input, lines) = (source.map(|q| q.params), super::norm::lines(cx, dims)?);
    let [rows, columns, inner] = lines;
    let kernel = if inner == 1 {
        crate::kernel::simple("softmax_rows", move |cx| {
            let (exec, x) = (cx.exec, any_quant(cx, input)?);
            Ok(softmax_rows(exec, x, [rows, columns], target(output, cx)?)?)
        })
    } else {
        crate::kernel::simple("softmax_columns", move |cx| {
            let (exec, x) = (cx.exec, any_quant(cx, input)?);
            Ok(softmax_columns(exec, x, lines, target(output, cx)?)?)
        })
    };
    Some(Built { kernel, ins: vec![x], outs: vec![out] })
}

/// A function of floats whose results are quantized.
fn function(cx: &BuildCx, f: &Fusion, ints: &Ints) -> Option<Built> {
    let (x, out, output) = (cx.node.input(0)?, f.output?, ints.output);
    let op = super::elementwise::unary_op(cx)?;
    let kernel = crate::kernel::simple("unary_rows", move |cx| {
        let (exec, x) = (cx.exec, Quant::F32(cx.f32s(0)?));
        Ok(unary_rows(exec, op, x, target(output, cx)?)?)
    });
    let last = cx.is_channels_last(x);
    let place = |v: ValueId| if last { (cx.channels_last)(v) } else { v };
    Some(Built { kernel, ins: vec![place(x)], outs: vec![place(out)] })
}
