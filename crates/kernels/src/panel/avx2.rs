//! Tiles of AVX2 in assembly: twelve accumulators leave four registers, and a compiler that moves loads ahead of their use
//! spills some in every step.
//!
//! Products of bytes are exact. `vpmaddubsw` adds two of them in 16 bits and saturates, which `a₀w₀ + a₁w₁` of u8 and i8 can
//! reach; where it cannot is known before the products are made: the weights' packing keeps, for each [`BLOCK`] steps of
//! a panel, the highest `a` for which none can ([`limits`]), and a tile compares its rows with that, block by block. A block
//! with a higher one is multiplied as 16-bit numbers, even and odd bytes apart, in about one and a half times the time.

use std::arch::asm;
use std::arch::x86_64::*;

use super::tile::Tile;

/// Steps of a run that share a limit. Short ones are compared more often, long ones fail more often.
pub(crate) const BLOCK: usize = 16;

/// The limits of a panel's runs of `steps` steps each, in the order of its words: one for each [`BLOCK`] steps of a run.
///
/// Rows that are no higher than a limit `m` reach at most `m · p`, where p is the highest sum of the positive weights, or of
/// the negative ones, among the even and odd neighbours of the block: `m = ⌊32767 / p⌋`, at most 255.
///
/// # Safety
/// The CPU has AVX2; `width` is a multiple of 8.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn limits(panel: &[f32], (steps, width): (usize, usize), to: &mut [u8]) {
    let zero = _mm256_setzero_si256();
    let ones = _mm256_set1_epi8(1);
    let blocks = panel.chunks_exact(steps * width).flat_map(|run| run.chunks(BLOCK * width));
    for (block, to) in blocks.zip(to) {
        let mut most = zero;
        for words in block.chunks_exact(8) {
            // SAFETY: eight words.
            let w = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
            let positive = _mm256_max_epi8(w, zero);
            // Of i8, −128 becomes 128 as u8.
            let negative = _mm256_sub_epi8(zero, _mm256_min_epi8(w, zero));
            let sums = |bytes| _mm256_maddubs_epi16(bytes, ones);
            most = _mm256_max_epi16(most, _mm256_max_epi16(sums(positive), sums(negative)));
        }
        let mut lanes = [0i16; 16];
        // SAFETY: sixteen lanes.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), most) };
        let most = lanes.iter().fold(0, |most, &x| most.max(x));
        *to = (32767 / i32::from(most).max(1)).min(255) as u8;
    }
}

/// Blocks with a limit in a run of so many steps.
pub(crate) fn blocks(steps: usize) -> usize {
    steps.div_ceil(BLOCK)
}

/// The address of row `i`: r8 is row 0, r11 the stride, rax three times and r10 five times that.
macro_rules! row {
    (0) => {
        "r8"
    };
    (1) => {
        "r8+r11"
    };
    (2) => {
        "r8+2*r11"
    };
    (3) => {
        "r8+rax"
    };
    (4) => {
        "r8+4*r11"
    };
    (5) => {
        "r8+r10"
    };
}

/// What all rows of a step share: the columns at `$b0` and `$b1`.
macro_rules! columns {
    (2, $lo:literal, $hi:literal, $b0:literal, $b1:literal) => {
        concat!(
            "vmovups ymm", $lo, ", [rdx+", $b0, "]\nvmovups ymm", $hi, ", [rdx+", $b1, "]\n",
            "prefetcht0 [rdx+4096+", $b0, "]\n"
        )
    };
    (1, $lo:literal, $hi:literal, $b0:literal, $b1:literal) => {
        concat!("vmovups ymm", $lo, ", [rdx+", $b0, "]\nprefetcht0 [rdx+4096+", $b0, "]\n")
    };
}

