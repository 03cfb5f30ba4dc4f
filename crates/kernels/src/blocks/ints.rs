//! Rows that are quantized to int8 by blocks on the way (ONNX Runtime's accuracy level 4): products of integers.

use super::few::{NAME, SERIAL};
use super::{BlockShape, Blocks, PANEL, Values};
use crate::buffer::with_scratch;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Avx512, Vnni};
use crate::panel::{Epilogue, Out, Target};
use crate::simd::{Kernel, Simd, low_bits};

/// Words of a step of four rows' elements: as bytes, and the even and the odd ones as halves.
const FORMS: usize = 3;
/// Most rows of a pass.
const MOST: usize = 4;

/// As [`blocks_gemm`](super::blocks_gemm), but with each row rounded by blocks first: `q = round_half_even(x / scale)` in −127 … 127,
/// `scale = max |x| / 127` of the block. Sums of a block are exact; every tier gives the same bits.
///
/// # Errors
/// As [`blocks_gemm`](super::blocks_gemm).
pub fn blocks_gemm_int8(
    exec: &Exec,
    x: &[f32],
    m: usize,
    w: &Blocks,
    epilogue: &Epilogue<'_>,
    y: Target<'_>,
) -> Result {
    let BlockShape { k, n, block, .. } = w.shape;
    exact(NAME, "x", x.len(), product(NAME, &[m, k])?)?;
    exact(NAME, "y", y.len(), product(NAME, &[m, n])?)?;
    epilogue.check(NAME, false, n, m * n)?;
    require(NAME, epilogue.rows.is_none(), "floats have no format")?;
    require(NAME, w.shape.values == Values::Integers, "codes of rounded rows are integers")?;
    let Target::F32(y) = y else { return require(NAME, false, "the results are floats") };
    if m == 0 {
        return Ok(());
    }
    let blocks = w.shape.blocks();
    // Of each row: the words, then the scales and the sums of its blocks.
    let words = blocks * block / 4 * FORMS;
    let pitch = words + 2 * blocks;
    let rows = m.next_multiple_of(if m > 2 { MOST } else { m });
    product(NAME, &[rows, pitch])?;
    let out = Target::F32(y).shared();
    with_scratch(rows * pitch, |scratch| {
        scratch[m * pitch..].fill(0.0);
        for (to, from) in scratch.chunks_exact_mut(pitch).zip(x.chunks_exact(k)) {
            let (words, rest) = to.split_at_mut(words);
            let (scales, sums) = rest.split_at_mut(blocks);
            for (b, words) in words.chunks_exact_mut(block / 4 * FORMS).enumerate() {
                let part = &from[b * block..k.min((b + 1) * block)];
                (scales[b], sums[b]) = round(part, words);
            }
        }
        let scratch = &*scratch;
        let panels = n.div_ceil(PANEL);
        let work = |range: std::ops::Range<usize>| {
            for panel in range {
                for row in (0..m).step_by(MOST) {
                    let rows = (m - row).min(MOST);
                    let few = Few { w, x: &scratch[row * pitch..], pitch, rows, row, panel, epilogue, out };
                    dispatch(exec.isa(), few);
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

/// Rounds a block into words; gives its scale, and the sum of what it rounded to.
fn round(x: &[f32], words: &mut [f32]) -> (f32, f32) {
    // `max` passes over NaN.
    let most = x.iter().fold(0f32, |most, v| most.max(v.abs()));
    let scale = if most.is_finite() { most / 127.0 } else { 1.0 };
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut sum = 0;
    for (i, words) in words.chunks_exact_mut(FORMS).enumerate() {
        let code = |j: usize| x.get(4 * i + j).map_or(0, |v| (v * inverse).round_ties_even() as i8);
        let q = [code(0), code(1), code(2), code(3)];
        sum += q.iter().map(|&q| i32::from(q)).sum::<i32>();
        let halves = |a: i8, b: i8| f32::from_bits(i32::from(a) as u32 & 0xffff | (i32::from(b) as u32) << 16);
        words[0] = f32::from_bits(u32::from_le_bytes(q.map(|q| q as u8)));
        (words[1], words[2]) = (halves(q[0], q[2]), halves(q[1], q[3]));
    }
    (scale, sum as f32)
}

/// A few rows by a panel.
struct Few<'a> {
    w: &'a Blocks,
    x: &'a [f32],
    /// Words of a row.
    pitch: usize,
    rows: usize,
    /// Place of the first row among all.
    row: usize,
    panel: usize,
    epilogue: &'a Epilogue<'a>,
    out: Out,
}

fn dispatch(isa: Isa, job: Few<'_>) {
    #[cfg(target_arch = "x86_64")]
    if let (Some(vnni), Some(token)) = (Vnni::new(isa), Avx512::new(isa)) {
        // SAFETY: the tokens prove the features.
        return unsafe { x86::run(token, vnni, job) };
    }
    isa.dispatch(job);
}

/// Dot products of four codes (u8) with four elements of a row (i8), exact on every tier.
trait Dot<S: Simd>: Copy {
    /// # Safety
    /// `x` covers the forms of a step.
    unsafe fn dot(self, s: S, sum: S::I, codes: S::I, x: *const f32) -> S::I;
}

/// Products of 16-bit halves: bytes 0 and 2, then 1 and 3.
#[derive(Clone, Copy)]
struct Halves;

impl<S: Simd> Dot<S> for Halves {
    #[inline(always)]
    unsafe fn dot(self, s: S, sum: S::I, codes: S::I, x: *const f32) -> S::I {
        let mask = s.splat_i(0x00ff_00ff);
        // SAFETY: passed on to the caller.
        let (even, odd) = unsafe { (s.to_bits(s.splat(*x.add(1))), s.to_bits(s.splat(*x.add(2)))) };
        let a = s.madd_i(s.and_i(codes, mask), even);
        let b = s.madd_i(s.and_i(s.sar_i::<8>(codes), mask), odd);
        s.add_i(sum, s.add_i(a, b))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Dot, Few};
    use crate::isa::{Avx512, Vnni};
    use std::arch::x86_64::*;

    /// AVX-512 VNNI.
    #[derive(Clone, Copy)]
    struct Bytes(#[allow(dead_code)] Vnni); // The proof.

    impl Dot<Avx512> for Bytes {
        #[inline(always)]
        unsafe fn dot(self, _: Avx512, sum: __m512i, codes: __m512i, x: *const f32) -> __m512i {
            // SAFETY: the token proves the instruction; the caller vouches for the word.
            unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(*x.cast::<i32>())) }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx2,fma,f16c,bmi2")]
    pub(super) fn run(token: Avx512, vnni: Vnni, job: Few<'_>) {
        job.run_with(token, Bytes(vnni));
    }
}

impl Kernel for Few<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.run_with(s, Halves);
    }
}

impl Few<'_> {
    #[inline(always)]
    fn run_with<S: Simd, D: Dot<S>>(self, s: S, dot: D) {
        match self.w.shape.bits {
            2 => self.by_rows::<S, D, 2>(s, dot),
            4 => self.by_rows::<S, D, 4>(s, dot),
            _ => self.by_rows::<S, D, 8>(s, dot),
        }
    }

    #[inline(always)]
    fn by_rows<S: Simd, D: Dot<S>, const BITS: usize>(&self, s: S, dot: D) {
        match self.rows {
            1 => self.columns::<S, D, BITS, 1>(s, dot),
            2 => self.columns::<S, D, BITS, 2>(s, dot),
            _ => self.columns::<S, D, BITS, MOST>(s, dot),
        }
    }

    #[inline(always)]
    fn columns<S: Simd, D: Dot<S>, const BITS: usize, const MR: usize>(&self, s: S, dot: D) {
        let n = self.w.shape.n;
        let valid = PANEL.min(n - self.panel * PANEL);
        for at in (0..valid).step_by(4 * S::LANES) {
            // SAFETY: the panel has 64 columns, `x` has `MR` rows.
            let sums = unsafe { self.multiply::<S, D, BITS, MR>(s, dot, at) };
            for (m, line) in sums.iter().enumerate().take(self.rows) {
                for (v, &sum) in line.iter().enumerate() {
                    let from = at + v * S::LANES;
                    let columns = valid.saturating_sub(from).min(S::LANES);
                    if columns > 0 {
                        let column = self.panel * PANEL + from;
                        let place = (self.row + m) * n + column;
                        // SAFETY: `check` covered the epilogue; `place` and the next `columns` are in the result.
                        unsafe {
                            let v = self.epilogue.rest(s, sum, column, place, columns);
                            s.store_bits(self.out.data.cast::<f32>().add(place), v, low_bits(columns));
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd, D: Dot<S>, const BITS: usize, const MR: usize>(
        &self,
        s: S,
        dot: D,
        at: usize,
    ) -> [[S::F; 4]; MR] {
        let (shape, panel) = (self.w.shape, self.w.panel(self.panel));
        let (blocks, words_of_block) = (shape.blocks(), shape.block * BITS / 32);
        let (fields, mask) = (8 / BITS, s.splat_i((0x0101_0101u32 * ((1 << BITS) - 1)) as i32));
        let middle = (1 << (BITS - 1)) as f32;
        let scales_at = blocks * shape.block / 4 * FORMS;
        let mut total = [[s.splat(0.0); 4]; MR];
        let mut words = panel.words.as_ptr().wrapping_add(at);
        for b in 0..blocks {
            let mut acc = [[s.splat_i(0); 4]; MR];
            let mut x = self.x.as_ptr().wrapping_add(b * shape.block / 4 * FORMS);
            // SAFETY: the caller vouches for columns and rows; all have `blocks` blocks.
            unsafe {
                for _ in 0..words_of_block {
                    // The processor's own prefetcher stops at the end of each page.
                    s.prefetch(words.wrapping_add(2048 + 16 * PANEL));
                    for v in 0..4 {
                        let mut codes = s.to_bits(s.load(words.add(v * S::LANES)));
                        for f in 0..fields {
                            for (m, line) in acc.iter_mut().enumerate() {
                                let x = x.wrapping_add(m * self.pitch + f * FORMS);
                                line[v] = dot.dot(s, line[v], s.and_i(codes, mask), x);
                            }
                            codes = match BITS {
                                2 => s.sar_i::<2>(codes),
                                4 => s.sar_i::<4>(codes),
                                _ => codes,
                            };
                        }
                    }
                    words = words.wrapping_add(PANEL);
                    x = x.wrapping_add(fields * FORMS);
                }
                for m in 0..MR {
                    let row = self.x.as_ptr().wrapping_add(m * self.pitch + scales_at + b);
                    let (row_scale, row_sum) = (s.splat(*row), *row.add(blocks));
                    for v in 0..4 {
                        let place = b * PANEL + at + v * S::LANES;
                        let scale = s.mul(s.load(panel.scales.as_ptr().add(place)), row_scale);
                        // Exact: both are integers below 2²⁴ in blocks of up to 512 codes of 4 bits.
                        let mut sum = s.sub(s.to_f32(acc[m][v]), s.splat(middle * row_sum));
                        if !panel.shifts.is_empty() {
                            let shift = s.neg(s.load(panel.shifts.as_ptr().add(place)));
                            sum = s.mul_add(s.splat(row_sum), shift, sum);
                        }
                        total[m][v] = s.mul_add(sum, scale, total[m][v]);
                    }
                }
            }
        }
        total
    }
}
