//! Depthwise convolution: each channel alone, vectors along the width.

use super::plane::{PaddedPlane, Spread};
use super::{Conv2dParams, ConvEpilogue, NAME};
use crate::buffer::{SharedMut, with_scratch};
use crate::error::{KernelError, Result};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd, low_bits};

pub(super) fn run(
    exec: &Exec,
    p: &Conv2dParams,
    [oh, ow]: [usize; 2],
    x: &[f32],
    weights: &[f32],
    epilogue: &ConvEpilogue<'_>,
    y: &mut [f32],
) -> Result {
    if y.is_empty() {
        return Ok(());
    }
    let window = [p.kh, p.kw];
    let spread = Spread::new([p.h, p.w], [p.pads[0], p.pads[1]], window, p.strides, p.dilations, [oh, ow]);
    let scratch = spread.len().ok_or(KernelError::Overflow { kernel: NAME })?;
    let taps: Vec<usize> = (0..p.kh)
        .flat_map(|r| (0..p.kw).map(move |t| (r, t)))
        .map(|(r, t)| r * p.dilations[0] * spread.row_len() + spread.tap(t * p.dilations[1]))
        .collect();
    let out = SharedMut::new(y);
    let (plane_in, plane_out) = (p.h * p.w, oh * ow);
    // Channels per task: enough work to be worth a claim.
    let grain = (1 << 15) / (plane_out * taps.len()).max(1);
    exec.split(p.n * p.c, grain.max(1), &|range| {
        with_scratch(scratch, |scratch| {
            for index in range.clone() {
                let channel = index % p.c;
                let job = Channel {
                    plane: PaddedPlane { spread, data: scratch },
                    image: &x[index * plane_in..][..plane_in],
                    taps: &taps,
                    weights: &weights[channel * taps.len()..][..taps.len()],
                    bias: epilogue.bias.map_or(0.0, |bias| bias[channel]),
                    residual: epilogue.residual.map(|r| &r[index * plane_out..][..plane_out]),
                    epilogue,
                    width: ow,
                    // SAFETY: each index owns its plane of the output.
                    out: unsafe { out.slice(index * plane_out, plane_out) },
                };
                exec.isa().dispatch(job);
            }
        });
    });
    Ok(())
}

struct Channel<'a> {
    plane: PaddedPlane<'a>,
    image: &'a [f32],
    taps: &'a [usize],
    weights: &'a [f32],
    bias: f32,
    residual: Option<&'a [f32]>,
    epilogue: &'a ConvEpilogue<'a>,
    width: usize,
    out: &'a mut [f32],
}

impl Kernel for Channel<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.plane.load(s, self.image, 0.0);
        match self.taps.len() {
            9 => self.rows::<S, 9>(s),
            25 => self.rows::<S, 25>(s),
            _ => self.rows::<S, 0>(s),
        }
    }
}

impl Channel<'_> {
    /// All output rows; `TAPS` is the window's size, or 0 for any.
    #[inline(always)]
    fn rows<S: Simd, const TAPS: usize>(&mut self, s: S) {
        let sp = self.plane.spread;
        let step = sp.stride[0] * sp.row_len();
        let rows = self.out.len() / self.width;
        for row in 0..rows {
            let base = row * step;
            let mut x = 0;
            while x < self.width {
                let v = self.sum::<S, TAPS>(s, base + x);
                self.store(s, row * self.width + x, (self.width - x).min(S::LANES), v);
                x += S::LANES;
            }
        }
    }

    /// One vector of sums, the window's corner at `at` in the padded plane.
    #[inline(always)]
    fn sum<S: Simd, const TAPS: usize>(&self, s: S, at: usize) -> S::F {
        let taps = if TAPS == 0 { self.taps.len() } else { TAPS };
        debug_assert!(taps <= self.taps.len() && taps <= self.weights.len());
        let mut acc = s.splat(self.bias);
        for i in 0..taps {
            // SAFETY: `Spread::new` sized the plane for every window and a whole vector.
            unsafe {
                let w = s.splat(*self.weights.get_unchecked(i));
                let v = s.load(self.plane.data.as_ptr().add(at + *self.taps.get_unchecked(i)));
                acc = s.mul_add(v, w, acc);
            }
        }
        acc
    }

    #[inline(always)]
    fn store<S: Simd>(&mut self, s: S, at: usize, lanes: usize, mut v: S::F) {
        let bits = low_bits(lanes);
        // SAFETY: `at..at + lanes` is in the output plane, and so in the residual's.
        unsafe {
            let y = self.out.as_mut_ptr().add(at);
            if self.epilogue.accumulate {
                v = s.add(v, s.load_bits(y, bits));
            }
            if let Some(residual) = self.residual {
                v = s.add(v, s.load_bits(residual.as_ptr().add(at), bits));
            }
            s.store_bits(y, self.epilogue.activation.apply(s, v), bits);
        }
    }
}
