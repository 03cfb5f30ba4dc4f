//! Products of two integer activations: the right one is packed on the way.

use super::drive::{Lines, Rows, SERIAL, Source, Sweep, part};
use super::epilogue::{Epilogue, Residual};
use super::lines::{Copying, Placed};
use super::pack::{Columns, PanelsView, find_limits, limit_words};
use super::table::{INT_KERNELS, PanelKernel};
use super::target::Target;
use super::tile::{Run, Tile};
use crate::activation::Activation;
use crate::buffer::{SharedMut, with_scratch};
use crate::error::{Result, at_least, exact, product, product_of, require, span_of};
use crate::exec::Exec;
use crate::few::Few;
use crate::gemm::BatchDim;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd};

const NAME: &str = "panel matmul";

/// Depth up to which a product with one column is computed as one with one row: then to pack all rows takes less time than to
/// finish them one by one.
const MOST_TURNED: usize = 64;

/// `activation((a − a_zero) · (b − b_zero) · scale)` over batches of row-major matrices.
#[derive(Clone, Copy, Debug)]
pub struct IntMatMul<'a> {
    /// The left matrices, `m × k`: u8 or i8, with its zero point.
    pub a: (Rows<'a>, i32),
    /// The right matrices, `k × n`: u8 or i8, with its zero point.
    pub b: (Rows<'a>, i32),
    /// Rows, depth and columns.
    pub shape: [usize; 3],
    /// Batch dimensions, outermost first; none for a single product.
    pub batch: &'a [BatchDim],
    /// Product of both scales.
    pub scale: f32,
    /// Applied last.
    pub activation: Activation,
}

impl<'a> IntMatMul<'a> {
    /// The transposed product, whose right matrices are the left ones as they are, a column where a row was: for single columns of
    /// short sums, of which a tile has many side by side. A tile of one column finishes its rows one by one.
    fn turned(&self, dims: &'a mut Few<BatchDim, 8>) -> Option<IntMatMul<'a>> {
        let [m, k, 1] = self.shape else { return None };
        if k > MOST_TURNED || m == 1 {
            return None;
        }
        let swapped = self.batch.iter().map(|dim| BatchDim { a: dim.b, b: dim.a, ..*dim });
        swapped.for_each(|dim| dims.push(dim));
        Some(IntMatMul { a: self.b, b: self.a, shape: [1, k, m], batch: &*dims, ..*self })
    }

    fn check(&self, y: usize) -> Result<usize> {
        let [m, k, n] = self.shape;
        require(NAME, self.a.0.ints() && self.b.0.ints(), "the operands are not integers")?;
        require(NAME, m * k * n > 0, "a dimension is 0")?;
        let reach = |step: fn(&BatchDim) -> usize, tile: usize| -> Result<usize> {
            Ok(span_of(NAME, self.batch.iter().map(|dim| (dim.len, step(dim))))? + tile - 1)
        };
        let batches = product_of(NAME, self.batch.iter().map(|dim| dim.len))?;
        exact(NAME, "y", y, product(NAME, &[batches, m, n])?)?;
        at_least(NAME, "a", self.a.0.len(), reach(|dim| dim.a, product(NAME, &[m, k])?)?)?;
        at_least(NAME, "b", self.b.0.len(), reach(|dim| dim.b, product(NAME, &[k, n])?)?)?;
        Ok(batches)
    }

    /// Where the matrices of product `index` start.
    fn starts(&self, mut index: usize) -> (usize, usize) {
        let (mut a, mut b) = (0, 0);
        for dim in self.batch.iter().rev() {
            a += index % dim.len * dim.a;
            b += index % dim.len * dim.b;
            index /= dim.len;
        }
        (a, b)
    }
}

/// Computes dense `y`, product after product. Sums ([`Target::I32`]) take neither scale nor activation; they wrap where 32
/// bits do not hold them, which `k ≤ 2¹⁵` excludes for any codes and zero points of 8 bits.
///
/// # Errors
/// The operands are floats, a dimension is 0, or a slice is too short.
pub fn panel_matmul(exec: &Exec, p: &IntMatMul<'_>, y: Target<'_>) -> Result {
    let mut dims = Few::new();
    match p.turned(&mut dims) {
        Some(turned) => multiply(exec, &turned, true, y),
        None => multiply(exec, p, false, y),
    }
}

/// With right matrices `n × k` where they stand `by_column`.
fn multiply(exec: &Exec, p: &IntMatMul<'_>, by_column: bool, mut y: Target<'_>) -> Result {
    let batches = p.check(y.len())?;
    if batches == 0 {
        return Ok(());
    }
    let [m, k, n] = p.shape;
    let kernel = PanelKernel::best(INT_KERNELS, exec.isa());
    let columns = Columns { n, nr: kernel.nr, lanes: kernel.lanes };
    let steps = k.div_ceil(4).next_multiple_of(kernel.depth / 4);
    let per_panels = steps * columns.padded();
    // Behind the panels come their limits.
    let per_matrix = per_panels + limit_words(kernel, columns.count(), (1, steps));
    let (a, b) = (Source(p.a.0.ptr()), Source(p.b.0.ptr()));
    let work = batches * m * n * steps;
    // Most kernels see i8 rows with 128 added, and all see u8 columns with 128 taken off.
    let a_flip = p.a.0.flip_for(kernel);
    let a_zero = p.a.1 + if a_flip != 0 { 128 } else { 0 };
    let b_flip = if p.b.0.signed() { 0 } else { 0x80 };
    let b_zero = p.b.1 - if b_flip != 0 { 128 } else { 0 };
    let signed = p.a.0.signed() && a_flip == 0;
    // Row sums are those of rows with 128 added.
    let sum_zero = a_zero + if signed { 128 } else { 0 };
    let out = y.shared();
    let starts_len = if signed { columns.padded() } else { 0 };
    let zeros_len = if b_zero == 0 { 0 } else { n };
    with_scratch(n + starts_len + zeros_len + batches * n + batches * per_matrix, |scratch| {
        let (scales, rest) = scratch.split_at_mut(n);
        let (starts, rest) = rest.split_at_mut(starts_len);
        let (zeros, rest) = rest.split_at_mut(zeros_len);
        let (offsets, packed) = rest.split_at_mut(batches * n);
        let packed = &mut packed[..batches * per_matrix];
        let (starts, zeros, offsets) = (integers(starts), integers(zeros), integers(offsets));
        scales.fill(p.scale);
        starts.fill(0);
        zeros.fill(b_zero);
        let (scales, starts, zeros) = (&*scales, &*starts, &*zeros);
        let (to, sums) = (SharedMut::new(packed), SharedMut::new(offsets));
        exec.pool().run_if(work >= SERIAL, batches * columns.count(), &|task| {
            let (index, panel) = (task / columns.count(), task % columns.count());
            let (width, valid) = (columns.width(panel), columns.valid(panel));
            let first = panel * columns.nr * if by_column { k } else { 1 };
            let source = b.ptr().wrapping_add(p.starts(index).1 + first);
            // SAFETY: each task has a panel and its sums; `check` covered the operand.
            unsafe {
                let words = to.slice(index * per_matrix + panel * columns.nr * steps, width * steps);
                let sums = sums.slice(index * n + panel * columns.nr, valid);
                match by_column {
                    true => columns_of(source, (k, valid), width, b_flip, words),
                    false => exec.isa().dispatch(Interleave { source, ld: n, k, valid, width, flip: b_flip, words }),
                }
                column_sums(exec.isa(), kernel, words, width, sums);
                let len = limit_words(kernel, 1, (1, steps));
                let limits = to.slice(index * per_matrix + per_panels + panel * len, len);
                find_limits(exec.isa(), words, (steps, width), limits);
                let whole = (k as i32).wrapping_mul(sum_zero).wrapping_mul(b_zero);
                sums.iter_mut().for_each(|s| *s = whole.wrapping_sub(a_zero.wrapping_mul(*s)));
            }
        });
        let whole_steps = k.is_multiple_of(4) || kernel.takes_tails();
        let direct = (a_flip == 0 && whole_steps && !k.is_multiple_of(2048)).then_some(k);
        // Parts of the rows, so that few products keep all threads busy.
        let parts = (4 * exec.threads()).div_ceil(batches).min(m.div_ceil(2 * kernel.mr)).max(1);
        exec.pool().run_if(work >= SERIAL, batches * parts, &|task| {
            let (index, rows) = (task / parts, part(m, parts, task % parts));
            // SAFETY: packed above; tasks only read.
            let (data, limits) = unsafe { &*to.slice(index * per_matrix, per_matrix) }.split_at(per_panels);
            // SAFETY: as above.
            let offsets = unsafe { &*sums.slice(index * n, n) };
            let epilogue = Epilogue {
                offsets,
                scales,
                weight_zeros: zeros,
                bias: &[],
                stage: None,
                residual: Residual::None,
                activation: p.activation,
                factors: &[],
                shifts: &[],
                rows: None,
            };
            let panels = PanelsView { kernel, columns, runs: 1, run_len: k, steps, data, starts, limits };
            let (isa, epilogue) = (exec.isa(), &epilogue);
            let sweep = Sweep { isa, panels, runs: &[0], epilogue, ints: true, signed, out, ld: n };
            let first = |i: usize| a.ptr().wrapping_add(p.starts(index).0 + (rows.start + i) * k);
            let at = (index * m + rows.start) * n;
            let body = |lines: Lines| {
                sweep.walk(|walk| {
                    for panel in 0..columns.count() {
                        // SAFETY: the rows lie in `a` or in the copy with slack; tasks write disjoint rows.
                        unsafe { walk.rows(lines, (0, panel), at) };
                    }
                });
            };
            let placed = Placed { start: &first, bytes: k, direct, copy: Copying::Flip(a_flip) };
            // SAFETY: `check` covered the operand.
            unsafe { placed.with(exec.isa(), kernel, rows.len(), body) };
        });
    });
    Ok(())
}

/// Scratch as integers.
pub(super) fn integers(words: &mut [f32]) -> &mut [i32] {
    // SAFETY: both have the size and alignment of a word, and all bits mean a number of either.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

/// Dense columns of `k` bytes, each combined with `flip`, into the words of a panel.
///
/// # Safety
/// There are `valid` columns.
unsafe fn columns_of(source: *const u8, (k, valid): (usize, usize), width: usize, flip: u8, words: &mut [f32]) {
    for (step, line) in words.chunks_exact_mut(width).enumerate() {
        let bytes = k.saturating_sub(step * 4).min(4);
        let (line, rest) = line.split_at_mut(valid);
        for (column, word) in line.iter_mut().enumerate() {
            let from = source.wrapping_add(column * k + step * 4);
            // Rows beyond the last are zero after the flip.
            let mut four = [flip; 4];
            // SAFETY: the caller vouches for the column.
            let from = unsafe { std::slice::from_raw_parts(from, bytes) };
            // Whole words are one load.
            match <[u8; 4]>::try_from(from) {
                Ok(whole) => four = whole,
                Err(_) => four[..bytes].copy_from_slice(from),
            }
            *word = f32::from_bits(u32::from_le_bytes(four) ^ u32::from_le_bytes([flip; 4]));
        }
        rest.fill(0.0);
    }
}

/// Four rows of bytes at a time into the words of a panel.
pub(super) struct Interleave<'a> {
    pub source: *const u8,
    /// Bytes between rows.
    pub ld: usize,
    pub k: usize,
    pub valid: usize,
    pub width: usize,
    pub flip: u8,
    pub words: &'a mut [f32],
}

impl Kernel for Interleave<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let none = [0u8; 64];
        for (step, line) in self.words.chunks_exact_mut(self.width).enumerate() {
            let row = |i: usize| {
                let k = step * 4 + i;
                // Rows beyond the last are zero after the flip.
                let (from, flip) = match k < self.k {
                    true => (self.source.wrapping_add(k * self.ld), self.flip),
                    false => (none.as_ptr(), 0),
                };
                // SAFETY: the caller vouches for `valid` bytes of each row; a panel has at
                // most 64 columns.
                (unsafe { std::slice::from_raw_parts(from, self.valid) }, u32::from(flip))
            };
            let [(r0, f0), (r1, f1), (r2, f2), (r3, f3)] = [row(0), row(1), row(2), row(3)];
            let flips = f0 | f1 << 8 | f2 << 16 | f3 << 24;
            let (line, rest) = line.split_at_mut(self.valid);
            for (c, word) in line.iter_mut().enumerate() {
                let bytes = u32::from(r0[c]) | u32::from(r1[c]) << 8 | u32::from(r2[c]) << 16 | u32::from(r3[c]) << 24;
                *word = f32::from_bits(bytes ^ flips);
            }
            rest.fill(0.0);
        }
    }
}

