//! A few rows of floats: codes are unpacked in registers, and used for all rows.

use super::pack::Blocks;
use super::{BlockShape, PANEL};
use crate::buffer::with_scratch;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::gemm::{Bias, Gemm, Lhs, MatrixView, Rhs, gemm};
use crate::panel::{Epilogue, Kind, Target};
use crate::simd::{Kernel, Simd};

pub(super) const NAME: &str = "block product";

/// Most rows that are multiplied as the codes are unpacked; with more, unpacked panels are used again.
pub const SMALL: usize = 16;
/// Multiply-adds below which a second thread costs more than it brings.
pub(super) const SERIAL: usize = 1 << 18;

/// `y = activation(x · w + bias + residual)` in floats: `x` is `m × k`, `y` `m × n`, both dense.
///
/// # Errors
/// A slice has another length than the shape, the target holds integers, or the epilogue has something for them.
pub fn blocks_gemm(exec: &Exec, x: &[f32], m: usize, w: &Blocks, epilogue: &Epilogue<'_>, y: Target<'_>) -> Result {
    let BlockShape { k, n, .. } = w.shape;
    exact(NAME, "x", x.len(), product(NAME, &[m, k])?)?;
    exact(NAME, "y", y.len(), product(NAME, &[m, n])?)?;
    epilogue.check(NAME, false, n, m * n)?;
    require(NAME, epilogue.rows.is_none(), "floats have no format")?;
    let Target::F32(y) = y else { return require(NAME, false, "the results are floats") };
    if m == 0 {
        return Ok(());
    }
    if m > SMALL {
        let residual = match epilogue.residual {
            crate::panel::Residual::None => None,
            crate::panel::Residual::F32(r) => Some(r),
            _ => return require(NAME, false, "the residual of floats is floats"),
        };
        let bias = if epilogue.bias.is_empty() { Bias::None } else { Bias::Column(epilogue.bias) };
        let g = Gemm {
            bias,
            residual,
            activation: epilogue.activation,
            ..Gemm::new(m, n, k, Lhs::View(MatrixView::row_major(x, k)), Rhs::Blocks(w))
        };
        return gemm(exec, &g, y);
    }
    let padded = w.shape.blocks() * w.shape.block;
    let blocks = w.shape.blocks();
    let out = Target::F32(y).shared();
    // Padded rows, so that the last block is as long as the others; and the sums of their blocks.
    let rows = m.next_power_of_two().min(8);
    let groups = m.div_ceil(rows);
    with_scratch(groups * rows * (padded + blocks), |scratch| {
        let (copy, sums) = scratch.split_at_mut(groups * rows * padded);
        copy.fill(0.0);
        for (to, from) in copy.chunks_exact_mut(padded).zip(x.chunks_exact(k)) {
            to[..k].copy_from_slice(from);
        }
        for (sum, block) in sums.iter_mut().zip(copy.chunks_exact(w.shape.block)) {
            *sum = block.iter().sum();
        }
        let (copy, sums) = (&*copy, &*sums);
        let panels = n.div_ceil(PANEL);
        let work = |range: std::ops::Range<usize>| {
            for p in range {
                for g in 0..groups {
                    let (row, count) = (g * rows, rows.min(m - g * rows));
                    let few = Few { w, x: &copy[row * padded..], sums: &sums[row * blocks..], rows, count, row };
                    exec.isa().dispatch(Strip { few, panel: p, epilogue, out });
                }
            }
        };
        match m * n * k < SERIAL {
            true => work(0..panels),
            false => exec.split(panels, 1, &work),
        }
    });
    Ok(())
}

/// The products of some vectors of words with as many elements of each row.
macro_rules! multiply_words {
    ($s:ident, $table:ident, $bits:ident, $codes:ident, $x:ident, $ldx:ident, $acc:ident) => {
        match $bits {
            2 => multiply_words!(@ $s $table $codes $x $ldx $acc, 0 0 1 8 2 16 3 24 4 2 5 10 6 18 7 26 8 4 9 12 10 20 11 28
                                 12 6 13 14 14 22 15 30),
            4 => multiply_words!(@ $s $table $codes $x $ldx $acc, 0 0 1 8 2 16 3 24 4 4 5 12 6 20 7 28),
            _ => {
                for code in $codes.iter_mut() {
                    *code = $s.xor_i(*code, $s.splat_i(0x8080_8080u32 as i32));
                }
                multiply_words!(@bytes $s $codes $x $ldx $acc, 0 24 1 16 2 8 3 0)
            }
        }
    };
    (@bytes $s:ident $codes:ident $x:ident $ldx:ident $acc:ident, $($i:literal $bit:literal)*) => {{$(
        for (v, &code) in $codes.iter().enumerate() {
            let w = $s.to_f32($s.sar_i::<24>($s.shl_i::<$bit>(code)));
            for (m, line) in $acc.iter_mut().enumerate() {
                line[v] = $s.mul_add($s.splat(*$x.wrapping_add(m * $ldx + $i)), w, line[v]);
            }
        }
    )*}};
    (@ $s:ident $table:ident $codes:ident $x:ident $ldx:ident $acc:ident, $($i:literal $bit:literal)*) => {{$(
        for (v, &code) in $codes.iter().enumerate() {
            let w = $s.look_up($table, $s.sar_i::<$bit>(code));
            for (m, line) in $acc.iter_mut().enumerate() {
                line[v] = $s.mul_add($s.splat(*$x.wrapping_add(m * $ldx + $i)), w, line[v]);
            }
        }
    )*}};
}

