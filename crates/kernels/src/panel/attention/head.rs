//! Blocks of the rows of one head.

use super::coded::{self, Coded};
use super::weights::{Scores, Soften};
use super::{LINE, Plan, Shared, ValueHeads, Weights, weights};
use crate::buffer::with_scratch;
use crate::panel::drive::{Lines, Sweep, part};
use crate::panel::epilogue::{Epilogue, RowParams};
use crate::panel::lines::{ByteSum, SLACK, copy_flipped, spread};
use crate::panel::matmul::integers;
use crate::panel::pack::PanelsView;
use crate::panel::packing::{Form, Packing};
use crate::panel::table::Body;
use crate::panel::target::Out;
use crate::panel::tile::{Run, Tile};
use crate::panel::vectors::ahead;
use crate::simd::{Kernel, Simd};

/// One head, with its packed keys and values.
pub(super) struct Head<'a> {
    pub plan: &'a Plan<'a>,
    pub shared: &'a Shared<'a>,
    pub packed: &'a [f32],
    pub index: usize,
    pub out: Out,
    pub out_strides: [usize; 3],
}

/// Scratch of a block of rows.
struct Block<'a> {
    /// Query rows as u8.
    queries: *mut u8,
    scores: &'a mut [f32],
    /// One row of scores, or those of [`coded::ROWS`] and of a mask.
    row: &'a mut [f32],
    /// Rows of weights: as u8, or as floats where the values are.
    weights: *mut u8,
    /// By row: what its zero points add to its scores, then to its results.
    terms: &'a mut [i32],
    row_scales: &'a mut [f32],
}

