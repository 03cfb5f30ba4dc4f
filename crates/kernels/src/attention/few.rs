//! Attention of few queries, as where a text grows by one token: keys and values are read once, where they stand, instead
//! of being packed for a product.

use super::{Head, start};
use crate::buffer::with_scratch;
use crate::reduce::sum_of_chains;
use crate::simd::{Kernel, Simd, low_bits};

/// Chains of a dot product: so many lanes have the widest vectors.
const CHAINS: usize = 16;
/// Columns of the values that are summed up at a time.
const COLUMNS: usize = 64;

impl Head<'_> {
    /// The query heads of one head of keys, all rows.
    pub(super) fn run_few(&self, batch: usize, kv_head: usize) {
        let group = self.p.heads / self.p.kv_heads;
        with_scratch(group * self.p.queries * self.p.keys, |scores| {
            let heads = kv_head * group..(kv_head + 1) * group;
            self.exec.isa().dispatch(Scores { head: self, batch, kv_head, scores });
            for (i, head) in heads.enumerate() {
                let rows = &mut scores[i * self.p.queries * self.p.keys..][..self.p.queries * self.p.keys];
                self.soften(batch, head, 0, rows);
            }
            self.exec.isa().dispatch(Sums { head: self, batch, kv_head, weights: scores });
        });
    }
}

/// `q · k · scale` for all rows of the heads that share keys.
struct Scores<'a> {
    head: &'a Head<'a>,
    batch: usize,
    kv_head: usize,
    scores: &'a mut [f32],
}

impl Kernel for Scores<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (h, p) = (self.head, self.head.p);
        let group = p.heads / p.kv_heads;
        for key in 0..p.keys {
            let k = &h.k.data[start(h.k.strides, self.batch, self.kv_head, key)..][..p.depth];
            for row in 0..group * p.queries {
                let (head, query) = (self.kv_head * group + row / p.queries, row % p.queries);
                let q = &h.q.data[start(h.q.strides, self.batch, head, query)..][..p.depth];
                self.scores[row * p.keys + key] = dot(s, q, k) * p.scale;
            }
        }
    }
}

/// The sum of products in sixteen chains: element `i` in chain `i % 16` on every tier.
#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let (mut chains, len) = ([s.splat(0.0); CHAINS], a.len().min(b.len()));
    let (a, b, whole) = (a.as_ptr(), b.as_ptr(), len - len % CHAINS);
    // SAFETY: whole vectors, then the lanes that are left, of both.
    unsafe {
        for i in (0..whole).step_by(CHAINS) {
            for (lane, chain) in (0..CHAINS).step_by(S::LANES).zip(&mut chains) {
                *chain = s.mul_add(s.load(a.add(i + lane)), s.load(b.add(i + lane)), *chain);
            }
        }
        for (lane, chain) in (0..len - whole).step_by(S::LANES).zip(&mut chains) {
            let (at, bits) = (whole + lane, low_bits((len - whole - lane).min(S::LANES)));
            *chain = s.mul_add(s.load_bits(a.add(at), bits), s.load_bits(b.add(at), bits), *chain);
        }
    }
    sum_of_chains::<S, CHAINS>(s, chains)
}

/// `weights · v` for all rows of the heads that share values, one key after the other.
struct Sums<'a> {
    head: &'a Head<'a>,
    batch: usize,
    kv_head: usize,
    weights: &'a [f32],
}

impl Kernel for Sums<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (h, p) = (self.head, self.head.p);
        let group = p.heads / p.kv_heads;
        for first in (0..p.value_depth).step_by(COLUMNS) {
            let columns = COLUMNS.min(p.value_depth - first);
            for row in 0..group * p.queries {
                let (head, query) = (self.kv_head * group + row / p.queries, row % p.queries);
                let weights = &self.weights[row * p.keys..][..p.keys];
                let mut sums = [s.splat(0.0); COLUMNS];
                for (key, &weight) in weights.iter().enumerate() {
                    let v = &h.v.data[start(h.v.strides, self.batch, self.kv_head, key) + first..][..columns];
                    let weight = s.splat(weight);
                    if columns == COLUMNS {
                        for (lane, sum) in (0..COLUMNS).step_by(S::LANES).zip(&mut sums) {
                            // SAFETY: a whole vector of the row.
                            *sum = s.mul_add(weight, unsafe { s.load(v.as_ptr().add(lane)) }, *sum);
                        }
                        continue;
                    }
                    for (lane, sum) in (0..columns).step_by(S::LANES).zip(&mut sums) {
                        let bits = low_bits((columns - lane).min(S::LANES));
                        // SAFETY: the lanes that the row has.
                        *sum = s.mul_add(weight, unsafe { s.load_bits(v.as_ptr().add(lane), bits) }, *sum);
                    }
                }
                // SAFETY: `check` made sure that rows are disjoint and in bounds, and each is one task's.
                let out = unsafe { h.out.slice(start(h.out_strides, self.batch, head, query) + first, columns) };
                for (lane, &sum) in (0..columns).step_by(S::LANES).zip(&sums) {
                    let bits = low_bits((columns - lane).min(S::LANES));
                    // SAFETY: the lanes that the row has.
                    unsafe { s.store_bits(out.as_mut_ptr().add(lane), sum, bits) };
                }
            }
        }
    }
}
