//! Operands of a GEMM: strided views, images, and constants packed once.

use super::image::ImageColumns;
use super::pack::{ColumnPanels, PackA, PackB, RawView, RowPanels};
use super::table::GemmKernel;
use crate::blocks::Blocks;
use crate::buffer::{Buffer, SharedMut};
use crate::error::{KernelError, Result, at_least, product, span};
use crate::exec::Exec;

const NAME: &str = "gemm";

/// A matrix in a slice, at any row and column step (a transpose swaps them).
#[derive(Clone, Copy, Debug)]
pub struct MatrixView<'a> {
    /// The elements; (0, 0) is the first.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl<'a> MatrixView<'a> {
    /// A row-major matrix of `columns` columns.
    pub fn row_major(data: &'a [f32], columns: usize) -> Self {
        MatrixView { data, row_stride: columns, col_stride: 1 }
    }

    /// The transpose of a row-major matrix that has `rows` columns in memory.
    pub fn transposed(data: &'a [f32], rows: usize) -> Self {
        MatrixView { data, row_stride: 1, col_stride: rows }
    }

    pub(crate) fn raw(&self) -> RawView {
        RawView { data: self.data.as_ptr(), row_stride: self.row_stride, col_stride: self.col_stride }
    }

    pub(crate) fn check(&self, what: &'static str, rows: usize, cols: usize, extra: usize) -> Result {
        let need = span(NAME, &[(rows, self.row_stride), (cols, self.col_stride)])?;
        if need == 0 {
            return Ok(());
        }
        let need = need.checked_add(extra).ok_or(KernelError::Overflow { kernel: NAME })?;
        at_least(NAME, what, self.data.len(), need)
    }
}

/// The left operand.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Lhs<'a> {
    /// Packed as it is used.
    View(MatrixView<'a>),
    /// Packed before.
    Packed(&'a PackedA),
}

/// The right operand.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Rhs<'a> {
    /// Packed as it is used.
    View(MatrixView<'a>),
    /// Packed before.
    Packed(&'a PackedB),
    /// The windows of a convolution over an NCHW image.
    Image(&'a ImageColumns, &'a [f32]),
    /// Codes that share scales by blocks, unpacked as they are used.
    Blocks(&'a Blocks),
    /// Packed into borrowed memory, for one call.
    #[doc(hidden)]
    Borrowed(&'a PackedHeads<'a>),
}

/// A right operand packed into scratch memory: a key or value matrix of one head, which
/// several products use.
#[derive(Clone, Copy, Debug)]
pub struct PackedHeads<'a> {
    pub(super) data: &'a [f32],
    pub(super) kernel: &'static GemmKernel,
    pub(super) k: usize,
    pub(super) columns: usize,
}

impl<'a> PackedHeads<'a> {
    /// Floats that the packed keys (`depth × keys`) and values (`keys × value_depth`) take.
    pub(crate) fn lens(exec: &Exec, depth: usize, keys: usize, value_depth: usize) -> (usize, usize) {
        let lanes = GemmKernel::best(exec.isa()).lanes;
        let round = |len: usize| len.next_multiple_of(16);
        (round(depth * keys.next_multiple_of(lanes)), round(keys * value_depth.next_multiple_of(lanes)))
    }

    /// Packs a `k × columns` matrix into `memory`.
    pub(crate) fn new(
        exec: &Exec,
        memory: &'a mut [f32],
        view: MatrixView<'_>,
        (k, columns): (usize, usize),
    ) -> Result<PackedHeads<'a>> {
        let kernel = GemmKernel::best(exec.isa());
        let panels = ColumnPanels { columns, nr: kernel.nr, lanes: kernel.lanes };
        view.check("b", k, columns, 0)?;
        at_least(NAME, "scratch", memory.len(), k * panels.padded())?;
        for panel in 0..panels.count() {
            let start = panels.start(panel);
            let raw = view.raw();
            let view = RawView { data: raw.data.wrapping_add(start * raw.col_stride), ..raw };
            let (n, width) = (panels.valid(panel), panels.width(panel));
            let dst = memory[start * k..][..k * width].as_mut_ptr();
            exec.isa().dispatch(PackB { view, k, n, width, dst });
        }
        Ok(PackedHeads { data: memory, kernel, k, columns })
    }
}

/// Constant left operands (for example convolution weights), packed for one kernel.
/// 64-byte aligned; share it between threads and sessions.
#[derive(Debug, Clone)]
pub struct PackedA {
    pub(super) data: Buffer,
    pub(super) kernel: &'static GemmKernel,
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) count: usize,
}

impl PackedA {
    /// Packs `count` matrices of `rows × k`, `step` elements apart.
    ///
    /// # Errors
    /// The view does not cover the matrices, or the sizes overflow.
    pub fn new(
        exec: &Exec,
        view: MatrixView<'_>,
        (rows, k): (usize, usize),
        (count, step): (usize, usize),
    ) -> Result<PackedA> {
        Self::with_kernel(exec, GemmKernel::best(exec.isa()), view, (rows, k), (count, step))
    }

