//! Attention on integers: the scores of a few query rows become weights, and the weights results, before the next rows
//! begin, so that neither scores nor weights leave the cache.
//!
//! The results are those of the product, the softmax and the second product one after the other, to the bit.

use super::drive::{Lines, SERIAL, Source, Sweep, ahead, part};
use super::finish::{Epilogue, Out, RowParams, Target};
use super::lines::{SLACK, byte_sum, copy_flipped, spread};
use super::matmul::{Interleave, column_sums, integers};
use super::pack::{Columns, PanelsView};
use super::table::{Body, INT_KERNELS, PanelKernel};
use super::tile::Tile;
use super::weights::{Scores, Soften};
use super::{Rows, weights};
use crate::attention::{HeadView, require_apart};
use crate::buffer::{SharedMut, with_scratch};
use crate::error::{Result, at_least, product, require, span};
use crate::exec::Exec;

const NAME: &str = "integer attention";
/// Words that parts of the scratch are rounded up to: a cache line.
const LINE: usize = 16;

/// A tensor of 8-bit integers, `[batch, heads, rows, columns]` in any order.
#[derive(Clone, Copy, Debug)]
pub struct IntHeads<'a> {
    /// The elements; (0, 0, 0, 0) is the first.
    pub data: Rows<'a>,
    /// Their zero point.
    pub zero: i32,
    /// Elements from one batch entry, head, row and column to the next.
    pub strides: [usize; 4],
}

/// What the scaled product of queries and keys goes through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Factor {
    /// Nothing.
    None,
    /// A multiplication.
    Mul(f32),
    /// A division.
    Div(f32),
}

/// `softmax(factor((q − q_zero) · (kᵀ − k_zero) · scale) + mask)`, rounded to integers, `· (v − v_zero) · value_scale`.
#[derive(Clone, Copy, Debug)]
pub struct IntAttention<'a> {
    /// Batch entries and heads.
    pub heads: [usize; 2],
    /// Query rows.
    pub queries: usize,
    /// Columns of the scores.
    pub keys: usize,
    /// Columns of q.
    pub depth: usize,
    /// Columns of v.
    pub value_depth: usize,
    /// Queries, `[…, queries, depth]`; columns are contiguous.
    pub q: IntHeads<'a>,
    /// Keys, `[…, depth, keys]`; rows or columns are contiguous.
    pub kt: IntHeads<'a>,
    /// Values, `[…, keys, value depth]`; columns are contiguous.
    pub v: IntHeads<'a>,
    /// The product of the scales of queries and keys.
    pub scale: f32,
    /// Applied to the scaled product.
    pub factor: Factor,
    /// Added to the scores: `[batch, heads, queries, keys]`, a stride of 0 repeats.
    pub mask: Option<HeadView<'a>>,
    /// The integers that the weights are rounded to: whether they are i8, else u8; one over the scale; the zero point.
    pub weights: (bool, f32, i32),
    /// The product of the scales of weights and values.
    pub value_scale: f32,
}

impl IntAttention<'_> {
    /// Refuses operands that are shorter than their strides say, and results that overlap.
    fn check(&self, y: usize, out: [usize; 3]) -> Result {
        let [batch, heads] = self.heads;
        let (queries, keys, depth, columns) = (self.queries, self.keys, self.depth, self.value_depth);
        require(NAME, batch * heads * queries * keys * depth * columns > 0, "a dimension is 0")?;
        product(NAME, &[batch, heads, queries, keys])?;
        product(NAME, &[keys, depth.max(columns)])?;
        for (name, heads_of, rows, columns, fits) in [
            ("q", &self.q, queries, depth, self.q.strides[3] == 1),
            ("keys", &self.kt, depth, keys, self.kt.strides[2..].contains(&1)),
            ("v", &self.v, keys, columns, self.v.strides[3] == 1),
        ] {
            let [b, h, r, c] = heads_of.strides;
            require(NAME, heads_of.data.ints(), "the operands are not integers")?;
            require(NAME, fits, "an operand is contiguous along neither axis that it may be")?;
            let need = span(NAME, &[(batch, b), (heads, h), (rows, r), (columns, c)])?;
            at_least(NAME, name, heads_of.data.len(), need)?;
        }
        if let Some(mask) = &self.mask {
            let [b, h, r] = mask.strides;
            let need = span(NAME, &[(batch, b), (heads, h), (queries, r), (keys, 1)])?;
            at_least(NAME, "mask", mask.data.len(), need)?;
        }
        at_least(NAME, "y", y, span(NAME, &[(batch, out[0]), (heads, out[1]), (queries, out[2]), (columns, 1)])?)?;
        require_apart(NAME, [batch, heads, queries, columns], out)
    }
}

