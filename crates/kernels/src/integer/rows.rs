//! Functions of rows that compute in floats and are entered and left in integers: a row
//! stays in the first cache between its dequantization and its rounding.
//!
//! Sums are taken in sixteen chains on every tier, so that all tiers give the same bits.

use super::block::{BLOCK, Input, Quant, write};
use crate::buffer::with_scratch;
use crate::elementwise::{Unary, UnaryOp, map};
use crate::error::{Result, exact, product};
use crate::exec::Exec;
use crate::math;
use crate::panel::{Out, Target};
use crate::reduce::{CHAINS, sum_of_chains};
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "integer rows";
/// Elements that one task takes at least.
const GRAIN: usize = 1 << 12;

/// `y = op(x)`, element by element.
///
/// # Errors
/// The slices differ in length.
pub fn unary_rows(exec: &Exec, op: UnaryOp, x: Quant<'_>, mut y: Target<'_>) -> Result {
    exact(NAME, "y", y.len(), x.len())?;
    y.require_results(NAME)?;
    let (input, out) = (x.input(), y.shared());
    exec.split(x.len(), GRAIN, &|range| {
        exec.isa().dispatch(Elements { op, input, out, at: range.start, len: range.len() });
    });
    Ok(())
}

/// Softmax of each row of `[rows, columns]`. Rows whose elements are all −∞ become NaN, or 0 with `guarded`.
///
/// # Errors
/// A slice has another length than the shape.
pub fn softmax_rows(exec: &Exec, x: Quant<'_>, shape: [usize; 2], guarded: bool, y: Target<'_>) -> Result {
    run(exec, x, shape, y, &Function::Softmax { guarded })
}

/// Factors, offsets and ε of [`layer_norm_rows`].
#[derive(Clone, Copy, Debug, Default)]
pub struct RowNorm<'a> {
    /// Factor per column.
    pub scale: Option<&'a [f32]>,
    /// Offset per column.
    pub bias: Option<&'a [f32]>,
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether the mean square takes the place of the variance, and the mean is not
    /// subtracted (RMS normalisation).
    pub rms: bool,
}

/// `(x − mean) / √(variance + ε) · scale + bias` over each row of `[rows, columns]` (ONNX
/// `LayerNormalization`).
///
/// # Errors
/// A slice has another length than the shape.
pub fn layer_norm_rows(exec: &Exec, x: Quant<'_>, shape: [usize; 2], norm: &RowNorm<'_>, y: Target<'_>) -> Result {
    for (what, slice) in [("scale", norm.scale), ("bias", norm.bias)] {
        slice.map_or(Ok(()), |slice| exact(NAME, what, slice.len(), shape[1]))?;
    }
    run(exec, x, shape, y, &Function::Norm(norm))
}

enum Function<'a> {
    Softmax { guarded: bool },
    Norm(&'a RowNorm<'a>),
}

fn run(exec: &Exec, x: Quant<'_>, [rows, columns]: [usize; 2], mut y: Target<'_>, function: &Function<'_>) -> Result {
    let len = product(NAME, &[rows, columns])?;
    exact(NAME, "x", x.len(), len)?;
    exact(NAME, "y", y.len(), len)?;
    if len == 0 {
        return Ok(());
    }
    y.require_results(NAME)?;
    let (input, out) = (x.input(), y.shared());
    exec.split(rows, GRAIN / columns + 1, &|range| {
        // Whole vectors of the widest tier, so that sums need no remainder.
        with_scratch(columns.next_multiple_of(CHAINS), |row| {
            for index in range.clone() {
                let at = index * columns;
                exec.isa().dispatch(Row { function, input, out, at, columns, row: &mut *row });
            }
        });
    });
    Ok(())
}

/// Elements `at..at + len`, which no other task writes.
struct Elements {
    op: UnaryOp,
    input: Input,
    out: Out,
    at: usize,
    len: usize,
}

impl Kernel for Elements {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut block = [0f32; BLOCK];
        let x = block.as_mut_ptr();
        for start in (0..self.len).step_by(BLOCK) {
            let len = BLOCK.min(self.len - start);
            // SAFETY: the elements lie in both; the block holds `len`.
            unsafe {
                self.input.read(s, self.at + start, len, x);
                Unary { op: self.op, x, y: x, len }.run(s);
                write(s, &self.out, self.at + start, len, x);
            }
        }
    }
}

