//! Tiles of x86-64. The AVX-512 ones are assembly: fourteen rows need more addresses than
//! there are registers, unless they are formed from three bases and two multiples of the
//! stride, which a compiler does not find.

use std::arch::asm;
use std::arch::x86_64::*;

use super::tile::{Dot, Tile};

/// The address of row `i`: r8, r9 and r10 are rows 0, 5 and 10; r11 is the stride, rax
/// three times that.
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
        "r9"
    };
    (6) => {
        "r9+r11"
    };
    (7) => {
        "r9+2*r11"
    };
    (8) => {
        "r9+rax"
    };
    (9) => {
        "r9+4*r11"
    };
    (10) => {
        "r10"
    };
    (11) => {
        "r10+r11"
    };
    (12) => {
        "r10+2*r11"
    };
    (13) => {
        "r10+rax"
    };
}

/// One step of all rows: `$da` bytes into the rows, `$b0` and `$b1` into the panel.
///
/// A panel comes from the L2 cache, into which the panel before brought it ([`Tile::ahead`]), or from memory if it is the
/// first. The processor's own prefetcher stops at the end of each page; a page ahead is about 450 cycles of a full tile.
macro_rules! step {
    (2, $dot:literal, $da:literal, $b0:literal, $b1:literal, $($i:tt $lo:literal $hi:literal)*) => {
        concat!(
            "vmovups zmm28, [rdx+", $b0, "]\nvmovups zmm29, [rdx+", $b1, "]\n",
            "prefetcht0 [rdx+4096+", $b0, "]\nprefetcht0 [rdx+4096+", $b1, "]\n",
            $("vpbroadcastd zmm30, dword ptr [", row!($i), "+", $da, "]\n",
              $dot, " zmm", $lo, ", zmm30, zmm28\n", $dot, " zmm", $hi, ", zmm30, zmm29\n",)*
        )
    };
    (1, $dot:literal, $da:literal, $b0:literal, $b1:literal, $($i:tt $lo:literal $hi:literal)*) => {
        concat!(
            "vmovups zmm28, [rdx+", $b0, "]\nprefetcht0 [rdx+4096+", $b0, "]\n",
            $("vpbroadcastd zmm30, dword ptr [", row!($i), "+", $da, "]\n",
              $dot, " zmm", $lo, ", zmm30, zmm28\n",)*
        )
    };
}

macro_rules! advance {
    ($a:literal, $b:literal) => {
        concat!("add r8, ", $a, "\nadd r9, ", $a, "\nadd r10, ", $a, "\nadd rdx, ", $b, "\n")
    };
}

macro_rules! ahead {
    () => {
        "prefetcht1 [r15]\nprefetcht1 [r15+64]\nadd r15, 128\n"
    };
}

/// Four steps at once (their offsets into a panel of 32 or 16 columns), then the rest.
macro_rules! four {
    (2, $dot:literal, $($rows:tt)*) => { concat!(
        step!(2, $dot, 0, 0, 64, $($rows)*), step!(2, $dot, 4, 128, 192, $($rows)*),
        step!(2, $dot, 8, 256, 320, $($rows)*), step!(2, $dot, 12, 384, 448, $($rows)*), advance!(16, 512), ahead!()
    ) };
    (1, $dot:literal, $($rows:tt)*) => { concat!(
        step!(1, $dot, 0, 0, 0, $($rows)*), step!(1, $dot, 4, 64, 0, $($rows)*),
        step!(1, $dot, 8, 128, 0, $($rows)*), step!(1, $dot, 12, 192, 0, $($rows)*), advance!(16, 256), ahead!()
    ) };
}
macro_rules! one {
    (2, $dot:literal, $($rows:tt)*) => { concat!(step!(2, $dot, 0, 0, 64, $($rows)*), advance!(4, 128)) };
    (1, $dot:literal, $($rows:tt)*) => { concat!(step!(1, $dot, 0, 0, 0, $($rows)*), advance!(4, 64)) };
}

