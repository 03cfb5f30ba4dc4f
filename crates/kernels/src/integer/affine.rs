//! A factor and an offset for each channel, entered and left in integers: what is left of a batch normalisation that no
//! product before it takes in.

use super::block::{BLOCK, Input, Quant, activate, write};
use crate::activation::Activation;
use crate::error::{Result, exact, product};
use crate::exec::Exec;
use crate::panel::{Out, Target};
use crate::simd::{Kernel, Simd};

const NAME: &str = "affine";
/// Elements that one task takes at least.
const GRAIN: usize = 1 << 13;

/// `y = activation(x · scale[channel] + shift[channel])` over `[outer, channels, inner]`: `[n, c, pixels]`, or
/// `[pixels, c, 1]` with channels last.
///
/// # Errors
/// A slice has another length than the shape.
pub fn affine(
    exec: &Exec,
    x: Quant<'_>,
    [outer, channels, inner]: [usize; 3],
    (scale, shift): (&[f32], &[f32]),
    activation: Activation,
    mut y: Target<'_>,
) -> Result {
    let len = product(NAME, &[outer, channels, inner])?;
    exact(NAME, "x", x.len(), len)?;
    exact(NAME, "y", y.len(), len)?;
    exact(NAME, "scale", scale.len(), channels)?;
    exact(NAME, "shift", shift.len(), channels)?;
    if len == 0 {
        return Ok(());
    }
    y.require_results(NAME)?;
    let work = Affine { input: x.input(), out: y.shared(), scale, shift, activation, first: 0, rows: 0, columns: 0 };
    if inner == 1 {
        exec.split(outer, GRAIN / channels + 1, &|range| {
            exec.isa().dispatch(Affine { first: range.start, rows: range.len(), columns: channels, ..work });
        });
        return Ok(());
    }
    exec.split(outer * channels, GRAIN / inner + 1, &|range| {
        for row in range {
            let c = row % channels;
            let (scale, shift) = (&scale[c..=c], &shift[c..=c]);
            exec.isa().dispatch(Affine { first: row, rows: 1, columns: inner, scale, shift, ..work });
        }
    });
    Ok(())
}

/// Rows `first..first + rows` of as many columns, which lie in both tensors and which no other task writes, with a factor
/// and an offset for each column, or one for all.
#[derive(Clone, Copy)]
struct Affine<'a> {
    input: Input,
    out: Out,
    scale: &'a [f32],
    shift: &'a [f32],
    activation: Activation,
    first: usize,
    rows: usize,
    columns: usize,
}

impl Kernel for Affine<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut block = [0f32; BLOCK];
        let x = block.as_mut_ptr();
        for row in self.first..self.first + self.rows {
            for start in (0..self.columns).step_by(BLOCK) {
                let (len, at) = (BLOCK.min(self.columns - start), row * self.columns + start);
                // SAFETY: the elements lie in both; the block holds `len`, in whole vectors.
                unsafe {
                    self.input.read(s, at, len, x);
                    match self.scale.len() == self.columns {
                        true => self.by_column(s, start, len, x),
                        false => self.by_one(s, len, x),
                    }
                    activate(s, self.activation, x, len);
                    write(s, &self.out, at, len, x);
                }
            }
        }
    }
}

impl Affine<'_> {
    /// # Safety
    /// `x` covers `len` floats in whole vectors, columns `start..start + len` have factors.
    #[inline(always)]
    unsafe fn by_column<S: Simd>(&self, s: S, start: usize, len: usize, x: *mut f32) {
        let (scale, shift) = (self.scale.as_ptr().wrapping_add(start), self.shift.as_ptr().wrapping_add(start));
        for j in (0..len).step_by(S::LANES) {
            let n = S::LANES.min(len - j);
            // SAFETY: passed on to the caller; `n` lanes of the factors are left.
            unsafe {
                let v = s.mul_add(s.load(x.add(j)), s.load_n(scale.add(j), n), s.load_n(shift.add(j), n));
                s.store(x.add(j), v);
            }
        }
    }

    /// # Safety
    /// `x` covers `len` floats in whole vectors.
    #[inline(always)]
    unsafe fn by_one<S: Simd>(&self, s: S, len: usize, x: *mut f32) {
        let (scale, shift) = (s.splat(self.scale[0]), s.splat(self.shift[0]));
        for j in (0..len).step_by(S::LANES) {
            // SAFETY: passed on to the caller.
            unsafe { s.store(x.add(j), s.mul_add(s.load(x.add(j)), scale, shift)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, assert_same_everywhere};

    #[test]
    fn scales_channels_in_both_layouts_as_the_definition_does() {
        let mut r = Random::new(93);
        for shape in [[1, 1, 1], [3, 5, 1], [2, 600, 1], [2, 3, 700], [1, 7, 19], [40, 33, 1]] {
            let [outer, channels, inner] = shape;
            let x: Vec<u8> = (0..outer * channels * inner).map(|_| r.below(256) as u8).collect();
            let (scale, shift) = (r.vec(channels), r.vec(channels));
            let value = |i: usize| {
                let c = i / inner % channels;
                ((f32::from(x[i]) - 100.0) * 0.05).mul_add(scale[c], shift[c]).max(0.0)
            };
            let code = |v: f32| ((v * 30.0).round_ties_even() as i32 - 60).clamp(-128, 127) as i8;
            let want: Vec<i8> = (0..x.len()).map(|i| code(value(i))).collect();
            assert_same_everywhere(&format!("{shape:?}"), &|exec, edge| {
                let (mut x, mut y) = (Guarded::at(edge, &x), Guarded::at(edge, &vec![0i8; want.len()]));
                let (mut scale, mut shift) = (Guarded::at(edge, &scale), Guarded::at(edge, &shift));
                let vectors = (&*scale.get(), &*shift.get());
                let (x, y_codes) = (Quant::U8(x.get(), 0.05, 100), Target::I8(y.get(), 30.0, -60));
                affine(exec, x, shape, vectors, Activation::Relu, y_codes).unwrap();
                assert_eq!(y.get(), want, "{exec:?}");
                Vec::new()
            });
        }
    }

    #[test]
    fn refuses_other_lengths() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let (x, mut y) = ([1u8; 6], [0f32; 6]);
        let mut run = |shape, n: usize| {
            let vectors = (&[1.0; 3][..n], &[0.0; 3][..n]);
            affine(&exec, Quant::U8(&x, 1.0, 0), shape, vectors, Activation::None, Target::F32(&mut y)).is_err()
        };
        assert!(run([2, 3, 2], 3));
        assert!(run([2, 3, 1], 2));
        assert!(!run([2, 3, 1], 3));
    }
}
