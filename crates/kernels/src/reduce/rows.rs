//! Loops over one contiguous row.

use crate::math;
use crate::simd::{Simd, low_bits};

/// Chains of a sum that is the same on every tier: the lanes of the widest vectors.
pub(crate) const CHAINS: usize = 16;

/// The sum of all chains, in the order of the widest vectors.
pub(crate) fn joined(mut chains: [f32; CHAINS]) -> f32 {
    let mut half = CHAINS / 2;
    while half > 0 {
        for i in 0..half {
            chains[i] += chains[i + half];
        }
        half /= 2;
    }
    chains[0]
}

/// Folds a row with `step(accumulator, value)` in two chains, joined by `join`. Lanes
/// beyond the end are never folded: the last vector keeps their accumulators.
#[inline(always)]
pub(crate) fn fold<S: Simd>(
    s: S,
    row: &[f32],
    start: S::F,
    step: impl Fn(S::F, S::F) -> S::F,
    join: impl Fn(S::F, S::F) -> S::F,
) -> S::F {
    let (mut a, mut b) = (start, start);
    let mut i = 0;
    let p = row.as_ptr();
    // SAFETY: whole vectors, then the lanes that are left, of the row.
    unsafe {
        while i + 2 * S::LANES <= row.len() {
            a = step(a, s.load(p.add(i)));
            b = step(b, s.load(p.add(i + S::LANES)));
            i += 2 * S::LANES;
        }
        while i < row.len() {
            let n = (row.len() - i).min(S::LANES);
            let stepped = step(a, s.load_bits(p.add(i), low_bits(n)));
            a = keep_first(s, stepped, a, n);
            i += S::LANES;
        }
    }
    join(a, b)
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
/// formula gives.
///
/// # Safety
/// Both pointers cover `len` elements; they may be the same.
#[inline(always)]
pub(crate) unsafe fn softmax_row<S: Simd>(s: S, x: *const f32, y: *mut f32, len: usize) {
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
        let mut chains = [0f32; CHAINS];
        for (lane, total) in (0..CHAINS).step_by(S::LANES).zip(totals) {
            s.store(chains.as_mut_ptr().add(lane), total);
        }
        let factor = s.splat(1.0 / joined(chains));
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
