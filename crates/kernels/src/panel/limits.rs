//! What bounded kernels know of the columns of a panel (see `avx2`).

use std::arch::x86_64::*;

/// Steps whose rows are compared at a time.
pub(crate) const BLOCK: usize = 16;
/// Words that packing keeps for a block: limits of its rows as bytes, then corrections of its columns.
pub(crate) const BLOCK_WORDS: usize = 2 * BLOCK;

/// By the greatest sum of two neighbours, of the positive or of the negative weights, how high `a` can be: at most 255.
static HIGHEST: [u8; 257] = {
    let mut table = [255; 257];
    let mut sum = 129;
    while sum < table.len() {
        table[sum] = (32767 / sum) as u8;
        sum += 1;
    }
    table
};

/// Fills [`BLOCK_WORDS`] for each block of a panel whose runs have so many steps, with 8 or 16 columns in memory.
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn find_limits(panel: &[f32], (steps, width): (usize, usize), to: &mut [f32]) {
    let zero = _mm256_setzero_si256();
    let ones = _mm256_set1_epi8(1);
    let blocks = panel.chunks_exact(steps * width).flat_map(|run| run.chunks(BLOCK * width));
    for (block, to) in blocks.zip(to.chunks_exact_mut(BLOCK_WORDS)) {
        let (limits, corrections) = to.split_at_mut(BLOCK);
        let mut sums = [zero; 2];
        for (words, limit) in block.chunks_exact(width).zip(limits) {
            let mut most = zero;
            for (words, sum) in words.chunks_exact(8).zip(&mut sums) {
                // SAFETY: eight words.
                let w = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
                let negative = _mm256_min_epi8(w, zero);
                // Pairs of the positive ones, and of the negative ones, as 16-bit numbers.
                let highs = _mm256_maddubs_epi16(ones, _mm256_max_epi8(w, zero));
                let lows = _mm256_maddubs_epi16(ones, negative);
                most = _mm256_max_epi16(most, _mm256_max_epi16(highs, _mm256_sub_epi16(zero, lows)));
                // 128 times all, less the negative ones.
                let part = |times| _mm256_set1_epi16(times);
                let all = _mm256_add_epi32(_mm256_madd_epi16(highs, part(128)), _mm256_madd_epi16(lows, part(127)));
                *sum = _mm256_add_epi32(*sum, all);
            }
            let most = _mm_max_epi16(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
            let most = _mm_max_epi16(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
            let most = _mm_cvtsi128_si32(_mm_max_epi16(most, _mm_shuffle_epi32::<0b10_11_00_01>(most))) as usize;
            let (low, high) = (HIGHEST[(most & 0xffff).min(256)], HIGHEST[(most >> 16 & 0xffff).min(256)]);
            *limit = f32::from_bits(u32::from_le_bytes([low, low, high, high]));
        }
        for (to, sum) in corrections.chunks_exact_mut(8).zip(sums) {
            // SAFETY: eight words.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), sum) };
        }
    }
}

/// The sums of a panel's columns.
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn column_sums(panel: &[f32], width: usize, to: &mut [i32]) {
    let mut sums = [_mm256_setzero_si256(); 2];
    for words in panel.chunks_exact(width) {
        for (words, sum) in words.chunks_exact(8).zip(&mut sums) {
            // SAFETY: eight words.
            let w = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
            let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), w);
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
    }
    let mut lanes = [0i32; 16];
    for (lanes, sum) in lanes.chunks_exact_mut(8).zip(sums) {
        // SAFETY: eight words.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
    }
    to.copy_from_slice(&lanes[..to.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Avx2, Isa};

    #[test]
    fn limits_are_the_highest_that_saturate_nothing() {
        if Avx2::new(Isa::detect()).is_none() {
            return;
        }
        for w in [[127, 127], [127, 1], [127, 2], [-128, -128], [-128, 0], [-128, -1], [100, -128], [64, 65], [0, 0]] {
            // In the last column of two vectors, and in the second pair.
            let mut panel = [0f32; 16];
            let [a, b] = w.map(|w: i32| w as i8 as u8);
            panel[15] = f32::from_bits(u32::from_le_bytes([0, 0, a, b]));
            let mut kept = [0f32; BLOCK_WORDS];
            // SAFETY: the CPU has AVX2.
            unsafe { find_limits(&panel, (1, 16), &mut kept) };
            let limits = kept[0].to_bits().to_le_bytes();
            assert_eq!(limits[..2], [255; 2]);
            let m = i32::from(limits[2]);
            let fits =
                |m: i32| [[m, m], [m, 0], [0, m]].iter().all(|a| i16::try_from(a[0] * w[0] + a[1] * w[1]).is_ok());
            assert!(fits(m), "{w:?}: {m}");
            // One less than could be where the sum is the least number of 16 bits.
            assert!(m == 255 || !fits(m + 2), "{w:?}: {m}");
        }
    }
}
