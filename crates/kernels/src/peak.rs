//! What the machine does at the most: multiply-adds on registers alone, and plain passes
//! over memory. Kernels are held against these, measured on the same threads.
//!
//! A loop keeps more independent accumulators than the units have stages, so that nothing
//! but their number and the clock bounds it. Operands are not zero: a multiplier of zeros
//! takes less power, and the clock would be higher than that of real work.

use std::time::{Duration, Instant};

use crate::buffer::SharedMut;
use crate::exec::Exec;
use crate::isa::{Bf16, Isa, Tier};
use crate::simd::{Kernel, Simd};

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// 8-bit integers with exact 32-bit sums. Tiers without an instruction for that widen
    /// to 16 bits, as their kernels do: `vpmaddubsw` would be faster, but saturates.
    Int8,
    /// bfloat16 with sums in 32-bit floats.
    Bf16,
    /// 32-bit floats.
    F32,
}

impl Arithmetic {
    /// `int8`, `bf16` or `f32`.
    pub fn name(self) -> &'static str {
        match self {
            Arithmetic::Int8 => "int8",
            Arithmetic::Bf16 => "bf16",
            Arithmetic::F32 => "f32",
        }
    }
}

/// A loop on registers.
#[derive(Debug)]
pub struct PeakKernel {
    /// `peak_<type>_<instruction>_<tier>`.
    pub name: &'static str,
    /// The tier that it needs.
    pub tier: Tier,
    /// What it multiplies.
    pub arithmetic: Arithmetic,
    /// Multiply-adds of one turn of the loop.
    pub multiply_adds: u64,
    /// Makes so many turns, at least one.
    ///
    /// The CPU must have the tier.
    turns: unsafe fn(u64),
}

impl PeakKernel {
    /// The instructions on bfloat16 that it needs.
    fn bf16(&self) -> Bf16 {
        match (self.arithmetic, self.tier) {
            (Arithmetic::Bf16, Tier::Amx) => Bf16::Tiles,
            (Arithmetic::Bf16, Tier::Vnni) => Bf16::Vectors,
            _ => Bf16::None,
        }
    }

    /// The fastest loop that `isa` has.
    pub fn best(isa: Isa, arithmetic: Arithmetic) -> &'static PeakKernel {
        let fits =
            |k: &&PeakKernel| k.arithmetic == arithmetic && isa.tier().includes(k.tier) && k.bf16() <= isa.bf16();
        PEAK_KERNELS.iter().find(fits).unwrap_or(&PEAK_KERNELS[PEAK_KERNELS.len() - 1])
    }
}

/// A rate that was measured several times.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// The median, per second.
    pub per_second: f64,
    /// The distance between the tenth and the ninetieth percentile as a share of the
    /// median: a few hundredths where nothing else uses the machine.
    pub spread: f64,
}

/// Time of one measurement: long beside the start of the threads, and shorter than what the
/// system gives a process at a time, so that the median is that of undisturbed ones while
/// other work takes less than half of the machine.
const SLICE: Duration = Duration::from_millis(1);
/// Measurements that are not counted: clocks and, on some processors, the upper half of wide
/// vectors take a while to settle.
const WARM_UP: Duration = Duration::from_millis(150);
/// Measurements.
const SLICES: usize = 151;

/// Multiply-adds per second of all threads of `exec` together, with the fastest loop of its
/// tier. Takes a third of a second.
pub fn multiply_adds(exec: &Exec, arithmetic: Arithmetic) -> Rate {
    let kernel = PeakKernel::best(exec.isa(), arithmetic);
    let _awake = exec.pool().keep_awake();
    let time = |turns: u64| {
        let start = Instant::now();
        // SAFETY: `best` asked the tier that `exec` proves.
        exec.pool().run(exec.threads(), &|_| unsafe { (kernel.turns)(turns) });
        start.elapsed()
    };
    let mut turns = 1 << 10;
    while time(turns) < SLICE {
        turns *= 2;
    }
    let warm = Instant::now();
    while warm.elapsed() < WARM_UP {
        time(turns);
    }
    let whole = (turns * kernel.multiply_adds) as f64 * exec.threads() as f64;
    let mut rates: Vec<f64> = (0..SLICES).map(|_| whole / time(turns).as_secs_f64()).collect();
    rates.sort_by(f64::total_cmp);
    let at = |share: f64| rates[((SLICES - 1) as f64 * share) as usize];
    Rate { per_second: at(0.5), spread: (at(0.9) - at(0.1)) / at(0.5) }
}