/// Stores the accumulators of each row.
macro_rules! stores {
    (2, $($i:tt $lo:literal $hi:literal)*) => {
        concat!($("vmovups [r13], zmm", $lo, "\nvmovups [r13+64], zmm", $hi, "\nadd r13, 128\n",)*)
    };
    (1, $($i:tt $lo:literal $hi:literal)*) => { concat!($("vmovups [r13], zmm", $lo, "\nadd r13, 64\n",)*) };
}

/// Makes the results of each row from its accumulators, as [`super::tile::End`] says: r13 is its address. NaN passes: the
/// instructions give their second operand then.
macro_rules! ends {
    (none, $($rest:tt)*) => { "" };
    (floats, $nv:tt, $($rows:tt)*) => { concat!("dec r13\n", ends!(@constants $nv), ends!(@floats $nv, $($rows)*)) };
    (halves, $nv:tt, $($rows:tt)*) => { concat!(
        "test r13, 2\njnz 7f\ndec r13\n", ends!(@constants $nv), ends!(@floats $nv, $($rows)*), "jmp 9f\n",
        "7:\nsub r13, 3\n", ends!(@constants $nv), ends!(@halves $nv, $($rows)*), "9:\n"
    ) };
    (@constants 2) => { concat!(ends!(@constants 1), "vmovups zmm29, [r10+64]\n") };
    (@constants 1) => {
        "mov r8, [r13]\nmov r9, [r13+8]\nmov r10, [r13+16]\nvbroadcastss zmm30, dword ptr [r13+24]\n\
         vbroadcastss zmm31, dword ptr [r13+28]\nvmovups zmm28, [r10]\n"
    };
    (@clamp $acc:literal, $bias:literal) => { concat!(
        "vaddps zmm", $acc, ", zmm", $acc, ", zmm", $bias, "\nvmaxps zmm", $acc, ", zmm30, zmm", $acc,
        "\nvminps zmm", $acc, ", zmm31, zmm", $acc, "\n"
    ) };
    (@floats 2, $($i:tt $lo:literal $hi:literal)*) => { concat!($(
        ends!(@clamp $lo, 28), ends!(@clamp $hi, 29),
        "vmovups [r8], zmm", $lo, "\nvmovups [r8+64], zmm", $hi, "\nadd r8, r9\n",
    )*) };
    (@floats 1, $($i:tt $lo:literal $hi:literal)*) => { concat!($(
        ends!(@clamp $lo, 28), "vmovups [r8], zmm", $lo, "\nadd r8, r9\n",
    )*) };
    (@halves 2, $($i:tt $lo:literal $hi:literal)*) => { concat!($(
        ends!(@clamp $lo, 28), ends!(@clamp $hi, 29),
        "vcvtne2ps2bf16 zmm", $lo, ", zmm", $hi, ", zmm", $lo, "\nvmovups [r8], zmm", $lo, "\nadd r8, r9\n",
    )*) };
    (@halves 1, $($i:tt $lo:literal $hi:literal)*) => { concat!($(
        ends!(@clamp $lo, 28),
        "vcvtneps2bf16 ymm", $lo, ", zmm", $lo, "\nvmovups [r8], ymm", $lo, "\nadd r8, r9\n",
    )*) };
}

macro_rules! zeros {
    (2, $($i:tt $lo:literal $hi:literal)*) => {
        concat!($("vpxord zmm", $lo, ", zmm", $lo, ", zmm", $lo, "\nvpxord zmm", $hi, ", zmm", $hi, ", zmm", $hi, "\n",)*)
    };
    (1, $($i:tt $lo:literal $hi:literal)*) => {
        concat!($("vpxord zmm", $lo, ", zmm", $lo, ", zmm", $lo, "\n",)*)
    };
}

