//! 8-bit integers: four rows of the image are interleaved, so that a 32-bit lane holds four
//! taps of its channel; a column of the window is then a dot product of four bytes, and
//! the same words serve several rows of the result, whose weights are shifted.

use std::ops::Range;

use super::finish::{Finish, TOGETHER, is_plain};
use super::{BLOCK, LANES, NAME};
use crate::buffer::{Buffer, with_scratch};
use crate::conv::Conv2dParams;
use crate::error::{Result, product, require};
use crate::exec::Exec;
use crate::isa::{AvxVnni, Isa, Vnni};
use crate::panel::{Epilogue, Out, Rows};
use crate::simd::{Kernel, Simd, low_bits};

/// Multiply-adds that one task takes at least.
const GRAIN: usize = 1 << 17;
/// Most words of interleaved rows that a task holds.
const MAX_WORDS: usize = 1 << 27;
/// Pixels whose sums are kept in registers.
const PIXELS: usize = 8;

/// Whether the tier has dot products of bytes.
pub(super) fn multiplies_bytes(isa: Isa) -> bool {
    Vnni::new(isa).is_some() || AvxVnni::new(isa).is_some()
}

/// How rows of the image and of the result are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Rows of the result that share interleaved rows.
    rows: usize,
    /// Groups of four rows of the image.
    quads: usize,
    kh: usize,
    kw: usize,
}

impl Plan {
    pub fn new(p: &Conv2dParams) -> Plan {
        let quads = p.kh.div_ceil(4);
        // Rows of the result that the spare rows of the last group allow.
        let shared = (p.strides[0], p.dilations[0]) == (1, 1);
        Plan { rows: if shared { 4 * quads - p.kh + 1 } else { 1 }, quads, kh: p.kh, kw: p.kw }
    }

    /// The groups of which row `i` of the result uses a part.
    fn quads_of(&self, i: usize) -> Range<usize> {
        i / 4..(i + self.kh - 1) / 4 + 1
    }

    /// Words of a channel in front of the weights of row `i`.
    fn words_before(&self, i: usize) -> usize {
        (0..i).map(|i| self.quads_of(i).len() * self.kw).sum()
    }

    /// The weights by row of the result, group, column of the window; then by channel a word
    /// of four bytes, or two planes of words of two 16-bit integers (taps 0 and 2, 1 and 3).
    pub fn pack(
        &self,
        p: &Conv2dParams,
        padded: usize,
        bytes: bool,
        at: &dyn Fn(usize, usize) -> i32,
    ) -> Result<Buffer> {
        let planes = if bytes { 1 } else { 2 };
        let mut data = Buffer::lasting(product(NAME, &[self.words_before(self.rows), planes, padded])?);
        let mut words = data.chunks_exact_mut(padded.max(1));
        for i in 0..self.rows {
            for quad in self.quads_of(i) {
                for kx in 0..self.kw {
                    let tap = |c: usize, k: usize| {
                        let row = (4 * quad + k).wrapping_sub(i);
                        if row < self.kh { at(c, row * self.kw + kx) } else { 0 }
                    };
                    for plane in 0..planes {
                        let Some(row) = words.next() else { continue };
                        for (c, word) in row[..p.c].iter_mut().enumerate() {
                            let byte = |k: usize| u32::from(tap(c, k) as i8 as u8) << (8 * k);
                            let half = |k: usize| u32::from(tap(c, k) as i16 as u16);
                            let all = (0..4).fold(0, |word, k| word | byte(k));
                            let pair = half(plane) | half(plane + 2) << 16;
                            *word = f32::from_bits(if bytes { all } else { pair });
                        }
                    }
                }
            }
        }
        Ok(data)
    }
}

/// The image and the shape of the result.
pub(super) struct Image<'a> {
    pub p: &'a Conv2dParams,
    pub out: [usize; 2],
    pub data: *const u8,
    /// A pixel of padding, as in the image.
    pub pad: [u8; BLOCK],
    /// What makes the image's bytes unsigned.
    pub flip: u8,
    /// Columns that the windows reach.
    reach: usize,
}

// SAFETY: only read, while the slice that it came from is borrowed.
unsafe impl Sync for Image<'_> {}

impl<'a> Image<'a> {
    pub fn new(p: &'a Conv2dParams, out: [usize; 2], x: &Rows<'_>, pad: i32) -> Result<Image<'a>> {
        let reach = (out[1] - 1) * p.strides[1] + (p.kw - 1) * p.dilations[1] + 1;
        let words = product(NAME, &[reach, p.kh.div_ceil(4), BLOCK])?;
        require(NAME, words <= MAX_WORDS, "a row with its padding has over a million columns")?;
        Ok(Image { p, out, data: x.ptr(), pad: [pad as u8; BLOCK], flip: x.flip(), reach })
    }
}

