//! GridSample: the input seen at the places that a grid names.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor, shape};

use super::params;
use crate::support::show;

/// How elements are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Between the neighbours along each axis.
    Linear,
    /// The nearest element, halves to even.
    Nearest,
    /// Cubic convolution with a = −0.75; two spatial axes only.
    Cubic,
}

/// What is seen outside of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Zero.
    Zeros,
    /// The border elements.
    Border,
    /// The input mirrored at its border.
    Reflection,
}

/// `y[n, c, o…] = x[n, c, grid[n, o…, :]]`, grid coordinates from −1 to 1, the last axis' first; floating-point types.
///
/// Source: ONNX GridSample.
#[derive(Debug, Clone)]
pub struct GridSample {
    /// How elements are mixed.
    pub mode: Mode,
    /// What is seen outside of the input.
    pub padding: Padding,
    /// Whether −1 and 1 are the centers of the border elements rather than their outer edges.
    pub align_corners: bool,
    /// The opset: the modes have other names before 20.
    pub opset: i64,
}

/// Makes a GridSample.
///
/// # Errors
/// When an attribute is wrong.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let mode = match attrs.string("mode")?.as_deref() {
        None | Some("linear" | "bilinear") => Mode::Linear,
        Some("nearest") => Mode::Nearest,
        Some("cubic" | "bicubic") => Mode::Cubic,
        Some(other) => return Err(OpError::attribute("mode", format!("is \"{other}\""))),
    };
    let padding = match attrs.string("padding_mode")?.as_deref() {
        None | Some("zeros") => Padding::Zeros,
        Some("border") => Padding::Border,
        Some("reflection") => Padding::Reflection,
        Some(other) => return Err(OpError::attribute("padding_mode", format!("is \"{other}\""))),
    };
    Ok(Arc::new(GridSample { mode, padding, align_corners: attrs.flag("align_corners")?, opset }))
}

/// Which elements the places of a grid mix, for images of given extents.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    op: &'a GridSample,
    space: &'a [usize],
}

impl<'a> Places<'a> {
    /// Of an operator and the spatial extents of its input, whose product must not overflow.
    pub fn new(op: &'a GridSample, space: &'a [usize]) -> Places<'a> {
        Places { op, space }
    }

    /// Elements of each place.
    pub fn taps(&self) -> usize {
        let each = match self.op.mode {
            Mode::Nearest => 1usize,
            Mode::Linear => 2,
            Mode::Cubic => 4,
        };
        each.pow(self.space.len() as u32)
    }

    /// Calls `put(i, element, weight)` for the [`Places::taps`] elements of a place whose coordinates are `at`, in the order
    /// that they are added up in. What is outside of the input has weight 0, and element 0.
    #[inline]
    pub fn find(&self, at: &[f32], mut put: impl FnMut(usize, usize, f64)) {
        let (rank, total) = (self.space.len(), self.taps());
        let mut axes = [([(None, 0.0); 4], 0); 3];
        let mut near = 1;
        for (a, (&n, axis)) in self.space.iter().zip(&mut axes).enumerate() {
            *axis = self.op.neighbours(f64::from(at[rank - 1 - a]), n, true);
            near *= axis.1;
        }
        for i in 0..total {
            let (mut element, mut weight, mut rest) = (0, 1.0, near);
            // Places that are no numbers have no neighbours.
            if i >= near {
                put(i, 0, 0.0);
                continue;
            }
            let mut left = i;
            for ((near, count), &n) in axes.iter().zip(self.space) {
                rest /= count;
                let (index, w) = near[left / rest];
                left %= rest;
                (element, weight) = (element * n + index.unwrap_or(0), if index.is_some() { weight * w } else { 0.0 });
            }
            put(i, if weight == 0.0 { 0 } else { element }, weight);
        }
    }
}

/// The neighbours of one place along one axis, with their weights; an index outside of the axis is `None`.
type Neighbours = [(Option<usize>, f64); 4];

