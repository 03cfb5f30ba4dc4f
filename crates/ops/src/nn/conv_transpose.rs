//! ConvTranspose: the transpose (gradient with respect to the input) of a convolution.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, ChannelAxis, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole, check_size};
use narrowbit_tensor::{Tensor, shape};

use super::conv::{bias_of, infer_conv, take_group};
use super::real::{Packed, Real, with_real};
use super::window::{AutoPad, Window, WindowAttrs, shift, split_pad, to_ints};

/// `Y[n, m, i·stride + k·dilation − pad] += W[c, m, k] · X[n, c, i]`, plus `B[m]`.
///
/// Inputs: X `[N, C, D1, …]`, W `[C, M/group, k1, …]`, optional B `[M]`, all of one
/// floating-point type; output `[N, M, O1, …]`. Source: ONNX operator ConvTranspose (1, 11, 22).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvTranspose {
    /// Kernel, strides, dilations, pads.
    pub window: WindowAttrs,
    /// The number of groups that input and output channels are divided into.
    pub group: usize,
    /// Elements added at the ends of the output; empty where absent.
    pub output_padding: Vec<usize>,
    /// The spatial extents of the output, from which pads follow; empty where absent.
    pub output_shape: Vec<usize>,
}

/// Makes a ConvTranspose.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let window = WindowAttrs::take(attrs)?;
    let mut list = |name: &str| -> Result<Vec<usize>, OpError> {
        let v = attrs.ints(name)?.unwrap_or_default();
        let problem = || OpError::attribute(name, format!("is {v:?}, entries must not be negative"));
        v.iter().map(|&x| usize::try_from(x).map_err(|_| problem())).collect()
    };
    let (output_padding, output_shape) = (list("output_padding")?, list("output_shape")?);
    Ok(Arc::new(ConvTranspose { window, group: take_group(attrs)?, output_padding, output_shape }))
}

/// The extents of a transposed convolution with everything resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvTransposeShape {
    /// The batch size.
    pub batch: usize,
    /// Input channels, all groups together.
    pub c: usize,
    /// Output channels, all groups together.
    pub m: usize,
    /// The geometry of the convolution that is transposed: its `input` is the output
    /// of ConvTranspose, its `output` is the input.
    pub window: Window,
}

impl ConvTransposeShape {
    /// The output's shape.
    pub fn output(&self) -> Vec<usize> {
        [&[self.batch, self.m], &self.window.input[..]].concat()
    }
}

impl ConvTranspose {
    /// Resolves the extents for shapes of X and W.
    ///
    /// # Errors
    /// When X, W and the attributes contradict each other.
    pub fn resolve(&self, x: &[usize], w: &[usize]) -> Result<ConvTransposeShape, OpError> {
        let (&[batch, c, ref input @ ..], &[rows, per_group, ref kernel @ ..]) = (x, w) else {
            return Err(OpError::shape(format!("X of shape {x:?} and W of shape {w:?} need at least 2 axes")));
        };
        let m = per_group.checked_mul(self.group).filter(|_| rows == c && c % self.group == 0 && x.len() == w.len());
        let Some(m) = m else {
            let message = format!("X of shape {x:?} and W of shape {w:?} don't fit together in {} groups", self.group);
            return Err(OpError::shape(message));
        };
        self.check_rank(input.len())?;
        let kernel = self.window.kernel_of(kernel)?;
        let mut window = Window {
            output: input.to_vec(),
            strides: (0..input.len()).map(|a| self.window.stride(a)).collect(),
            dilations: (0..input.len()).map(|a| self.window.dilation(a)).collect(),
            ..Window::default()
        };
        for a in 0..input.len() {
            let (begin, end, out) = self.resolve_axis(a, input.len(), input[a], kernel[a])?;
            window.begins.push(begin);
            window.ends.push(end);
            window.input.push(out);
        }
        window.kernel = kernel;
        for extents in [&window.input, &window.kernel, &window.output] {
            shape::count(extents)?;
        }
        Ok(ConvTransposeShape { batch, c, m, window })
    }

    /// Multiply-accumulates for shapes of X and W; `None` where they don't fit together.
    pub fn macs(&self, x: &[usize], w: &[usize]) -> Option<u64> {
        let s = self.resolve(x, w).ok()?;
        let per_input = (s.m / self.group).checked_mul(s.window.taps())?;
        let inputs = s.batch.checked_mul(s.c)?.checked_mul(s.window.positions())?;
        u64::try_from(inputs.checked_mul(per_input)?).ok()
    }

    fn check_rank(&self, rank: usize) -> Result<(), OpError> {
        self.window.check_rank(rank)?;
        for (name, list) in [("output_padding", &self.output_padding), ("output_shape", &self.output_shape)] {
            if !list.is_empty() && list.len() != rank {
                let problem = format!("has {} entries, {rank} are needed", list.len());
                return Err(OpError::attribute(name, problem));
            }
        }
        Ok(())
    }

