//! Tiles of AVX2 in assembly: twelve accumulators leave four registers, and a compiler that moves loads ahead of their use
//! spills some in every step.
//!
//! Products of bytes are exact. `vpmaddubsw` adds two neighbours' in 16 bits and saturates, which `a₀w₀ + a₁w₁` of u8 and i8
//! can reach. Where it cannot is known before the products are made: the weights' packing keeps, for each two rows of a
//! panel, the highest `a` for which no column's sum does ([`super::limits`]), and a tile compares its own rows with that, sixteen
//! steps at a time. In most steps even the sums of two steps fit, which then are widened together: three multiplications
//! in the place of four. Where a row is higher, the weights' magnitudes are multiplied with `a − 128`, whose bits are turned where
//! the weight is negative: `|w| · ~x = w · x + w` for `w < 0`. No sum of two leaves 16 bits then; what is too much or too
//! little is the same for all rows, and packing keeps it, too. This takes 1.3 times as long, most of it for magnitudes and
//! signs: a panel in which many steps are so is taken apart once for all its tiles ([`super::vectors`]). Large weights side
//! by side are rare in transformers, and so are activations near 255: most steps pass. Behind a clamp they don't.

use std::arch::asm;
use std::mem::offset_of;

use super::limits::{BLOCK, BLOCK_WORDS};
use super::tile::Tile;

// The assembly has these numbers in it.
const _: () = assert!(BLOCK == 16 && BLOCK_WORDS == 48);