/// Reads all of `from` and writes all of `to` once, in step, on all threads: the least that
/// an operator with such operands and results costs. What is written means nothing.
pub fn stream(exec: &Exec, from: &[f32], to: &mut [f32]) {
    let blocks = from.len().max(to.len()).div_ceil(BLOCK);
    let (reads, writes) = (from.len(), to.len());
    let to = SharedMut::new(to);
    exec.split(blocks, GRAIN, &|range| {
        let part = |len: usize| (len * range.start / blocks, len * range.end / blocks);
        let ((r0, r1), (w0, w1)) = (part(reads), part(writes));
        // SAFETY: ranges are disjoint, and so are the parts of `to` that follow from them.
        let to = unsafe { to.slice(w0, w1 - w0) };
        exec.isa().dispatch(Stream { from: &from[r0..r1], to });
    });
}

/// Places that are read in turns: one alone does not keep the machine's prefetchers busy.
const STREAMS: usize = 4;
/// Floats of a block, of the larger side.
const BLOCK: usize = 1 << 9;
/// Blocks that one task takes at least.
const GRAIN: usize = 16;

struct Stream<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
}

impl Kernel for Stream<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (reads, writes) = (self.from.len() / STREAMS, self.to.len());
        let blocks = (STREAMS * reads).max(writes).div_ceil(BLOCK).max(1);
        let (streams, rest) = self.from.split_at(STREAMS * reads);
        let mut acc = [s.splat(0.0); STREAMS];
        for vector in rest.chunks(S::LANES) {
            // SAFETY: at most a vector.
            acc[0] = s.max(acc[0], unsafe { s.load_n(vector.as_ptr(), vector.len()) });
        }
        // No division within: it would take as long as a block.
        let (per_read, per_write) = (reads / blocks, writes / blocks);
        for b in 0..blocks {
            let last = b + 1 == blocks;
            let (mut at, end) = (b * per_read, if last { reads } else { (b + 1) * per_read });
            while at < end {
                let n = (end - at).min(S::LANES);
                for (i, a) in acc.iter_mut().enumerate() {
                    let from = streams[i * reads..][at..at + n].as_ptr();
                    // SAFETY: the slice has `n` elements.
                    *a = s.max(*a, unsafe { if n == S::LANES { s.load(from) } else { s.load_n(from, n) } });
                }
                at += n;
            }
            let to = b * per_write..if last { writes } else { (b + 1) * per_write };
            let mut vectors = self.to[to].chunks_exact_mut(S::LANES);
            for vector in &mut vectors {
                // SAFETY: a whole vector.
                unsafe { s.store(vector.as_mut_ptr(), acc[0]) };
            }
            let rest = vectors.into_remainder();
            // SAFETY: less than a vector.
            unsafe { s.store_n(rest.as_mut_ptr(), acc[0], rest.len()) };
        }
        // Without results to write, nothing else would need what was read.
        let all = s.max(s.max(acc[0], acc[1]), s.max(acc[2], acc[3]));
        std::hint::black_box(s.hmax(all));
    }
}