/// The sums of a panel's columns: one row of ones, multiplied.
///
/// # Safety
/// The tier of `isa` is that of the machine.
pub(super) unsafe fn column_sums(isa: Isa, kernel: &PanelKernel, words: &[f32], width: usize, sums: &mut [i32]) {
    #[cfg(target_arch = "x86_64")]
    if kernel.bounded() {
        // SAFETY: the caller vouches for the tier.
        return unsafe { super::limits::column_sums(words, width, sums) };
    }
    let mut total = [0i32; 64];
    let Some(kernel) = kernel.by_vectors(INT_KERNELS, isa) else {
        super::pack::column_sums(words, width, &mut total[..width]);
        return sums.copy_from_slice(&total[..sums.len()]);
    };
    let ones = [1u8; 4];
    let mut out = [0u32; 64];
    // One step at a time would read the same four ones for each: a run is a step.
    let runs = [Run::default(); 64];
    for block in words.chunks(runs.len() * width) {
        let tile = Tile {
            a: ones.as_ptr(),
            stride: 0,
            runs: runs.as_ptr(),
            n_runs: block.len() / width,
            steps: 1,
            limits: std::ptr::null(),
            apart: std::ptr::null(),
            slow: 0.into(),
            ahead: std::ptr::null(),
            b: block.as_ptr().cast(),
            out: out.as_mut_ptr(),
            end: std::ptr::null(),
        };
        // SAFETY: the caller vouches for the tier; the block has whole steps.
        unsafe { kernel.tile(1, width)(&tile) };
        total.iter_mut().zip(&out[..width]).for_each(|(t, &o)| *t = t.wrapping_add(o as i32));
    }
    sums.copy_from_slice(&total[..sums.len()]);
}
