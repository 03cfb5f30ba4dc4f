//! Fused attention: `softmax(q · kᵀ · scale + mask) · v`, one block of query rows at a
//! time, so that the scores stay in cache.

mod few;

use crate::buffer::{SharedMut, with_scratch};
use crate::error::{Result, at_least, product, require, span};
use crate::exec::Exec;
use crate::few::Few;
use crate::gemm::{Gemm, Lhs, MatrixView, PackedHeads, Rhs, gemm};
use crate::panel::packing::{Dense, Form, Packing};
use crate::panel::{Epilogue, Out};
use crate::reduce::softmax_row;
use crate::simd::{Kernel, Simd};

const NAME: &str = "attention";
/// Floats of scores that one block may take: half of an L2 cache of 1 MiB.
const SCORES: usize = 1 << 17;

/// Products of an attention of few queries below which one thread computes it.
const FEW_SERIAL: usize = 1 << 16;

/// A tensor of `[batch, heads, rows, columns]` in any order of the first three; columns
/// are contiguous.
#[derive(Clone, Copy, Debug)]
pub struct HeadView<'a> {
    /// The elements; (0, 0, 0, 0) is the first.
    pub data: &'a [f32],
    /// Elements from one batch entry, head and row to the next.
    pub strides: [usize; 3],
}

/// Shape of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionParams {
    /// Batch entries.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads` (equal without grouping).
    pub kv_heads: usize,
    /// Query rows.
    pub queries: usize,
    /// Key and value rows.
    pub keys: usize,
    /// Columns of q and k.
    pub depth: usize,
    /// Columns of v.
    pub value_depth: usize,
    /// Factor of the scores, usually 1/√depth.
    pub scale: f32,
    /// Whether query `i` only sees keys up to `i + keys − queries`.
    pub causal: bool,
    /// Whether a row whose weights are no numbers, as where a mask hides all keys by −∞, becomes a row of zeros; else its
    /// results are NaN.
    pub guarded: bool,
}