impl GridSample {
    /// Whether a grid of shape `g` fits an input of shape `s`.
    pub fn fits(&self, s: &[usize], g: &[usize]) -> bool {
        let fits = s.len() == g.len() && s.len() > 2 && s[0] == g[0] && g[g.len() - 1] == s.len() - 2;
        fits && (self.mode != Mode::Cubic || s.len() == 4)
    }

    /// The place along an axis of `n` elements, in elements, in the grid's own precision.
    #[inline]
    fn place(&self, g: f64, n: usize, single: bool) -> f64 {
        let n = n as f64;
        match (single, self.align_corners) {
            (false, true) => (g + 1.0) / 2.0 * (n - 1.0),
            (false, false) => ((g + 1.0) * n - 1.0) / 2.0,
            (true, true) => f64::from((g as f32 + 1.0) / 2.0 * (n as f32 - 1.0)),
            (true, false) => f64::from(((g as f32 + 1.0) * n as f32 - 1.0) / 2.0),
        }
    }

    #[inline]
    fn reflect(&self, x: f64, n: usize) -> f64 {
        let (lo, hi) = if self.align_corners { (0.0, n as f64 - 1.0) } else { (-0.5, n as f64 - 0.5) };
        if (lo..=hi).contains(&x) || hi <= lo {
            return x.clamp(lo, hi);
        }
        let away = if x < lo { lo - x } else { x - hi };
        let turns = (away / (hi - lo)).trunc();
        let rest = away - turns * (hi - lo);
        if (x < lo) == (turns % 2.0 == 0.0) { lo + rest } else { hi - rest }
    }

    #[inline]
    fn index(&self, i: f64, n: usize) -> Option<usize> {
        let last = n as f64 - 1.0;
        match self.padding {
            Padding::Zeros => (0.0..=last).contains(&i).then_some(i as usize),
            Padding::Border => Some(i.clamp(0.0, last) as usize),
            Padding::Reflection => Some(self.reflect(i, n).clamp(0.0, last) as usize),
        }
    }

    #[inline]
    fn neighbours(&self, g: f64, n: usize, single: bool) -> (Neighbours, usize) {
        let mut x = self.place(g, n, single);
        if self.mode == Mode::Nearest {
            x = x.round_ties_even();
        }
        x = match self.padding {
            Padding::Zeros => x,
            Padding::Border => x.clamp(0.0, n as f64 - 1.0),
            Padding::Reflection => self.reflect(x, n),
        };
        let base = x.floor();
        let t = x - base;
        let mut out = [(None, 0.0); 4];
        if !x.is_finite() {
            return (out, 0);
        }
        let count = match self.mode {
            Mode::Nearest => {
                out[0] = (self.index(x.trunc(), n), 1.0);
                1
            }
            Mode::Linear => {
                out[0] = (self.index(base, n), 1.0 - t);
                out[1] = (self.index(base + 1.0, n), t);
                2
            }
            Mode::Cubic => {
                for (k, w) in cubic(t).into_iter().enumerate() {
                    out[k] = (self.index(base - 1.0 + k as f64, n), w);
                }
                4
            }
        };
        (out, count)
    }
}

