//! AVX-512: sixteen lanes, masks in registers.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Kernel, Simd, low_bits};
use crate::codes::round_bf16;
use crate::isa::Avx512;

/// Runs a kernel compiled for this tier.
pub(super) fn run<K: Kernel>(token: Avx512, kernel: K) -> K::Out {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c,bmi2,popcnt")]
    fn inner<K: Kernel>(token: Avx512, kernel: K) -> K::Out {
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

type F = __m512;
type I = __m512i;

/// `v + zero` as bytes: by lanes of 128 bits, and within a lane by vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn codes<const SIGNED: bool>(v: [I; 4], zero: I) -> I {
    let zero = _mm512_packs_epi32(zero, zero);
    let low = _mm512_adds_epi16(_mm512_packs_epi32(v[0], v[1]), zero);
    let high = _mm512_adds_epi16(_mm512_packs_epi32(v[2], v[3]), zero);
    if SIGNED { _mm512_packs_epi16(low, high) } else { _mm512_packus_epi16(low, high) }
}

/// Floats as bfloat16, on a processor that has the instruction.
///
/// As assembly: the intrinsic would be called, from code that is compiled without its feature.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn to_bf16(v: F) -> __m256i {
    let y: __m256i;
    // SAFETY: the caller vouches for the instruction, which only reads and writes these registers.
    unsafe {
        asm!(
            "vcvtneps2bf16 {y}, {v}",
            v = in(zmm_reg) v,
            y = lateout(ymm_reg) y,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    y
}

/// As [`to_bf16`], of two vectors, the first one below.
///
/// # Safety
/// The processor has AVX512-BF16.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn both_to_bf16(low: F, high: F) -> __m512i {
    let y: __m512i;
    // SAFETY: as in `to_bf16`.
    unsafe {
        asm!(
            "vcvtne2ps2bf16 {y}, {high}, {low}",
            low = in(zmm_reg) low,
            high = in(zmm_reg) high,
            y = lateout(zmm_reg) y,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    y
}

/// Every other element of 32 (stride 2), or a gather.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
unsafe fn strided(p: *const f32, stride: usize, bits: u32) -> F {
    if stride == 2 {
        let spread = _pdep_u32(bits, 0x5555_5555);
        let index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        // SAFETY: the masks select only the elements that the caller vouches for.
        let (low, high) = unsafe {
            (
                _mm512_maskz_loadu_ps(spread as __mmask16, p),
                _mm512_maskz_loadu_ps((spread >> 16) as __mmask16, p.wrapping_add(16)),
            )
        };
        return _mm512_permutex2var_ps(low, index, high);
    }
    let mut lanes = [0f32; 16];
    for (i, lane) in lanes.iter_mut().enumerate() {
        if bits >> i & 1 != 0 {
            // SAFETY: the caller vouches for the lanes in `bits`.
            *lane = unsafe { *p.wrapping_add(i * stride) };
        }
    }
    // SAFETY: the array has sixteen lanes.
    unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn transpose(src: *const f32, ld_src: usize, rows: usize, cols: usize, dst: *mut f32, ld_dst: usize) {
    let col_mask = low_bits(cols) as __mmask16;
    let row_mask = low_bits(rows) as __mmask16;
    // u[g][j]: 128-bit lane l holds rows 4g..4g+4 of column 4l + j.
    let mut u = [[_mm512_setzero_ps(); 4]; 4];
    for (g, group) in u.iter_mut().enumerate() {
        if 4 * g >= rows {
            break;
        }
        let mut r = [_mm512_setzero_ps(); 4];
        for (i, row) in r.iter_mut().enumerate() {
            if 4 * g + i < rows {
                let p = src.wrapping_add((4 * g + i) * ld_src);
                // SAFETY: row `4g + i < rows` has `cols` elements.
                *row = unsafe { _mm512_maskz_loadu_ps(col_mask, p) };
            }
        }
        let (t0, t1) = (_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
        let (t2, t3) = (_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
        *group = [
            _mm512_shuffle_ps::<0x44>(t0, t2),
            _mm512_shuffle_ps::<0xee>(t0, t2),
            _mm512_shuffle_ps::<0x44>(t1, t3),
            _mm512_shuffle_ps::<0xee>(t1, t3),
        ];
    }
    // Index `j` names a column, not only a place in the groups.
    #[allow(clippy::needless_range_loop)]
    for j in 0..4 {
        let v0 = _mm512_shuffle_f32x4::<0x88>(u[0][j], u[1][j]);
        let v1 = _mm512_shuffle_f32x4::<0xdd>(u[0][j], u[1][j]);
        let v2 = _mm512_shuffle_f32x4::<0x88>(u[2][j], u[3][j]);
        let v3 = _mm512_shuffle_f32x4::<0xdd>(u[2][j], u[3][j]);
        let columns = [
            _mm512_shuffle_f32x4::<0x88>(v0, v2),
            _mm512_shuffle_f32x4::<0x88>(v1, v3),
            _mm512_shuffle_f32x4::<0xdd>(v0, v2),
            _mm512_shuffle_f32x4::<0xdd>(v1, v3),
        ];
        for (l, column) in columns.into_iter().enumerate() {
            if 4 * l + j < cols {
                let p = dst.wrapping_add((4 * l + j) * ld_dst);
                // SAFETY: column `4l + j < cols` of the target has `rows` elements.
                unsafe { _mm512_mask_storeu_ps(p, row_mask, column) };
            }
        }
    }
}

/// 64 bytes of each row at a time: two rounds of interleaving leave the words of channels
/// 4q … 4q + 3 of each 16 in one vector, whose quarters are then put in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn zip(rows: [*const u8; 4], flip: I, dst: *mut i32, n: usize) {
    let mut i = 0;
    while i < n {
        let mask = if n - i >= 64 { u64::MAX } else { (1 << (n - i)) - 1 };
        // SAFETY: the mask ends at `n`.
        let (a, b, c, d) = unsafe {
            (
                _mm512_maskz_loadu_epi8(mask, rows[0].wrapping_add(i).cast()),
                _mm512_maskz_loadu_epi8(mask, rows[1].wrapping_add(i).cast()),
                _mm512_maskz_loadu_epi8(mask, rows[2].wrapping_add(i).cast()),
                _mm512_maskz_loadu_epi8(mask, rows[3].wrapping_add(i).cast()),
            )
        };
        let (ab, ab_high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
        let (cd, cd_high) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
        let (w0, w1) = (_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd));
        let (w2, w3) = (_mm512_unpacklo_epi16(ab_high, cd_high), _mm512_unpackhi_epi16(ab_high, cd_high));
        let (low01, high01) = (_mm512_shuffle_i32x4::<0x44>(w0, w1), _mm512_shuffle_i32x4::<0xee>(w0, w1));
        let (low23, high23) = (_mm512_shuffle_i32x4::<0x44>(w2, w3), _mm512_shuffle_i32x4::<0xee>(w2, w3));
        let words = [
            _mm512_shuffle_i32x4::<0x88>(low01, low23),
            _mm512_shuffle_i32x4::<0xdd>(low01, low23),
            _mm512_shuffle_i32x4::<0x88>(high01, high23),
            _mm512_shuffle_i32x4::<0xdd>(high01, high23),
        ];
        for (k, &word) in words.iter().enumerate() {
            let (at, part) = (i + 16 * k, (mask >> (16 * k)) as __mmask16);
            if at >= n {
                break;
            }
            // SAFETY: as above.
            unsafe { _mm512_mask_storeu_epi32(dst.wrapping_add(at), part, _mm512_xor_si512(word, flip)) };
        }
        i += 64;
    }
}

/// 64 bytes at a time: each sixteenth of the table answers by its low four bits, and masks
/// of the high four choose among the answers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn lookup(table: &[u8; 256], x: *const u8, y: *mut u8, len: usize) {
    let mut rows = [_mm512_setzero_si512(); 16];
    for (row, part) in rows.iter_mut().zip(table.chunks_exact(16)) {
        // SAFETY: a part has sixteen bytes.
        *row = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(part.as_ptr().cast()) });
    }
    let mut i = 0;
    while i < len {
        let mask = if len - i >= 64 { u64::MAX } else { (1 << (len - i)) - 1 };
        // SAFETY: the mask ends at `len`.
        let v = unsafe { _mm512_maskz_loadu_epi8(mask, x.add(i).cast()) };
        let low = _mm512_and_si512(v, _mm512_set1_epi8(15));
        let bit4 = _mm512_movepi8_mask(_mm512_slli_epi16::<3>(v));
        let bit5 = _mm512_movepi8_mask(_mm512_slli_epi16::<2>(v));
        let bit6 = _mm512_movepi8_mask(_mm512_slli_epi16::<1>(v));
        let pair = |k: usize| {
            let even = _mm512_shuffle_epi8(rows[2 * k], low);
            _mm512_mask_shuffle_epi8(even, bit4, rows[2 * k + 1], low)
        };
        let four = |k: usize| _mm512_mask_blend_epi8(bit5, pair(2 * k), pair(2 * k + 1));
        let eight = |k: usize| _mm512_mask_blend_epi8(bit6, four(2 * k), four(2 * k + 1));
        let found = _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), eight(0), eight(1));
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_epi8(y.add(i).cast(), mask, found) };
        i += 64;
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    type F = F;
    type I = I;
    type M = __mmask16;
    type Table = F;

    #[inline(always)]
    unsafe fn store_bf16_n(self, p: *mut u16, v: F, n: usize) {
        // SAFETY: the token proves the instructions; the caller vouches for the memory.
        unsafe {
            if !self.rounds_to_bf16() {
                return self.store_low16_n(p, self.sar_i::<16>(round_bf16(self, v)), n);
            }
            let y = to_bf16(v);
            _mm256_mask_storeu_epi16(p.cast(), low_bits(n) as __mmask16, y);
        }
    }

    #[inline(always)]
    unsafe fn store_bf16_pair(self, p: *mut u16, a: F, b: F) {
        // SAFETY: the token proves the instructions; the caller vouches for the memory.
        unsafe {
            if !self.rounds_to_bf16() {
                self.store_low16_n(p, self.sar_i::<16>(round_bf16(self, a)), 16);
                self.store_low16_n(p.add(16), self.sar_i::<16>(round_bf16(self, b)), 16);
                return;
            }
            _mm512_storeu_si512(p.cast(), both_to_bf16(a, b));
        }
    }

    lanewise! {
        splat(x: f32) -> F { _mm512_set1_ps(x) }
        splat_i(x: i32) -> I { _mm512_set1_epi32(x) }
        add(a: F, b: F) -> F { _mm512_add_ps(a, b) }
        sub(a: F, b: F) -> F { _mm512_sub_ps(a, b) }
        mul(a: F, b: F) -> F { _mm512_mul_ps(a, b) }
        div(a: F, b: F) -> F { _mm512_div_ps(a, b) }
        mul_add(a: F, b: F, c: F) -> F { _mm512_fmadd_ps(a, b, c) }
        min(a: F, b: F) -> F { _mm512_min_ps(a, b) }
        max(a: F, b: F) -> F { _mm512_max_ps(a, b) }
        sqrt(a: F) -> F { _mm512_sqrt_ps(a) }
        abs(a: F) -> F { _mm512_andnot_ps(_mm512_set1_ps(-0.0), a) }
        neg(a: F) -> F { _mm512_xor_ps(_mm512_set1_ps(-0.0), a) }
        round_even(a: F) -> F {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        }
        floor(a: F) -> F { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a) }
        ceil(a: F) -> F { _mm512_roundscale_ps::<{ _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC }>(a) }
        scale_exp(a: F, n: F) -> F { _mm512_scalef_ps(a, n) }
        copysign(a: F, b: F) -> F {
            _mm512_or_ps(_mm512_andnot_ps(_mm512_set1_ps(-0.0), a), _mm512_and_ps(_mm512_set1_ps(-0.0), b))
        }
        lt(a: F, b: F) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
        eq(a: F, b: F) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
        unordered(a: F, b: F) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, b) }
        select(m: __mmask16, a: F, b: F) -> F { _mm512_mask_blend_ps(m, b, a) }
        sum(a: F) -> f32 {{
            let h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps::<1>(h));
            let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)))
        }}
        hmax(a: F) -> f32 {{
            let h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps::<1>(h));
            let d = _mm_max_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)))
        }}
        hmin(a: F) -> f32 {{
            let h = _mm256_min_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let q = _mm_min_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps::<1>(h));
            let d = _mm_min_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_min_ss(d, _mm_movehdup_ps(d)))
        }}
        to_bits(a: F) -> I { _mm512_castps_si512(a) }
        float_of(a: I) -> F { _mm512_castsi512_ps(a) }
        to_i32(a: F) -> I { _mm512_cvtps_epi32(a) }
        to_f32(a: I) -> F { _mm512_cvtepi32_ps(a) }
        add_i(a: I, b: I) -> I { _mm512_add_epi32(a, b) }
        sub_i(a: I, b: I) -> I { _mm512_sub_epi32(a, b) }
        mul_i(a: I, b: I) -> I { _mm512_mullo_epi32(a, b) }
        and_i(a: I, b: I) -> I { _mm512_and_si512(a, b) }
        xor_i(a: I, b: I) -> I { _mm512_xor_si512(a, b) }
        madd_i(a: I, b: I) -> I { _mm512_madd_epi16(a, b) }
        table(values: &[f32; 16]) -> F { _mm512_loadu_ps(values.as_ptr()) }
        look_up(table: F, index: I) -> F { _mm512_permutexvar_ps(index, table) }
    }

    #[inline(always)]
    fn look_up_byte(self, table: &[f32; 256], index: I) -> F {
        // SAFETY: the token proves the features; the index is below 256.
        unsafe { _mm512_i32gather_ps::<4>(_mm512_and_si512(index, _mm512_set1_epi32(255)), table.as_ptr().cast()) }
    }
    #[inline(always)]
    fn mask_bits(self, m: __mmask16) -> u32 {
        u32::from(m)
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: I) -> I {
        // SAFETY: the token proves that the CPU has this instruction.
        unsafe { _mm512_slli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn sar_i<const N: u32>(self, a: I) -> I {
        // SAFETY: the token proves that the CPU has this instruction.
        unsafe { _mm512_srai_epi32::<N>(a) }
    }

    memory! {
        load(p: *const f32) -> F { _mm512_loadu_ps(p) }
        load_n(p: *const f32, n: usize) -> F { _mm512_maskz_loadu_ps(low_bits(n) as __mmask16, p) }
        load_bits(p: *const f32, bits: u32) -> F { _mm512_maskz_loadu_ps(bits as __mmask16, p) }
        load_strided_bits(p: *const f32, stride: usize, bits: u32) -> F { strided(p, stride, bits) }
        store(p: *mut f32, v: F) { _mm512_storeu_ps(p, v) }
        store_n(p: *mut f32, v: F, n: usize) { _mm512_mask_storeu_ps(p, low_bits(n) as __mmask16, v) }
        store_bits(p: *mut f32, v: F, bits: u32) { _mm512_mask_storeu_ps(p, bits as __mmask16, v) }
        prefetch(p: *const f32) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        load_i32_n(p: *const i32, n: usize) -> I { _mm512_maskz_loadu_epi32(low_bits(n) as __mmask16, p) }
        load_u8_n(p: *const u8, n: usize) -> I {
            _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(low_bits(n) as __mmask16, p.cast()))
        }
        load_i8_n(p: *const i8, n: usize) -> I {
            _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(low_bits(n) as __mmask16, p))
        }
        load_u16_n(p: *const u16, n: usize) -> I {
            _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(low_bits(n) as __mmask16, p.cast()))
        }
        load_i16_n(p: *const i16, n: usize) -> I {
            _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(low_bits(n) as __mmask16, p))
        }
        store_i32_n(p: *mut i32, v: I, n: usize) {
            _mm512_mask_storeu_epi32(p, low_bits(n) as __mmask16, v)
        }
        store_i32_of(p: *mut i32, v: I, bits: u32) -> usize {
            {
                let v = if bits == 0xffff { v } else { _mm512_maskz_compress_epi32(bits as __mmask16, v) };
                _mm512_storeu_epi32(p, v);
                bits.count_ones() as usize
            }
        }
        store_low8_n(p: *mut u8, v: I, n: usize) {
            _mm_mask_storeu_epi8(p.cast(), low_bits(n) as __mmask16, _mm512_cvtepi32_epi8(v))
        }
        store_codes<const SIGNED: bool>(to: [*mut u8; 4], v: [I; 4], low: [I; 4], zero: I) {
            {
                let codes = match SIGNED {
                    true => _mm512_max_epi8(codes::<true>(v, zero), codes::<true>(low, zero)),
                    false => _mm512_max_epu8(codes::<false>(v, zero), codes::<false>(low, zero)),
                };
                // Four bytes of each vector lie in each lane of 128 bits.
                let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
                let codes = _mm512_permutexvar_epi32(order, codes);
                _mm_storeu_si128(to[0].cast(), _mm512_castsi512_si128(codes));
                _mm_storeu_si128(to[1].cast(), _mm512_extracti32x4_epi32::<1>(codes));
                _mm_storeu_si128(to[2].cast(), _mm512_extracti32x4_epi32::<2>(codes));
                _mm_storeu_si128(to[3].cast(), _mm512_extracti32x4_epi32::<3>(codes));
            }
        }
        store_low16_n(p: *mut u16, v: I, n: usize) {
            _mm256_mask_storeu_epi16(p.cast(), low_bits(n) as __mmask16, _mm512_cvtepi32_epi16(v))
        }
        lookup(table: &[u8; 256], x: *const u8, y: *mut u8, len: usize) { lookup(table, x, y, len) }
        zip_bytes(rows: [*const u8; 4], flip: I, dst: *mut i32, n: usize) { zip(rows, flip, dst, n) }
        transpose_bytes(src: *const u8, ld_src: usize, rows: usize, cols: usize, dst: *mut u8, ld_dst: usize) {
            super::bytes::transpose(src, ld_src, rows, cols, dst, ld_dst)
        }
        transpose_tile(src: *const f32, ld_src: usize, rows: usize, cols: usize, dst: *mut f32, ld_dst: usize) {
            transpose(src, ld_src, rows, cols, dst, ld_dst)
        }
    }
}
