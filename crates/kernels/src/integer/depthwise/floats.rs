//! Floats: the image is read in place, and taps outside of it are skipped.

use std::ops::Range;

use super::finish::{Finish, TOGETHER, is_plain};
use super::{BLOCK, LANES};
use crate::conv::Conv2dParams;
use crate::exec::Exec;
use crate::panel::{Epilogue, Kind, Out, load_bf16};
use crate::simd::{Kernel, Simd, low_bits};

/// Multiply-adds that one task takes at least.
const GRAIN: usize = 1 << 16;
/// Pixels whose sums are kept in registers.
const PIXELS: usize = 8;
/// As many where a row has not more.
const FEW: usize = 4;
/// Vectors of channels whose sums of a pixel by itself grow side by side.
const ACROSS: usize = 4;
/// What happens to sums: a bias and a clamp before floats or bfloat16, or anything.
const FLOATS: u8 = 0;
const BF16: u8 = 1;
const ANY: u8 = 2;
/// Rows of the result for each thread from which on a task takes all channels.
const ROWS_EACH: usize = 4;

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
    let (interior, plain) = (interior(p, ow), is_plain(epilogue));
    // Whole rows are read from one end to the other, which the processor foresees; few rows are cut for the threads' sake.
    let block = if p.n * oh >= ROWS_EACH * exec.threads() { p.c } else { BLOCK.min(p.c) };
    let blocks = p.c.div_ceil(block.max(1));
    let work = (ow * block).saturating_mul(p.kh * p.kw);
    exec.split(p.n * oh * blocks, GRAIN / work.max(1) + 1, &|range| {
        for index in range {
            let (row, first) = (index / blocks, index % blocks * block);
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
                channels: first..p.c.min(first + block),
                plain,
            };
            match half {
                true => exec.isa().dispatch(Of::<true>(row)),
                false => exec.isa().dispatch(Of::<false>(row)),
            }
        }
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
    /// Whether the results need but a bias and a clamp.
    plain: bool,
}

/// A row of an image of bfloat16, or of floats.
struct Of<'a, const HALF: bool>(Row<'a>);

impl<const HALF: bool> Kernel for Of<'_, HALF> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let row = &self.0;
        let p = row.p;
        let rows = taps(row.oy * p.strides[0], p.dilations[0], p.pads[0], p.h, p.kh);
        let kind = row.out.kind;
        let mut x = 0;
        while x < row.ow {
            let Range { start, end } = row.interior;
            let inside = if row.interior.contains(&x) { end - start } else { 0 };
            let count = [PIXELS, FEW].into_iter().find(|&count| count <= inside).unwrap_or(1);
            // The last ones of a row are made together with some before them, which get the same values again.
            let from = if count > 1 { x.min(end - count) } else { x };
            let columns = match count {
                1 => taps(x * p.strides[1], p.dilations[1], p.pads[1], p.w, p.kw),
                _ => 0..p.kw,
            };
            let mut c = row.channels.start;
            while c < row.channels.end {
                let n = S::LANES.min(row.channels.end - c);
                // SAFETY: `check` accepted a bias per channel.
                let finish = unsafe { Finish::new(s, row.epilogue, &row.out, c, n) };
                let v = Vector::<S, HALF> { row, finish, rows: rows.clone(), columns: columns.clone(), c, n };
                let together = if count == 1 && c + ACROSS * S::LANES <= row.channels.end { ACROSS } else { 1 };
                match (kind, together) {
                    (Kind::F32, ACROSS) if row.plain => v.across::<FLOATS>(s, x),
                    (Kind::Bf16, ACROSS) if row.plain => v.across::<BF16>(s, x),
                    (_, ACROSS) => v.across::<ANY>(s, x),
                    (Kind::F32, _) if row.plain => v.run::<FLOATS>(s, from, count),
                    (Kind::Bf16, _) if row.plain => v.run::<BF16>(s, from, count),
                    _ => v.run::<ANY>(s, from, count),
                }
                c += together * n;
            }
            x = from + count;
        }
    }
}

/// One vector of channels of a row.
struct Vector<'a, S: Simd, const HALF: bool> {
    row: &'a Row<'a>,
    finish: Finish<S>,
    /// The taps that lie in the image.
    rows: Range<usize>,
    columns: Range<usize>,
    c: usize,
    n: usize,
}

