//! The table of f32 tile kernels, best first. Dispatch, tests and benches read it.

use super::kernel::{Tile, TileFn, run_tile};
use crate::isa::{Isa, Scalar, Tier};

/// A family of register tiles: every height up to `mr` and width up to `nr`.
#[derive(Debug)]
pub struct GemmKernel {
    /// `gemm_f32_<rows>x<columns>_<tier>`.
    pub name: &'static str,
    /// The tier that it needs.
    pub tier: Tier,
    /// Most rows of a tile.
    pub mr: usize,
    /// Most columns of a tile.
    pub nr: usize,
    /// Columns per vector; narrower tiles are multiples of it.
    pub lanes: usize,
    /// Indexed by `(rows − 1) · nr / lanes + vectors − 1`.
    tiles: &'static [TileFn],
}

impl GemmKernel {
    /// The kernel for a tile of `rows` by `width` (a multiple of `lanes`).
    #[inline]
    pub(crate) fn tile(&self, rows: usize, width: usize) -> TileFn {
        self.tiles[(rows - 1) * (self.nr / self.lanes) + width / self.lanes - 1]
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c,bmi2,popcnt")]
unsafe fn avx512<const MR: usize, const NV: usize>(tile: &Tile) {
    // SAFETY: the caller vouches for the tier and the tile.
    unsafe { run_tile::<_, MR, NV>(crate::isa::Avx512::assume(), tile) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
unsafe fn avx2<const MR: usize, const NV: usize>(tile: &Tile) {
    // SAFETY: the caller vouches for the tier and the tile.
    unsafe { run_tile::<_, MR, NV>(crate::isa::Avx2::assume(), tile) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon<const MR: usize, const NV: usize>(tile: &Tile) {
    // SAFETY: the caller vouches for the tier and the tile.
    unsafe { run_tile::<_, MR, NV>(crate::isa::Neon::assume(), tile) }
}

unsafe fn scalar<const MR: usize, const NV: usize>(tile: &Tile) {
    // SAFETY: the caller vouches for the tile.
    unsafe { run_tile::<_, MR, NV>(Scalar::new(), tile) }
}

/// Flattens height × width into one array of function pointers.
macro_rules! family {
    ($family:ident, 1, [$($mr:literal)*]) => { &[$($family::<$mr, 1>),*] };
    ($family:ident, 2, [$($mr:literal)*]) => { &[$($family::<$mr, 1>, $family::<$mr, 2>),*] };
    ($family:ident, 3, [$($mr:literal)*]) => {
        &[$($family::<$mr, 1>, $family::<$mr, 2>, $family::<$mr, 3>),*]
    };
    ($family:ident, 4, [$($mr:literal)*]) => {
        &[$($family::<$mr, 1>, $family::<$mr, 2>, $family::<$mr, 3>, $family::<$mr, 4>),*]
    };
}

/// Every f32 GEMM kernel, best first.
pub static GEMM_KERNELS: &[GemmKernel] = &[
    #[cfg(target_arch = "x86_64")]
    GemmKernel {
        name: "gemm_f32_14x32_avx512",
        tier: Tier::Avx512,
        mr: 14,
        nr: 32,
        lanes: 16,
        tiles: family!(avx512, 2, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]),
    },
    #[cfg(target_arch = "x86_64")]
    GemmKernel {
        name: "gemm_f32_9x48_avx512",
        tier: Tier::Avx512,
        mr: 9,
        nr: 48,
        lanes: 16,
        tiles: family!(avx512, 3, [1 2 3 4 5 6 7 8 9]),
    },
    #[cfg(target_arch = "x86_64")]
    GemmKernel {
        name: "gemm_f32_6x64_avx512",
        tier: Tier::Avx512,
        mr: 6,
        nr: 64,
        lanes: 16,
        tiles: family!(avx512, 4, [1 2 3 4 5 6]),
    },
    #[cfg(target_arch = "x86_64")]
    GemmKernel {
        name: "gemm_f32_6x16_avx2",
        tier: Tier::Avx2,
        mr: 6,
        nr: 16,
        lanes: 8,
        tiles: family!(avx2, 2, [1 2 3 4 5 6]),
    },
    #[cfg(target_arch = "aarch64")]
    GemmKernel {
        name: "gemm_f32_6x16_neon",
        tier: Tier::Neon,
        mr: 6,
        nr: 16,
        lanes: 4,
        tiles: family!(neon, 4, [1 2 3 4 5 6]),
    },
    GemmKernel {
        name: "gemm_f32_4x4_scalar",
        tier: Tier::Scalar,
        mr: 4,
        nr: 4,
        lanes: 1,
        tiles: family!(scalar, 4, [1 2 3 4]),
    },
];

impl GemmKernel {
    /// The best kernel of `isa`.
    pub fn best(isa: Isa) -> &'static GemmKernel {
        GEMM_KERNELS
            .iter()
            .find(|kernel| isa.tier().includes(kernel.tier))
            .unwrap_or(&GEMM_KERNELS[GEMM_KERNELS.len() - 1])
    }

    /// The kernel of `isa` for convolutions: the widest of the best tier. A panel of the
    /// image then takes longer runs of each row, which memory delivers faster, and the
    /// weights are read half as often.
    pub fn best_for_images(isa: Isa) -> &'static GemmKernel {
        let best = GemmKernel::best(isa);
        let same_tier = GEMM_KERNELS.iter().filter(|kernel| kernel.tier == best.tier);
        same_tier.max_by_key(|kernel| kernel.nr).unwrap_or(best)
    }
}
