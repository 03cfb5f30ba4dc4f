//! What the operators of this domain share.

use narrowbit_ir::{Dim, EvalCx, Fact, InferCx, OpError, check_size};
use narrowbit_tensor::{DType, Tensor, shape};

use crate::quant::params::{bounds, round_saturate, single_f32, single_int};

pub(crate) const DOMAIN: &str = "com.microsoft";

/// The error function, to about 1e-15: its Taylor series, or 1 - erfc by a continued fraction
/// (Abramowitz and Stegun 7.1.6 and 7.1.14).
pub(crate) fn erf(x: f64) -> f64 {
    let a = x.abs();
    if x.is_nan() || a > 6.0 {
        return if x.is_nan() { x } else { x.signum() };
    }
    let gauss = (-a * a).exp() / std::f64::consts::PI.sqrt();
    let y = if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        2.0 * gauss * sum
    } else {
        1.0 - gauss / (1..=60).rev().fold(a, |f, k| a + f64::from(k) / 2.0 / f)
    };
    y.copysign(x)
}

/// Maps floats: f64 in f64, others from f64 results rounded once.
pub(crate) fn map_floats(x: &Tensor, f: impl Fn(f64) -> f64) -> Result<Tensor, OpError> {
    if !x.dtype().is_float() {
        return Err(OpError::input(0, x.dtype().name(), "a floating-point type"));
    }
    let y: Vec<f64> = x.to_f64s()?.into_iter().map(f).collect();
    Ok(Tensor::from_f64s(x.dtype(), x.shape(), &y)?)
}

/// Scale and zero point of a tensor with one of each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Params {
    pub scale: f32,
    pub zero: i32,
    pub dtype: DType,
}

impl Params {
    /// The parameters at inputs `i` (scale) and `i + 1` (zero point; 0 where absent) of data of `dtype`.
    pub fn read(cx: &EvalCx, i: usize, dtype: DType) -> Result<Params, OpError> {
        if !matches!(dtype, DType::I8 | DType::U8) {
            return Err(OpError::input(i.saturating_sub(1), dtype.name(), "i8 or u8"));
        }
        let zero = cx.opt(i + 1);
        if let Some(z) = zero.filter(|z| z.dtype() != dtype) {
            return Err(OpError::input(i + 1, z.dtype().name(), dtype.name()));
        }
        Ok(Params { scale: single_f32(cx.get(i)?, i)?, zero: single_int(zero, i + 1)?, dtype })
    }

    /// The value of a code.
    pub fn dequantize(&self, code: i32) -> f32 {
        code.wrapping_sub(self.zero) as f32 * self.scale
    }

    /// The code of a value: `saturate(round_half_even(x / scale) + zero)`.
    pub fn quantize(&self, x: f32) -> i32 {
        round_saturate(x / self.scale, self.zero, bounds(self.dtype).unwrap_or((0, 0)))
    }

    /// `saturate(round_half_even(x))` for an `x` in units of the code, zero point included.
    pub fn saturate(&self, x: f32) -> i32 {
        round_saturate(x, 0, bounds(self.dtype).unwrap_or((0, 0)))
    }

    /// The codes that a function of one operand gives, by input code: `table[(code - least) as usize]`.
    pub fn table(&self, out: &Params, f: impl Fn(f32) -> f32) -> Vec<i32> {
        let (lo, hi) = bounds(self.dtype).unwrap_or((0, 0));
        (lo..=hi).map(|c| out.quantize(f(self.dequantize(c)))).collect()
    }

    /// The least code.
    pub fn least(&self) -> i32 {
        bounds(self.dtype).map_or(0, |b| b.0)
    }
}

/// The shape that operands broadcast to, checked, and for each operand the offsets of its elements.
pub(crate) fn broadcast(dtype: DType, shapes: &[&[usize]]) -> Result<(Vec<usize>, Vec<Vec<usize>>), OpError> {
    let mut out = Vec::new();
    for s in shapes {
        out = shape::broadcast(&out, s)?;
    }
    check_size(dtype, &out)?;
    check_size(DType::I64, &out)?;
    let offsets = |s: &&[usize]| shape::offsets(&out, &shape::broadcast_strides(s, &out)).collect();
    let all = shapes.iter().map(offsets).collect();
    Ok((out, all))
}

/// The elements in the order of permuted axes; `perm` is a permutation of the axes of `shape`.
pub(crate) fn permute<T: Copy>(x: &[T], from: &[usize], perm: &[usize]) -> (Vec<usize>, Vec<T>) {
    let strides = shape::strides(from);
    let to: Vec<usize> = perm.iter().map(|&p| from[p]).collect();
    let walk: Vec<usize> = perm.iter().map(|&p| strides[p]).collect();
    let y = shape::offsets(&to, &walk).map(|o| x[o]).collect();
    (to, y)
}

/// The fact of an output with input `i`'s shape and a type.
pub(crate) fn like(cx: &InferCx, i: usize, dtype: Option<DType>) -> Fact {
    Fact::tensor(dtype, cx.shape(i).map(<[Dim]>::to_vec))
}

/// The extents of an input that must have `N` dimensions.
pub(crate) fn extents<const N: usize>(t: &Tensor, index: usize) -> Result<[usize; N], OpError> {
    let found = || OpError::input(index, format!("of shape {:?}", t.shape()), format!("a tensor of {N} dimensions"));
    t.shape().try_into().map_err(|_| found())
}

/// An optional vector of `n` floats.
pub(crate) fn vector(t: Option<&Tensor>, index: usize, n: usize) -> Result<Option<Vec<f32>>, OpError> {
    let Some(t) = t else { return Ok(None) };
    if t.len() != n {
        return Err(OpError::input(index, format!("of shape {:?}", t.shape()), format!("{n} elements")));
    }
    Ok(Some(t.to_f32s()?.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computes_erf_to_double_precision() {
        // Values of a table with 16 digits; the tolerance is a few units of the last place.
        for (x, y) in [(0.0, 0.0), (0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (3.0, 0.9999779095030014)] {
            assert!((erf(x) - y).abs() < 4e-16, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!((erf(2.4999999) - erf(2.5000001)).abs() < 1e-9);
        assert!(erf(f64::NAN).is_nan());
        assert_eq!(erf(f64::INFINITY), 1.0);
    }

    #[test]
    fn permutes_axes() {
        let (s, y) = permute(&[1, 2, 3, 4, 5, 6], &[2, 3], &[1, 0]);
        assert_eq!((s, y), (vec![3, 2], vec![1, 4, 2, 5, 3, 6]));
    }
}