    /// As [`PackedA::new`], for a chosen kernel of the tier or below.
    ///
    /// # Errors
    /// The same, or the tier is below the kernel's.
    pub fn with_kernel(
        exec: &Exec,
        kernel: &'static GemmKernel,
        view: MatrixView<'_>,
        (rows, k): (usize, usize),
        (count, step): (usize, usize),
    ) -> Result<PackedA> {
        check_tier(exec, kernel)?;
        let size = product(NAME, &[rows, k])?;
        let total = product(NAME, &[size, count])?;
        let extra = product(NAME, &[count.saturating_sub(1), step])?;
        view.check("a", rows, k, extra)?;
        let mut data = Buffer::lasting(total);
        if total == 0 {
            return Ok(PackedA { data, kernel, rows, k, count });
        }
        let panels = RowPanels::new(rows, kernel.mr);
        let out = SharedMut::new(&mut data);
        let source = Shared(view.raw());
        exec.split(count * panels.count, 1, &|range| {
            for index in range {
                let (matrix, panel) = (index / panels.count, index % panels.count);
                let start = panels.start(panel);
                let raw = source.get();
                let offset = matrix * step + start * raw.row_stride;
                let view = RawView { data: raw.data.wrapping_add(offset), ..raw };
                // Panels are disjoint and inside the buffer.
                let dst = out.ptr().wrapping_add(matrix * size + start * k);
                exec.isa().dispatch(PackA { view, height: panels.height(panel), k, dst });
            }
        });
        Ok(PackedA { data, kernel, rows, k, count })
    }

    /// Rows and columns of each matrix.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.k)
    }

    /// Number of matrices.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the packed form.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.data)
    }

    /// The kernel that it is packed for.
    pub fn kernel(&self) -> &'static GemmKernel {
        self.kernel
    }
}

/// Constant right operands (for example linear weights), packed for one kernel.
/// 64-byte aligned; share it between threads and sessions.
#[derive(Debug, Clone)]
pub struct PackedB {
    pub(super) data: Buffer,
    pub(super) kernel: &'static GemmKernel,
    pub(super) k: usize,
    pub(super) columns: usize,
    pub(super) count: usize,
}

impl PackedB {
    /// Packs `count` matrices of `k × columns`, `step` elements apart.
    ///
    /// # Errors
    /// The view does not cover the matrices, or the sizes overflow.
    pub fn new(
        exec: &Exec,
        view: MatrixView<'_>,
        (k, columns): (usize, usize),
        (count, step): (usize, usize),
    ) -> Result<PackedB> {
        Self::with_kernel(exec, GemmKernel::best(exec.isa()), view, (k, columns), (count, step))
    }

    /// As [`PackedB::new`], for a chosen kernel of the tier or below.
    ///
    /// # Errors
    /// The same, or the tier is below the kernel's.
    pub fn with_kernel(
        exec: &Exec,
        kernel: &'static GemmKernel,
        view: MatrixView<'_>,
        (k, columns): (usize, usize),
        (count, step): (usize, usize),
    ) -> Result<PackedB> {
        check_tier(exec, kernel)?;
        let panels = ColumnPanels { columns, nr: kernel.nr, lanes: kernel.lanes };
        let size = product(NAME, &[k, panels.padded()])?;
        let total = product(NAME, &[size, count])?;
        let extra = product(NAME, &[count.saturating_sub(1), step])?;
        view.check("b", k, columns, extra)?;
        let mut data = Buffer::lasting(total);
        if total == 0 {
            return Ok(PackedB { data, kernel, k, columns, count });
        }
        let out = SharedMut::new(&mut data);
        let source = Shared(view.raw());
        let per_matrix = panels.count();
        exec.split(count * per_matrix, 1, &|range| {
            for index in range {
                let (matrix, panel) = (index / per_matrix, index % per_matrix);
                let start = panels.start(panel);
                let raw = source.get();
                let offset = matrix * step + start * raw.col_stride;
                let view = RawView { data: raw.data.wrapping_add(offset), ..raw };
                // Panels are disjoint and inside the buffer.
                let dst = out.ptr().wrapping_add(matrix * size + start * k);
                let (n, width) = (panels.valid(panel), panels.width(panel));
                exec.isa().dispatch(PackB { view, k, n, width, dst });
            }
        });
        Ok(PackedB { data, kernel, k, columns, count })
    }

    /// Rows and columns of each matrix.
    pub fn dims(&self) -> (usize, usize) {
        (self.k, self.columns)
    }

    /// Number of matrices.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the packed form.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.data)
    }

    /// The kernel that it is packed for.
    pub fn kernel(&self) -> &'static GemmKernel {
        self.kernel
    }
}

fn check_tier(exec: &Exec, kernel: &GemmKernel) -> Result {
    let ok = exec.isa().tier().includes(kernel.tier);
    crate::error::require(NAME, ok, "the kernel needs a higher instruction-set tier")
}

/// A read-only view that tasks on several threads use.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(pub T);

// SAFETY: only read through, for as long as the borrowed slice lives.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    pub(super) fn get(self) -> T {
        self.0
    }
}
