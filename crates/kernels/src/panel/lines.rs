//! Rows as the kernels read them: in place, or copied.

use super::drive::{Lines, Rows};
use super::table::PanelKernel;
use crate::buffer::with_scratch;
use crate::codes::{Code, decode, decode_bf16};
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, low_bits};

/// Bytes that a read of a whole step may pass the end of a copied row.
pub(crate) const SLACK: usize = 64;

/// Where rows of one length lie.
pub(crate) struct Placed<'a> {
    /// Where row `i` starts.
    pub start: &'a dyn Fn(usize) -> *const u8,
    /// Bytes of a row.
    pub bytes: usize,
    /// Bytes between rows where they are read in place.
    pub direct: Option<usize>,
    /// How they are copied.
    pub copy: Copying,
}

/// What becomes of elements that are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copying {
    /// Bytes are combined with this one.
    Flip(u8),
    /// Floats are rounded to bfloat16, half to even.
    Bf16,
    /// Numbers of fewer bits become bfloat16, or else floats.
    Decode(Code, bool),
}

impl Copying {
    /// Copies to `bytes` bytes at `dst`.
    ///
    /// # Safety
    /// `dst` covers them and `src` as many elements; they don't overlap.
    pub unsafe fn copy(self, isa: Isa, src: *const u8, dst: *mut u8, bytes: usize) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Copying::Flip(flip) => copy_flipped(src, dst, bytes, flip),
                Copying::Bf16 => isa.dispatch(ToBf16 { src: src.cast(), dst: dst.cast(), len: bytes / 2 }),
                Copying::Decode(code, true) => decode_bf16(isa, code, src, dst.cast(), bytes / 2),
                Copying::Decode(code, false) => decode(isa, code, src, dst.cast(), bytes / 4),
            }
        }
    }
}

struct ToBf16 {
    src: *const f32,
    dst: *mut u16,
    len: usize,
}

impl Kernel for ToBf16 {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut i = 0;
        while i < self.len {
            let n = (self.len - i).min(S::LANES);
            // SAFETY: `n` elements are left of both.
            unsafe {
                let v = s.load_bits(self.src.add(i), low_bits(n));
                s.store_bf16_n(self.dst.add(i), v, n);
            }
            i += S::LANES;
        }
    }
}

impl Placed<'_> {
    /// Bytes between rows as the kernel reads them.
    pub fn pitch(&self, kernel: &PanelKernel) -> usize {
        self.direct.unwrap_or_else(|| spread(self.bytes, kernel.depth))
    }

    /// Calls `body` with `count` rows.
    ///
    /// # Safety
    /// Each row has its bytes.
    pub unsafe fn with(&self, isa: Isa, kernel: &PanelKernel, count: usize, body: impl FnOnce(Lines)) {
        let (pitch, rest) = (self.pitch(kernel), self.bytes % kernel.depth);
        let row = |i: usize| (self.start)(i);
        if self.direct.is_some() && rest == 0 {
            return body(Lines { a: row(0), stride: pitch, count, tail: std::ptr::null() });
        }
        if self.direct.is_some() {
            // What does not fill a step is copied, and zeros after it.
            return with_scratch((count * kernel.depth).div_ceil(4), |scratch| {
                let base = scratch.as_mut_ptr().cast::<u8>();
                for i in 0..count {
                    // SAFETY: the scratch has a step for each row, of which `rest` bytes are the row's last.
                    unsafe {
                        let to = base.add(i * kernel.depth);
                        std::ptr::copy_nonoverlapping(row(i).wrapping_add(self.bytes - rest), to, rest);
                        to.add(rest).write_bytes(0, kernel.depth - rest);
                    }
                }
                body(Lines { a: row(0), stride: pitch, count, tail: base });
            });
        }
        with_scratch((count * pitch + SLACK).div_ceil(4), |scratch| {
            let base = scratch.as_mut_ptr().cast::<u8>();
            for i in 0..count {
                // SAFETY: the row has that many bytes, and the scratch has `pitch` bytes for it.
                unsafe {
                    self.copy.copy(isa, row(i), base.add(i * pitch), self.bytes);
                    base.add(i * pitch + self.bytes).write_bytes(0, pitch - self.bytes);
                }
            }
            body(Lines { a: base, stride: pitch, count, tail: std::ptr::null() });
        });
    }
}

