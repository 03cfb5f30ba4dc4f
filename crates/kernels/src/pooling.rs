//! Max and average pooling of NCHW images.

use crate::buffer::{SharedMut, with_scratch};
use crate::conv::{PaddedPlane, Spread};
use crate::error::{KernelError, Result, exact, product, require};
use crate::exec::Exec;
use crate::few::Few;
use crate::reduce::{ReduceOp, reduce};
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "pool2d";

/// Shape of a 2-D pooling; the caller works out `out` (floor or ceil).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool2dParams {
    /// Images times channels.
    pub planes: usize,
    /// Image height.
    pub h: usize,
    /// Image width.
    pub w: usize,
    /// Window height and width.
    pub window: [usize; 2],
    /// Steps down and across.
    pub strides: [usize; 2],
    /// Padding at the top, left, bottom, right.
    pub pads: [usize; 4],
    /// Steps within the window.
    pub dilations: [usize; 2],
    /// Output height and width.
    pub out: [usize; 2],
}

impl Pool2dParams {
    fn check(&self, x: &[f32], y: &[f32]) -> Result {
        exact(NAME, "x", x.len(), product(NAME, &[self.planes, self.h, self.w])?)?;
        exact(NAME, "y", y.len(), product(NAME, &[self.planes, self.out[0], self.out[1]])?)?;
        for axis in 0..2 {
            let (window, stride, dilation) = (self.window[axis], self.strides[axis], self.dilations[axis]);
            require(NAME, window > 0 && stride > 0 && dilation > 0, "window, stride and dilation must be above 0")?;
            product(NAME, &[window, dilation, 64])?;
            product(NAME, &[self.out[axis].max(1), stride, 64])?;
            require(NAME, self.pads[axis] < isize::MAX as usize / 64, "the padding is too large")?;
        }
        self.spread().len().map(|_| ()).ok_or(KernelError::Overflow { kernel: NAME })
    }

    fn spread(&self) -> Spread {
        let pad = [self.pads[0], self.pads[1]];
        Spread::new([self.h, self.w], pad, self.window, self.strides, self.dilations, self.out)
    }
}

/// Largest value of each window; padding does not count (ONNX `MaxPool`). A NaN in a
/// window gives NaN or is skipped, as in ONNX Runtime.
///
/// # Errors
/// The parameters are invalid or a slice has another length than the shape.
pub fn max_pool2d(exec: &Exec, p: &Pool2dParams, x: &[f32], y: &mut [f32]) -> Result {
    p.check(x, y)?;
    run(exec, p, x, y, None)
}

/// Mean of each window (ONNX `AveragePool`): over the elements inside the image, or, with
/// `count_include_pad`, inside the padded image.
///
/// # Errors
/// The parameters are invalid or a slice has another length than the shape.
pub fn average_pool2d(exec: &Exec, p: &Pool2dParams, count_include_pad: bool, x: &[f32], y: &mut [f32]) -> Result {
    p.check(x, y)?;
    let counts = [0, 1].map(|axis| {
        let len = [p.h, p.w][axis];
        let (before, after) = (p.pads[axis], p.pads[axis + 2]);
        let range = if count_include_pad { 0..len + before + after } else { before..before + len };
        (0..p.out[axis])
            .map(|o| {
                // Taps before a place of the padded image.
                let first = o * p.strides[axis];
                let before = |place: usize| place.saturating_sub(first).div_ceil(p.dilations[axis]).min(p.window[axis]);
                (before(range.end) - before(range.start)) as f32
            })
            .collect::<Few<f32, 64>>()
    });
    run(exec, p, x, y, Some(&counts))
}

/// Mean of each plane: `[planes, h · w]` to `[planes]`.
///
/// # Errors
/// A slice has another length than the shape.
pub fn global_average_pool(exec: &Exec, x: &[f32], y: &mut [f32], planes: usize, len: usize) -> Result {
    reduce(exec, ReduceOp::Mean, x, y, [planes, len, 1])
}

/// Largest value of each plane: `[planes, h · w]` to `[planes]`.
///
/// # Errors
/// A slice has another length than the shape, or the planes are empty.
pub fn global_max_pool(exec: &Exec, x: &[f32], y: &mut [f32], planes: usize, len: usize) -> Result {
    reduce(exec, ReduceOp::Max, x, y, [planes, len, 1])
}

/// With `counts` (elements per output row and column) an average, else a maximum.
fn run(exec: &Exec, p: &Pool2dParams, x: &[f32], y: &mut [f32], counts: Option<&[Few<f32, 64>; 2]>) -> Result {
    if y.is_empty() {
        return Ok(());
    }
    let spread = p.spread();
    let scratch = spread.len().ok_or(KernelError::Overflow { kernel: NAME })?;
    let taps: Few<usize, 64> = (0..p.window[0])
        .flat_map(|r| (0..p.window[1]).map(move |t| (r, t)))
        .map(|(r, t)| r * p.dilations[0] * spread.row_len() + spread.tap(t * p.dilations[1]))
        .collect();
    let out = SharedMut::new(y);
    let (plane_in, plane_out) = (p.h * p.w, p.out[0] * p.out[1]);
    let grain = (1 << 15) / (plane_out * taps.len()).max(1);
    exec.split(p.planes, grain.max(1), &|range| {
        with_scratch(scratch, |scratch| {
            let fill = if counts.is_some() { 0.0 } else { f32::NEG_INFINITY };
            scratch.fill(fill);
            for index in range.clone() {
                exec.isa().dispatch(Plane {
                    plane: PaddedPlane { spread, data: scratch },
                    image: &x[index * plane_in..][..plane_in],
                    taps: &taps,
                    width: p.out[1],
                    counts,
                    // SAFETY: each index owns its plane of the output.
                    out: unsafe { out.slice(index * plane_out, plane_out) },
                });
            }
        });
    });
    Ok(())
}

