//! The triangular factor through which the error of a rounded weight reaches those that are not rounded yet.
//!
//! With `H = F D Fᵀ`, F upper triangular with ones on its diagonal, the error of the outputs is `e H eᵀ = Σ_p D_p (e F)_p²`.
//! Entry p of `e F` is `e_p + Σ_{q<p} e_q F_qp`, so rounding `w_p + Σ_{q<p} e_q F_qp` to the nearest makes each term as small as
//! it can be. That is the update through the Cholesky factor of H⁻¹ of GPTQ (Frantar et al. 2022, arXiv 2210.17323), without the
//! inverse (Chee et al. 2023, arXiv 2307.13304, theorem 6: LDLQ is GPTQ).

use std::sync::{Mutex, PoisonError};

use narrowbit_kernels::Exec;

/// `H + damping = F D Fᵀ` of a positive definite matrix H, the rows and columns in the order of rounding.
#[derive(Debug)]
pub(super) struct Factor {
    /// The column of the weight that is rounded at each step.
    pub order: Vec<usize>,
    /// Step q to step p at `q · k + p`, for q < p; the rest is arbitrary.
    pub feedback: Vec<f32>,
    /// D, by step.
    pub pivots: Vec<f64>,
    /// What was added to the diagonal of H.
    pub damping: f64,
}

/// The share of the mean of the diagonal that is added to it (Frantar et al. 2022, section 3.3, step 3).
const DAMPING: f64 = 0.01;
/// Rows of a block of the factorization.
const BLOCK: usize = 64;
/// Terms of a sum that are taken at a time: two panels of 64 rows then stay in the second-level cache.
const DEPTH: usize = 256;

impl Factor {
    /// Factors the matrix that `entry` gives (symmetric, k × k), inputs with the greatest mean square first: their errors have
    /// the most inputs left to go to. `None` where nothing is positive or something is not finite.
    pub fn new(exec: &Exec, k: usize, entry: impl Fn(usize, usize) -> f64 + Sync) -> Option<Factor> {
        let diagonal: Vec<f64> = (0..k).map(|i| entry(i, i)).collect();
        let mean = diagonal.iter().sum::<f64>() / k as f64;
        if !(mean.is_finite() && mean > 0.0) {
            return None;
        }
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
        // Rounding errors of a matrix that is nearly singular can outweigh the damping.
        [DAMPING, 10.0 * DAMPING, 100.0 * DAMPING].into_iter().find_map(|share| {
            let damping = share * mean;
            // Elimination goes from the last step to the first one.
            let place = |i: usize| order[k - 1 - i];
            let mut l = vec![0f64; k * k];
            for (i, row) in l.chunks_exact_mut(k).enumerate() {
                // A dead input has nothing in common with others but rounding errors.
                let dead = |i: usize| diagonal[place(i)] <= 0.0;
                let of = |j: usize| if dead(i) || dead(j) { 0.0 } else { entry(place(i), place(j)) };
                row[..=i].iter_mut().enumerate().for_each(|(j, v)| *v = of(j));
                row[i] += damping;
            }
            cholesky(exec, &mut l, k).then(|| unit(&l, order.clone(), damping))
        })
    }
}

/// F and D from the Cholesky factor of the reversed matrix.
fn unit(l: &[f64], order: Vec<usize>, damping: f64) -> Factor {
    let k = order.len();
    let pivot = |p: usize| l[(k - 1 - p) * (k + 1)];
    let mut feedback = vec![0f32; k * k];
    for (q, row) in feedback.chunks_exact_mut(k).enumerate() {
        let from = &l[(k - 1 - q) * k..][..k];
        for (p, f) in row.iter_mut().enumerate().skip(q + 1) {
            *f = (from[k - 1 - p] / pivot(p)) as f32;
        }
    }
    Factor { order, feedback, pivots: (0..k).map(|p| pivot(p) * pivot(p)).collect(), damping }
}