/// One step of all rows: `$da` bytes into the rows, `$b0` and `$b1` into the panel.
macro_rules! step {
    ($nv:tt, floats, $da:literal, $b0:literal, $b1:literal, $($i:tt $lo:literal $hi:literal)*) => {
        concat!(columns!($nv, 12, 13, $b0, $b1), $(
            "vbroadcastss ymm14, dword ptr [", row!($i), "+", $da, "]\n", step!(@floats $nv, $lo, $hi),
        )*)
    };
    (@floats 2, $lo:literal, $hi:literal) => {
        concat!("vfmadd231ps ymm", $lo, ", ymm14, ymm12\nvfmadd231ps ymm", $hi, ", ymm14, ymm13\n")
    };
    (@floats 1, $lo:literal, $hi:literal) => { concat!("vfmadd231ps ymm", $lo, ", ymm14, ymm12\n") };
    // Pairs of 16-bit numbers.
    ($nv:tt, shorts, $da:literal, $b0:literal, $b1:literal, $($i:tt $lo:literal $hi:literal)*) => {
        concat!(columns!($nv, 12, 13, $b0, $b1), $(
            "vpbroadcastd ymm14, dword ptr [", row!($i), "+", $da, "]\n", step!(@shorts $nv, $lo, $hi),
        )*)
    };
    (@shorts 2, $lo:literal, $hi:literal) => {
        concat!(
            "vpmaddwd ymm15, ymm14, ymm12\nvpaddd ymm", $lo, ", ymm", $lo, ", ymm15\n",
            "vpmaddwd ymm14, ymm14, ymm13\nvpaddd ymm", $hi, ", ymm", $hi, ", ymm14\n"
        )
    };
    (@shorts 1, $lo:literal, $hi:literal) => {
        concat!("vpmaddwd ymm15, ymm14, ymm12\nvpaddd ymm", $lo, ", ymm", $lo, ", ymm15\n")
    };
    // Bytes that do not saturate; ymm15 has ones of 16 bits.
    ($nv:tt, bytes, $da:literal, $b0:literal, $b1:literal, $($i:tt $lo:literal $hi:literal)*) => {
        concat!(columns!($nv, 8, 9, $b0, $b1), $(
            "vpbroadcastd ymm10, dword ptr [", row!($i), "+", $da, "]\n", step!(@bytes $nv, $lo, $hi),
        )*)
    };
    (@bytes 2, $lo:literal, $hi:literal) => {
        concat!(
            "vpmaddubsw ymm11, ymm10, ymm8\nvpmaddubsw ymm12, ymm10, ymm9\n",
            "vpmaddwd ymm11, ymm11, ymm15\nvpmaddwd ymm12, ymm12, ymm15\n",
            "vpaddd ymm", $lo, ", ymm", $lo, ", ymm11\nvpaddd ymm", $hi, ", ymm", $hi, ", ymm12\n"
        )
    };
    (@bytes 1, $lo:literal, $hi:literal) => {
        concat!(
            "vpmaddubsw ymm11, ymm10, ymm8\nvpmaddwd ymm11, ymm11, ymm15\n",
            "vpaddd ymm", $lo, ", ymm", $lo, ", ymm11\n"
        )
    };
    // Even bytes and odd bytes, widened; ymm15 has 0x00ff.
    ($nv:tt, halves, $da:literal, $b0:literal, $b1:literal, $($i:tt $lo:literal $hi:literal)*) => {
        concat!(step!(@spread $nv, $b0, $b1), $(
            "vpbroadcastd ymm12, dword ptr [", row!($i), "+", $da, "]\n",
            "vpsrlw ymm13, ymm12, 8\nvpand ymm12, ymm12, ymm15\n", step!(@halves $nv, $lo, $hi),
        )*)
    };
    (@spread 2, $b0:literal, $b1:literal) => {
        concat!(
            columns!(2, 10, 11, $b0, $b1), "vpsllw ymm8, ymm10, 8\nvpsllw ymm9, ymm11, 8\nvpsraw ymm8, ymm8, 8\n",
            "vpsraw ymm9, ymm9, 8\nvpsraw ymm10, ymm10, 8\nvpsraw ymm11, ymm11, 8\n"
        )
    };
    (@spread 1, $b0:literal, $b1:literal) => {
        concat!(
            columns!(1, 10, 11, $b0, $b1), "vpsllw ymm8, ymm10, 8\nvpsraw ymm8, ymm8, 8\nvpsraw ymm10, ymm10, 8\n"
        )
    };
    (@halves 2, $lo:literal, $hi:literal) => {
        concat!(
            "vpmaddwd ymm14, ymm12, ymm8\nvpaddd ymm", $lo, ", ymm", $lo, ", ymm14\n",
            "vpmaddwd ymm12, ymm12, ymm9\nvpaddd ymm", $hi, ", ymm", $hi, ", ymm12\n",
            "vpmaddwd ymm14, ymm13, ymm10\nvpaddd ymm", $lo, ", ymm", $lo, ", ymm14\n",
            "vpmaddwd ymm13, ymm13, ymm11\nvpaddd ymm", $hi, ", ymm", $hi, ", ymm13\n"
        )
    };
    (@halves 1, $lo:literal, $hi:literal) => {
        concat!(
            "vpmaddwd ymm14, ymm12, ymm8\nvpaddd ymm", $lo, ", ymm", $lo, ", ymm14\n",
            "vpmaddwd ymm13, ymm13, ymm10\nvpaddd ymm", $lo, ", ymm", $lo, ", ymm13\n"
        )
    };
}

