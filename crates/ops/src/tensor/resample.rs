//! Resampling along single axes: how Resize and Upsample see the input between its elements.
//!
//! Source of all formulas: ONNX Resize-19. Coordinates are computed in f32 as ONNX Runtime does, so that
//! ties of the nearest modes fall the same way.

use narrowbit_ir::{OpError, check_size};
use narrowbit_tensor::{DType, Tensor, shape};

use super::moves;

/// Where an output element lies in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coordinates {
    /// `(x + 0.5) / scale − 0.5`.
    HalfPixel,
    /// As `HalfPixel`, with the centers of input and output kept together when the extent was rounded (opset 19).
    HalfPixelSymmetric,
    /// As `HalfPixel`; 0 for an output of one element.
    PytorchHalfPixel,
    /// `x·(n − 1) / (m − 1)`: the corner elements coincide.
    AlignCorners,
    /// `x / scale`.
    Asymmetric,
    /// `(x + 0.5) / scale` (opset 11 and 12).
    TfHalfPixelForNn,
    /// The region of interest is stretched over the output; what lies outside of the input has a fixed value.
    TfCropAndResize,
}

/// Which element is the nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nearest {
    /// Halves go down.
    RoundPreferFloor,
    /// Halves go up.
    RoundPreferCeil,
    /// The one before.
    Floor,
    /// The one after.
    Ceil,
    /// The one after when the axis shrinks, else the one before (before opset 11).
    Simple,
}

/// How elements are mixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kernel {
    /// One element is taken.
    Nearest(Nearest),
    /// Between two neighbours.
    Linear,
    /// Keys' cubic convolution over four neighbours, with its coefficient `a`.
    Cubic(f32),
}

/// One axis of a resampling.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    /// The input's extent.
    pub from: usize,
    /// The output's extent.
    pub to: usize,
    /// Output over input.
    pub scale: f32,
    /// The region of interest, in parts of the input.
    pub roi: (f32, f32),
}

/// What all axes of a resampling have in common.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// Where output elements lie.
    pub coordinates: Coordinates,
    /// How elements are mixed.
    pub kernel: Kernel,
    /// Whether the kernel is widened when an axis shrinks.
    pub antialias: bool,
    /// Whether weights outside of the input count as 0, instead of repeating the border.
    pub exclude_outside: bool,
    /// The value outside of the input with [`Coordinates::TfCropAndResize`].
    pub extrapolation: f32,
}

impl Axis {
    fn coordinate(&self, x: usize, mode: Coordinates) -> f32 {
        let (x, n, m) = (x as f32, self.from as f32, self.to as f32);
        // The spec takes the extent before it is rounded down.
        let exact = self.scale * n;
        match mode {
            Coordinates::HalfPixel => (x + 0.5) / self.scale - 0.5,
            Coordinates::HalfPixelSymmetric => {
                let offset = n / 2.0 * (1.0 - m / exact);
                offset + (x + 0.5) / self.scale - 0.5
            }
            Coordinates::PytorchHalfPixel if self.to <= 1 => 0.0,
            Coordinates::PytorchHalfPixel => (x + 0.5) / self.scale - 0.5,
            Coordinates::AlignCorners if exact == 1.0 || self.to <= 1 => 0.0,
            Coordinates::AlignCorners => x * (n - 1.0) / (exact - 1.0),
            Coordinates::Asymmetric => x / self.scale,
            Coordinates::TfHalfPixelForNn => (x + 0.5) / self.scale,
            Coordinates::TfCropAndResize => {
                let (start, end) = self.roi;
                if self.to > 1 {
                    start * (n - 1.0) + x * (end - start) * (n - 1.0) / (m - 1.0)
                } else {
                    0.5 * (start + end) * (n - 1.0)
                }
            }
        }
    }

