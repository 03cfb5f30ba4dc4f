//! Quantization with a range that is found from the data, as ONNX DynamicQuantizeLinear does.
//!
//! `scale = (max(x, 0) − min(x, 0)) / 255`, 1 where all is 0; `zero = saturate(round_half_even(−min(x, 0) / scale))`;
//! `y = saturate(round_half_even(x / scale) + zero)` in u8. NaN does not count to the range, and every tier and
//! number of threads gives the same bits. A product of such rows takes their format as
//! [`RowParams`](crate::panel::RowParams).

use crate::buffer::SharedMut;
use crate::error::{Result, exact, product};
use crate::exec::Exec;
use crate::quantize::{QuantScales, quantize, quantize_slice};
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "dynamic quantization";
/// Elements that one task looks at, at least.
const GRAIN: usize = 1 << 14;
/// Most parts of a tensor that are looked at on their own.
const PARTS: usize = 64;

/// Scale and zero point that cover a range and 0 with the codes 0 to 255 (ONNX DynamicQuantizeLinear 11).
pub fn dynamic_params(low: f32, high: f32) -> (f32, i32) {
    let (low, high) = (low.min(0.0), high.max(0.0));
    let scale = if high == low { 1.0 } else { (high - low) / 255.0 };
    let zero = (0.0 - low / scale).clamp(0.0, 255.0).round_ties_even();
    (scale, zero as i32)
}

/// Quantizes a tensor with one scale and zero point for all of it, and gives them.
///
/// # Errors
/// `y` has another length than `x`.
pub fn dynamic_quantize(exec: &Exec, x: &[f32], y: &mut [u8]) -> Result<(f32, i32)> {
    exact(NAME, "y", y.len(), x.len())?;
    let parts = x.len().div_ceil(GRAIN).clamp(1, PARTS.min(4 * exec.threads()));
    let mut ranges = [(0f32, 0f32); PARTS];
    let out = SharedMut::new(&mut ranges);
    exec.pool().run_if(parts > 1 && exec.threads() > 1, parts, &|i| {
        let part = &x[x.len() * i / parts..x.len() * (i + 1) / parts];
        // SAFETY: each part owns its range.
        unsafe { out.slice(i, 1)[0] = exec.isa().dispatch(Extremes { x: part }) };
    });
    let (low, high) = ranges.iter().fold((0f32, 0f32), |(low, high), r| (low.min(r.0), high.max(r.1)));
    let (scale, zero) = dynamic_params(low, high);
    quantize(exec, x, y, &QuantScales::per_tensor(&scale, &zero, x.len()))?;
    Ok((scale, zero))
}

/// Quantizes each row of a `rows × columns` matrix with a scale and zero point of its own.
///
/// # Errors
/// A slice has another length than the shape.
pub fn dynamic_quantize_rows(
    exec: &Exec,
    x: &[f32],
    [rows, columns]: [usize; 2],
    y: &mut [u8],
    scales: &mut [f32],
    zeros: &mut [i32],
) -> Result {
    let len = product(NAME, &[rows, columns])?;
    exact(NAME, "x", x.len(), len)?;
    exact(NAME, "y", y.len(), len)?;
    exact(NAME, "scales", scales.len(), rows)?;
    exact(NAME, "zero points", zeros.len(), rows)?;
    let (y, scales, zeros) = (SharedMut::new(y), SharedMut::new(scales), SharedMut::new(zeros));
    exec.split(rows, GRAIN / columns.max(1) + 1, &|range| {
        for row in range {
            let x = &x[row * columns..][..columns];
            let (low, high) = exec.isa().dispatch(Extremes { x });
            let (scale, zero) = dynamic_params(low, high);
            // SAFETY: each row is one task's, and lies in the slices.
            unsafe {
                (scales.slice(row, 1)[0], zeros.slice(row, 1)[0]) = (scale, zero);
                quantize_slice(exec.isa(), x, y.slice(row * columns, columns), scale, zero);
            }
        }
    });
    Ok(())
}

/// The least and the greatest of the elements and 0.
struct Extremes<'a> {
    x: &'a [f32],
}

