//! The loops around the tile kernels: tasks, cache blocks, packing.

use super::kernel::Tile;
use super::operand::Shared;
use super::pack::{ColumnPanels, PackA, RawB, RawView, RowPanels, pack_b};
use super::{BatchDim, Bias, Gemm, GemmKernel, Lhs, PackedA, Rhs};
use crate::buffer::{SharedMut, with_scratch};
use crate::error::{KernelError, Result, at_least, exact, product, product_of, require, span, span_of};
use crate::exec::Exec;
use crate::few::Few;
use crate::isa::Isa;

const NAME: &str = "gemm";

/// Most of K in one block: a panel of B (32 columns) then takes 48 KiB, half of it L1.
const KC: usize = 384;
/// Rows of A in one block, which stays in L2.
const MC: usize = 224;
/// Columns that one task packs, which stay in L2.
const NC: usize = 256;
/// Multiply-adds below which a second thread costs more than it brings.
const SERIAL: usize = 1 << 18;

/// Computes `c = act(alpha · a · b + beta · c + bias + residual)`, batched, in parallel.
///
/// # Errors
/// An operand, the bias or C is too short for the shape and strides, packed operands
/// have other dimensions or kernels, or the results of a batch overlap.
pub fn gemm(exec: &Exec, g: &Gemm<'_>, c: &mut [f32]) -> Result {
    let len = c.len();
    // SAFETY: the slice is borrowed exclusively.
    unsafe { gemm_raw(exec, g, c.as_mut_ptr(), len) }
}

/// As [`gemm`], for results with gaps that others may use meanwhile.
///
/// # Safety
/// `c` covers `len` floats, of which those that the shape addresses are not used by
/// anyone else.
pub(crate) unsafe fn gemm_raw(exec: &Exec, g: &Gemm<'_>, c: *mut f32, len: usize) -> Result {
    let batches = check(g, len)?;
    if batches == 0 || g.m == 0 || g.n == 0 {
        return Ok(());
    }
    let kernel = kernel_of(exec, g)?;
    let driver = Driver::new(exec, g, kernel, c);
    let grid = driver.grid(exec.threads(), batches);
    let tasks = batches * grid.rows * grid.columns;
    let run = |task: usize| driver.task(&grid, task);
    if product(NAME, &[g.m, g.n, g.k.max(1)])?.saturating_mul(batches) <= SERIAL {
        (0..tasks).for_each(run);
    } else {
        exec.pool().run(tasks, &run);
    }
    Ok(())
}

/// Checks every length; returns the number of products.
fn check(g: &Gemm<'_>, c_len: usize) -> Result<usize> {
    let batches = product_of(NAME, g.batch.iter().map(|dim| dim.len))?;
    if batches == 0 || g.m == 0 || g.n == 0 {
        return Ok(0);
    }
    let reach = |step: fn(&BatchDim) -> usize| -> Result<usize> {
        Ok(span_of(NAME, g.batch.iter().map(|dim| (dim.len, step(dim))))?.saturating_sub(1))
    };
    let tile = span(NAME, &[(g.m, g.ldc), (g.n, 1)])?;
    let need = tile + reach(|dim| dim.c)?;
    at_least(NAME, "c", c_len, need)?;
    if let Some(residual) = g.residual {
        at_least(NAME, "residual", residual.len(), need)?;
    }
    check_disjoint(g)?;
    match g.bias {
        Bias::None => {}
        Bias::Row(bias) => at_least(NAME, "bias", bias.len(), g.m + reach(|dim| dim.bias)?)?,
        Bias::Column(bias) => at_least(NAME, "bias", bias.len(), g.n + reach(|dim| dim.bias)?)?,
    }
    let (a_reach, b_reach) = (reach(|dim| dim.a)?, reach(|dim| dim.b)?);
    match g.a {
        Lhs::View(view) => view.check("a", g.m, g.k, a_reach)?,
        Lhs::Packed(packed) => {
            exact(NAME, "rows of the packed a", packed.rows, g.m)?;
            exact(NAME, "columns of the packed a", packed.k, g.k)?;
            at_least(NAME, "matrices of the packed a", packed.count, a_reach + 1)?;
        }
    }
    match g.b {
        Rhs::View(view) => view.check("b", g.k, g.n, b_reach)?,
        Rhs::Packed(packed) => {
            exact(NAME, "rows of the packed b", packed.k, g.k)?;
            exact(NAME, "columns of the packed b", packed.columns, g.n)?;
            at_least(NAME, "matrices of the packed b", packed.count, b_reach + 1)?;
        }
        Rhs::Borrowed(packed) => {
            exact(NAME, "rows of the packed b", packed.k, g.k)?;
            exact(NAME, "columns of the packed b", packed.columns, g.n)?;
            require(NAME, b_reach == 0, "a borrowed operand has no batch")?;
        }
        Rhs::Image(image, data) => {
            image.check()?;
            exact(NAME, "rows of the image columns", image.rows(), g.k)?;
            exact(NAME, "columns of the image columns", image.columns(), g.n)?;
            at_least(NAME, "image", data.len(), image.len() + b_reach)?;
        }
        Rhs::Blocks(weights) => {
            exact(NAME, "rows of the block weights", weights.shape().k, g.k)?;
            exact(NAME, "columns of the block weights", weights.shape().n, g.n)?;
            require(NAME, b_reach == 0, "block weights have no batch")?;
        }
    }
    Ok(batches)
}