    /// Pads and output extent along one axis (formulas of the ONNX page).
    fn resolve_axis(
        &self,
        axis: usize,
        rank: usize,
        input: usize,
        kernel: usize,
    ) -> Result<(usize, usize, usize), OpError> {
        let (stride, dilation) = (self.window.stride(axis) as i128, self.window.dilation(axis) as i128);
        let adjust = self.output_padding.get(axis).copied().unwrap_or(0) as i128;
        let same = matches!(self.window.auto_pad, AutoPad::SameUpper | AutoPad::SameLower);
        let full = stride * (input as i128 - 1) + adjust + (kernel as i128 - 1) * dilation + 1;
        let wanted = match self.output_shape.get(axis) {
            Some(&out) => Some(out as i128),
            None if same => Some(input as i128 * stride),
            None => None,
        };
        let (begin, end, out) = match wanted {
            Some(out) => {
                let (begin, end) = split_pad(full - out, self.window.auto_pad == AutoPad::SameUpper);
                (begin, end, out)
            }
            None => {
                let pads = if self.window.auto_pad == AutoPad::Valid { (0, 0) } else { self.window.pad(axis, rank) };
                (pads.0 as i128, pads.1 as i128, full - pads.0 as i128 - pads.1 as i128)
            }
        };
        let small = |x: i128| usize::try_from(x).ok().filter(|&x| x <= isize::MAX as usize);
        match (small(begin), small(end), small(out)) {
            (Some(b), Some(e), Some(o)) => Ok((b, e, o)),
            _ => Err(OpError::shape(format!("the output extent of spatial axis {axis} would be {out}"))),
        }
    }

    fn infer_axis(&self, axis: usize, rank: usize, input: &Dim, kernel: &Dim) -> Result<Dim, OpError> {
        if let Some(&out) = self.output_shape.get(axis) {
            return Ok(out.into());
        }
        if let (Some(n), Some(k)) = (input.as_usize(), kernel.as_usize()) {
            return Ok(self.resolve_axis(axis, rank, n, k)?.2.into());
        }
        let scaled = input.mul(&Dim::from(self.window.stride(axis)));
        if matches!(self.window.auto_pad, AutoPad::SameUpper | AutoPad::SameLower) {
            return Ok(scaled);
        }
        // stride·input + c: what an input extent of 1 gives beyond one stride.
        match kernel.as_usize().map(|k| self.resolve_axis(axis, rank, 1, k)) {
            Some(Ok((_, _, out))) => Ok(shift(&scaled, (out as i64).saturating_sub(self.window.stride(axis) as i64))),
            _ => Ok(Dim::Unknown),
        }
    }
}

impl Op for ConvTranspose {
    fn name(&self) -> &str {
        "ConvTranspose"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let spatial = |x: &[Dim], w: &[Dim]| {
            self.check_rank(x.len())?;
            let kernel = |a: usize| self.window.kernel_shape.get(a).map_or_else(|| w[a].clone(), |&k| k.into());
            (0..x.len()).map(|a| self.infer_axis(a, x.len(), &x[a], &kernel(a))).collect()
        };
        infer_conv(cx, |w| w[1].mul(&Dim::from(self.group)), spatial)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, w) = (cx.get(0)?, cx.get(1)?);
        let shape = self.resolve(x.shape(), w.shape())?;
        let bias = bias_of(cx.opt(2), shape.m)?;
        check_size(x.dtype(), &shape.output())?;
        with_real!(x, 0, T => {
            let y = eval::<T>(&x.slice::<T>()?, &w.slice::<T>()?, &bias, &shape, self.group)?;
            Ok(vec![Tensor::new(shape.output(), y)?])
        })
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Weighted { data: 0, weight: 1, bias: Some(2), channel: ChannelAxis::Front(1) }
    }

    fn attrs(&self) -> AttrMap {
        let list = |v: &[usize]| (!v.is_empty()).then(|| to_ints(v));
        self.window
            .put(AttrMap::new())
            .with_unless("group", self.group as i64, 1)
            .with_opt("output_padding", list(&self.output_padding))
            .with_opt("output_shape", list(&self.output_shape))
    }
}

