//! Conv and ConvTranspose of floats over one to three axes; others run on the reference.

use std::sync::Arc;

use narrowbit_ir::ValueId;
use narrowbit_kernels::Few;
use narrowbit_kernels::conv::{
    Conv2dParams, Conv3dParams, ConvEpilogue, ConvTranspose2dParams, ConvTransposeWeights, ConvWeights,
    conv_transpose2d_prepack, conv_transpose2d_run, conv2d_prepack, conv2d_run,
};

use narrowbit_kernels::integer::{DepthwiseWeights, depthwise_nhwc, depthwise_nhwc_pack};
use narrowbit_kernels::panel::{
    Epilogue, Panels, Residual, Rows, Target, WinogradWeights, conv_transpose2d_nhwc, conv_transpose2d_nhwc_fits,
    conv_transpose2d_nhwc_pack, conv_transpose2d_nhwc_pack_bf16, conv2d_nhwc_fits, conv2d_nhwc_pack,
    conv2d_nhwc_pack_bf16, conv2d_nhwc_pixels, conv2d_nhwc_skips_padding, winograd_nhwc, winograd_side,
};

use narrowbit_tensor::DType;

use super::Maybe;
use super::images::{Images, Window, pixels, plane, window};
use crate::error::StepError;
use crate::fuse::Fusion;
use crate::kernel::{BuildCx, Built, Kernel, RunCx};
use crate::view::View;

/// The kernel of a convolution with its epilogue.
pub fn build(cx: &BuildCx, f: &Fusion) -> Maybe {
    let (Some(x), Some(w), Some(out)) = (cx.f32_shape(0), cx.f32_shape(1), f.output) else { return Ok(None) };
    let Some(y) = cx.out(0).map(|t| t.shape) else { return Ok(None) };
    let transposed = cx.node.op.name() == "ConvTranspose";
    let ranks_fit = (3..=5).contains(&x.len()) && w.len() == x.len() && y.len() == x.len();
    if !ranks_fit || !cx.is_constant(1) || cx.node.input(2).is_some() && cx.floats(2).is_none() {
        return Ok(None);
    }
    if !transposed {
        return images(cx, f, (&x, &w, &y));
    }
    let p = window(cx, &x, &w, &y, true).map(|window| transposed_params(cx, &window, &x, &w, &y));
    // There are such kernels for images only.
    let Some(p) = p else { return super::phases::floats(cx, f) };
    let bias = cx.floats(2);
    if let (Some(x), true) = (cx.node.input(0), conv_transpose2d_nhwc_fits(&p) && f.residual.is_none()) {
        let pack = |w: &[f32]| match cx.exec.bf16() {
            true => conv_transpose2d_nhwc_pack_bf16(cx.exec, &p, w),
            false => conv_transpose2d_nhwc_pack(cx.exec, &p, w),
        };
        let weights = cx.packed("conv-transpose-nhwc", pack)?;
        // A column for each place of the window and output channel.
        let bias = bias.unwrap_or_default().repeat(p.kh * p.kw);
        let kernel = Tiling { p, weights, bias, activation: f.activation };
        let (ins, outs) = (vec![(cx.channels_last)(x)], vec![(cx.channels_last)(out)]);
        return Ok(Some(Built { kernel: Box::new(kernel), ins, outs }));
    }
    if let Some(built) = super::phases::floats(cx, f)? {
        return Ok(Some(built));
    }
    let weights = cx.packed("conv-transpose", |w| conv_transpose2d_prepack(cx.exec, &p, w))?;
    let kernel = Box::new(Transposed { p, weights, bias, activation: f.activation });
    Ok(Some(Built { kernel, ins: operands(cx, f), outs: vec![out] }))
}

/// The kernel of a Conv.
fn images(cx: &BuildCx, f: &Fusion, (x, w, y): (&[usize], &[usize], &[usize])) -> Maybe {
    let (Some(images), Some(out)) = (Images::of(cx, x, w, y), f.output) else { return Ok(None) };
    let (p, taps) = (images.p, &images.taps);
    if images.volumes().is_none()
        && let Some(built) = super::coded::conv(cx, f, (&p, taps), y)?
    {
        return Ok(Some(built));
    }
    if let Some(built) = channels_last(cx, f, &images)? {
        return Ok(Some(built));
    }
    if images.volumes().is_some() {
        return Ok(None);
    }
    let weights = cx.packed(("conv", taps), |w| conv2d_prepack(cx.exec, &p, &taps.cut(w)))?;
    let residual = f.residual.is_some();
    let kernel = Box::new(Conv { p, weights, bias: cx.floats(2), residual, activation: f.activation });
    Ok(Some(Built { kernel, ins: operands(cx, f), outs: vec![out] }))
}

