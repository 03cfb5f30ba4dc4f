//! Products of two float activations as bfloat16, or of numbers of fewer bits: the right one is packed on the way.

use super::drive::{SERIAL, Source, part};
use super::epilogue::Epilogue;
use super::packing::{Dense, Elements, Packing, multiplies_bf16};
use super::target::Target;
use crate::activation::Activation;
use crate::buffer::{SharedMut, with_scratch};
use crate::error::{Result, at_least, exact, product, product_of, require, span_of};
use crate::exec::Exec;
use crate::gemm::BatchDim;

const NAME: &str = "panel float matmul";

/// `activation(a · b · scale)` over batches of row-major matrices. The operands are multiplied as bfloat16 where both
/// are numbers of it or [`Exec::bf16`] allows that, and the instruction set has it; else as floats.
#[derive(Clone, Copy, Debug)]
pub struct FloatMatMul<'a> {
    /// The left matrices, `m × k`.
    pub a: Elements<'a>,
    /// The right matrices, `k × n`.
    pub b: Elements<'a>,
    /// Rows, depth and columns.
    pub shape: [usize; 3],
    /// Batch dimensions, outermost first; none for a single product.
    pub batch: &'a [BatchDim],
    /// Factor of the product.
    pub scale: f32,
    /// Applied last.
    pub activation: Activation,
}

impl FloatMatMul<'_> {
    fn check(&self, y: usize) -> Result<usize> {
        let [m, k, n] = self.shape;
        require(NAME, m > 0 && k > 0 && n > 0, "a dimension is 0")?;
        product(NAME, &[m, k, n])?;
        let reach = |step: fn(&BatchDim) -> usize, tile: usize| -> Result<usize> {
            Ok(span_of(NAME, self.batch.iter().map(|dim| (dim.len, step(dim))))?.saturating_add(tile - 1))
        };
        let batches = product_of(NAME, self.batch.iter().map(|dim| dim.len))?;
        exact(NAME, "y", y, product(NAME, &[batches, m, n])?)?;
        if batches > 0 {
            at_least(NAME, "a", self.a.len(), reach(|dim| dim.a, product(NAME, &[m, k])?)?)?;
            at_least(NAME, "b", self.b.len(), reach(|dim| dim.b, product(NAME, &[k, n])?)?)?;
        }
        Ok(batches)
    }

    /// Where the matrices of product `index` start, in elements.
    fn starts(&self, mut index: usize) -> (usize, usize) {
        let (mut a, mut b) = (0, 0);
        for dim in self.batch.iter().rev() {
            a += index % dim.len * dim.a;
            b += index % dim.len * dim.b;
            index /= dim.len;
        }
        (a, b)
    }
}