/// Computes `y`, whose rows lie at `out_strides` over batch, head and query row.
///
/// # Errors
/// A dimension is 0, an operand is too short for its strides or no kernel reads their order, or rows of `y` overlap.
pub fn int_attention(exec: &Exec, p: &IntAttention<'_>, mut y: Target<'_>, out_strides: [usize; 3]) -> Result {
    p.check(y.len(), out_strides)?;
    y.require_results(NAME)?;
    let plan = Plan::new(exec, p);
    let heads = p.heads[0] * p.heads[1];
    let work = heads * p.queries * p.keys * (p.depth + p.value_depth) / 4;
    let (out, shared_len) = (y.shared(), plan.shared_len());
    with_scratch(heads * plan.packed_len() + shared_len, |scratch| {
        let (shared, packed) = scratch.split_at_mut(shared_len);
        let shared = plan.share(shared);
        let packed = SharedMut::new(packed);
        exec.pool().run_if(work >= SERIAL, 2 * heads, &|task| {
            let (head, values) = (task / 2, task % 2 == 1);
            // SAFETY: each task packs one operand of one head, into words of its own.
            unsafe {
                let (keys, of_values) = plan.split(packed.slice(head * plan.packed_len(), plan.packed_len()), values);
                if values { plan.pack_values(head, of_values) } else { plan.pack_keys(head, keys) }
            }
        });
        // Parts of the rows, so that few heads keep all threads busy.
        let parts = (8 * exec.threads()).div_ceil(heads).min(p.queries.div_ceil(2 * plan.kernel.mr)).max(1);
        exec.pool().run_if(work >= SERIAL, heads * parts, &|task| {
            let (head, rows) = (task / parts, part(p.queries, parts, task % parts));
            // SAFETY: packed above; tasks only read.
            let packed = unsafe { &*packed.slice(head * plan.packed_len(), plan.packed_len()) };
            let head = Head { plan: &plan, shared: &shared, packed, index: head, out, out_strides };
            head.rows(rows.start, rows.end);
        });
    });
    Ok(())
}

/// The sizes that follow from the shape and the kernel.
struct Plan<'a> {
    exec: &'a Exec,
    p: &'a IntAttention<'a>,
    kernel: &'static PanelKernel,
    keys: Columns,
    values: Columns,
    /// Steps of each product.
    key_steps: usize,
    value_steps: usize,
    sources: [Source; 3],
}

/// What all heads read.
struct Shared<'a> {
    /// Zeros, one for each key.
    none: &'a [i32],
    /// By column of the values.
    scales: &'a [f32],
    ones: &'a [i32],
}