/// The weights of the four neighbours at distance `t` from the second (Keys, a = −0.75).
#[inline]
fn cubic(t: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |d: f64| ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0;
    let far = |d: f64| ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

/// The offsets and weights that one place of the grid mixes: the product of its axes' neighbours.
fn combine(axes: &[(Neighbours, usize)], strides: &[usize], out: &mut Vec<(usize, f64)>) {
    out.clear();
    out.push((0, 1.0));
    for ((near, count), stride) in axes.iter().zip(strides) {
        let held = out.len();
        for k in 0..held {
            let (at, w) = out[k];
            for &(i, v) in &near[..*count] {
                if let Some(i) = i.filter(|_| v != 0.0) {
                    out.push((at + i * stride, w * v));
                }
            }
        }
        out.drain(..held);
    }
}

impl Op for GridSample {
    fn name(&self) -> &str {
        "GridSample"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let (x, grid) = (cx.get(0)?, cx.get(1)?);
        let shape = match (x.shape(), grid.shape()) {
            (Some(s), Some(g)) if s.len() == g.len() && s.len() > 2 => {
                Some([&[params::unify(&s[0], &g[0])?, s[1].clone()], &g[1..g.len() - 1]].concat())
            }
            (Some(s), Some(g)) => {
                return Err(OpError::shape(format!(
                    "a grid of shape {} does not fit an input of shape {}",
                    show(g),
                    show(s)
                )));
            }
            _ => None,
        };
        Ok(vec![Fact::tensor(x.dtype(), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, grid) = (cx.get(0)?, cx.get(1)?);
        let (s, g) = (x.shape(), grid.shape());
        if !self.fits(s, g) {
            return Err(OpError::shape(format!("a grid of shape {g:?} does not fit an input of shape {s:?}")));
        }
        // More axes would mix more than 2^8 elements per place.
        if s.len() > 10 {
            return Err(OpError::Unsupported(format!("GridSample with {} spatial axes", s.len() - 2)));
        }
        let (channels, space) = (s[1], &s[2..]);
        let out = [&s[..2], &g[1..g.len() - 1]].concat();
        let n = check_size(DType::F64, &out)?;
        if n == 0 || x.is_empty() {
            return Ok(vec![Tensor::zeros(x.dtype(), out)?]);
        }
        let (places, pixels) = (shape::count(&out[2..])?, shape::count(space)?);
        let (data, grid_data) = (x.to_f64s()?, grid.to_f64s()?);
        let single = grid.dtype() != DType::F64;
        let strides = shape::strides(space);
        let mut y = vec![0f64; n];
        let mut axes = vec![([(None, 0.0); 4], 0); space.len()];
        let mut taps = Vec::new();
        for (p, at) in grid_data.chunks_exact(space.len()).enumerate() {
            let (b, p) = (p / places, p % places);
            for (a, &d) in space.iter().enumerate() {
                axes[a] = self.neighbours(at[space.len() - 1 - a], d, single);
            }
            combine(&axes, &strides, &mut taps);
            for c in 0..channels {
                let image = &data[(b * channels + c) * pixels..][..pixels];
                y[(b * channels + c) * places + p] = taps.iter().map(|&(o, w)| image[o] * w).sum();
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), out, &y)?])
    }

    fn attrs(&self) -> AttrMap {
        let names = if self.opset < 20 { ["bilinear", "nearest", "bicubic"] } else { ["linear", "nearest", "cubic"] };
        let padding = match self.padding {
            Padding::Zeros => "zeros",
            Padding::Border => "border",
            Padding::Reflection => "reflection",
        };
        AttrMap::new()
            .with_unless("mode", names[self.mode as usize], names[0])
            .with_unless("padding_mode", padding, "zeros")
            .with_unless("align_corners", i64::from(self.align_corners), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    #[test]
    fn survives_places_that_are_no_numbers() {
        for padding in [Padding::Zeros, Padding::Border, Padding::Reflection] {
            for mode in [Mode::Linear, Mode::Nearest, Mode::Cubic] {
                for align_corners in [false, true] {
                    let op = GridSample { mode, padding, align_corners, opset: 20 };
                    let x = Datum::Tensor(Tensor::new([1, 1, 1, 2], vec![1f32, 2.0]).unwrap());
                    let g = vec![f32::NAN, 0.0, f32::INFINITY, 1e30, -1e30, 0.0];
                    let g = Datum::Tensor(Tensor::new([1, 1, 3, 2], g).unwrap());
                    assert_eq!(op.eval(&EvalCx::new(&[Some(&x), Some(&g)], 1)).unwrap()[0].shape(), [1, 1, 1, 3]);
                }
            }
        }
    }

    #[test]
    fn reflects_at_the_border() {
        let op =
            |align_corners| GridSample { mode: Mode::Linear, padding: Padding::Reflection, align_corners, opset: 20 };
        assert_eq!(op(true).reflect(-1.0, 4), 1.0);
        assert_eq!(op(true).reflect(4.0, 4), 2.0);
        assert_eq!(op(false).reflect(-1.0, 4), 0.0);
        assert_eq!(op(false).reflect(-5.5, 4), 2.5);
        assert_eq!(op(true).reflect(3.0, 1), 0.0);
    }
}
