//! Products of two tensors of the program: attention's scores and what it makes of the values.

use std::borrow::Cow;

use narrowbit_kernels::gemm::BatchDim;
use narrowbit_kernels::panel::{IntMatMul, Rows, Target, panel_matmul};
use narrowbit_kernels::{Activation, Exec, KernelError};

use super::data::{Data, Int, Width, with_ints};
use super::parts;
use super::product::part;

/// Batches of products of matrices, `[…, m, k] · […, k, n]`, zero points taken off. Integers of more than 8 bits are
/// `Σ part · 256^i` of signed bytes on the kernels: parts of the left matrix are rows of their own, those of the right one
/// columns, whose sums are shifted and added. Additions wrap, so that the whole is exact wherever the whole fits 32 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Rows, depth and columns.
    pub shape: [usize; 3],
    /// Batch dimensions, outermost first: the extent, and the steps of both operands in matrices.
    pub batch: Vec<(usize, usize, usize)>,
    /// The code of zero in both operands.
    pub zeros: (i64, i64),
    /// The 8-bit parts of an integer of each operand, for sums in 32 bits on the kernels; `None` for plain loops in 64.
    pub parts: Option<(usize, usize)>,
    /// Where sums saturate.
    pub buffer: (i64, i64),
}

/// An operand as bytes.
enum Bytes<'a> {
    Signed(Cow<'a, [i8]>),
    Unsigned(&'a [u8]),
}

impl Bytes<'_> {
    fn rows(&self) -> Rows<'_> {
        match self {
            Bytes::Signed(x) => Rows::I8(x),
            Bytes::Unsigned(x) => Rows::U8(x),
        }
    }
}

impl Pair {
    /// How many products there are.
    pub fn count(&self) -> usize {
        self.batch.iter().map(|b| b.0).product()
    }

    pub(super) fn run(&self, exec: &Exec, a: &Data, b: &Data, width: Width) -> Result<Data, KernelError> {
        let [m, k, n] = self.shape;
        if self.count() * m * n == 0 {
            return Ok(Data::zeros(width, 0));
        }
        let Some((left, right)) = self.parts else {
            let mut y = Data::zeros(width, self.count() * m * n);
            let (a, b) = (a.to_i64s(), b.to_i64s());
            with_ints!(&mut y, y => self.plain(exec, &a, &b, y));
            return Ok(y);
        };
        let (a, a_zero) = bytes(a, self.zeros.0, left, m * k);
        // Parts of a row of `n` lie side by side.
        let (b, b_zero) = bytes(b, self.zeros.1, right, n);
        let steps = |&(len, a, b): &(usize, usize, usize)| BatchDim {
            len,
            a: a * m * k * left,
            b: b * k * n * right,
            c: 0,
            bias: 0,
        };
        let batch: Vec<BatchDim> = self.batch.iter().map(steps).collect();
        let product = IntMatMul {
            a: (a.rows(), a_zero),
            b: (b.rows(), b_zero),
            shape: [m * left, k, n * right],
            batch: &batch,
            scale: Default::default(),
            activation: Activation::None,
        };
        let mut sums = vec![0i32; self.count() * m * left * n * right];
        panel_matmul(exec, &product, Target::I32(&mut sums))?;
        Ok(Data::I32(if (left, right) == (1, 1) { sums } else { self.joined(exec, &sums, left, right) }))
    }

    /// The parts' sums, each shifted to its place and added.
    fn joined(&self, exec: &Exec, sums: &[i32], left: usize, right: usize) -> Vec<i32> {
        let [m, _, n] = self.shape;
        let mut y = vec![0i32; self.count() * m * n];
        parts(exec, &mut y, n, &|from, y| {
            for (i, y) in y.chunks_mut(n).enumerate() {
                let (matrix, row) = ((from / n + i) / m, (from / n + i) % m);
                for (p, q) in (0..left).flat_map(|p| (0..right).map(move |q| (p, q))) {
                    let at = ((matrix * left + p) * m + row) * n * right + q * n;
                    // What is shifted out is a multiple of 2³².
                    let Some(factor) = 1i32.checked_shl(8 * (p + q) as u32) else { continue };
                    for (y, s) in y.iter_mut().zip(&sums[at..]) {
                        *y = y.wrapping_add(s.wrapping_mul(factor));
                    }
                }
            }
        });
        y
    }

