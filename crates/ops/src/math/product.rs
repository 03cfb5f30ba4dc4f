//! The matrix product that MatMul, Gemm and Einsum share.

use super::num::Num;

/// Columns and depth of the block of `b` that stays in the cache while all rows of `a` pass.
const BLOCK_COLUMNS: usize = 256;
const BLOCK_DEPTH: usize = 256;

/// `out += a · b` of row-major matrices: `a` is m×k, `b` k×n, `out` m×n; each element is
/// accumulated in ascending order of k. With `T` = `f64` over values of narrower types every
/// product is exact; with `T` = `i64` the result wraps, which any narrower integer keeps.
pub(crate) fn multiply<T: Num>(m: usize, k: usize, n: usize, a: &[T], b: &[T], out: &mut [T]) {
    if m == 0 || k == 0 || n == 0 {
        return;
    }
    for j in (0..n).step_by(BLOCK_COLUMNS) {
        let columns = BLOCK_COLUMNS.min(n - j);
        for p in (0..k).step_by(BLOCK_DEPTH) {
            let depth = BLOCK_DEPTH.min(k - p);
            for i in 0..m {
                let row = &a[i * k + p..][..depth];
                accumulate(row, &b[p * n + j..], n, &mut out[i * n + j..][..columns]);
            }
        }
    }
}

/// `acc += row · b` for the first columns of `b`, whose rows are `n` apart; four rows of `b` at a time.
fn accumulate<T: Num>(row: &[T], b: &[T], n: usize, acc: &mut [T]) {
    let w = acc.len();
    let mut fours = row.chunks_exact(4);
    let mut at = 0;
    for a in &mut fours {
        let (b0, b1) = (&b[at..][..w], &b[at + n..][..w]);
        let (b2, b3) = (&b[at + 2 * n..][..w], &b[at + 3 * n..][..w]);
        for (j, s) in acc.iter_mut().enumerate() {
            *s = s.plus(a[0].times(b0[j])).plus(a[1].times(b1[j])).plus(a[2].times(b2[j])).plus(a[3].times(b3[j]));
        }
        at += 4 * n;
    }
    for &a in fours.remainder() {
        acc.iter_mut().zip(&b[at..]).for_each(|(s, &v)| *s = s.plus(a.times(v)));
        at += n;
    }
}

/// The transpose of a row-major `rows`×`columns` matrix.
pub(crate) fn transpose<T: Copy>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| x[r * columns + c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_plain_sum_across_block_edges() {
        let (m, k, n) = (3, 261, 258);
        let a: Vec<i64> = (0..m * k).map(|i| (i * 7 % 23) as i64 - 11).collect();
        let b: Vec<i64> = (0..k * n).map(|i| (i * 5 % 19) as i64 - 9).collect();
        let mut out = vec![1i64; m * n];
        multiply(m, k, n, &a, &b, &mut out);
        for (i, j) in [(0, 0), (1, 255), (2, 256), (2, 257)] {
            let sum: i64 = (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum();
            assert_eq!(out[i * n + j], sum + 1);
        }
    }

    #[test]
    fn transposes_and_takes_empty_matrices() {
        assert_eq!(transpose(&[1, 2, 3, 4, 5, 6], 2, 3), [1, 4, 2, 5, 3, 6]);
        let mut out = vec![5f64; 2];
        multiply(1, 0, 2, &[], &[], &mut out);
        assert_eq!(out, [5.0, 5.0]);
    }
}