/// Rows of one pass.
struct Few<'a> {
    w: &'a Blocks,
    /// `rows` rows of whole blocks, and the sums of the blocks.
    x: &'a [f32],
    sums: &'a [f32],
    /// 1, 2, 4 or 8, and those that count.
    rows: usize,
    count: usize,
    /// Place of the first row among all.
    row: usize,
}

/// Rows by a panel.
struct Strip<'a> {
    few: Few<'a>,
    panel: usize,
    epilogue: &'a Epilogue<'a>,
    out: crate::panel::Out,
}

impl Kernel for Strip<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.few.w.shape.bits {
            2 => self.by_rows::<S, 2>(s),
            4 => self.by_rows::<S, 4>(s),
            _ => self.by_rows::<S, 8>(s),
        }
    }
}

impl Strip<'_> {
    #[inline(always)]
    fn by_rows<S: Simd, const BITS: usize>(&self, s: S) {
        // As many sums as hide the latency of an addition, and no more than there are registers.
        match self.few.rows {
            1 => self.columns::<S, BITS, 1, 4>(s),
            2 => self.columns::<S, BITS, 2, 4>(s),
            4 => self.columns::<S, BITS, 4, 4>(s),
            _ => self.columns::<S, BITS, 8, 2>(s),
        }
    }

    #[inline(always)]
    fn columns<S: Simd, const BITS: usize, const MR: usize, const NV: usize>(&self, s: S) {
        let n = self.few.w.shape.n;
        let valid = PANEL.min(n - self.panel * PANEL);
        for at in (0..valid).step_by(NV * S::LANES) {
            // SAFETY: the panel has 64 columns, `x` and `sums` have `MR` rows.
            let sums = unsafe { self.multiply::<S, BITS, MR, NV>(s, at) };
            for (m, line) in sums.iter().enumerate().take(self.few.count) {
                for (v, &sum) in line.iter().enumerate() {
                    let from = at + v * S::LANES;
                    let columns = valid.saturating_sub(from).min(S::LANES);
                    if columns == 0 {
                        continue;
                    }
                    let column = self.panel * PANEL + from;
                    let place = (self.few.row + m) * n + column;
                    debug_assert!(self.out.kind == Kind::F32);
                    // SAFETY: `check` covered the epilogue; `place` and the next `columns` are in the result.
                    unsafe {
                        let v = self.epilogue.rest(s, sum, column, place, columns);
                        let to = self.out.data.cast::<f32>().add(place);
                        s.store_bits(to, v, crate::simd::low_bits(columns));
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd, const BITS: usize, const MR: usize, const NV: usize>(
        &self,
        s: S,
        at: usize,
    ) -> [[S::F; NV]; MR] {
        let (shape, panel) = (self.few.w.shape, self.few.w.panel(self.panel));
        let (blocks, per) = (shape.blocks(), 32 / BITS);
        let (words_of_block, ldx) = (shape.block / per, blocks * shape.block);
        let table = s.table(&shape.table());
        let mut total = [[s.splat(0.0); NV]; MR];
        let mut words = panel.words.as_ptr().wrapping_add(at);
        for b in 0..blocks {
            let mut acc = [[s.splat(0.0); NV]; MR];
            let mut x = self.few.x.as_ptr().wrapping_add(b * shape.block);
            // SAFETY: the caller vouches for columns and rows; all have `blocks` blocks.
            unsafe {
                for _ in 0..words_of_block {
                    // The processor's own prefetcher stops at the end of each page.
                    s.prefetch(words.wrapping_add(2048 + 16 * PANEL));
                    let mut codes = [s.splat_i(0); NV];
                    for (v, code) in codes.iter_mut().enumerate() {
                        *code = s.to_bits(s.load(words.add(v * S::LANES)));
                    }
                    multiply_words!(s, table, BITS, codes, x, ldx, acc);
                    words = words.wrapping_add(PANEL);
                    x = x.wrapping_add(per);
                }
                for v in 0..NV {
                    let place = b * PANEL + at + v * S::LANES;
                    let scale = s.load(panel.scales.as_ptr().add(place));
                    for m in 0..MR {
                        let mut sum = acc[m][v];
                        if !panel.shifts.is_empty() {
                            let shift = s.neg(s.load(panel.shifts.as_ptr().add(place)));
                            sum = s.mul_add(s.splat(*self.few.sums.as_ptr().add(m * blocks + b)), shift, sum);
                        }
                        total[m][v] = s.mul_add(sum, scale, total[m][v]);
                    }
                }
            }
        }
        total
    }
}
