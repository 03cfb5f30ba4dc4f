//! Loops over one contiguous row.

use crate::math;
use crate::simd::{Simd, low_bits};

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

/// `y = softmax(x)` of one row; with no element above −∞ the row becomes NaN, as the
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
        let mut total = s.splat(0.0);
        let mut i = 0;
        while i + S::LANES <= len {
            let e = math::exp_nonpositive(s, s.sub(s.load(x.add(i)), peak));
            total = s.add(total, e);
            s.store(y.add(i), e);
            i += S::LANES;
        }
        let mut sum = s.sum(total);
        if i < len {
            let bits = low_bits(len - i);
            let e = math::exp_nonpositive(s, s.sub(s.load_bits(x.add(i), bits), peak));
            s.store_bits(y.add(i), e, bits);
            sum += s.sum(s.load_bits(y.add(i), bits));
        }
        let factor = s.splat(1.0 / sum);
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
