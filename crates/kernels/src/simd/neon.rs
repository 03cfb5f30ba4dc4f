//! The vectors of aarch64: four lanes.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Kernel, Simd, low_bits, scale_in_two};
use crate::isa::Neon;

/// Runs a kernel compiled for this tier.
pub(super) fn run<K: Kernel>(token: Neon, kernel: K) -> K::Out {
    #[target_feature(enable = "neon")]
    fn inner<K: Kernel>(token: Neon, kernel: K) -> K::Out {
        kernel.run(token)
    }
    // SAFETY: the token proves the features.
    unsafe { inner(token, kernel) }
}

macro_rules! lanewise {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty { $body:expr })*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $ret {
            // SAFETY: the token proves that the CPU has these instructions.
            unsafe { $body }
        }
    )*};
}

macro_rules! memory {
    ($($name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $body:expr })*) => {$(
        #[inline(always)]
        unsafe fn $name(self, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the token proves the instructions; the caller vouches for the memory.
            unsafe { $body }
        }
    )*};
}

type F = float32x4_t;
type I = int32x4_t;
type M = uint32x4_t;

/// 1, 2, 4, 8.
#[inline]
#[target_feature(enable = "neon")]
fn lane_bits() -> M {
    vcombine_u32(vcreate_u32(0x0000_0002_0000_0001), vcreate_u32(0x0000_0008_0000_0004))
}

/// The first `n <= 4` elements, in the low end of 16 bytes that are zero elsewhere.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn partial<T: Copy>(p: *const T, n: usize) -> [u8; 16] {
    let mut bytes = [0u8; 16];
    // SAFETY: the caller vouches for `n` elements; 4 of at most 4 bytes fit.
    unsafe { std::ptr::copy_nonoverlapping(p.cast::<u8>(), bytes.as_mut_ptr(), n * size_of::<T>()) };
    bytes
}

/// Writes the first `n <= 4` elements of what lies in 16 bytes.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store_partial<T>(p: *mut T, bytes: [u8; 16], n: usize) {
    // SAFETY: the caller vouches for `n` elements; 4 of at most 4 bytes are there.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), p.cast::<u8>(), n * size_of::<T>()) };
}

/// Four words, of which the first `n` are read.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn words<T: Copy>(p: *const T, n: usize) -> uint8x16_t {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: the caller vouches for `n` words.
    unsafe { if n == 4 { vld1q_u8(p.cast()) } else { vld1q_u8(partial(p, n).as_ptr()) } }
}

/// Writes the first `n` of four words.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store_words<T>(p: *mut T, v: uint8x16_t, n: usize) {
    const { assert!(size_of::<T>() == 4) };
    if n == 4 {
        // SAFETY: the caller vouches for four words.
        return unsafe { vst1q_u8(p.cast(), v) };
    }
    let mut bytes = [0u8; 16];
    // SAFETY: 16 bytes of our own, then the `n` words that the caller vouches for.
    unsafe {
        vst1q_u8(bytes.as_mut_ptr(), v);
        store_partial(p, bytes, n);
    }
}

/// The words in `bits`, zeros elsewhere.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn gather(p: *const f32, stride: usize, bits: u32) -> F {
    let mut lanes = [0f32; 4];
    for (i, lane) in lanes.iter_mut().enumerate() {
        if bits >> i & 1 != 0 {
            // SAFETY: the caller vouches for the lanes in `bits`.
            *lane = unsafe { *p.wrapping_add(i * stride) };
        }
    }
    // SAFETY: the array has four lanes.
    unsafe { vld1q_f32(lanes.as_ptr()) }
}

/// Stores the lanes in `bits`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn scatter(p: *mut f32, v: F, bits: u32) {
    let mut lanes = [0f32; 4];
    // SAFETY: the array has four lanes; the caller vouches for those in `bits`.
    unsafe {
        vst1q_f32(lanes.as_mut_ptr(), v);
        for (i, lane) in lanes.into_iter().enumerate() {
            if bits >> i & 1 != 0 {
                *p.wrapping_add(i) = lane;
            }
        }
    }
}

