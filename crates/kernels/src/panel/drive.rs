//! The walk over tiles, and products of matrices in tasks.

use std::ops::Range;

use half::bf16;

use super::amx::{self, Unit};
use super::epilogue::Epilogue;
use super::lines::{Copying, Placed, byte_sum};
use super::pack::{Panels, PanelsView};
use super::table::Body;
use super::target::{Out, Target};
use super::tile::Run;
use super::vectors::Vectors;
use crate::buffer::with_scratch;
use crate::error::{Result, at_least, exact, product, require, span};
use crate::exec::Exec;
use crate::few::Few;
use crate::isa::Isa;

const NAME: &str = "panel product";

/// Bytes of rows that a task works on at a time: less than half of a common L2.
pub(crate) const CHUNK: usize = 448 << 10;
/// Bytes of weights that are read again for each part of the rows at no cost.
const SMALL: usize = CHUNK / 4;
/// Multiply-adds below which a second thread costs more than it brings.
pub(crate) const SERIAL: usize = 1 << 19;

/// The left operand: activations in memory.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Unsigned integers, as the kernels take them.
    U8(&'a [u8]),
    /// Signed integers: copied with 128 added.
    I8(&'a [i8]),
    /// Floats.
    F32(&'a [f32]),
    /// Floats that were rounded to bfloat16: for weights that are.
    Bf16(&'a [bf16]),
}

/// None, so that lists of them need no allocation.
impl Default for Rows<'_> {
    fn default() -> Self {
        Rows::U8(&[])
    }
}

impl Rows<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Rows::U8(x) => x.len(),
            Rows::I8(x) => x.len(),
            Rows::F32(x) => x.len(),
            Rows::Bf16(x) => x.len(),
        }
    }
    pub(crate) fn ptr(&self) -> *const u8 {
        match self {
            Rows::U8(x) => x.as_ptr(),
            Rows::I8(x) => x.as_ptr().cast(),
            Rows::F32(x) => x.as_ptr().cast(),
            Rows::Bf16(x) => x.as_ptr().cast(),
        }
    }
    /// Bytes of an element.
    pub(crate) fn size(&self) -> usize {
        match self {
            Rows::U8(_) | Rows::I8(_) => 1,
            Rows::F32(_) => 4,
            Rows::Bf16(_) => 2,
        }
    }
    pub(crate) fn ints(&self) -> bool {
        matches!(self, Rows::U8(_) | Rows::I8(_))
    }
    /// Refuses rows of bfloat16 for weights whose elements have `size` bytes, unless they are bfloat16 too.
    pub(crate) fn require_type(&self, kernel: &'static str, size: usize) -> Result {
        require(kernel, !matches!(self, Rows::Bf16(_)) || size == 2, "rows of bfloat16 take weights of bfloat16")
    }
    pub(crate) fn signed(&self) -> bool {
        matches!(self, Rows::I8(_))
    }
    /// What a copy as u8 is combined with bit by bit: i8 + 128.
    pub(crate) fn flip(&self) -> u8 {
        if self.signed() { 0x80 } else { 0 }
    }
}

/// A pointer that tasks share for reading.
#[derive(Clone, Copy)]
pub(crate) struct Source(pub *const u8);
impl Default for Source {
    fn default() -> Self {
        Source(std::ptr::null())
    }
}
// SAFETY: only read, while the slice that it came from is borrowed.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}
impl Source {
    pub(crate) fn ptr(self) -> *const u8 {
        self.0
    }
}

/// What the tiles of one product share.
pub(crate) struct Sweep<'a> {
    pub isa: Isa,
    pub panels: PanelsView<'a>,
    /// Byte offsets of the runs from the start of a row.
    pub runs: &'a [usize],
    pub epilogue: &'a Epilogue<'a>,
    pub ints: bool,
    /// Whether the rows are i8 and read as such, with 128 times the column sums added to start from.
    pub signed: bool,
    pub out: Out,
    /// Elements between rows of the result.
    pub ld: usize,
}

/// Rows at a constant distance.
#[derive(Clone, Copy)]
pub(crate) struct Lines {
    /// The first row.
    pub a: *const u8,
    /// Bytes between rows.
    pub stride: usize,
    /// The number of rows.
    pub count: usize,
    /// The last step of each row with zeros after it, one step apart, where the rows themselves are shorter; else null.
    pub tail: *const u8,
}