pub(super) fn run(
    exec: &Exec,
    image: &Image<'_>,
    (plan, bytes): (Plan, bool),
    weights: &[f32],
    epilogue: &Epilogue<'_>,
    out: Out,
) {
    let (p, [oh, ow]) = (image.p, image.out);
    let (down, across) = (oh.div_ceil(plan.rows), p.c.div_ceil(BLOCK));
    let work = (plan.rows * ow * BLOCK.min(p.c)).saturating_mul(p.kh * p.kw);
    exec.split(p.n * down * across, GRAIN / work.max(1) + 1, &|range| {
        let width = BLOCK.min(p.c.next_multiple_of(LANES));
        let (words, sums) = (image.reach * plan.quads * width, ow * LANES);
        with_scratch(words + sums, |scratch| {
            let words_at = scratch.as_mut_ptr().cast::<i32>();
            for index in range.clone() {
                let (row, block) = (index / across, index % across);
                let first = block * BLOCK;
                let channels = BLOCK.min(p.c - first);
                let job = Block {
                    image,
                    plan,
                    weights,
                    epilogue,
                    out,
                    n: row / down,
                    oy: row % down * plan.rows,
                    first,
                    channels,
                    width: channels.next_multiple_of(LANES),
                    words: words_at,
                    sums: words_at.wrapping_add(words),
                };
                dispatch(exec.isa(), job, bytes);
            }
        });
    });
}

fn dispatch(isa: Isa, job: Block<'_>, bytes: bool) {
    #[cfg(target_arch = "x86_64")]
    if let (true, Some(vnni), Some(token)) = (bytes, Vnni::new(isa), crate::isa::Avx512::new(isa)) {
        // SAFETY: the tokens prove the features.
        return unsafe { x86::run(token, vnni, job) };
    }
    #[cfg(target_arch = "x86_64")]
    if let (true, Some(vnni), Some(token)) = (bytes, AvxVnni::new(isa), crate::isa::Avx2::new(isa)) {
        // SAFETY: as above.
        return unsafe { x86::run256(token, vnni, job) };
    }
    debug_assert!(!bytes);
    isa.dispatch(job);
}

/// Dot products of four unsigned bytes with weights, exact on every tier.
trait Dot<S: Simd>: Copy {
    /// Weights of a vector of channels.
    type Weights: Copy;
    /// Words of a channel.
    const PLANES: usize;
    /// # Safety
    /// `p` covers a vector in each plane, `padded` apart.
    unsafe fn weights(self, s: S, p: *const f32, padded: usize) -> Self::Weights;
    fn dot(self, s: S, sum: S::I, x: S::I, w: Self::Weights) -> S::I;
}

/// Products of 16-bit halves: bytes 0 and 2, then 1 and 3.
#[derive(Clone, Copy)]
struct Halves;

impl<S: Simd> Dot<S> for Halves {
    type Weights = (S::I, S::I);
    const PLANES: usize = 2;
    #[inline(always)]
    unsafe fn weights(self, s: S, p: *const f32, padded: usize) -> (S::I, S::I) {
        // SAFETY: passed on to the caller.
        unsafe { (s.to_bits(s.load(p)), s.to_bits(s.load(p.add(padded)))) }
    }
    #[inline(always)]
    fn dot(self, s: S, sum: S::I, x: S::I, (even, odd): (S::I, S::I)) -> S::I {
        let mask = s.splat_i(0x00ff_00ff);
        let a = s.madd_i(s.and_i(x, mask), even);
        let b = s.madd_i(s.and_i(s.sar_i::<8>(x), mask), odd);
        s.add_i(sum, s.add_i(a, b))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Block, Dot};
    use crate::isa::{Avx2, Avx512, AvxVnni, Vnni};
    use std::arch::x86_64::*;