macro_rules! tile {
    ($name:ident, $features:literal, $ends:tt, $nv:tt, $dot:literal, $($rows:tt)*) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(t: &Tile) {
            // SAFETY: the caller vouches for the tier and the pointers of the tile; all
            // registers that are written are named.
            unsafe {
                asm!(
                    zeros!($nv, $($rows)*),
                    "lea rax, [r11+2*r11]",
                    "2:",
                    "mov r8, [rsi]",
                    "add rdx, [rsi+8]",
                    "add rsi, 16",
                    "add r8, r12",
                    "lea r9, [r8+4*r11]",
                    "add r9, r11",
                    "lea r10, [r9+4*r11]",
                    "add r10, r11",
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
                    "test r13, 1",
                    "jnz 7f",
                    stores!($nv, $($rows)*),
                    "jmp 8f",
                    "7:",
                    ends!($ends, $nv, $($rows)*),
                    "8:",
                    // The compiler adds none behind assembly; without it the SSE instructions of the callers wait for all
                    // that the registers' upper halves wait for (Intel).
                    "vzeroupper",
                    in("r12") t.a,
                    in("r11") t.stride,
                    in("r14") t.steps,
                    inout("rsi") t.runs => _,
                    inout("rdi") t.n_runs => _,
                    inout("rdx") t.b => _,
                    inout("r15") t.ahead => _,
                    inout("r13") t.destination() => _,
                    out("rax") _, out("rcx") _, out("r8") _, out("r9") _, out("r10") _,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                    out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
                    out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                    out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _,
                    out("zmm30") _, out("zmm31") _,
                    options(nostack),
                );
            }
        }
    };
}

/// The tiles of heights 1 to 14, each 16 and 32 columns wide.
macro_rules! tiles {
    ($module:ident, $features:literal, $ends:tt, $dot:literal) => {
        pub(crate) mod $module {
            use super::*;
            use crate::panel::tile::TileFn;

            tiles! { @each $features, $ends, $dot,
                r1w1 r1w2 [0 0 1];
                r2w1 r2w2 [0 0 1 1 2 3];
                r3w1 r3w2 [0 0 1 1 2 3 2 4 5];
                r4w1 r4w2 [0 0 1 1 2 3 2 4 5 3 6 7];
                r5w1 r5w2 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9];
                r6w1 r6w2 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11];
                r7w1 r7w2 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11 6 12 13];
                r8w1 r8w2 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11 6 12 13 7 14 15];
                r9w1 r9w2 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11 6 12 13 7 14 15 8 16 17];
                r10w1 r10w2 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11 6 12 13 7 14 15 8 16 17 9 18 19];
                r11w1 r11w2 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11 6 12 13 7 14 15 8 16 17 9 18 19 10 20 21];
                r12w1 r12w2 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11 6 12 13 7 14 15 8 16 17 9 18 19 10 20 21 11 22 23];
                r13w1 r13w2 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11 6 12 13 7 14 15 8 16 17 9 18 19 10 20 21 11 22 23 12 24 25];
                r14w1 r14w2 [0 0 1 1 2 3 2 4 5 3 6 7 4 8 9 5 10 11 6 12 13 7 14 15 8 16 17 9 18 19 10 20 21 11 22 23 12 24 25 13 26 27];
            }

            pub(crate) static TILES: &[TileFn] = &[
                r1w1, r1w2, r2w1, r2w2, r3w1, r3w2, r4w1, r4w2, r5w1, r5w2, r6w1, r6w2, r7w1, r7w2, r8w1, r8w2,
                r9w1, r9w2, r10w1, r10w2, r11w1, r11w2, r12w1, r12w2, r13w1, r13w2, r14w1, r14w2,
            ];
        }
    };
    (@each $features:literal, $ends:tt, $dot:literal, $($one:ident $two:ident [$($row:tt)*];)*) => {$(
        tile!($one, $features, $ends, 1, $dot, $($row)*);
        tile!($two, $features, $ends, 2, $dot, $($row)*);
    )*};
}