impl<'a> Plan<'a> {
    fn new(exec: &'a Exec, p: &'a IntAttention<'a>) -> Plan<'a> {
        let kernel = PanelKernel::best(INT_KERNELS, exec.isa());
        let columns = |n| Columns { n, nr: kernel.nr, lanes: kernel.lanes };
        let steps = |depth: usize| depth.div_ceil(4).next_multiple_of(kernel.depth / 4);
        let (key_steps, value_steps) = (steps(p.depth), steps(p.keys));
        let sources = [&p.q, &p.kt, &p.v].map(|heads| Source(heads.data.ptr()));
        let (keys, values) = (columns(p.keys), columns(p.value_depth));
        Plan { exec, p, kernel, keys, values, key_steps, value_steps, sources }
    }

    fn shared_len(&self) -> usize {
        self.keys.padded() + 2 * self.p.value_depth
    }

    fn share<'s>(&self, scratch: &'s mut [f32]) -> Shared<'s> {
        let (none, rest) = scratch.split_at_mut(self.keys.padded());
        let (scales, ones) = rest.split_at_mut(self.p.value_depth);
        let (none, ones) = (integers(none), integers(ones));
        none.fill(0);
        scales.fill(self.p.value_scale);
        ones.fill(1);
        Shared { none, scales, ones }
    }

    /// Words of the panels and offsets of keys, then of values.
    fn lens(&self) -> [usize; 4] {
        let keys = self.key_steps * self.keys.padded();
        let values = self.value_steps * self.values.padded();
        [keys, self.keys.padded(), values, self.values.padded()].map(|len| len.next_multiple_of(LINE))
    }

    /// Words of both packed operands of a head, with their offsets.
    fn packed_len(&self) -> usize {
        self.lens().iter().sum()
    }

    /// The panels and offsets of keys and of values; of the other operand they are empty.
    fn split<'s>(&self, packed: &'s mut [f32], values: bool) -> ([&'s mut [f32]; 2], [&'s mut [f32]; 2]) {
        let [a, b, c, d] = self.lens();
        let (of_keys, of_values) = packed.split_at_mut(a + b);
        if values {
            let (panels, offsets) = of_values.split_at_mut(c);
            return ([&mut [], &mut []], [panels, &mut offsets[..d]]);
        }
        let (panels, offsets) = of_keys.split_at_mut(a);
        ([panels, offsets], [&mut [], &mut []])
    }

    /// Where a head of an operand starts.
    fn start(&self, operand: usize, strides: [usize; 4], head: usize) -> *const u8 {
        let heads = self.p.heads[1];
        self.sources[operand].ptr().wrapping_add(head / heads * strides[0] + head % heads * strides[1])
    }

    /// The zero point of an operand whose rows are read as u8.
    fn row_zero(&self) -> i32 {
        self.p.q.zero + if self.p.q.data.signed() { 128 } else { 0 }
    }

    /// The weights' zero point as u8.
    fn weight_zero(&self) -> i32 {
        self.p.weights.2 + if self.p.weights.0 { 128 } else { 0 }
    }

    /// What columns are combined with, and their zero point as i8.
    fn column(&self, heads: &IntHeads<'_>) -> (u8, i32) {
        if heads.data.signed() { (0, heads.zero) } else { (0x80, heads.zero - 128) }
    }

    fn pack_keys(&self, head: usize, [panels, offsets]: [&mut [f32]; 2]) {
        let (p, isa) = (self.p, self.exec.isa());
        let ((flip, zero), offsets) = (self.column(&p.kt), integers(offsets));
        offsets.fill(0);
        for panel in 0..self.keys.count() {
            let (width, valid, first) = (self.keys.width(panel), self.keys.valid(panel), panel * self.keys.nr);
            let words = &mut panels[first * self.key_steps..][..width * self.key_steps];
            let [.., row, column] = p.kt.strides;
            let source = self.start(1, p.kt.strides, head).wrapping_add(first * column);
            if column == 1 {
                isa.dispatch(Interleave { source, ld: row, k: p.depth, valid, width, flip, words });
            } else {
                // SAFETY: `check` covered `valid` columns of `depth` contiguous elements.
                unsafe { gather(source, (column, p.depth), valid, width, flip, words) };
            }
            self.offsets(words, width, (p.depth, self.row_zero(), zero), &mut offsets[first..first + valid]);
        }
    }

    fn pack_values(&self, head: usize, [panels, offsets]: [&mut [f32]; 2]) {
        let (p, isa) = (self.p, self.exec.isa());
        let ((flip, zero), offsets) = (self.column(&p.v), integers(offsets));
        for panel in 0..self.values.count() {
            let (width, valid, first) = (self.values.width(panel), self.values.valid(panel), panel * self.values.nr);
            let words = &mut panels[first * self.value_steps..][..width * self.value_steps];
            let source = self.start(2, p.v.strides, head).wrapping_add(first);
            isa.dispatch(Interleave { source, ld: p.v.strides[2], k: p.keys, valid, width, flip, words });
            self.offsets(words, width, (p.keys, self.weight_zero(), zero), &mut offsets[first..first + valid]);
        }
    }

    /// What is added to the sums of each column for both zero points, but for the part that depends on the row.
    fn offsets(&self, words: &[f32], width: usize, (k, a_zero, b_zero): (usize, i32, i32), sums: &mut [i32]) {
        // SAFETY: the kernel is that of the tier, and the panel has whole steps.
        unsafe { column_sums(self.exec.isa(), self.kernel, words, width, sums) };
        let whole = (k as i32).wrapping_mul(a_zero).wrapping_mul(b_zero);
        sums.iter_mut().for_each(|s| *s = whole.wrapping_sub(a_zero.wrapping_mul(*s)));
    }

    fn panels<'s>(&self, columns: Columns, run_len: usize, steps: usize, data: &'s [f32]) -> PanelsView<'s> {
        PanelsView { kernel: self.kernel, columns, runs: 1, run_len, steps, data, starts: &[] }
    }
}

