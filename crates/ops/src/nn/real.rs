//! Floating-point element types and the product kernel of this group.
//!
//! Long sums are accumulated in `f64` and rounded once to the element type, so that
//! the reference does not depend on an order of summation.

use half::{bf16, f16};
use narrowbit_tensor::{DType, Element};

/// A floating-point element that is computed in `f64`.
pub(super) trait Real: Element {
    fn get(self) -> f64;
    fn put(x: f64) -> Self;
}

macro_rules! reals {
    ($($t:ty: $x:ident => $get:expr, $put:expr;)*) => { $(impl Real for $t {
        #[inline]
        fn get(self) -> f64 { let $x = self; $get }
        #[inline]
        fn put($x: f64) -> $t { $put }
    })* };
}
reals! {
    f64: x => x, x;
    f32: x => f64::from(x), x as f32;
    f16: x => x.to_f64(), f16::from_f64(x);
    bf16: x => x.to_f64(), bf16::from_f64(x);
}

/// What rounds an `f64` to a floating-point type and back; types that are none stay as they are.
pub(super) fn rounder(dtype: DType) -> fn(f64) -> f64 {
    fn round<T: Real>(x: f64) -> f64 {
        T::put(x).get()
    }
    match dtype {
        DType::F32 => round::<f32>,
        DType::F16 => round::<f16>,
        DType::Bf16 => round::<bf16>,
        _ => round::<f64>,
    }
}

/// Evaluates `$body` with `$t` as the element type of the tensor `$x`, which is input `$i`.
macro_rules! with_real {
    ($x:expr, $i:expr, $t:ident => $body:expr) => {
        match $x.dtype() {
            narrowbit_tensor::DType::F32 => {
                type $t = f32;
                $body
            }
            narrowbit_tensor::DType::F64 => {
                type $t = f64;
                $body
            }
            narrowbit_tensor::DType::F16 => {
                type $t = half::f16;
                $body
            }
            narrowbit_tensor::DType::Bf16 => {
                type $t = half::bf16;
                $body
            }
            d => Err(narrowbit_ir::OpError::input($i, d.name(), "f32, f64, f16 or bf16")),
        }
    };
}
pub(super) use with_real;

/// Rows of a weight matrix, packed for [`Packed::mul`].
pub(super) struct Packed {
    /// Blocks of [`LANES`] rows, element by element; the last block is padded with zeros.
    blocks: Vec<f64>,
    rows: usize,
    cols: usize,
}

const LANES: usize = 4;

impl Packed {
    /// Packs `rows`·`cols` weights, given by row and column.
    pub(super) fn new(rows: usize, cols: usize, w: impl Fn(usize, usize) -> f64) -> Packed {
        let mut blocks = vec![0.0; rows.div_ceil(LANES) * LANES * cols];
        for r in 0..rows {
            let block = &mut blocks[r / LANES * LANES * cols..];
            for c in 0..cols {
                block[c * LANES + r % LANES] = w(r, c);
            }
        }
        Packed { blocks, rows, cols }
    }

    /// Calls `out(i, r, Σ_c x[i][c] · w[r][c])` for the vectors in `xs`, one after the other.
    pub(super) fn mul(&self, xs: &[f64], mut out: impl FnMut(usize, usize, f64)) {
        if self.cols == 0 {
            return;
        }
        let n = xs.len() / self.cols;
        for (b, block) in self.blocks.chunks_exact(LANES * self.cols).enumerate() {
            let rows = LANES.min(self.rows - b * LANES);
            let mut i = 0;
            while i < n {
                // Two vectors at a time: each weight is read once for both.
                let x0 = &xs[i * self.cols..(i + 1) * self.cols];
                let two = i + 1 < n;
                let x1 = if two { &xs[(i + 1) * self.cols..(i + 2) * self.cols] } else { x0 };
                let (s0, s1) = dot2(block, x0, x1);
                for r in 0..rows {
                    out(i, b * LANES + r, s0[r]);
                    if two {
                        out(i + 1, b * LANES + r, s1[r]);
                    }
                }
                i += 2;
            }
        }
    }
}

#[inline]
fn dot2(block: &[f64], x0: &[f64], x1: &[f64]) -> ([f64; LANES], [f64; LANES]) {
    let (mut s0, mut s1) = ([0.0; LANES], [0.0; LANES]);
    for ((w, &a), &b) in block.chunks_exact(LANES).zip(x0).zip(x1) {
        // Spelled out: loops over the lanes are not unrolled at the optimisation level of tests.
        let [w0, w1, w2, w3] = [w[0], w[1], w[2], w[3]];
        s0[0] += w0 * a;
        s0[1] += w1 * a;
        s0[2] += w2 * a;
        s0[3] += w3 * a;
        s1[0] += w0 * b;
        s1[1] += w1 * b;
        s1[2] += w2 * b;
        s1[3] += w3 * b;
    }
    (s0, s1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplies_odd_sizes() {
        for (rows, cols, n) in [(1, 1, 1), (5, 3, 2), (4, 2, 3), (7, 5, 1)] {
            let w = |r: usize, c: usize| (r * 7 + c * 3 + 1) as f64;
            let xs: Vec<f64> = (0..n * cols).map(|i| i as f64 - 2.0).collect();
            let mut seen = 0;
            Packed::new(rows, cols, w).mul(&xs, |i, r, s| {
                let expected: f64 = (0..cols).map(|c| xs[i * cols + c] * w(r, c)).sum();
                assert_eq!(s, expected, "{rows}x{cols}, vector {i}, row {r}");
                seen += 1;
            });
            assert_eq!(seen, n * rows);
        }
    }
}
