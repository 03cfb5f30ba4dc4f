//! The processor's tiles: detection, permission, configuration and the blocks in assembly.
//!
//! A block is one piece of assembly, from the loads of its sums to their stores, so that no compiled code runs while
//! tiles hold something. Between blocks only the configuration stays; it is released with the [`Hardware`].

use std::arch::asm;
use std::marker::PhantomData;

use super::{Block, Product, Shape, Tiles, trial};
use crate::isa::Amx;

/// Leaf 7, register EDX: AMX-BF16, AMX-TILE, AMX-INT8.
const AMX_TILE: u32 = 1 << 24;
const AMX_INT8: u32 = 1 << 25;
const AMX_BF16: u32 = 1 << 22;
/// XCR0: the system saves tile configuration and tile data.
const XCR0_TILES: u64 = 0b11 << 17;
/// Asks Linux for a component of the processor's state (arch_prctl(2)): tile data, which makes each thread's saved
/// state 8 KiB larger once it uses them.
const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
const XFEATURE_XTILEDATA: libc::c_long = 18;

/// Whether this process may use tiles of 8-bit integers, and they compute what they should. Asks the system for the
/// permission.
pub(crate) fn is_usable() -> bool {
    if !has_tiles() || !is_permitted() {
        return false;
    }
    // SAFETY: the processor has tiles, and the system lets us use them.
    let token = unsafe { Amx::assume() };
    let right = trial::passes(&mut Hardware::new(token));
    if !right {
        tracing::warn!("the processor's AMX tiles give wrong products; they are not used");
    }
    right
}

/// Whether tiles that are usable multiply bfloat16 too.
pub(crate) fn takes_bf16() -> bool {
    if leaf7_edx() & AMX_BF16 == 0 {
        return false;
    }
    // SAFETY: the caller found the tiles usable.
    let right = trial::passes_bf16(&mut Hardware::new(unsafe { Amx::assume() }));
    if !right {
        tracing::warn!("the processor's AMX tiles give wrong products of bfloat16; they are not used for them");
    }
    right
}

