//! 2-D, 1-D and 3-D convolution and its transpose on NCHW f32.

mod depthwise;
mod phases;
mod plane;
mod reference;
mod taps;
mod transpose;
mod volume;

pub use phases::{Phase, TransposedAxis, phase_weights};
pub use reference::{conv_transpose2d_reference, conv2d_reference};
pub(crate) use taps::Axis;
pub use taps::Taps;
pub use transpose::{ConvTranspose2dParams, ConvTransposeWeights, conv_transpose2d_prepack, conv_transpose2d_run};
pub use volume::{Conv3dParams, conv3d_run};

pub(crate) use plane::{PaddedPlane, Spread};

use crate::activation::Activation;
use crate::error::{KernelError, Result, at_least, exact, product, require};
use crate::exec::Exec;
use crate::gemm::{BatchDim, Bias, Gemm, GemmKernel, ImageColumns, Lhs, MatrixView, PackedA, Rhs, gemm};

const NAME: &str = "conv2d";

/// Shape of a 2-D convolution; a 1-D one is a 2-D one of height 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dParams {
    /// Images.
    pub n: usize,
    /// Input channels.
    pub c: usize,
    /// Image height.
    pub h: usize,
    /// Image width.
    pub w: usize,
    /// Output channels.
    pub oc: usize,
    /// Window height.
    pub kh: usize,
    /// Window width.
    pub kw: usize,
    /// Steps down and across.
    pub strides: [usize; 2],
    /// Zeros at the top, left, bottom, right.
    pub pads: [usize; 4],
    /// Steps within the window, down and across.
    pub dilations: [usize; 2],
    /// Groups of channels; `c` and `oc` are multiples of it.
    pub groups: usize,
}

impl Conv2dParams {
    /// Checks the shape and computes the output height and width
    /// (`⌊(in + pads − dilation · (window − 1) − 1) / stride⌋ + 1`, ONNX `Conv`).
    ///
    /// # Errors
    /// A parameter is 0, the groups don't divide the channels, the padded image is
    /// smaller than the window, or a product overflows.
    pub fn output(&self) -> Result<[usize; 2]> {
        let [oh, ow] = [
            window_count(self.h, self.pads[0], self.pads[2], self.kh, self.strides[0], self.dilations[0])?,
            window_count(self.w, self.pads[1], self.pads[3], self.kw, self.strides[1], self.dilations[1])?,
        ];
        require(NAME, self.groups > 0, "groups must be above 0")?;
        let divides = self.c.is_multiple_of(self.groups) && self.oc.is_multiple_of(self.groups);
        require(NAME, divides, "the groups must divide the input and output channels")?;
        product(NAME, &[self.n, self.c, self.h, self.w])?;
        product(NAME, &[self.n, self.oc, oh, ow])?;
        product(NAME, &[self.oc, self.c, self.kh, self.kw])?;
        Ok([oh, ow])
    }

    /// Elements of the weights: `oc · c / groups · kh · kw`.
    ///
    /// # Errors
    /// As [`Conv2dParams::output`].
    pub fn weight_len(&self) -> Result<usize> {
        self.output()?;
        product(NAME, &[self.oc, self.c / self.groups, self.kh, self.kw])
    }

    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.c && self.groups == self.oc
    }
}

/// Positions of a dilated window in a padded line.
pub(crate) fn window_count(
    len: usize,
    before: usize,
    after: usize,
    window: usize,
    stride: usize,
    dilation: usize,
) -> Result<usize> {
    let overflow = KernelError::Overflow { kernel: NAME };
    require(NAME, window > 0 && stride > 0 && dilation > 0, "window, stride and dilation must be above 0")?;
    let padded = len.checked_add(before).and_then(|x| x.checked_add(after)).ok_or(overflow.clone())?;
    let reach = (window - 1).checked_mul(dilation).and_then(|x| x.checked_add(1)).ok_or(overflow)?;
    require(NAME, padded >= reach, "the window is larger than the padded image")?;
    require(NAME, padded < isize::MAX as usize / 64, "the padding is too large")?;
    Ok((padded - reach) / stride + 1)
}

/// Weights of a convolution, in the layout of the kernel that was chosen for them.
#[derive(Clone, Debug)]
pub struct ConvWeights {
    form: Form,
    shape: [usize; 5],
}

#[derive(Clone, Debug)]
enum Form {
    /// One packed matrix `oc/groups × c/groups · kh · kw` per group.
    Gemm(PackedA),
    /// One window per channel, as given.
    Depthwise(Vec<f32>),
}