fn eval<T: Real>(x: &[T], w: &[T], bias: &[f64], s: &ConvTransposeShape, group: usize) -> Result<Vec<T>, OpError> {
    let (c, m) = (s.c / group, s.m / group);
    let (taps, positions) = (s.window.taps(), s.window.positions());
    let plane = s.window.input.iter().product::<usize>();
    let mut y = Vec::with_capacity(s.batch * s.m * plane);
    if c == 0 || plane == 0 || s.batch == 0 {
        y.extend((0..s.batch * s.m * plane).map(|i| T::put(bias[i / plane % s.m])));
        return Ok(y);
    }
    // From here on W is not empty, so that its extents are bounded by memory.
    let rows = m * taps;
    let block = (PRODUCT_VALUES / rows.max(1)).clamp(2, positions.max(2));
    let (mut sums, mut vectors, mut products) = (vec![0.0; m * plane], Vec::new(), vec![0.0; block * rows]);
    let pack = |g: usize| Packed::new(rows, c, |r, k| w[(g * c + k) * rows + r].get());
    let packed: Vec<Packed> = (0..group).map(pack).collect();
    for n in 0..s.batch {
        for (g, packed) in packed.iter().enumerate() {
            sums.chunks_exact_mut(plane).zip(&bias[g * m..]).for_each(|(p, &b)| p.fill(b));
            let x = &x[(n * s.c + g * c) * positions..][..c * positions];
            s.window.walk(|p, _, runs| {
                if p % block == 0 {
                    vectors.clear();
                    let ahead = p..(p + block).min(positions);
                    vectors.extend(ahead.flat_map(|p| (0..c).map(move |k| x[k * positions + p].get())));
                    packed.mul(&vectors, |i, r, sum| products[i * rows + r] = sum);
                }
                scatter(&products[p % block * rows..][..rows], runs, &s.window, plane, &mut sums);
            });
            y.extend(sums.iter().map(|&v| T::put(v)));
        }
    }
    Ok(y)
}

/// How many products of input positions with the kernel are held at a time.
const PRODUCT_VALUES: usize = 1 << 15;

/// Adds one input position's products (channels × taps) to the output planes.
fn scatter(products: &[f64], runs: &[super::window::Run], window: &Window, plane: usize, sums: &mut [f64]) {
    let (taps, step) = (window.taps(), window.step());
    for (products, sums) in products.chunks_exact(taps.max(1)).zip(sums.chunks_exact_mut(plane.max(1))) {
        for run in runs {
            let out = sums[run.offset..].iter_mut().step_by(step);
            out.zip(&products[run.kernel..][..run.len]).for_each(|(o, v)| *o += v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    fn op(attrs: AttrMap) -> Arc<dyn Op> {
        build(11, &mut attrs.clone()).unwrap()
    }

    #[test]
    fn spreads_each_input_over_its_window() {
        let op = op(AttrMap::new().with("strides", vec![2i64]).with("output_padding", vec![1i64]));
        let x = tensor([1, 1, 2], &[1., 10.]);
        let w = tensor([1, 2, 3], &[1., 2., 3., 0., 0., 1.]);
        let y = run(&*op, &[Some(&x), Some(&w), Some(&tensor([2], &[0., 5.]))], 1).unwrap();
        assert_eq!(y[0].shape(), [1, 2, 6]);
        assert_eq!(f32s(&y[0]), [1., 2., 13., 20., 30., 0., 5., 5., 6., 5., 15., 5.]);
    }

    #[test]
    fn derives_pads_from_the_output_shape() {
        let op = op(AttrMap::new().with("output_shape", vec![3i64]));
        let (x, w) = (tensor([1, 1, 3], &[1., 1., 1.]), tensor([1, 1, 2], &[1., 10.]));
        // The full output is [1, 11, 11, 10]; its one pad is at the beginning.
        let y = run(&*op, &[Some(&x), Some(&w)], 1).unwrap();
        assert_eq!(f32s(&y[0]), [11., 11., 10.]);
        let mut upper = AttrMap::new().with("output_shape", vec![3i64]).with("auto_pad", "SAME_UPPER");
        let y = run(&*build(11, &mut upper).unwrap(), &[Some(&x), Some(&w)], 1).unwrap();
        assert_eq!(f32s(&y[0]), [1., 11., 11.]);
    }

    #[test]
    fn infers_symbolic_extents() {
        let op = op(AttrMap::new().with("strides", vec![2i64]).with("pads", vec![1i64, 1]));
        let known = |v: &[i64]| v.iter().map(|&d| Dim::Known(d)).collect::<Vec<_>>();
        let x = Fact::tensor(None, Some(vec![Dim::sym("n"), Dim::Known(4), Dim::sym("l")]));
        let w = Fact::tensor(None, Some(known(&[4, 6, 4])));
        let y = op.infer(&InferCx::new(&[Some(&x), Some(&w)], 1)).unwrap();
        assert_eq!(show_dims(&y[0]), "[n, 6, 2*l]");
    }

    fn show_dims(f: &Fact) -> String {
        crate::support::show(f.shape().unwrap())
    }

    #[test]
    fn refuses_channels_that_do_not_fit_and_negative_extents() {
        let op1 = op(AttrMap::new());
        let (x, w) = (tensor([1, 2, 3], &[0.; 6]), tensor([1, 1, 2], &[0.; 2]));
        assert!(run(&*op1, &[Some(&x), Some(&w)], 1).is_err());
        let op2 = op(AttrMap::new().with("pads", vec![9i64, 9]));
        let w = tensor([2, 1, 2], &[0.; 4]);
        assert!(run(&*op2, &[Some(&x), Some(&w)], 1).is_err());
    }
}