/// Computes dense `y`, product after product.
///
/// # Errors
/// A dimension is 0, or a slice is too short.
pub fn panel_float_matmul(exec: &Exec, p: &FloatMatMul<'_>, y: &mut [f32]) -> Result {
    let batches = p.check(y.len())?;
    if batches == 0 {
        return Ok(());
    }
    let [m, k, n] = p.shape;
    let packing = Packing::new(exec.isa(), k, n, multiplies_bf16(exec, &[p.a, p.b]));
    let per_matrix = packing.words();
    let (a, b) = (Source(p.a.ptr()), Source(p.b.ptr()));
    let (from_a, from_b) = (p.a.form(), p.b.form());
    let work = product(NAME, &[batches, m, n, k])?;
    let panels = packing.columns.count();
    let out = Target::F32(y).shared();
    with_scratch(product(NAME, &[batches, per_matrix])? + n, |scratch| {
        let (scales, packed) = scratch.split_at_mut(n);
        let packed = &mut packed[..batches * per_matrix];
        scales.fill(p.scale);
        let (scales, to) = (&*scales, SharedMut::new(packed));
        exec.pool().run_if(work >= SERIAL, batches * panels, &|task| {
            let (index, panel) = (task / panels, task % panels);
            let start = b.ptr().wrapping_add(p.starts(index).1 * from_b.size());
            let range = packing.panel(panel);
            // SAFETY: each task has a panel; `check` covered the operand.
            unsafe {
                let words = to.slice(index * per_matrix + range.start, range.len());
                packing.pack(exec.isa(), Dense { form: from_b, start, stride: n, by_column: false }, panel, words);
            }
        });
        let parts = (4 * exec.threads()).div_ceil(batches).min(m.div_ceil(2 * packing.kernel.mr)).max(1);
        exec.pool().run_if(work >= SERIAL, batches * parts, &|task| {
            let (index, rows) = (task / parts, part(m, parts, task % parts));
            let epilogue = Epilogue { scales, activation: p.activation, ..Epilogue::default() };
            let first = p.starts(index).0 + rows.start * k;
            let start = |i: usize| a.ptr().wrapping_add((first + i * k) * from_a.size());
            // SAFETY: packed above; `check` covered the operand; tasks write disjoint rows.
            unsafe {
                let data = &*to.slice(index * per_matrix, per_matrix);
                let at = (index * m + rows.start) * n;
                packing.multiply(exec.isa(), (&start, from_a, rows.len()), data, &epilogue, (out, at, n));
            }
        });
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::{Code, widen};
    use crate::testing::{Guarded, Random, assert_close, execs};

    fn rounded(x: f32) -> f32 {
        half::bf16::from_f32(x).to_f32()
    }

    fn reference(a: &[f32], b: &[f32], [m, k, n]: [usize; 3], scale: f32) -> Vec<f32> {
        let sum = |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum::<f64>();
        (0..m * n).map(|at| (sum(at / n, at % n) * f64::from(scale)) as f32).collect()
    }

    #[test]
    fn equals_the_definition_at_odd_sizes() {
        let mut r = Random::new(31);
        for shape in [[1, 1, 1], [3, 5, 7], [17, 33, 31], [29, 64, 70], [15, 2, 33], [40, 197, 64]] {
            let [m, k, n] = shape;
            let (a, b) = (r.vec(2 * m * k), r.vec(2 * k * n));
            let batch = [BatchDim { len: 2, a: m * k, b: k * n, c: m * n, bias: 0 }];
            let want = |f: fn(f32) -> f32| -> Vec<f32> {
                let [a, b] = [&a, &b].map(|x| x.iter().map(|&x| f(x)).collect::<Vec<f32>>());
                let one = |i: usize| reference(&a[i * m * k..][..m * k], &b[i * k * n..][..k * n], shape, 0.5);
                [one(0), one(1)].concat()
            };
            for bf16 in [false, true] {
                for exec in execs().into_iter().map(|exec| exec.with_bf16(bf16)) {
                    let (mut ga, mut gb) = (Guarded::new(&a), Guarded::new(&b));
                    let mut y = Guarded::new(&vec![0f32; 2 * m * n]);
                    let (a, b) = (Elements::F32(ga.get()), Elements::F32(gb.get()));
                    let p = FloatMatMul { a, b, shape, batch: &batch, scale: 0.5, activation: Activation::None };
                    panel_float_matmul(&exec, &p, y.get()).unwrap();
                    let want = if bf16 && exec.isa().multiplies_bf16() { want(rounded) } else { want(|x| x) };
                    assert_close(y.get(), &want, 1e-5, &format!("{bf16} {shape:?} {exec:?}"));
                }
            }
        }
    }

    #[test]
    fn multiplies_codes_exactly() {
        let mut r = Random::new(32);
        let shape = [19, 45, 37];
        let [m, k, n] = shape;
        let mut codes = |len: usize| -> Vec<u8> {
            // Without NaN, and small enough for exact sums.
            (0..len).map(|_| (0x28 + r.below(0x18)) as u8 | (r.below(2) as u8) << 7).collect()
        };
        let (a, b) = (codes(m * k), codes(k * n));
        for exec in execs() {
            let floats = |x: &[u8]| {
                let mut y = vec![0f32; x.len()];
                widen(&exec, Code::E4m3, x, &mut y).unwrap();
                y
            };
            let want = reference(&floats(&a), &floats(&b), shape, 1.0);
            let (mut ga, mut gb) = (Guarded::new(&a), Guarded::new(&b));
            let mut y = Guarded::new(&vec![0f32; m * n]);
            let coded = |x| Elements::Coded(Code::E4m3, x);
            let (a, b) = (coded(&*ga.get()), coded(&*gb.get()));
            let p = FloatMatMul { a, b, shape, batch: &[], scale: 1.0, activation: Activation::None };
            panel_float_matmul(&exec, &p, y.get()).unwrap();
            assert_eq!(y.get(), want, "{exec:?}");
        }
    }

    #[test]
    fn refuses_short_slices() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let x = [0f32; 6];
        let (a, b) = (Elements::F32(&x), Elements::F32(&x));
        let p = FloatMatMul { a, b, shape: [2, 3, 2], batch: &[], scale: 1.0, activation: Activation::None };
        assert!(panel_float_matmul(&exec, &p, &mut [0.0; 4]).is_ok());
        assert!(panel_float_matmul(&exec, &p, &mut [0.0; 5]).is_err());
        assert!(panel_float_matmul(&exec, &FloatMatMul { shape: [2, 4, 2], ..p }, &mut [0.0; 4]).is_err());
        assert!(panel_float_matmul(&exec, &FloatMatMul { shape: [0, 4, 2], ..p }, &mut []).is_err());
    }
}
