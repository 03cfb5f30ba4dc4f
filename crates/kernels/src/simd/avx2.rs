//! AVX2 + FMA: eight lanes.

use std::arch::x86_64::*;

use super::{Kernel, Simd, low_bits, scale_in_two};
use crate::isa::Avx2;

/// Runs a kernel compiled for this tier.
pub(super) fn run<K: Kernel>(token: Avx2, kernel: K) -> K::Out {
    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
    fn inner<K: Kernel>(token: Avx2, kernel: K) -> K::Out {
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
    ($($name:ident$(<const $bool:ident: bool>)?($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $body:expr })*) => {$(
        #[inline(always)]
        unsafe fn $name$(<const $bool: bool>)?(self, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the token proves the instructions; the caller vouches for the memory.
            unsafe { $body }
        }
    )*};
}

type F = __m256;
type I = __m256i;

/// A full lane mask from one bit per lane.
#[inline]
#[target_feature(enable = "avx2")]
fn expand(bits: u32) -> I {
    let select = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    let all = _mm256_set1_epi32(bits as i32);
    _mm256_cmpeq_epi32(_mm256_and_si256(all, select), select)
}

/// Writes the lanes in `bits`. Stores with a mask take AMD's processors over ten cycles.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_some(p: *mut f32, v: F, bits: u32) {
    // SAFETY: the caller vouches for the lanes.
    unsafe {
        if bits & 0xff == 0xff {
            _mm256_storeu_ps(p, v);
        } else {
            _mm256_maskstore_ps(p, expand(bits), v);
        }
    }
}

/// The low 8 bits of the lanes, in the low 8 bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn narrow8(v: I) -> __m128i {
    let low = _mm256_and_si256(v, _mm256_set1_epi32(0xff));
    let words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
    _mm_packus_epi16(words, words)
}

/// `v + zero` as bytes: by lanes of 128 bits, and within a lane by vector.
#[inline]
#[target_feature(enable = "avx2")]
fn codes<const SIGNED: bool>(v: [I; 4], zero: I) -> I {
    let zero = _mm256_packs_epi32(zero, zero);
    let low = _mm256_adds_epi16(_mm256_packs_epi32(v[0], v[1]), zero);
    let high = _mm256_adds_epi16(_mm256_packs_epi32(v[2], v[3]), zero);
    if SIGNED { _mm256_packs_epi16(low, high) } else { _mm256_packus_epi16(low, high) }
}

/// The low 16 bits of the lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn narrow16(v: I) -> __m128i {
    let low = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
    _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low))
}

