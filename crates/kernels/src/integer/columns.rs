//! Softmax along an axis that is not the last, entered and left in integers: a block of columns stays in the second cache
//! between its dequantization and its rounding.

use super::block::{Input, Quant, write};
use crate::buffer::with_scratch;
use crate::error::{Result, exact, product};
use crate::exec::Exec;
use crate::panel::{Out, Target};
use crate::reduce::{Columns, Form, block_width};
use crate::simd::{Kernel, Simd};

const NAME: &str = "softmax columns";

/// Softmax along the middle of `[outer, axis, inner]`. Lines whose elements are all −∞ become NaN, or 0 with `guarded`.
///
/// # Errors
/// A slice has another length than the shape.
pub fn softmax_columns(exec: &Exec, x: Quant<'_>, shape: [usize; 3], guarded: bool, mut y: Target<'_>) -> Result {
    let [outer, axis, inner] = shape;
    let len = product(NAME, &shape)?;
    exact(NAME, "x", x.len(), len)?;
    exact(NAME, "y", y.len(), len)?;
    if len == 0 {
        return Ok(());
    }
    y.require_results(NAME)?;
    let (input, out, width) = (x.input(), y.shared(), block_width(axis, inner).min(inner));
    let size = product(NAME, &[axis, width])?;
    let blocks = inner.div_ceil(width);
    exec.split(outer * blocks, 1, &|range| {
        with_scratch(size, |scratch| {
            for index in range.clone() {
                let first = index % blocks * width;
                let at = index / blocks * axis * inner + first;
                let columns = width.min(inner - first);
                exec.isa().dispatch(Block { input, out, at, axis, inner, columns, guarded, scratch: &mut *scratch });
            }
        });
    });
    Ok(())
}

/// `columns` columns from element `at` on, which no other task writes; they fit the scratch.
struct Block<'a> {
    input: Input,
    out: Out,
    at: usize,
    axis: usize,
    inner: usize,
    columns: usize,
    guarded: bool,
    scratch: &'a mut [f32],
}

impl Kernel for Block<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (n, x) = (self.columns, self.scratch.as_mut_ptr());
        // SAFETY: the rows lie in both tensors, and fit the scratch one behind the other.
        unsafe {
            for i in 0..self.axis {
                self.input.read(s, self.at + i * self.inner, n, x.add(i * n));
            }
            let form = Form { log: false, guarded: self.guarded };
            Columns { x, y: x, axis: self.axis, stride: n, columns: n, form }.run(s);
            for i in 0..self.axis {
                write(s, &self.out, self.at + i * self.inner, n, x.add(i * n));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, assert_close, execs};

    #[test]
    fn equals_the_definition_and_rounds_it() {
        let mut r = Random::new(19);
        for shape in [[1, 1, 1], [2, 5, 3], [1, 16, 300], [3, 40, 65], [1, 500, 9]] {
            let [outer, axis, inner] = shape;
            let x: Vec<u8> = (0..outer * axis * inner).map(|_| r.below(256) as u8).collect();
            let value = |q: u8| (f32::from(q) - 120.0) * 0.05;
            let mut want = vec![0f32; x.len()];
            for at in (0..outer).flat_map(|o| (0..inner).map(move |i| o * axis * inner + i)) {
                let line = || (0..axis).map(|a| at + a * inner);
                let total: f64 = line().map(|i| f64::from(value(x[i])).exp()).sum();
                line().for_each(|i| want[i] = (f64::from(value(x[i])).exp() / total) as f32);
            }
            let mut first: Option<Vec<f32>> = None;
            for exec in execs() {
                let (mut from, mut y) = (Guarded::new(&x), Guarded::new(&want));
                softmax_columns(&exec, Quant::U8(from.get(), 0.05, 120), shape, false, Target::F32(y.get())).unwrap();
                // Sums of up to 500 terms in f32, and a few ulp of exp.
                assert_close(y.get(), &want, 1e-5, &format!("{shape:?} {exec:?}"));
                let floats = first.get_or_insert_with(|| y.get().to_vec());
                assert_eq!(y.get(), floats, "{exec:?}");
                let mut codes = Guarded::new(&vec![0u8; x.len()]);
                let to = Target::U8(codes.get(), 255.0, 3);
                softmax_columns(&exec, Quant::U8(from.get(), 0.05, 120), shape, false, to).unwrap();
                let rounded: Vec<u8> = floats.iter().map(|v| (v * 255.0).round_ties_even() as u8).collect();
                let rounded: Vec<u8> = rounded.iter().map(|v| v.saturating_add(3)).collect();
                assert_eq!(codes.get(), rounded, "{exec:?}");
            }
        }
    }

    #[test]
    fn refuses_other_lengths() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let (x, mut y) = ([1u8; 6], [0f32; 6]);
        assert!(softmax_columns(&exec, Quant::U8(&x, 1.0, 0), [1, 2, 2], false, Target::F32(&mut y)).is_err());
        assert!(softmax_columns(&exec, Quant::U8(&x, 1.0, 0), [1, 2, 3], false, Target::F32(&mut y[1..])).is_err());
    }
}
