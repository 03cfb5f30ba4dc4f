//! Windows of 3 × 3, 5 × 5 and 7 × 7 on 8-bit integers with AVX-512 VNNI or AVX2, from the image to the codes of the result.
//!
//! As in [`super::ints`], a word holds four rows of a channel, and a column of a window of three is a dot product of four bytes;
//! larger windows have two words in a column. The words of a column of the image are made once and kept for all windows that
//! they belong to, in registers (three) or in the first cache (more), and for as many rows of results as they have room for.
//! They come in the order in which the bytes of a vector unpack: word `4 l + i` of vector `j` is channel `16 l + 4 j + i`.
//! Weights are packed in that order, and packing the results to bytes undoes it.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::finish::is_plain;
use super::ints::Image;
use super::packed::{NARROW, Packed, Piece, Set, WIDE, pieces, rows_together, spread};
use super::vectors::{Dots, Signs, Tier, Vector};
use crate::conv::Conv2dParams;
use crate::exec::Exec;
use crate::isa::{Avx2, Vnni};
use crate::panel::{Epilogue, IntFormat, Out};

/// Multiply-adds that one task takes at least.
const GRAIN: usize = 1 << 17;
/// Columns of words that are kept: those of the widest window, as a power of two.
const RING: usize = 8;

/// Whether windows are of the shape that is multiplied here.
pub(super) fn takes(p: &Conv2dParams) -> bool {
    p.kh == p.kw && matches!(p.kh, 3 | 5 | 7) && p.dilations == [1, 1] && p.strides[1] <= 2
}

/// Whether results of this kind are made here: integers behind no more than a bias and a clamp.
pub(super) fn finishes(e: &Epilogue<'_>, out: &Out) -> bool {
    is_plain(e) && out.int_format().is_some()
}

/// Convolves `image`; [`takes`] and [`finishes`] have accepted it, and `weights` are those of [`pack`].
pub(super) fn run(exec: &Exec, set: Set, image: &Image<'_>, weights: &Packed, epilogue: &Epilogue<'_>, out: Out) {
    let Some(format) = out.int_format() else { return };
    let (p, [oh, ow]) = (image.p, image.out);
    let rows = rows_together(p);
    let down = p.n * oh.div_ceil(rows);
    let work = (rows * ow * WIDE.min(p.c)).saturating_mul(p.kh * p.kw);
    // The rows of a piece follow each other: they share its constants and rows of the image.
    exec.split(pieces(p.c, set.widest()).count() * down, GRAIN / work.max(1) + 1, &|range| {
        for (i, piece) in pieces(p.c, set.widest()).enumerate() {
            let groups = range.start.max(i * down)..range.end.min((i + 1) * down);
            if groups.is_empty() {
                continue;
            }
            let groups = groups.start - i * down..groups.end - i * down;
            let (plane, corrections) = (weights.words.len() / set.planes(), &weights.corrections);
            let weights = &weights.words;
            let job = Job { image, weights, plane, corrections, epilogue, out, format, piece, groups };
            // SAFETY: the tokens prove the features; other tasks write other rows or channels.
            unsafe {
                match set {
                    Set::Vnni(token) => by_vnni(token, &job),
                    Set::Avx2(token) => by_avx2(token, &job),
                }
            }
        }
    });
}

/// Groups of rows of one piece.
struct Job<'a> {
    image: &'a Image<'a>,
    weights: &'a [f32],
    /// Words between its planes.
    plane: usize,
    corrections: &'a [i32],
    epilogue: &'a Epilogue<'a>,
    out: Out,
    format: IntFormat,
    piece: Piece,
    groups: Range<usize>,
}

/// # Safety
/// As [`Job::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx2,fma,f16c,bmi2,popcnt")]
unsafe fn by_vnni(_: Vnni, job: &Job<'_>) {
    // SAFETY: passed on to the caller.
    unsafe {
        match job.piece.width {
            WIDE => job.by_strides::<__m512i, Dots>(),
            NARROW => job.by_strides::<__m128i, Dots>(),
            _ => job.by_strides::<__m256i, Dots>(),
        }
    }
}

/// # Safety
/// As [`Job::run`].
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
unsafe fn by_avx2(_: Avx2, job: &Job<'_>) {
    // SAFETY: passed on to the caller; no piece is wider.
    unsafe {
        match job.piece.width {
            NARROW => job.by_strides::<__m128i, Signs>(),
            _ => job.by_strides::<__m256i, Signs>(),
        }
    }
}