impl ConvWeights {
    /// Bytes of the packed form.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Gemm(packed) => packed.bytes(),
            Form::Depthwise(weights) => size_of_val(&weights[..]),
        }
    }

    /// The kernel that will run: `"depthwise"` or the name of a GEMM kernel.
    pub fn kernel_name(&self) -> &'static str {
        match &self.form {
            Form::Gemm(packed) => packed.kernel().name,
            Form::Depthwise(_) => "conv_f32_depthwise",
        }
    }
}

fn weight_shape(p: &Conv2dParams) -> [usize; 5] {
    [p.oc, p.c, p.kh, p.kw, p.groups]
}

/// Packs weights `[oc, c/groups, kh, kw]` for [`conv2d_run`]. The image size and batch in
/// `params` only help to choose a kernel: the weights serve any.
///
/// # Errors
/// The parameters are invalid, or `weights` has another length.
pub fn conv2d_prepack(exec: &Exec, params: &Conv2dParams, weights: &[f32]) -> Result<ConvWeights> {
    exact(NAME, "weights", weights.len(), params.weight_len()?)?;
    let shape = weight_shape(params);
    if params.is_depthwise() {
        return Ok(ConvWeights { form: Form::Depthwise(weights.to_vec()), shape });
    }
    let rows = params.oc / params.groups;
    let k = params.c / params.groups * params.kh * params.kw;
    let view = MatrixView::row_major(weights, k);
    let kernel = GemmKernel::best_for_images(exec.isa());
    let packed = PackedA::with_kernel(exec, kernel, view, (rows, k), (params.groups, rows * k))?;
    Ok(ConvWeights { form: Form::Gemm(packed), shape })
}

/// What follows the sum of a convolution: `act(sum + bias[channel] + residual)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConvEpilogue<'a> {
    /// One value per output channel.
    pub bias: Option<&'a [f32]>,
    /// A tensor of the output's shape.
    pub residual: Option<&'a [f32]>,
    /// Applied last.
    pub activation: Activation,
    /// Adds to what the output already holds, instead of replacing it.
    pub accumulate: bool,
}

/// Convolves `x` `[n, c, h, w]` into `y` `[n, oc, oh, ow]`.
///
/// # Errors
/// The parameters are invalid or differ from those of the weights, or a slice has
/// another length than the shape.
pub fn conv2d_run(
    exec: &Exec,
    params: &Conv2dParams,
    x: &[f32],
    weights: &ConvWeights,
    epilogue: &ConvEpilogue<'_>,
    y: &mut [f32],
) -> Result {
    let p = params;
    let [oh, ow] = p.output()?;
    require(NAME, weights.shape == weight_shape(p), "the weights were packed for another shape")?;
    exact(NAME, "x", x.len(), p.n * p.c * p.h * p.w)?;
    exact(NAME, "y", y.len(), p.n * p.oc * oh * ow)?;
    if let Some(bias) = epilogue.bias {
        at_least(NAME, "bias", bias.len(), p.oc)?;
    }
    if let Some(residual) = epilogue.residual {
        exact(NAME, "residual", residual.len(), y.len())?;
    }
    match &weights.form {
        Form::Depthwise(weights) => depthwise::run(exec, p, [oh, ow], x, weights, epilogue, y),
        Form::Gemm(packed) => {
            let (cg, og) = (p.c / p.groups, p.oc / p.groups);
            let image = ImageColumns {
                c: cg,
                h: p.h,
                w: p.w,
                kh: p.kh,
                kw: p.kw,
                stride: p.strides,
                pad: [p.pads[0], p.pads[1]],
                dilation: p.dilations,
                oh,
                ow,
            };
            let (k, columns) = (image.rows(), image.columns());
            let pointwise = p.kh * p.kw == 1 && p.strides == [1, 1] && p.pads == [0; 4];
            let b = if pointwise { Rhs::View(MatrixView::row_major(x, columns)) } else { Rhs::Image(&image, x) };
            let (image_len, out_len) = (cg * p.h * p.w, og * columns);
            let batch = [
                BatchDim { len: p.n, a: 0, b: p.groups * image_len, c: p.groups * out_len, bias: 0 },
                BatchDim { len: p.groups, a: 1, b: image_len, c: out_len, bias: og },
            ];
            let mut g = Gemm::new(og, columns, k, Lhs::Packed(packed), b);
            g.batch = &batch;
            g.bias = epilogue.bias.map_or(Bias::None, Bias::Row);
            g.residual = epilogue.residual;
            g.activation = epilogue.activation;
            g.beta = if epilogue.accumulate { 1.0 } else { 0.0 };
            gemm(exec, &g, y)
        }
    }
}

#[cfg(test)]
mod tests;
