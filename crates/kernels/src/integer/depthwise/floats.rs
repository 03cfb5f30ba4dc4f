//! Floats: the image is read in place, and taps outside of it are skipped.

use std::ops::Range;

use super::finish::{Finish, is_plain};
use super::{BLOCK, LANES};
use crate::buffer::with_scratch;
use crate::conv::Conv2dParams;
use crate::exec::Exec;
use crate::panel::{Epilogue, Out, load_bf16};
use crate::simd::{Kernel, Simd, low_bits};

/// Multiply-adds that one task takes at least.
const GRAIN: usize = 1 << 16;
/// Pixels whose sums are kept in registers.
const PIXELS: usize = 8;

/// An image's elements: floats, or bfloat16.
#[derive(Clone, Copy)]
struct Source {
    data: *const u8,
    half: bool,
}
// SAFETY: only read, while the slice that it came from is borrowed.
unsafe impl Sync for Source {}
impl Source {
    fn at(&self, offset: usize) -> *const u8 {
        self.data.wrapping_add(offset * if self.half { 2 } else { 4 })
    }
}

/// `x` has the elements that `p` says, bfloat16 where it says so, and `weights` are `[tap][channel]`.
pub(super) fn run(
    exec: &Exec,
    p: &Conv2dParams,
    [oh, ow]: [usize; 2],
    (data, half): (*const u8, bool),
    weights: &[f32],
    epilogue: &Epilogue<'_>,
    out: Out,
) {
    let x = Source { data, half };
    let interior = interior(p, ow);
    let blocks = p.c.div_ceil(BLOCK);
    let work = (ow * BLOCK.min(p.c)).saturating_mul(p.kh * p.kw);
    exec.split(p.n * oh * blocks, GRAIN / work.max(1) + 1, &|range| {
        with_scratch(ow * LANES, |sums| {
            for index in range.clone() {
                let (row, block) = (index / blocks, index % blocks);
                let first = block * BLOCK;
                let row = Row {
                    p,
                    image: x.at(row / oh * p.h * p.w * p.c),
                    weights,
                    epilogue,
                    out,
                    oy: row % oh,
                    at: row * ow * p.c,
                    ow,
                    interior: interior.clone(),
                    channels: first..p.c.min(first + BLOCK),
                    sums: sums.as_mut_ptr(),
                };
                match half {
                    true => exec.isa().dispatch(Of::<true>(row)),
                    false => exec.isa().dispatch(Of::<false>(row)),
                }
            }
        });
    });
}

/// Output columns whose windows lie in the image.
fn interior(p: &Conv2dParams, ow: usize) -> Range<usize> {
    let start = p.pads[1].div_ceil(p.strides[1]).min(ow);
    let last = (p.w + p.pads[1]).checked_sub((p.kw - 1) * p.dilations[1] + 1);
    start..last.map_or(0, |last| last / p.strides[1] + 1).clamp(start, ow)
}

/// Taps `k` whose place `start + k · dilation − pad` is below `len`.
#[inline(always)]
fn taps(start: usize, dilation: usize, pad: usize, len: usize, window: usize) -> Range<usize> {
    let first = |place: usize| place.saturating_sub(start).div_ceil(dilation).min(window);
    first(pad)..first(pad + len).max(first(pad))
}

/// The channels of one output row; no other task writes them.
struct Row<'a> {
    p: &'a Conv2dParams,
    image: *const u8,
    weights: &'a [f32],
    epilogue: &'a Epilogue<'a>,
    out: Out,
    oy: usize,
    /// The row's first element in the result.
    at: usize,
    ow: usize,
    interior: Range<usize>,
    channels: Range<usize>,
    /// Scratch: a vector per pixel.
    sums: *mut f32,
}

/// A row of an image of bfloat16, or of floats.
struct Of<'a, const HALF: bool>(Row<'a>);

impl<const HALF: bool> Kernel for Of<'_, HALF> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Of(row) = &self;
        let p = row.p;
        let plain = is_plain(row.epilogue);
        let rows = taps(row.oy * p.strides[0], p.dilations[0], p.pads[0], p.h, p.kh);
        for c in row.channels.clone().step_by(S::LANES) {
            let n = S::LANES.min(row.channels.end - c);
            // SAFETY: `check` accepted a bias per channel.
            let finish = unsafe { Finish::new(s, row.epilogue, &row.out, c, n) };
            let v = Vector::<S, HALF> { row, finish, rows: rows.clone(), c, n };
            if plain {
                v.run::<true>(s);
            } else {
                v.run::<false>(s);
            }
        }
    }
}

/// One vector of channels of a row.
struct Vector<'a, S: Simd, const HALF: bool> {
    row: &'a Row<'a>,
    finish: Finish<S>,
    rows: Range<usize>,
    c: usize,
    n: usize,
}