    /// AVX-512 VNNI.
    #[derive(Clone, Copy)]
    struct Bytes(#[allow(dead_code)] Vnni); // The proof.

    impl Dot<Avx512> for Bytes {
        type Weights = __m512i;
        const PLANES: usize = 1;
        #[inline(always)]
        unsafe fn weights(self, _: Avx512, p: *const f32, _: usize) -> __m512i {
            // SAFETY: the token proves the instruction; the caller vouches for the memory.
            unsafe { _mm512_loadu_si512(p.cast()) }
        }
        #[inline(always)]
        fn dot(self, _: Avx512, sum: __m512i, x: __m512i, w: __m512i) -> __m512i {
            // SAFETY: the token proves the instruction.
            unsafe { _mm512_dpbusd_epi32(sum, x, w) }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx2,fma,f16c,bmi2,popcnt")]
    pub(super) fn run(token: Avx512, vnni: Vnni, job: Block<'_>) {
        job.run_with(token, Bytes(vnni));
    }

    /// AVX-VNNI.
    #[derive(Clone, Copy)]
    struct Bytes256(#[allow(dead_code)] AvxVnni); // The proof.

    impl Dot<Avx2> for Bytes256 {
        type Weights = __m256i;
        const PLANES: usize = 1;
        #[inline(always)]
        unsafe fn weights(self, _: Avx2, p: *const f32, _: usize) -> __m256i {
            // SAFETY: the token proves the instruction; the caller vouches for the memory.
            unsafe { _mm256_loadu_si256(p.cast()) }
        }
        #[inline(always)]
        fn dot(self, _: Avx2, sum: __m256i, x: __m256i, w: __m256i) -> __m256i {
            // SAFETY: the token proves the instruction.
            unsafe { _mm256_dpbusd_avx_epi32(sum, x, w) }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt,avxvnni")]
    pub(super) fn run256(token: Avx2, vnni: AvxVnni, job: Block<'_>) {
        job.run_with(token, Bytes256(vnni));
    }
}

/// A block of channels of a group of output rows; no other task writes it.
struct Block<'a> {
    image: &'a Image<'a>,
    plan: Plan,
    weights: &'a [f32],
    epilogue: &'a Epilogue<'a>,
    out: Out,
    n: usize,
    /// First output row.
    oy: usize,
    /// First channel, channels, and that padded to whole vectors.
    first: usize,
    channels: usize,
    width: usize,
    /// Scratch: the interleaved rows, and the sums of a row for one vector of channels.
    words: *mut i32,
    sums: *mut i32,
}

impl Kernel for Block<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.run_with(s, Halves);
    }
}

impl Block<'_> {
    #[inline(always)]
    fn run_with<S: Simd, D: Dot<S>>(self, s: S, dot: D) {
        for quad in 0..self.plan.quads {
            // SAFETY: the scratch holds every group's words.
            unsafe { self.interleave(s, quad) };
        }
        let e = self.epilogue;
        let plain = is_plain(e);
        for i in 0..self.plan.rows.min(self.image.out[0] - self.oy) {
            for v in (0..self.channels).step_by(S::LANES) {
                let row = Row { block: &self, i, v, n: S::LANES.min(self.channels - v) };
                if plain {
                    row.run::<S, D, true>(s, dot);
                } else {
                    row.run::<S, D, false>(s, dot);
                }
            }
        }
    }

    /// Writes the words of four rows: per column of the padded image, `width` channels.
    #[inline(always)]
    unsafe fn interleave<S: Simd>(&self, s: S, quad: usize) {
        let (image, p) = (self.image, self.image.p);
        let to = self.words.wrapping_add(quad * image.reach * self.width);
        let left = p.pads[1].min(image.reach);
        let real = p.w.min(image.reach - left);
        let fill = s.splat_i(i32::from_le_bytes([image.pad[0] ^ image.flip; 4]));
        let line = |k: usize| {
            let y = (self.oy * p.strides[0] + (4 * quad + k) * p.dilations[0]).wrapping_sub(p.pads[0]);
            (y < p.h).then(|| image.data.wrapping_add((self.n * p.h + y) * p.w * p.c + self.first))
        };
        let lines = [line(0), line(1), line(2), line(3)];
        let flip = s.splat_i(i32::from_le_bytes([image.flip; 4]));
        // SAFETY: `left + real` columns are within the reach; each line has `real` pixels.
        unsafe {
            for i in (0..left * self.width).chain((left + real) * self.width..image.reach * self.width).step_by(LANES) {
                for lane in (0..LANES).step_by(S::LANES) {
                    s.store_i32_n(to.add(i + lane), fill, S::LANES);
                }
            }
            let to = to.add(left * self.width);
            if self.width == p.c && lines.iter().all(Option::is_some) {
                // Pixels lie side by side in both.
                s.zip_bytes(lines.map(|x| x.unwrap_or(image.data)), flip, to, real * p.c);
                return;
            }
            for x in 0..real {
                let rows = lines.map(|line| line.map_or(image.pad.as_ptr(), |line| line.add(x * p.c)));
                s.zip_bytes(rows, flip, to.add(x * self.width), self.channels);
            }
        }
    }
}

/// One vector of channels of one output row.
struct Row<'a> {
    block: &'a Block<'a>,
    /// Row in its group.
    i: usize,
    /// Channels within the block, and how many of the vector count.
    v: usize,
    n: usize,
}

impl Row<'_> {
    #[inline(always)]
    fn run<S: Simd, D: Dot<S>, const PLAIN: bool>(&self, s: S, dot: D) {
        let (b, ow) = (self.block, self.block.image.out[1]);
        let column = b.first + self.v;
        // SAFETY: `check` accepted one offset, scale and bias per channel.
        let finish = unsafe { Finish::new(s, b.epilogue, &b.out, column, self.n) };
        // SAFETY: as above.
        let sums = unsafe { Sums::new(s, b.epilogue, column, self.n) };
        let mut x = 0;
        // SAFETY: the windows of `ow` pixels lie in the interleaved rows.
        unsafe {
            while x + PIXELS <= ow {
                self.pixels::<S, D, PIXELS, PLAIN>(s, dot, (&finish, &sums), x);
                x += PIXELS;
            }
            if ow - x >= 4 {
                self.pixels::<S, D, 4, PLAIN>(s, dot, (&finish, &sums), x);
                x += 4;
            }
            while x < ow {
                self.pixels::<S, D, 1, PLAIN>(s, dot, (&finish, &sums), x);
                x += 1;
            }
            if !PLAIN {
                let sum = |x: usize| b.sums.wrapping_add(x * S::LANES);
                let mut x = 0;
                while x + TOGETHER <= ow {
                    let mut v = [sums.scale; TOGETHER];
                    for (k, v) in v.iter_mut().enumerate() {
                        *v = s.mul(s.to_f32(s.load_i32_n(sum(x + k), S::LANES)), *v);
                    }
                    b.epilogue.rest_of_all(s, &mut v, column, (self.at(x), b.image.p.c), self.n);
                    for (k, &v) in v.iter().enumerate() {
                        b.out.put(s, &finish.rounding, self.at(x + k), v, self.n);
                    }
                    x += TOGETHER;
                }
                for x in x..ow {
                    let v = s.mul(s.to_f32(s.load_i32_n(sum(x), S::LANES)), sums.scale);
                    let v = b.epilogue.rest(s, v, column, self.at(x), self.n);
                    b.out.put(s, &finish.rounding, self.at(x), v, self.n);
                }
            }
        }
    }