/// What takes 128 off bytes, in one line of the cache.
#[repr(align(32))]
struct Flip(#[allow(dead_code)] [u8; 32]); // Assembly reads it.

static FLIP: Flip = Flip([0x80; 32]);

/// Ones of 16 bits.
#[repr(align(32))]
struct Ones(#[allow(dead_code)] [u16; 16]);

static ONES: Ones = Ones([1; 16]);

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
            "vmovups ymm",
            $lo,
            ", [rdx+",
            $b0,
            "]\nvmovups ymm",
            $hi,
            ", [rdx+",
            $b1,
            "]\n",
            "prefetcht0 [rdx+4096+",
            $b0,
            "]\n"
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
    // Bytes that do not saturate. In both forms of bytes, ymm15 has ones of 16 bits.
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
    // Magnitudes by bytes less 128, turned by the signs.
    ($nv:tt, signs, $da:literal, $b0:literal, $b1:literal, $($i:tt $lo:literal $hi:literal)*) => {
        concat!(step!(@split $nv, $b0, $b1), $(
            "vpbroadcastd ymm12, dword ptr [", row!($i), "+", $da, "]\n", step!(@signs $nv, $lo, $hi),
        )*)
    };
    // Weights that were taken apart before, at r13 and twice rdx.
    (2, apart, $da:literal, $b0:literal, $b1:literal, $($i:tt $lo:literal $hi:literal)*) => {
        concat!(
            "vmovups ymm8, [r13+2*rdx+2*", $b0, "]\nvmovups ymm9, [r13+2*rdx+2*", $b0, "+32]\n",
            "vmovups ymm10, [r13+2*rdx+2*", $b0, "+64]\nvmovups ymm11, [r13+2*rdx+2*", $b0, "+96]\n",
            "prefetcht0 [rdx+4096+", $b0, "]\n",
            $("vpbroadcastd ymm12, dword ptr [", row!($i), "+", $da, "]\n", step!(@signs 2, $lo, $hi),)*
        )
    };
    (1, apart, $da:literal, $b0:literal, $b1:literal, $($i:tt $lo:literal $hi:literal)*) => {
        concat!(
            "vmovups ymm8, [r13+2*rdx+2*", $b0, "]\nvmovups ymm10, [r13+2*rdx+2*", $b0, "+32]\n",
            "prefetcht0 [rdx+4096+", $b0, "]\n",
            $("vpbroadcastd ymm12, dword ptr [", row!($i), "+", $da, "]\n", step!(@signs 1, $lo, $hi),)*
        )
    };
    (@split 2, $b0:literal, $b1:literal) => {
        concat!(
            columns!(2, 8, 9, $b0, $b1), "vpxor xmm10, xmm10, xmm10\nvpcmpgtb ymm11, ymm10, ymm9\n",
            "vpcmpgtb ymm10, ymm10, ymm8\nvpabsb ymm8, ymm8\nvpabsb ymm9, ymm9\n",
            "vpxor ymm10, ymm10, [rip+{flip}]\nvpxor ymm11, ymm11, [rip+{flip}]\n"
        )
    };
    (@split 1, $b0:literal, $b1:literal) => {
        concat!(
            columns!(1, 8, 9, $b0, $b1), "vpxor xmm10, xmm10, xmm10\nvpcmpgtb ymm10, ymm10, ymm8\n",
            "vpabsb ymm8, ymm8\nvpxor ymm10, ymm10, [rip+{flip}]\n"
        )
    };
    (@signs 2, $lo:literal, $hi:literal) => {
        concat!(
            "vpxor ymm13, ymm12, ymm10\nvpxor ymm14, ymm12, ymm11\n",
            "vpmaddubsw ymm13, ymm8, ymm13\nvpmaddubsw ymm14, ymm9, ymm14\n",
            "vpmaddwd ymm13, ymm13, ymm15\nvpmaddwd ymm14, ymm14, ymm15\n",
            "vpaddd ymm", $lo, ", ymm", $lo, ", ymm13\nvpaddd ymm", $hi, ", ymm", $hi, ", ymm14\n"
        )
    };
    (@signs 1, $lo:literal, $hi:literal) => {
        concat!(
            "vpxor ymm13, ymm12, ymm10\nvpmaddubsw ymm13, ymm8, ymm13\nvpmaddwd ymm13, ymm13, ymm15\n",
            "vpaddd ymm", $lo, ", ymm", $lo, ", ymm13\n"
        )
    };
}

/// Two steps of all rows, whose products are added in 16 bits: `$d0` and `$d1` bytes into the rows, from `$b0` and `$b1` on
/// in the panel.
macro_rules! pair {
    (2, $d0:literal, $d1:literal, $b0:literal, $b1:literal, $($i:tt $lo:literal $hi:literal)*) => { concat!(
        "vmovups ymm8, [rdx+", $b0, "]\nvmovups ymm9, [rdx+", $b0, "+32]\nprefetcht0 [rdx+4096+", $b0, "]\n",
        "vmovups ymm10, [rdx+", $b1, "]\nvmovups ymm11, [rdx+", $b1, "+32]\nprefetcht0 [rdx+4096+", $b1, "]\n",
        $(
            "vpbroadcastd ymm12, dword ptr [", row!($i), "+", $d0, "]\n",
            "vpmaddubsw ymm13, ymm12, ymm8\nvpmaddubsw ymm14, ymm12, ymm9\n",
            "vpbroadcastd ymm12, dword ptr [", row!($i), "+", $d1, "]\n",
            "vpmaddubsw ymm15, ymm12, ymm10\nvpmaddubsw ymm12, ymm12, ymm11\n",
            "vpaddw ymm13, ymm13, ymm15\nvpaddw ymm14, ymm14, ymm12\n",
            "vpmaddwd ymm13, ymm13, [rip+{ones}]\nvpmaddwd ymm14, ymm14, [rip+{ones}]\n",
            "vpaddd ymm", $lo, ", ymm", $lo, ", ymm13\nvpaddd ymm", $hi, ", ymm", $hi, ", ymm14\n",
        )*
    ) };
    (1, $d0:literal, $d1:literal, $b0:literal, $b1:literal, $($i:tt $lo:literal $hi:literal)*) => { concat!(
        "vmovups ymm8, [rdx+", $b0, "]\nvmovups ymm10, [rdx+", $b1, "]\nprefetcht0 [rdx+4096+", $b0, "]\n",
        $(
            "vpbroadcastd ymm12, dword ptr [", row!($i), "+", $d0, "]\nvpmaddubsw ymm13, ymm12, ymm8\n",
            "vpbroadcastd ymm12, dword ptr [", row!($i), "+", $d1, "]\nvpmaddubsw ymm12, ymm12, ymm10\n",
            "vpaddw ymm13, ymm13, ymm12\nvpmaddwd ymm13, ymm13, [rip+{ones}]\n",
            "vpaddd ymm", $lo, ", ymm", $lo, ", ymm13\n",
        )*
    ) };
}

/// Four and two steps by pairs.
macro_rules! pairs {
    (4, 2, $($rows:tt)*) => {
        concat!(pair!(2, 0, 4, 0, 64, $($rows)*), pair!(2, 8, 12, 128, 192, $($rows)*), "add r8, 16\nadd rdx, 256\n")
    };
    (4, 1, $($rows:tt)*) => {
        concat!(pair!(1, 0, 4, 0, 32, $($rows)*), pair!(1, 8, 12, 64, 96, $($rows)*), "add r8, 16\nadd rdx, 128\n")
    };
    (2, 2, $($rows:tt)*) => { concat!(pair!(2, 0, 4, 0, 64, $($rows)*), "add r8, 8\nadd rdx, 128\n") };
    (2, 1, $($rows:tt)*) => { concat!(pair!(1, 0, 4, 0, 32, $($rows)*), "add r8, 8\nadd rdx, 64\n") };
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

/// Makes the results of each row from its accumulators, as [`super::tile::End`] says: r13 is its address, and 1. NaN passes:
/// the instructions give their second operand then.
macro_rules! ends {
    (floats, 2, $($i:tt $lo:literal $hi:literal)*) => { concat!(
        ends!(@constants), "vmovups ymm13, [r10+32]\n", $(
            ends!(@clamp $lo, 12), ends!(@clamp $hi, 13),
            "vmovups [r8], ymm", $lo, "\nvmovups [r8+32], ymm", $hi, "\nadd r8, rcx\n",
        )*
    ) };
    (floats, 1, $($i:tt $lo:literal $hi:literal)*) => { concat!(
        ends!(@constants), $(ends!(@clamp $lo, 12), "vmovups [r8], ymm", $lo, "\nadd r8, rcx\n",)*
    ) };
    (@constants) => {
        "dec r13\nmov r8, [r13]\nmov rcx, [r13+8]\nmov r10, [r13+16]\nvbroadcastss ymm14, dword ptr [r13+24]\n\
         vbroadcastss ymm15, dword ptr [r13+28]\nvmovups ymm12, [r10]\n"
    };
    (@clamp $acc:literal, $bias:literal) => { concat!(
        "vaddps ymm", $acc, ", ymm", $acc, ", ymm", $bias, "\nvmaxps ymm", $acc, ", ymm14, ymm", $acc,
        "\nvminps ymm", $acc, ", ymm15, ymm", $acc, "\n"
    ) };
    // Integers have none.
    (shorts, $($rest:tt)*) => { "" };
}

/// The greatest bytes of all rows at an address, in a register.
macro_rules! highest {
    ($to:literal, $at:literal, $($i:tt $lo:literal $hi:literal)*) => { concat!(
        "vpxor ", $to, ", ", $to, ", ", $to, "\n", $(highest!(@row $to, $at, $i),)*
    ) };
    (@row $to:literal, $at:literal, 0) => { concat!("vpmaxub ", $to, ", ", $to, ", [", $at, "]\n") };
    (@row $to:literal, $at:literal, 1) => { concat!("vpmaxub ", $to, ", ", $to, ", [", $at, "+r11]\n") };
    (@row $to:literal, $at:literal, 2) => { concat!("vpmaxub ", $to, ", ", $to, ", [", $at, "+2*r11]\n") };
    (@row $to:literal, $at:literal, 3) => { concat!("vpmaxub ", $to, ", ", $to, ", [", $at, "+rax]\n") };
}

/// Compares the greatest bytes of a block of r9 steps with its limits: goes to 40 where two steps may be added, to 5 where
/// one, and else to 24. Vectors of `$bytes` bytes, of which two cover the block; 8, 9, 10 and 11 in registers so named.
macro_rules! compare {
    ($bytes:literal, $a:literal, $b:literal, $c:literal, $d:literal, $($rows:tt)*) => { concat!(
        "lea r10, [r8+4*r9-", $bytes, "]\n", highest!($a, "r8", $($rows)*), highest!($b, "r10", $($rows)*),
        "vpsubusb ", $c, ", ", $a, ", [r15+64]\nvpsubusb ", $d, ", ", $b, ", [r15+4*r9+64-", $bytes, "]\n",
        "vpor ", $c, ", ", $c, ", ", $d, "\nvptest ", $c, ", ", $c, "\njz 40f\n",
        "vpsubusb ", $a, ", ", $a, ", [r15]\nvpsubusb ", $b, ", ", $b, ", [r15+4*r9-", $bytes, "]\n",
        "vpor ", $a, ", ", $a, ", ", $b, "\nvptest ", $a, ", ", $a, "\n",
    ) };
}

/// Ones of 16 bits in ymm15.
macro_rules! ones {
    () => {
        "vpcmpeqw ymm15, ymm15, ymm15\nvpsrlw ymm15, ymm15, 15\n"
    };
}

/// Adds a block's corrections to each row.
macro_rules! correct {
    (2, $($i:tt $lo:literal $hi:literal)*) => {
        concat!(
            "vmovups ymm8, [r15+128]\nvmovups ymm9, [r15+160]\n",
            $("vpaddd ymm", $lo, ", ymm", $lo, ", ymm8\nvpaddd ymm", $hi, ", ymm", $hi, ", ymm9\n",)*
        )
    };
    (1, $($i:tt $lo:literal $hi:literal)*) => {
        concat!("vmovups ymm8, [r15+128]\n", $("vpaddd ymm", $lo, ", ymm", $lo, ", ymm8\n",)*)
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
                    "test r13, 1",
                    "jnz 7f",
                    stores!($nv, $($rows)*),
                    "jmp 8f",
                    "7:",
                    ends!($dot, $nv, $($rows)*),
                    "8:",
                    "vzeroupper",
                    in("r12") t.a,
                    in("r11") t.stride,
                    in("r14") t.steps,
                    inout("rsi") t.runs => _,
                    inout("rdi") t.n_runs => _,
                    inout("rdx") t.b => _,
                    inout("r13") t.destination() => _,
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
            // What twice the place in the panel is added to.
            let apart = if t.apart.is_null() { 0 } else { (t.apart as usize).wrapping_sub(2 * t.b as usize) };
            let slow: usize;
            // SAFETY: as for the others; the limits cover the steps of all runs, which pass nothing over.
            unsafe {
                asm!(
                    zeros!($nv, $($rows)*),
                    "lea rax, [r11+2*r11]",
                    "xor r14d, r14d",
                    "2:",
                    "mov r8, [rsi]",
                    "add rsi, 16",
                    "add r8, [r12+{a}]",
                    "mov rcx, [r12+{steps}]",
                    // The next r9 steps.
                    "3:",
                    "mov r9d, 16",
                    "cmp rcx, r9",
                    "cmovb r9, rcx",
                    "sub rcx, r9",
                    "cmp r9, 8",
                    "jb 23f",
                    compare!("32", "ymm8", "ymm9", "ymm10", "ymm11", $($rows)*),
                    "jnz 24f",
                    // Sums of two products fit.
                    "5:",
                    ones!(),
                    "sub r9, 4",
                    "jb 7f",
                    "6:",
                    four!($nv, $dot, $($rows)*),
                    "sub r9, 4",
                    "jae 6b",
                    "7:",
                    "add r9, 4",
                    "jz 9f",
                    "8:",
                    one!($nv, $dot, $($rows)*),
                    "dec r9",
                    "jnz 8b",
                    "9:",
                    "add r15, 192",
                    "test rcx, rcx",
                    "jnz 3b",
                    "dec rdi",
                    "jnz 2b",
                    "jmp 60f",
                    // Few steps.
                    "23:",
                    "cmp r9, 4",
                    "jb 24f",
                    compare!("16", "xmm8", "xmm9", "xmm10", "xmm11", $($rows)*),
                    "jz 5b",
                    // They do not.
                    "24:",
                    "inc r14",
                    ones!(),
                    "test r13, r13",
                    "jz 29f",
                    "sub r9, 4",
                    "jb 26f",
                    "25:",
                    four!($nv, apart, $($rows)*),
                    "sub r9, 4",
                    "jae 25b",
                    "26:",
                    "add r9, 4",
                    "jz 28f",
                    "27:",
                    one!($nv, apart, $($rows)*),
                    "dec r9",
                    "jnz 27b",
                    "28:",
                    correct!($nv, $($rows)*),
                    "jmp 9b",
                    "29:",
                    one!($nv, signs, $($rows)*),
                    "dec r9",
                    "jnz 29b",
                    "jmp 28b",
                    // Sums of four fit.
                    "40:",
                    "sub r9, 4",
                    "jb 42f",
                    "41:",
                    pairs!(4, $nv, $($rows)*),
                    "sub r9, 4",
                    "jae 41b",
                    "42:",
                    "test r9, 2",
                    "jz 43f",
                    pairs!(2, $nv, $($rows)*),
                    "43:",
                    "test r9, 1",
                    "jz 9b",
                    ones!(),
                    one!($nv, $dot, $($rows)*),
                    "jmp 9b",
                    "60:",
                    "mov r13, [r12+{out}]",
                    stores!($nv, $($rows)*),
                    "vzeroupper",
                    ones = sym ONES,
                    flip = sym FLIP,
                    a = const offset_of!(Tile, a),
                    steps = const offset_of!(Tile, steps),
                    out = const offset_of!(Tile, out),
                    in("r12") t,
                    in("r11") t.stride,
                    inout("rsi") t.runs => _,
                    inout("rdi") t.n_runs => _,
                    inout("rdx") t.b => _,
                    inout("r13") apart => _,
                    inout("r15") t.limits => _,
                    out("r14") slow,
                    out("rax") _, out("rcx") _, out("r8") _, out("r9") _, out("r10") _,
                    out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                    out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    options(nostack),
                );
            }
            t.slow.set(slow);
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

#[cfg(test)]
mod tests {
    use crate::panel::{Epilogue, Rows, Target, panel_gemm, panel_gemm_pack};
    use crate::testing::{Random, execs};

    #[test]
    fn multiplies_rows_around_the_limits_exactly() {
        let mut random = Random::new(5);
        for (m, k, n) in [
            (1, 3, 1),
            (2, 16, 8),
            (3, 20, 16),
            (4, 30, 17),
            (9, 64, 9),
            (7, 100, 40),
            (6, 200, 16),
            (70, 9, 9),
            (61, 130, 40),
        ] {
            // With the second weights, four at a time fit up to 125 at the least.
            let weights: [[i32; 8]; 2] = [[-128, -127, -64, 0, 1, 64, 126, 127], [-65, -40, -3, 0, 1, 9, 40, 65]];
            for (high, weights) in [100, 128, 129, 140, 180, 254, 255].iter().flat_map(|&h| weights.map(|w| (h, w))) {
                // Few are high, so that some steps pass and others don't, and the highest weights stand side by side.
                let value = |random: &mut Random| {
                    if random.below(40) == 0 { high + random.below(256 - high) } else { random.below(high) }
                };
                let x: Vec<u8> = (0..m * k).map(|_| value(&mut random) as u8).collect();
                let weight = |random: &mut Random| weights[random.below(8)] as i8;
                let w: Vec<i8> = (0..k * n).map(|_| weight(&mut random)).collect();
                let dot = |i: usize, j: usize| (0..k).map(|q| i32::from(x[i * k + q]) * i32::from(w[q * n + j])).sum();
                let want: Vec<i32> = (0..m * n).map(|at| dot(at / n, at % n)).collect();
                for exec in execs() {
                    let weights = panel_gemm_pack(&exec, (k, n), &w, false).unwrap();
                    let (offsets, scales, mut y) = (vec![0; n], vec![1.0; n], vec![0; m * n]);
                    let epilogue = Epilogue { offsets: &offsets, scales: &scales, ..Epilogue::default() };
                    panel_gemm(&exec, Rows::U8(&x), (m, k, k), &weights, &epilogue, Target::I32(&mut y)).unwrap();
                    assert_eq!(y, want, "{m}×{k}×{n} up to {high}, {}", weights.kernel().name);
                }
            }
        }
    }
}
