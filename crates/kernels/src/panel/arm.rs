//! Tiles of aarch64.
//!
//! Panels hold four bytes of each column in a word, and a vector has four columns. Processors with dot products take such a
//! vector as it is; others spread bytes to 16 bits, by lanes of the depth, and multiply each by a lane of the row.

use std::arch::aarch64::*;
use std::arch::asm;

use super::tile::{Dot, Tile};

/// Four columns by one of depth in each half of a vector.
type Depths = int16x8_t;

/// Exact products of bytes without an instruction for them: u8 rows and i8 columns, spread to 16 bits.
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    /// Where the bytes of a vector of columns go: by depth, then by column.
    by_depth: uint8x16_t,
}

impl Bytes {
    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        const BY_DEPTH: [u8; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
        // SAFETY: the caller vouches for the tier; the array has 16 bytes.
        Bytes { by_depth: unsafe { vld1q_u8(BY_DEPTH.as_ptr()) } }
    }
}

impl Dot for Bytes {
    type Acc = int32x4_t;
    type A = int16x4_t;
    type B = [Depths; 2];
    #[inline(always)]
    fn zero(self) -> int32x4_t {
        // SAFETY: `assume` vouches for the tier.
        unsafe { vdupq_n_s32(0) }
    }
    #[inline(always)]
    unsafe fn row(self, p: *const u8) -> int16x4_t {
        // SAFETY: the caller vouches for 4 bytes.
        unsafe {
            let bytes = vreinterpret_u8_u32(vdup_n_u32(p.cast::<u32>().read_unaligned()));
            vreinterpret_s16_u16(vget_low_u16(vmovl_u8(bytes)))
        }
    }
    #[inline(always)]
    unsafe fn column(self, p: *const u32) -> [Depths; 2] {
        // SAFETY: the caller vouches for a vector.
        unsafe {
            let bytes = vreinterpretq_s8_u8(vqtbl1q_u8(vld1q_u8(p.cast()), self.by_depth));
            [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)]
        }
    }
    #[inline(always)]
    fn dot(self, acc: int32x4_t, a: int16x4_t, b: [Depths; 2]) -> int32x4_t {
        // SAFETY: `assume` vouches for the tier.
        unsafe {
            let acc = vmlal_lane_s16::<0>(acc, vget_low_s16(b[0]), a);
            let acc = vmlal_high_lane_s16::<1>(acc, b[0], a);
            let acc = vmlal_lane_s16::<2>(acc, vget_low_s16(b[1]), a);
            vmlal_high_lane_s16::<3>(acc, b[1], a)
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u32, acc: int32x4_t) {
        // SAFETY: the caller vouches for a vector.
        unsafe { vst1q_s32(p.cast(), acc) }
    }
}

/// Pairs of 16-bit integers; sums wrap.
#[derive(Clone, Copy)]
pub(crate) struct Shorts(());

impl Shorts {
    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Shorts(())
    }
}