/// Four bytes or halves of `T`, of which the first `n` are read, in the low end of a vector.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn narrow<T: Copy>(p: *const T, n: usize) -> uint8x8_t {
    // SAFETY: the caller vouches for `n` elements of one or two bytes.
    unsafe {
        let word = match (size_of::<T>(), n) {
            (1, 4) => u64::from(p.cast::<u32>().read_unaligned()),
            (2, 4) => p.cast::<u64>().read_unaligned(),
            _ => u64::from_le_bytes(*partial(p, n).first_chunk().expect("eight of 16 bytes")),
        };
        vcreate_u8(word)
    }
}

/// `max(v, low) + zero` of two vectors, saturated to 16 bits.
#[inline]
#[target_feature(enable = "neon")]
fn halves(v: [I; 2], low: [I; 2], zero: I) -> int16x8_t {
    let first = vqmovn_s32(vqaddq_s32(vmaxq_s32(v[0], low[0]), zero));
    let second = vqmovn_s32(vqaddq_s32(vmaxq_s32(v[1], low[1]), zero));
    vcombine_s16(first, second)
}

/// Stores two vectors of codes at two places.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store_pair<const SIGNED: bool>(to: [*mut u8; 2], v: int16x8_t) {
    let codes = if SIGNED { vreinterpret_u8_s8(vqmovn_s16(v)) } else { vqmovun_s16(v) };
    let codes = vreinterpret_u32_u8(codes);
    // SAFETY: the caller vouches for four bytes at each place.
    unsafe {
        to[0].cast::<u32>().write_unaligned(vget_lane_u32::<0>(codes));
        to[1].cast::<u32>().write_unaligned(vget_lane_u32::<1>(codes));
    }
}

/// The bytes of a table of 256 that `x` names: of each quarter, those that lie in it.
#[inline]
#[target_feature(enable = "neon")]
fn look_up_bytes(quarters: &[uint8x16x4_t; 4], x: uint8x16_t) -> uint8x16_t {
    let mut y = vqtbl4q_u8(quarters[0], x);
    for (i, &quarter) in quarters.iter().enumerate().skip(1) {
        y = vqtbx4q_u8(y, quarter, vsubq_u8(x, vdupq_n_u8(64 * i as u8)));
    }
    y
}

#[inline]
#[target_feature(enable = "neon")]
unsafe fn look_up_all(table: &[u8; 256], x: *const u8, y: *mut u8, len: usize) {
    let whole = len - len % 16;
    // SAFETY: the caller vouches for `len` bytes of both; the table has four quarters.
    unsafe {
        let mut quarters = [vld1q_u8_x4(table.as_ptr()); 4];
        for (i, quarter) in quarters.iter_mut().enumerate() {
            *quarter = vld1q_u8_x4(table.as_ptr().add(64 * i));
        }
        for i in (0..whole).step_by(16) {
            vst1q_u8(y.add(i), look_up_bytes(&quarters, vld1q_u8(x.add(i))));
        }
        for i in whole..len {
            *y.add(i) = table[usize::from(*x.add(i))];
        }
    }
}

/// As [`Simd::zip_bytes`]: the instruction that stores four vectors interleaved does it.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn zip(rows: [*const u8; 4], flip: I, dst: *mut i32, n: usize) {
    let flip = vreinterpretq_u8_s32(flip);
    // All lanes of `flip` are the same; each row meets one byte of it.
    let flips =
        [vdupq_laneq_u8::<0>(flip), vdupq_laneq_u8::<1>(flip), vdupq_laneq_u8::<2>(flip), vdupq_laneq_u8::<3>(flip)];
    let flip = vgetq_lane_u32::<0>(vreinterpretq_u32_u8(flip));
    let whole = n - n % 16;
    // SAFETY: the caller vouches for `n` elements of each.
    unsafe {
        for i in (0..whole).step_by(16) {
            let v = uint8x16x4_t(
                veorq_u8(vld1q_u8(rows[0].add(i)), flips[0]),
                veorq_u8(vld1q_u8(rows[1].add(i)), flips[1]),
                veorq_u8(vld1q_u8(rows[2].add(i)), flips[2]),
                veorq_u8(vld1q_u8(rows[3].add(i)), flips[3]),
            );
            vst4q_u8(dst.add(i).cast(), v);
        }
        for i in whole..n {
            let bytes = [*rows[0].add(i), *rows[1].add(i), *rows[2].add(i), *rows[3].add(i)];
            *dst.add(i) = (u32::from_le_bytes(bytes) ^ flip) as i32;
        }
    }
}

