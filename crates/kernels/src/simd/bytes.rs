//! Transposes of 16 × 16 bytes in 128-bit registers, for every x86-64 tier.

use std::arch::x86_64::*;

/// `dst[c * ld_dst + r] = src[r * ld_src + c]` for `rows`, `cols` `<= 16`.
///
/// # Safety
/// Both cover their rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn transpose(src: *const u8, ld_src: usize, rows: usize, cols: usize, dst: *mut u8, ld_dst: usize) {
    let mut a = [_mm_setzero_si128(); 16];
    if rows == 16 && cols == 16 {
        for (i, row) in a.iter_mut().enumerate() {
            // SAFETY: row `i` has sixteen bytes.
            *row = unsafe { _mm_loadu_si128(src.wrapping_add(i * ld_src).cast()) };
        }
        let a = interleave(interleave(interleave(interleave(a))));
        for (i, &column) in a.iter().enumerate() {
            // SAFETY: column `i` of the target has sixteen bytes.
            unsafe { _mm_storeu_si128(dst.wrapping_add(i * ld_dst).cast(), column) };
        }
        return;
    }
    for (i, row) in a.iter_mut().enumerate().take(rows) {
        let p = src.wrapping_add(i * ld_src);
        // SAFETY: row `i` has `cols` bytes.
        *row = unsafe { if cols == 16 { _mm_loadu_si128(p.cast()) } else { partial(p, cols) } };
    }
    let a = interleave(interleave(interleave(interleave(a))));
    for (i, &column) in a.iter().enumerate().take(cols) {
        let p = dst.wrapping_add(i * ld_dst);
        // SAFETY: column `i` of the target has `rows` bytes.
        unsafe {
            match rows {
                16 => _mm_storeu_si128(p.cast(), column),
                8 => _mm_storel_epi64(p.cast(), column),
                _ => store_partial(p, column, rows),
            }
        }
    }
}

/// Row i by row i + 8, byte by byte: four times make a transpose.
#[inline]
#[target_feature(enable = "avx2")]
fn interleave(a: [__m128i; 16]) -> [__m128i; 16] {
    let mut b = a;
    for i in 0..8 {
        b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
        b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
    }
    b
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn partial(p: *const u8, n: usize) -> __m128i {
    let mut bytes = [0u8; 16];
    for (i, byte) in bytes.iter_mut().enumerate().take(n) {
        // SAFETY: the caller vouches for `n` bytes.
        *byte = unsafe { *p.add(i) };
    }
    // SAFETY: sixteen bytes.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_partial(p: *mut u8, v: __m128i, n: usize) {
    let mut bytes = [0u8; 16];
    // SAFETY: sixteen bytes; the caller vouches for `n` of the target.
    unsafe {
        _mm_storeu_si128(bytes.as_mut_ptr().cast(), v);
        for (i, &byte) in bytes.iter().enumerate().take(n) {
            *p.add(i) = byte;
        }
    }
}