/// What is the same for all results of a piece.
struct Constants<V: Vector> {
    offset: [V; 4],
    scale: [V::Floats; 4],
    bias: Option<[V::Floats; 4]>,
    inverse: V::Floats,
    low: V::Floats,
    high: V::Floats,
    /// In 16 bits.
    zero: V,
}

/// Four rows of the image, or padding: where they start, and bytes between pixels.
type Lines = [(*const u8, usize); 4];

/// The words of a column.
type Words<V, const QUADS: usize> = [[V; 4]; QUADS];

impl Job<'_> {
    /// # Safety
    /// As [`Job::run`].
    #[inline(always)]
    unsafe fn by_strides<V: Vector, T: Tier<V>>(&self) {
        // SAFETY: passed on to the caller.
        unsafe {
            match (self.image.p.kh, rows_together(self.image.p)) {
                (3, 2) => self.by_stride::<V, T, 3, 1, 2>(),
                (3, _) => self.by_stride::<V, T, 3, 1, 1>(),
                (5, 4) => self.by_stride::<V, T, 5, 2, 4>(),
                (5, 2) => self.by_stride::<V, T, 5, 2, 2>(),
                (5, _) => self.by_stride::<V, T, 5, 2, 1>(),
                (_, 2) => self.by_stride::<V, T, 7, 2, 2>(),
                _ => self.by_stride::<V, T, 7, 2, 1>(),
            }
        }
    }

    /// # Safety
    /// As [`Job::run`].
    #[inline(always)]
    unsafe fn by_stride<V: Vector, T: Tier<V>, const WINDOW: usize, const QUADS: usize, const ROWS: usize>(&self) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self.image.p.strides[1] {
                1 => self.run::<V, T, WINDOW, QUADS, ROWS, 1>(),
                _ => self.run::<V, T, WINDOW, QUADS, ROWS, 2>(),
            }
        }
    }

    /// `ROWS` rows of the result at a time, `STRIDE` columns of the image from one of its pixels to the next; windows of
    /// `WINDOW` rows and columns, with `QUADS` words in a column.
    ///
    /// # Safety
    /// The processor has the instruction set, and nobody else uses these results.
    #[inline(always)]
    unsafe fn run<
        V: Vector,
        T: Tier<V>,
        const WINDOW: usize,
        const QUADS: usize,
        const ROWS: usize,
        const STRIDE: usize,
    >(
        &self,
    ) {
        let p = self.image.p;
        let [oh, _] = self.image.out;
        let down = oh.div_ceil(ROWS);
        // SAFETY: passed on to the caller; `check` accepted one constant per channel.
        unsafe {
            let constants = self.constants::<V>();
            for group in self.groups.clone() {
                let (n, oy) = (group / down, group % down * ROWS);
                let lines = self.lines::<QUADS>(n, oy, (ROWS - 1) * p.strides[0] + WINDOW);
                let at = (n * oh + oy) * self.image.out[1] * p.c + self.piece.first;
                let (out, count) = (self.out.data.wrapping_add(at), ROWS.min(oh - oy));
                match QUADS {
                    1 => self.row::<V, T, ROWS, STRIDE>(&constants, &lines[0], out, count),
                    _ => self.wide_row::<V, T, WINDOW, QUADS, ROWS, STRIDE>(&constants, &lines, out, count),
                }
            }
        }
    }

    /// The rows of the image that belong to the windows of row `oy` of the result and of those that go with it, `used` of them;
    /// what follows counts nothing, and is the last one.
    fn lines<const QUADS: usize>(&self, n: usize, oy: usize, used: usize) -> [Lines; QUADS] {
        let (image, p) = (self.image, self.image.p);
        let line = |k: usize| {
            let y = (oy * p.strides[0] + k.min(used - 1)).wrapping_sub(p.pads[0]);
            if y < p.h {
                (image.data.wrapping_add((n * p.h + y) * p.w * p.c + self.piece.first), p.c)
            } else {
                (image.pad.as_ptr(), 0)
            }
        };
        std::array::from_fn(|quad| [0, 1, 2, 3].map(|k| line(4 * quad + k)))
    }

    /// # Safety
    /// The arrays of the epilogue have an element per channel.
    #[inline(always)]
    unsafe fn constants<V: Vector>(&self) -> Constants<V> {
        let (e, format) = (self.epilogue, self.format);
        let range = self.piece.first..self.piece.first + self.piece.channels;
        let (mut offset, scale) =
            (spread(&e.offsets[range.clone()], V::BYTES), spread(&e.scales[range.clone()], V::BYTES));
        if let Some(corrections) = self.corrections.get(range.clone()) {
            let corrections = spread(corrections, V::BYTES);
            offset.iter_mut().zip(corrections).for_each(|(offset, c)| *offset = offset.wrapping_add(c));
        }
        let (low, high) = e.activation.bounds();
        let bias = (!e.bias.is_empty()).then(|| spread(&e.bias[range], V::BYTES));
        // SAFETY: four vectors of floats or words each.
        unsafe {
            let zero = V::splat_float(0.0);
            let mut constants = Constants {
                offset: [V::splat(0); 4],
                scale: [zero; 4],
                bias: bias.map(|_| [zero; 4]),
                inverse: V::splat_float(format.inverse),
                // A clamp behind the multiplication by `inverse`; below, saturation bounds the codes.
                low: V::splat_float(low * format.inverse),
                high: V::splat_float((high * format.inverse).min((format.highest() - format.zero) as f32)),
                zero: V::splat_half(format.zero as i16),
            };
            for j in 0..4 {
                let at = j * V::BYTES / 4;
                constants.offset[j] = V::words(offset.as_ptr().add(at).cast());
                constants.scale[j] = V::floats(scale.as_ptr().add(at));
                if let (Some(to), Some(bias)) = (&mut constants.bias, &bias) {
                    to[j] = V::floats(bias.as_ptr().add(at));
                }
            }
            constants
        }
    }

    /// # Safety
    /// The lines lie in the image, and `count` rows of results from `out` on are ours.
    #[inline(always)]
    unsafe fn row<V: Vector, T: Tier<V>, const ROWS: usize, const STRIDE: usize>(
        &self,
        constants: &Constants<V>,
        lines: &Lines,
        out: *mut u8,
        count: usize,
    ) {
        let (p, [_, ow]) = (self.image.p, self.image.out);
        let weights = self.weights[self.piece.first * ROWS * 3..].as_ptr().cast::<u32>();
        // SAFETY: passed on to the caller; the weights were packed for these rows.
        unsafe {
            let columns = self.columns::<V, T>(lines);
            let padding = columns.padding;
            let mut words = [padding, padding, columns.at(0)];
            if STRIDE == 1 {
                words = [padding, words[2], columns.at(1)];
            }
            for x in 0..ow {
                words = match STRIDE {
                    1 => [words[1], words[2], columns.at(x + 2)],
                    _ => [words[2], columns.at(2 * x + 1), columns.at(2 * x + 2)],
                };
                for row in 0..ROWS {
                    let mut sums = constants.offset;
                    for (kx, words) in words.iter().enumerate() {
                        let w = weights.add((row * 3 + kx) * V::BYTES);
                        for (j, sum) in sums.iter_mut().enumerate() {
                            *sum = T::dot(*sum, words[j], T::weights(w.add(j * V::BYTES / 4), self.plane));
                        }
                    }
                    let codes = self.codes(constants, sums);
                    if row < count {
                        T::store(out.wrapping_add((row * ow + x) * p.c), codes, self.piece.channels);
                    }
                }
            }
        }
    }

    /// As [`Job::row`], for columns of several words, which stay in the first cache.
    ///
    /// # Safety
    /// The lines lie in the image, and `count` rows of results from `out` on are ours.
    #[inline(always)]
    unsafe fn wide_row<
        V: Vector,
        T: Tier<V>,
        const WINDOW: usize,
        const QUADS: usize,
        const ROWS: usize,
        const STRIDE: usize,
    >(
        &self,
        constants: &Constants<V>,
        lines: &[Lines; QUADS],
        out: *mut u8,
        count: usize,
    ) {
        let (p, [_, ow]) = (self.image.p, self.image.out);
        let weights = self.weights[self.piece.first * ROWS * WINDOW * QUADS..].as_ptr().cast::<u32>();
        // SAFETY: passed on to the caller; the weights were packed for these rows.
        unsafe {
            let padding = self.columns::<V, T>(&lines[0]).padding;
            let mut ring: [Words<V, QUADS>; RING] = [[padding; QUADS]; RING];
            let mut made = 0;
            for x in 0..ow {
                while made < x * STRIDE + WINDOW {
                    for (quad, lines) in lines.iter().enumerate() {
                        ring[made % RING][quad] = self.columns::<V, T>(lines).at(made);
                    }
                    made += 1;
                }
                let mut sums = [constants.offset; ROWS];
                for kx in 0..WINDOW {
                    let column = &ring[(x * STRIDE + kx) % RING];
                    for (quad, words) in column.iter().enumerate() {
                        for (j, &word) in words.iter().enumerate() {
                            for (row, sums) in sums.iter_mut().enumerate() {
                                let at = ((row * WINDOW + kx) * QUADS + quad) * V::BYTES + j * V::BYTES / 4;
                                sums[j] = T::dot(sums[j], word, T::weights(weights.add(at), self.plane));
                            }
                        }
                    }
                }
                for (row, &sums) in sums.iter().enumerate() {
                    let codes = self.codes(constants, sums);
                    if row < count {
                        T::store(out.wrapping_add((row * ow + x) * p.c), codes, self.piece.channels);
                    }
                }
            }
        }
    }

    /// The columns of four rows.
    ///
    /// # Safety
    /// The processor has the instruction set.
    #[inline(always)]
    unsafe fn columns<'l, V: Vector, T: Tier<V>>(&self, lines: &'l Lines) -> Columns<'l, V, T> {
        let (image, p) = (self.image, self.image.p);
        // SAFETY: passed on to the caller.
        unsafe {
            let flip = V::splat(image.flip);
            let filled = V::xor(V::splat(image.pad[0]), flip);
            let padding = V::zip([filled, filled, filled, filled]);
            Columns {
                lines,
                flip,
                padding,
                left: p.pads[1],
                width: p.w,
                channels: self.piece.channels,
                tier: PhantomData,
            }
        }
    }

    /// Scales, clamps and rounds a vector of channels.
    ///
    /// # Safety
    /// The processor has the instruction set.
    #[inline(always)]
    unsafe fn codes<V: Vector>(&self, c: &Constants<V>, sums: [V; 4]) -> V {
        let mut rounded = sums;
        // SAFETY: passed on to the caller.
        unsafe {
            for (j, r) in rounded.iter_mut().enumerate() {
                let mut v = V::mul(V::convert(*r), c.scale[j]);
                if let Some(bias) = &c.bias {
                    v = V::add(v, bias[j]);
                }
                // NaN passes, and becomes the smallest code: `min` and `max` give their second operand then.
                *r = V::round(V::min(c.high, V::max(c.low, V::mul(v, c.inverse))));
            }
            V::narrow(rounded, c.zero, self.format.signed)
        }
    }
}

