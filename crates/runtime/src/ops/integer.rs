//! Products, sums and functions of 8-bit integers, with what follows them up to the
//! QuantizeLinear of their result.

use std::sync::Arc;

use narrowbit_ir::ValueId;
use narrowbit_kernels::Few;
use narrowbit_kernels::conv::{Conv2dParams, Conv3dParams};
use narrowbit_kernels::integer::{
    DepthwiseWeights, PoolNhwcParams, Quant, RowNorm, affine, avg_pool2d_nhwc, depthwise_nhwc, depthwise_nhwc_pack,
    layer_norm_rows, softmax_columns, softmax_rows, unary_rows,
};
use narrowbit_kernels::panel::{
    IntMatMul, Panels, Rows, WinogradWeights, conv2d_nhwc_fits, conv2d_nhwc_pack, conv2d_nhwc_pixels, panel_gemm,
    panel_gemm_pack, panel_matmul, winograd_nhwc, winograd_pays,
};
use narrowbit_tensor::{DType, Tensor};

use super::conv::image;
use super::finish::{
    Codes, Finish, Loaded, bias_steps, in_steps, load, push_format, rows, rows_at, runtime_params, target,
};
use super::images::{Images, pixels};
use super::norm::Affine;
use super::{Maybe, integer_binary};
use crate::error::StepError;
use crate::fuse::{Fusion, Ints};
use crate::kernel::{BuildCx, Built, Kernel, RunCx, Simple};
use crate::lower::{self, QParams, Quantized};

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
        "BatchNormalization" => Ok(channels(cx, f, ints)),
        _ if ints.operands == [None] => Ok(function(cx, f, ints)),
        // Functions of codes are tables (`crate::collapse`).
        _ if ints.operands.len() == 1 => Ok(None),
        _ => Ok(integer_binary::build(cx, f, ints)),
    }
}

struct Conv {
    p: Conv2dParams,
    /// Set where the image's channels are planes of volumes.
    volumes: Option<Conv3dParams>,
    input: QParams,
    /// Operands that are the image: what a Concat would join.
    parts: usize,
    weights: ConvWeights,
    finish: Finish,
}

enum ConvWeights {
    Panels(Arc<Panels>),
    Winograd(Arc<WinogradWeights>),
    Depthwise(Arc<DepthwiseWeights>),
}

impl ConvWeights {
    fn new(cx: &BuildCx, images: &Images, w: &mut Loaded) -> Result<ConvWeights, StepError> {
        let p = &images.p;
        // The zero point, with which a product is 0; it fits, as it did before it was moved with its codes.
        let none = |channel: usize| w.zeros.get(channel).map_or(0, |&zero| zero as i8);
        if p.groups > 1 && p.groups == p.c && p.oc == p.c && images.stand_in_place() {
            let pack = || Ok::<_, StepError>(depthwise_nhwc_pack(cx.exec, p, &images.cut(&w.data, none)?, &w.zeros)?);
            let packed = cx.weights.get(cx.id, images.form("depthwise-i8"), pack)?;
            // They were taken off when the weights were packed.
            w.zeros.clear();
            return Ok(ConvWeights::Depthwise(packed));
        }
        if w.zeros.is_empty() && winograd_pays(cx.exec.isa(), p) {
            let pack = || Ok::<_, StepError>(WinogradWeights::pack_ints(cx.exec, p, &images.cut(&w.data, none)?)?);
            return Ok(ConvWeights::Winograd(cx.weights.get(cx.id, images.form("conv-winograd-i8"), pack)?));
        }
        let pack = || Ok::<_, StepError>(conv2d_nhwc_pack(cx.exec, p, &images.cut(&w.data, none)?)?);
        Ok(ConvWeights::Panels(cx.weights.get(cx.id, images.form("conv-i8"), pack)?))
    }