/// The image and the residual.
fn operands(cx: &BuildCx, f: &Fusion) -> Vec<ValueId> {
    cx.node.input(0).into_iter().chain(f.residual).collect()
}

pub(super) fn transposed_params(
    cx: &BuildCx,
    window: &Window,
    x: &[usize],
    w: &[usize],
    y: &[usize],
) -> ConvTranspose2dParams {
    let [h, wd] = plane(x);
    let groups = cx.int("group", 1).max(1) as usize;
    ConvTranspose2dParams {
        n: x[0],
        c: x[1],
        h,
        w: wd,
        oc: w[1].saturating_mul(groups),
        kh: window.kernel[0],
        kw: window.kernel[1],
        strides: window.strides,
        pads: [window.pads[0], window.pads[1]],
        dilations: window.dilations,
        groups,
        out: plane(y),
    }
}

struct Conv {
    p: Conv2dParams,
    weights: Arc<ConvWeights>,
    bias: Option<Vec<f32>>,
    residual: bool,
    activation: narrowbit_kernels::Activation,
}

impl Kernel for Conv {
    fn name(&self) -> &str {
        self.weights.kernel_name()
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let residual = if self.residual { Some(cx.f32s(1)?) } else { None };
        let epilogue =
            ConvEpilogue { bias: self.bias.as_deref(), residual, activation: self.activation, accumulate: false };
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        Ok(conv2d_run(exec, &self.p, x, &self.weights, &epilogue, cx.out_f32s()?)?)
    }
}

struct Transposed {
    p: ConvTranspose2dParams,
    weights: Arc<ConvTransposeWeights>,
    bias: Option<Vec<f32>>,
    activation: narrowbit_kernels::Activation,
}

impl Kernel for Transposed {
    fn name(&self) -> &str {
        "conv_transpose_f32_gemm"
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let epilogue =
            ConvEpilogue { bias: self.bias.as_deref(), activation: self.activation, ..ConvEpilogue::default() };
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        Ok(conv_transpose2d_run(exec, &self.p, x, &self.weights, &epilogue, cx.out_f32s()?)?)
    }
}

/// A transposed convolution whose windows tile the output, channels last.
struct Tiling {
    p: ConvTranspose2dParams,
    weights: Arc<Panels>,
    bias: Vec<f32>,
    activation: narrowbit_kernels::Activation,
}

impl Kernel for Tiling {
    fn name(&self) -> &str {
        self.weights.kernel().name
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let epilogue = Epilogue { bias: &self.bias, activation: self.activation, ..Epilogue::default() };
        let (exec, x) = (cx.exec, Rows::F32(cx.f32s(0)?));
        Ok(conv_transpose2d_nhwc(exec, &self.p, x, &self.weights, &epilogue, Target::F32(cx.out_f32s()?))?)
    }
}

/// Depth of a product beyond which a panel of weights leaves the second-level cache.
const DEEPEST: usize = 6144;

enum NhwcWeights {
    Panels(Arc<Panels>),
    Winograd(Arc<WinogradWeights>),
    Depthwise(Arc<DepthwiseWeights>),
}

struct Nhwc {
    p: Conv2dParams,
    /// Set where the image's channels are planes of volumes.
    volumes: Option<Conv3dParams>,
    weights: NhwcWeights,
    /// Operands that are the image: what a Concat would join.
    parts: usize,
    bias: Vec<f32>,
    residual: bool,
    activation: narrowbit_kernels::Activation,
}

/// The operands that are a convolution's image, channels last: the parts of a Concat where `alone` it reads that and windows
/// are copied on the way, which most are.
pub(super) fn image(cx: &BuildCx, p: &Conv2dParams, x: ValueId, alone: bool) -> Vec<ValueId> {
    let parts = cx.joined(x).filter(|_| alone && p.groups == 1 && p.kh * p.kw > 1);
    parts.unwrap_or_else(|| vec![x]).into_iter().map(cx.channels_last).collect()
}