/// What multiplies rows by panels on one thread.
pub(crate) enum Walk<'s, 'a> {
    /// Vectors, with all runs of the sweep.
    Vectors(&'s [Run], Vectors<'s, 'a>),
    /// The processor's tiles.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Hardware(&'s Sweep<'a>, &'s mut amx::State<'a>, amx::hardware::Hardware),
    /// A model of them.
    Emulated(&'s Sweep<'a>, &'s mut amx::State<'a>, Box<amx::Emulated>),
}

impl Walk<'_, '_> {
    /// Lets the next tiles of vectors fetch memory that is copied soon; it is only a hint.
    pub fn fetch(&mut self, from: *const u8, bytes: usize) {
        if let (Walk::Vectors(_, vectors), 1..) = (self, bytes) {
            vectors.fetch(from, bytes);
        }
    }

    /// As [`Walk::rows`] with some runs, in the place of the sweep's: for kernels of vectors.
    ///
    /// # Safety
    /// As [`Walk::rows`]; `runs`, at least one, lie in the panel and pass over its other words.
    pub unsafe fn rows_of(&mut self, runs: &[Run], lines: Lines, (group, p): (usize, usize), at: usize) {
        // Bounded kernels go over all words of a panel.
        if let (Walk::Vectors(_, vectors), 1..) = (self, lines.count) {
            debug_assert!(!vectors.bounded());
            // SAFETY: passed on to the caller.
            unsafe { vectors.rows((lines, runs), (group, p), at) };
        }
    }

    /// Multiplies rows by panel `p` of a group. `at` is the place in the result of the first row's first column of the
    /// group. The results are there when the walk ends.
    ///
    /// # Safety
    /// The rows' runs are readable in whole steps, or there is a tail, until the walk ends, and nobody else uses the results.
    pub unsafe fn rows(&mut self, lines: Lines, (group, p): (usize, usize), at: usize) {
        if lines.count == 0 {
            return;
        }
        match self {
            // SAFETY: passed on to the caller.
            Walk::Vectors(runs, vectors) => unsafe { vectors.rows((lines, runs), (group, p), at) },
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Walk::Hardware(sweep, state, tiles) => {
                let work = amx::Work { sweep, tiles, state, lines, group, panel: p, at };
                // SAFETY: passed on to the caller.
                unsafe { work.run() };
            }
            Walk::Emulated(sweep, state, tiles) => {
                let work = amx::Work { sweep, tiles: &mut **tiles, state, lines, group, panel: p, at };
                // SAFETY: passed on to the caller.
                unsafe { work.run() };
            }
        }
    }
}

impl<'a> Sweep<'a> {
    /// Calls `body` with what multiplies rows on this thread.
    pub fn walk(&self, body: impl FnOnce(&mut Walk<'_, 'a>)) {
        let Body::Tiles(unit) = self.panels.kernel.body else {
            let runs: Few<Run, 64> = self.runs.iter().map(|&at| Run { at, skip: 0 }).collect();
            return Vectors::with(self, |vectors| body(&mut Walk::Vectors(&runs, vectors)));
        };
        with_scratch(amx::State::WORDS, |sums| {
            // SAFETY: the scratch is ours in here.
            let mut state = unsafe { amx::State::new(self.isa, sums.as_mut_ptr().cast()) };
            match unit {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                Unit::Hardware => {
                    // No token: the panels were packed for another machine's kernel, which no path does.
                    let Some(token) = crate::isa::Amx::new(self.isa) else { return };
                    body(&mut Walk::Hardware(self, &mut state, amx::hardware::Hardware::new(token)));
                }
                Unit::Emulated => body(&mut Walk::Emulated(self, &mut state, Box::new(amx::Emulated::new()))),
            }
            state.flush();
        });
    }

    /// The sums of the rows' elements, 128 added to signed ones.
    ///
    /// # Safety
    /// The rows' runs are readable.
    pub(crate) unsafe fn row_sums(&self, a: *const u8, stride: usize, sums: &mut [i32]) {
        let flip = if self.signed { 0x80 } else { 0 };
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = 0;
            for &run in self.runs {
                let start = a.wrapping_add(i * stride + run);
                // SAFETY: the caller vouches for the run.
                let bytes = unsafe { std::slice::from_raw_parts(start, self.panels.run_len) };
                *sum = sum.wrapping_add(byte_sum(self.isa, bytes, flip));
            }
        }
    }
}

/// How rows and panels divide into tasks: parts of the rows, parts of the panels.
pub(crate) fn parts(exec: &Exec, work: usize, rows: (usize, usize, usize), panels: (usize, usize)) -> (usize, usize) {
    let ((units, unit_bytes, least), (count, bytes)) = (rows, panels);
    let by_cache = (units * unit_bytes).div_ceil(CHUNK).max(1);
    if exec.threads() == 1 || work < SERIAL {
        return (by_cache.min(units), 1);
    }
    let wanted = 4 * exec.threads();
    let most = units.div_ceil(least.max(1));
    let (mut down, mut across) = (by_cache.min(units), 1);
    if bytes > units * unit_bytes {
        // Each part of the rows would read all weights again: split those first.
        across = wanted.div_ceil(down).min(count);
    }
    if down * across < wanted {
        down = down.max(wanted.div_ceil(across).min(most));
    }
    if down * across < wanted {
        across = wanted.div_ceil(down).min(count);
    }
    (down, across)
}