/// One row, which no other task writes; `row` is scratch of whole vectors.
struct Row<'a> {
    function: &'a Function<'a>,
    input: Input,
    out: Out,
    at: usize,
    columns: usize,
    row: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.columns;
        // SAFETY: the row lies in both tensors and fits the scratch.
        unsafe { self.input.read(s, self.at, n, self.row.as_mut_ptr()) };
        match self.function {
            Function::Softmax { guarded } => softmax(s, self.row, n, *guarded),
            Function::Norm(norm) => normalise(s, self.row, n, norm),
        }
        // SAFETY: as above.
        unsafe { write(s, &self.out, self.at, n, self.row.as_ptr()) };
    }
}

/// `Σ f(x)` of a row of whole groups of sixteen, in an order that does not depend on the tier.
#[inline(always)]
fn sum<S: Simd>(s: S, row: &[f32], f: impl Fn(S::F) -> S::F) -> f32 {
    let mut totals = [s.splat(0.0); CHAINS];
    for (lane, total) in (0..CHAINS).step_by(S::LANES).zip(&mut totals) {
        for x in row.chunks_exact(CHAINS) {
            // SAFETY: a vector from `lane` on ends within the sixteen.
            *total = s.add(*total, f(unsafe { s.load(x.as_ptr().add(lane)) }));
        }
    }
    sum_of_chains(s, totals)
}

/// As [`exponentials`]; a row that is not a number becomes 0, with a sum of 1, where `guarded` says so.
#[inline(always)]
pub(crate) fn exponentials_or_zeros<S: Simd>(s: S, row: &mut [f32], peak: S::F, guarded: bool) -> f32 {
    let total = exponentials(s, row, peak);
    if guarded && total.is_nan() {
        row.fill(0.0);
        return 1.0;
    }
    total
}

/// Replaces a row of whole groups of sixteen by e^(x − peak) and returns their sum, in an order that does not depend on
/// the tier.
#[inline(always)]
fn exponentials<S: Simd>(s: S, row: &mut [f32], peak: S::F) -> f32 {
    let mut totals = [s.splat(0.0); CHAINS];
    for group in row.chunks_exact_mut(CHAINS) {
        for (lane, total) in (0..CHAINS).step_by(S::LANES).zip(&mut totals) {
            // SAFETY: a vector from `lane` on ends within the sixteen.
            unsafe {
                let x = group.as_mut_ptr().add(lane);
                let e = math::exp_nonpositive(s, s.sub(s.load(x), peak));
                s.store(x, e);
                *total = s.add(*total, e);
            }
        }
    }
    sum_of_chains(s, totals)
}

/// Softmax of the first `n` of `row`.
#[inline(always)]
fn softmax<S: Simd>(s: S, row: &mut [f32], n: usize, guarded: bool) {
    // e^(−∞) adds nothing to the sum.
    row[n..].fill(f32::NEG_INFINITY);
    let mut peak = s.splat(f32::NEG_INFINITY);
    for x in row.chunks_exact(S::LANES) {
        // SAFETY: a whole vector.
        peak = s.max(peak, unsafe { s.load(x.as_ptr()) });
    }
    let peak = s.splat(s.hmax(peak));
    let factor = s.splat(1.0 / exponentials_or_zeros(s, row, peak, guarded));
    let p = row.as_mut_ptr();
    // SAFETY: in place.
    unsafe {
        map(
            s,
            p,
            p,
            n,
            #[inline(always)]
            |v| s.mul(v, factor),
        );
    }
}