/// Four steps at once (their offsets into a panel of 16 or 8 columns).
macro_rules! four {
    (2, $dot:tt, $($rows:tt)*) => { concat!(
        step!(2, $dot, 0, 0, 32, $($rows)*), step!(2, $dot, 4, 64, 96, $($rows)*),
        step!(2, $dot, 8, 128, 160, $($rows)*), step!(2, $dot, 12, 192, 224, $($rows)*), "add r8, 16\nadd rdx, 256\n"
    ) };
    (1, $dot:tt, $($rows:tt)*) => { concat!(
        step!(1, $dot, 0, 0, 0, $($rows)*), step!(1, $dot, 4, 32, 0, $($rows)*),
        step!(1, $dot, 8, 64, 0, $($rows)*), step!(1, $dot, 12, 96, 0, $($rows)*), "add r8, 16\nadd rdx, 128\n"
    ) };
}
macro_rules! one {
    (2, $dot:tt, $($rows:tt)*) => { concat!(step!(2, $dot, 0, 0, 32, $($rows)*), "add r8, 4\nadd rdx, 64\n") };
    (1, $dot:tt, $($rows:tt)*) => { concat!(step!(1, $dot, 0, 0, 0, $($rows)*), "add r8, 4\nadd rdx, 32\n") };
}

macro_rules! zeros {
    (2, $($i:tt $lo:literal $hi:literal)*) => {
        concat!($("vpxor xmm", $lo, ", xmm", $lo, ", xmm", $lo, "\nvpxor xmm", $hi, ", xmm", $hi, ", xmm", $hi, "\n",)*)
    };
    (1, $($i:tt $lo:literal $hi:literal)*) => { concat!($("vpxor xmm", $lo, ", xmm", $lo, ", xmm", $lo, "\n",)*) };
}

macro_rules! stores {
    (2, $($i:tt $lo:literal $hi:literal)*) => {
        concat!($("vmovups [r13], ymm", $lo, "\nvmovups [r13+32], ymm", $hi, "\nadd r13, 64\n",)*)
    };
    (1, $($i:tt $lo:literal $hi:literal)*) => { concat!($("vmovups [r13], ymm", $lo, "\nadd r13, 32\n",)*) };
}

/// The bytes of all rows at r10 (and at r8), the greatest of each place in ymm8.
macro_rules! greatest {
    (@$at:literal $($i:tt $lo:literal $hi:literal)*) => { concat!($(greatest!(@one $at, $i),)*) };
    (@one $at:literal, 0) => { concat!("vpmaxub ymm8, ymm8, [", $at, "]\n") };
    (@one $at:literal, 1) => { concat!("vpmaxub ymm8, ymm8, [", $at, "+r11]\n") };
    (@one $at:literal, 2) => { concat!("vpmaxub ymm8, ymm8, [", $at, "+2*r11]\n") };
    (@one $at:literal, 3) => { concat!("vpmaxub ymm8, ymm8, [", $at, "+rax]\n") };
}

/// Doublings that make bytes of a run's steps.
macro_rules! shift {
    (2) => {
        "shl r9, 6"
    };
    (1) => {
        "shl r9, 5"
    };
}

macro_rules! plain {
    ($name:ident, $dot:tt, $nv:tt, $($rows:tt)*) => {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $name(t: &Tile) {
            // SAFETY: the caller vouches for the tier and the pointers of the tile; all registers that are written are named.
            unsafe {
                asm!(
                    zeros!($nv, $($rows)*),
                    "lea rax, [r11+2*r11]",
                    "lea r10, [r11+4*r11]",
                    "2:",
                    "mov r8, [rsi]",
                    "add rdx, [rsi+8]",
                    "add rsi, 16",
                    "add r8, r12",
                    "mov rcx, r14",
                    "sub rcx, 4",
                    "jb 4f",
                    "3:",
                    four!($nv, $dot, $($rows)*),
                    "sub rcx, 4",
                    "jae 3b",
                    "4:",
                    "add rcx, 4",
                    "jz 6f",
                    "5:",
                    one!($nv, $dot, $($rows)*),
                    "dec rcx",
                    "jnz 5b",
                    "6:",
                    "dec rdi",
                    "jnz 2b",
                    stores!($nv, $($rows)*),
                    "vzeroupper",
                    in("r12") t.a,
                    in("r11") t.stride,
                    in("r14") t.steps,
                    inout("rsi") t.runs => _,
                    inout("rdi") t.n_runs => _,
                    inout("rdx") t.b => _,
                    inout("r13") t.out => _,
                    out("rax") _, out("rcx") _, out("r8") _, out("r10") _,
                    out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                    out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    options(nostack),
                );
            }
        }
    };
}