/// The transpose of four rows of four.
#[inline]
#[target_feature(enable = "neon")]
fn transposed(r: [F; 4]) -> [F; 4] {
    let pairs = [vtrn1q_f32(r[0], r[1]), vtrn2q_f32(r[0], r[1]), vtrn1q_f32(r[2], r[3]), vtrn2q_f32(r[2], r[3])];
    let [a, b, c, d] = [
        vreinterpretq_f64_f32(pairs[0]),
        vreinterpretq_f64_f32(pairs[1]),
        vreinterpretq_f64_f32(pairs[2]),
        vreinterpretq_f64_f32(pairs[3]),
    ];
    [
        vreinterpretq_f32_f64(vtrn1q_f64(a, c)),
        vreinterpretq_f32_f64(vtrn1q_f64(b, d)),
        vreinterpretq_f32_f64(vtrn2q_f64(a, c)),
        vreinterpretq_f32_f64(vtrn2q_f64(b, d)),
    ]
}

#[inline]
#[target_feature(enable = "neon")]
unsafe fn transpose(src: *const f32, ld_src: usize, rows: usize, cols: usize, dst: *mut f32, ld_dst: usize) {
    let mut r = [vdupq_n_f32(0.0); 4];
    for (i, row) in r.iter_mut().enumerate() {
        if i < rows {
            // SAFETY: row `i < rows` has `cols` elements.
            *row = unsafe { vreinterpretq_f32_u8(words(src.wrapping_add(i * ld_src), cols)) };
        }
    }
    for (i, column) in transposed(r).into_iter().enumerate() {
        if i < cols {
            // SAFETY: row `i < cols` of the result has `rows` elements.
            unsafe { store_words(dst.wrapping_add(i * ld_dst), vreinterpretq_u8_f32(column), rows) };
        }
    }
}

/// As [`Simd::transpose_bytes`]. Four times, rows `i` and `i + 8` become rows `2 · i` and `2 · i + 1` with their bytes in turns:
/// each time the eight bits of a byte's place rotate by one, until its row and its column have changed places.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn transpose_bytes(src: *const u8, ld_src: usize, rows: usize, cols: usize, dst: *mut u8, ld_dst: usize) {
    let mut r = [vdupq_n_u8(0); 16];
    for (i, row) in r.iter_mut().enumerate().take(rows) {
        let mut bytes = [0u8; 16];
        // SAFETY: row `i < rows` has `cols <= 16` elements.
        unsafe {
            let from = src.wrapping_add(i * ld_src);
            if cols == 16 {
                *row = vld1q_u8(from);
            } else {
                std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), cols);
                *row = vld1q_u8(bytes.as_ptr());
            }
        }
    }
    for _ in 0..4 {
        let before = r;
        for i in 0..8 {
            r[2 * i] = vzip1q_u8(before[i], before[i + 8]);
            r[2 * i + 1] = vzip2q_u8(before[i], before[i + 8]);
        }
    }
    for (i, &column) in r.iter().enumerate().take(cols) {
        let mut bytes = [0u8; 16];
        // SAFETY: row `i < cols` of the result has `rows <= 16` elements.
        unsafe {
            let to = dst.wrapping_add(i * ld_dst);
            if rows == 16 {
                vst1q_u8(to, column);
            } else {
                vst1q_u8(bytes.as_mut_ptr(), column);
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, rows);
            }
        }
    }
}

impl Simd for Neon {
    const LANES: usize = 4;
    type F = F;
    type I = I;
    type M = M;
    type Table = uint8x16x4_t;

