//! Attention on integers: the scores of a few query rows become weights, and the weights results, before the next rows
//! begin, so that neither scores nor weights leave the cache.
//!
//! The results are those of the product, the softmax and the second product one after the other, to the bit.

mod coded;
mod greatest;
mod head;
mod pack;
mod weights;

use super::Rows;
use super::drive::{SERIAL, Source, part};
use super::matmul::integers;
use super::pack::{Columns, PanelsView, limit_words};
use super::packing::Packing;
use super::table::{INT_KERNELS, PanelKernel};
use super::target::Target;
use crate::attention::{HeadView, require_apart};
use crate::buffer::{SharedMut, with_scratch};
use crate::error::{Result, at_least, product, require, span};
use crate::exec::Exec;
pub use coded::{CodeMask, CodeWeights, CodedScores, Rounded, Values};
use head::Head;

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

/// The integers that the weights of an attention, which sum up to 1 in each row, are rounded to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weights {
    /// One format for all: whether they are i8, else u8; one over the scale; the zero point.
    Fixed(bool, f32, i32),
    /// u8 without a zero point, and a scale for each row: its greatest weight is 255. `round_half_even(255 · exp(score −
    /// greatest score))`: a weight over the greatest one, without rounding either first. Long rows of small weights keep 8 bits.
    ByRow,
}

impl Weights {
    fn signed(self) -> bool {
        matches!(self, Weights::Fixed(true, ..))
    }

    fn inverse_scale(self) -> f32 {
        if let Weights::Fixed(_, inverse, _) = self { inverse } else { 255.0 }
    }

    fn zero(self) -> i32 {
        if let Weights::Fixed(.., zero) = self { zero } else { 0 }
    }
}

/// What the weights of an attention multiply.
#[derive(Clone, Copy, Debug)]
pub enum ValueHeads<'a> {
    /// Integers, `[…, keys, value depth]` with contiguous columns: the weights are rounded to integers, too.
    Codes {
        /// The values.
        v: IntHeads<'a>,
        /// The integers that the weights are rounded to.
        weights: Weights,
        /// The product of the scales of weights and values. By row that of the weights is 1/255: the greatest weight of each
        /// row, by which its results are multiplied, is found here.
        scale: f32,
    },
    /// Floats, `[…, keys, value depth]`: the weights stay floats, and so does the product.
    Floats(HeadView<'a>),
}

impl ValueHeads<'_> {
    /// What weights are rounded to.
    fn weights(&self) -> Option<Weights> {
        if let ValueHeads::Codes { weights, .. } = self { Some(*weights) } else { None }
    }
}

/// `softmax(factor((q − q_zero) · (kᵀ − k_zero) · scale) + mask) · v`, the weights rounded to integers where the values are.
#[derive(Clone, Copy, Debug)]
pub struct IntAttention<'a> {
    /// Batch entries and query heads.
    pub heads: [usize; 2],
    /// Heads of keys and values; a divisor of the query heads (equal without grouping).
    pub kv_heads: usize,
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
    /// Values.
    pub v: ValueHeads<'a>,
    /// The product of the scales of queries and keys.
    pub scale: f32,
    /// Applied to the scaled product.
    pub factor: Factor,
    /// Added to the scores: `[batch, heads, queries, keys]`, a stride of 0 repeats.
    pub mask: Option<HeadView<'a>>,
    /// Whether a row whose weights are no numbers, as where a mask hides all keys by −∞, becomes a row of zeros.
    pub guarded: bool,
    /// What happens to scores that are rounded to codes before the softmax, in the place of `factor`; the product's scale is
    /// then in steps of the first codes.
    pub coded: Option<CodedScores<'a>>,
}

