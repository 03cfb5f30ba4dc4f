//! Rows that are quantized to int8 by blocks on the way (ONNX Runtime's accuracy level 4): products of integers.
//!
//! All rows are rounded first. Then a tile of up to six rows by two vectors of columns keeps its sums of a block, and its
//! totals, in registers, and unpacks codes on the way, which costs nothing beside the products: of a block of 32, eight
//! products of four codes each are followed by one conversion, one multiplication and one multiply-add.

use super::few::{NAME, SERIAL};
use super::round::{Layout, round_rows};
use super::{BlockShape, Blocks, PANEL, Values};
use crate::buffer::{SharedMut, with_scratch};
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Avx2, Avx512, AvxVnni, Vnni};
use crate::panel::{Epilogue, Out, Target};
use crate::simd::{Kernel, Simd, low_bits};

/// Most rows of a tile.
const MOST: usize = 6;
/// Words of rounded rows that all panels of a task read again: they stay in the L2 cache.
const BAND: usize = 1 << 16;
/// The longest block whose sums fit in 32 bits: 2⁷ · 2⁷ · 2¹⁶ < 2³¹.
pub const LONGEST: usize = 1 << 16;

/// As [`blocks_gemm`](super::blocks_gemm), but with each row rounded by blocks first: `q = round_half_even(x / scale)` in −127 … 127,
/// `scale = max |x| / 127` of the block. Sums of a block are exact, `(f32(sum) · row_scale) · scale` is added block after block,
/// the product with the second scale and the sum rounded once: every tier gives the same bits. A block that holds NaN or an
/// infinity makes its row NaN.
///
/// # Errors
/// As [`blocks_gemm`](super::blocks_gemm); or blocks are longer than [`LONGEST`].
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
    require(NAME, block <= LONGEST, "blocks of rounded rows are too long")?;
    let Target::F32(y) = y else { return require(NAME, false, "the results are floats") };
    if m == 0 {
        return Ok(());
    }
    let layout = Layout::new(w.shape, forms(exec.isa()));
    let pitch = layout.pitch();
    let len = product(NAME, &[m.next_multiple_of(MOST), pitch])?;
    let (out, serial) = (Target::F32(y).shared(), m * n * k < SERIAL);
    let run = |tasks: usize, grain: usize, body: &(dyn Fn(std::ops::Range<usize>) + Sync)| match serial {
        true => body(0..tasks),
        false => exec.split(tasks, grain, body),
    };
    with_scratch(len, |scratch| {
        scratch[m * pitch..].fill(0.0);
        let rows = SharedMut::new(scratch);
        run(m, (SERIAL / 16).div_ceil(k), &|range| {
            // SAFETY: each task has rows of its own, which lie in the scratch.
            let to = unsafe { rows.slice(range.start * pitch, range.len() * pitch) };
            round_rows(exec.isa(), &x[range.start * k..range.end * k], layout, to);
        });
        let scratch = &*scratch;
        let (panels, band) = (n.div_ceil(PANEL), (BAND / pitch / MOST).max(1) * MOST);
        run(panels * m.div_ceil(band), 1, &|range| {
            for task in range {
                let (panel, first) = (task % panels, task / panels * band);
                for row in (first..m.min(first + band)).step_by(MOST) {
                    let rows = (m - row).min(MOST);
                    let few = Few { w, x: &scratch[row * pitch..], layout, rows, row, panel, epilogue, out };
                    dispatch(exec.isa(), few);
                }
            }
        });
    });
    Ok(())
}

/// A few rows by a panel.
struct Few<'a> {
    w: &'a Blocks,
    /// Rounded rows, padded to a tile's height.
    x: &'a [f32],
    layout: Layout,
    rows: usize,
    /// Place of the first row among all.
    row: usize,
    panel: usize,
    epilogue: &'a Epilogue<'a>,
    out: Out,
}

/// Words that hold four elements of a row, as the tier multiplies them.
fn forms(isa: Isa) -> usize {
    #[cfg(target_arch = "x86_64")]
    if Vnni::new(isa).is_some() || AvxVnni::new(isa).is_some() {
        return 1;
    }
    let _ = isa;
    2
}