/// Part `i` of `parts` of `0..len`.
pub(crate) fn part(len: usize, parts: usize, i: usize) -> Range<usize> {
    len * i / parts..len * (i + 1) / parts
}

/// `y = epilogue(x · w)`: rows `m` of `k` elements, `lda` elements apart, by packed weights
/// with one group and one run of `k`; `y` is dense `m × n`.
///
/// # Errors
/// A slice is too short for the shape or the epilogue does not fit the columns.
pub fn panel_gemm(
    exec: &Exec,
    x: Rows<'_>,
    (m, k, lda): (usize, usize, usize),
    weights: &Panels,
    epilogue: &Epilogue<'_>,
    y: Target<'_>,
) -> Result {
    require(NAME, weights.groups == 1 && weights.runs == 1, "the weights are those of a convolution")?;
    exact(NAME, "rows of the weights", weights.run_len, k)?;
    at_least(NAME, "x", x.len(), span(NAME, &[(m, lda), (k, 1)])?)?;
    require(NAME, m <= 1 || lda > 0, "the rows overlap")?;
    product(NAME, &[m, k, weights.columns.n])?;
    flat(exec, x, m, &|i| i * lda, Some(lda), weights, epilogue, y)
}

/// As [`panel_gemm`] for rows anywhere: row `i` starts at element `start(i)`, `step`
/// elements after the one before if that is a constant.
///
/// All rows lie in `x`: the caller has checked that.
#[allow(clippy::too_many_arguments)] // Two callers; a struct would only rename the list.
pub(crate) fn flat(
    exec: &Exec,
    x: Rows<'_>,
    m: usize,
    start: &(dyn Fn(usize) -> usize + Sync),
    step: Option<usize>,
    weights: &Panels,
    epilogue: &Epilogue<'_>,
    mut y: Target<'_>,
) -> Result {
    let (n, k) = (weights.columns.n, weights.run_len);
    exact(NAME, "y", y.len(), product(NAME, &[m, n])?)?;
    epilogue.check(NAME, x.ints(), n, m * n)?;
    y.require_type(NAME, x.ints())?;
    x.require_type(NAME, weights.size)?;
    require(NAME, x.ints() != weights.column_sums().is_empty(), "rows and weights have different types")?;
    if m == 0 {
        return Ok(());
    }
    let (size, row, kernel) = (x.size(), k * weights.size, weights.kernel);
    let copy = x.copying(kernel, weights.size);
    let direct = step.map(|s| s * size).filter(|&s| {
        let aliased = s.is_multiple_of(2048) && m > 4 && weights.columns.count() > 1;
        copy == Copying::Flip(0) && (row.is_multiple_of(4) || kernel.takes_tails()) && !aliased
    });
    let out = y.shared();
    let (ints, signed) = (x.ints(), x.signed() && copy == Copying::Flip(0));
    let sweep = Sweep { isa: exec.isa(), panels: weights.view(), runs: &[0], epilogue, ints, signed, out, ld: n };
    let count = weights.columns.count();
    let work = m.saturating_mul(n).saturating_mul(k) / if x.ints() { 4 } else { 1 };
    // Where the weights are small, each panel passes over all rows of a task soon again: results and residual must stay
    // in the cache between. Larger weights would be read once more for each part of the rows.
    let beside = if weights.bytes() <= SMALL { n * (out.size() + epilogue.residual.size()) } else { 0 };
    let pitch = direct.unwrap_or(row) + beside;
    let (down, across) = parts(exec, work, (m, pitch, 2 * kernel.mr), (count, weights.bytes()));
    let source = Source(x.ptr());
    exec.pool().run_if(work >= SERIAL, down * across, &|task| {
        let (rows, columns) = (part(m, down, task / across), part(count, across, task % across));
        let first = |i: usize| source.ptr().wrapping_add(start(rows.start + i) * size);
        let placed = Placed { start: &first, bytes: row, direct, copy };
        let body = |lines: Lines| {
            sweep.walk(|walk| {
                for p in columns.clone() {
                    // SAFETY: the rows were checked by the caller or copied with slack; tasks write disjoint tiles.
                    unsafe { walk.rows(lines, (0, p), rows.start * n) };
                }
            });
        };
        // SAFETY: all rows lie in `x`.
        unsafe { placed.with(exec.isa(), kernel, rows.len(), body) };
    });
    Ok(())
}