/// Replaces the lower triangle of a symmetric matrix by its Cholesky factor, block by block on the threads of `exec`; false
/// where it is not positive definite. The order of each sum does not depend on the threads.
fn cholesky(exec: &Exec, a: &mut [f64], k: usize) -> bool {
    for start in (0..k).step_by(BLOCK) {
        let width = BLOCK.min(k - start);
        let (above, below) = a.split_at_mut((start + width) * k);
        let block = &mut above[start * k..];
        // What is left of the diagonal block, as it is in rows of its own.
        let left: Vec<f64> = block.chunks_exact(k).flat_map(|row| row[..start].iter().copied()).collect();
        subtract(block, k, start, (&left, width));
        if !small(block, k, start) {
            return false;
        }
        let diagonal = &*block;
        let rows: Vec<Mutex<&mut [f64]>> = below.chunks_mut(BLOCK * k).map(Mutex::new).collect();
        exec.pool().run(rows.len(), &|i| {
            let mut rows = rows[i].lock().unwrap_or_else(PoisonError::into_inner);
            subtract(&mut rows, k, start, (&left, width));
            for row in rows.chunks_exact_mut(k) {
                solve(row, diagonal, k, start, width);
            }
        });
    }
    true
}

/// Subtracts from `width` columns of rows, from `start` on, the product of what is left of them with `left`, `width` rows of
/// `start` elements each.
fn subtract(rows: &mut [f64], k: usize, start: usize, (left, width): (&[f64], usize)) {
    let mut sums = vec![0f64; rows.len() / k * width];
    for from in (0..start).step_by(DEPTH) {
        let depth = DEPTH.min(start - from);
        for (pair, sums) in rows.chunks(2 * k).zip(sums.chunks_mut(2 * width)) {
            let mut pairs = pair.chunks_exact(k).map(|r| &r[from..from + depth]);
            let (Some(a), b) = (pairs.next(), pairs.next()) else { continue };
            for j in (0..width).step_by(2) {
                let c = &left[j * start + from..][..depth];
                let d = if j + 1 < width { &left[(j + 1) * start + from..][..depth] } else { c };
                let s = dots(a, b.unwrap_or(a), c, d);
                sums[j] += s[0];
                if j + 1 < width {
                    sums[j + 1] += s[1];
                }
                if b.is_some() {
                    sums[width + j] += s[2];
                    if j + 1 < width {
                        sums[width + j + 1] += s[3];
                    }
                }
            }
        }
    }
    for (row, sums) in rows.chunks_exact_mut(k).zip(sums.chunks_exact(width)) {
        row[start..start + width].iter_mut().zip(sums).for_each(|(v, s)| *v -= s);
    }
}

/// `[a·c, a·d, b·c, b·d]`, in lanes that the compiler makes vectors of.
fn dots(a: &[f64], b: &[f64], c: &[f64], d: &[f64]) -> [f64; 4] {
    const LANES: usize = 4;
    let mut sums = [[0f64; LANES]; 4];
    let chunks = |x: &'_ [f64]| x.len() / LANES * LANES;
    let whole = chunks(a);
    let (wa, wb) = (a[..whole].chunks_exact(LANES), b[..whole].chunks_exact(LANES));
    let (wc, wd) = (c[..whole].chunks_exact(LANES), d[..whole].chunks_exact(LANES));
    for ((a, b), (c, d)) in wa.zip(wb).zip(wc.zip(wd)) {
        for l in 0..LANES {
            sums[0][l] += a[l] * c[l];
            sums[1][l] += a[l] * d[l];
            sums[2][l] += b[l] * c[l];
            sums[3][l] += b[l] * d[l];
        }
    }
    let mut all = sums.map(|s| (s[0] + s[2]) + (s[1] + s[3]));
    for i in whole..a.len() {
        all[0] += a[i] * c[i];
        all[1] += a[i] * d[i];
        all[2] += b[i] * c[i];
        all[3] += b[i] * d[i];
    }
    all
}

