//! Transposes of matrices whose rows, and those of the result, are contiguous, in blocks that the first cache holds.

use std::ops::Range;

use super::Element;
use crate::exec::Exec;
use crate::simd::{Kernel, Simd};

/// A block: rows or columns along the shorter and the longer side.
pub(crate) const NARROW: usize = 64;
pub(crate) const WIDE: usize = 256;
/// Elements that one task moves at least.
const GRAIN: usize = 1 << 15;
/// Bytes of a line of the cache.
const LINE: usize = 64;
/// Side of a tile of bytes.
const BYTES: usize = 16;

/// Calls `body(matrix, rows, columns)` for blocks of `n` matrices of `rows × columns`: at most [`WIDE`] along the longer
/// side and [`NARROW`] along the other.
pub(crate) fn blocks(
    exec: &Exec,
    [n, rows, columns]: [usize; 3],
    body: &(dyn Fn(usize, Range<usize>, Range<usize>) + Sync),
) {
    if n * rows * columns == 0 {
        return;
    }
    let (high, wide) = if rows < columns { (NARROW, WIDE) } else { (WIDE, NARROW) };
    let (down, across) = (rows.div_ceil(high), columns.div_ceil(wide));
    let size = high.min(rows) * wide.min(columns);
    exec.split(n * down * across, GRAIN.div_ceil(size), &|range| {
        for index in range {
            let (matrix, block) = (index / (down * across), index % (down * across));
            // Neighbours that write to the same rows of the result follow each other.
            let (i, j) = (block % down, block / down);
            body(matrix, i * high..rows.min((i + 1) * high), j * wide..columns.min((j + 1) * wide));
        }
    });
}

/// The transpose of a block: `x` covers `rows × columns` at `ld_x`, `y` the transpose at `ld_y`, of which no other task writes an
/// element.
pub(crate) struct Turn<T> {
    pub x: *const T,
    pub ld_x: usize,
    pub rows: usize,
    pub columns: usize,
    pub y: *mut T,
    pub ld_y: usize,
}

impl<T: Element> Kernel for Turn<T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the struct's contract.
        unsafe {
            match (self.rows, self.columns) {
                (1, _) => self.few_rows::<1>(),
                (2, _) => self.few_rows::<2>(),
                (3, _) => self.few_rows::<3>(),
                (4, _) => self.few_rows::<4>(),
                (_, 1) => self.few_columns::<1>(),
                (_, 2) => self.few_columns::<2>(),
                (_, 3) => self.few_columns::<3>(),
                (_, 4) => self.few_columns::<4>(),
                _ if size_of::<T>() == 1 => self.tiles(s, BYTES),
                _ if size_of::<T>() == 4 => self.tiles(s, S::LANES),
                _ => self.plain(),
            }
        }
    }
}

impl<T: Element> Turn<T> {
    #[inline(always)]
    unsafe fn few_rows<const N: usize>(self) {
        for c in 0..self.columns {
            for r in 0..N {
                // SAFETY: the struct's contract.
                unsafe { *self.y.add(c * self.ld_y + r) = *self.x.add(r * self.ld_x + c) };
            }
        }
    }

    #[inline(always)]
    unsafe fn few_columns<const N: usize>(self) {
        for r in 0..self.rows {
            for c in 0..N {
                // SAFETY: the struct's contract.
                unsafe { *self.y.add(c * self.ld_y + r) = *self.x.add(r * self.ld_x + c) };
            }
        }
    }

    #[inline(always)]
    unsafe fn plain(self) {
        for c in 0..self.columns {
            for r in 0..self.rows {
                // SAFETY: the struct's contract.
                unsafe { *self.y.add(c * self.ld_y + r) = *self.x.add(r * self.ld_x + c) };
            }
        }
    }

    /// Square tiles; the last ones overlap those before them.
    ///
    /// Rows far apart often share a set of the cache, from where their lines are gone before the next tile: where those of
    /// `x` are farther apart, tiles side by side use up their lines of `x` before others come, else those of `y`.
    #[inline(always)]
    unsafe fn tiles<S: Simd>(&self, s: S, side: usize) {
        let (high, wide) = (self.rows.min(side), self.columns.min(side));
        let line = (LINE / size_of::<T>()).max(side);
        // SAFETY: all tiles lie in both matrices.
        unsafe {
            if self.ld_x > self.ld_y {
                for first in (0..self.columns).step_by(line) {
                    let end = self.columns.min(first + line);
                    for r in (0..self.rows).step_by(side) {
                        for c in (first..end).step_by(side) {
                            self.tile(s, side, (r.min(self.rows - high), c.min(self.columns - wide)), (high, wide));
                        }
                    }
                }
            } else {
                for first in (0..self.rows).step_by(line) {
                    let end = self.rows.min(first + line);
                    for c in (0..self.columns).step_by(side) {
                        for r in (first..end).step_by(side) {
                            self.tile(s, side, (r.min(self.rows - high), c.min(self.columns - wide)), (high, wide));
                        }
                    }
                }
            }
        }
    }

    /// The tile of `high × wide` elements at row `r` and column `c`, of at most `side` each.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, s: S, side: usize, (r, c): (usize, usize), (high, wide): (usize, usize)) {
        let (ld_x, ld_y) = (self.ld_x, self.ld_y);
        let (x, y) = (self.x.wrapping_add(r * ld_x + c), self.y.wrapping_add(c * ld_y + r));
        let whole = (high, wide) == (side, side);
        // SAFETY: passed on to the caller. With a size that the compiler knows, no masks are made.
        unsafe {
            match (size_of::<T>(), whole) {
                (1, true) => s.transpose_bytes(x.cast(), ld_x, BYTES, BYTES, y.cast(), ld_y),
                (1, false) => s.transpose_bytes(x.cast(), ld_x, high, wide, y.cast(), ld_y),
                // Vector moves keep every bit, so any 4-byte element may pass as f32.
                (_, true) => s.transpose_tile(x.cast(), ld_x, S::LANES, S::LANES, y.cast(), ld_y),
                (_, false) => s.transpose_tile(x.cast(), ld_x, high, wide, y.cast(), ld_y),
            }
        }
    }
}