/// Contiguous columns, `stride` bytes apart, into the words of a panel.
///
/// # Safety
/// `source` covers `valid` columns of `depth` bytes.
unsafe fn gather(
    source: *const u8,
    (stride, depth): (usize, usize),
    valid: usize,
    width: usize,
    flip: u8,
    words: &mut [f32],
) {
    words.fill(0.0);
    for c in 0..valid {
        // SAFETY: the caller vouches for the column.
        let column = unsafe { std::slice::from_raw_parts(source.wrapping_add(c * stride), depth) };
        for (step, bytes) in column.chunks(4).enumerate() {
            let mut word = [0u8; 4];
            word.iter_mut().zip(bytes).for_each(|(to, b)| *to = b ^ flip);
            words[step * width + c] = f32::from_bits(u32::from_le_bytes(word));
        }
    }
}

/// One head, with its packed keys and values.
struct Head<'a> {
    plan: &'a Plan<'a>,
    shared: &'a Shared<'a>,
    packed: &'a [f32],
    index: usize,
    out: Out,
    out_strides: [usize; 3],
}

/// Scratch of a block of rows.
struct Block<'a> {
    /// Query rows as u8.
    queries: *mut u8,
    scores: &'a mut [f32],
    /// One row of scores.
    row: &'a mut [f32],
    /// Rows of weights as u8.
    codes: *mut u8,
    /// By row: what its zero points add to its scores, then to its results.
    terms: &'a mut [i32],
    row_scales: &'a mut [f32],
}

