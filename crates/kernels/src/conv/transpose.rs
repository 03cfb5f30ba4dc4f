//! Transposed convolution: a GEMM per image, then the products are scattered.

use super::ConvEpilogue;
use crate::activation::Activation;
use crate::buffer::{SharedMut, with_scratch};
use crate::error::{Result, at_least, exact, product, require};
use crate::exec::Exec;
use crate::gemm::{Gemm, Lhs, MatrixView, PackedA, Rhs, gemm};
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "conv_transpose2d";
/// Output channels that one task computes; it packs its input once for all of them.
const CHANNELS: usize = 64;
/// Products that one task holds at a time, where it can choose: they stay in L2.
const PRODUCTS: usize = 1 << 16;

/// Shape of a transposed 2-D convolution. The caller works out `out` (ONNX
/// `ConvTranspose`: `stride · (in − 1) + output_padding + dilation · (window − 1) + 1 − pads`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvTranspose2dParams {
    /// Images.
    pub n: usize,
    /// Input channels.
    pub c: usize,
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Output channels.
    pub oc: usize,
    /// Window height.
    pub kh: usize,
    /// Window width.
    pub kw: usize,
    /// Steps down and across.
    pub strides: [usize; 2],
    /// Rows cut at the top, columns cut at the left.
    pub pads: [usize; 2],
    /// Steps within the window, down and across.
    pub dilations: [usize; 2],
    /// Groups of channels.
    pub groups: usize,
    /// Output height and width.
    pub out: [usize; 2],
}

impl ConvTranspose2dParams {
    pub(crate) fn check(&self) -> Result {
        require(NAME, self.groups > 0, "groups must be above 0")?;
        let divides = self.c.is_multiple_of(self.groups) && self.oc.is_multiple_of(self.groups);
        require(NAME, divides, "the groups must divide the input and output channels")?;
        product(NAME, &[self.n, self.c, self.h, self.w])?;
        product(NAME, &[self.n, self.oc, self.out[0], self.out[1]])?;
        product(NAME, &[self.oc, self.kh, self.kw, self.h.max(1), self.w.max(1)])?;
        product(NAME, &[self.oc, self.c, self.kh, self.kw])?;
        for axis in 0..2 {
            let (window, len) = ([self.kh, self.kw][axis], [self.h, self.w][axis]);
            product(NAME, &[window, self.dilations[axis]])?;
            product(NAME, &[len, self.strides[axis]])?;
            require(NAME, self.pads[axis] < isize::MAX as usize / 64, "the padding is too large")?;
        }
        Ok(())
    }

    /// Windows that tile the output: each element gets one product.
    pub(crate) fn tiles_exactly(&self) -> bool {
        self.strides == [self.kh, self.kw]
            && self.dilations == [1, 1]
            && self.pads == [0, 0]
            && self.out == [self.h * self.kh, self.w * self.kw]
    }
}

/// Packed weights of a transposed convolution.
#[derive(Clone, Debug)]
pub struct ConvTransposeWeights {
    /// One matrix `channels · kh · kw × c/groups` per group and block of channels.
    blocks: Vec<Block>,
    shape: [usize; 5],
}

#[derive(Clone, Debug)]
struct Block {
    group: usize,
    /// First output channel, over all groups, and number of channels.
    first: usize,
    channels: usize,
    weights: PackedA,
}

impl ConvTransposeWeights {
    /// Bytes of the packed form.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.weights.bytes()).sum()
    }
}

fn shape(p: &ConvTranspose2dParams) -> [usize; 5] {
    [p.c, p.oc, p.kh, p.kw, p.groups]
}

/// Packs weights `[c, oc/groups, kh, kw]` for [`conv_transpose2d_run`].
///
/// # Errors
/// The parameters are invalid, or `weights` has another length.
pub fn conv_transpose2d_prepack(
    exec: &Exec,
    p: &ConvTranspose2dParams,
    weights: &[f32],
) -> Result<ConvTransposeWeights> {
    p.check()?;
    let (cg, og, window) = (p.c / p.groups, p.oc / p.groups, p.kh * p.kw);
    exact(NAME, "weights", weights.len(), p.c * og * window)?;
    let mut blocks = Vec::new();
    for group in 0..p.groups {
        let mut o = 0;
        while o < og {
            let channels = CHANNELS.min(og - o);
            let rows = channels * window;
            // Row (o, r, t) and column c of the matrix: element c · og · window + row.
            let start = (group * cg * og + o) * window;
            let view =
                MatrixView { data: &weights[start.min(weights.len())..], row_stride: 1, col_stride: og * window };
            let packed = PackedA::new(exec, view, (rows, cg), (1, 0))?;
            blocks.push(Block { group, first: group * og + o, channels, weights: packed });
            o += channels;
        }
    }
    Ok(ConvTransposeWeights { blocks, shape: shape(p) })
}