/// Computes `out = softmax(q · kᵀ · scale + mask) · v` per head, in parallel. `out` has
/// strides `out_strides` over batch, head and row; `mask`, if any, is added to the
/// scores (`[batch, heads, queries, keys]`, a stride of 0 repeats). `weights`, if any,
/// takes the results of the softmax, dense `[batch, heads, queries, keys]`.
///
/// # Errors
/// A slice is too short for its strides, output rows overlap, or `kv_heads` does not
/// divide `heads`.
pub fn attention(
    exec: &Exec,
    p: &AttentionParams,
    [q, k, v]: [HeadView<'_>; 3],
    mask: Option<HeadView<'_>>,
    weights: Option<&mut [f32]>,
    out: &mut [f32],
    out_strides: [usize; 3],
) -> Result {
    check(p, [q, k, v], mask, out, out_strides)?;
    if let Some(w) = &weights {
        at_least(NAME, "weights", w.len(), product(NAME, &[p.batch, p.heads, p.queries, p.keys])?)?;
    }
    if p.batch * p.heads * p.queries == 0 || p.value_depth == 0 {
        return Ok(());
    }
    require(NAME, p.keys > 0, "there must be at least one key")?;
    // Enough rows to use packed keys well, few enough to keep their scores in cache.
    let rows = (SCORES / p.keys).clamp(14, 112).min(p.queries);
    let blocks = p.queries.div_ceil(rows);
    // Blocks of equal size, so that the last is not a stub.
    let rows = p.queries.div_ceil(blocks);
    let blocks = p.queries.div_ceil(rows);
    let heads = p.batch * p.heads;
    // Long sequences with few heads also split the rows of a head between tasks.
    let parts = if exec.threads() == 1 { 1 } else { (4 * exec.threads()).div_ceil(heads).min(blocks) };
    let out = SharedMut::new(out);
    let weights = weights.map(SharedMut::new);
    let error = std::sync::Mutex::new(None);
    exec.pool().run(heads * parts, &|task| {
        let (head, part) = (task / parts, task % parts);
        let range = blocks * part / parts..blocks * (part + 1) / parts;
        let job = Head { exec, p, q, k, v, mask, weights, out, out_strides, rows };
        if let Err(e) = job.run(head / p.heads, head % p.heads, range) {
            *error.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(e);
        }
    });
    error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

/// As [`attention`] without weights, of few queries, as where a text grows by one token: keys and values are read where they
/// stand, once for all heads that share them, instead of being packed for a product. Sums are added up in another order, so that
/// the bits of a row are not those of [`attention`]; they are the same on every tier.
///
/// # Errors
/// As [`attention`].
pub fn attention_of_few(
    exec: &Exec,
    p: &AttentionParams,
    [q, k, v]: [HeadView<'_>; 3],
    mask: Option<HeadView<'_>>,
    out: &mut [f32],
    out_strides: [usize; 3],
) -> Result {
    check(p, [q, k, v], mask, out, out_strides)?;
    if p.batch * p.heads * p.queries == 0 || p.value_depth == 0 {
        return Ok(());
    }
    require(NAME, p.keys > 0, "there must be at least one key")?;
    let work = (p.batch * p.heads * p.queries * p.keys).saturating_mul(p.depth + p.value_depth);
    let job = Head { exec, p, q, k, v, mask, weights: None, out: SharedMut::new(out), out_strides, rows: p.queries };
    exec.pool().run_if(work >= FEW_SERIAL, p.batch * p.kv_heads, &|task| {
        job.run_few(task / p.kv_heads, task % p.kv_heads);
    });
    Ok(())
}

fn check(
    p: &AttentionParams,
    [q, k, v]: [HeadView<'_>; 3],
    mask: Option<HeadView<'_>>,
    out: &[f32],
    out_strides: [usize; 3],
) -> Result {
    let divides = p.kv_heads > 0 && p.heads.is_multiple_of(p.kv_heads);
    require(NAME, divides, "the key heads must divide the query heads")?;
    product(NAME, &[p.batch, p.heads, p.queries, p.keys.max(1)])?;
    product(NAME, &[p.keys, p.depth.max(p.value_depth)])?;
    let need = |strides: [usize; 3], heads: usize, rows: usize, columns: usize| {
        span(NAME, &[(p.batch, strides[0]), (heads, strides[1]), (rows, strides[2]), (columns, 1)])
    };
    at_least(NAME, "q", q.data.len(), need(q.strides, p.heads, p.queries, p.depth)?)?;
    at_least(NAME, "k", k.data.len(), need(k.strides, p.kv_heads, p.keys, p.depth)?)?;
    at_least(NAME, "v", v.data.len(), need(v.strides, p.kv_heads, p.keys, p.value_depth)?)?;
    at_least(NAME, "out", out.len(), need(out_strides, p.heads, p.queries, p.value_depth)?)?;
    if let Some(mask) = mask {
        at_least(NAME, "mask", mask.data.len(), need(mask.strides, p.heads, p.queries, p.keys)?)?;
    }
    require_apart(NAME, [p.batch, p.heads, p.queries, p.value_depth], out_strides)
}

/// Refuses results of `[batch, heads, rows, columns]` that overlap at these strides over all axes but the last.
pub(crate) fn require_apart(kernel: &'static str, dims: [usize; 4], [batch, head, row]: [usize; 3]) -> Result {
    let dims = [(batch, dims[0]), (head, dims[1]), (row, dims[2]), (1, dims[3])];
    let mut dims: Few<(usize, usize), 4> = dims.into_iter().filter(|&(_, len)| len > 1).collect();
    dims.sort_unstable();
    let mut covered = 1;
    for &(step, len) in dims.iter() {
        require(kernel, step >= covered, "the output rows overlap")?;
        covered += (len - 1) * step;
    }
    Ok(())
}

struct Head<'a> {
    exec: &'a Exec,
    p: &'a AttentionParams,
    q: HeadView<'a>,
    k: HeadView<'a>,
    v: HeadView<'a>,
    mask: Option<HeadView<'a>>,
    weights: Option<SharedMut<f32>>,
    out: SharedMut<f32>,
    out_strides: [usize; 3],
    rows: usize,
}

/// Where `(batch, head, row)` starts.
fn start(strides: [usize; 3], batch: usize, head: usize, row: usize) -> usize {
    batch * strides[0] + head * strides[1] + row * strides[2]
}

impl Head<'_> {
    /// Blocks `range` of the query rows of one head.
    fn run(&self, batch: usize, head: usize, range: std::ops::Range<usize>) -> Result {
        if self.exec.bf16() && self.exec.isa().multiplies_bf16() && self.p.depth > 0 {
            self.run_bf16(batch, head, range);
            return Ok(());
        }
        let p = self.p;
        let kv_head = head / (p.heads / p.kv_heads);
        let k = &self.k.data[start(self.k.strides, batch, kv_head, 0)..];
        let v = &self.v.data[start(self.v.strides, batch, kv_head, 0)..];
        let keys = MatrixView { data: k, row_stride: 1, col_stride: self.k.strides[2] };
        let values = MatrixView { data: v, row_stride: self.v.strides[2], col_stride: 1 };
        let (key_len, value_len) = PackedHeads::lens(self.exec, p.depth, p.keys, p.value_depth);
        with_scratch(key_len + value_len + self.rows * p.keys, |scratch| {
            let (packed, scores) = scratch.split_at_mut(key_len + value_len);
            let (key_panels, value_panels) = packed.split_at_mut(key_len);
            let heads = PackedHeads::new(self.exec, key_panels, keys, (p.depth, p.keys))?;
            let values = PackedHeads::new(self.exec, value_panels, values, (p.keys, p.value_depth))?;
            for block in range {
                let first = block * self.rows;
                let rows = self.rows.min(p.queries - first);
                let scores = self.scores(batch, head, (first, rows), scores);
                self.block(batch, head, (first, rows), &heads, &values, scores)?;
            }
            Ok(())
        })
    }

    /// Where the scores of a block of rows go: to who asked for the weights, or into the scratch.
    fn scores<'a>(
        &'a self,
        batch: usize,
        head: usize,
        (first, rows): (usize, usize),
        scratch: &'a mut [f32],
    ) -> &'a mut [f32] {
        let p = self.p;
        match self.weights {
            // SAFETY: each block of rows of each head is one task's; `attention` made
            // sure that all of them are in bounds.
            Some(w) => unsafe { w.slice(((batch * p.heads + head) * p.queries + first) * p.keys, rows * p.keys) },
            None => &mut scratch[..rows * p.keys],
        }
    }

    /// As [`Head::run`], with operands of both products rounded to bfloat16.
    fn run_bf16(&self, batch: usize, head: usize, range: std::ops::Range<usize>) {
        let (p, isa) = (self.p, self.exec.isa());
        let kv_head = head / (p.heads / p.kv_heads);
        let dense = |h: &HeadView<'_>, by_column: bool| {
            let start = h.data[start(h.strides, batch, kv_head, 0)..].as_ptr().cast();
            Dense { form: Form::F32, start, stride: h.strides[2], by_column }
        };
        let products = [Packing::new(isa, p.depth, p.keys, true), Packing::new(isa, p.keys, p.value_depth, true)];
        let words = products.map(|packing| packing.words());
        with_scratch(words[0] + words[1] + (self.rows + 1) * p.keys, |scratch| {
            let (keys, rest) = scratch.split_at_mut(words[0]);
            let (values, rest) = rest.split_at_mut(words[1]);
            let (scales, scores) = rest.split_at_mut(p.keys);
            scales.fill(p.scale);
            for (packing, from, to) in
                [(&products[0], dense(&self.k, true), &mut *keys), (&products[1], dense(&self.v, false), &mut *values)]
            {
                for panel in 0..packing.columns.count() {
                    // SAFETY: `check` covered keys and values.
                    unsafe { packing.pack(isa, from, panel, &mut to[packing.panel(panel)]) };
                }
            }
            for block in range {
                let first = block * self.rows;
                let rows = self.rows.min(p.queries - first);
                let scores = self.scores(batch, head, (first, rows), scores);
                let scaled = Epilogue { scales, ..Epilogue::default() };
                let query = |i: usize| {
                    self.q.data.as_ptr().wrapping_add(start(self.q.strides, batch, head, first + i)).cast::<u8>()
                };
                // SAFETY: `check` covered the queries and the output, whose rows are disjoint; the scores are ours.
                unsafe {
                    let out = (Out::floats(scores.as_mut_ptr()), 0, p.keys);
                    products[0].multiply(isa, (&query, Form::F32, rows), keys, &scaled, out);
                    self.soften(batch, head, first, scores);
                    let weights = scores.as_ptr();
                    let weight = |i: usize| weights.wrapping_add(i * p.keys).cast::<u8>();
                    let at = start(self.out_strides, batch, head, first);
                    let out = (Out::floats(self.out.ptr()), at, self.out_strides[2]);
                    products[1].multiply(isa, (&weight, Form::F32, rows), values, &Epilogue::default(), out);
                }
            }
        });
    }

    /// Turns the scores of the rows from `first` on into weights.
    fn soften(&self, batch: usize, head: usize, first: usize, scores: &mut [f32]) {
        let p = self.p;
        for (i, row) in scores.chunks_exact_mut(p.keys).enumerate() {
            let mask = self.mask.map(|mask| &mask.data[start(mask.strides, batch, head, first + i)..][..p.keys]);
            // Query i may see keys up to i + keys − queries.
            let visible =
                if p.causal { (first + i + 1 + p.keys).saturating_sub(p.queries).min(p.keys) } else { p.keys };
            self.exec.isa().dispatch(Weights { row, mask, visible, guarded: p.guarded });
        }
    }

    fn block(
        &self,
        batch: usize,
        head: usize,
        (first, rows): (usize, usize),
        keys: &PackedHeads<'_>,
        values: &PackedHeads<'_>,
        scores: &mut [f32],
    ) -> Result {
        let p = self.p;
        let at = start(self.q.strides, batch, head, first);
        let q = MatrixView { data: &self.q.data[at..], row_stride: self.q.strides[2], col_stride: 1 };
        let mut g = Gemm::new(rows, p.keys, p.depth, Lhs::View(q), Rhs::Borrowed(keys));
        g.alpha = p.scale;
        gemm(self.exec, &g, scores)?;
        self.soften(batch, head, first, scores);
        let at = start(self.out_strides, batch, head, first);
        let len = span(NAME, &[(rows, self.out_strides[2]), (p.value_depth, 1)])?;
        let view = MatrixView::row_major(scores, p.keys);
        let mut g = Gemm::new(rows, p.value_depth, p.keys, Lhs::View(view), Rhs::Borrowed(values));
        g.ldc = self.out_strides[2];
        // SAFETY: `check` made sure that rows of different heads and blocks are disjoint
        // and in bounds; the gaps between the rows of this block are never accessed, as
        // the product only touches its own columns.
        unsafe { crate::gemm::gemm_raw(self.exec, &g, self.out.ptr().wrapping_add(at), len) }
    }
}

