//! Vectors of 64, 32 and 16 bytes, and what AVX-512 with VNNI and AVX2 do differently with them.

use std::arch::x86_64::*;

/// A vector of bytes, or of words of four bytes.
///
/// # Safety
/// The processor has AVX2, or AVX-512 with BW for 64 bytes; `words` and `floats` read a vector.
pub(super) trait Vector: Copy {
    type Floats: Copy;
    const BYTES: usize;
    unsafe fn words(p: *const u32) -> Self;
    unsafe fn floats(p: *const f32) -> Self::Floats;
    unsafe fn splat(x: u8) -> Self;
    unsafe fn splat_half(x: i16) -> Self;
    unsafe fn splat_float(x: f32) -> Self::Floats;
    unsafe fn xor(a: Self, b: Self) -> Self;
    /// The words of four rows, each of which has a byte per channel.
    unsafe fn zip(rows: [Self; 4]) -> [Self; 4];
    unsafe fn convert(a: Self) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// As [`crate::simd::Simd::min`] and `max`.
    unsafe fn min(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn max(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Half to even; out of range and NaN give `i32::MIN`.
    unsafe fn round(a: Self::Floats) -> Self;
    /// `saturate(a + zero)` as bytes in the order of the channels.
    unsafe fn narrow(a: [Self; 4], zero: Self, signed: bool) -> Self;
}

/// What an instruction set does with vectors of one length.
///
/// # Safety
/// The processor has the instruction set; `load` and `store` touch `n` bytes, `weights` a vector in each plane.
pub(super) trait Tier<V: Vector>: Copy {
    /// The words of weights.
    type Weights: Copy;
    unsafe fn load(p: *const u8, n: usize) -> V;
    unsafe fn store(p: *mut u8, v: V, n: usize);
    /// Weights whose planes, as `direct::Set::planes` counts them, are `plane` words apart.
    unsafe fn weights(p: *const u32, plane: usize) -> Self::Weights;
    /// `sum + Σ x · w` over the four bytes of each word, unsigned by signed: with weights in two planes, less their correction.
    unsafe fn dot(sum: V, x: V, w: Self::Weights) -> V;
}

/// AVX-512 with VNNI.
#[derive(Clone, Copy)]
pub(super) struct Dots;

/// AVX2: magnitudes of the weights, times bytes less 128 that are turned where a weight is negative (see `panel::avx2`).
#[derive(Clone, Copy)]
pub(super) struct Signs;

macro_rules! dots {
    ($vector:ty, $bytes:literal, $mask:ty, $load:ident $load_n:ident $store:ident $store_n:ident $dot:ident) => {
        impl Tier<$vector> for Dots {
            type Weights = $vector;
            #[inline(always)]
            unsafe fn load(p: *const u8, n: usize) -> $vector {
                // SAFETY: the contract of the trait; the mask has `n` bits.
                unsafe { if n == $bytes { $load(p.cast()) } else { $load_n(((1u32 << n) - 1) as $mask, p.cast()) } }
            }
            #[inline(always)]
            unsafe fn store(p: *mut u8, v: $vector, n: usize) {
                // SAFETY: as above.
                unsafe {
                    if n == $bytes { $store(p.cast(), v) } else { $store_n(p.cast(), ((1u32 << n) - 1) as $mask, v) }
                }
            }
            #[inline(always)]
            unsafe fn weights(p: *const u32, _: usize) -> $vector {
                // SAFETY: the contract of the trait.
                unsafe { $load(p.cast()) }
            }
            #[inline(always)]
            unsafe fn dot(sum: $vector, x: $vector, w: $vector) -> $vector {
                // SAFETY: the contract of the trait.
                unsafe { $dot(sum, x, w) }
            }
        }
    };
}
dots!(__m512i, 64, u64, _mm512_loadu_si512 _mm512_maskz_loadu_epi8 _mm512_storeu_si512 _mm512_mask_storeu_epi8
    _mm512_dpbusd_epi32);
dots!(__m256i, 32, u32, _mm256_loadu_si256 _mm256_maskz_loadu_epi8 _mm256_storeu_si256 _mm256_mask_storeu_epi8
    _mm256_dpbusd_epi32);
dots!(__m128i, 16, u16, _mm_loadu_si128 _mm_maskz_loadu_epi8 _mm_storeu_si128 _mm_mask_storeu_epi8 _mm_dpbusd_epi32);

macro_rules! signs {
    ($vector:ty, $bytes:literal, $load:ident $store:ident $xor:ident $bytes_by:ident $halves_by:ident $ones:ident $add:ident) => {
        impl Tier<$vector> for Signs {
            type Weights = [$vector; 2];
            #[inline(always)]
            unsafe fn load(p: *const u8, n: usize) -> $vector {
                let mut bytes = [0u8; $bytes];
                // SAFETY: the contract of the trait.
                unsafe {
                    match n {
                        $bytes => return $load(p.cast()),
                        8 => bytes[..8].copy_from_slice(&p.cast::<[u8; 8]>().read()),
                        _ => p.copy_to_nonoverlapping(bytes.as_mut_ptr(), n),
                    }
                    $load(bytes.as_ptr().cast())
                }
            }
            #[inline(always)]
            unsafe fn store(p: *mut u8, v: $vector, n: usize) {
                let mut bytes = [0u8; $bytes];
                // SAFETY: the contract of the trait.
                unsafe {
                    if n == $bytes {
                        return $store(p.cast(), v);
                    }
                    $store(bytes.as_mut_ptr().cast(), v);
                    match n {
                        8 => p.copy_from_nonoverlapping(bytes.as_ptr(), 8),
                        _ => p.copy_from_nonoverlapping(bytes.as_ptr(), n),
                    }
                }
            }
            #[inline(always)]
            unsafe fn weights(p: *const u32, plane: usize) -> [$vector; 2] {
                // SAFETY: the contract of the trait.
                unsafe { [$load(p.cast()), $load(p.add(plane).cast())] }
            }
            #[inline(always)]
            unsafe fn dot(sum: $vector, x: $vector, [size, turn]: [$vector; 2]) -> $vector {
                // SAFETY: the contract of the trait.
                unsafe { $add(sum, $halves_by($bytes_by(size, $xor(x, turn)), $ones(1))) }
            }
        }
    };
}
signs!(__m256i, 32, _mm256_loadu_si256 _mm256_storeu_si256 _mm256_xor_si256 _mm256_maddubs_epi16 _mm256_madd_epi16
    _mm256_set1_epi16 _mm256_add_epi32);
signs!(__m128i, 16, _mm_loadu_si128 _mm_storeu_si128 _mm_xor_si128 _mm_maddubs_epi16 _mm_madd_epi16 _mm_set1_epi16
    _mm_add_epi32);

macro_rules! vector {
    ($vector:ty, $floats:ty, $bytes:literal, $load:ident $float_load:ident $splat:ident $splat_half:ident $splat_float:ident $xor:ident
     $low8:ident $high8:ident $low16:ident $high16:ident $convert:ident $mul:ident $add:ident
     $min:ident $max:ident $round:ident $pack32:ident $adds:ident $pack16:ident $packu16:ident) => {
        impl Vector for $vector {
            type Floats = $floats;
            const BYTES: usize = $bytes;
            #[inline(always)]
            unsafe fn words(p: *const u32) -> Self {
                // SAFETY: the contract of the trait.
                unsafe { $load(p.cast()) }
            }
            #[inline(always)]
            unsafe fn floats(p: *const f32) -> $floats {
                // SAFETY: the contract of the trait.
                unsafe { $float_load(p) }
            }
            #[inline(always)]
            unsafe fn splat(x: u8) -> Self {
                // SAFETY: the contract of the trait.
                unsafe { $splat(x as i8) }
            }
            #[inline(always)]
            unsafe fn splat_half(x: i16) -> Self {
                // SAFETY: the contract of the trait.
                unsafe { $splat_half(x) }
            }
            #[inline(always)]
            unsafe fn splat_float(x: f32) -> $floats {
                // SAFETY: the contract of the trait.
                unsafe { $splat_float(x) }
            }
            #[inline(always)]
            unsafe fn xor(a: Self, b: Self) -> Self {
                // SAFETY: the contract of the trait.
                unsafe { $xor(a, b) }
            }
            #[inline(always)]
            unsafe fn zip([a, b, c, d]: [Self; 4]) -> [Self; 4] {
                // SAFETY: the contract of the trait.
                unsafe {
                    let (ab, cd) = ([$low8(a, b), $high8(a, b)], [$low8(c, d), $high8(c, d)]);
                    [$low16(ab[0], cd[0]), $high16(ab[0], cd[0]), $low16(ab[1], cd[1]), $high16(ab[1], cd[1])]
                }
            }
            #[inline(always)]
            unsafe fn convert(a: Self) -> $floats {
                // SAFETY: the contract of the trait.
                unsafe { $convert(a) }
            }
            #[inline(always)]
            unsafe fn mul(a: $floats, b: $floats) -> $floats {
                // SAFETY: the contract of the trait.
                unsafe { $mul(a, b) }
            }
            #[inline(always)]
            unsafe fn add(a: $floats, b: $floats) -> $floats {
                // SAFETY: the contract of the trait.
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            unsafe fn min(a: $floats, b: $floats) -> $floats {
                // SAFETY: the contract of the trait.
                unsafe { $min(a, b) }
            }
            #[inline(always)]
            unsafe fn max(a: $floats, b: $floats) -> $floats {
                // SAFETY: the contract of the trait.
                unsafe { $max(a, b) }
            }
            #[inline(always)]
            unsafe fn round(a: $floats) -> Self {
                // SAFETY: the contract of the trait.
                unsafe { $round(a) }
            }
            #[inline(always)]
            unsafe fn narrow([a, b, c, d]: [Self; 4], zero: Self, signed: bool) -> Self {
                // SAFETY: the contract of the trait.
                unsafe {
                    let (low, high) = ($adds($pack32(a, b), zero), $adds($pack32(c, d), zero));
                    if signed { $pack16(low, high) } else { $packu16(low, high) }
                }
            }
        }
    };
}

vector!(__m512i, __m512, 64, _mm512_loadu_si512 _mm512_loadu_ps _mm512_set1_epi8 _mm512_set1_epi16 _mm512_set1_ps _mm512_xor_si512
    _mm512_unpacklo_epi8 _mm512_unpackhi_epi8 _mm512_unpacklo_epi16 _mm512_unpackhi_epi16
    _mm512_cvtepi32_ps _mm512_mul_ps _mm512_add_ps _mm512_min_ps _mm512_max_ps _mm512_cvtps_epi32
    _mm512_packs_epi32 _mm512_adds_epi16 _mm512_packs_epi16 _mm512_packus_epi16);
vector!(__m256i, __m256, 32, _mm256_loadu_si256 _mm256_loadu_ps _mm256_set1_epi8 _mm256_set1_epi16 _mm256_set1_ps _mm256_xor_si256
    _mm256_unpacklo_epi8 _mm256_unpackhi_epi8 _mm256_unpacklo_epi16 _mm256_unpackhi_epi16
    _mm256_cvtepi32_ps _mm256_mul_ps _mm256_add_ps _mm256_min_ps _mm256_max_ps _mm256_cvtps_epi32
    _mm256_packs_epi32 _mm256_adds_epi16 _mm256_packs_epi16 _mm256_packus_epi16);
vector!(__m128i, __m128, 16, _mm_loadu_si128 _mm_loadu_ps _mm_set1_epi8 _mm_set1_epi16 _mm_set1_ps _mm_xor_si128
    _mm_unpacklo_epi8 _mm_unpackhi_epi8 _mm_unpacklo_epi16 _mm_unpackhi_epi16
    _mm_cvtepi32_ps _mm_mul_ps _mm_add_ps _mm_min_ps _mm_max_ps _mm_cvtps_epi32
    _mm_packs_epi32 _mm_adds_epi16 _mm_packs_epi16 _mm_packus_epi16);