impl Kernel for Extremes<'_> {
    type Out = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        // Four at a time: one chain would wait for each comparison.
        let mut low = [s.splat(0.0); 4];
        let mut high = low;
        let mut i = 0;
        // `min` and `max` pass their second operand on when the first is NaN.
        while i + 4 * S::LANES <= self.x.len() {
            for (v, (low, high)) in low.iter_mut().zip(&mut high).enumerate() {
                // SAFETY: four vectors are left.
                let x = unsafe { s.load(self.x.as_ptr().add(i + v * S::LANES)) };
                (*low, *high) = (s.min(x, *low), s.max(x, *high));
            }
            i += 4 * S::LANES;
        }
        while i < self.x.len() {
            let n = (self.x.len() - i).min(S::LANES);
            // SAFETY: `n` elements are left; the other lanes are 0.
            let x = unsafe { s.load_bits(self.x.as_ptr().add(i), low_bits(n)) };
            (low[0], high[0]) = (s.min(x, low[0]), s.max(x, high[0]));
            i += n;
        }
        let low = s.min(s.min(low[0], low[1]), s.min(low[2], low[3]));
        let high = s.max(s.max(high[0], high[1]), s.max(high[2], high[3]));
        (s.hmin(low), s.hmax(high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::elementwise::{UnaryOp, unary_in_place};
    use crate::panel::{Epilogue, Residual, RowParams, Rows, Target, panel_gemm, panel_gemm_pack};
    use crate::testing::{Guarded, Random, execs};

    /// The definition, element by element.
    fn reference(x: &[f32]) -> (Vec<u8>, f32, i32) {
        let low = x.iter().copied().fold(0f32, f32::min);
        let high = x.iter().copied().fold(0f32, f32::max);
        let (scale, zero) = dynamic_params(low, high);
        let code =
            |v: &f32| ((v / scale).max(-zero as f32).min((255 - zero) as f32).round_ties_even() as i32 + zero) as u8;
        (x.iter().map(code).collect(), scale, zero)
    }

    #[test]
    fn quantizes_a_tensor_as_defined_on_every_tier() {
        let mut random = Random::new(5);
        for (len, scale, shift) in
            [(0, 1.0, 0.0), (1, 3.0, 0.0), (63, 0.01, 2.0), (1000, 7.0, -9.0), (70_001, 1e-3, 1e-4)]
        {
            let mut x: Vec<f32> = random.vec(len).into_iter().map(|v| v * scale + shift).collect();
            if len > 500 {
                x[400] = f32::NAN;
            }
            let (want, want_scale, want_zero) = reference(&x);
            for exec in execs() {
                let (mut x, mut y) = (Guarded::new(&x), Guarded::new(&vec![0u8; len]));
                let (s, z) = dynamic_quantize(&exec, x.get(), y.get()).unwrap();
                assert_eq!((s, z), (want_scale, want_zero), "{len} {}", exec.isa());
                assert_eq!(y.get(), want, "{len} {}", exec.isa());
            }
        }
    }

    #[test]
    fn quantizes_rows_as_tensors_of_their_own() {
        let mut random = Random::new(6);
        for [rows, columns] in [[1, 1], [3, 17], [40, 333], [200, 64]] {
            let x: Vec<f32> = (0..rows * columns)
                .map(|i| random.unit() * (1 + i / columns) as f32 + (i / columns % 3) as f32)
                .collect();
            for exec in execs() {
                let (mut y, mut scales, mut zeros) = (vec![0; x.len()], vec![0.0; rows], vec![0; rows]);
                dynamic_quantize_rows(&exec, &x, [rows, columns], &mut y, &mut scales, &mut zeros).unwrap();
                for (r, row) in x.chunks(columns).enumerate() {
                    let (want, scale, zero) = reference(row);
                    assert_eq!((scales[r], zeros[r]), (scale, zero));
                    assert_eq!(y[r * columns..][..columns], want);
                }
            }
        }
    }

    #[test]
    fn multiplies_rows_with_formats_of_their_own_on_every_tier() {
        let mut random = Random::new(8);
        for (m, k, n) in [(1, 3, 1), (5, 64, 33), (29, 131, 40), (60, 48, 100)] {
            let x: Vec<u8> = (0..m * k).map(|_| random.next() as u8).collect();
            let w: Vec<i8> = (0..k * n).map(|_| random.next() as i8).collect();
            let (scales, bias): (Vec<f32>, Vec<f32>) =
                (0..n).map(|_| (0.01 + 0.001 * random.unit(), random.unit())).unzip();
            let zeros: Vec<i32> = (0..n).map(|_| random.below(7) as i32 - 3).collect();
            let floats = random.vec(m * n);
            for variant in 0..16 {
                let (per_row, added) = (variant & 1 != 0, variant & 2 != 0);
                let weight_zeros = if variant & 4 != 0 { &zeros[..] } else { &[] };
                let activation = if variant & 8 != 0 { Activation::Sigmoid } else { Activation::Relu };
                let count = if per_row { m } else { 1 };
                let row_scales: Vec<f32> = (0..count).map(|_| 0.02 + 0.01 * random.unit()).collect();
                let row_zeros: Vec<i32> = (0..count).map(|_| random.below(256) as i32).collect();
                let at = |i: usize| if per_row { i } else { 0 };
                let weight_zero = |j: usize| weight_zeros.get(j).copied().unwrap_or(0);
                let sum = |i: usize, j: usize| {
                    let term = |q: usize| {
                        (i32::from(x[i * k + q]) - row_zeros[at(i)]) * (i32::from(w[q * n + j]) - weight_zero(j))
                    };
                    let v = (0..k).map(term).sum::<i32>() as f32 * (row_scales[at(i)] * scales[j]) + bias[j];
                    if added { v + floats[i * n + j] } else { v }
                };
                let mut want: Vec<f32> = (0..m * n).map(|i| sum(i / n, i % n)).collect();
                match activation {
                    Activation::Relu => want.iter_mut().for_each(|v| *v = v.max(0.0)),
                    // The function has tests of its own.
                    _ => unary_in_place(&execs()[0], UnaryOp::Activation(activation), &mut want),
                }
                for exec in execs() {
                    let weights = panel_gemm_pack(&exec, (k, n), &w, false).unwrap();
                    let sums = weights.column_sums().iter().enumerate();
                    let column_sums: Vec<i32> = sums.map(|(j, s)| s - k as i32 * weight_zero(j)).collect();
                    let rows = RowParams { scales: &row_scales, zeros: &row_zeros, column_sums: &column_sums };
                    let epilogue = Epilogue {
                        offsets: &vec![0; n],
                        scales: &scales,
                        weight_zeros,
                        bias: &bias,
                        stage: None,
                        residual: if added { Residual::F32(&floats) } else { Residual::None },
                        activation,
                        factors: &[],
                        shifts: &[],
                        rows: Some(rows),
                    };
                    let mut y = vec![0f32; m * n];
                    panel_gemm(&exec, Rows::U8(&x), (m, k, k), &weights, &epilogue, Target::F32(&mut y)).unwrap();
                    assert_eq!(y, want, "{m}×{k}×{n} {} variant {variant}", weights.kernel().name);
                    let short = RowParams { zeros: &row_zeros[1..], ..rows };
                    let bad = Epilogue { rows: Some(short), ..epilogue };
                    assert!(panel_gemm(&exec, Rows::U8(&x), (m, k, k), &weights, &bad, Target::F32(&mut y)).is_err());
                }
            }
        }
    }

    #[test]
    fn refuses_slices_of_other_lengths() {
        let exec = &execs()[0];
        assert!(dynamic_quantize(exec, &[1.0; 3], &mut [0; 2]).is_err());
        let run = |scales: &mut [f32]| dynamic_quantize_rows(exec, &[1.0; 6], [2, 3], &mut [0; 6], scales, &mut [0; 2]);
        assert!(run(&mut [0.0; 2]).is_ok());
        assert!(run(&mut [0.0; 3]).is_err());
    }
}