impl Head<'_> {
    /// Computes the results of query rows `from..to`.
    pub fn rows(&self, from: usize, to: usize) {
        let (plan, mr) = (self.plan, self.plan.kernel.mr);
        let bytes = |rows: usize, pitch: usize| (rows * pitch + SLACK).div_ceil(4).next_multiple_of(LINE);
        let queries = bytes(mr, self.query_pitch());
        let weights = bytes(mr, self.weight_pitch());
        let scores = (mr * plan.keys.count() * plan.keys.nr).next_multiple_of(LINE);
        let row_len = plan.p.keys.next_multiple_of(weights::GROUP);
        let row = row_len * if plan.p.coded.is_some() { coded::ROWS + 1 } else { 1 };
        with_scratch(queries + weights + scores + row + 2 * mr, |scratch| {
            let (queries, rest) = scratch.split_at_mut(queries);
            let (weights, rest) = rest.split_at_mut(weights);
            let (scores, rest) = rest.split_at_mut(scores);
            let (row, rest) = rest.split_at_mut(row);
            let (terms, row_scales) = rest.split_at_mut(mr);
            let (queries, terms) = (queries.as_mut_ptr().cast(), integers(terms));
            let weights = weights.as_mut_ptr().cast();
            row_scales.fill(1.0);
            let mut block = Block { queries, scores, row, weights, terms, row_scales };
            let blocks = (to - from).div_ceil(mr);
            for i in 0..blocks {
                let rows = part(to - from, blocks, i);
                // SAFETY: the scratch was split for `mr` rows, and no block has more.
                unsafe {
                    self.multiply_keys(from + rows.start, rows.len(), &mut block);
                    self.soften(from + rows.start, rows.len(), &mut block);
                    match &plan.floats {
                        Some(packing) => self.multiply_floats(from + rows.start, rows.len(), &block, packing),
                        None => self.multiply_values(from + rows.start, rows.len(), &block),
                    }
                }
            }
        });
    }

    /// Bytes between query rows, and between rows of weights, in the scratch.
    fn query_pitch(&self) -> usize {
        spread(self.plan.p.depth, self.plan.kernel.depth)
    }

    fn weight_pitch(&self) -> usize {
        match self.plan.floats {
            Some(_) => spread(4 * self.plan.p.keys.next_multiple_of(LINE), LINE),
            None => spread(self.plan.p.keys, self.plan.kernel.depth),
        }
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
        let step = p.q.strides[2];
        let start = plan.query(self.index).wrapping_add(first * step);
        let in_place = flip == 0 && p.depth.is_multiple_of(plan.kernel.depth);
        let (a, stride) = if in_place { (start, step) } else { (block.queries.cast_const(), pitch) };
        if !in_place {
            for i in 0..rows {
                // SAFETY: `check` covered the query row; the scratch has `pitch` bytes for it.
                unsafe {
                    let to = block.queries.add(i * pitch);
                    copy_flipped(start.wrapping_add(i * step), to, p.depth, flip);
                    to.add(p.depth).write_bytes(0, pitch - p.depth);
                }
            }
        }
        isa.dispatch(RowSums {
            a,
            stride,
            depth: p.depth,
            factor: zero.wrapping_neg(),
            sums: &mut block.terms[..rows],
        });
        let (panels, _) = self.keys();
        let scores = block.scores.as_mut_ptr();
        if matches!(plan.kernel.body, Body::Tiles(_)) {
            let epilogue = Epilogue { offsets: &self.shared.none[..p.keys], ..Epilogue::default() };
            let (out, ld) = (Out::sums(scores.cast()), plan.keys.count() * plan.keys.nr);
            let sweep = Sweep { isa, panels, runs: &[0], epilogue: &epilogue, ints: true, signed: false, out, ld };
            let lines = Lines { a, stride, count: rows, tail: std::ptr::null() };
            // SAFETY: the rows are whole steps; the scores are ours.
            return sweep
                .walk(|walk| (0..plan.keys.count()).for_each(|panel| unsafe { walk.rows(lines, (0, panel), 0) }));
        }
        for panel in 0..plan.keys.count() {
            let (b, width) = (panels.panel(0, panel).as_ptr().cast(), plan.keys.width(panel));
            let tile = Tile {
                a,
                stride,
                runs: &Run { at: 0, skip: 0 },
                n_runs: 1,
                steps: plan.key_steps,
                b,
                limits: panels.limits(0, panel),
                apart: std::ptr::null(),
                slow: 0.into(),
                ahead: ahead(b, plan.key_steps, width, 0),
                out: scores.wrapping_add(rows * panel * plan.keys.nr).cast(),
                end: std::ptr::null(),
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
        let zero_of_values = if let ValueHeads::Codes { v, .. } = &p.v { plan.column(v).1 } else { 0 };
        let out = match p.v.weights() {
            Some(weights) => Out::codes(block.weights, weights.inverse_scale(), plan.weight_zero()),
            None => Out::floats(block.weights.cast()),
        };
        plan.exec.isa().dispatch(Soften {
            scores: Scores { data: block.scores.as_ptr().cast(), columns: plan.keys, rows, dense },
            offsets,
            scale: p.scale,
            factor: p.factor,
            mask,
            row: &mut *block.row,
            out,
            pitch: self.weight_pitch() / out.size(),
            guarded: p.guarded,
            terms: &mut block.terms[..rows],
            coded: p.coded.as_ref().map(|scores| Coded::new(scores, batch, head, first)),
            scales: (p.v.weights() == Some(Weights::ByRow)).then_some(&mut block.row_scales[..rows]),
        });
        // The sums of the weights become what the values' zero point takes off the results.
        block.terms[..rows].iter_mut().for_each(|t| *t = t.wrapping_mul(zero_of_values));
    }

    /// Multiplies weights by values.
    ///
    /// # Safety
    /// The block has the weights of the rows.
    unsafe fn multiply_values(&self, first: usize, rows: usize, block: &Block<'_>) {
        let plan = self.plan;
        let (panels, offsets) = self.values();
        let params =
            RowParams { scales: &block.row_scales[..rows], zeros: &block.terms[..rows], column_sums: self.shared.ones };
        let epilogue = Epilogue { offsets, scales: self.shared.scales, rows: Some(params), ..Epilogue::default() };
        // The rows of the block are those from 0 on, to whoever finishes them.
        let (out, ld) = (self.out.skip(self.result(first)), self.out_strides[2]);
        let (isa, epilogue) = (plan.exec.isa(), &epilogue);
        let sweep = Sweep { isa, panels, runs: &[0], epilogue, ints: true, signed: false, out, ld };
        let lines = Lines { a: block.weights, stride: self.weight_pitch(), count: rows, tail: std::ptr::null() };
        // SAFETY: rows of weights are whole steps; `check` covered the results, whose rows are apart.
        sweep.walk(|walk| (0..plan.values.count()).for_each(|panel| unsafe { walk.rows(lines, (0, panel), 0) }));
    }

    /// Multiplies weights by values, both of them floats.
    ///
    /// # Safety
    /// The block has the weights of the rows.
    unsafe fn multiply_floats(&self, first: usize, rows: usize, block: &Block<'_>, packing: &Packing) {
        let (plan, [a, b, c, _]) = (self.plan, self.plan.lens());
        let (weights, pitch) = (block.weights, self.weight_pitch());
        let start = |i: usize| weights.wrapping_add(i * pitch).cast_const();
        let out = (self.out, self.result(first), self.out_strides[2]);
        let (panels, plain) = (&self.packed[a + b..][..c], Epilogue::default());
        // SAFETY: rows of weights have a float for each key; `check` covered the results, whose rows are apart.
        unsafe { packing.multiply(plan.exec.isa(), (&start, Form::F32, rows), panels, &plain, out) };
    }

    /// Where the results of query row `first` start.
    fn result(&self, first: usize) -> usize {
        let ([b, h, row], heads) = (self.out_strides, self.plan.p.heads[1]);
        self.index / heads * b + self.index % heads * h + first * row
    }
}

/// `factor` times the sum of each row of bytes.
struct RowSums<'a> {
    a: *const u8,
    stride: usize,
    depth: usize,
    factor: i32,
    sums: &'a mut [i32],
}

impl Kernel for RowSums<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, sum) in self.sums.iter_mut().enumerate() {
            // SAFETY: whoever made `self` vouches for the rows.
            let bytes = unsafe { std::slice::from_raw_parts(self.a.wrapping_add(i * self.stride), self.depth) };
            *sum = ByteSum { bytes, flip: 0 }.run(s).wrapping_mul(self.factor);
        }
    }
}