/// No two elements of the batch may share a place in C: sorted by step, each dimension
/// must step over everything that the finer ones span.
fn check_disjoint(g: &Gemm<'_>) -> Result {
    let dims = g.batch.iter().map(|dim| (dim.c, dim.len)).chain([(g.ldc, g.m), (1, g.n)]);
    let mut dims: Few<(usize, usize), 8> = dims.filter(|&(_, len)| len > 1).collect();
    dims.sort_unstable();
    let mut covered = 1;
    for &(step, len) in dims.iter() {
        require(NAME, step >= covered, "the rows or batches of C overlap")?;
        covered += (len - 1) * step;
    }
    Ok(())
}

fn kernel_of(exec: &Exec, g: &Gemm<'_>) -> Result<&'static GemmKernel> {
    let a = match g.a {
        Lhs::Packed(packed) => Some(packed.kernel),
        Lhs::View(_) => None,
    };
    let b = match g.b {
        Rhs::Packed(packed) => Some(packed.kernel),
        Rhs::Borrowed(packed) => Some(packed.kernel),
        Rhs::View(_) | Rhs::Image(..) | Rhs::Blocks(_) => None,
    };
    match (a, b) {
        (Some(a), Some(b)) if !std::ptr::eq(a, b) => {
            Err(KernelError::Invalid { kernel: NAME, what: "the operands are packed for different kernels" })
        }
        // A packed operand proves that its kernel's tier was available.
        (Some(kernel), _) | (_, Some(kernel)) => Ok(kernel),
        _ => Ok(GemmKernel::best(exec.isa())),
    }
}

/// How C is cut into tasks, in panels.
struct Grid {
    rows: usize,
    columns: usize,
}

/// A product with its pointers resolved, shared by the tasks.
struct Driver<'a> {
    isa: Isa,
    g: Gemm<'a>,
    kernel: &'static GemmKernel,
    rows: RowPanels,
    columns: ColumnPanels,
    kc: usize,
    c: SharedMut<f32>,
}

/// The operands of one product of the batch.
struct Product<'a> {
    a: Shared<SourceA<'a>>,
    b: Shared<SourceB<'a>>,
    c: *mut f32,
    residual: *const f32,
    bias: usize,
}

#[derive(Clone, Copy)]
enum SourceA<'a> {
    Packed(&'a PackedA, usize),
    View(RawView),
}

