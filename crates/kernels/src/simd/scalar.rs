//! The portable tier: one lane, plain Rust. It is the reference of the others.

use super::{Simd, scale_in_two};
use crate::isa::Scalar;

impl Simd for Scalar {
    const LANES: usize = 1;
    type F = f32;
    type I = i32;
    type M = bool;
    type Table = [f32; 16];

    #[inline(always)]
    fn table(self, values: &[f32; 16]) -> [f32; 16] {
        *values
    }
    #[inline(always)]
    fn look_up(self, table: [f32; 16], index: i32) -> f32 {
        table[(index & 15) as usize]
    }
    #[inline(always)]
    fn look_up_byte(self, table: &[f32; 256], index: i32) -> f32 {
        table[(index & 255) as usize]
    }

    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> i32 {
        x
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> f32 {
        // SAFETY: the caller vouches for one element.
        unsafe { *p }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> f32 {
        // SAFETY: the caller vouches for `n` elements.
        if n > 0 { unsafe { *p } } else { 0.0 }
    }
    #[inline(always)]
    unsafe fn load_bits(self, p: *const f32, bits: u32) -> f32 {
        // SAFETY: the caller vouches for the lanes in `bits`.
        if bits & 1 != 0 { unsafe { *p } } else { 0.0 }
    }
    #[inline(always)]
    unsafe fn load_strided_bits(self, p: *const f32, _stride: usize, bits: u32) -> f32 {
        // SAFETY: the caller vouches for the lanes in `bits`.
        if bits & 1 != 0 { unsafe { *p } } else { 0.0 }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: f32) {
        // SAFETY: the caller vouches for one element.
        unsafe { *p = v }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: f32, n: usize) {
        if n > 0 {
            // SAFETY: the caller vouches for `n` elements.
            unsafe { *p = v }
        }
    }
    #[inline(always)]
    unsafe fn store_bits(self, p: *mut f32, v: f32, bits: u32) {
        if bits & 1 != 0 {
            // SAFETY: the caller vouches for the lanes in `bits`.
            unsafe { *p = v }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(self, _p: *const f32) {}
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn sqrt(self, a: f32) -> f32 {
        a.sqrt()
    }
    #[inline(always)]
    fn abs(self, a: f32) -> f32 {
        a.abs()
    }
    #[inline(always)]
    fn neg(self, a: f32) -> f32 {
        -a
    }
    #[inline(always)]
    fn round_even(self, a: f32) -> f32 {
        a.round_ties_even()
    }
    #[inline(always)]
    fn floor(self, a: f32) -> f32 {
        a.floor()
    }
    #[inline(always)]
    fn ceil(self, a: f32) -> f32 {
        a.ceil()
    }
    #[inline(always)]
    fn copysign(self, a: f32, b: f32) -> f32 {
        a.copysign(b)
    }
    #[inline(always)]
    fn lt(self, a: f32, b: f32) -> bool {
        a < b
    }
    #[inline(always)]
    fn eq(self, a: f32, b: f32) -> bool {
        a == b
    }
    #[inline(always)]
    fn unordered(self, a: f32, b: f32) -> bool {
        a.is_nan() || b.is_nan()
    }
    #[inline(always)]
    fn select(self, m: bool, a: f32, b: f32) -> f32 {
        if m { a } else { b }
    }
    #[inline(always)]
    fn mask_bits(self, m: bool) -> u32 {
        u32::from(m)
    }
    #[inline(always)]
    fn sum(self, a: f32) -> f32 {
        a
    }
    #[inline(always)]
    fn hmax(self, a: f32) -> f32 {
        a
    }
    #[inline(always)]
    fn hmin(self, a: f32) -> f32 {
        a
    }
    #[inline(always)]
    fn to_bits(self, a: f32) -> i32 {
        a.to_bits() as i32
    }
    #[inline(always)]
    fn float_of(self, a: i32) -> f32 {
        f32::from_bits(a as u32)
    }
    #[inline(always)]
    fn to_i32(self, a: f32) -> i32 {
        let rounded = a.round_ties_even();
        if (-2147483648.0..2147483648.0).contains(&rounded) { rounded as i32 } else { i32::MIN }
    }
    #[inline(always)]
    fn to_f32(self, a: i32) -> f32 {
        a as f32
    }
    #[inline(always)]
    fn add_i(self, a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn sub_i(self, a: i32, b: i32) -> i32 {
        a.wrapping_sub(b)
    }
    #[inline(always)]
    fn mul_i(self, a: i32, b: i32) -> i32 {
        a.wrapping_mul(b)
    }
    #[inline(always)]
    fn scale_exp(self, a: f32, n: f32) -> f32 {
        scale_in_two(self, a, n)
    }
    #[inline(always)]
    fn and_i(self, a: i32, b: i32) -> i32 {
        a & b
    }
    #[inline(always)]
    fn xor_i(self, a: i32, b: i32) -> i32 {
        a ^ b
    }
    #[inline(always)]
    fn madd_i(self, a: i32, b: i32) -> i32 {
        let low = i32::from(a as i16) * i32::from(b as i16);
        low.wrapping_add((a >> 16) * (b >> 16))
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: i32) -> i32 {
        a << N
    }
    #[inline(always)]
    fn sar_i<const N: u32>(self, a: i32) -> i32 {
        a >> N
    }
    #[inline(always)]
    unsafe fn load_i32_n(self, p: *const i32, n: usize) -> i32 {
        // SAFETY: the caller vouches for `n` elements.
        if n > 0 { unsafe { *p } } else { 0 }
    }
    #[inline(always)]
    unsafe fn load_u8_n(self, p: *const u8, n: usize) -> i32 {
        // SAFETY: the caller vouches for `n` elements.
        if n > 0 { i32::from(unsafe { *p }) } else { 0 }
    }
    #[inline(always)]
    unsafe fn load_i8_n(self, p: *const i8, n: usize) -> i32 {
        // SAFETY: the caller vouches for `n` elements.
        if n > 0 { i32::from(unsafe { *p }) } else { 0 }
    }
    #[inline(always)]
    unsafe fn load_u16_n(self, p: *const u16, n: usize) -> i32 {
        // SAFETY: the caller vouches for `n` elements.
        if n > 0 { i32::from(unsafe { p.read_unaligned() }) } else { 0 }
    }
    #[inline(always)]
    unsafe fn load_i16_n(self, p: *const i16, n: usize) -> i32 {
        // SAFETY: the caller vouches for `n` elements.
        if n > 0 { i32::from(unsafe { *p }) } else { 0 }
    }
    #[inline(always)]
    unsafe fn store_i32_n(self, p: *mut i32, v: i32, n: usize) {
        if n > 0 {
            // SAFETY: the caller vouches for `n` elements.
            unsafe { *p = v }
        }
    }
    #[inline(always)]
    unsafe fn store_low8_n(self, p: *mut u8, v: i32, n: usize) {
        if n > 0 {
            // SAFETY: the caller vouches for `n` elements.
            unsafe { *p = v as u8 }
        }
    }
    #[inline(always)]
    unsafe fn store_codes<const SIGNED: bool>(self, to: [*mut u8; 4], v: [i32; 4], low: [i32; 4], zero: i32) {
        let (least, most) = if SIGNED { (-128, 127) } else { (0, 255) };
        for (to, (v, low)) in to.into_iter().zip(v.into_iter().zip(low)) {
            // SAFETY: the caller vouches for the places.
            unsafe { *to = v.max(low).saturating_add(zero).clamp(least, most) as u8 }
        }
    }
    #[inline(always)]
    unsafe fn store_low16_n(self, p: *mut u16, v: i32, n: usize) {
        if n > 0 {
            // SAFETY: the caller vouches for `n` elements.
            unsafe { *p = v as u16 }
        }
    }
    #[inline(always)]
    unsafe fn transpose_tile(
        self,
        src: *const f32,
        _ld_src: usize,
        rows: usize,
        cols: usize,
        dst: *mut f32,
        _ld_dst: usize,
    ) {
        if rows > 0 && cols > 0 {
            // SAFETY: a tile is at most one element here, which the caller vouches for.
            unsafe { *dst = *src }
        }
    }
}