    lanewise! {
        splat(x: f32) -> F { vdupq_n_f32(x) }
        splat_i(x: i32) -> I { vdupq_n_s32(x) }
        add(a: F, b: F) -> F { vaddq_f32(a, b) }
        sub(a: F, b: F) -> F { vsubq_f32(a, b) }
        mul(a: F, b: F) -> F { vmulq_f32(a, b) }
        div(a: F, b: F) -> F { vdivq_f32(a, b) }
        mul_add(a: F, b: F, c: F) -> F { vfmaq_f32(c, a, b) }
        // The instructions for minima and maxima make NaN of any NaN, and tell zeros of both signs apart.
        min(a: F, b: F) -> F { vbslq_f32(vcltq_f32(a, b), a, b) }
        max(a: F, b: F) -> F { vbslq_f32(vcgtq_f32(a, b), a, b) }
        sqrt(a: F) -> F { vsqrtq_f32(a) }
        abs(a: F) -> F { vabsq_f32(a) }
        neg(a: F) -> F { vnegq_f32(a) }
        round_even(a: F) -> F { vrndnq_f32(a) }
        floor(a: F) -> F { vrndmq_f32(a) }
        ceil(a: F) -> F { vrndpq_f32(a) }
        copysign(a: F, b: F) -> F { vbslq_f32(vdupq_n_u32(1 << 31), b, a) }
        lt(a: F, b: F) -> M { vcltq_f32(a, b) }
        eq(a: F, b: F) -> M { vceqq_f32(a, b) }
        unordered(a: F, b: F) -> M { vmvnq_u32(vandq_u32(vceqq_f32(a, a), vceqq_f32(b, b))) }
        select(m: M, a: F, b: F) -> F { vbslq_f32(m, a, b) }
        mask_bits(m: M) -> u32 { vaddvq_u32(vandq_u32(m, lane_bits())) }
        sum(a: F) -> f32 {{
            let d = vadd_f32(vget_low_f32(a), vget_high_f32(a));
            vget_lane_f32::<0>(d) + vget_lane_f32::<1>(d)
        }}
        hmax(a: F) -> f32 {{
            let (low, high) = (vget_low_f32(a), vget_high_f32(a));
            let d = vbsl_f32(vcgt_f32(low, high), low, high);
            let (low, high) = (vget_lane_f32::<0>(d), vget_lane_f32::<1>(d));
            if low > high { low } else { high }
        }}
        hmin(a: F) -> f32 {{
            let (low, high) = (vget_low_f32(a), vget_high_f32(a));
            let d = vbsl_f32(vclt_f32(low, high), low, high);
            let (low, high) = (vget_lane_f32::<0>(d), vget_lane_f32::<1>(d));
            if low < high { low } else { high }
        }}
        to_bits(a: F) -> I { vreinterpretq_s32_f32(a) }
        float_of(a: I) -> F { vreinterpretq_f32_s32(a) }
        to_i32(a: F) -> I {{
            // The instruction saturates, and makes 0 of NaN.
            let fits = vcltq_f32(a, vdupq_n_f32(2147483648.0));
            vbslq_s32(fits, vcvtnq_s32_f32(a), vdupq_n_s32(i32::MIN))
        }}
        to_f32(a: I) -> F { vcvtq_f32_s32(a) }
        add_i(a: I, b: I) -> I { vaddq_s32(a, b) }
        sub_i(a: I, b: I) -> I { vsubq_s32(a, b) }
        mul_i(a: I, b: I) -> I { vmulq_s32(a, b) }
        and_i(a: I, b: I) -> I { vandq_s32(a, b) }
        xor_i(a: I, b: I) -> I { veorq_s32(a, b) }
        madd_i(a: I, b: I) -> I {{
            let low = vmull_s16(vmovn_s32(a), vmovn_s32(b));
            vmlal_s16(low, vshrn_n_s32::<16>(a), vshrn_n_s32::<16>(b))
        }}
        table(values: &[f32; 16]) -> uint8x16x4_t { vld1q_u8_x4(values.as_ptr().cast()) }
        look_up(table: uint8x16x4_t, index: I) -> F {{
            // The four bytes of the value begin at four times its index.
            let first = vmulq_s32(vandq_s32(index, vdupq_n_s32(15)), vdupq_n_s32(0x0404_0404));
            let places = vreinterpretq_u8_s32(vaddq_s32(first, vdupq_n_s32(0x0302_0100)));
            vreinterpretq_f32_u8(vqtbl4q_u8(table, places))
        }}
        look_up_byte(table: &[f32; 256], index: I) -> F {{
            let mut at = [0i32; 4];
            vst1q_s32(at.as_mut_ptr(), vandq_s32(index, vdupq_n_s32(255)));
            let lanes = [table[at[0] as usize], table[at[1] as usize], table[at[2] as usize], table[at[3] as usize]];
            vld1q_f32(lanes.as_ptr())
        }}
    }

