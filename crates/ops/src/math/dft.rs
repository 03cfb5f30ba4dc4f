//! DFT and STFT: discrete Fourier transforms along an axis, and of overlapping frames of a signal.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor};

use super::axes::resolve;
use super::fft::{Complex, Fft};

/// The discrete Fourier transform along an axis, computed in `f64`.
///
/// Inputs: signal `[…, 1]` (real) or `[…, 2]` (complex); optional dft_length, to which the axis is cut or filled with zeros;
/// the axis from opset 20 on. Output `[…, 2]`, or `[…, 1]` where a one-sided spectrum becomes a real signal.
/// Source: ONNX DFT (17, 20).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dft {
    /// The axis, before opset 20; input 2 from then on, -2 where absent.
    pub axis: Option<i64>,
    /// Whether it leads back, with a factor of one over the length.
    pub inverse: bool,
    /// Whether the spectrum ends at half of the length, because the signal is real.
    pub onesided: bool,
}

/// Makes a DFT.
///
/// # Errors
/// When an attribute is no integer.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let axis = if opset < 20 { Some(attrs.int_or("axis", 1)?) } else { None };
    Ok(Arc::new(Dft { axis, inverse: attrs.flag("inverse")?, onesided: attrs.flag("onesided")? }))
}

/// The single integer of an input, where present.
fn single(cx: &EvalCx, i: usize) -> Result<Option<i64>, OpError> {
    let Some(t) = cx.opt(i) else { return Ok(None) };
    match t.to_i64s()?.as_slice() {
        [v] => Ok(Some(*v)),
        v => Err(OpError::input(i, format!("{} elements", v.len()), "one integer")),
    }
}

/// A length that must be positive.
fn positive(i: usize, n: i64) -> Result<usize, OpError> {
    let n_ok = usize::try_from(n).ok().filter(|&n| n > 0);
    n_ok.ok_or_else(|| OpError::input(i, format!("{n}"), "a length of 1 or more"))
}

fn check_float(t: &Tensor, i: usize) -> Result<(), OpError> {
    match t.dtype() {
        DType::F32 | DType::F64 | DType::F16 | DType::Bf16 => Ok(()),
        d => Err(OpError::input(i, d.name(), "f32, f64, f16 or bf16")),
    }
}

/// Whether the last axis holds complex numbers.
fn is_complex(shape: &[usize]) -> Result<bool, OpError> {
    match shape.last() {
        Some(1) => Ok(false),
        Some(2) => Ok(true),
        _ => Err(OpError::shape(format!("the last axis of {shape:?} must be 1 (real) or 2 (complex)"))),
    }
}

impl Dft {
    fn is_real_inverse(&self) -> bool {
        self.inverse && self.onesided
    }

    /// The axis in a tensor of `rank` axes, the last of which is no axis of the signal.
    fn along(&self, axis: i64, rank: usize) -> Result<usize, OpError> {
        let axis = resolve(axis, rank)?;
        if axis + 1 == rank {
            return Err(OpError::shape("the last axis holds real and imaginary parts, and can't be transformed"));
        }
        Ok(axis)
    }

    /// The length of the transform of an axis of `extent` elements.
    fn length(&self, given: Option<i64>, extent: usize) -> Result<usize, OpError> {
        match given {
            Some(n) => positive(1, n),
            None if self.is_real_inverse() => positive(0, (extent as i64).saturating_sub(1).saturating_mul(2)),
            None => positive(0, extent as i64),
        }
    }

    /// The extent of the axis in the output.
    fn out_extent(&self, n: usize) -> usize {
        if self.onesided && !self.inverse { n / 2 + 1 } else { n }
    }

    /// Transforms one line.
    fn line(&self, fft: &mut Fft, line: &mut [Complex]) {
        let n = line.len();
        if self.is_real_inverse() {
            // The second half of a real signal's spectrum is the conjugate of the first.
            for k in n / 2 + 1..n {
                let [re, im] = line[n - k];
                line[k] = [re, -im];
            }
        }
        if self.inverse { fft.inverse(line) } else { fft.forward(line) }
    }
}

