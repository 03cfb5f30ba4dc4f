//! Products of rows that lie in memory with packed panels: GEMM, and convolution on NHWC
//! images, of 8-bit integers and of floats.
//!
//! The activations are not packed: a register tile reads up to fourteen rows in place and
//! spreads 4 bytes of each over a vector, so that a column of the weights takes four 8-bit
//! integers or one float at each step. A window of a convolution is a few runs of
//! contiguous bytes ([`conv2d_nhwc`]).

pub(crate) mod amx;
#[cfg(target_arch = "aarch64")]
mod arm;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod coded;
mod conv;
mod drive;
mod epilogue;
mod finish;
mod float_matmul;
mod forms;
mod gather;
mod image;
#[cfg(target_arch = "x86_64")]
mod limits;
mod lines;
mod matmul;
mod pack;
pub(crate) mod packing;
mod seen;
mod stage;
mod table;
mod target;
mod tile;
mod transpose;
mod vectors;
mod winograd;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use attention::{
    CodeMask, CodeWeights, CodedScores, Factor, IntAttention, IntHeads, Rounded, ValueHeads, Values, Weights,
    int_attention,
};
pub use coded::{BlockScale, CodedPanels, CodedWeights, coded_conv2d_nhwc, coded_gemm};
pub use conv::{conv2d_nhwc, conv2d_nhwc_fits, conv2d_nhwc_pack, conv2d_nhwc_pack_bf16, conv2d_nhwc_pixels};
pub use drive::{Rows, panel_gemm};
pub(crate) use epilogue::load_bf16;
pub use epilogue::{Epilogue, Residual, RowParams};
pub use float_matmul::{FloatMatMul, panel_float_matmul};
pub use image::Pixels;
pub use matmul::{IntMatMul, panel_matmul};
pub use pack::{PanelElement, Panels};
pub use packing::Elements;
pub use seen::conv2d_nhwc_skips_padding;
#[cfg(target_arch = "x86_64")]
pub(crate) use stage::IntFormat;
pub use stage::{CodeSum, Stage};
pub use table::{BF16_KERNELS, FLOAT_KERNELS, INT_KERNELS, PanelKernel, SHORT_KERNELS};
pub use target::Target;
pub(crate) use target::{Kind, Out, Rounding};
pub use transpose::{
    conv_transpose2d_nhwc, conv_transpose2d_nhwc_fits, conv_transpose2d_nhwc_pack, conv_transpose2d_nhwc_pack_bf16,
};
pub use winograd::{WinogradWeights, winograd_nhwc, winograd_pays, winograd_side};

use crate::error::{Result, exact};
use crate::exec::Exec;
use pack::{ByColumn, RowMajor};

/// Bytes of a panel of floats that is as fast as blocks of its depth: it, rows of a task and some of the panel behind it
/// are in the second cache.
const DEEP_PANEL: usize = 256 << 10;

/// The depth up to which products of floats on `exec` are fastest by [`panel_gemm`]; [`crate::gemm`] cuts deeper ones into blocks.
pub fn panel_gemm_deepest(exec: &Exec) -> usize {
    DEEP_PANEL / (size_of::<f32>() * PanelKernel::best(FLOAT_KERNELS, exec.isa()).nr)
}

/// Packs a `k × n` matrix for [`panel_gemm`]: row-major, or column-major when `transposed`.
///
/// # Errors
/// A dimension is 0 or `w` has another length.
pub fn panel_gemm_pack<T: PanelElement>(
    exec: &Exec,
    (k, n): (usize, usize),
    w: &[T],
    transposed: bool,
) -> Result<Panels> {
    exact("panel weights", "weights", w.len(), crate::error::product("panel weights", &[k, n])?)?;
    if !transposed {
        return Panels::pack(exec, (1, n, 1, k), &RowMajor(w, n));
    }
    let column =
        |_, column: usize, from: usize, out: &mut [T]| out.copy_from_slice(&w[column * k + from..][..out.len()]);
    Panels::pack(exec, (1, n, 1, k), &ByColumn(column))
}

/// As [`panel_gemm_pack`], of floats that are rounded to bfloat16, half to even. [`panel_gemm`] rounds its rows, which
/// are [`Rows::F32`], on the way.
///
/// # Errors
/// As [`panel_gemm_pack`].
pub fn panel_gemm_pack_bf16(exec: &Exec, shape: (usize, usize), w: &[f32], transposed: bool) -> Result<Panels> {
    panel_gemm_pack(exec, shape, &rounded(w), transposed)
}

fn rounded(w: &[f32]) -> Vec<half::bf16> {
    w.iter().copied().map(half::bf16::from_f32).collect()
}

#[cfg(test)]
mod epilogue_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod volume_tests;