    #[inline(always)]
    fn scale_exp(self, a: F, n: F) -> F {
        scale_in_two(self, a, n)
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: I) -> I {
        // SAFETY: the token proves that the CPU has this instruction.
        unsafe { vshlq_s32(a, vdupq_n_s32(N as i32)) }
    }
    #[inline(always)]
    fn sar_i<const N: u32>(self, a: I) -> I {
        // SAFETY: the token proves that the CPU has this instruction.
        unsafe { vshlq_s32(a, vdupq_n_s32(-(N as i32))) }
    }
    #[inline(always)]
    unsafe fn store_codes<const SIGNED: bool>(self, to: [*mut u8; 4], v: [I; 4], low: [I; 4], zero: I) {
        // SAFETY: the token proves the instructions; the caller vouches for the places.
        unsafe {
            store_pair::<SIGNED>([to[0], to[1]], halves([v[0], v[1]], [low[0], low[1]], zero));
            store_pair::<SIGNED>([to[2], to[3]], halves([v[2], v[3]], [low[2], low[3]], zero));
        }
    }

    memory! {
        load(p: *const f32) -> F { vld1q_f32(p) }
        load_n(p: *const f32, n: usize) -> F { vreinterpretq_f32_u8(words(p, n)) }
        load_bits(p: *const f32, bits: u32) -> F {
            if bits == low_bits(4) { vld1q_f32(p) } else { gather(p, 1, bits) }
        }
        load_strided_bits(p: *const f32, stride: usize, bits: u32) -> F { gather(p, stride, bits) }
        store(p: *mut f32, v: F) { vst1q_f32(p, v) }
        store_n(p: *mut f32, v: F, n: usize) { store_words(p, vreinterpretq_u8_f32(v), n) }
        store_bits(p: *mut f32, v: F, bits: u32) {
            if bits == low_bits(4) { vst1q_f32(p, v) } else { scatter(p, v, bits) }
        }
        prefetch(p: *const f32) {
            // The intrinsic is not stable.
            asm!("prfm pldl1keep, [{}]", in(reg) p, options(nostack, readonly, preserves_flags))
        }
        load_i32_n(p: *const i32, n: usize) -> I { vreinterpretq_s32_u8(words(p, n)) }
        load_u8_n(p: *const u8, n: usize) -> I {
            vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(narrow(p, n)))))
        }
        load_i8_n(p: *const i8, n: usize) -> I {
            vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(narrow(p, n)))))
        }
        load_u16_n(p: *const u16, n: usize) -> I {
            vreinterpretq_s32_u32(vmovl_u16(vreinterpret_u16_u8(narrow(p, n))))
        }
        load_i16_n(p: *const i16, n: usize) -> I { vmovl_s16(vreinterpret_s16_u8(narrow(p, n))) }
        store_i32_n(p: *mut i32, v: I, n: usize) { store_words(p, vreinterpretq_u8_s32(v), n) }
        store_low8_n(p: *mut u8, v: I, n: usize) {{
            let words = vmovn_s32(v);
            let bytes = vmovn_s16(vcombine_s16(words, words));
            let word = vget_lane_u32::<0>(vreinterpret_u32_s8(bytes));
            if n == 4 { p.cast::<u32>().write_unaligned(word) } else { store_partial(p, u128::from(word).to_le_bytes(), n) }
        }}
        store_low16_n(p: *mut u16, v: I, n: usize) {{
            let word = vget_lane_u64::<0>(vreinterpret_u64_s16(vmovn_s32(v)));
            if n == 4 { p.cast::<u64>().write_unaligned(word) } else { store_partial(p, u128::from(word).to_le_bytes(), n) }
        }}
        zip_bytes(rows: [*const u8; 4], flip: I, dst: *mut i32, n: usize) { zip(rows, flip, dst, n) }
        lookup(table: &[u8; 256], x: *const u8, y: *mut u8, len: usize) { look_up_all(table, x, y, len) }
        transpose_bytes(src: *const u8, ld_src: usize, rows: usize, cols: usize, dst: *mut u8, ld_dst: usize) {
            transpose_bytes(src, ld_src, rows, cols, dst, ld_dst)
        }
        transpose_tile(src: *const f32, ld_src: usize, rows: usize, cols: usize, dst: *mut f32, ld_dst: usize) {
            transpose(src, ld_src, rows, cols, dst, ld_dst)
        }
    }
}