impl Op for Dft {
    fn name(&self) -> &str {
        "DFT"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let Some(s) = x.shape() else { return Ok(vec![Fact::tensor(x.dtype(), None)]) };
        let mut shape = vec![Dim::Unknown; s.len()];
        let last = if self.is_real_inverse() { 1 } else { 2 };
        let axis = match (self.axis, cx.opt(2)) {
            (Some(axis), _) => Some(axis),
            (None, None) => Some(-2),
            (None, Some(_)) => cx.ints(2).and_then(|v| v.first().copied()),
        };
        if let Some(axis) = axis {
            let axis = self.along(axis, s.len())?;
            shape.clone_from_slice(s);
            let given = cx.ints(1).and_then(|v| v.first().copied());
            shape[axis] = match (cx.opt(1), given, s[axis].as_usize()) {
                (Some(_), None, _) => Dim::Unknown,
                (None, _, None) if !self.onesided => s[axis].clone(),
                (None, _, None) => Dim::Unknown,
                (_, given, extent) => Dim::from(self.out_extent(self.length(given, extent.unwrap_or(1))?)),
            };
        }
        if let Some(end) = shape.last_mut() {
            *end = Dim::Known(last);
        }
        Ok(vec![Fact::tensor(x.dtype(), Some(shape))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        check_float(x, 0)?;
        let complex = is_complex(x.shape())?;
        let axis = match self.axis {
            Some(axis) => axis,
            None => single(cx, 2)?.unwrap_or(-2),
        };
        let axis = self.along(axis, x.rank())?;
        if self.onesided && complex != self.inverse {
            let message = "a one-sided spectrum belongs to a real signal: real input forward, complex input backward";
            return Err(OpError::shape(message));
        }
        let extent = x.shape()[axis];
        let n = self.length(single(cx, 1)?, extent)?;
        let mut shape = x.shape().to_vec();
        (shape[axis], shape[x.rank() - 1]) = (self.out_extent(n), if self.is_real_inverse() { 1 } else { 2 });
        let len = check_size(DType::F64, &shape)?;
        let (mut y, from) = (vec![0.0; len], x.to_f64s()?);
        if from.is_empty() || len == 0 {
            return Ok(vec![Tensor::from_f64s(x.dtype(), shape, &y)?]);
        }
        let inner: usize = x.shape()[axis + 1..x.rank() - 1].iter().product();
        let outer: usize = x.shape()[..axis].iter().product();
        let (width, to_width, to_extent) = (if complex { 2 } else { 1 }, shape[x.rank() - 1], shape[axis]);
        let mut fft = Fft::new(n)?;
        let (mut line, read) = (vec![[0.0; 2]; n], n.min(extent));
        for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
            line.fill([0.0; 2]);
            for (k, v) in line[..read].iter_mut().enumerate() {
                let at = ((o * extent + k) * inner + i) * width;
                *v = [from[at], if complex { from[at + 1] } else { 0.0 }];
            }
            self.line(&mut fft, &mut line);
            for (k, v) in line[..to_extent].iter().enumerate() {
                let at = ((o * to_extent + k) * inner + i) * to_width;
                y[at..at + to_width].copy_from_slice(&v[..to_width]);
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), shape, &y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_opt("axis", self.axis.filter(|&a| a != 1))
            .with_unless("inverse", i64::from(self.inverse), 0)
            .with_unless("onesided", i64::from(self.onesided), 0)
    }
}

/// The Fourier transforms of frames of a signal that begin `frame_step` elements apart, computed in `f64`.
///
/// Inputs: signal `[batch, length]`, `[batch, length, 1]` or complex `[batch, length, 2]`; frame_step; optional window
/// `[frame length]`, which multiplies each frame; optional frame_length. Output `[batch, frames, frame length or half of it
/// plus 1, 2]`. Source: ONNX STFT (17).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stft {
    /// Whether the spectra end at half of the frame's length, because the signal is real.
    pub onesided: bool,
}

/// Makes an STFT.
///
/// # Errors
/// When the attribute is no integer.
pub fn build_short_time(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Stft { onesided: attrs.int_or("onesided", 1)? != 0 }))
}

impl Stft {
    /// The number of frames and of frequencies.
    fn extents(&self, length: usize, frame: usize, step: usize) -> Result<(usize, usize), OpError> {
        let rest = length.checked_sub(frame).ok_or_else(|| {
            OpError::shape(format!("a signal of {length} elements is shorter than a frame of {frame}"))
        })?;
        Ok((rest / step + 1, if self.onesided { frame / 2 + 1 } else { frame }))
    }
}