    /// Whether the place is outside of the input, so that the extrapolation value stands there.
    fn is_outside(&self, at: f32, mode: Coordinates) -> bool {
        mode == Coordinates::TfCropAndResize && !(0.0..=self.from as f32 - 1.0).contains(&at)
    }

    /// By output element the input element that a nearest kernel takes; `None` if a place outside of the input has a fixed value.
    pub fn places(&self, method: &Method, nearest: Nearest) -> Option<Vec<usize>> {
        let place = |i| {
            let at = self.coordinate(i, method.coordinates);
            (!self.is_outside(at, method.coordinates)).then(|| self.nearest(at, nearest))
        };
        (0..self.to).map(place).collect()
    }

    /// An upper bound of the taps of this axis, all output elements together, for the memory that they take.
    pub fn most_taps(&self, method: &Method) -> f64 {
        let reach = if matches!(method.kernel, Kernel::Cubic(_)) { 2.0 } else { 1.0 };
        2.0 * (self.to as f64) * (reach / self.narrowing(method) + 1.0)
    }

    /// How much smaller the kernel's argument gets when antialiasing stretches it. A kernel stretched beyond the input sees
    /// only the border: its extent is bounded by that.
    fn narrowing(&self, method: &Method) -> f64 {
        if method.antialias { f64::from(self.scale).min(1.0).max(1.0 / (self.from as f64 + 1.0)) } else { 1.0 }
    }

    fn nearest(&self, at: f32, mode: Nearest) -> usize {
        let i = match mode {
            Nearest::RoundPreferFloor => (at - 0.5).ceil(),
            Nearest::RoundPreferCeil => (at + 0.5).floor(),
            Nearest::Floor => at.floor(),
            Nearest::Ceil => at.ceil(),
            Nearest::Simple if self.scale < 1.0 => at.ceil(),
            Nearest::Simple => at.floor(),
        };
        (i.max(0.0) as usize).min(self.from.saturating_sub(1))
    }
}

/// The weights of one axis: `output[i] = Σ weight·input[index]` over the taps `starts[i]..starts[i + 1]`.
#[derive(Debug, Clone)]
pub struct Taps {
    /// By output element its first tap, and the number of all taps.
    pub starts: Vec<usize>,
    /// By tap the input element.
    pub index: Vec<usize>,
    /// By tap its weight.
    pub weight: Vec<f64>,
    outside: Vec<bool>,
}

impl Taps {
    /// The taps of an axis under a kernel that mixes elements.
    pub fn new(axis: &Axis, method: &Method) -> Taps {
        let mut taps = Taps { starts: vec![0], index: Vec::new(), weight: Vec::new(), outside: Vec::new() };
        for x in 0..axis.to {
            let at = axis.coordinate(x, method.coordinates);
            let outside = axis.is_outside(at, method.coordinates);
            taps.outside.push(outside);
            if !outside && at.is_finite() {
                taps.push(axis, method, f64::from(at));
            }
            taps.starts.push(taps.index.len());
        }
        taps
    }

    fn push(&mut self, axis: &Axis, method: &Method, at: f64) {
        let (support, a) = match method.kernel {
            Kernel::Cubic(a) => (2.0, f64::from(a)),
            _ => (1.0, 0.0),
        };
        let narrow = axis.narrowing(method);
        let reach = support / narrow;
        let (first, last) = ((at - reach).ceil() as i64, (at + reach).floor() as i64);
        let begin = self.weight.len();
        let mut sum = 0.0;
        for k in first..=last {
            let inside = (0..axis.from as i64).contains(&k);
            let w = if support > 1.0 { cubic((k as f64 - at) * narrow, a) } else { linear((k as f64 - at) * narrow) };
            if w == 0.0 || method.exclude_outside && !inside {
                continue;
            }
            self.index.push(k.clamp(0, axis.from as i64 - 1) as usize);
            self.weight.push(w);
            sum += w;
        }
        if (method.antialias || method.exclude_outside) && sum != 0.0 {
            self.weight[begin..].iter_mut().for_each(|w| *w /= sum);
        }
    }

