//! The register tile: `MR × NV` vectors of C, one packed panel of A and of B.

use std::mem::MaybeUninit;

use crate::activation::Activation;
use crate::simd::{Simd, low_bits};

/// Most floats in a register tile of any tier (14 rows of 32, 8 of 48, …).
pub(crate) const TILE_FLOATS: usize = 512;

/// One tile of work. Pointers are to packed panels (A: `k × mr`, B: `k × width`) and to
/// the tile's corner in C.
pub(crate) struct Tile {
    pub k: usize,
    pub a: *const f32,
    pub b: *const f32,
    pub c: *mut f32,
    pub ldc: usize,
    /// Columns to write, at most the tile's width.
    pub n: usize,
    /// The first block of K: C is not read, except for `beta`.
    pub first: bool,
    /// The last block of K: the epilogue runs.
    pub last: bool,
    pub alpha: f32,
    pub beta: f32,
    /// One value per row, or null.
    pub bias_row: *const f32,
    /// One value per column, or null.
    pub bias_col: *const f32,
    /// A tile to add, or null.
    pub residual: *const f32,
    pub ld_residual: usize,
    pub activation: Activation,
}

/// A compiled tile kernel.
///
/// # Safety
/// The CPU has the kernel's tier, and the tile's pointers cover its shape.
pub(crate) type TileFn = unsafe fn(&Tile);

/// Computes one tile; inlined into a function with the tier's features.
///
/// # Safety
/// The tile's pointers cover `k`, `MR`, `n` and the leading dimensions.
#[inline(always)]
pub(crate) unsafe fn run_tile<S: Simd, const MR: usize, const NV: usize>(s: S, t: &Tile) {
    let width = NV * S::LANES;
    // SAFETY: the caller's contract; the buffer holds MR · NV · LANES floats.
    unsafe {
        let acc = multiply::<S, MR, NV>(s, t);
        if t.n == width {
            return end_whole(s, t, acc);
        }
        let mut buffer = TileBuffer([MaybeUninit::uninit(); TILE_FLOATS]);
        let out = buffer.0.as_mut_ptr().cast::<f32>();
        for (i, line) in acc.iter().enumerate() {
            for (v, &c) in line.iter().enumerate() {
                s.store(out.add(i * width + v * S::LANES), c);
            }
        }
        if t.last {
            finish(s, t, MR, width, out);
        } else {
            accumulate(s, t, MR, width, out);
        }
    }
}

#[repr(align(64))]
struct TileBuffer([MaybeUninit<f32>; TILE_FLOATS]);

/// `A · B` over this block of K.
#[inline(always)]
unsafe fn multiply<S: Simd, const MR: usize, const NV: usize>(s: S, t: &Tile) -> [[S::F; NV]; MR] {
    let width = NV * S::LANES;
    let mut acc = [[s.splat(0.0); NV]; MR];
    let (mut a, mut b) = (t.a, t.b);
    for _ in 0..t.k {
        // SAFETY: each step reads one column of the A panel and one row of the B panel.
        unsafe {
            // The next rows of B come from L2 or further: ask early.
            for v in 0..NV {
                s.prefetch(b.wrapping_add(8 * width + v * S::LANES));
            }
            let mut row = [s.splat(0.0); NV];
            for (v, lane) in row.iter_mut().enumerate() {
                *lane = s.load(b.add(v * S::LANES));
            }
            for (i, line) in acc.iter_mut().enumerate() {
                let x = s.splat(*a.add(i));
                for (c, &y) in line.iter_mut().zip(&row) {
                    *c = s.mul_add(x, y, *c);
                }
            }
            a = a.add(MR);
            b = b.add(width);
        }
    }
    acc
}