/// The loops, best first for each arithmetic.
pub static PEAK_KERNELS: &[PeakKernel] = &[
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    PeakKernel {
        name: "peak_int8_tdpbusd_amx",
        tier: Tier::Amx,
        arithmetic: Arithmetic::Int8,
        multiply_adds: 6 * 16 * 16 * 64,
        turns: x86::int8_amx,
    },
    #[cfg(target_arch = "x86_64")]
    PeakKernel {
        name: "peak_int8_vpdpbusd_vnni",
        tier: Tier::Vnni,
        arithmetic: Arithmetic::Int8,
        multiply_adds: 28 * 64,
        turns: x86::int8_vnni,
    },
    #[cfg(target_arch = "x86_64")]
    PeakKernel {
        name: "peak_int8_vpmaddwd_avx512",
        tier: Tier::Avx512,
        arithmetic: Arithmetic::Int8,
        multiply_adds: 28 * 32,
        turns: x86::int8_avx512,
    },
    #[cfg(target_arch = "x86_64")]
    PeakKernel {
        name: "peak_int8_vpdpbusd_avx-vnni",
        tier: Tier::AvxVnni,
        arithmetic: Arithmetic::Int8,
        multiply_adds: 12 * 32,
        turns: x86::int8_avx_vnni,
    },
    #[cfg(target_arch = "x86_64")]
    PeakKernel {
        name: "peak_int8_vpmaddwd_avx2",
        tier: Tier::Avx2,
        arithmetic: Arithmetic::Int8,
        multiply_adds: 12 * 16,
        turns: x86::int8_avx2,
    },
    #[cfg(target_arch = "aarch64")]
    PeakKernel {
        name: "peak_int8_usmmla_neon-i8mm",
        tier: Tier::NeonI8mm,
        arithmetic: Arithmetic::Int8,
        multiply_adds: 24 * 32,
        turns: arm::int8_i8mm,
    },
    #[cfg(target_arch = "aarch64")]
    PeakKernel {
        name: "peak_int8_sdot_neon-dot",
        tier: Tier::NeonDot,
        arithmetic: Arithmetic::Int8,
        multiply_adds: 24 * 16,
        turns: arm::int8_dot,
    },
    #[cfg(target_arch = "aarch64")]
    PeakKernel {
        name: "peak_int8_smlal_neon",
        tier: Tier::Neon,
        arithmetic: Arithmetic::Int8,
        multiply_adds: 24 * 4,
        turns: arm::int8,
    },
    // What a compiler may make of portable code.
    #[cfg(target_arch = "x86_64")]
    PeakKernel {
        name: "peak_int8_pmaddwd_scalar",
        tier: Tier::Scalar,
        arithmetic: Arithmetic::Int8,
        multiply_adds: 12 * 8,
        turns: x86::int8_sse2,
    },
    PeakKernel {
        name: "peak_int8_portable_scalar",
        tier: Tier::Scalar,
        arithmetic: Arithmetic::Int8,
        multiply_adds: PORTABLE as u64,
        turns: int8_portable,
    },
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    PeakKernel {
        name: "peak_bf16_tdpbf16ps_amx",
        tier: Tier::Amx,
        arithmetic: Arithmetic::Bf16,
        multiply_adds: 6 * 16 * 16 * 32,
        turns: x86::bf16_amx,
    },
    #[cfg(target_arch = "x86_64")]
    PeakKernel {
        name: "peak_bf16_vdpbf16ps_vnni",
        tier: Tier::Vnni,
        arithmetic: Arithmetic::Bf16,
        multiply_adds: 28 * 32,
        turns: x86::bf16_avx512,
    },
    // Without an instruction, a product of bfloat16 is one of floats.
    PeakKernel {
        name: "peak_bf16_portable_scalar",
        tier: Tier::Scalar,
        arithmetic: Arithmetic::Bf16,
        multiply_adds: PORTABLE as u64,
        turns: f32_portable,
    },
    #[cfg(target_arch = "x86_64")]
    PeakKernel {
        name: "peak_f32_vfmadd231ps_avx512",
        tier: Tier::Avx512,
        arithmetic: Arithmetic::F32,
        multiply_adds: 28 * 16,
        turns: x86::f32_avx512,
    },
    #[cfg(target_arch = "x86_64")]
    PeakKernel {
        name: "peak_f32_vfmadd231ps_avx2",
        tier: Tier::Avx2,
        arithmetic: Arithmetic::F32,
        multiply_adds: 12 * 8,
        turns: x86::f32_avx2,
    },
    #[cfg(target_arch = "aarch64")]
    PeakKernel {
        name: "peak_f32_fmla_neon",
        tier: Tier::Neon,
        arithmetic: Arithmetic::F32,
        multiply_adds: 24 * 4,
        turns: arm::f32,
    },
    #[cfg(target_arch = "x86_64")]
    PeakKernel {
        name: "peak_f32_mulps_scalar",
        tier: Tier::Scalar,
        arithmetic: Arithmetic::F32,
        multiply_adds: 12 * 4,
        turns: x86::f32_sse2,
    },
    PeakKernel {
        name: "peak_f32_portable_scalar",
        tier: Tier::Scalar,
        arithmetic: Arithmetic::F32,
        multiply_adds: PORTABLE as u64,
        turns: f32_portable,
    },
];