struct Plane<'a> {
    plane: PaddedPlane<'a>,
    image: &'a [f32],
    taps: &'a [usize],
    width: usize,
    counts: Option<&'a [Few<f32, 64>; 2]>,
    out: &'a mut [f32],
}

impl Kernel for Plane<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.plane.load(s, self.image);
        let sp = self.plane.spread;
        let step = sp.stride[0] * sp.row_len();
        for row in 0..self.out.len() / self.width {
            let mut x = 0;
            while x < self.width {
                let bits = low_bits((self.width - x).min(S::LANES));
                // SAFETY: `Spread::new` sized the plane for every window and a whole
                // vector; `bits` keeps within the output row and its counts.
                unsafe {
                    let corner = self.plane.data.as_ptr().add(row * step + x);
                    let v = match self.counts {
                        None => largest(s, corner, self.taps),
                        Some([down, across]) => {
                            let across = s.load_bits(across.as_ptr().add(x), bits);
                            let count = s.mul(s.splat(*down.get_unchecked(row)), across);
                            s.div(sum(s, corner, self.taps), count)
                        }
                    };
                    s.store_bits(self.out.as_mut_ptr().add(row * self.width + x), v, bits);
                }
                x += S::LANES;
            }
        }
    }
}

#[inline(always)]
unsafe fn largest<S: Simd>(s: S, corner: *const f32, taps: &[usize]) -> S::F {
    let mut acc = s.splat(f32::NEG_INFINITY);
    for &tap in taps {
        // SAFETY: the caller's plane covers every tap.
        acc = s.max(unsafe { s.load(corner.add(tap)) }, acc);
    }
    acc
}

#[inline(always)]
unsafe fn sum<S: Simd>(s: S, corner: *const f32, taps: &[usize]) -> S::F {
    let mut acc = s.splat(0.0);
    for &tap in taps {
        // SAFETY: the caller's plane covers every tap.
        acc = s.add(unsafe { s.load(corner.add(tap)) }, acc);
    }
    acc
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, assert_close, execs};

    fn reference(p: &Pool2dParams, x: &[f32], average: Option<bool>) -> Vec<f32> {
        let mut y = Vec::new();
        for plane in x.chunks((p.h * p.w).max(1)) {
            for oy in 0..p.out[0] {
                for ox in 0..p.out[1] {
                    let (mut peak, mut sum, mut count, mut padded) = (f32::NEG_INFINITY, 0.0, 0.0, 0.0);
                    for r in 0..p.window[0] {
                        for t in 0..p.window[1] {
                            let (py, px) =
                                (oy * p.strides[0] + r * p.dilations[0], ox * p.strides[1] + t * p.dilations[1]);
                            if py < p.h + p.pads[0] + p.pads[2] && px < p.w + p.pads[1] + p.pads[3] {
                                padded += 1.0;
                            }
                            let (iy, ix) = (py.wrapping_sub(p.pads[0]), px.wrapping_sub(p.pads[1]));
                            if iy < p.h && ix < p.w {
                                let v = plane[iy * p.w + ix];
                                peak = peak.max(v);
                                sum += v;
                                count += 1.0;
                            }
                        }
                    }
                    y.push(match average {
                        None => peak,
                        Some(true) => sum / padded,
                        Some(false) => sum / count,
                    });
                }
            }
        }
        y
    }

    #[test]
    fn equals_the_definition_with_padding_strides_and_ceil() {
        let base = Pool2dParams {
            planes: 5,
            h: 14,
            w: 37,
            window: [3, 3],
            strides: [2, 2],
            pads: [1; 4],
            dilations: [1, 1],
            out: [7, 19],
        };
        let cases = [
            base,
            Pool2dParams { window: [2, 2], pads: [0; 4], out: [7, 18], ..base },
            Pool2dParams { strides: [1, 1], out: [14, 37], ..base },
            Pool2dParams { strides: [3, 3], pads: [0; 4], out: [5, 12], ..base },
            Pool2dParams { dilations: [2, 3], strides: [1, 1], pads: [2, 3, 2, 3], out: [14, 37], ..base },
            Pool2dParams { h: 1, window: [1, 4], strides: [1, 4], pads: [0; 4], out: [1, 9], ..base },
        ];
        let mut r = Random::new(31);
        for p in cases {
            let x = r.vec(p.planes * p.h * p.w);
            for exec in execs() {
                let mut gx = Guarded::new(&x);
                for average in [None, Some(false), Some(true)] {
                    let want = reference(&p, &x, average);
                    let mut y = Guarded::new(&vec![0.0; want.len()]);
                    match average {
                        None => max_pool2d(&exec, &p, gx.get(), y.get()).unwrap(),
                        Some(all) => average_pool2d(&exec, &p, all, gx.get(), y.get()).unwrap(),
                    }
                    assert_close(y.get(), &want, 1e-6, &format!("{p:?} {average:?} {exec:?}"));
                }
            }
        }
    }

    #[test]
    fn refuses_a_zero_stride_and_wrong_lengths() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let p = Pool2dParams {
            planes: 1,
            h: 2,
            w: 2,
            window: [1, 1],
            strides: [0, 1],
            pads: [0; 4],
            dilations: [1, 1],
            out: [2, 2],
        };
        assert!(max_pool2d(&exec, &p, &[0.0; 4], &mut [0.0; 4]).is_err());
        let p = Pool2dParams { strides: [1, 1], ..p };
        assert!(max_pool2d(&exec, &p, &[0.0; 4], &mut [0.0; 3]).is_err());
    }
}