impl Rows<'_> {
    /// What a copy for `kernel` is combined with bit by bit: i8 + 128 as u8, where it takes no i8.
    pub(crate) fn flip_for(&self, kernel: &PanelKernel) -> u8 {
        if kernel.takes_signed() { 0 } else { self.flip() }
    }

    /// How rows are copied for panels whose elements have `size` bytes.
    pub(crate) fn copying(&self, kernel: &PanelKernel, size: usize) -> Copying {
        match self {
            Rows::F32(_) if size == 2 => Copying::Bf16,
            _ => Copying::Flip(self.flip_for(kernel)),
        }
    }
}

/// Copies `bytes` from `src` to `dst`, each combined with `flip`.
///
/// # Safety
/// Both cover `bytes` and don't overlap.
pub(crate) unsafe fn copy_flipped(src: *const u8, dst: *mut u8, bytes: usize, flip: u8) {
    // SAFETY: passed on to the caller.
    unsafe {
        if flip == 0 {
            std::ptr::copy_nonoverlapping(src, dst, bytes);
        } else {
            for i in 0..bytes {
                *dst.add(i) = *src.add(i) ^ flip;
            }
        }
    }
}

/// A distance between rows, in whole steps of `depth` bytes, at which they do not fall into the same cache sets.
pub(crate) fn spread(bytes: usize, depth: usize) -> usize {
    let bytes = bytes.next_multiple_of(depth);
    if bytes.is_multiple_of(2048) { bytes + 64 } else { bytes }
}

/// The sum of bytes after each was combined with `flip`.
pub(crate) fn byte_sum(isa: Isa, bytes: &[u8], flip: u8) -> i32 {
    isa.dispatch(ByteSum { bytes, flip })
}

/// The sum of bytes after each was combined with `flip`, which is 0 or 0x80.
pub(super) struct ByteSum<'a> {
    pub bytes: &'a [u8],
    pub flip: u8,
}

impl Kernel for ByteSum<'_> {
    type Out = i32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> i32 {
        let (bytes, mut i) = (self.bytes, 0);
        let mut sums = [s.splat_i(0); 4];
        // SAFETY: four vectors of bytes are left, then `n` bytes.
        let sum = unsafe {
            while i + 4 * S::LANES <= bytes.len() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = s.add_i(*sum, self.load(s, bytes.as_ptr().add(i + v * S::LANES), S::LANES));
                }
                i += 4 * S::LANES;
            }
            while i < bytes.len() {
                let n = (bytes.len() - i).min(S::LANES);
                sums[0] = s.add_i(sums[0], self.load(s, bytes.as_ptr().add(i), n));
                i += n;
            }
            let all = s.add_i(s.add_i(sums[0], sums[1]), s.add_i(sums[2], sums[3]));
            let mut lanes = [0i32; 64];
            s.store_i32_n(lanes.as_mut_ptr(), all, S::LANES);
            lanes[..S::LANES].iter().fold(0, |sum: i32, &x| sum.wrapping_add(x))
        };
        if self.flip == 0 { sum } else { sum.wrapping_add((bytes.len() as i32).wrapping_mul(128)) }
    }
}

impl ByteSum<'_> {
    /// Bytes as they are, or as i8: 128 more is added for all of them at the end.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, p: *const u8, n: usize) -> S::I {
        // SAFETY: passed on to the caller.
        unsafe { if self.flip == 0 { s.load_u8_n(p, n) } else { s.load_i8_n(p.cast(), n) } }
    }
}