tiles!(vnni, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni", none, "vpdpbusd");
tiles!(vnni16, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni", none, "vpdpwssd");
tiles!(bf16, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", halves, "vdpbf16ps");
tiles!(fma512, "avx512f,avx512bw,avx512dq,avx512vl", floats, "vfmadd231ps");

/// Dot products in one or two instructions: four 8-bit integers by AVX-VNNI, or two 16-bit ones, whose sums wrap.
macro_rules! dots {
    ($(#[$doc:meta])* $name:ident, $vector:ty, $zero:ident, $splat:ident, $load:ident, $store:ident, $dot:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name(());

        impl $name {
            /// # Safety
            /// The CPU has the tier.
            #[inline(always)]
            pub(crate) unsafe fn assume() -> Self {
                $name(())
            }
        }

        impl Dot for $name {
            type Acc = $vector;
            type A = $vector;
            type B = $vector;
            #[inline(always)]
            fn zero(self) -> $vector {
                // SAFETY: `assume` vouches for the tier.
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn row(self, p: *const u8) -> $vector {
                // SAFETY: the caller vouches for 4 bytes.
                unsafe { $splat(p.cast::<i32>().read_unaligned()) }
            }
            #[inline(always)]
            unsafe fn column(self, p: *const u32) -> $vector {
                // SAFETY: the caller vouches for a vector.
                unsafe { $load(p.cast()) }
            }
            #[inline(always)]
            fn dot(self, acc: $vector, a: $vector, b: $vector) -> $vector {
                // SAFETY: `assume` vouches for the tier.
                unsafe { $dot(acc, a, b) }
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut u32, acc: $vector) {
                // SAFETY: the caller vouches for a vector.
                unsafe { $store(p.cast(), acc) }
            }
        }
    };
}

macro_rules! dots256 {
    ($(#[$doc:meta])* $name:ident, $dot:expr) => {
        dots!(
            $(#[$doc])* $name, __m256i, _mm256_setzero_si256, _mm256_set1_epi32, _mm256_loadu_si256,
            _mm256_storeu_si256, $dot
        );
    };
}

dots256!(
    /// Four 8-bit integers, AVX-VNNI.
    Bytes256,
    _mm256_dpbusd_avx_epi32
);
dots256!(
    /// Two 16-bit integers, AVX-VNNI.
    Dots256,
    _mm256_dpwssd_avx_epi32
);
dots!(
    /// Two 16-bit integers, AVX-512.
    Shorts512,
    __m512i,
    _mm512_setzero_si512,
    _mm512_set1_epi32,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    |acc, a, b| _mm512_add_epi32(acc, _mm512_madd_epi16(a, b))
);

/// Exact dot products of 8-bit integers, AVX-512 without VNNI: even and odd bytes apart, as 16-bit pairs, because `vpmaddubsw`
/// saturates.
#[derive(Clone, Copy)]
pub(crate) struct Pairs512(());

impl Pairs512 {
    /// # Safety
    /// The CPU has the tier.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Pairs512(())
    }
}

impl Dot for Pairs512 {
    type Acc = __m512i;
    /// Even bytes and odd bytes, as 16-bit numbers.
    type A = [__m512i; 2];
    type B = [__m512i; 2];
    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: `assume` vouches for the tier.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn row(self, p: *const u8) -> [__m512i; 2] {
        // SAFETY: the caller vouches for 4 bytes.
        unsafe {
            let x = _mm512_set1_epi32(p.cast::<i32>().read_unaligned());
            [_mm512_and_si512(x, _mm512_set1_epi16(0xff)), _mm512_srli_epi16::<8>(x)]
        }
    }
    #[inline(always)]
    unsafe fn column(self, p: *const u32) -> [__m512i; 2] {
        // SAFETY: the caller vouches for a vector.
        unsafe {
            let x = _mm512_loadu_si512(p.cast());
            [_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x)), _mm512_srai_epi16::<8>(x)]
        }
    }
    #[inline(always)]
    fn dot(self, acc: __m512i, a: [__m512i; 2], b: [__m512i; 2]) -> __m512i {
        // SAFETY: `assume` vouches for the tier.
        unsafe { _mm512_add_epi32(acc, _mm512_add_epi32(_mm512_madd_epi16(a[0], b[0]), _mm512_madd_epi16(a[1], b[1]))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u32, acc: __m512i) {
        // SAFETY: the caller vouches for a vector.
        unsafe { _mm512_storeu_si512(p.cast(), acc) }
    }
}
