//! Depthwise convolution: each channel alone, vectors along the width.

use super::plane::{PaddedPlane, Spread};
use super::{Conv2dParams, ConvEpilogue, NAME};
use crate::buffer::{SharedMut, with_scratch};
use crate::elementwise::map;
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
            scratch.fill(0.0);
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
        self.plane.load(s, self.image);
        match self.taps.len() {
            9 => self.rows::<S, 9>(s),
            25 => self.rows::<S, 25>(s),
            _ => self.rows::<S, 0>(s),
        }
        if self.epilogue.activation.needs_pass() {
            let activation = self.epilogue.activation;
            let (y, len) = (self.out.as_mut_ptr(), self.out.len());
            // SAFETY: in place over the output plane.
            unsafe {
                map(
                    s,
                    y,
                    y,
                    len,
                    #[inline(always)]
                    |v| activation.apply(s, v),
                );
            }
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
        let mut weights = [s.splat(0.0); TAPS];
        let mut taps = [0; TAPS];
        for i in 0..TAPS {
            (weights[i], taps[i]) = (s.splat(self.weights[i]), self.taps[i]);
        }
        let bias = s.splat(self.bias);
        let (low, high) = self.epilogue.activation.bounds();
        let (low, high) = (s.splat(low), s.splat(high));
        let plain = self.residual.is_none() && !self.epilogue.accumulate;
        for row in 0..rows {
            let mut x = 0;
            while x < self.width {
                // SAFETY: `Spread::new` sized the plane for every window and a whole vector.
                let corner = unsafe { self.plane.data.as_ptr().add(row * step + x) };
                // SAFETY: as above.
                let mut v = unsafe {
                    if TAPS == 0 { self.any_window(s, corner, bias) } else { window(s, corner, &weights, &taps, bias) }
                };
                let at = row * self.width + x;
                let bits = low_bits((self.width - x).min(S::LANES));
                if !plain {
                    v = self.add(s, at, bits, v);
                }
                let v = s.min(high, s.max(low, v));
                // SAFETY: `bits` ends at the end of the output row.
                unsafe { s.store_bits(self.out.as_mut_ptr().add(at), v, bits) };
                x += S::LANES;
            }
        }
    }

    /// One vector of sums over a window of any size.
    ///
    /// # Safety
    /// The plane covers every tap from `corner` on.
    #[inline(always)]
    unsafe fn any_window<S: Simd>(&self, s: S, corner: *const f32, bias: S::F) -> S::F {
        let mut acc = bias;
        for (&w, &tap) in self.weights.iter().zip(self.taps) {
            // SAFETY: the caller's contract.
            acc = s.mul_add(unsafe { s.load(corner.add(tap)) }, s.splat(w), acc);
        }
        acc
    }

    /// Adds the old output and the residual.
    #[inline(always)]
    fn add<S: Simd>(&self, s: S, at: usize, bits: u32, mut v: S::F) -> S::F {
        // SAFETY: `bits` ends within the output row, and the residual is as long.
        unsafe {
            if self.epilogue.accumulate {
                v = s.add(v, s.load_bits(self.out.as_ptr().add(at), bits));
            }
            if let Some(residual) = self.residual {
                v = s.add(v, s.load_bits(residual.as_ptr().add(at), bits));
            }
        }
        v
    }
}

/// One vector of sums, in two chains, so that additions overlap.
///
/// # Safety
/// Memory from `corner` on covers every tap.
#[inline(always)]
unsafe fn window<S: Simd, const TAPS: usize>(
    s: S,
    corner: *const f32,
    weights: &[S::F; TAPS],
    taps: &[usize; TAPS],
    bias: S::F,
) -> S::F {
    let mut acc = [bias, s.splat(0.0)];
    for i in 0..TAPS {
        // SAFETY: the caller's contract.
        let v = unsafe { s.load(corner.add(taps[i])) };
        acc[i % 2] = s.mul_add(v, weights[i], acc[i % 2]);
    }
    s.add(acc[0], acc[1])
}
