//! Floats: the image is read in place, and taps outside of it are skipped.

use std::ops::Range;

use super::finish::{Finish, is_plain};
use super::{BLOCK, LANES};
use crate::buffer::with_scratch;
use crate::conv::Conv2dParams;
use crate::exec::Exec;
use crate::panel::{Epilogue, Out};
use crate::simd::{Kernel, Simd, low_bits};

/// Multiply-adds that one task takes at least.
const GRAIN: usize = 1 << 16;
/// Pixels whose sums are kept in registers.
const PIXELS: usize = 8;

#[derive(Clone, Copy)]
struct Source(*const f32);
// SAFETY: only read, while the slice that it came from is borrowed.
unsafe impl Sync for Source {}
impl Source {
    fn at(&self, offset: usize) -> *const f32 {
        self.0.wrapping_add(offset)
    }
}

/// `x` has the elements that `p` says, and `weights` are `[tap][channel]`.
pub(super) fn run(
    exec: &Exec,
    p: &Conv2dParams,
    [oh, ow]: [usize; 2],
    x: *const u8,
    weights: &[f32],
    epilogue: &Epilogue<'_>,
    out: Out,
) {
    let x = Source(x.cast());
    let interior = interior(p, ow);
    let blocks = p.c.div_ceil(BLOCK);
    let work = (ow * BLOCK.min(p.c)).saturating_mul(p.kh * p.kw);
    exec.split(p.n * oh * blocks, GRAIN / work.max(1) + 1, &|range| {
        with_scratch(ow * LANES, |sums| {
            for index in range.clone() {
                let (row, block) = (index / blocks, index % blocks);
                let first = block * BLOCK;
                exec.isa().dispatch(Row {
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
                });
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
    image: *const f32,
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

impl Kernel for Row<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = self.p;
        let plain = is_plain(self.epilogue);
        let rows = taps(self.oy * p.strides[0], p.dilations[0], p.pads[0], p.h, p.kh);
        for c in self.channels.clone().step_by(S::LANES) {
            let n = S::LANES.min(self.channels.end - c);
            // SAFETY: `check` accepted a bias per channel.
            let finish = unsafe { Finish::new(s, self.epilogue, &self.out, c, n) };
            let v = Vector { row: &self, finish, rows: rows.clone(), c, n };
            if plain {
                v.run::<true>(s);
            } else {
                v.run::<false>(s);
            }
        }
    }
}

/// One vector of channels of a row.
struct Vector<'a, S: Simd> {
    row: &'a Row<'a>,
    finish: Finish<S>,
    rows: Range<usize>,
    c: usize,
    n: usize,
}

impl<S: Simd> Vector<'_, S> {
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
                    self.pixels::<PIXELS, PLAIN>(s, x, 0..p.kw, S::LANES);
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
        let (bits, step) = (low_bits(n), p.strides[1] * p.c);
        let mut sums = [s.splat(0.0); N];
        for ky in self.rows.clone() {
            // Above the padding, because the tap is in the image; together with the column.
            let y = row.oy * p.strides[0] + ky * p.dilations[0] - p.pads[0];
            for kx in columns.clone() {
                let left = x * p.strides[1] + kx * p.dilations[1] - p.pads[1];
                let from = row.image.wrapping_add((y * p.w + left) * p.c + self.c);
                // SAFETY: passed on to the caller; weights are padded to whole vectors.
                unsafe {
                    let w = s.load(row.weights.as_ptr().add((ky * p.kw + kx) * padded + self.c));
                    for (k, sum) in sums.iter_mut().enumerate() {
                        let from = from.wrapping_add(k * step);
                        let v = if n == S::LANES { s.load(from) } else { s.load_bits(from, bits) };
                        *sum = s.mul_add(v, w, *sum);
                    }
                }
            }
        }
        for (k, &sum) in sums.iter().enumerate() {
            let at = row.at + (x + k) * p.c + self.c;
            // SAFETY: the scratch has a vector per pixel; the task owns these channels.
            unsafe {
                if PLAIN {
                    self.finish.put(s, &row.out, at, sum, n);
                } else {
                    s.store(row.sums.add((x + k) * S::LANES), sum);
                }
            }
        }
    }
}