fn has_tiles() -> bool {
    use std::arch::x86_64::__cpuid;
    // SAFETY (older compilers ask for it): every x86-64 processor has CPUID.
    #[allow(unused_unsafe)]
    // SAFETY: as above.
    let (most, features) = unsafe { (__cpuid(0).eax, __cpuid(1).ecx) };
    const OSXSAVE: u32 = 1 << 27;
    if most < 7 || features & OSXSAVE == 0 || leaf7_edx() & (AMX_TILE | AMX_INT8) != AMX_TILE | AMX_INT8 {
        return false;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE says that the system has enabled XGETBV.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    (u64::from(high) << 32 | u64::from(low)) & XCR0_TILES == XCR0_TILES
}

/// Features of leaf 7, which the processor has.
fn leaf7_edx() -> u32 {
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 processor has CPUID.
    unsafe {
        std::arch::x86_64::__cpuid_count(7, 0).edx
    }
}

fn is_permitted() -> bool {
    // SAFETY: the call takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// The operand of LDTILECFG.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of each tile's rows.
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    fn new(shape: Shape) -> Config {
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        for (tile, rows) in shape.registers().into_iter().enumerate() {
            (config.rows[tile], config.bytes[tile]) = (rows as u8, if rows > 0 { 64 } else { 0 });
        }
        config
    }
}

/// The tiles of this thread; gives them back when it is dropped.
pub(crate) struct Hardware {
    shape: Option<Shape>,
    /// Tiles belong to a thread.
    _thread: PhantomData<*const ()>,
}

impl Hardware {
    /// The tiles of this thread, not configured yet. No other one may be in use on this thread.
    pub fn new(_: Amx) -> Hardware {
        Hardware { shape: None, _thread: PhantomData }
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        if self.shape.is_some() {
            // SAFETY: the token that made `self` proves the tier; nothing is in the tiles between blocks.
            unsafe { asm!("tilerelease", options(nomem, nostack)) };
        }
    }
}

impl Tiles for Hardware {
    fn configure(&mut self, shape: Shape) {
        // It takes about 200 cycles.
        if self.shape != Some(shape) {
            let config = Config::new(shape);
            // SAFETY: as in `drop`; the configuration has 64 bytes and describes palette 1.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
            self.shape = Some(shape);
        }
    }

    unsafe fn multiply(&mut self, product: Product, block: &Block) {
        let Some(shape) = self.shape else { return };
        let index = 2 * usize::from(shape.rows[1] > 0) + shape.vectors - 1;
        let blocks = match product {
            Product::U8I8 => u8i8::BLOCKS,
            Product::I8I8 => i8i8::BLOCKS,
            Product::I8U8 => i8u8::BLOCKS,
            Product::U8U8 => u8u8::BLOCKS,
            Product::Bf16 => bf16::BLOCKS,
        };
        // SAFETY: passed on to the caller; the tiles are configured.
        unsafe { blocks[index](block) }
    }
}

type BlockFn = unsafe fn(&Block);

macro_rules! tmm {
    (0) => {
        "tmm0"
    };
    (1) => {
        "tmm1"
    };
    (2) => {
        "tmm2"
    };
    (3) => {
        "tmm3"
    };
    (4) => {
        "tmm4"
    };
    (5) => {
        "tmm5"
    };
    (6) => {
        "tmm6"
    };
    (7) => {
        "tmm7"
    };
}

/// Rows in memory: r8 is the first of the upper tile, r9 of the lower.
macro_rules! base {
    (high) => {
        "r8"
    };
    (low) => {
        "r9"
    };
}

/// Bytes to a side.
macro_rules! side {
    (0) => {
        ""
    };
    (1) => {
        "+64"
    };
}

/// A granule: rows at r8 and r9, r11 bytes apart; columns at rdx, r10 bytes apart.
macro_rules! assemble {
    ([$dot:literal] $($step:tt)*) => { concat!($(assemble!(@ $dot $step)),*) };
    (@ $op:literal [load_a $tile:tt $half:tt _]) => {
        concat!("tileloadd ", tmm!($tile), ", [", base!($half), "+r11]\n")
    };
    (@ $op:literal [load_b $tile:tt $side:tt _]) => {
        concat!("tileloadd ", tmm!($tile), ", [rdx+r10", side!($side), "]\n")
    };
    (@ $op:literal [dot $sums:tt $a:tt $b:tt]) => {
        concat!($op, " ", tmm!($sums), ", ", tmm!($a), ", ", tmm!($b), "\n")
    };
}

/// Sums from memory: rows at r8 and r9, rcx bytes apart.
macro_rules! assemble_start {
    ([] $([sums $tile:tt $half:tt $side:tt])*) => {
        concat!($("tileloadd ", tmm!($tile), ", [", base!($half), "+rcx", side!($side), "]\n"),*)
    };
}

/// Sums to memory: rows at r8 and r9, r10 bytes apart.
macro_rules! assemble_stores {
    ([] $([sums $tile:tt $half:tt $side:tt])*) => {
        concat!($("tilestored [", base!($half), "+r10", side!($side), "], ", tmm!($tile), "\n"),*)
    };
}

/// Asks for the columns two granules ahead: they come from L2 for the first rows of a product.
macro_rules! prefetch {
    (1) => {
        prefetch!("2048" "2112" "2176" "2240" "2304" "2368" "2432" "2496" "2560" "2624" "2688" "2752" "2816" "2880"
                  "2944" "3008")
    };
    (2) => {
        prefetch!("4096" "4160" "4224" "4288" "4352" "4416" "4480" "4544" "4608" "4672" "4736" "4800" "4864" "4928"
                  "4992" "5056" "5120" "5184" "5248" "5312" "5376" "5440" "5504" "5568" "5632" "5696" "5760" "5824"
                  "5888" "5952" "6016" "6080")
    };
    ($($offset:literal)*) => { concat!($("prefetcht0 [rdx+", $offset, "]\n"),*) };
}

/// Bytes of the columns of a granule.
macro_rules! advance {
    (1) => {
        "add rdx, 1024"
    };
    (2) => {
        "add rdx, 2048"
    };
}

macro_rules! block {
    ($name:ident, $tall:tt, $wide:tt, $dot:literal) => {
        /// # Safety
        /// The tiles are configured for the block's shape, and its pointers cover it.
        unsafe fn $name(t: &Block) {
            // SAFETY: the caller vouches for tiles and pointers; all registers that are written are named.
            unsafe {
                asm!(
                    "mov r9, rcx",
                    "shl r9, 4",
                    "add r9, r8",
                    sums!($tall, $wide, assemble_start[]),
                    "test r14, r14",
                    "jz 4f",
                    "2:",
                    "mov r8, [rsi]",
                    "add rsi, 8",
                    "add r8, r12",
                    "mov r9, r11",
                    "shl r9, 4",
                    "add r9, r8",
                    "mov rcx, r14",
                    "3:",
                    granule!($tall, $wide, assemble[$dot]),
                    prefetch!($wide),
                    "add r8, 64",
                    "add r9, 64",
                    advance!($wide),
                    "dec rcx",
                    "jnz 3b",
                    "dec rdi",
                    "jnz 2b",
                    "4:",
                    "test r15, r15",
                    "jz 5f",
                    "mov r11d, 64",
                    "mov r8, r15",
                    "lea r9, [r15+1024]",
                    granule!($tall, $wide, assemble[$dot]),
                    "5:",
                    "mov r8, r13",
                    "mov r9, r10",
                    "shl r9, 4",
                    "add r9, r13",
                    sums!($tall, $wide, assemble_stores[]),
                    in("r12") t.a,
                    inout("r11") t.stride => _,
                    in("r14") t.granules,
                    inout("rsi") t.runs => _,
                    inout("rdi") t.n_runs => _,
                    inout("rdx") t.b => _,
                    inout("r8") t.start => _,
                    inout("rcx") t.start_stride => _,
                    in("r10") 64usize * $wide,
                    in("r13") t.out,
                    in("r15") t.tail,
                    out("r9") _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

macro_rules! blocks {
    ($module:ident, $dot:literal) => {
        mod $module {
            use super::*;

            block!(flat_slim, 1, 1, $dot);
            block!(flat_wide, 1, 2, $dot);
            block!(tall_slim, 2, 1, $dot);
            block!(tall_wide, 2, 2, $dot);

            /// By height, then by width.
            pub(super) static BLOCKS: &[BlockFn; 4] = &[flat_slim, flat_wide, tall_slim, tall_wide];
        }
    };
}

blocks!(u8i8, "tdpbusd");
blocks!(i8i8, "tdpbssd");
blocks!(i8u8, "tdpbsud");
blocks!(u8u8, "tdpbuud");
blocks!(bf16, "tdpbf16ps");