macro_rules! exact {
    ($name:ident, $dot:tt, $nv:tt, $($rows:tt)*) => {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $name(t: &Tile) {
            // SAFETY: as for the others; the limits cover the blocks of the panel.
            unsafe {
                asm!(
                    zeros!($nv, $($rows)*),
                    "lea rax, [r11+2*r11]",
                    "2:",
                    "mov r8, [rsi]",
                    "mov r10, [rsi+8]",
                    "add rsi, 16",
                    "add r8, r12",
                    "add rdx, r10",
                    // Runs that are passed over have limits, too.
                    "test r10, r10",
                    "jz 4f",
                    "test r15, r15",
                    "jz 4f",
                    "mov r9, r14",
                    shift!($nv),
                    "lea rcx, [r14+15]",
                    "shr rcx, 4",
                    "3:",
                    "add r15, rcx",
                    "sub r10, r9",
                    "ja 3b",
                    "4:",
                    "mov rcx, r14",
                    // A block of r9 steps.
                    "5:",
                    "mov r9d, 16",
                    "cmp rcx, r9",
                    "cmovb r9, rcx",
                    "sub rcx, r9",
                    "test r15, r15",
                    "jz 22f",
                    "vpbroadcastb ymm9, byte ptr [r15]",
                    "inc r15",
                    // The last 32 bytes of the block, or of the run where that is less, and the first 32 bytes.
                    "cmp r14, 8",
                    "jb 22f",
                    "lea r10, [r8+4*r9-32]",
                    "vpxor xmm8, xmm8, xmm8",
                    greatest!(@"r10" $($rows)*),
                    "cmp r9, 8",
                    "jbe 6f",
                    greatest!(@"r8" $($rows)*),
                    "6:",
                    "vpsubusb ymm8, ymm8, ymm9",
                    "vptest ymm8, ymm8",
                    "jnz 22f",
                    "vpcmpeqw ymm15, ymm15, ymm15",
                    "vpsrlw ymm15, ymm15, 15",
                    "sub r9, 4",
                    "jb 8f",
                    "7:",
                    four!($nv, $dot, $($rows)*),
                    "sub r9, 4",
                    "jae 7b",
                    "8:",
                    "add r9, 4",
                    "jz 24f",
                    "9:",
                    one!($nv, $dot, $($rows)*),
                    "dec r9",
                    "jnz 9b",
                    "jmp 24f",
                    "22:",
                    "vpcmpeqw ymm15, ymm15, ymm15",
                    "vpsrlw ymm15, ymm15, 8",
                    "23:",
                    one!($nv, halves, $($rows)*),
                    "dec r9",
                    "jnz 23b",
                    "24:",
                    "test rcx, rcx",
                    "jnz 5b",
                    "dec rdi",
                    "jnz 2b",
                    stores!($nv, $($rows)*),
                    "vzeroupper",
                    in("r12") t.a,
                    in("r11") t.stride,
                    in("r14") t.steps,
                    inout("rsi") t.runs => _,
                    inout("rdi") t.n_runs => _,
                    inout("rdx") t.b => _,
                    inout("r13") t.out => _,
                    inout("r15") t.limits => _,
                    out("rax") _, out("rcx") _, out("r8") _, out("r9") _, out("r10") _,
                    out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                    out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    options(nostack),
                );
            }
        }
    };
}

macro_rules! tiles {
    ($module:ident, $macro:ident, $dot:tt, $($name:ident $nv:tt [$($row:tt)*];)*) => {
        pub(crate) mod $module {
            use super::*;
            use crate::panel::tile::TileFn;

            $($macro!($name, $dot, $nv, $($row)*);)*

            pub(crate) static TILES: &[TileFn] = &[$($name),*];
        }
    };
}

macro_rules! tall {
    ($dot:ident) => {
        tiles! { $dot, plain, $dot,
            r1w1 1 [0 0 1];
            r1w2 2 [0 0 1];
            r2w1 1 [0 0 1 1 2 3];
            r2w2 2 [0 0 1 1 2 3];
            r3w1 1 [0 0 1 1 2 3 2 4 5];
            r3w2 2 [0 0 1 1 2 3 2 4 5];
            r4w1 1 [0 0 1 1 2 3 2 4 5 3 6 7];
            r4w2 2 [0 0 1 1 2 3 2 4 5 3 6 7];
            r5w1 1 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9];
            r5w2 2 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9];
            r6w1 1 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11];
            r6w2 2 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11];
        }
    };
}

tall!(floats);
tall!(shorts);
tiles! { bytes, exact, bytes,
    r1w1 1 [0 0 1];
    r1w2 2 [0 0 1];
    r2w1 1 [0 0 1 1 2 3];
    r2w2 2 [0 0 1 1 2 3];
    r3w1 1 [0 0 1 1 2 3 2 4 5];
    r3w2 2 [0 0 1 1 2 3 2 4 5];
    r4w1 1 [0 0 1 1 2 3 2 4 5 3 6 7];
    r4w2 2 [0 0 1 1 2 3 2 4 5 3 6 7];
}