fn dispatch(isa: Isa, job: Few<'_>) {
    #[cfg(target_arch = "x86_64")]
    if let (Some(vnni), Some(token)) = (Vnni::new(isa), Avx512::new(isa)) {
        // SAFETY: the tokens prove the features.
        return unsafe { x86::run(token, vnni, job) };
    }
    #[cfg(target_arch = "x86_64")]
    if let (Some(vnni), Some(token)) = (AvxVnni::new(isa), Avx2::new(isa)) {
        // SAFETY: as above.
        return unsafe { x86::run256(token, vnni, job) };
    }
    isa.dispatch(job);
}

/// Dot products of four codes (u8) with four elements of a row (i8), exact on every tier.
trait Dot<S: Simd>: Copy {
    /// Four elements of a row, in each lane.
    type Row: Copy;
    /// Words that they take.
    const FORMS: usize;
    /// # Safety
    /// `x` covers the forms.
    unsafe fn row(self, s: S, x: *const f32) -> Self::Row;
    fn dot(self, s: S, sum: S::I, codes: S::I, row: Self::Row) -> S::I;
}

/// Products of 16-bit halves: bytes 0 and 2, then 1 and 3.
#[derive(Clone, Copy)]
struct Halves;

impl<S: Simd> Dot<S> for Halves {
    type Row = [S::I; 2];
    const FORMS: usize = 2;

    #[inline(always)]
    unsafe fn row(self, s: S, x: *const f32) -> [S::I; 2] {
        // SAFETY: passed on to the caller.
        unsafe { [s.to_bits(s.splat(*x)), s.to_bits(s.splat(*x.add(1)))] }
    }

    #[inline(always)]
    fn dot(self, s: S, sum: S::I, codes: S::I, [even, odd]: [S::I; 2]) -> S::I {
        let mask = s.splat_i(0x00ff_00ff);
        let a = s.madd_i(s.and_i(codes, mask), even);
        let b = s.madd_i(s.and_i(s.sar_i::<8>(codes), mask), odd);
        s.add_i(sum, s.add_i(a, b))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Dot, Few};
    use crate::isa::{Avx2, Avx512, AvxVnni, Vnni};
    use std::arch::x86_64::*;