/// Accumulators of the portable loops.
const PORTABLE: usize = 32;

/// `acc · x + y`: a plain sum of products of constants would be folded by the compiler.
unsafe fn int8_portable(turns: u64) {
    let (x, y) = std::hint::black_box((-3i32, 77i32));
    let mut acc = [1i32; PORTABLE];
    for _ in 0..turns {
        acc.iter_mut().for_each(|a| *a = a.wrapping_mul(x).wrapping_add(y));
    }
    std::hint::black_box(acc);
}

/// As [`int8_portable`]; stays near 1.
unsafe fn f32_portable(turns: u64) {
    let (x, y) = std::hint::black_box((0.75f32, 0.25f32));
    let mut acc = [0.5f32; PORTABLE];
    for _ in 0..turns {
        acc.iter_mut().for_each(|a| *a = *a * x + y);
    }
    std::hint::black_box(acc);
}

#[cfg(target_arch = "aarch64")]
mod arm;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    #[repr(align(64))]
    struct Operands([[u32; 16]; 2]);

    /// Bytes of all sizes.
    static BYTES: Operands = Operands([[0xb57c_93e1; 16], [0x6d3a_e85b; 16]]);
    /// 1.25 and 0.8.
    static FLOATS: Operands = Operands([[0x3fa0_0000; 16], [0x3f4c_cccd; 16]]);
    /// Pairs of 1.25 and of about 0.8.
    static PAIRS: Operands = Operands([[0x3fa0_3fa0; 16], [0x3f4d_3f4d; 16]]);

    macro_rules! zeros {
        ($zero:literal, 2, $reg:literal, $($n:literal)*) => {
            concat!($($zero, " ", $reg, $n, ", ", $reg, $n, "\n",)*)
        };
        ($zero:literal, 3, $reg:literal, $($n:literal)*) => {
            concat!($($zero, " ", $reg, $n, ", ", $reg, $n, ", ", $reg, $n, "\n",)*)
        };
    }

    /// One instruction that multiplies and adds.
    macro_rules! fused {
        ($op:literal, $reg:literal, $a:literal, $b:literal, $($n:literal)*) => {
            concat!($($op, " ", $reg, $n, ", ", $reg, $a, ", ", $reg, $b, "\n",)*)
        };
    }

    /// A product into a third register, then a sum.
    macro_rules! apart {
        ($mul:literal, $add:literal, $reg:literal, $t:literal, $a:literal, $b:literal, $($n:literal)*) => {
            concat!($($mul, " ", $reg, $t, ", ", $reg, $a, ", ", $reg, $b, "\n",
                      $add, " ", $reg, $n, ", ", $reg, $n, ", ", $reg, $t, "\n",)*)
        };
    }

    /// The same with instructions of two operands.
    macro_rules! apart2 {
        ($mul:literal, $add:literal, $($n:literal)*) => {
            concat!($("movaps xmm13, xmm14\n", $mul, " xmm13, xmm15\n", $add, " xmm", $n, ", xmm13\n",)*)
        };
    }

    macro_rules! turns {
        ($name:ident, $(#[$feature:meta])? $operands:ident, $load:literal, $zeros:expr, $body:expr, $end:literal,
         $a:literal, $b:literal, [$($clobber:tt)*]) => {
            $(#[$feature])?
            pub(super) unsafe fn $name(turns: u64) {
                // SAFETY: reads the two operands, writes only registers that are named; the
                // caller vouches for the tier.
                unsafe {
                    asm!(
                        concat!($load, " ", $a, ", [{operands}]"),
                        concat!($load, " ", $b, ", [{operands} + 64]"),
                        $zeros,
                        "2:",
                        $body,
                        "dec {turns}",
                        "jnz 2b",
                        $end,
                        operands = in(reg) $operands.0.as_ptr(),
                        turns = inout(reg) turns.max(1) => _,
                        $(out($clobber) _,)*
                        options(nostack, readonly),
                    );
                }
            }
        };
    }

    macro_rules! zmm {
        ($name:ident, $feature:literal, $operands:ident, $macro:ident $($op:literal)*) => {
            turns!(
                $name, #[target_feature(enable = $feature)] $operands, "vmovups",
                zeros!("vpxord", 3, "zmm", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27),
                zmm!(@ $macro $($op)*), "vzeroupper", "zmm30", "zmm31",
                ["zmm0" "zmm1" "zmm2" "zmm3" "zmm4" "zmm5" "zmm6" "zmm7" "zmm8" "zmm9" "zmm10" "zmm11" "zmm12" "zmm13"
                 "zmm14" "zmm15" "zmm16" "zmm17" "zmm18" "zmm19" "zmm20" "zmm21" "zmm22" "zmm23" "zmm24" "zmm25"
                 "zmm26" "zmm27" "zmm28" "zmm30" "zmm31"]
            );
        };
        (@ fused $op:literal) => {
            fused!($op, "zmm", 30, 31, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27)
        };
        (@ apart $mul:literal $add:literal) => {
            apart!($mul, $add, "zmm", 28, 30, 31,
                   0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27)
        };
    }

    macro_rules! ymm {
        ($name:ident, $feature:literal, $operands:ident, $body:expr) => {
            turns!(
                $name, #[target_feature(enable = $feature)] $operands, "vmovups",
                zeros!("vxorps", 3, "ymm", 0 1 2 3 4 5 6 7 8 9 10 11),
                $body, "vzeroupper", "ymm14", "ymm15",
                ["ymm0" "ymm1" "ymm2" "ymm3" "ymm4" "ymm5" "ymm6" "ymm7" "ymm8" "ymm9" "ymm10" "ymm11" "ymm13" "ymm14"
                 "ymm15"]
            );
        };
    }

    macro_rules! xmm {
        ($name:ident, $operands:ident, $mul:literal, $add:literal) => {
            turns!(
                $name, $operands, "movaps",
                zeros!("xorps", 2, "xmm", 0 1 2 3 4 5 6 7 8 9 10 11),
                apart2!($mul, $add, 0 1 2 3 4 5 6 7 8 9 10 11), "", "xmm14", "xmm15",
                ["xmm0" "xmm1" "xmm2" "xmm3" "xmm4" "xmm5" "xmm6" "xmm7" "xmm8" "xmm9" "xmm10" "xmm11" "xmm13" "xmm14"
                 "xmm15"]
            );
        };
    }

    /// Six tiles of sums, one of rows and one of columns.
    #[cfg(target_os = "linux")]
    macro_rules! tiles {
        ($name:ident, $operands:ident, $op:literal) => {
            pub(super) unsafe fn $name(turns: u64) {
                // LDTILECFG: palette 1, then bytes (64) and rows (16) of each tile.
                let mut config = Operands([[0; 16]; 2]);
                let config = config.0.as_flattened_mut();
                config[0] = 1;
                config[4..8].fill(64 << 16 | 64);
                config[12..14].fill(0x1010_1010);
                // SAFETY: reads the configuration and the operands (one row for all), leaves no tile behind; the
                // caller vouches for the tier.
                unsafe {
                    asm!(
                        "ldtilecfg [{config}]",
                        "tileloadd tmm6, [{operands} + {zero}]",
                        "tileloadd tmm7, [{operands} + {zero} + 64]",
                        "2:",
                        concat!($op, " tmm0, tmm6, tmm7"),
                        concat!($op, " tmm1, tmm6, tmm7"),
                        concat!($op, " tmm2, tmm6, tmm7"),
                        concat!($op, " tmm3, tmm6, tmm7"),
                        concat!($op, " tmm4, tmm6, tmm7"),
                        concat!($op, " tmm5, tmm6, tmm7"),
                        "dec {turns}",
                        "jnz 2b",
                        "tilerelease",
                        config = in(reg) config.as_ptr(),
                        operands = in(reg) $operands.0.as_ptr(),
                        zero = in(reg) 0usize,
                        turns = inout(reg) turns.max(1) => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack, readonly),
                    );
                }
            }
        };
    }

    #[cfg(target_os = "linux")]
    tiles!(int8_amx, BYTES, "tdpbusd");
    #[cfg(target_os = "linux")]
    tiles!(bf16_amx, PAIRS, "tdpbf16ps");
    zmm!(int8_vnni, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni", BYTES, fused "vpdpbusd");
    zmm!(int8_avx512, "avx512f,avx512bw,avx512dq,avx512vl", BYTES, apart "vpmaddwd" "vpaddd");
    zmm!(bf16_avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", PAIRS, fused "vdpbf16ps");
    zmm!(f32_avx512, "avx512f,avx512bw,avx512dq,avx512vl", FLOATS, fused "vfmadd231ps");
    ymm!(int8_avx_vnni, "avx2,avxvnni", BYTES, fused!("{{vex}} vpdpbusd", "ymm", 14, 15, 0 1 2 3 4 5 6 7 8 9 10 11));
    ymm!(int8_avx2, "avx2,fma", BYTES, apart!("vpmaddwd", "vpaddd", "ymm", 13, 14, 15, 0 1 2 3 4 5 6 7 8 9 10 11));
    ymm!(f32_avx2, "avx2,fma", FLOATS, fused!("vfmadd231ps", "ymm", 14, 15, 0 1 2 3 4 5 6 7 8 9 10 11));
    xmm!(int8_sse2, BYTES, "pmaddwd", "paddd");
    xmm!(f32_sse2, FLOATS, "mulps", "addps");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panel::{BF16_KERNELS, FLOAT_KERNELS, INT_KERNELS};
    use crate::testing::{Guarded, execs};

    #[test]
    fn runs_every_loop_of_this_machine() {
        let isa = Isa::detect();
        for kernel in PEAK_KERNELS.iter().filter(|k| Isa::with_tier(k.tier).is_ok() && k.bf16() <= isa.bf16()) {
            // SAFETY: the machine has the tier.
            unsafe { (kernel.turns)(3) };
            assert!(kernel.multiply_adds > 0, "{}", kernel.name);
        }
    }

    #[test]
    fn has_a_peak_for_the_tier_of_every_kernel() {
        // A kernel of a tier without a loop would be held against the peak of a lower one.
        let tables =
            [(INT_KERNELS, Arithmetic::Int8), (FLOAT_KERNELS, Arithmetic::F32), (BF16_KERNELS, Arithmetic::Bf16)];
        for (table, arithmetic) in tables {
            for kernel in table {
                let has = PEAK_KERNELS.iter().any(|p| p.tier == kernel.tier && p.arithmetic == arithmetic);
                assert!(has, "{} has no loop in PEAK_KERNELS", kernel.name);
            }
        }
    }

    #[test]
    fn chooses_the_best_loop_of_a_tier() {
        for isa in Isa::available() {
            for arithmetic in [Arithmetic::Int8, Arithmetic::Bf16, Arithmetic::F32] {
                let kernel = PeakKernel::best(isa, arithmetic);
                assert_eq!(kernel.arithmetic, arithmetic);
                assert!(
                    isa.tier().includes(kernel.tier) && kernel.name.starts_with(&format!("peak_{}", arithmetic.name()))
                );
            }
        }
    }

    #[test]
    fn gives_a_rate_and_its_spread() {
        let rate = multiply_adds(&Exec::new(Isa::detect(), 1), Arithmetic::F32);
        assert!(rate.per_second.is_finite() && rate.per_second > 0.0 && rate.spread >= 0.0);
    }

    #[test]
    fn streams_over_all_of_both_sides_and_no_further() {
        for (reads, writes) in [(0, 0), (1, 0), (0, 7), (5, 5), (1023, 17), (70_001, 17_503), (333, 40_000)] {
            for exec in execs() {
                let (mut from, mut to) = (Guarded::new(&vec![2.0f32; reads]), Guarded::new(&vec![-1.0f32; writes]));
                stream(&exec, from.get(), to.get());
                assert!(to.get().iter().all(|&y| y >= 0.0), "{reads} {writes} {exec:?}");
            }
        }
    }
}