/// The first `n` elements, in the low end of 16 bytes that are zero elsewhere.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn partial<T: Copy>(p: *const T, n: usize) -> __m128i {
    let mut bytes = [0u8; 16];
    // SAFETY: the caller vouches for `n` elements; 8 of at most 2 bytes fit.
    unsafe {
        std::ptr::copy_nonoverlapping(p.cast::<u8>(), bytes.as_mut_ptr(), n * size_of::<T>());
        _mm_loadu_si128(bytes.as_ptr().cast())
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_partial<T>(p: *mut T, v: __m128i, n: usize) {
    let mut bytes = [0u8; 16];
    // SAFETY: the caller vouches for `n` elements; 8 of at most 2 bytes fit.
    unsafe {
        _mm_storeu_si128(bytes.as_mut_ptr().cast(), v);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), p.cast::<u8>(), n * size_of::<T>());
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn gather(p: *const f32, stride: usize, bits: u32) -> F {
    let mut lanes = [0f32; 8];
    for (i, lane) in lanes.iter_mut().enumerate() {
        if bits >> i & 1 != 0 {
            // SAFETY: the caller vouches for the lanes in `bits`.
            *lane = unsafe { *p.wrapping_add(i * stride) };
        }
    }
    // SAFETY: the array has eight lanes.
    unsafe { _mm256_loadu_ps(lanes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transpose(src: *const f32, ld_src: usize, rows: usize, cols: usize, dst: *mut f32, ld_dst: usize) {
    let row_mask = expand(low_bits(rows));
    let col_mask = expand(low_bits(cols));
    let mut r = [_mm256_setzero_ps(); 8];
    for (i, row) in r.iter_mut().enumerate() {
        if i < rows {
            // SAFETY: row `i < rows` has `cols` elements.
            *row = unsafe { _mm256_maskload_ps(src.wrapping_add(i * ld_src), col_mask) };
        }
    }
    let mut u = [_mm256_setzero_ps(); 8];
    for g in 0..2 {
        let [a, b, c, d] = [r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]];
        let (t0, t1) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (t2, t3) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        u[4 * g] = _mm256_shuffle_ps::<0x44>(t0, t2);
        u[4 * g + 1] = _mm256_shuffle_ps::<0xee>(t0, t2);
        u[4 * g + 2] = _mm256_shuffle_ps::<0x44>(t1, t3);
        u[4 * g + 3] = _mm256_shuffle_ps::<0xee>(t1, t3);
    }
    for j in 0..8 {
        if j >= cols {
            break;
        }
        let (a, b) = (u[j % 4], u[4 + j % 4]);
        let col = if j < 4 { _mm256_permute2f128_ps::<0x20>(a, b) } else { _mm256_permute2f128_ps::<0x31>(a, b) };
        // SAFETY: column `j < cols` of the target has `rows` elements.
        unsafe { _mm256_maskstore_ps(dst.wrapping_add(j * ld_dst), row_mask, col) };
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    type F = F;
    type I = I;
    type M = F;
    type Table = [F; 2];

    lanewise! {
        splat(x: f32) -> F { _mm256_set1_ps(x) }
        splat_i(x: i32) -> I { _mm256_set1_epi32(x) }
        add(a: F, b: F) -> F { _mm256_add_ps(a, b) }
        sub(a: F, b: F) -> F { _mm256_sub_ps(a, b) }
        mul(a: F, b: F) -> F { _mm256_mul_ps(a, b) }
        div(a: F, b: F) -> F { _mm256_div_ps(a, b) }
        mul_add(a: F, b: F, c: F) -> F { _mm256_fmadd_ps(a, b, c) }
        min(a: F, b: F) -> F { _mm256_min_ps(a, b) }
        max(a: F, b: F) -> F { _mm256_max_ps(a, b) }
        sqrt(a: F) -> F { _mm256_sqrt_ps(a) }
        abs(a: F) -> F { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
        neg(a: F) -> F { _mm256_xor_ps(_mm256_set1_ps(-0.0), a) }
        round_even(a: F) -> F { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        floor(a: F) -> F { _mm256_floor_ps(a) }
        ceil(a: F) -> F { _mm256_ceil_ps(a) }
        copysign(a: F, b: F) -> F {
            _mm256_or_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a), _mm256_and_ps(_mm256_set1_ps(-0.0), b))
        }
        lt(a: F, b: F) -> F { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
        eq(a: F, b: F) -> F { _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b) }
        unordered(a: F, b: F) -> F { _mm256_cmp_ps::<_CMP_UNORD_Q>(a, b) }
        select(m: F, a: F, b: F) -> F { _mm256_blendv_ps(b, a, m) }
        mask_bits(m: F) -> u32 { _mm256_movemask_ps(m) as u32 }
        sum(a: F) -> f32 {{
            let q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)))
        }}
        hmax(a: F) -> f32 {{
            let q = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let d = _mm_max_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)))
        }}
        hmin(a: F) -> f32 {{
            let q = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let d = _mm_min_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_min_ss(d, _mm_movehdup_ps(d)))
        }}
        to_bits(a: F) -> I { _mm256_castps_si256(a) }
        float_of(a: I) -> F { _mm256_castsi256_ps(a) }
        to_i32(a: F) -> I { _mm256_cvtps_epi32(a) }
        to_f32(a: I) -> F { _mm256_cvtepi32_ps(a) }
        add_i(a: I, b: I) -> I { _mm256_add_epi32(a, b) }
        sub_i(a: I, b: I) -> I { _mm256_sub_epi32(a, b) }
        mul_i(a: I, b: I) -> I { _mm256_mullo_epi32(a, b) }
        and_i(a: I, b: I) -> I { _mm256_and_si256(a, b) }
        xor_i(a: I, b: I) -> I { _mm256_xor_si256(a, b) }
        madd_i(a: I, b: I) -> I { _mm256_madd_epi16(a, b) }
        table(values: &[f32; 16]) -> [F; 2] {
            [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))]
        }
        look_up(table: [F; 2], index: I) -> F {{
            let (low, high) = (_mm256_permutevar8x32_ps(table[0], index), _mm256_permutevar8x32_ps(table[1], index));
            // The sign of each lane chooses.
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
        }}
    }

    #[inline(always)]
    fn look_up_byte(self, table: &[f32; 256], index: I) -> F {
        // SAFETY: the token proves the features; the index is below 256.
        unsafe { _mm256_i32gather_ps::<4>(table.as_ptr(), _mm256_and_si256(index, _mm256_set1_epi32(255))) }
    }
    #[inline(always)]
    fn scale_exp(self, a: F, n: F) -> F {
        scale_in_two(self, a, n)
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: I) -> I {
        // SAFETY: the token proves that the CPU has this instruction.
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn sar_i<const N: u32>(self, a: I) -> I {
        // SAFETY: the token proves that the CPU has this instruction.
        unsafe { _mm256_sra_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }

    memory! {
        load(p: *const f32) -> F { _mm256_loadu_ps(p) }
        load_n(p: *const f32, n: usize) -> F { _mm256_maskload_ps(p, expand(low_bits(n))) }
        load_bits(p: *const f32, bits: u32) -> F { _mm256_maskload_ps(p, expand(bits)) }
        load_strided_bits(p: *const f32, stride: usize, bits: u32) -> F { gather(p, stride, bits) }
        store(p: *mut f32, v: F) { _mm256_storeu_ps(p, v) }
        store_n(p: *mut f32, v: F, n: usize) { store_some(p, v, low_bits(n)) }
        store_bits(p: *mut f32, v: F, bits: u32) { store_some(p, v, bits) }
        prefetch(p: *const f32) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        load_i32_n(p: *const i32, n: usize) -> I { _mm256_maskload_epi32(p, expand(low_bits(n))) }
        load_u8_n(p: *const u8, n: usize) -> I {
            _mm256_cvtepu8_epi32(if n == 8 { _mm_loadl_epi64(p.cast()) } else { partial(p, n) })
        }
        load_i8_n(p: *const i8, n: usize) -> I {
            _mm256_cvtepi8_epi32(if n == 8 { _mm_loadl_epi64(p.cast()) } else { partial(p, n) })
        }
        load_u16_n(p: *const u16, n: usize) -> I {
            _mm256_cvtepu16_epi32(if n == 8 { _mm_loadu_si128(p.cast()) } else { partial(p, n) })
        }
        load_i16_n(p: *const i16, n: usize) -> I {
            _mm256_cvtepi16_epi32(if n == 8 { _mm_loadu_si128(p.cast()) } else { partial(p, n) })
        }
        store_i32_n(p: *mut i32, v: I, n: usize) { store_some(p.cast(), _mm256_castsi256_ps(v), low_bits(n)) }
        store_low8_n(p: *mut u8, v: I, n: usize) {
            if n == 8 { _mm_storel_epi64(p.cast(), narrow8(v)) } else { store_partial(p, narrow8(v), n) }
        }
        store_codes<const SIGNED: bool>(to: [*mut u8; 4], v: [I; 4], low: [I; 4], zero: I) {
            {
                let codes = match SIGNED {
                    true => _mm256_max_epi8(codes::<true>(v, zero), codes::<true>(low, zero)),
                    false => _mm256_max_epu8(codes::<false>(v, zero), codes::<false>(low, zero)),
                };
                // Four bytes of each vector lie in each lane of 128 bits.
                let codes = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
                let (first, second) = (_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes));
                _mm_storel_epi64(to[0].cast(), first);
                _mm_storel_epi64(to[1].cast(), _mm_unpackhi_epi64(first, first));
                _mm_storel_epi64(to[2].cast(), second);
                _mm_storel_epi64(to[3].cast(), _mm_unpackhi_epi64(second, second));
            }
        }
        store_low16_n(p: *mut u16, v: I, n: usize) {
            if n == 8 { _mm_storeu_si128(p.cast(), narrow16(v)) } else { store_partial(p, narrow16(v), n) }
        }
        transpose_bytes(src: *const u8, ld_src: usize, rows: usize, cols: usize, dst: *mut u8, ld_dst: usize) {
            super::bytes::transpose(src, ld_src, rows, cols, dst, ld_dst)
        }
        transpose_tile(src: *const f32, ld_src: usize, rows: usize, cols: usize, dst: *mut f32, ld_dst: usize) {
            transpose(src, ld_src, rows, cols, dst, ld_dst)
        }
    }
}