    /// Whether a place lies outside of the input and has a fixed value.
    pub fn leaves_input(&self) -> bool {
        self.outside.contains(&true)
    }

    /// Whether every output element is the input element of the same index.
    pub fn is_identity(&self, from: usize) -> bool {
        let n = self.outside.len();
        n == from
            && self.index.len() == n
            && self.outside.iter().all(|o| !o)
            && (0..n).all(|i| self.starts[i] == i && self.index[i] == i && self.weight[i] == 1.0)
    }

    /// Resamples `x`, seen as `[outer, from, inner]`.
    fn apply(&self, x: &[f64], outer: usize, from: usize, inner: usize) -> Vec<f64> {
        let to = self.outside.len();
        let mut out = vec![0f64; outer * to * inner];
        for o in 0..outer {
            let x = &x[o * from * inner..][..from * inner];
            for i in 0..to {
                let y = &mut out[(o * to + i) * inner..][..inner];
                for t in self.starts[i]..self.starts[i + 1] {
                    let w = self.weight[t];
                    let x = &x[self.index[t] * inner..][..inner];
                    y.iter_mut().zip(x).for_each(|(y, x)| *y += w * x);
                }
            }
        }
        out
    }
}

fn linear(d: f64) -> f64 {
    (1.0 - d.abs()).max(0.0)
}

/// R. Keys, "Cubic convolution interpolation for digital image processing", 1981.
fn cubic(d: f64, a: f64) -> f64 {
    let d = d.abs();
    match d {
        d if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
        d if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
        _ => 0.0,
    }
}

/// Resamples a tensor with one [`Axis`] per axis of `x`; any type with a nearest kernel, numbers otherwise.
///
/// # Errors
/// When the output would be too large or the type can't be mixed.
pub fn resample(x: &Tensor, axes: &[Axis], method: &Method) -> Result<Tensor, OpError> {
    let out: Vec<usize> = axes.iter().map(|a| a.to).collect();
    check_size(DType::F64, &out)?;
    if out.contains(&0) {
        return Ok(Tensor::zeros(x.dtype(), out)?);
    }
    if x.is_empty() {
        return Err(OpError::shape(format!("an input of shape {:?} can't be resized to {out:?}", x.shape())));
    }
    if let Kernel::Nearest(nearest) = method.kernel {
        let at = |a: usize, i: usize| {
            let place = axes[a].coordinate(i, method.coordinates);
            (!axes[a].is_outside(place, method.coordinates)).then(|| axes[a].nearest(place, nearest))
        };
        let fill = fill(x.dtype(), method.extrapolation)?;
        return moves::remap(x, &out, at, fill.as_ref());
    }
    let mut data = x.to_f64s()?;
    let mut now = x.shape().to_vec();
    let taps: Vec<Taps> = axes.iter().map(|a| Taps::new(a, method)).collect();
    for a in order(axes, &taps) {
        let (outer, inner) = (shape::count(&now[..a])?, shape::count(&now[a + 1..])?);
        let mut next = now.clone();
        next[a] = axes[a].to;
        check_size(DType::F64, &next)?;
        data = taps[a].apply(&data, outer, now[a], inner);
        now = next;
    }
    for (a, taps) in taps.iter().enumerate() {
        extrapolate(&mut data, &out, a, &taps.outside, f64::from(method.extrapolation));
    }
    finish(x.dtype(), &out, &data, method.antialias)
}

/// The axes that change, in the order in which they are resampled: shrinking ones first keeps the intermediate results small.
pub fn order(axes: &[Axis], taps: &[Taps]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..axes.len()).filter(|&a| !taps[a].is_identity(axes[a].from)).collect();
    order.sort_by(|&a, &b| axes[a].scale.total_cmp(&axes[b].scale));
    order
}