/// The length of a frame: given, or the window's, or the whole signal's.
fn frame_length(given: Option<i64>, window: Option<usize>, signal: usize) -> Result<usize, OpError> {
    let frame = match (given, window) {
        (Some(n), _) => positive(3, n)?,
        (None, Some(n)) => n,
        (None, None) => signal,
    };
    match window {
        Some(n) if n != frame => Err(OpError::shape(format!("a window of {n} elements for frames of {frame}"))),
        _ => Ok(frame),
    }
}

impl Op for Stft {
    fn name(&self) -> &str {
        "STFT"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let batch = x.shape().and_then(|s| s.first()).cloned().unwrap_or(Dim::Unknown);
        let length = x.shape().and_then(|s| s.get(1)?.as_usize());
        let number = |i: usize| cx.ints(i).and_then(|v| v.first().copied());
        let window = cx.shape(2).and_then(|s| s.first()?.as_usize());
        let known = (cx.opt(2).is_none() || window.is_some()) && (cx.opt(3).is_none() || number(3).is_some());
        let (mut frames, mut bins) = (Dim::Unknown, Dim::Unknown);
        if let (Some(length), Some(step), true) = (length, number(1), known) {
            let frame = frame_length(number(3), window, length)?;
            let (f, b) = self.extents(length, frame, positive(1, step)?)?;
            (frames, bins) = (f.into(), b.into());
        }
        Ok(vec![Fact::tensor(x.dtype(), Some(vec![batch, frames, bins, Dim::Known(2)]))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        check_float(x, 0)?;
        let (batch, length, complex) = match *x.shape() {
            [batch, length] => (batch, length, false),
            [batch, length, _] => (batch, length, is_complex(x.shape())?),
            _ => return Err(OpError::shape(format!("a signal of shape {:?} needs 2 or 3 axes", x.shape()))),
        };
        if complex && self.onesided {
            return Err(OpError::shape("a one-sided spectrum belongs to a real signal"));
        }
        let step = positive(1, single(cx, 1)?.ok_or(OpError::MissingInput(1))?)?;
        let window = cx.opt(2).map(|w| check_float(w, 2).and_then(|()| Ok(w.to_f64s()?))).transpose()?;
        let frame = frame_length(single(cx, 3)?, window.as_ref().map(Vec::len), length)?;
        let (frames, bins) = self.extents(length, frame, step)?;
        let shape = [batch, frames, bins, 2];
        let mut y = Vec::with_capacity(check_size(DType::F64, &shape)?);
        let (from, width) = (x.to_f64s()?, if complex { 2 } else { 1 });
        let (mut fft, mut line) = (Fft::new(frame)?, vec![[0.0; 2]; frame]);
        for (b, f) in (0..batch).flat_map(|b| (0..frames).map(move |f| (b, f))) {
            for (k, v) in line.iter_mut().enumerate() {
                let at = (b * length + f * step + k) * width;
                let w = window.as_ref().map_or(1.0, |w| w[k]);
                *v = [from[at] * w, if complex { from[at + 1] * w } else { 0.0 }];
            }
            fft.forward(&mut line);
            y.extend(line[..bins].iter().flatten());
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), shape, &y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("onesided", i64::from(self.onesided), 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    fn run(op: &dyn Op, inputs: &[Option<Tensor>]) -> Result<Tensor, OpError> {
        let data: Vec<Option<Datum>> = inputs.iter().map(|t| t.clone().map(Datum::Tensor)).collect();
        let refs: Vec<Option<&Datum>> = data.iter().map(Option::as_ref).collect();
        Ok(op.eval(&EvalCx::new(&refs, 1))?.remove(0))
    }

    fn signal(shape: &[usize]) -> Tensor {
        let len = shape.iter().product();
        Tensor::new(shape, (0..len).map(|i| (i * 7 % 5) as f32 - 2.0).collect()).unwrap()
    }

    fn near(t: &Tensor, want: &[f64]) {
        let got = t.to_f64s().unwrap();
        // Results are rounded to f32 once.
        let close = got.len() == want.len() && got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close, "{got:?} {want:?}");
    }

    const FORWARD: Dft = Dft { axis: Some(1), inverse: false, onesided: false };

    #[test]
    fn transforms_short_signals_cut_or_filled_up() {
        let x = Tensor::new([1, 4, 1], vec![1f32, 2.0, 3.0, 4.0]).unwrap();
        let n = |n: i64| Some(Tensor::vector(vec![n]));
        near(&run(&FORWARD, &[Some(x.clone())]).unwrap(), &[10., 0., -2., 2., -2., 0., -2., -2.]);
        near(&run(&FORWARD, &[Some(x.clone()), n(2)]).unwrap(), &[3., 0., -1., 0.]);
        let onesided = Dft { onesided: true, ..FORWARD };
        near(&run(&onesided, &[Some(x.clone())]).unwrap(), &[10., 0., -2., 2., -2., 0.]);
        assert_eq!(run(&FORWARD, &[Some(x), n(7)]).unwrap().shape(), [1, 7, 2]);
    }

    #[test]
    fn leads_back_from_whole_and_onesided_spectra_along_any_axis() {
        for (shape, axis) in [([2, 6, 3, 1], 1), ([2, 5, 8, 1], 2), ([7, 2, 3, 1], 0)] {
            let x = signal(&shape);
            for onesided in [false, true] {
                let forward = Dft { axis: Some(axis), inverse: false, onesided };
                let back = Dft { inverse: true, ..forward };
                let y = run(&forward, &[Some(x.clone())]).unwrap();
                let n = Tensor::vector(vec![shape[axis as usize] as i64]);
                let z = run(&back, &[Some(y), Some(n)]).unwrap().to_f64s().unwrap();
                let width = if onesided { 1 } else { 2 };
                let real: Vec<f32> = z.chunks(width).map(|v| v[0] as f32).collect();
                near(&Tensor::new(x.shape(), real).unwrap(), &x.to_f64s().unwrap());
            }
        }
    }

    #[test]
    fn transforms_frames_with_a_window() {
        let x = signal(&[2, 10]);
        let (step, window) = (Tensor::vector(vec![3i64]), Tensor::vector(vec![0.5f32, 1.0, 2.0, 1.0]));
        let stft = Stft { onesided: true };
        let y = run(&stft, &[Some(x.clone()), Some(step.clone()), Some(window.clone())]).unwrap();
        assert_eq!(y.shape(), [2, 3, 3, 2]);
        let frame: Vec<f32> = x.to_f32s().unwrap()[13..17].to_vec();
        let frame: Vec<f32> = frame.iter().zip(window.to_f32s().unwrap().iter()).map(|(a, b)| a * b).collect();
        let want = run(&Dft { onesided: true, ..FORWARD }, &[Some(Tensor::new([1, 4, 1], frame).unwrap())]).unwrap();
        near(&want, &y.to_f64s().unwrap()[4 * 6..5 * 6]);
        let whole = run(&Stft { onesided: false }, &[Some(x), Some(step)]).unwrap();
        assert_eq!(whole.shape(), [2, 1, 10, 2]);
    }

    #[test]
    fn refuses_lengths_axes_and_types_that_do_not_fit() {
        let x = signal(&[1, 4, 1]);
        let n = |n: i64| Some(Tensor::vector(vec![n]));
        for length in [0, -1, i64::MAX, i64::MIN] {
            assert!(run(&FORWARD, &[Some(x.clone()), n(length)]).is_err(), "{length}");
            assert!(run(&Stft { onesided: true }, &[Some(x.clone()), n(length), None, n(2)]).is_err() || length > 0);
            assert!(run(&Stft { onesided: true }, &[Some(x.clone()), n(1), None, n(length)]).is_err(), "{length}");
        }
        assert!(run(&Dft { axis: Some(2), ..FORWARD }, &[Some(x.clone())]).is_err());
        assert!(run(&Dft { onesided: true, ..FORWARD }, &[Some(signal(&[1, 4, 2]))]).is_err());
        assert!(run(&FORWARD, &[Some(signal(&[1, 4, 3]))]).is_err());
        assert!(run(&FORWARD, &[Some(Tensor::new([1, 2, 1], vec![1i64, 2]).unwrap())]).is_err());
    }
}