impl IntAttention<'_> {
    /// Refuses operands that are shorter than their strides say, and results that overlap.
    fn check(&self, y: usize, out: [usize; 3]) -> Result {
        let [batch, heads] = self.heads;
        let (queries, keys, depth, columns) = (self.queries, self.keys, self.depth, self.value_depth);
        require(NAME, ![batch, heads, queries, keys, depth, columns].contains(&0), "a dimension is 0")?;
        product(NAME, &[batch, heads, queries, keys])?;
        product(NAME, &[batch, heads, keys, depth.max(columns)])?;
        let divides = self.kv_heads > 0 && heads.is_multiple_of(self.kv_heads);
        require(NAME, divides, "the key heads must divide the query heads")?;
        let ints = |name, of: &IntHeads<'_>, [heads, rows, columns]: [usize; 3], fits: bool| {
            let [b, h, r, c] = of.strides;
            require(NAME, of.data.ints(), "the operands are not integers")?;
            require(NAME, fits, "an operand is contiguous along neither axis that it may be")?;
            at_least(NAME, name, of.data.len(), span(NAME, &[(batch, b), (heads, h), (rows, r), (columns, c)])?)
        };
        ints("q", &self.q, [heads, queries, depth], self.q.strides[3] == 1)?;
        ints("keys", &self.kt, [self.kv_heads, depth, keys], self.kt.strides[2..].contains(&1))?;
        match &self.v {
            ValueHeads::Codes { v, .. } => ints("v", v, [self.kv_heads, keys, columns], v.strides[3] == 1)?,
            ValueHeads::Floats(HeadView { data, strides: [b, h, r] }) => {
                let need = span(NAME, &[(batch, *b), (self.kv_heads, *h), (keys, *r), (columns, 1)])?;
                at_least(NAME, "v", data.len(), need)?;
            }
        }
        if let Some(mask) = &self.mask {
            let [b, h, r] = mask.strides;
            let need = span(NAME, &[(batch, b), (heads, h), (queries, r), (keys, 1)])?;
            at_least(NAME, "mask", mask.data.len(), need)?;
        }
        if let Some(coded) = &self.coded {
            coded.check([batch, heads, queries, keys], self.mask.is_some())?;
            require(NAME, self.factor == Factor::None, "codes of scores have no factor")?;
            let fixed = matches!(self.v.weights(), Some(Weights::Fixed(..)));
            require(NAME, fixed && !self.guarded, "codes of scores have weights of one format, and all are numbers")?;
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
    let (heads, packed_heads) = (p.heads[0] * p.heads[1], p.heads[0] * p.kv_heads);
    let work = (heads * p.queries * p.keys).saturating_mul(p.depth + p.value_depth) / 4;
    let (out, shared_len) = (y.shared(), plan.shared_len());
    with_scratch(packed_heads * plan.packed_len() + shared_len, |scratch| {
        let (shared, packed) = scratch.split_at_mut(shared_len);
        let shared = plan.share(shared);
        let packed = SharedMut::new(packed);
        exec.pool().run_if(work >= SERIAL, 2 * packed_heads, &|task| {
            let (head, values) = (task / 2, task % 2 == 1);
            let [a, b, c, d] = plan.lens();
            let (skip, panels, offsets) = if values { (a + b, c, d) } else { (0, a, b) };
            // SAFETY: each task packs one operand of one head, into words of its own.
            let own = unsafe { packed.slice(head * plan.packed_len() + skip, panels + offsets) };
            let (panels, offsets) = own.split_at_mut(panels);
            if values { plan.pack_values(head, panels, offsets) } else { plan.pack_keys(head, panels, offsets) }
        });
        // Parts of the rows, so that few heads keep all threads busy.
        let parts = (8 * exec.threads()).div_ceil(heads).min(p.queries.div_ceil(2 * plan.kernel.mr)).max(1);
        exec.pool().run_if(work >= SERIAL, heads * parts, &|task| {
            let (head, rows) = (task / parts, part(p.queries, parts, task % parts));
            // SAFETY: packed above; tasks only read.
            let packed = unsafe { &*packed.slice(plan.key_head(head) * plan.packed_len(), plan.packed_len()) };
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
    /// Set where the values are floats: how they are packed.
    floats: Option<Packing>,
}

/// What all heads read.
struct Shared<'a> {
    /// Zeros, one for each key.
    none: &'a [i32],
    /// By column of values of integers.
    scales: &'a [f32],
    ones: &'a [i32],
}

impl<'a> Plan<'a> {
    fn new(exec: &'a Exec, p: &'a IntAttention<'a>) -> Plan<'a> {
        let kernel = PanelKernel::best(INT_KERNELS, exec.isa());
        let columns = |n| Columns { n, nr: kernel.nr, lanes: kernel.lanes };
        let steps = |depth: usize| depth.div_ceil(4).next_multiple_of(kernel.depth / 4);
        let (key_steps, value_steps) = (steps(p.depth), steps(p.keys));
        let (v, floats) = match &p.v {
            ValueHeads::Codes { v, .. } => (v.data.ptr(), None),
            ValueHeads::Floats(v) => {
                (v.data.as_ptr().cast(), Some(Packing::new(exec.isa(), p.keys, p.value_depth, exec.bf16())))
            }
        };
        let sources = [Source(p.q.data.ptr()), Source(p.kt.data.ptr()), Source(v)];
        let (keys, values) = (columns(p.keys), columns(p.value_depth));
        Plan { exec, p, kernel, keys, values, key_steps, value_steps, sources, floats }
    }

    fn shared_len(&self) -> usize {
        self.keys.padded() + 2 * self.p.value_depth
    }

    fn share<'s>(&self, scratch: &'s mut [f32]) -> Shared<'s> {
        let (none, rest) = scratch.split_at_mut(self.keys.padded());
        let (scales, ones) = rest.split_at_mut(self.p.value_depth);
        let (none, ones) = (integers(none), integers(ones));
        none.fill(0);
        if let ValueHeads::Codes { scale, .. } = self.p.v {
            scales.fill(scale);
        }
        ones.fill(1);
        Shared { none, scales, ones }
    }

    /// Words of the panels of keys, and of values of integers.
    fn key_words(&self) -> usize {
        self.key_steps * self.keys.padded()
    }

    fn value_words(&self) -> usize {
        self.value_steps * self.values.padded()
    }

    /// Words of the panels and their limits, and of the offsets, of keys, then of values.
    fn lens(&self) -> [usize; 4] {
        let keys = self.key_words() + limit_words(self.kernel, self.keys.count(), (1, self.key_steps));
        let (values, offsets) = match &self.floats {
            Some(packing) => (packing.words(), 0),
            None => {
                let limits = limit_words(self.kernel, self.values.count(), (1, self.value_steps));
                (self.value_words() + limits, self.values.padded())
            }
        };
        [keys, self.keys.padded(), values, offsets].map(|len| len.next_multiple_of(LINE))
    }

    /// Words of both packed operands of a head, with their offsets.
    fn packed_len(&self) -> usize {
        self.lens().iter().sum()
    }

    /// The head of keys and values that a query head reads, counted over all batch entries.
    fn key_head(&self, head: usize) -> usize {
        let [_, heads] = self.p.heads;
        head / heads * self.p.kv_heads + head % heads / (heads / self.p.kv_heads)
    }

    /// Where a query head starts.
    fn query(&self, head: usize) -> *const u8 {
        let heads = self.p.heads[1];
        let [batch, step, ..] = self.p.q.strides;
        self.sources[0].ptr().wrapping_add(head / heads * batch + head % heads * step)
    }

    /// Elements from the first head of keys or values, with these steps over batch entries and heads, to another one.
    fn skip(&self, [batch, step]: [usize; 2], head: usize) -> usize {
        let heads = self.p.kv_heads;
        head / heads * batch + head % heads * step
    }

    /// The zero point of an operand whose rows are read as u8.
    fn row_zero(&self) -> i32 {
        self.p.q.zero + if self.p.q.data.signed() { 128 } else { 0 }
    }

    /// The weights' zero point as u8.
    fn weight_zero(&self) -> i32 {
        self.p.v.weights().map_or(0, |w| w.zero() + if w.signed() { 128 } else { 0 })
    }

    /// What columns are combined with, and their zero point as i8.
    fn column(&self, heads: &IntHeads<'_>) -> (u8, i32) {
        if heads.data.signed() { (0, heads.zero) } else { (0x80, heads.zero - 128) }
    }

    /// Panels with their limits behind them.
    fn panels<'s>(&self, columns: Columns, run_len: usize, steps: usize, packed: &'s [f32]) -> PanelsView<'s> {
        let (data, limits) = packed.split_at(steps * columns.padded());
        let limits = &limits[..limit_words(self.kernel, columns.count(), (1, steps))];
        PanelsView { kernel: self.kernel, columns, runs: 1, run_len, steps, data, starts: &[], limits }
    }
}

#[cfg(test)]
mod tests;