fn fill(dtype: DType, value: f32) -> Result<Option<Tensor>, OpError> {
    Ok(match dtype {
        d if d.is_float() => Some(Tensor::from_f64s(d, [1], &[f64::from(value)])?),
        d if d.is_int() || d == DType::Bool => Some(Tensor::from_i64s(d, [1], &[value as i64])?),
        _ => None,
    })
}

fn extrapolate(data: &mut [f64], shape: &[usize], axis: usize, outside: &[bool], value: f64) {
    if !outside.contains(&true) {
        return;
    }
    let inner: usize = shape[axis + 1..].iter().product();
    for (i, slab) in data.chunks_exact_mut(inner).enumerate() {
        if outside[i % shape[axis]] {
            slab.fill(value);
        }
    }
}

/// Integers are cut off as a cast does; with antialiasing rounded, as ONNX Runtime does.
fn finish(dtype: DType, shape: &[usize], data: &[f64], round: bool) -> Result<Tensor, OpError> {
    let Some((lo, hi)) = dtype.int_range() else { return Ok(Tensor::from_f64s(dtype, shape, data)?) };
    let whole = |&v: &f64| (if round { v.round() } else { v }).clamp(lo as f64, hi as f64) as i64;
    Ok(Tensor::from_i64s(dtype, shape, &data.iter().map(whole).collect::<Vec<_>>())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(kernel: Kernel, coordinates: Coordinates, to: usize, antialias: bool) -> Vec<f64> {
        let x = Tensor::new([4], vec![1f32, 2.0, 3.0, 4.0]).unwrap();
        let axis = Axis { from: 4, to, scale: to as f32 / 4.0, roi: (0.25, 1.5) };
        let method = Method { coordinates, kernel, antialias, exclude_outside: false, extrapolation: 9.0 };
        resample(&x, &[axis], &method).unwrap().to_f64s().unwrap()
    }

    /// Values of ONNX Runtime 1.31, rounded to f32 there: 1e-5 covers that.
    fn close(a: Vec<f64>, b: &[f64]) {
        assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
    }

    #[test]
    fn agrees_with_onnx_runtime() {
        close(run(Kernel::Linear, Coordinates::HalfPixel, 5, false), &[1.0, 1.7, 2.5, 3.3, 4.0]);
        close(run(Kernel::Linear, Coordinates::HalfPixel, 3, true), &[1.272_727, 2.5, 3.727_273]);
        let nearest = Kernel::Nearest(Nearest::RoundPreferFloor);
        close(run(nearest, Coordinates::TfHalfPixelForNn, 6, false), &[1.0, 2.0, 3.0, 3.0, 4.0, 4.0]);
    }

    #[test]
    fn extrapolates_outside_of_the_region_only() {
        close(run(Kernel::Linear, Coordinates::TfCropAndResize, 3, false), &[1.75, 3.625, 9.0]);
        close(run(Kernel::Nearest(Nearest::Floor), Coordinates::TfCropAndResize, 3, false), &[1.0, 3.0, 9.0]);
    }

    #[test]
    fn survives_scales_that_make_no_sense() {
        let x = Tensor::new([4], vec![1f32, 2.0, 3.0, 4.0]).unwrap();
        for scale in [1e-38, 1e38, f32::NAN, f32::INFINITY, 0.0] {
            for coordinates in [Coordinates::HalfPixel, Coordinates::HalfPixelSymmetric, Coordinates::AlignCorners] {
                let axis = Axis { from: 4, to: 2, scale, roi: (f32::NAN, 1.0) };
                for kernel in [Kernel::Linear, Kernel::Cubic(f32::NAN), Kernel::Nearest(Nearest::Ceil)] {
                    let method =
                        Method { coordinates, kernel, antialias: true, exclude_outside: true, extrapolation: 0.0 };
                    assert_eq!(resample(&x, &[axis], &method).unwrap().shape(), [2]);
                }
            }
        }
    }
}