    /// Place of pixel `x` in the result.
    #[inline(always)]
    fn at(&self, x: usize) -> usize {
        let (b, [oh, ow]) = (self.block, self.block.image.out);
        ((b.n * oh + b.oy + self.i) * ow + x) * b.image.p.c + b.first + self.v
    }

    /// Sums of `N` neighbours from `x` on.
    #[inline(always)]
    unsafe fn pixels<S: Simd, D: Dot<S>, const N: usize, const PLAIN: bool>(
        &self,
        s: S,
        dot: D,
        (finish, sums): (&Finish<S>, &Sums<S>),
        x: usize,
    ) {
        let (b, plan, p) = (self.block, &self.block.plan, self.block.image.p);
        let padded = p.c.next_multiple_of(LANES);
        let mut w = b.weights.as_ptr().wrapping_add(plan.words_before(self.i) * D::PLANES * padded + b.first + self.v);
        let step = p.strides[1] * b.width;
        let mut dots = [sums.offset; N];
        for quad in plan.quads_of(self.i) {
            let row = b.words.wrapping_add(quad * b.image.reach * b.width + x * step + self.v);
            for kx in 0..plan.kw {
                let from = row.wrapping_add(kx * p.dilations[1] * b.width).cast::<f32>();
                // SAFETY: the caller vouches for the words; the weights are packed in this order.
                unsafe {
                    let weights = dot.weights(s, w, padded);
                    for (k, sum) in dots.iter_mut().enumerate() {
                        *sum = dot.dot(s, *sum, s.to_bits(s.load(from.add(k * step))), weights);
                    }
                }
                w = w.wrapping_add(D::PLANES * padded);
            }
        }
        for (k, &sum) in dots.iter().enumerate() {
            let at = self.at(x + k);
            // SAFETY: the sums have a vector per pixel; the results belong to this task.
            unsafe {
                if !PLAIN {
                    s.store_i32_n(b.sums.add((x + k) * S::LANES), sum, S::LANES);
                } else if self.n == S::LANES {
                    finish.put(s, &b.out, at, s.mul(s.to_f32(sum), sums.scale), S::LANES);
                } else {
                    finish.put(s, &b.out, at, s.mul(s.to_f32(sum), sums.scale), self.n);
                }
            }
        }
    }
}

/// What makes floats of a vector of sums.
struct Sums<S: Simd> {
    offset: S::I,
    scale: S::F,
}

impl<S: Simd> Sums<S> {
    /// # Safety
    /// The arrays have `n` columns from `column` on.
    #[inline(always)]
    unsafe fn new(s: S, e: &Epilogue<'_>, column: usize, n: usize) -> Self {
        // SAFETY: passed on to the caller.
        unsafe {
            Sums {
                offset: s.load_i32_n(e.offsets.as_ptr().add(column), n),
                scale: s.load_bits(e.scales.as_ptr().add(column), low_bits(n)),
            }
        }
    }
}