impl<S: Simd, const HALF: bool> Vector<'_, S, HALF> {
    /// `count` neighbours from `x` on: [`PIXELS`] or [`FEW`] whose windows lie in the image, or one.
    #[inline(always)]
    fn run<const END: u8>(&self, s: S, x: usize, count: usize) {
        let p = self.row.p;
        let mut sums = [s.splat(0.0); PIXELS];
        // SAFETY: `taps` and `interior` keep every tap in the image.
        unsafe {
            match (count, self.n == S::LANES) {
                (PIXELS, true) => match (p.kw, p.strides[1], p.dilations[1]) {
                    (3, 1, 1) => self.joined::<3, 1, END>(s, x, &mut sums),
                    (3, 2, 1) => self.joined::<3, 2, END>(s, x, &mut sums),
                    (5, 1, 1) => self.joined::<5, 1, END>(s, x, &mut sums),
                    (5, 2, 1) => self.joined::<5, 2, END>(s, x, &mut sums),
                    _ => self.pixels::<PIXELS, END>(s, x, S::LANES, &mut sums),
                },
                (FEW, true) => self.pixels::<FEW, END>(s, x, S::LANES, &mut sums),
                _ => {
                    for k in 0..count {
                        self.pixels::<1, END>(s, x + k, self.n, &mut sums[k..]);
                    }
                }
            }
            if END == ANY {
                self.rest(s, x, &sums[..count]);
            }
        }
    }

    /// Pixel `x` of [`ACROSS`] vectors of channels: sums that grow side by side, where each has to wait for its last addition.
    #[inline(always)]
    fn across<const END: u8>(&self, s: S, x: usize) {
        let (row, p) = (self.row, self.row.p);
        let padded = p.c.next_multiple_of(LANES);
        let mut sums = [s.splat(0.0); ACROSS];
        for ky in self.rows.clone() {
            let y = row.oy * p.strides[0] + ky * p.dilations[0] - p.pads[0];
            for kx in self.columns.clone() {
                let left = x * p.strides[1] + kx * p.dilations[1] - p.pads[1];
                let first = (y * p.w + left) * p.c + self.c;
                let w = row.weights.as_ptr().wrapping_add((ky * p.kw + kx) * padded + self.c);
                for (k, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the taps lie in the image; weights are padded to whole vectors.
                    unsafe {
                        let v = self.load(s, first + k * S::LANES, S::LANES);
                        *sum = s.mul_add(v, s.load(w.wrapping_add(k * S::LANES)), *sum);
                    }
                }
            }
        }
        for (k, &sum) in sums.iter().enumerate() {
            let (c, n) = (self.c + k * S::LANES, S::LANES);
            // SAFETY: as in `run`.
            unsafe {
                let finish = Finish::new(s, row.epilogue, &row.out, c, n);
                let one = Vector::<S, HALF> { row, finish, rows: 0..0, columns: 0..0, c, n };
                let mut left = [sum];
                one.finish::<1, END>(s, x, &[sum], n, &mut left);
                if END == ANY {
                    one.rest(s, x, &left);
                }
            }
        }
    }

    /// Results that need more than a bias and a clamp, from their sums.
    ///
    /// # Safety
    /// The task owns these channels.
    #[inline(always)]
    unsafe fn rest(&self, s: S, x: usize, sums: &[S::F]) {
        let (row, step) = (self.row, self.row.p.c);
        let at = row.at + x * step + self.c;
        let (all, rest) = sums.as_chunks::<TOGETHER>();
        // SAFETY: passed on to the caller.
        unsafe {
            for (i, sums) in all.iter().enumerate() {
                let (mut v, at) = (*sums, at + i * TOGETHER * step);
                row.epilogue.rest_of_all(s, &mut v, self.c, (at, step), self.n);
                for (k, &v) in v.iter().enumerate() {
                    row.out.put(s, &self.finish.rounding, at + k * step, v, self.n);
                }
            }
            for (k, &sum) in rest.iter().enumerate() {
                let at = at + (all.len() * TOGETHER + k) * step;
                let v = row.epilogue.rest(s, sum, self.c, at, self.n);
                row.out.put(s, &self.finish.rounding, at, v, self.n);
            }
        }
    }

    /// `N` neighbours from `x` on.
    ///
    /// # Safety
    /// The taps lie in the image.
    #[inline(always)]
    unsafe fn pixels<const N: usize, const END: u8>(&self, s: S, x: usize, n: usize, to: &mut [S::F]) {
        let (row, p) = (self.row, self.row.p);
        let padded = p.c.next_multiple_of(LANES);
        let step = p.strides[1] * p.c;
        let mut sums = [s.splat(0.0); N];
        for ky in self.rows.clone() {
            // Above the padding, because the tap is in the image; together with the column.
            let y = row.oy * p.strides[0] + ky * p.dilations[0] - p.pads[0];
            for kx in self.columns.clone() {
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
        unsafe { self.finish::<N, END>(s, x, &sums, n, to) };
    }

    /// As [`Self::pixels`] of all columns, for [`PIXELS`] neighbours whose windows of `K` columns overlap: each pixel of the
    /// image is loaded once for all windows that it is in. Sums are of the same order.
    ///
    /// # Safety
    /// The taps lie in the image, and the channels are a whole vector.
    #[inline(always)]
    unsafe fn joined<const K: usize, const STRIDE: usize, const END: u8>(&self, s: S, x: usize, to: &mut [S::F]) {
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
        unsafe { self.finish::<PIXELS, END>(s, x, &sums, S::LANES, to) };
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

    /// The results of neighbours from `x` on, or their sums in `to`.
    ///
    /// # Safety
    /// The task owns these channels.
    #[inline(always)]
    unsafe fn finish<const N: usize, const END: u8>(
        &self,
        s: S,
        x: usize,
        sums: &[S::F; N],
        n: usize,
        to: &mut [S::F],
    ) {
        let (row, step) = (self.row, self.row.p.c);
        let at = row.at + x * step + self.c;
        let (floats, halves) = (row.out.data.cast::<f32>(), row.out.data.cast::<u16>());
        for (k, &sum) in sums.iter().enumerate() {
            // SAFETY: the elements are those of the target's type, and passed on to the caller.
            unsafe {
                match END {
                    FLOATS if n == S::LANES => s.store(floats.add(at + k * step), self.finish.clamped(s, sum)),
                    FLOATS => s.store_bits(floats.add(at + k * step), self.finish.clamped(s, sum), low_bits(n)),
                    BF16 => s.store_bf16_n(halves.add(at + k * step), self.finish.clamped(s, sum), n),
                    _ => to[k] = sum,
                }
            }
        }
    }
}