impl Dot for Shorts {
    type Acc = int32x4_t;
    type A = int16x4_t;
    type B = Depths;
    #[inline(always)]
    fn zero(self) -> int32x4_t {
        // SAFETY: `assume` vouches for the tier.
        unsafe { vdupq_n_s32(0) }
    }
    #[inline(always)]
    unsafe fn row(self, p: *const u8) -> int16x4_t {
        // SAFETY: the caller vouches for 4 bytes.
        unsafe { vreinterpret_s16_u32(vdup_n_u32(p.cast::<u32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn column(self, p: *const u32) -> Depths {
        // SAFETY: the caller vouches for a vector.
        unsafe {
            let pairs = vld1q_s16(p.cast());
            vcombine_s16(vget_low_s16(vuzp1q_s16(pairs, pairs)), vget_low_s16(vuzp2q_s16(pairs, pairs)))
        }
    }
    #[inline(always)]
    fn dot(self, acc: int32x4_t, a: int16x4_t, b: Depths) -> int32x4_t {
        // SAFETY: `assume` vouches for the tier.
        unsafe { vmlal_high_lane_s16::<1>(vmlal_lane_s16::<0>(acc, vget_low_s16(b), a), b, a) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u32, acc: int32x4_t) {
        // SAFETY: the caller vouches for a vector.
        unsafe { vst1q_s32(p.cast(), acc) }
    }
}

/// One step of all rows: word `$lane` of each row by a line of the panel, and where rows are signed, −128 by it as well.
macro_rules! step {
    ($lane:literal, $signed:literal, $rows:ident, $acc:ident, $sums:ident, $b:ident, $flip:ident) => {
        for v in 0..NV {
            let columns = vld1q_s8($b.add(4 * v).cast());
            if $signed {
                $sums[v] = dot::<0>($sums[v], columns, $flip);
            }
            for i in 0..MR {
                $acc[i][v] = dot::<$lane>($acc[i][v], columns, $rows[i]);
            }
        }
        $b = $b.add(4 * NV);
    };
}

/// Tiles by an instruction that multiplies four bytes of each column by four of a row, exactly, four steps at a time: so
/// many bytes of a row fill a vector, whose words the instruction chooses from.
///
/// Where it takes signed rows only (`$signed`), an exclusive or with 0x80 makes `a − 128` of a row's bytes, and `−128 · column`
/// of each column, one more dot product that all rows share, is taken off: exact modulo 2³², as all sums are.
macro_rules! dots {
    ($module:ident, $features:literal, $instruction:literal, $signed:literal) => {
        pub(crate) mod $module {
            use super::*;

            /// `acc + columns · word LANE of row`, by column.
            #[inline]
            #[target_feature(enable = $features)]
            fn dot<const LANE: usize>(mut acc: int32x4_t, columns: int8x16_t, row: int8x16_t) -> int32x4_t {
                // The intrinsics are not stable.
                // SAFETY: reads and writes registers; the features are those of the function.
                unsafe {
                    asm!(
                        concat!($instruction, " {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]"),
                        inout(vreg) acc,
                        in(vreg) columns,
                        in(vreg) row,
                        const LANE,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
                acc
            }

            /// One tile.
            ///
            /// # Safety
            /// The CPU has the tier; the tile's pointers cover `MR` rows and `4 · NV` columns.
            #[target_feature(enable = $features)]
            #[allow(clippy::needless_range_loop)] // Rows and columns of one register file.
            pub(crate) unsafe fn tile<const MR: usize, const NV: usize>(t: &Tile) {
                let flip = vdupq_n_s8(-128);
                let mut acc = [[vdupq_n_s32(0); NV]; MR];
                let mut sums = [vdupq_n_s32(0); NV];
                let mut rows = [flip; MR];
                let mut b = t.b;
                for r in 0..t.n_runs {
                    // SAFETY: each step reads 4 bytes of each row and a line of the panel.
                    unsafe {
                        let run = *t.runs.add(r);
                        let mut a = t.a.wrapping_add(run.at);
                        b = b.byte_add(run.skip);
                        for _ in 0..t.steps / 4 {
                            for i in 0..MR {
                                let row = vld1q_s8(a.add(i * t.stride).cast());
                                rows[i] = if $signed { veorq_s8(row, flip) } else { row };
                            }
                            step!(0, $signed, rows, acc, sums, b, flip);
                            step!(1, $signed, rows, acc, sums, b, flip);
                            step!(2, $signed, rows, acc, sums, b, flip);
                            step!(3, $signed, rows, acc, sums, b, flip);
                            a = a.add(16);
                        }
                        for _ in 0..t.steps % 4 {
                            for i in 0..MR {
                                let word = a.add(i * t.stride).cast::<u32>().read_unaligned();
                                let row = vreinterpretq_s8_u32(vdupq_n_u32(word));
                                rows[i] = if $signed { veorq_s8(row, flip) } else { row };
                            }
                            step!(0, $signed, rows, acc, sums, b, flip);
                            a = a.add(4);
                        }
                    }
                }
                for i in 0..MR {
                    for v in 0..NV {
                        // SAFETY: `out` has rows × width words.
                        unsafe { vst1q_s32(t.out.add((i * NV + v) * 4).cast(), vsubq_s32(acc[i][v], sums[v])) };
                    }
                }
            }
        }
    };
}

dots!(signed, "neon,dotprod", "sdot", true);
// By lanes, the signed operand comes first.
dots!(mixed, "neon,dotprod,i8mm", "sudot", false);