/// Turns a row of scores into weights.
struct Weights<'a> {
    row: &'a mut [f32],
    mask: Option<&'a [f32]>,
    visible: usize,
    guarded: bool,
}

impl Kernel for Weights<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (seen, hidden) = self.row.split_at_mut(self.visible);
        hidden.fill(0.0);
        if let Some(mask) = self.mask {
            let mut i = 0;
            while i < seen.len() {
                let n = (seen.len() - i).min(S::LANES);
                // SAFETY: the mask is as long as the row, `n` lanes are left.
                unsafe {
                    let p = seen.as_mut_ptr().add(i);
                    s.store_n(p, s.add(s.load_n(p, n), s.load_n(mask.as_ptr().add(i), n)), n);
                }
                i += S::LANES;
            }
        }
        // SAFETY: the row is read and written in place.
        unsafe { softmax_row(s, seen.as_ptr(), seen.as_mut_ptr(), seen.len(), self.guarded) };
    }
}

/// The definition, in f64, for tests: dense `[batch, heads, rows, columns]` in and out.
///
/// # Errors
/// A slice has another length than the shape.
pub fn attention_reference(
    p: &AttentionParams,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    mask: Option<&[f32]>,
) -> Result<Vec<f32>> {
    let heads = p.batch * p.heads;
    let need = |rows: usize, heads: usize, columns: usize| product(NAME, &[p.batch, heads, rows, columns]);
    at_least(NAME, "q", q.len(), need(p.queries, p.heads, p.depth)?)?;
    at_least(NAME, "k", k.len(), need(p.keys, p.kv_heads, p.depth)?)?;
    at_least(NAME, "v", v.len(), need(p.keys, p.kv_heads, p.value_depth)?)?;
    let mut out = Vec::new();
    for head in 0..heads {
        let (batch, h) = (head / p.heads, head % p.heads);
        let kv = batch * p.kv_heads + h / (p.heads / p.kv_heads).max(1);
        for i in 0..p.queries {
            let scores: Vec<f64> = (0..p.keys)
                .map(|j| {
                    if p.causal && j + p.queries > i + p.keys {
                        return f64::NEG_INFINITY;
                    }
                    let dot: f64 = (0..p.depth)
                        .map(|d| {
                            f64::from(q[(head * p.queries + i) * p.depth + d])
                                * f64::from(k[(kv * p.keys + j) * p.depth + d])
                        })
                        .sum();
                    dot * f64::from(p.scale) + mask.map_or(0.0, |m| f64::from(m[(head * p.queries + i) * p.keys + j]))
                })
                .collect();
            let peak = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - peak).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..p.value_depth {
                let sum: f64 =
                    (0..p.keys).map(|j| weights[j] * f64::from(v[(kv * p.keys + j) * p.value_depth + d])).sum();
                out.push((sum / total) as f32);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, assert_close, execs};

    #[test]
    fn equals_the_definition_with_masks_groups_and_causality() {
        let base = AttentionParams {
            batch: 2,
            heads: 4,
            kv_heads: 4,
            queries: 37,
            keys: 37,
            depth: 16,
            value_depth: 16,
            scale: 0.25,
            causal: false,
            guarded: false,
        };
        let cases = [
            base,
            AttentionParams { kv_heads: 2, keys: 50, depth: 7, value_depth: 33, ..base },
            AttentionParams { causal: true, keys: 45, ..base },
            AttentionParams { batch: 1, heads: 1, kv_heads: 1, queries: 1, keys: 3, ..base },
            AttentionParams { batch: 1, heads: 1, kv_heads: 1, queries: 300, keys: 2000, ..base },
        ];
        let mut r = Random::new(21);
        for p in cases {
            let q = r.vec(p.batch * p.heads * p.queries * p.depth);
            let k = r.vec(p.batch * p.kv_heads * p.keys * p.depth);
            let v = r.vec(p.batch * p.kv_heads * p.keys * p.value_depth);
            let m = r.vec(p.batch * p.heads * p.queries * p.keys);
            for mask in [None, Some(&m[..])] {
                let want = attention_reference(&p, &q, &k, &v, mask).unwrap();
                for exec in execs() {
                    let view = |data, heads: usize, rows: usize, cols: usize| HeadView {
                        data,
                        strides: [heads * rows * cols, rows * cols, cols],
                    };
                    let (mut gq, mut gk, mut gv) = (Guarded::new(&q), Guarded::new(&k), Guarded::new(&v));
                    let views = [
                        view(&*gq.get(), p.heads, p.queries, p.depth),
                        view(&*gk.get(), p.kv_heads, p.keys, p.depth),
                        view(&*gv.get(), p.kv_heads, p.keys, p.value_depth),
                    ];
                    let mask = mask.map(|m| view(m, p.heads, p.queries, p.keys));
                    // Written as [batch, rows, heads, columns], as models go on with it.
                    let strides = [p.heads * p.queries * p.value_depth, p.value_depth, p.heads * p.value_depth];
                    let mut out = Guarded::new(&vec![0.0; want.len()]);
                    let mut weights = Guarded::new(&vec![0.0; m.len()]);
                    attention(&exec, &p, views, mask, Some(weights.get()), out.get(), strides).unwrap();
                    for row in weights.get().chunks(p.keys) {
                        // Rounding of each of the row's elements.
                        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5 * p.keys as f32);
                    }
                    let seen = out.get().to_vec();
                    attention(&exec, &p, views, mask, None, out.get(), strides).unwrap();
                    let out = out.get();
                    assert_eq!(seen, out, "the weights change nothing");
                    let mut got = Vec::new();
                    for b in 0..p.batch {
                        for h in 0..p.heads {
                            for i in 0..p.queries {
                                got.extend_from_slice(&out[start(strides, b, h, i)..][..p.value_depth]);
                            }
                        }
                    }
                    assert_close(&got, &want, 1e-5, &format!("{p:?} {exec:?}"));
                }
            }
        }
    }

    #[test]
    fn rounds_operands_to_bfloat16_where_it_may() {
        let base = AttentionParams {
            batch: 2,
            heads: 4,
            kv_heads: 2,
            queries: 37,
            keys: 45,
            depth: 16,
            value_depth: 33,
            scale: 0.25,
            causal: false,
            guarded: false,
        };
        let mut r = Random::new(22);
        for p in [base, AttentionParams { depth: 7, keys: 70, ..base }, AttentionParams { causal: true, ..base }] {
            let heads =
                [(p.heads, p.queries, p.depth), (p.kv_heads, p.keys, p.depth), (p.kv_heads, p.keys, p.value_depth)];
            let data = heads.map(|(heads, rows, columns)| r.vec(p.batch * heads * rows * columns));
            let mask = r.vec(p.batch * p.heads * p.queries * p.keys);
            let want = attention_reference(&p, &data[0], &data[1], &data[2], Some(&mask)).unwrap();
            for exec in execs().into_iter().map(|exec| exec.with_bf16(true)) {
                let mut guarded = [0, 1, 2].map(|i| Guarded::new(&data[i]));
                let [q, k, v] = guarded.each_mut().map(|g| &*g.get());
                let view = |data, i: usize| {
                    let (heads, rows, columns): (usize, usize, usize) = heads[i];
                    HeadView { data, strides: [heads * rows * columns, rows * columns, columns] }
                };
                let strides = [p.heads * p.queries * p.keys, p.queries * p.keys, p.keys];
                let mask = Some(HeadView { data: &mask, strides });
                let mut out = Guarded::new(&vec![0.0; want.len()]);
                let strides = [p.heads * p.queries * p.value_depth, p.queries * p.value_depth, p.value_depth];
                attention(&exec, &p, [view(q, 0), view(k, 1), view(v, 2)], mask, None, out.get(), strides).unwrap();
                // Four roundings by up to 2⁻⁹, of numbers up to 1.
                assert_close(out.get(), &want, 0.01, &format!("{p:?} {exec:?}"));
                let exact = !exec.isa().multiplies_bf16();
                let error = out.get().iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert_eq!(error < 1e-5, exact, "{error} {exec:?}");
            }
        }
    }

    #[test]
    fn makes_zeros_of_rows_whose_keys_are_all_hidden_where_guarded() {
        let p = AttentionParams {
            batch: 1,
            heads: 2,
            kv_heads: 2,
            queries: 3,
            keys: 19,
            depth: 4,
            value_depth: 5,
            scale: 0.5,
            causal: false,
            guarded: true,
        };
        let mut r = Random::new(23);
        let [q, k, v] = [3 * 4, 19 * 4, 19 * 5].map(|n| r.vec(2 * n));
        let mut mask = r.vec(3 * 19);
        mask[19..2 * 19].fill(f32::NEG_INFINITY);
        let view = |data, rows: usize, columns: usize| HeadView { data, strides: [0, rows * columns, columns] };
        let views = [view(&q, 3, 4), view(&k, 19, 4), view(&v, 19, 5)];
        for exec in execs() {
            let run = |guarded| {
                let (mut out, mask) = ([9f32; 30], HeadView { data: &mask, strides: [0, 0, 19] });
                attention(&exec, &AttentionParams { guarded, ..p }, views, Some(mask), None, &mut out, [0, 15, 5])
                    .unwrap();
                out
            };
            let (guarded, plain) = (run(true), run(false));
            for (i, (g, p)) in guarded.chunks(5).zip(plain.chunks(5)).enumerate() {
                match i % 3 {
                    1 => assert!(g.iter().all(|&x| x == 0.0) && p.iter().all(|x| x.is_nan()), "{exec:?}"),
                    _ => assert_eq!(g, p, "{exec:?}"),
                }
            }
        }
    }

    #[test]
    fn refuses_short_slices_and_overlapping_rows() {
        let p = AttentionParams {
            batch: 1,
            heads: 2,
            kv_heads: 1,
            queries: 3,
            keys: 3,
            depth: 2,
            value_depth: 2,
            scale: 1.0,
            causal: false,
            guarded: false,
        };
        let exec = Exec::new(crate::Isa::detect(), 1);
        let data = [0.0; 12];
        let view = HeadView { data: &data, strides: [12, 6, 2] };
        let mut out = [0.0; 12];
        assert!(attention(&exec, &p, [view; 3], None, None, &mut out, [12, 5, 2]).is_err());
        assert!(attention(&exec, &p, [view; 3], None, None, &mut out[..11], [12, 6, 2]).is_err());
        assert!(
            attention(&exec, &AttentionParams { kv_heads: 0, ..p }, [view; 3], None, None, &mut out, [12, 6, 2])
                .is_err()
        );
        assert!(attention(&exec, &p, [view; 3], None, Some(&mut [0.0; 17]), &mut out, [12, 6, 2]).is_err());
    }
}
