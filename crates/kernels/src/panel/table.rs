//! The tables of panel kernels, best first. Dispatch, tests and benches read them.

use super::amx::{self, Unit};
#[cfg(target_arch = "aarch64")]
use super::arm;
#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::tile::{Ends, Floats, PortableBf16, PortableInts, PortableShorts, Tile, TileFn, run_tile};
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::isa::{Bf16, Isa, Scalar, Tier};

/// A family of register tiles: every height up to `mr` and width up to `nr`.
#[derive(Debug)]
pub struct PanelKernel {
    /// `panel_<types>_<rows>x<columns>_<tier>`.
    pub name: &'static str,
    /// The tier that it needs.
    pub tier: Tier,
    /// Most rows of a tile.
    pub mr: usize,
    /// Most columns of a tile.
    pub nr: usize,
    /// Columns per vector; narrower panels are multiples of it.
    pub lanes: usize,
    /// Bytes of each row in a step; panels are padded to whole steps.
    pub depth: usize,
    pub(crate) bf16: Bf16,
    /// The results that its tiles can make themselves.
    pub(crate) ends: Ends,
    pub(crate) body: Body,
}

/// What a kernel consists of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Body {
    /// Functions, indexed by `(rows − 1) · nr / lanes + vectors − 1`.
    Vectors(&'static [TileFn]),
    /// As those, with limits that tell where no sum of two products leaves 16 bits.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // AVX2 alone has any.
    Bounded(&'static [TileFn]),
    /// Blocks of tiles.
    Tiles(Unit),
}

impl PanelKernel {
    /// The kernel for a tile of `rows` by `width` (a multiple of `lanes`).
    #[inline]
    pub(crate) fn tile(&self, rows: usize, width: usize) -> TileFn {
        match self.body {
            Body::Vectors(tiles) | Body::Bounded(tiles) => {
                tiles[(rows - 1) * (self.nr / self.lanes) + width / self.lanes - 1]
            }
            // `Sweep::walk` sends blocks of tiles elsewhere.
            Body::Tiles(_) => no_tile,
        }
    }

    /// The best kernel of `isa` in a table.
    pub(crate) fn best(table: &'static [PanelKernel], isa: Isa) -> &'static PanelKernel {
        table.iter().find(|kernel| kernel.runs_on(isa)).unwrap_or(&table[table.len() - 1])
    }

    /// The best kernel of `isa` in a table that multiplies by vectors and reads panels of this kernel.
    pub(crate) fn by_vectors(&self, table: &'static [PanelKernel], isa: Isa) -> Option<&'static PanelKernel> {
        let alike = |k: &PanelKernel| (k.nr, k.lanes) == (self.nr, self.lanes) && !matches!(k.body, Body::Tiles(_));
        table.iter().find(|kernel| kernel.runs_on(isa) && alike(kernel))
    }

    fn runs_on(&self, isa: Isa) -> bool {
        match self.body {
            Body::Tiles(Unit::Emulated) => isa.emulates_tiles(),
            _ => isa.tier().includes(self.tier) && self.bf16 <= isa.bf16(),
        }
    }

    /// Whether its tiles take limits.
    pub(crate) fn bounded(&self) -> bool {
        matches!(self.body, Body::Bounded(_))
    }

    /// Whether i8 rows are read as they are.
    pub(crate) fn takes_signed(&self) -> bool {
        matches!(self.body, Body::Tiles(_))
    }

    /// Whether the last step of each row may lie elsewhere.
    pub(crate) fn takes_tails(&self) -> bool {
        matches!(self.body, Body::Tiles(_))
    }
}

#[cfg(target_arch = "x86_64")]
mod avx {
    use super::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c,bmi2,popcnt")]
    pub unsafe fn ints512<const MR: usize, const NV: usize>(t: &Tile) {
        // SAFETY: the caller vouches for the tier and the tile.
        unsafe { run_tile::<_, MR, NV>(x86::Pairs512::assume(), 16, t) }
    }

    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt,avxvnni")]
    pub unsafe fn bytes256<const MR: usize, const NV: usize>(t: &Tile) {
        // SAFETY: the caller vouches for the tier and the tile.
        unsafe { run_tile::<_, MR, NV>(x86::Bytes256::assume(), 8, t) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c,bmi2,popcnt")]
    pub unsafe fn shorts512<const MR: usize, const NV: usize>(t: &Tile) {
        // SAFETY: the caller vouches for the tier and the tile.
        unsafe { run_tile::<_, MR, NV>(x86::Shorts512::assume(), 16, t) }
    }

    #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt,avxvnni")]
    pub unsafe fn dots256<const MR: usize, const NV: usize>(t: &Tile) {
        // SAFETY: the caller vouches for the tier and the tile.
        unsafe { run_tile::<_, MR, NV>(x86::Dots256::assume(), 8, t) }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::*;
    use crate::isa::Neon;

    #[target_feature(enable = "neon")]
    pub unsafe fn ints<const MR: usize, const NV: usize>(t: &Tile) {
        // SAFETY: the caller vouches for the tier and the tile.
        unsafe { run_tile::<_, MR, NV>(arm::Bytes::assume(), 4, t) }
    }

    #[target_feature(enable = "neon")]
    pub unsafe fn shorts<const MR: usize, const NV: usize>(t: &Tile) {
        // SAFETY: the caller vouches for the tier and the tile.
        unsafe { run_tile::<_, MR, NV>(arm::Shorts::assume(), 4, t) }
    }

    #[target_feature(enable = "neon")]
    pub unsafe fn floats<const MR: usize, const NV: usize>(t: &Tile) {
        // SAFETY: the caller vouches for the tier and the tile.
        unsafe { run_tile::<_, MR, NV>(Floats(Neon::assume()), 4, t) }
    }
}

unsafe fn no_tile(_: &Tile) {}

unsafe fn scalar_ints<const MR: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the caller vouches for the tile.
    unsafe { run_tile::<_, MR, NV>(PortableInts, 1, t) }
}

unsafe fn scalar_floats<const MR: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the caller vouches for the tile.
    unsafe { run_tile::<_, MR, NV>(Floats(Scalar::new()), 1, t) }
}

unsafe fn scalar_shorts<const MR: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the caller vouches for the tile.
    unsafe { run_tile::<_, MR, NV>(PortableShorts, 1, t) }
}

unsafe fn scalar_bf16<const MR: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the caller vouches for the tile.
    unsafe { run_tile::<_, MR, NV>(PortableBf16, 1, t) }
}

/// Flattens height × width into one array of function pointers.
macro_rules! family {
    ($family:path, 2, [$($mr:literal)*]) => {{
        use $family as f;
        &[$(f::<$mr, 1>, f::<$mr, 2>),*]
    }};
    ($family:path, 4, [$($mr:literal)*]) => {{
        use $family as f;
        &[$(f::<$mr, 1>, f::<$mr, 2>, f::<$mr, 3>, f::<$mr, 4>),*]
    }};
}

/// Kernels of u8 rows and i8 columns with i32 results, best first. All give the same bits.
pub static INT_KERNELS: &[PanelKernel] = &[
    // Only where it is asked for: see `Isa::emulated`.
    PanelKernel {
        name: "panel_u8i8i32_32x32_amx_emulated",
        tier: Tier::Scalar,
        mr: amx::TALL,
        nr: amx::WIDE,
        lanes: 16,
        depth: amx::GRANULE,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Tiles(Unit::Emulated),
    },
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    PanelKernel {
        name: "panel_u8i8i32_32x32_amx",
        tier: Tier::Amx,
        mr: amx::TALL,
        nr: amx::WIDE,
        lanes: 16,
        depth: amx::GRANULE,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Tiles(Unit::Hardware),
    },
    #[cfg(target_arch = "x86_64")]
    PanelKernel {
        name: "panel_u8i8i32_14x32_vnni",
        tier: Tier::Vnni,
        mr: 14,
        nr: 32,
        lanes: 16,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(x86::vnni::TILES),
    },
    #[cfg(target_arch = "x86_64")]
    PanelKernel {
        name: "panel_u8i8i32_8x32_avx512",
        tier: Tier::Avx512,
        mr: 8,
        nr: 32,
        lanes: 16,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(family!(avx::ints512, 2, [1 2 3 4 5 6 7 8])),
    },
    #[cfg(target_arch = "x86_64")]
    PanelKernel {
        name: "panel_u8i8i32_6x16_avx-vnni",
        tier: Tier::AvxVnni,
        mr: 6,
        nr: 16,
        lanes: 8,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(family!(avx::bytes256, 2, [1 2 3 4 5 6])),
    },
    #[cfg(target_arch = "x86_64")]
    PanelKernel {
        name: "panel_u8i8i32_4x16_avx2",
        tier: Tier::Avx2,
        mr: 4,
        nr: 16,
        lanes: 8,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Bounded(avx2::bytes::TILES),
    },
    #[cfg(target_arch = "aarch64")]
    PanelKernel {
        name: "panel_u8i8i32_8x8_neon-i8mm",
        tier: Tier::NeonI8mm,
        mr: 8,
        nr: 8,
        lanes: 4,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(family!(arm::mixed::tile, 2, [1 2 3 4 5 6 7 8])),
    },
    #[cfg(target_arch = "aarch64")]
    PanelKernel {
        name: "panel_u8i8i32_8x8_neon-dot",
        tier: Tier::NeonDot,
        mr: 8,
        nr: 8,
        lanes: 4,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(family!(arm::signed::tile, 2, [1 2 3 4 5 6 7 8])),
    },
    #[cfg(target_arch = "aarch64")]
    PanelKernel {
        name: "panel_u8i8i32_8x8_neon",
        tier: Tier::Neon,
        mr: 8,
        nr: 8,
        lanes: 4,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(family!(neon::ints, 2, [1 2 3 4 5 6 7 8])),
    },
    PanelKernel {
        name: "panel_u8i8i32_4x4_scalar",
        tier: Tier::Scalar,
        mr: 4,
        nr: 4,
        lanes: 1,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(family!(scalar_ints, 4, [1 2 3 4])),
    },
];

/// Kernels of 16-bit integers with i32 results, which wrap, best first. All give the same bits.
pub static SHORT_KERNELS: &[PanelKernel] = &[
    #[cfg(target_arch = "x86_64")]
    PanelKernel {
        name: "panel_i16i16i32_14x32_vnni",
        tier: Tier::Vnni,
        mr: 14,
        nr: 32,
        lanes: 16,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(x86::vnni16::TILES),
    },
    #[cfg(target_arch = "x86_64")]
    PanelKernel {
        name: "panel_i16i16i32_8x32_avx512",
        tier: Tier::Avx512,
        mr: 8,
        nr: 32,
        lanes: 16,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(family!(avx::shorts512, 2, [1 2 3 4 5 6 7 8])),
    },
    #[cfg(target_arch = "x86_64")]
    PanelKernel {
        name: "panel_i16i16i32_6x16_avx-vnni",
        tier: Tier::AvxVnni,
        mr: 6,
        nr: 16,
        lanes: 8,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(family!(avx::dots256, 2, [1 2 3 4 5 6])),
    },
    #[cfg(target_arch = "x86_64")]
    PanelKernel {
        name: "panel_i16i16i32_6x16_avx2",
        tier: Tier::Avx2,
        mr: 6,
        nr: 16,
        lanes: 8,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(avx2::shorts::TILES),
    },
    #[cfg(target_arch = "aarch64")]
    PanelKernel {
        name: "panel_i16i16i32_8x8_neon",
        tier: Tier::Neon,
        mr: 8,
        nr: 8,
        lanes: 4,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(family!(neon::shorts, 2, [1 2 3 4 5 6 7 8])),
    },
    PanelKernel {
        name: "panel_i16i16i32_4x4_scalar",
        tier: Tier::Scalar,
        mr: 4,
        nr: 4,
        lanes: 1,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(family!(scalar_shorts, 4, [1 2 3 4])),
    },
];

/// Kernels of f32 rows and columns, best first. All give the same bits.
pub static FLOAT_KERNELS: &[PanelKernel] = &[
    #[cfg(target_arch = "x86_64")]
    PanelKernel {
        name: "panel_f32_14x32_avx512",
        tier: Tier::Avx512,
        mr: 14,
        nr: 32,
        lanes: 16,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::Floats,
        body: Body::Vectors(x86::fma512::TILES),
    },
    #[cfg(target_arch = "x86_64")]
    PanelKernel {
        name: "panel_f32_6x16_avx2",
        tier: Tier::Avx2,
        mr: 6,
        nr: 16,
        lanes: 8,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::Floats,
        body: Body::Vectors(avx2::floats::TILES),
    },
    #[cfg(target_arch = "aarch64")]
    PanelKernel {
        name: "panel_f32_6x16_neon",
        tier: Tier::Neon,
        mr: 6,
        nr: 16,
        lanes: 4,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(family!(neon::floats, 4, [1 2 3 4 5 6])),
    },
    PanelKernel {
        name: "panel_f32_4x4_scalar",
        tier: Tier::Scalar,
        mr: 4,
        nr: 4,
        lanes: 1,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(family!(scalar_floats, 4, [1 2 3 4])),
    },
];

/// Kernels of bfloat16 rows and columns with f32 results, best first. Their sums differ in order, and so in bits.
pub static BF16_KERNELS: &[PanelKernel] = &[
    PanelKernel {
        name: "panel_bf16f32_32x32_amx_emulated",
        tier: Tier::Scalar,
        mr: amx::TALL,
        nr: amx::WIDE,
        lanes: 16,
        depth: amx::GRANULE,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Tiles(Unit::Emulated),
    },
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    PanelKernel {
        name: "panel_bf16f32_32x32_amx",
        tier: Tier::Amx,
        mr: amx::TALL,
        nr: amx::WIDE,
        lanes: 16,
        depth: amx::GRANULE,
        bf16: Bf16::Tiles,
        ends: Ends::None,
        body: Body::Tiles(Unit::Hardware),
    },
    #[cfg(target_arch = "x86_64")]
    PanelKernel {
        name: "panel_bf16f32_14x32_vnni",
        tier: Tier::Vnni,
        mr: 14,
        nr: 32,
        lanes: 16,
        depth: 4,
        bf16: Bf16::Vectors,
        ends: Ends::Halves,
        body: Body::Vectors(x86::bf16::TILES),
    },
    PanelKernel {
        name: "panel_bf16f32_4x4_scalar",
        tier: Tier::Scalar,
        mr: 4,
        nr: 4,
        lanes: 1,
        depth: 4,
        bf16: Bf16::None,
        ends: Ends::None,
        body: Body::Vectors(family!(scalar_bf16, 4, [1 2 3 4])),
    },
];