    /// AVX-512 VNNI.
    #[derive(Clone, Copy)]
    struct Bytes(#[allow(dead_code)] Vnni); // The proof.

    impl Dot<Avx512> for Bytes {
        type Row = __m512i;
        const FORMS: usize = 1;

        #[inline(always)]
        unsafe fn row(self, _: Avx512, x: *const f32) -> __m512i {
            // SAFETY: the token proves the instruction; the caller vouches for the word.
            unsafe { _mm512_set1_epi32(*x.cast::<i32>()) }
        }

        #[inline(always)]
        fn dot(self, _: Avx512, sum: __m512i, codes: __m512i, row: __m512i) -> __m512i {
            // SAFETY: the token proves the instruction.
            unsafe { _mm512_dpbusd_epi32(sum, codes, row) }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx2,fma,f16c,bmi2")]
    pub(super) fn run(token: Avx512, vnni: Vnni, job: Few<'_>) {
        job.run_with(token, Bytes(vnni));
    }

    /// AVX-VNNI.
    #[derive(Clone, Copy)]
    struct Bytes256(#[allow(dead_code)] AvxVnni); // The proof.

    impl Dot<Avx2> for Bytes256 {
        type Row = __m256i;
        const FORMS: usize = 1;

        #[inline(always)]
        unsafe fn row(self, _: Avx2, x: *const f32) -> __m256i {
            // SAFETY: the token proves the instruction; the caller vouches for the word.
            unsafe { _mm256_set1_epi32(*x.cast::<i32>()) }
        }

        #[inline(always)]
        fn dot(self, _: Avx2, sum: __m256i, codes: __m256i, row: __m256i) -> __m256i {
            // SAFETY: the token proves the instruction.
            unsafe { _mm256_dpbusd_avx_epi32(sum, codes, row) }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c,bmi2,avxvnni")]
    pub(super) fn run256(token: Avx2, vnni: AvxVnni, job: Few<'_>) {
        job.run_with(token, Bytes256(vnni));
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

    /// Tiles as high as their sums fit into registers.
    #[inline(always)]
    fn by_rows<S: Simd, D: Dot<S>, const BITS: usize>(&self, s: S, dot: D) {
        let wide = S::LANES == 16;
        let most = if wide { MOST } else { 2 };
        for from in (0..self.rows).step_by(most) {
            match (self.rows - from).min(most) {
                1 => self.columns::<S, D, BITS, 1, 4>(s, dot, from),
                2 if wide => self.columns::<S, D, BITS, 2, 4>(s, dot, from),
                2 => self.columns::<S, D, BITS, 2, 2>(s, dot, from),
                3 | 4 => self.columns::<S, D, BITS, 4, 2>(s, dot, from),
                _ => self.columns::<S, D, BITS, MOST, 2>(s, dot, from),
            }
        }
    }

    #[inline(always)]
    fn columns<S: Simd, D: Dot<S>, const BITS: usize, const MR: usize, const NV: usize>(
        &self,
        s: S,
        dot: D,
        from: usize,
    ) {
        let n = self.w.shape.n;
        let valid = PANEL.min(n - self.panel * PANEL);
        for at in (0..valid).step_by(NV * S::LANES) {
            // SAFETY: the panel has 64 columns, `x` has `MR` rows from `from` on: they are padded.
            let sums = unsafe { self.multiply::<S, D, BITS, MR, NV>(s, dot, from, at) };
            for (m, line) in sums.iter().enumerate().take(self.rows - from) {
                for (v, &sum) in line.iter().enumerate() {
                    let first = at + v * S::LANES;
                    let columns = valid.saturating_sub(first).min(S::LANES);
                    if columns > 0 {
                        let column = self.panel * PANEL + first;
                        let place = (self.row + from + m) * n + column;
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
    unsafe fn multiply<S: Simd, D: Dot<S>, const BITS: usize, const MR: usize, const NV: usize>(
        &self,
        s: S,
        dot: D,
        from: usize,
        at: usize,
    ) -> [[S::F; NV]; MR] {
        let (shape, panel, pitch) = (self.w.shape, self.w.panel(self.panel), self.layout.pitch());
        let rows = self.x.as_ptr().wrapping_add(from * pitch);
        let (fields, mask) = (8 / BITS, s.splat_i((0x0101_0101u32 * ((1 << BITS) - 1)) as i32));
        let (steps, mut words) = (shape.block * BITS / 32, panel.words.as_ptr().wrapping_add(at));
        let mut total = [[s.splat(0.0); NV]; MR];
        let mut x = rows;
        for b in 0..shape.blocks() {
            let mut sums = [[s.splat_i(0); NV]; MR];
            // SAFETY: the caller vouches for columns and rows; all have as many blocks.
            unsafe {
                // What the code in the middle takes off.
                for (m, line) in sums.iter_mut().enumerate() {
                    let start = s.to_bits(s.splat(*rows.add(m * pitch + self.layout.starts() + b)));
                    *line = [start; NV];
                }
                for _ in 0..steps {
                    if MR <= 2 {
                        // The processor's own prefetcher stops at the end of each page.
                        s.prefetch(words.wrapping_add(2048 + 16 * PANEL));
                    }
                    let mut codes = [s.splat_i(0); NV];
                    for (v, codes) in codes.iter_mut().enumerate() {
                        *codes = s.to_bits(s.load(words.add(v * S::LANES)));
                    }
                    for _ in 0..fields {
                        let mut low = codes;
                        low.iter_mut().for_each(|codes| *codes = s.and_i(*codes, mask));
                        for (m, line) in sums.iter_mut().enumerate() {
                            let row = dot.row(s, x.wrapping_add(m * pitch));
                            for (sum, &codes) in line.iter_mut().zip(&low) {
                                *sum = dot.dot(s, *sum, codes, row);
                            }
                        }
                        for codes in &mut codes {
                            *codes = match BITS {
                                2 => s.sar_i::<2>(*codes),
                                4 => s.sar_i::<4>(*codes),
                                _ => *codes,
                            };
                        }
                        x = x.wrapping_add(D::FORMS);
                    }
                    words = words.wrapping_add(PANEL);
                }
                for v in 0..NV {
                    let place = b * PANEL + at + v * S::LANES;
                    let scale = s.load(panel.scales.as_ptr().add(place));
                    for m in 0..MR {
                        let row = rows.add(m * pitch + b);
                        let mut sum = s.to_f32(sums[m][v]);
                        if !panel.shifts.is_empty() {
                            let shift = s.neg(s.load(panel.shifts.as_ptr().add(place)));
                            sum = s.mul_add(s.splat(*row.add(self.layout.sums())), shift, sum);
                        }
                        let sum = s.mul(sum, s.splat(*row.add(self.layout.scales())));
                        total[m][v] = s.mul_add(sum, scale, total[m][v]);
                    }
                }
            }
        }
        total
    }
}
