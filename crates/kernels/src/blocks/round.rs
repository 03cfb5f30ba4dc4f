//! Rows of floats rounded to int8 by blocks.

use super::BlockShape;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd};

/// Where a rounded row keeps what: the words of its codes, then scales, sums and what sums of products start from, one
/// of each for each block.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    shape: BlockShape,
    /// Words for four codes: 1, their bytes; or 2, the even and the odd ones as 16-bit halves.
    forms: usize,
}

impl Layout {
    pub fn new(shape: BlockShape, forms: usize) -> Layout {
        Layout { shape, forms }
    }

    /// Words of a block's codes.
    fn block(&self) -> usize {
        self.shape.block / 4 * self.forms
    }

    /// Where the scales are (f32).
    pub fn scales(&self) -> usize {
        self.shape.blocks() * self.block()
    }

    /// Where the sums of the codes are (f32, as zero points take them).
    pub fn sums(&self) -> usize {
        self.scales() + self.shape.blocks()
    }

    /// Where the least values of sums are (i32): what codes of a weight are above their middle, for all of them.
    pub fn starts(&self) -> usize {
        self.sums() + self.shape.blocks()
    }

    /// Words of a row.
    pub fn pitch(&self) -> usize {
        (self.starts() + self.shape.blocks()).next_multiple_of(16)
    }
}

/// Rounds rows of `k` floats, each to `pitch` words.
pub(super) fn round_rows(isa: Isa, x: &[f32], layout: Layout, to: &mut [f32]) {
    isa.dispatch(RoundRows { x, layout, to });
}

struct RoundRows<'a> {
    x: &'a [f32],
    layout: Layout,
    to: &'a mut [f32],
}

impl Kernel for RoundRows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (l, BlockShape { k, bits, block, .. }) = (self.layout, self.layout.shape);
        let middle = 1 << (bits - 1);
        for (x, to) in self.x.chunks_exact(k).zip(self.to.chunks_exact_mut(l.pitch())) {
            let (words, rest) = to.split_at_mut(l.scales());
            for (b, (x, words)) in x.chunks(block).zip(words.chunks_exact_mut(l.block())).enumerate() {
                let half = l.block() - block / 4;
                let bytes = &mut words[half..];
                bytes[x.len() / 4..].fill(0.0);
                let (scale, sum) = round(s, x, bytes);
                if l.forms == 2 {
                    spread(words, half);
                }
                rest[b] = scale;
                rest[l.sums() - l.scales() + b] = sum as f32;
                rest[l.starts() - l.scales() + b] = f32::from_bits(sum.wrapping_mul(-middle) as u32);
            }
        }
    }
}

/// Rounds a block to the bytes of `to`; its scale, and the sum of its codes.
#[inline(always)]
fn round<S: Simd>(s: S, x: &[f32], to: &mut [f32]) -> (f32, i32) {
    let (mut most, mut poison) = (s.splat(0.0), s.splat(0.0));
    let (n, p) = (x.len(), x.as_ptr());
    let to = to.as_mut_ptr().cast::<u8>();
    let each = |i: usize| (n - i).min(S::LANES);
    for i in (0..n).step_by(S::LANES) {
        // SAFETY: as many elements are left.
        let v = unsafe { s.load_n(p.add(i), each(i)) };
        // 0 · v is NaN for what is not finite.
        poison = s.mul_add(v, s.splat(0.0), poison);
        most = s.max(s.abs(v), most);
    }
    let scale = s.hmax(most) / 127.0 + s.sum(poison);
    let inverse = s.splat(if scale == 0.0 { 0.0 } else { 1.0 / scale });
    let mut sums = s.splat_i(0);
    let mut lanes = [0i32; 16];
    // SAFETY: as above; the codes of a whole block have room.
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            // Beyond the last element there are zeros; NaN has the low byte 0.
            let codes = s.to_i32(s.mul(s.load_n(p.add(i), each(i)), inverse));
            s.store_low8_n(to.add(i), codes, each(i));
            sums = s.add_i(sums, s.sar_i::<24>(s.shl_i::<24>(codes)));
        }
        s.store_i32_n(lanes.as_mut_ptr(), sums, S::LANES);
    }
    (scale, lanes.iter().sum())
}

/// Makes the codes in the second half of `words` pairs of 16-bit halves: bytes 0 and 2, then 1 and 3.
fn spread(words: &mut [f32], half: usize) {
    for i in 0..half {
        let q = words[half + i].to_bits().to_le_bytes().map(|q| u32::from(q as i8 as i16 as u16));
        words[2 * i] = f32::from_bits(q[0] | q[2] << 16);
        words[2 * i + 1] = f32::from_bits(q[1] | q[3] << 16);
    }
}