/// Computes `y` `[n, oc, out]` from `x` `[n, c, h, w]`; the epilogue's residual and
/// accumulation are not supported.
///
/// # Errors
/// The parameters are invalid or differ from those of the weights, a slice has another
/// length than the shape, or the epilogue asks for more than bias and activation.
pub fn conv_transpose2d_run(
    exec: &Exec,
    p: &ConvTranspose2dParams,
    x: &[f32],
    weights: &ConvTransposeWeights,
    epilogue: &ConvEpilogue<'_>,
    y: &mut [f32],
) -> Result {
    p.check()?;
    require(NAME, weights.shape == shape(p), "the weights were packed for another shape")?;
    let plain = epilogue.residual.is_none() && !epilogue.accumulate;
    require(NAME, plain, "residual and accumulation are not supported")?;
    let (pixels, plane) = (p.h * p.w, p.out[0] * p.out[1]);
    exact(NAME, "x", x.len(), p.n * p.c * pixels)?;
    exact(NAME, "y", y.len(), p.n * p.oc * plane)?;
    if let Some(bias) = epilogue.bias {
        at_least(NAME, "bias", bias.len(), p.oc)?;
    }
    if y.is_empty() {
        return Ok(());
    }
    let cg = p.c / p.groups;
    let out = SharedMut::new(y);
    let error = std::sync::Mutex::new(None);
    // Bands of input rows bound the scratch, when bands can't meet in an output row.
    let line = CHANNELS.min(p.oc / p.groups) * p.kh * p.kw * p.w;
    let band = if p.tiles_exactly() { (PRODUCTS / line.max(1)).clamp(1, p.h.max(1)) } else { p.h };
    let bands = p.h.div_ceil(band.max(1)).max(1);
    exec.pool().run(p.n * weights.blocks.len() * bands, &|task| {
        let (rest, band_index) = (task / bands, task % bands);
        let (image, block) = (rest / weights.blocks.len(), &weights.blocks[rest % weights.blocks.len()]);
        let y0 = band_index * band;
        let rows = band.min(p.h - y0.min(p.h));
        let columns = rows * p.w;
        let m = block.channels * p.kh * p.kw;
        let input = &x[(image * p.c + block.group * cg) * pixels + y0 * p.w..];
        with_scratch(m * columns, |products| {
            let view = MatrixView { data: input, row_stride: pixels, col_stride: 1 };
            let g = Gemm::new(m, columns, cg, Lhs::Packed(&block.weights), Rhs::View(view));
            if let Err(e) = gemm(exec, &g, products) {
                *error.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(e);
                return;
            }
            for o in 0..block.channels {
                let channel = block.first + o;
                let from = &products[o * p.kh * p.kw * columns..][..p.kh * p.kw * columns];
                let start = (image * p.oc + channel) * plane;
                let (first, len) = if p.tiles_exactly() {
                    (start + y0 * p.kh * p.out[1], rows * p.kh * p.out[1])
                } else {
                    (start, plane)
                };
                exec.isa().dispatch(Scatter {
                    p,
                    from,
                    rows,
                    bias: epilogue.bias.map_or(0.0, |bias| bias[channel]),
                    epilogue,
                    // SAFETY: each channel and band owns these output rows.
                    out: unsafe { out.slice(first, len) },
                });
            }
        });
    });
    error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Writes the products `[kh, kw, rows, w]` of one channel into its output rows.
struct Scatter<'a> {
    p: &'a ConvTranspose2dParams,
    from: &'a [f32],
    rows: usize,
    bias: f32,
    epilogue: &'a ConvEpilogue<'a>,
    out: &'a mut [f32],
}

impl Kernel for Scatter<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        if self.p.tiles_exactly() {
            self.interleave();
            if self.epilogue.activation == Activation::None {
                return;
            }
            self.bias = 0.0;
        } else {
            self.add();
        }
        finish(s, self.out, self.bias, self.epilogue);
    }
}

impl Scatter<'_> {
    #[inline(always)]
    fn interleave(&mut self) {
        let (kh, kw, w) = (self.p.kh, self.p.kw, self.p.w);
        let bias = self.bias;
        let columns = self.rows * w;
        if columns == 0 {
            return;
        }
        for iy in 0..self.rows {
            for r in 0..kh {
                let row = &mut self.out[(iy * kh + r) * w * kw..][..w * kw];
                let source = |t: usize| &self.from[(r * kw + t) * columns + iy * w..][..w];
                if kw == 2 {
                    let (even, odd) = (source(0), source(1));
                    for ((pair, &a), &b) in row.chunks_exact_mut(2).zip(even).zip(odd) {
                        pair[0] = a + bias;
                        pair[1] = b + bias;
                    }
                } else {
                    for t in 0..kw {
                        for (y, &v) in row.iter_mut().skip(t).step_by(kw).zip(source(t)) {
                            *y = v + bias;
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn add(&mut self) {
        let p = self.p;
        let columns = self.rows * p.w;
        self.out.fill(0.0);
        for r in 0..p.kh {
            for t in 0..p.kw {
                let from = &self.from[(r * p.kw + t) * columns..][..columns];
                for iy in 0..self.rows {
                    let oy = (iy * p.strides[0] + r * p.dilations[0]).wrapping_sub(p.pads[0]);
                    if oy >= p.out[0] {
                        continue;
                    }
                    let row = &mut self.out[oy * p.out[1]..][..p.out[1]];
                    for (ix, &v) in from[iy * p.w..][..p.w].iter().enumerate() {
                        let ox = (ix * p.strides[1] + t * p.dilations[1]).wrapping_sub(p.pads[1]);
                        if let Some(y) = row.get_mut(ox) {
                            *y += v;
                        }
                    }
                }
            }
        }
    }
}

/// `y = act(y + bias)`.
#[inline(always)]
fn finish<S: Simd>(s: S, y: &mut [f32], bias: f32, epilogue: &ConvEpilogue<'_>) {
    let bias = s.splat(bias);
    let mut i = 0;
    while i < y.len() {
        let bits = low_bits((y.len() - i).min(S::LANES));
        // SAFETY: `bits` ends at the slice's end.
        unsafe {
            let p = y.as_mut_ptr().add(i);
            let v = s.add(s.load_bits(p, bits), bias);
            s.store_bits(p, epilogue.activation.apply(s, v), bits);
        }
        i += S::LANES;
    }
}
