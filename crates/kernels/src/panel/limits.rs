//! What bounded kernels know of the columns of a panel (see `avx2`).

use std::arch::x86_64::*;

pub(crate) use super::pack::BLOCK;

/// Words that packing keeps for a block: limits of its rows as bytes, those for two steps together, corrections of its columns.
pub(crate) const BLOCK_WORDS: usize = 3 * BLOCK;

/// By the greatest sum of neighbours, of the positive or of the negative weights, how high `a` can be: at most 255.
static HIGHEST: [u8; 513] = {
    let mut table = [255; 513];
    let mut sum = 129;
    while sum < table.len() {
        table[sum] = (32767 / sum) as u8;
        sum += 1;
    }
    table
};

/// The greatest sums of a step's columns: in each 16 bits, two neighbours of a column, positive and negative ones apart.
#[derive(Clone, Copy)]
struct Sums {
    highs: [__m256i; 2],
    lows: [__m256i; 2],
}

impl Sums {
    /// The limits of a word's bytes, by the greatest sum of all columns.
    #[target_feature(enable = "avx2")]
    fn limits(self) -> f32 {
        let negated = |lows| _mm256_sub_epi16(_mm256_setzero_si256(), lows);
        let [a, b] = self.highs;
        let [c, d] = self.lows.map(negated);
        let most = _mm256_max_epi16(_mm256_max_epi16(a, b), _mm256_max_epi16(c, d));
        let most = _mm_max_epi16(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
        let most = _mm_max_epi16(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
        let most = _mm_cvtsi128_si32(_mm_max_epi16(most, _mm_shuffle_epi32::<0b10_11_00_01>(most))) as usize;
        let (low, high) = (HIGHEST[(most & 0xffff).min(512)], HIGHEST[(most >> 16 & 0xffff).min(512)]);
        f32::from_bits(u32::from_le_bytes([low, low, high, high]))
    }

    /// Those of two steps whose products are added before they are widened.
    #[target_feature(enable = "avx2")]
    fn plus(self, other: Sums) -> Sums {
        let add = |a: [__m256i; 2], b: [__m256i; 2]| [_mm256_add_epi16(a[0], b[0]), _mm256_add_epi16(a[1], b[1])];
        Sums { highs: add(self.highs, other.highs), lows: add(self.lows, other.lows) }
    }
}

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
        let (limits, rest) = to.split_at_mut(BLOCK);
        let (paired, corrections) = rest.split_at_mut(BLOCK);
        let mut totals = [zero; 2];
        let pairs = limits.chunks_exact_mut(2).zip(paired.chunks_exact_mut(2));
        for (pair, (limits, paired)) in block.chunks(2 * width).zip(pairs) {
            let mut both: Option<Sums> = None;
            for (words, limit) in pair.chunks_exact(width).zip(limits) {
                let mut sums = Sums { highs: [zero; 2], lows: [zero; 2] };
                for (v, words) in words.chunks_exact(8).enumerate() {
                    // SAFETY: eight words.
                    let w = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
                    let highs = _mm256_maddubs_epi16(ones, _mm256_max_epi8(w, zero));
                    let lows = _mm256_maddubs_epi16(ones, _mm256_min_epi8(w, zero));
                    (sums.highs[v], sums.lows[v]) = (highs, lows);
                    // 128 times all, less the negative ones.
                    let part = |times| _mm256_set1_epi16(times);
                    let all = _mm256_add_epi32(_mm256_madd_epi16(highs, part(128)), _mm256_madd_epi16(lows, part(127)));
                    totals[v] = _mm256_add_epi32(totals[v], all);
                }
                *limit = sums.limits();
                both = Some(both.map_or(sums, |first| first.plus(sums)));
            }
            if let Some(both) = both {
                paired.fill(both.limits());
            }
        }
        for (to, total) in corrections.chunks_exact_mut(8).zip(totals) {
            // SAFETY: eight words.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), total) };
        }
    }
}

/// Takes the weights of a panel with 8 or 16 columns in memory apart, into twice its words: for each step the magnitudes of
/// all columns, then what their activations are combined with bit by bit (see `avx2`).
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn take_apart(panel: &[f32], width: usize, to: &mut [f32]) {
    for (words, to) in panel.chunks_exact(width).zip(to.chunks_exact_mut(2 * width)) {
        let (magnitudes, flips) = to.split_at_mut(width);
        let both = magnitudes.chunks_exact_mut(8).zip(flips.chunks_exact_mut(8));
        for (words, (magnitudes, flips)) in words.chunks_exact(8).zip(both) {
            // SAFETY: eight words each.
            unsafe {
                let w = _mm256_loadu_si256(words.as_ptr().cast());
                let negative = _mm256_cmpgt_epi8(_mm256_setzero_si256(), w);
                _mm256_storeu_si256(magnitudes.as_mut_ptr().cast(), _mm256_abs_epi8(w));
                let flip = _mm256_xor_si256(negative, _mm256_set1_epi8(-128));
                _mm256_storeu_si256(flips.as_mut_ptr().cast(), flip);
            }
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
            for next in [[0, 0], [127, 127], [-128, -128], [1, -1], [-60, 30]] {
                // In the last column of two vectors, and in the second pair of the step and of the one behind it.
                let mut panel = [0f32; 32];
                for (word, w) in [(15, w), (31, next)] {
                    let [a, b] = w.map(|w: i32| w as i8 as u8);
                    panel[word] = f32::from_bits(u32::from_le_bytes([0, 0, a, b]));
                }
                let mut kept = [0f32; BLOCK_WORDS];
                // SAFETY: the CPU has AVX2.
                unsafe { find_limits(&panel, (2, 16), &mut kept) };
                let limits = |at: usize| kept[at].to_bits().to_le_bytes().map(i32::from);
                let fits = |m: i32, w: &[i32]| {
                    let part = |sign: i32| w.iter().filter(|w| *w * sign > 0).sum::<i32>();
                    [1, -1].iter().all(|&sign| i16::try_from(m * part(sign)).is_ok())
                };
                let both = [w, next].concat();
                for (at, w) in [(0, &w[..]), (1, &next), (BLOCK, &both), (BLOCK + 1, &both)] {
                    assert_eq!(limits(at)[..2], [255; 2]);
                    let m = limits(at)[2];
                    assert!(fits(m, w), "{w:?}: {m}");
                    // One less than could be where the sum is the least number of 16 bits.
                    assert!(m == 255 || !fits(m + 2, w), "{w:?}: {m}");
                }
            }
        }
    }
}