/// A convolution that reads its image in place, with the channels last.
fn channels_last(cx: &BuildCx, f: &Fusion, images: &Images) -> Maybe {
    let (Some(x), Some(out)) = (cx.node.input(0), f.output) else { return Ok(None) };
    let (p, volumes) = (&images.p, images.volumes());
    let deep = p.c / p.groups * p.kh * p.kw > DEEPEST;
    let depthwise = p.groups > 1 && p.groups == p.c && p.oc == p.c && images.stand_in_place();
    let winograd = winograd_side(cx.exec, p);
    // Few output channels leave most of a vector empty, which costs less than another layout of the image.
    let narrow = p.oc / p.groups < 8 && (p.groups > 1 || !cx.is_channels_last(x));
    let panels = !narrow && (!deep || winograd.is_some() || conv2d_nhwc_skips_padding(p) && !cx.exec.bf16());
    // Volumes have no other kernel.
    let panels = panels || volumes.is_some();
    if !depthwise && !panels || !conv2d_nhwc_fits(p, 4) {
        return Ok(None);
    }
    let weights = if depthwise {
        let pack = |w: &[f32]| depthwise_nhwc_pack(cx.exec, p, &images.cut(w, |_| 0.0)?, &[]);
        NhwcWeights::Depthwise(cx.packed(images.form("depthwise-nhwc"), pack)?)
    } else if let Some(side) = winograd {
        let form = if side == 2 { "conv-winograd-2" } else { "conv-winograd-4" };
        let pack = |w: &[f32]| WinogradWeights::pack(cx.exec, p, side, &images.cut(w, |_| 0.0)?);
        NhwcWeights::Winograd(cx.packed(images.form(form), pack)?)
    } else {
        let pack = if cx.exec.bf16() { conv2d_nhwc_pack_bf16 } else { conv2d_nhwc_pack::<f32> };
        NhwcWeights::Panels(cx.packed(images.form("conv-nhwc"), |w| pack(cx.exec, p, &images.cut(w, |_| 0.0)?))?)
    };
    let alone = volumes.is_none() && cx.graph.only_use(x).is_some();
    let mut ins = image(cx, p, x, alone);
    let parts = ins.len();
    ins.extend(f.residual.map(cx.channels_last));
    let bias = cx.floats(2).unwrap_or_default();
    let (residual, activation) = (f.residual.is_some(), f.activation);
    let kernel = Nhwc { p: *p, volumes, weights, parts, bias, residual, activation };
    Ok(Some(Built { kernel: Box::new(kernel), ins, outs: vec![(cx.channels_last)(out)] }))
}

fn rows<'a>(x: &View<'a>) -> Result<Rows<'a>, StepError> {
    Ok(match x.dtype {
        DType::Bf16 => Rows::Bf16(x.slice()?),
        _ => Rows::F32(x.slice()?),
    })
}

impl Kernel for Nhwc {
    fn name(&self) -> &str {
        match &self.weights {
            NhwcWeights::Panels(w) => w.kernel().name,
            NhwcWeights::Winograd(w) => w.name(),
            NhwcWeights::Depthwise(_) => "depthwise_nhwc_f32",
        }
    }

    fn reads_bf16(&self, operand: usize) -> bool {
        let multiplies = match &self.weights {
            NhwcWeights::Panels(w) => w.multiplies_bf16(),
            NhwcWeights::Winograd(_) => false,
            NhwcWeights::Depthwise(_) => true,
        };
        // The parts of an image have one type. What is behind them is the residual.
        operand == self.parts || operand == 0 && self.parts == 1 && multiplies
    }

    fn makes_bf16(&self) -> bool {
        true
    }

    fn window(&self) -> Option<&Conv2dParams> {
        // Tiles of Winograd's algorithm begin at the image's first row, and their sums are not those of other tiles.
        let anywhere = !matches!(self.weights, NhwcWeights::Winograd(_));
        Some(&self.p).filter(|_| anywhere && self.parts == 1 && self.volumes.is_none())
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        self.run_band(&self.p, cx)
    }

    fn run_band(&self, p: &Conv2dParams, cx: &mut RunCx) -> Result<(), StepError> {
        let residual = match self.residual.then(|| cx.view(self.parts)).transpose()? {
            None => Residual::None,
            Some(r) if r.dtype == DType::Bf16 => Residual::Bf16(r.slice()?),
            Some(r) => Residual::F32(r.slice()?),
        };
        let epilogue = Epilogue { bias: &self.bias, residual, activation: self.activation, ..Epilogue::default() };
        let x = (0..self.parts).map(|i| rows(&cx.view(i)?)).collect::<Result<Few<Rows, 8>, StepError>>()?;
        let exec = cx.exec;
        let y = cx.outs.first_mut().ok_or(narrowbit_ir::OpError::MissingInput(0))?;
        let y = match y.dtype {
            DType::Bf16 => Target::Bf16(y.slice()?),
            _ => Target::F32(y.slice()?),
        };
        let image = pixels(&x, self.volumes.as_ref());
        let done = match &self.weights {
            NhwcWeights::Panels(w) => conv2d_nhwc_pixels(exec, p, image, 0, w, &epilogue, y),
            NhwcWeights::Winograd(w) => winograd_nhwc(exec, p, image, 0, w, &epilogue, y),
            NhwcWeights::Depthwise(w) => depthwise_nhwc(exec, p, x[0], 0, w, &epilogue, y),
        };
        Ok(done?)
    }
}
