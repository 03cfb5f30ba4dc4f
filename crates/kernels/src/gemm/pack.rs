//! Packing: operands are copied into panels that the tile kernels read in order.
//!
//! A panel of A holds `height` rows, `k`-major: `panel[k · height + i]`. A panel of B
//! holds `width` columns: `panel[k · width + j]`, zero beyond the matrix. The rows of A
//! are shared out evenly, so that no panel is much shorter than the others.

use super::image::ImageColumns;
use crate::blocks::{Blocks, Unpack};
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, low_bits};

/// How `rows` rows of A are cut into panels of at most `mr`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowPanels {
    pub count: usize,
    base: usize,
    longer: usize,
}

impl RowPanels {
    pub(crate) fn new(rows: usize, mr: usize) -> RowPanels {
        let count = rows.div_ceil(mr);
        RowPanels { count, base: rows.checked_div(count).unwrap_or(0), longer: rows.checked_rem(count).unwrap_or(0) }
    }

    /// The first row of panel `i`; `start(count)` is the number of rows.
    #[inline]
    pub(crate) fn start(self, i: usize) -> usize {
        i * self.base + i.min(self.longer)
    }

    #[inline]
    pub(crate) fn height(self, i: usize) -> usize {
        self.base + usize::from(i < self.longer)
    }
}

/// How `columns` columns of B are cut into panels of `nr`, the last rounded up to `lanes`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ColumnPanels {
    pub columns: usize,
    pub nr: usize,
    pub lanes: usize,
}

impl ColumnPanels {
    pub(crate) fn count(self) -> usize {
        self.columns.div_ceil(self.nr)
    }

    #[inline]
    pub(crate) fn start(self, j: usize) -> usize {
        j * self.nr
    }

    /// Columns of the matrix in panel `j`.
    #[inline]
    pub(crate) fn valid(self, j: usize) -> usize {
        (self.columns - j * self.nr).min(self.nr)
    }

    /// Columns of panel `j` with its padding.
    #[inline]
    pub(crate) fn width(self, j: usize) -> usize {
        self.valid(j).next_multiple_of(self.lanes)
    }

    /// All columns with padding.
    pub(crate) fn padded(self) -> usize {
        self.columns.next_multiple_of(self.lanes)
    }
}

/// A strided matrix behind a pointer.
#[derive(Clone, Copy)]
pub(crate) struct RawView {
    pub data: *const f32,
    pub row_stride: usize,
    pub col_stride: usize,
}

/// Packs rows `0..height`, columns `0..k` of `view` into a panel of A.
pub(crate) struct PackA {
    pub view: RawView,
    pub height: usize,
    pub k: usize,
    pub dst: *mut f32,
}

impl Kernel for PackA {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackA { view, height, k, dst } = self;
        // SAFETY: whoever built this checked that the view covers `height × k`, and the
        // panel `k · height`.
        unsafe {
            if view.col_stride == 1 {
                transpose(s, view.data, view.row_stride, height, k, dst, height);
            } else if view.row_stride == 1 {
                copy_rows(s, view.data, view.col_stride, k, height, dst, height);
            } else {
                gather(view.data, view.col_stride, view.row_stride, k, height, dst, height);
            }
        }
    }
}

/// Packs rows `0..k`, columns `0..n` of `view` into a panel of B of `width` columns.
pub(crate) struct PackB {
    pub view: RawView,
    pub k: usize,
    pub n: usize,
    pub width: usize,
    pub dst: *mut f32,
}

impl Kernel for PackB {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackB { view, k, n, width, dst } = self;
        // SAFETY: whoever built this checked that the view covers `k × n`, and the panel
        // `k · width`.
        unsafe {
            if n < width && view.col_stride != 1 {
                std::ptr::write_bytes(dst, 0, k * width);
            }
            if view.col_stride == 1 {
                copy_rows(s, view.data, view.row_stride, k, n, dst, width);
            } else if view.row_stride == 1 {
                transpose(s, view.data, view.col_stride, n, k, dst, width);
            } else {
                gather(view.data, view.row_stride, view.col_stride, k, n, dst, width);
            }
        }
    }
}

/// `dst[r · width + c] = src[r · ld + c]`, zero for `c` in `n..width`.
#[inline(always)]
unsafe fn copy_rows<S: Simd>(s: S, src: *const f32, ld: usize, rows: usize, n: usize, dst: *mut f32, width: usize) {
    for r in 0..rows {
        let mut c = 0;
        while c < width {
            let load = low_bits(n.saturating_sub(c).min(S::LANES));
            let store = low_bits((width - c).min(S::LANES));
            // SAFETY: the masks stay within `n` and `width`.
            unsafe {
                // Rows are far apart, so the hardware does not guess the next.
                s.prefetch(src.wrapping_add((r + 8) * ld + c));
                let v = s.load_bits(src.wrapping_add(r * ld + c), load);
                s.store_bits(dst.add(r * width + c), v, store);
            }
            c += S::LANES;
        }
    }
}

/// `dst[c · ld_dst + r] = src[r · ld_src + c]` for any `rows`, `cols`.
#[inline(always)]
pub(crate) unsafe fn transpose<S: Simd>(
    s: S,
    src: *const f32,
    ld_src: usize,
    rows: usize,
    cols: usize,
    dst: *mut f32,
    ld_dst: usize,
) {
    let mut c = 0;
    while c < cols {
        let tile_cols = (cols - c).min(S::LANES);
        let mut r = 0;
        while r < rows {
            let tile_rows = (rows - r).min(S::LANES);
            // SAFETY: the tile is inside both matrices.
            unsafe {
                let (from, to) = (src.add(r * ld_src + c), dst.add(c * ld_dst + r));
                s.transpose_tile(from, ld_src, tile_rows, tile_cols, to, ld_dst);
            }
            r += S::LANES;
        }
        c += S::LANES;
    }
}

/// `dst[r · width + c] = src[r · rs + c · cs]`.
#[inline(always)]
unsafe fn gather(src: *const f32, rs: usize, cs: usize, rows: usize, cols: usize, dst: *mut f32, width: usize) {
    for r in 0..rows {
        for c in 0..cols {
            // SAFETY: the caller's view covers `rows × cols`, the panel `rows · width`.
            unsafe { *dst.add(r * width + c) = *src.add(r * rs + c * cs) };
        }
    }
}

/// Where B comes from when it is packed on the fly.
#[derive(Clone, Copy)]
pub(crate) enum RawB<'a> {
    View(RawView),
    Image(&'a ImageColumns, *const f32),
    Blocks(&'a Blocks),
}

/// Packs rows `k0..k0 + k`, panel columns `n0..n0 + n`.
///
/// # Safety
/// The source covers these rows and columns; `dst` has `k · width` floats.
pub(crate) unsafe fn pack_b(
    isa: Isa,
    source: RawB<'_>,
    (k0, k): (usize, usize),
    (n0, n): (usize, usize),
    width: usize,
    dst: *mut f32,
) {
    match source {
        RawB::View(view) => {
            let offset = k0 * view.row_stride + n0 * view.col_stride;
            let view = RawView { data: view.data.wrapping_add(offset), ..view };
            isa.dispatch(PackB { view, k, n, width, dst });
        }
        RawB::Image(image, data) => {
            isa.dispatch(super::image::PackImage { image, data, rows: (k0, k), columns: (n0, n), width, dst })
        }
        RawB::Blocks(weights) => isa.dispatch(Unpack { weights, rows: (k0, k), column: n0, width, dst }),
    }
}