/// Normalises the first `n` of `row`.
#[inline(always)]
fn normalise<S: Simd>(s: S, row: &mut [f32], n: usize, norm: &RowNorm<'_>) {
    let count = n as f32;
    row[n..].fill(0.0);
    let total = sum(
        s,
        row,
        #[inline(always)]
        |v| v,
    );
    let mean = if norm.rms { 0.0 } else { total / count };
    // Beyond the end, where the difference from the mean shall be 0.
    row[n..].fill(mean);
    let m = s.splat(mean);
    let squares = sum(
        s,
        row,
        #[inline(always)]
        |v| {
            let d = s.sub(v, m);
            s.mul(d, d)
        },
    );
    let factor = s.splat(1.0 / (squares / count + norm.epsilon).sqrt());
    for i in (0..n).step_by(S::LANES) {
        let bits = low_bits((n - i).min(S::LANES));
        // SAFETY: `bits` ends at `n`; scale and bias are as long.
        unsafe {
            let mut v = s.mul(s.sub(s.load(row.as_ptr().add(i)), m), factor);
            if let Some(scale) = norm.scale {
                v = s.mul(v, s.load_bits(scale.as_ptr().add(i), bits));
            }
            if let Some(bias) = norm.bias {
                v = s.add(v, s.load_bits(bias.as_ptr().add(i), bits));
            }
            s.store(row.as_mut_ptr().add(i), v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Activation;
    use crate::testing::{Guarded, Random, assert_close, execs};

    fn dequantized(x: &[u8], scale: f32, zero: i32) -> Vec<f32> {
        x.iter().map(|&q| (i32::from(q) - zero) as f32 * scale).collect()
    }

    /// Runs to floats and to i8 on every tier; compares floats with `want`, and tiers and
    /// integers exactly.
    fn check(x: &[u8], want: &[f32], inverse: f32, run: &dyn Fn(&Exec, Quant<'_>, Target<'_>)) {
        let mut first: Option<Vec<f32>> = None;
        for exec in execs() {
            let (mut from, mut y) = (Guarded::new(x), Guarded::new(&vec![0f32; x.len()]));
            run(&exec, Quant::U8(from.get(), 0.05, 120), Target::F32(y.get()));
            let floats = y.get().to_vec();
            // Sums of up to a thousand elements in f32, and a few ulp of exp.
            assert_close(&floats, want, 2e-5, "rows");
            assert_eq!(&floats, first.get_or_insert_with(|| floats.clone()), "{exec:?}");
            let mut y = Guarded::new(&vec![0i8; x.len()]);
            run(&exec, Quant::U8(from.get(), 0.05, 120), Target::I8(y.get(), inverse, -9));
            let rounded = |v: f32| ((v * inverse).round_ties_even().clamp(-119.0, 136.0) as i32 - 9) as i8;
            let rounded: Vec<i8> = floats.iter().map(|&v| rounded(v)).collect();
            assert_eq!(y.get(), rounded, "{exec:?}");
        }
    }

    #[test]
    fn computes_rows_between_integers() {
        let mut random = Random::new(17);
        for [rows, columns] in [[1, 1], [3, 7], [5, 16], [40, 197], [2, 1000], [70, 384]] {
            let x: Vec<u8> = (0..rows * columns).map(|_| random.next() as u8).collect();
            let floats = dequantized(&x, 0.05, 120);
            let want: Vec<f32> = floats
                .chunks(columns)
                .flat_map(|row| {
                    let peak = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let e: Vec<f64> = row.iter().map(|&v| f64::from(v - peak).exp()).collect();
                    let total: f64 = e.iter().sum();
                    e.into_iter().map(move |v| (v / total) as f32)
                })
                .collect();
            check(&x, &want, 255.0, &|exec, x, y| softmax_rows(exec, x, [rows, columns], false, y).unwrap());
            let (scale, bias) = (random.vec(columns), random.vec(columns));
            for rms in [false, true] {
                let norm = RowNorm { scale: Some(&scale), bias: Some(&bias), epsilon: 1e-3, rms };
                let want: Vec<f32> = floats
                    .chunks(columns)
                    .flat_map(|row| {
                        let n = columns as f64;
                        let mean = if rms { 0.0 } else { row.iter().map(|&v| f64::from(v)).sum::<f64>() / n };
                        let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
                        let inverse = 1.0 / (variance + 1e-3).sqrt();
                        row.iter().map(move |&v| ((f64::from(v) - mean) * inverse) as f32).collect::<Vec<_>>()
                    })
                    .enumerate()
                    .map(|(i, v)| v * scale[i % columns] + bias[i % columns])
                    .collect();
                check(&x, &want, 30.0, &|exec, x, y| layer_norm_rows(exec, x, [rows, columns], &norm, y).unwrap());
            }
            let want: Vec<f32> = floats.iter().map(|&v| (f64::from(v).tanh()) as f32).collect();
            let op = UnaryOp::Activation(Activation::Tanh);
            check(&x, &want, 100.0, &|exec, x, y| unary_rows(exec, op, x, y).unwrap());
        }
    }

    #[test]
    fn refuses_other_lengths() {
        let exec = &execs()[0];
        let (x, mut y) = ([1u8; 6], [0f32; 6]);
        let x = Quant::U8(&x, 1.0, 0);
        assert!(softmax_rows(exec, x, [2, 2], false, Target::F32(&mut y)).is_err());
        assert!(softmax_rows(exec, x, [2, 3], false, Target::F32(&mut y[1..])).is_err());
        let norm = RowNorm { scale: Some(&[1.0; 2]), ..RowNorm::default() };
        assert!(layer_norm_rows(exec, x, [2, 3], &norm, Target::F32(&mut y)).is_err());
        assert!(unary_rows(exec, UnaryOp::Exp, x, Target::F32(&mut y[1..])).is_err());
    }
}