/// As [`accumulate`] or [`finish`] for a tile all of whose columns count: from registers, and without masks.
#[inline(always)]
unsafe fn end_whole<S: Simd, const MR: usize, const NV: usize>(s: S, t: &Tile, acc: [[S::F; NV]; MR]) {
    let alpha = s.splat(t.alpha);
    let keep = s.splat(if t.first { t.beta } else { 1.0 });
    let reads_c = !t.first || t.beta != 0.0;
    let (low, high) = t.activation.bounds();
    let (low, high) = (s.splat(low), s.splat(high));
    // SAFETY: all rows and columns are in the tile, and in the operands of the last block.
    unsafe {
        for (i, line) in acc.into_iter().enumerate() {
            let row = t.c.add(i * t.ldc);
            let bias = if t.last && !t.bias_row.is_null() { *t.bias_row.add(i) } else { 0.0 };
            for (v, x) in line.into_iter().enumerate() {
                let j = v * S::LANES;
                let mut x = if t.last { s.mul_add(alpha, x, s.splat(bias)) } else { s.mul(alpha, x) };
                if reads_c {
                    x = s.mul_add(keep, s.load(row.add(j)), x);
                }
                if t.last {
                    if !t.bias_col.is_null() {
                        x = s.add(x, s.load(t.bias_col.add(j)));
                    }
                    if !t.residual.is_null() {
                        x = s.add(x, s.load(t.residual.add(i * t.ld_residual + j)));
                    }
                    x = s.min(high, s.max(low, x));
                }
                s.store(row.add(j), x);
            }
        }
        if t.last && t.activation.needs_pass() {
            pass(s, t, MR);
        }
    }
}

/// `C = alpha · out (+ C, or beta · C in the first block)`.
#[inline(always)]
unsafe fn accumulate<S: Simd>(s: S, t: &Tile, rows: usize, width: usize, out: *const f32) {
    let alpha = s.splat(t.alpha);
    let keep = s.splat(if t.first { t.beta } else { 1.0 });
    let reads_c = !t.first || t.beta != 0.0;
    for i in 0..rows {
        let mut j = 0;
        while j < t.n {
            let bits = low_bits((t.n - j).min(S::LANES));
            // SAFETY: row `i`, columns `j..` within `n`, are in the tile.
            unsafe {
                let c = t.c.add(i * t.ldc + j);
                let mut x = s.mul(alpha, s.load(out.add(i * width + j)));
                if reads_c {
                    x = s.mul_add(keep, s.load_bits(c, bits), x);
                }
                s.store_bits(c, x, bits);
            }
            j += S::LANES;
        }
    }
}

/// As `accumulate`, then bias, residual and activation.
#[inline(always)]
unsafe fn finish<S: Simd>(s: S, t: &Tile, rows: usize, width: usize, out: *const f32) {
    let alpha = s.splat(t.alpha);
    let keep = s.splat(if t.first { t.beta } else { 1.0 });
    let reads_c = !t.first || t.beta != 0.0;
    let (low, high) = t.activation.bounds();
    let (low, high) = (s.splat(low), s.splat(high));
    for i in 0..rows {
        let mut bias = 0.0;
        if !t.bias_row.is_null() {
            // SAFETY: `bias_row` has one value per row.
            bias = unsafe { *t.bias_row.add(i) };
        }
        let bias = s.splat(bias);
        let mut j = 0;
        while j < t.n {
            let bits = low_bits((t.n - j).min(S::LANES));
            // SAFETY: row `i`, columns `j..` within `n`, are in the tile and the operands.
            unsafe {
                let c = t.c.add(i * t.ldc + j);
                let mut x = s.mul_add(alpha, s.load(out.add(i * width + j)), bias);
                if reads_c {
                    x = s.mul_add(keep, s.load_bits(c, bits), x);
                }
                if !t.bias_col.is_null() {
                    x = s.add(x, s.load_bits(t.bias_col.add(j), bits));
                }
                if !t.residual.is_null() {
                    x = s.add(x, s.load_bits(t.residual.add(i * t.ld_residual + j), bits));
                }
                // NaN passes: `min` and `max` give their second operand then.
                x = s.min(high, s.max(low, x));
                s.store_bits(c, x, bits);
            }
            j += S::LANES;
        }
    }
    if t.activation.needs_pass() {
        // SAFETY: passed on to the caller.
        unsafe { pass(s, t, rows) };
    }
}

/// The activation, where it is more than a clamp.
#[inline(always)]
unsafe fn pass<S: Simd>(s: S, t: &Tile, rows: usize) {
    for i in 0..rows {
        let mut j = 0;
        while j < t.n {
            let bits = low_bits((t.n - j).min(S::LANES));
            // SAFETY: row `i`, columns `j..` within `n`, are in the tile.
            unsafe {
                let c = t.c.add(i * t.ldc + j);
                let x = t.activation.apply(s, s.load_bits(c, bits));
                s.store_bits(c, x, bits);
            }
            j += S::LANES;
        }
    }
}