impl<S: Simd, const HALF: bool> Vector<'_, S, HALF> {
    #[inline(always)]
    fn run<const PLAIN: bool>(&self, s: S) {
        let (row, p, n) = (self.row, self.row.p, self.n);
        let inside = if n == S::LANES { row.interior.clone() } else { 0..0 };
        let mut x = 0;
        // SAFETY: `taps` and `interior` keep every tap in the image.
        unsafe {
            while x < row.ow {
                let left = if inside.contains(&x) { inside.end - x } else { 0 };
                if left >= PIXELS {
                    match (p.kw, p.strides[1], p.dilations[1]) {
                        (3, 1, 1) => self.joined::<3, 1, PLAIN>(s, x),
                        (3, 2, 1) => self.joined::<3, 2, PLAIN>(s, x),
                        (5, 1, 1) => self.joined::<5, 1, PLAIN>(s, x),
                        (5, 2, 1) => self.joined::<5, 2, PLAIN>(s, x),
                        _ => self.pixels::<PIXELS, PLAIN>(s, x, 0..p.kw, S::LANES),
                    }
                    x += PIXELS;
                } else if left >= 2 {
                    self.pixels::<2, PLAIN>(s, x, 0..p.kw, S::LANES);
                    x += 2;
                } else {
                    let columns = taps(x * p.strides[1], p.dilations[1], p.pads[1], p.w, p.kw);
                    self.pixels::<1, PLAIN>(s, x, columns, n);
                    x += 1;
                }
            }
            if !PLAIN {
                for x in 0..row.ow {
                    let at = row.at + x * p.c + self.c;
                    let v = row.epilogue.rest(s, s.load(row.sums.add(x * S::LANES)), self.c, at, n);
                    row.out.put(s, &self.finish.rounding, at, v, n);
                }
            }
        }
    }

    /// `N` neighbours from `x` on, with these columns of the window.
    ///
    /// # Safety
    /// The taps lie in the image.
    #[inline(always)]
    unsafe fn pixels<const N: usize, const PLAIN: bool>(&self, s: S, x: usize, columns: Range<usize>, n: usize) {
        let (row, p) = (self.row, self.row.p);
        let padded = p.c.next_multiple_of(LANES);
        let step = p.strides[1] * p.c;
        let mut sums = [s.splat(0.0); N];
        for ky in self.rows.clone() {
            // Above the padding, because the tap is in the image; together with the column.
            let y = row.oy * p.strides[0] + ky * p.dilations[0] - p.pads[0];
            for kx in columns.clone() {
                let left = x * p.strides[1] + kx * p.dilations[1] - p.pads[1];
                let first = (y * p.w + left) * p.c + self.c;
                // SAFETY: passed on to the caller; weights are padded to whole vectors.
                unsafe {
                    let w = s.load(row.weights.as_ptr().add((ky * p.kw + kx) * padded + self.c));
                    for (k, sum) in sums.iter_mut().enumerate() {
                        *sum = s.mul_add(self.load(s, first + k * step, n), w, *sum);
                    }
                }
            }
        }
        // SAFETY: passed on to the caller.
        unsafe { self.finish::<N, PLAIN>(s, x, &sums, n) };
    }

    /// As [`Self::pixels`] of all columns, for [`PIXELS`] neighbours whose windows of `K` columns overlap: each pixel of the
    /// image is loaded once for all windows that it is in. Sums are of the same order.
    ///
    /// # Safety
    /// The taps lie in the image, and the channels are a whole vector.
    #[inline(always)]
    unsafe fn joined<const K: usize, const STRIDE: usize, const PLAIN: bool>(&self, s: S, x: usize) {
        let (row, p) = (self.row, self.row.p);
        let padded = p.c.next_multiple_of(LANES);
        let mut sums = [s.splat(0.0); PIXELS];
        for ky in self.rows.clone() {
            let y = row.oy * p.strides[0] + ky * p.dilations[0] - p.pads[0];
            let first = (y * p.w + x * STRIDE - p.pads[1]) * p.c + self.c;
            let mut w = [s.splat(0.0); K];
            // SAFETY: passed on to the caller; weights are padded to whole vectors.
            unsafe {
                for (kx, w) in w.iter_mut().enumerate() {
                    *w = s.load(row.weights.as_ptr().add((ky * K + kx) * padded + self.c));
                }
                for i in 0..(PIXELS - 1) * STRIDE + K {
                    let v = self.load(s, first + i * p.c, S::LANES);
                    for (kx, &w) in w.iter().enumerate() {
                        if i >= kx && (i - kx) % STRIDE == 0 && (i - kx) / STRIDE < PIXELS {
                            let sum = &mut sums[(i - kx) / STRIDE];
                            *sum = s.mul_add(v, w, *sum);
                        }
                    }
                }
            }
        }
        // SAFETY: passed on to the caller.
        unsafe { self.finish::<PIXELS, PLAIN>(s, x, &sums, S::LANES) };
    }

    /// `n` elements of the image.
    ///
    /// # Safety
    /// The image has them.
    #[inline(always)]
    unsafe fn load(&self, s: S, at: usize, n: usize) -> S::F {
        let (float, half) = (self.row.image.cast::<f32>(), self.row.image.cast::<u16>());
        // SAFETY: passed on to the caller.
        unsafe {
            match HALF {
                true => load_bf16(s, half.wrapping_add(at), n),
                false if n == S::LANES => s.load(float.wrapping_add(at)),
                false => s.load_bits(float.wrapping_add(at), low_bits(n)),
            }
        }
    }

    /// The results of neighbours from `x` on, or their sums.
    ///
    /// # Safety
    /// The task owns these channels.
    #[inline(always)]
    unsafe fn finish<const N: usize, const PLAIN: bool>(&self, s: S, x: usize, sums: &[S::F; N], n: usize) {
        for (k, &sum) in sums.iter().enumerate() {
            let at = self.row.at + (x + k) * self.row.p.c + self.c;
            // SAFETY: the scratch has a vector per pixel; the rest is passed on to the caller.
            unsafe {
                if PLAIN {
                    self.finish.put(s, &self.row.out, at, sum, n);
                } else {
                    s.store(self.row.sums.add((x + k) * S::LANES), sum);
                }
            }
        }
    }
}