#[derive(Clone, Copy)]
enum SourceB<'a> {
    /// The panels, of the whole of K.
    Packed(&'a [f32]),
    Raw(RawB<'a>),
}

impl<'a> Driver<'a> {
    fn new(exec: &Exec, g: &Gemm<'a>, kernel: &'static GemmKernel, c: *mut f32) -> Self {
        let unit = match g.b {
            // Whole windows per block.
            Rhs::Image(image, _) => image.kh * image.kw,
            // Whole words.
            Rhs::Blocks(_) => 16,
            _ => 1,
        };
        let units = g.k.div_ceil(unit);
        let blocks = g.k.div_ceil(KC).max(1);
        let kc = units.div_ceil(blocks).max(1) * unit;
        Driver {
            isa: exec.isa(),
            g: *g,
            kernel,
            rows: RowPanels::new(g.m, kernel.mr),
            columns: ColumnPanels { columns: g.n, nr: kernel.nr, lanes: kernel.lanes },
            kc,
            c: SharedMut::from_ptr(c),
        }
    }

    /// Enough tasks to feed and balance the threads, few enough to pack little twice.
    fn grid(&self, threads: usize, batches: usize) -> Grid {
        let (m_panels, n_panels) = (self.rows.count, self.columns.count());
        let nc = if matches!(self.g.b, Rhs::Packed(_) | Rhs::Borrowed(_)) { 4 * NC } else { NC };
        let mut rows = m_panels.div_ceil((2 * MC).div_ceil(self.kernel.mr));
        let mut columns = n_panels.div_ceil((nc / self.kernel.nr).max(1));
        if threads > 1 {
            let wanted = (4 * threads).div_ceil(batches);
            let narrow = (96 / self.kernel.nr).max(1);
            if rows * columns < wanted {
                let most = n_panels.div_ceil(narrow);
                columns = columns.max(wanted.div_ceil(rows).min(most));
            }
            let wanted = (2 * threads).div_ceil(batches);
            if rows * columns < wanted {
                let most = m_panels.div_ceil(2);
                rows = rows.max(wanted.div_ceil(columns).min(most)).max(1);
            }
        }
        Grid { rows: rows.clamp(1, m_panels), columns: columns.clamp(1, n_panels) }
    }

    fn task(&self, grid: &Grid, task: usize) {
        let per_product = grid.rows * grid.columns;
        let (index, cell) = (task / per_product, task % per_product);
        // Neighbouring tasks share columns, so that a panel of B is fetched once.
        let (column, row) = (cell / grid.rows, cell % grid.rows);
        let cut = |panels: usize, parts: usize, part: usize| (panels * part / parts, panels * (part + 1) / parts);
        let i = cut(self.rows.count, grid.rows, row);
        let j = cut(self.columns.count(), grid.columns, column);
        self.block(&self.product(index), i, j);
    }

    /// Resolves the strides of product `index`.
    fn product(&self, mut index: usize) -> Product<'a> {
        let (mut a, mut b, mut c, mut bias) = (0, 0, 0, 0);
        for dim in self.g.batch.iter().rev() {
            let at = index % dim.len;
            index /= dim.len;
            a += at * dim.a;
            b += at * dim.b;
            c += at * dim.c;
            bias += at * dim.bias;
        }
        Product {
            a: Shared(match self.g.a {
                Lhs::Packed(packed) => SourceA::Packed(packed, a),
                Lhs::View(view) => SourceA::View(offset(view.raw(), a)),
            }),
            b: Shared(match self.g.b {
                Rhs::Packed(packed) => SourceB::Packed(&packed.data[b * packed.k * self.columns.padded()..]),
                Rhs::Borrowed(packed) => SourceB::Packed(packed.data),
                Rhs::View(view) => SourceB::Raw(RawB::View(offset(view.raw(), b))),
                Rhs::Blocks(weights) => SourceB::Raw(RawB::Blocks(weights)),
                Rhs::Image(image, data) => SourceB::Raw(RawB::Image(image, data.as_ptr().wrapping_add(b))),
            }),
            c: self.c.ptr().wrapping_add(c),
            residual: self.g.residual.map_or(std::ptr::null(), |r| r.as_ptr().wrapping_add(c)),
            bias,
        }
    }

    /// Row panels `i0..i1` by column panels `j0..j1` of one product.
    fn block(&self, p: &Product<'_>, (i0, i1): (usize, usize), (j0, j1): (usize, usize)) {
        let per_block = (MC / self.kernel.mr).max(1);
        // With one block of rows, a panel of B is used up right after it is packed, and
        // never leaves L1.
        let one_block = i1 - i0 <= per_block;
        let at_once = if one_block { 1 } else { j1 - j0 };
        let columns = (at_once * self.kernel.nr).min(self.columns.padded());
        let b_len = if matches!(p.b.get(), SourceB::Raw(_)) { columns * self.kc } else { 0 };
        let a_rows = self.rows.start(i1.min(i0 + per_block)) - self.rows.start(i0);
        // The first panels are the longest, so no later block has more rows.
        let a_len = if matches!(p.a.get(), SourceA::View(_)) { a_rows * self.kc } else { 0 };
        let a_len = a_len.next_multiple_of(16);
        with_scratch(a_len + b_len, |scratch| {
            let (a_scratch, b_scratch) = scratch.split_at_mut(a_len);
            let mut k0 = 0;
            loop {
                let depth = (k0, self.kc.min(self.g.k - k0));
                if one_block {
                    self.pack_rows(p, (i0, i1), depth, a_scratch);
                    for j in j0..j1 {
                        self.pack_columns(p, (j, j + 1), depth, b_scratch);
                        self.tiles(p, (i0, i1), (j, j + 1), depth, a_scratch, b_scratch);
                    }
                } else {
                    self.pack_columns(p, (j0, j1), depth, b_scratch);
                    let mut i = i0;
                    while i < i1 {
                        let end = (i + per_block).min(i1);
                        self.pack_rows(p, (i, end), depth, a_scratch);
                        self.tiles(p, (i, end), (j0, j1), depth, a_scratch, b_scratch);
                        i = end;
                    }
                }
                k0 += depth.1;
                if k0 >= self.g.k {
                    break;
                }
            }
        });
    }

    fn pack_rows(&self, p: &Product<'_>, (i0, i1): (usize, usize), (k0, k): (usize, usize), out: &mut [f32]) {
        let SourceA::View(view) = p.a.get() else {
            return;
        };
        for i in i0..i1 {
            let start = self.rows.start(i);
            let from = start * view.row_stride + k0 * view.col_stride;
            let view = offset(view, from);
            let at = (start - self.rows.start(i0)) * k;
            let height = self.rows.height(i);
            let dst = out[at..at + height * k].as_mut_ptr();
            self.isa.dispatch(PackA { view, height, k, dst });
        }
    }

    fn pack_columns(&self, p: &Product<'_>, (j0, j1): (usize, usize), (k0, k): (usize, usize), out: &mut [f32]) {
        let SourceB::Raw(source) = p.b.get() else {
            return;
        };
        for j in j0..j1 {
            let at = (self.columns.start(j) - self.columns.start(j0)) * k;
            let width = self.columns.width(j);
            let dst = out[at..at + width * k].as_mut_ptr();
            let columns = (self.columns.start(j), self.columns.valid(j));
            // SAFETY: `check` made sure that the source covers k × n.
            unsafe { pack_b(self.isa, source, (k0, k), columns, width, dst) };
        }
    }

    fn tiles(
        &self,
        p: &Product<'_>,
        (i0, i1): (usize, usize),
        (j0, j1): (usize, usize),
        (k0, k): (usize, usize),
        a_scratch: &[f32],
        b_scratch: &[f32],
    ) {
        let g = &self.g;
        for j in j0..j1 {
            let (n0, width) = (self.columns.start(j), self.columns.width(j));
            let b = match p.b.get() {
                SourceB::Packed(panels) => panels[n0 * g.k + k0 * width..].as_ptr(),
                SourceB::Raw(_) => b_scratch[(n0 - self.columns.start(j0)) * k..].as_ptr(),
            };
            for i in i0..i1 {
                let (m0, height) = (self.rows.start(i), self.rows.height(i));
                let a = match p.a.get() {
                    SourceA::Packed(packed, index) => {
                        let matrix = index * packed.k * packed.rows;
                        packed.data[matrix + m0 * packed.k + k0 * height..].as_ptr()
                    }
                    SourceA::View(_) => a_scratch[(m0 - self.rows.start(i0)) * k..].as_ptr(),
                };
                let corner = m0 * g.ldc + n0;
                let (bias_row, bias_col) = bias_pointers(g.bias, p.bias, m0, n0);
                let residual = if p.residual.is_null() { p.residual } else { p.residual.wrapping_add(corner) };
                let tile = Tile {
                    k,
                    a,
                    b,
                    c: p.c.wrapping_add(corner),
                    ldc: g.ldc,
                    n: self.columns.valid(j),
                    first: k0 == 0,
                    last: k0 + k >= g.k,
                    alpha: g.alpha,
                    beta: g.beta,
                    bias_row,
                    bias_col,
                    residual,
                    ld_residual: g.ldc,
                    activation: g.activation,
                };
                // SAFETY: `check` covered every operand; tasks write disjoint tiles; the
                // kernel's tier was proven when it was chosen.
                unsafe { self.kernel.tile(height, width)(&tile) };
            }
        }
    }
}

fn offset(view: RawView, by: usize) -> RawView {
    RawView { data: view.data.wrapping_add(by), ..view }
}

fn bias_pointers(bias: Bias<'_>, at: usize, m0: usize, n0: usize) -> (*const f32, *const f32) {
    match bias {
        Bias::None => (std::ptr::null(), std::ptr::null()),
        Bias::Row(bias) => (bias[at + m0..].as_ptr(), std::ptr::null()),
        Bias::Column(bias) => (std::ptr::null(), bias[at + n0..].as_ptr()),
    }
}
