//! Loops over one contiguous row.

use crate::math;
use crate::simd::{Simd, low_bits};

/// Chains of a sum that is the same on every tier: the lanes of the widest vectors.
pub(crate) const CHAINS: usize = 16;

/// Chains of a fold that is the same on every tier: two of the widest vectors, so that steps overlap.
const FOLDED: usize = 2 * CHAINS;

/// Folds a row with `step(accumulator, value)`: element `i` in chain `i % 32` on every tier, chains joined by `join` down to
/// one vector, the lower half with the upper one. [`Simd::sum`] and its like go on in that order, so that no bit depends on
/// the tier. Lanes beyond the end are never folded: they keep their accumulators.
#[inline(always)]
pub(crate) fn fold<S: Simd>(
    s: S,
    row: &[f32],
    start: S::F,
    step: impl Fn(S::F, S::F) -> S::F,
    join: impl Fn(S::F, S::F) -> S::F,
) -> S::F {
    // As many of them as hold the chains are used.
    let (mut chains, vectors) = ([start; FOLDED], FOLDED / S::LANES);
    let (p, whole) = (row.as_ptr(), row.len() - row.len() % FOLDED);
    // SAFETY: whole vectors, then the lanes that are left, of the row.
    unsafe {
        for i in (0..whole).step_by(FOLDED) {
            for (v, chain) in chains[..vectors].iter_mut().enumerate() {
                *chain = step(*chain, s.load(p.add(i + v * S::LANES)));
            }
        }
        let rest = row.len() - whole;
        // Over a number of vectors that the compiler knows, so that all chains are registers.
        for (v, chain) in chains[..vectors].iter_mut().enumerate() {
            let n = rest.saturating_sub(v * S::LANES).min(S::LANES);
            if n > 0 {
                let stepped = step(*chain, s.load_bits(p.add(whole + v * S::LANES), low_bits(n)));
                *chain = keep_first(s, stepped, *chain, n);
            }
        }
    }
    joined_vectors::<S, FOLDED>(chains, join)
}

/// The sum of the chains in the first `N / LANES` vectors, in the same order on every tier.
#[inline(always)]
pub(crate) fn sum_of_chains<S: Simd, const N: usize>(s: S, chains: [S::F; N]) -> f32 {
    s.sum(joined_vectors::<S, N>(
        chains,
        #[inline(always)]
        |a, b| s.add(a, b),
    ))
}

/// Joins the first `N / LANES` vectors, which hold `N <= 32` chains, to one: the lower half with the upper one.
#[inline(always)]
fn joined_vectors<S: Simd, const N: usize>(mut chains: [S::F; N], join: impl Fn(S::F, S::F) -> S::F) -> S::F {
    join_halves::<S, N, 16>(&mut chains, &join);
    join_halves::<S, N, 8>(&mut chains, &join);
    join_halves::<S, N, 4>(&mut chains, &join);
    join_halves::<S, N, 2>(&mut chains, &join);
    join_halves::<S, N, 1>(&mut chains, &join);
    chains[0]
}

/// Makes `HALF` vectors of twice as many, if there are as many.
#[inline(always)]
fn join_halves<S: Simd, const N: usize, const HALF: usize>(chains: &mut [S::F; N], join: &impl Fn(S::F, S::F) -> S::F) {
    if 2 * HALF <= N / S::LANES {
        for i in 0..HALF {
            chains[i] = join(chains[i], chains[i + HALF]);
        }
    }
}

/// The first `n` lanes of `x`, the others of `y`.
#[inline(always)]
fn keep_first<S: Simd>(s: S, x: S::F, y: S::F, n: usize) -> S::F {
    if n == S::LANES {
        return x;
    }
    let mut lanes = [0f32; 16];
    // SAFETY: at most 16 lanes.
    unsafe {
        s.store(lanes.as_mut_ptr(), y);
        s.store_n(lanes.as_mut_ptr(), x, n);
        s.load(lanes.as_ptr())
    }
}

/// `y = softmax(x)` of one row, the same bits on every tier; with no element above −∞ the row becomes NaN, as the
/// formula gives, or 0 where `guarded` says so.
///
/// # Safety
/// Both pointers cover `len` elements; they may be the same.
#[inline(always)]
pub(crate) unsafe fn softmax_row<S: Simd>(s: S, x: *const f32, y: *mut f32, len: usize, guarded: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        let row = std::slice::from_raw_parts(x, len);
        let peak = s.hmax(fold(
            s,
            row,
            s.splat(f32::NEG_INFINITY),
            #[inline(always)]
            |a, v| s.max(a, v),
            #[inline(always)]
            |a, b| s.max(a, b),
        ));
        let peak = s.splat(peak);
        let mut totals = [s.splat(0.0); CHAINS];
        let mut i = 0;
        while i + CHAINS <= len {
            for (lane, total) in (0..CHAINS).step_by(S::LANES).zip(&mut totals) {
                let e = math::exp_nonpositive(s, s.sub(s.load(x.add(i + lane)), peak));
                s.store(y.add(i + lane), e);
                *total = s.add(*total, e);
            }
            i += CHAINS;
        }
        for (lane, total) in (0..len - i).step_by(S::LANES).zip(&mut totals) {
            let (at, bits) = (i + lane, low_bits((len - i - lane).min(S::LANES)));
            let e = math::exp_nonpositive(s, s.sub(s.load_bits(x.add(at), bits), peak));
            s.store_bits(y.add(at), e, bits);
            // Read again, zeros stand behind the end.
            *total = s.add(*total, s.load_bits(y.add(at), bits));
        }
        let total = sum_of_chains(s, totals);
        if guarded && total.is_nan() {
            y.write_bytes(0, len);
            return;
        }
        let factor = s.splat(1.0 / total);
        crate::elementwise::map(
            s,
            y,
            y,
            len,
            #[inline(always)]
            |v| s.mul(v, factor),
        );
    }
}