/// The factor of a diagonal block, in place; false where a pivot is not positive.
fn small(block: &mut [f64], k: usize, start: usize) -> bool {
    let n = block.len() / k;
    for i in 0..n {
        let (above, row) = block.split_at_mut(i * k);
        let row = &mut row[start..start + i + 1];
        for j in 0..i {
            let other = &above[j * k + start..][..j + 1];
            let sum: f64 = row[..j].iter().zip(other).map(|(a, b)| a * b).sum();
            row[j] = (row[j] - sum) / other[j];
        }
        let pivot = row[i] - row[..i].iter().map(|a| a * a).sum::<f64>();
        if !(pivot.is_finite() && pivot > 0.0) {
            return false;
        }
        row[i] = pivot.sqrt();
    }
    true
}

/// One row below a diagonal block: `x Lᵀ = row`.
fn solve(row: &mut [f64], diagonal: &[f64], k: usize, start: usize, width: usize) {
    let row = &mut row[start..start + width];
    for j in 0..width {
        let other = &diagonal[j * k + start..][..j + 1];
        let sum: f64 = row[..j].iter().zip(other).map(|(a, b)| a * b).sum();
        row[j] = (row[j] - sum) / other[j];
    }
}

#[cfg(test)]
mod tests {
    use narrowbit_kernels::Isa;

    use super::*;

    /// `X·Xᵀ` of some noise, with one dead input.
    pub(crate) fn matrix(k: usize, seed: u64) -> Vec<f64> {
        let mut r = narrowbit_tensor::SplitMix64::new(seed);
        let rows: Vec<Vec<f64>> = (0..2 * k)
            .map(|_| {
                let common = r.normal();
                (0..k)
                    .map(|i| if i == k / 3 { 0.0 } else { common + r.normal() * (1.0 + i as f64 / k as f64) })
                    .collect()
            })
            .collect();
        (0..k * k).map(|i| rows.iter().map(|x| x[i / k] * x[i % k]).sum()).collect()
    }

    #[test]
    fn factors_matrices_of_any_size_into_what_multiplies_to_them() {
        for k in [1, 2, 5, 63, 64, 65, 150, 331] {
            let h = matrix(k, k as u64);
            let exec = Exec::new(Isa::detect(), 2);
            let Some(f) = Factor::new(&exec, k, |i, j| h[i * k + j]) else {
                assert_eq!(k, 1, "the one input is dead");
                continue;
            };
            let at = |q: usize, p: usize| if q == p { 1.0 } else { f64::from(f.feedback[q * k + p]) };
            let largest = h.iter().fold(0f64, |m, v| m.max(v.abs()));
            for a in 0..k {
                for b in 0..=a {
                    let product: f64 = (a..k).map(|p| at(b, p) * f.pivots[p] * at(a, p)).sum();
                    let (i, j) = (f.order[a], f.order[b]);
                    let expected = h[i * k + j] + if a == b { f.damping } else { 0.0 };
                    // The feedback is kept in 32 bits.
                    assert!((product - expected).abs() < 1e-5 * largest, "{k}: {product} {expected}");
                }
            }
            let dead = f.order.iter().position(|&i| i == k / 3);
            assert_eq!(dead, Some(k - 1), "the weakest input comes last");
            assert!((0..k - 1).all(|q| f.feedback[q * k + k - 1] == 0.0), "nothing goes to a dead input");
        }
    }

    #[test]
    fn gives_the_same_bits_on_any_number_of_threads() {
        let k = 300;
        let h = matrix(k, 7);
        let of = |threads| Factor::new(&Exec::new(Isa::detect(), threads), k, |i, j| h[i * k + j]).unwrap();
        let (a, b) = (of(1), of(3));
        assert_eq!((a.order, a.feedback, a.pivots), (b.order, b.feedback, b.pivots));
    }

    #[test]
    fn refuses_what_is_not_positive_or_not_finite() {
        let exec = Exec::new(Isa::detect(), 1);
        assert!(Factor::new(&exec, 3, |_, _| 0.0).is_none());
        assert!(Factor::new(&exec, 3, |_, _| f64::NAN).is_none());
        assert!(Factor::new(&exec, 2, |i, j| if i == j { 1.0 } else { 50.0 }).is_none());
    }
}