    fn plain<T: Int>(&self, exec: &Exec, a: &[i64], b: &[i64], y: &mut [T]) {
        let [m, k, n] = self.shape;
        parts(exec, y, n, &|from, y| {
            let mut sums = vec![0i64; n];
            for (i, y) in y.chunks_mut(n).enumerate() {
                let (matrix, row) = ((from / n + i) / m, (from / n + i) % m);
                let (at_a, at_b) = self.starts(matrix);
                let a = &a[(at_a * m + row) * k..][..k];
                sums.fill(0);
                for (x, b) in a.iter().zip(b[at_b * k * n..].chunks(n)) {
                    let x = x.wrapping_sub(self.zeros.0);
                    for (s, b) in sums.iter_mut().zip(b) {
                        *s = s.wrapping_add(x.wrapping_mul(b.wrapping_sub(self.zeros.1)));
                    }
                }
                for (y, s) in y.iter_mut().zip(&sums) {
                    *y = T::low((*s).clamp(self.buffer.0, self.buffer.1));
                }
            }
        });
    }

    /// Which matrices of the operands product `index` multiplies.
    fn starts(&self, mut index: usize) -> (usize, usize) {
        let (mut a, mut b) = (0, 0);
        for &(len, step_a, step_b) in self.batch.iter().rev() {
            a += index % len * step_a;
            b += index % len * step_b;
            index /= len;
        }
        (a, b)
    }
}

/// An operand in signed bytes, `count` parts of each `block` of integers behind each other, and its zero point; bytes as they
/// are where one part holds them.
fn bytes(x: &Data, zero: i64, count: usize, block: usize) -> (Bytes<'_>, i32) {
    match x {
        Data::I8(x) if count == 1 => return (Bytes::Signed(Cow::Borrowed(x)), zero as i32),
        Data::U8(x) if count == 1 => return (Bytes::Unsigned(x), zero as i32),
        _ => {}
    }
    let mut out = Vec::with_capacity(x.len() * count);
    with_ints!(x, x => for block in x.chunks(block.max(1)) {
        for at in 0..count {
            out.extend(block.iter().map(|v| part(v.wide().wrapping_sub(zero), at)));
        }
    });
    (Bytes::Signed(Cow::Owned(out)), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_kernels::Isa;

    /// Integers all over `-spread..spread`, the same at each run.
    fn integers(len: usize, spread: i64, seed: u64) -> Vec<i64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as i64 % (2 * spread) - spread
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn multiplies_in_parts_as_the_plain_loops_do_on_every_tier() {
        let all = (i64::MIN, i64::MAX);
        // The batches of the right operand repeat along the first dimension.
        for (batch, matrices) in [(vec![], (1, 1)), (vec![(2, 3, 0), (3, 1, 1)], (6, 3)), (vec![(4, 0, 1)], (1, 4))] {
            for shape @ [m, k, n] in [[1, 5, 3], [7, 33, 40], [50, 32, 50]] {
                for (wide_a, wide_b, parts) in [
                    (Width::I8, Width::I8, (1, 1)),
                    (Width::U16, Width::I8, (2, 1)),
                    (Width::U8, Width::I16, (1, 2)),
                    (Width::I32, Width::I16, (3, 2)),
                ] {
                    let spread = |w: Width| match w {
                        Width::I8 | Width::U8 => 128,
                        Width::I32 => 70_000,
                        _ => 1_025,
                    };
                    let of = |w: Width, len: usize, seed: u64| {
                        let values = integers(len, spread(w), seed);
                        let up = if matches!(w, Width::U8 | Width::U16) { spread(w) } else { 0 };
                        Data::of(w, &values.iter().map(|v| v + up).collect::<Vec<_>>())
                    };
                    let a = of(wide_a, matrices.0 * m * k, 3);
                    let b = of(wide_b, matrices.1 * k * n, 11);
                    let plain = Pair { shape, batch: batch.clone(), zeros: (5, -3), parts: None, buffer: all };
                    let exec = Exec::new(Isa::detect(), 2);
                    let want = plain.run(&exec, &a, &b, Width::I32).unwrap();
                    assert!(want.to_i64s().iter().any(|&v| v.abs() > 100));
                    for isa in Isa::available() {
                        let exec = Exec::new(isa, 2);
                        let found = Pair { parts: Some(parts), ..plain.clone() }.run(&exec, &a, &b, Width::I32);
                        assert_eq!(found.unwrap(), want, "{shape:?} {batch:?} {wide_a:?} {wide_b:?} {isa:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn saturates_sums_where_the_buffer_ends() {
        let pair = Pair { shape: [1, 2, 1], batch: vec![], zeros: (0, 0), parts: None, buffer: (-100, 99) };
        let run = |a: &[i64], b: &[i64]| {
            let exec = Exec::new(Isa::detect(), 1);
            pair.run(&exec, &Data::of(Width::I8, a), &Data::of(Width::I8, b), Width::I32).unwrap().to_i64s()[0]
        };
        assert_eq!((run(&[9, 9], &[9, 9]), run(&[9, -9], &[9, 100]), run(&[3, 4], &[5, 6])), (99, -100, 39));
    }
}