    fn column_sums(&self) -> &[i32] {
        match self {
            ConvWeights::Panels(w) => w.column_sums(),
            ConvWeights::Winograd(w) => w.column_sums(),
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
    let Some(images) = Images::of(cx, &dims, &w, &y).filter(|i| conv2d_nhwc_fits(&i.p, 1)) else { return Ok(None) };
    let (p, volumes) = (images.p, images.volumes());
    let Some(weights) = cx.node.input(1).and_then(|v| cx.int_weights(v, 0)) else { return Ok(None) };
    let Some(mut loaded) = load(cx, &weights, p.oc) else { return Ok(None) };
    let packed = ConvWeights::new(cx, &images, &mut loaded)?;
    let depth = p.c / p.groups * p.kh * p.kw;
    let mut finish = Finish::new(f, ints, x.params, loaded, packed.column_sums(), (depth, 1.0));
    let mut ins = image(cx, &p, x.value, volumes.is_none() && is_read_alone(cx, x.value));
    let parts = ins.len();
    finish.at_run_time(*x, &mut ins, packed.column_sums(), depth);
    let Some(()) = finish.take_rest(cx, (f, ints), &mut ins, p.oc) else { return Ok(None) };
    let out = (cx.channels_last)(out);
    Ok(Some((Conv { p, volumes, input: x.params, parts, weights: packed, finish }, ins, out)))
}

/// Whether the node alone reads codes, through a DequantizeLinear.
fn is_read_alone(cx: &BuildCx, codes: ValueId) -> bool {
    let next = |v: ValueId| cx.graph.only_use(v).map(|u| u.node);
    next(codes).and_then(|id| next(cx.graph.node(id).output(0)?)) == Some(cx.id)
}

impl Kernel for Conv {
    fn on_integers(&self) -> bool {
        true
    }

    fn name(&self) -> &str {
        match &self.weights {
            ConvWeights::Panels(w) => w.kernel().name,
            ConvWeights::Winograd(w) => w.name(),
            ConvWeights::Depthwise(_) => "depthwise_nhwc_i8",
        }
    }

    fn window(&self) -> Option<&Conv2dParams> {
        let anywhere = !matches!(self.weights, ConvWeights::Winograd(_));
        let images = self.parts == 1 && self.volumes.is_none();
        Some(&self.p).filter(|_| anywhere && images && !self.finish.is_at_run_time())
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        self.run_band(&self.p, cx)
    }

    fn run_band(&self, p: &Conv2dParams, cx: &mut RunCx) -> Result<(), StepError> {
        let format = self.finish.format(cx)?;
        let x = (0..self.parts).map(|i| rows_at(cx, i, self.input.dtype)).collect::<Result<Few<Rows, 8>, _>>()?;
        let (exec, epilogue) = (cx.exec, self.finish.epilogue(cx, &format)?);
        let (y, zero) = (self.finish.target(cx)?, format.as_ref().map_or(self.input.zero, |f| f.zero));
        let image = pixels(&x, self.volumes.as_ref());
        let done = match &self.weights {
            ConvWeights::Panels(w) => conv2d_nhwc_pixels(exec, p, image, zero, w, &epilogue, y),
            ConvWeights::Winograd(w) => winograd_nhwc(exec, p, image, zero, w, &epilogue, y),
            ConvWeights::Depthwise(w) => depthwise_nhwc(exec, p, x[0], zero, w, &epilogue, y),
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
    let &[w0, w1] = shape.shape.as_slice() else { return super::stack::integers(cx, f, ints) };
    let (k, n) = if transposed { (w1, w0) } else { (w0, w1) };
    let Some((&last, rows)) = dims.shape.split_last() else { return Ok(None) };
    let axis = lower::channel_axis(cx.node, 2);
    let Some(weights) = cx.int_weights(w, axis).filter(|_| last == k) else { return Ok(None) };
    let Some(loaded) = load(cx, &weights, n) else { return Ok(None) };
    let packed = cx.weights.get(cx.id, "gemm-i8", || {
        panel_gemm_pack(cx.exec, (k, n), &loaded.data, transposed).map_err(StepError::from)
    })?;
    let alpha = if cx.node.op.name() == "Gemm" { cx.float("alpha", 1.0) } else { 1.0 };
    let mut ins = vec![x.value];
    let finish = finish_product(cx, (f, ints, *x), loaded, packed.column_sums(), (k, alpha), &mut ins);
    let Some(finish) = finish else { return Ok(None) };
    let kernel = Gemm { m: rows.iter().product(), k, input: x.params, weights: packed, finish };
    Ok(Some(Built { kernel: Box::new(kernel), ins, outs: vec![out] }))
}

/// What happens to the sums of a product with weights, `k` deep and multiplied by `alpha`, behind it; adds the operands that this
/// takes to `ins`, which holds the rows. `None` where a bias is no constant.
pub(super) fn finish_product(
    cx: &BuildCx,
    (f, ints, x): (&Fusion, &Ints, Quantized),
    weights: Loaded,
    sums: &[i32],
    (k, alpha): (usize, f32),
    ins: &mut Vec<ValueId>,
) -> Option<Finish> {
    let is_gemm = cx.node.op.name() == "Gemm";
    let mut finish = Finish::new(f, ints, x.params, weights, sums, (k, alpha));
    finish.at_run_time(x, ins, sums, k);
    let row = |t: Tensor, beta: f32| Some(t.to_f32s().ok()?.iter().map(|v| v * beta).collect::<Vec<f32>>());
    let bias = match (f.bias, cx.node.input(2)) {
        (Some(v), _) => Some((v, 1.0)),
        (None, Some(v)) if is_gemm => Some((v, cx.float("beta", 1.0))),
        _ => None,
    };
    if let Some((v, factor)) = bias
        && let Some(steps) = bias_steps(cx, v, &finish, sums.len()).filter(|_| factor == 1.0)
    {
        finish.add_steps(steps);
    } else if let Some((v, factor)) = bias {
        let bias = (cx.consts)(v).and_then(|t| row(t, factor))?;
        finish.add_bias(&bias);
    }
    finish.take_affine(cx, f)?;
    finish.take_residual(f, ints, ins, |v| v);
    finish.at_once();
    Some(finish)
}

impl Kernel for Gemm {
    fn on_integers(&self) -> bool {
        true
    }

    fn name(&self) -> &str {
        self.weights.kernel().name
    }

    fn rows(&self) -> Option<(usize, usize)> {
        // The processor's tiles would wait for weights that come anew for each few rows.
        let mr = self.weights.kernel().mr;
        (mr <= 14).then_some((self.m, 28 / mr * mr))
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        self.run_rows(self.m, cx)
    }

    fn run_rows(&self, m: usize, cx: &mut RunCx) -> Result<(), StepError> {
        let format = self.finish.format(cx)?;
        let (exec, x, epilogue) = (cx.exec, rows(cx, self.input.dtype)?, self.finish.epilogue(cx, &format)?);
        let y = self.finish.target(cx)?;
        Ok(panel_gemm(exec, x, (m, self.k, self.k), &self.weights, &epilogue, y)?)
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
    let image = super::pool::image(&dims)?;
    let global = cx.node.op.name() == "GlobalAveragePool";
    let p = match global {
        true => PoolNhwcParams::whole(image),
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
        return soft(cx, source, &dims, (x, out), (f.guarded, ints.output));
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
    (guarded, output): (bool, Option<QParams>),
) -> Option<Built> {
    let (input, lines) = (source.map(|q| q.params), super::norm::lines(cx, dims)?);
    let [rows, columns, inner] = lines;
    let kernel = if inner == 1 {
        crate::kernel::simple("softmax_rows", move |cx| {
            let (exec, x) = (cx.exec, any_quant(cx, input)?);
            Ok(softmax_rows(exec, x, [rows, columns], guarded, target(output, cx)?)?)
        })
    } else {
        crate::kernel::simple("softmax_columns", move |cx| {
            let (exec, x) = (cx.exec, any_quant(cx, input)?);
            Ok(softmax_columns(exec, x, lines, guarded, target(output, cx)?)?)
        })
    };
    Some(Built { kernel, ins: vec![x], outs: vec![out] })
}

/// A BatchNormalization that no product before it takes in, and an activation.
fn channels(cx: &BuildCx, f: &Fusion, ints: &Ints) -> Option<Built> {
    let (source, out) = (*ints.operands.first()?, f.output?);
    let x = source.map_or(cx.node.input(0)?, |q| q.value);
    let last = cx.is_channels_last(x);
    let Affine { shape, scale, shift } = super::norm::affine(cx, last)?;
    let (input, output, activation) = (source.map(|q| q.params), ints.output, f.activation);
    let kernel = crate::kernel::simple("batch_norm_i8", move |cx| {
        let (exec, x) = (cx.exec, any_quant(cx, input)?);
        Ok(affine(exec, x, shape, (&scale, &shift), activation, target(output, cx)?)?)
    });
    let place = |v: ValueId| if last { (cx.channels_last)(v) } else { v };
    Some(Built { kernel, ins: vec![place(x)], outs: vec![place(out)] })
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