/// The words of a column of four rows. Columns count from the padding on the left.
///
/// No closures here: they would be compiled without the features.
struct Columns<'a, V: Vector, T: Tier<V>> {
    lines: &'a Lines,
    /// Combined with all bytes.
    flip: V,
    padding: [V; 4],
    left: usize,
    width: usize,
    channels: usize,
    tier: PhantomData<T>,
}

impl<V: Vector, T: Tier<V>> Columns<'_, V, T> {
    /// # Safety
    /// The lines have the columns.
    #[inline(always)]
    unsafe fn at(&self, x: usize) -> [V; 4] {
        let x = x.wrapping_sub(self.left);
        if x >= self.width {
            return self.padding;
        }
        // SAFETY: passed on to the caller.
        unsafe { V::zip([self.bytes(0, x), self.bytes(1, x), self.bytes(2, x), self.bytes(3, x)]) }
    }

    /// # Safety
    /// As [`Columns::at`].
    #[inline(always)]
    unsafe fn bytes(&self, k: usize, x: usize) -> V {
        let (line, step) = self.lines[k];
        // SAFETY: passed on to the caller.
        unsafe { V::xor(T::load(line.wrapping_add(x * step), self.channels), self.flip) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_other_windows_alone() {
        let p = Conv2dParams {
            n: 1,
            c: 8,
            h: 9,
            w: 9,
            oc: 8,
            kh: 3,
            kw: 3,
            strides: [1, 1],
            pads: [1; 4],
            dilations: [1, 1],
            groups: 8,
        };
        assert!(takes(&p) && takes(&Conv2dParams { strides: [3, 2], ..p }));
        assert!(takes(&Conv2dParams { kh: 5, kw: 5, ..p }) && takes(&Conv2dParams { kh: 7, kw: 7, ..p }));
        for other in [
            Conv2dParams { kw: 5, ..p },
            Conv2dParams { kh: 9, kw: 9, ..p },
            Conv2dParams { dilations: [1, 2], ..p },
            Conv2dParams { strides: [1, 3], ..p },
        ] {
            assert!(!takes(&other), "{other:?}");
        }
    }
}