impl Head<'_> {
    /// Computes the results of query rows `from..to`.
    fn rows(&self, from: usize, to: usize) {
        let (plan, mr) = (self.plan, self.plan.kernel.mr);
        let bytes = |rows: usize, pitch: usize| (rows * pitch + SLACK).div_ceil(4).next_multiple_of(LINE);
        let queries = bytes(mr, self.query_pitch());
        let codes = bytes(mr, self.code_pitch());
        let scores = (mr * plan.keys.count() * plan.keys.nr).next_multiple_of(LINE);
        let row = plan.p.keys.next_multiple_of(weights::GROUP);
        with_scratch(queries + codes + scores + row + 2 * mr, |scratch| {
            let (queries, rest) = scratch.split_at_mut(queries);
            let (codes, rest) = rest.split_at_mut(codes);
            let (scores, rest) = rest.split_at_mut(scores);
            let (row, rest) = rest.split_at_mut(row);
            let (terms, row_scales) = rest.split_at_mut(mr);
            let (queries, codes, terms) = (queries.as_mut_ptr().cast(), codes.as_mut_ptr().cast(), integers(terms));
            row_scales.fill(1.0);
            let mut block = Block { queries, scores, row, codes, terms, row_scales };
            let blocks = (to - from).div_ceil(mr);
            for i in 0..blocks {
                let rows = part(to - from, blocks, i);
                // SAFETY: the scratch was split for `mr` rows, and no block has more.
                unsafe {
                    self.multiply_keys(from + rows.start, rows.len(), &mut block);
                    self.soften(from + rows.start, rows.len(), &mut block);
                    self.multiply_values(from + rows.start, rows.len(), &block);
                }
            }
        });
    }

    /// Bytes between query rows, and between rows of weights, in the scratch.
    fn query_pitch(&self) -> usize {
        spread(self.plan.p.depth, self.plan.kernel.depth)
    }

    fn code_pitch(&self) -> usize {
        spread(self.plan.p.keys, self.plan.kernel.depth)
    }

    fn keys(&self) -> (PanelsView<'_>, &[i32]) {
        let (plan, [a, b, ..]) = (self.plan, self.plan.lens());
        let panels = plan.panels(plan.keys, plan.p.depth, plan.key_steps, &self.packed[..a]);
        (panels, weights::integers(&self.packed[a..a + b]))
    }

    fn values(&self) -> (PanelsView<'_>, &[i32]) {
        let (plan, [a, b, c, _]) = (self.plan, self.plan.lens());
        let panels = plan.panels(plan.values, plan.p.keys, plan.value_steps, &self.packed[a + b..][..c]);
        (panels, &weights::integers(&self.packed[a + b + c..])[..plan.p.value_depth])
    }

    /// Sums of products of query rows and keys, without any zero point.
    ///
    /// # Safety
    /// The block has room for the rows.
    unsafe fn multiply_keys(&self, first: usize, rows: usize, block: &mut Block<'_>) {
        let (plan, p, isa, pitch) = (self.plan, self.plan.p, self.plan.exec.isa(), self.query_pitch());
        let (flip, (_, zero)) = (p.q.data.flip(), plan.column(&p.kt));
        let start = plan.start(0, p.q.strides, self.index);
        for i in 0..rows {
            // SAFETY: `check` covered the query row; the scratch has `pitch` bytes for it.
            unsafe {
                let to = block.queries.add(i * pitch);
                copy_flipped(start.wrapping_add((first + i) * p.q.strides[2]), to, p.depth, flip);
                to.add(p.depth).write_bytes(0, pitch - p.depth);
                let sum = byte_sum(isa, std::slice::from_raw_parts(to, p.depth), 0);
                block.terms[i] = zero.wrapping_mul(sum).wrapping_neg();
            }
        }
        let (panels, _) = self.keys();
        let scores = block.scores.as_mut_ptr();
        if matches!(plan.kernel.body, Body::Tiles(_)) {
            let epilogue = Epilogue { offsets: &self.shared.none[..p.keys], ..Epilogue::default() };
            let (out, ld) = (Out::sums(scores.cast()), plan.keys.count() * plan.keys.nr);
            let sweep = Sweep { isa, panels, runs: &[0], epilogue: &epilogue, ints: true, signed: false, out, ld };
            let lines = Lines { a: block.queries, stride: pitch, count: rows, tail: std::ptr::null() };
            // SAFETY: the copied rows are whole steps; the scores are ours.
            return sweep
                .walk(|walk| (0..plan.keys.count()).for_each(|panel| unsafe { walk.rows(lines, (0, panel), 0) }));
        }
        for panel in 0..plan.keys.count() {
            let (b, width) = (panels.panel(0, panel).as_ptr().cast(), plan.keys.width(panel));
            let tile = Tile {
                a: block.queries,
                stride: pitch,
                runs: [0].as_ptr(),
                n_runs: 1,
                steps: plan.key_steps,
                b,
                ahead: ahead(b, plan.key_steps, width, 0),
                out: scores.wrapping_add(rows * panel * plan.keys.nr).cast(),
            };
            // SAFETY: as above; the kernel's tier was proven when it was chosen.
            unsafe { plan.kernel.tile(rows, width)(&tile) };
        }
    }

    /// Turns scores into weights.
    ///
    /// # Safety
    /// The block has the scores of the rows.
    unsafe fn soften(&self, first: usize, rows: usize, block: &mut Block<'_>) {
        let (plan, p) = (self.plan, self.plan.p);
        let dense = matches!(plan.kernel.body, Body::Tiles(_)).then_some(plan.keys.count() * plan.keys.nr);
        let (_, offsets) = self.keys();
        let (batch, head) = (self.index / p.heads[1], self.index % p.heads[1]);
        let mask = p.mask.map(|m| {
            let [b, h, r] = m.strides;
            (m.data.as_ptr().wrapping_add(batch * b + head * h + first * r), r)
        });
        let zero_of_values = plan.column(&p.v).1;
        plan.exec.isa().dispatch(Soften {
            scores: Scores { data: block.scores.as_ptr().cast(), columns: plan.keys, rows, dense },
            offsets,
            scale: p.scale,
            factor: p.factor,
            mask,
            row: &mut *block.row,
            out: Out::codes(block.codes, p.weights.1, plan.weight_zero()),
            pitch: self.code_pitch(),
            terms: &mut block.terms[..rows],
        });
        // The sums of the weights become what the values' zero point takes off the results.
        block.terms[..rows].iter_mut().for_each(|t| *t = t.wrapping_mul(zero_of_values));
    }

    /// Multiplies weights by values.
    ///
    /// # Safety
    /// The block has the weights of the rows.
    unsafe fn multiply_values(&self, first: usize, rows: usize, block: &Block<'_>) {
        let (plan, p) = (self.plan, self.plan.p);
        let (panels, offsets) = self.values();
        let params =
            RowParams { scales: &block.row_scales[..rows], zeros: &block.terms[..rows], column_sums: self.shared.ones };
        let epilogue = Epilogue { offsets, scales: self.shared.scales, rows: Some(params), ..Epilogue::default() };
        let [b, h, ld] = self.out_strides;
        let at = self.index / p.heads[1] * b + self.index % p.heads[1] * h + first * ld;
        // The rows of the block are those from 0 on, to whoever finishes them.
        let out = self.out.skip(at);
        let (isa, epilogue) = (plan.exec.isa(), &epilogue);
        let sweep = Sweep { isa, panels, runs: &[0], epilogue, ints: true, signed: false, out, ld };
        let lines = Lines { a: block.codes, stride: self.code_pitch(), count: rows, tail: std::ptr::null() };
        // SAFETY: rows of weights are whole steps; `check` covered the results, whose rows are apart.
        sweep.walk(|walk| (0..plan.values.count()).for_each(|panel| unsafe { walk.rows(lines, (0, panel), 0) }));
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
