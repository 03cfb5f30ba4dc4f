//! Softmax, LogSoftmax and Hardmax.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::{DType, Tensor, bf16, f16};

use super::axes::{Along, resolve};
use crate::support::infer_same;

/// Which function a [`Softmax`] computes along its axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `e^x / Σ e^x`
    Softmax,
    /// `ln(softmax(x))`
    LogSoftmax,
    /// 1 at the first maximum, else 0
    Hardmax,
}

/// Normalizes along an axis; floating-point types, output of the same type and shape.
///
/// Until opset 12 the tensor is seen as a matrix, all dimensions from `axis` on being one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Softmax {
    /// The function.
    pub kind: Kind,
    /// The axis, from the back where negative.
    pub axis: i64,
    /// Whether all dimensions from `axis` on are normalized together (opset 12 and before).
    pub flattened: bool,
}

impl Softmax {
    /// Makes the operator from its attribute `axis` (−1 if absent, 1 until opset 12).
    ///
    /// # Errors
    /// When the axis is no integer.
    pub fn build(kind: Kind, opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
        let flattened = opset < 13;
        let axis = attrs.int_or("axis", if flattened { 1 } else { -1 })?;
        Ok(Arc::new(Softmax { kind, axis, flattened }))
    }

    /// How an input of `shape` is normalized along the middle of `[outer, length, inner]`.
    ///
    /// # Errors
    /// When the shape has no such axis.
    pub fn lines(self, shape: &[usize]) -> Result<[usize; 3], OpError> {
        self.along(shape).map(|a| [a.outer, a.len, a.inner])
    }

    fn along(self, shape: &[usize]) -> Result<Along, OpError> {
        // As a matrix, an axis behind the last one leaves rows of one element.
        if self.flattened && usize::try_from(self.axis).is_ok_and(|a| a == shape.len()) {
            return Ok(Along { outer: 1, len: 1, inner: 1 });
        }
        let axis = resolve(self.axis, shape.len())?;
        let mut along = Along::new(shape, axis);
        if self.flattened {
            along = Along { len: along.len.saturating_mul(along.inner), inner: 1, ..along };
        }
        Ok(along)
    }
}

/// `x` rounded to a half type; other types keep `f64` until the end.
fn round(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::F16 => f16::from_f64(x).to_f64(),
        DType::Bf16 => bf16::from_f64(x).to_f64(),
        _ => x,
    }
}

/// The sum, each addition rounded to bf16; halves are added in pairs, so that long lines lose no more than a few bits.
fn sum_bf16(x: &[f64]) -> f64 {
    const PLAIN: usize = 8;
    if x.len() > PLAIN {
        let (a, b) = x.split_at(x.len() / 2);
        return round(DType::Bf16, sum_bf16(a) + sum_bf16(b));
    }
    x.iter().fold(0.0, |s, &v| round(DType::Bf16, s + v))
}

/// One line, in place. Softmax of half types rounds each step of ONNX's function body
/// (Sub, Exp, ReduceSum, Div) to the type; the node tests expect those bits.
fn normalize(kind: Kind, dtype: DType, line: &mut [f64]) {
    let max = line.iter().fold(f64::NEG_INFINITY, |m, &x| if x > m || x.is_nan() { x } else { m });
    match kind {
        Kind::Softmax => {
            line.iter_mut().for_each(|x| *x = round(dtype, round(dtype, *x - max).exp()));
            let sum = if dtype == DType::Bf16 { sum_bf16(line) } else { round(dtype, line.iter().sum()) };
            line.iter_mut().for_each(|x| *x /= sum);
        }
        Kind::LogSoftmax => {
            let log = line.iter().map(|&x| (x - max).exp()).sum::<f64>().ln();
            line.iter_mut().for_each(|x| *x = *x - max - log);
        }
        Kind::Hardmax => {
            let first = line.iter().position(|&x| x == max);
            line.iter_mut().enumerate().for_each(|(i, x)| *x = f64::from(u8::from(Some(i) == first)));
        }
    }
}

impl Op for Softmax {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Softmax => "Softmax",
            Kind::LogSoftmax => "LogSoftmax",
            Kind::Hardmax => "Hardmax",
        }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        if let Some(s) = cx.shape(0) {
            let behind_last = self.flattened && usize::try_from(self.axis).is_ok_and(|a| a == s.len());
            if !behind_last {
                resolve(self.axis, s.len())?;
            }
        }
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        if !x.dtype().is_float() {
            return Err(OpError::input(0, x.dtype().name(), "a floating-point type"));
        }
        let along = self.along(x.shape())?;
        let mut y = x.to_f64s()?;
        if !y.is_empty() && along.inner == 1 {
            y.chunks_mut(along.len).for_each(|line| normalize(self.kind, x.dtype(), line));
        } else if !y.is_empty() {
            let mut line = vec![0.0; along.len];
            for start in along.lines() {
                line.iter_mut().zip(along.line(start)).for_each(|(v, i)| *v = y[i]);
                normalize(self.kind, x.dtype(), &mut line);
                line.iter().zip(along.line(start)).for_each(|(v, i)| y[i] = *v);
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &y)?])
    }

    fn quant(&self) -> QuantRole {
        match self.kind {
            Kind::Softmax => QuantRole::Arithmetic { same_scale: false },
            _ => QuantRole::Float,
        }
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("axis", self.axis, if self.flattened { 1 } else { -1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    fn run(op: Softmax, x: &Tensor) -> Vec<f64> {
        let y = op.eval(&EvalCx::new(&[Some(&Datum::Tensor(x.clone()))], 1)).unwrap();
        y[0].to_f64s().unwrap()
    }

    #[test]
    fn normalizes_a_matrix_before_opset_13_and_a_line_after() {
        let x = Tensor::new([1, 2, 2], vec![0f32; 4]).unwrap();
        assert_eq!(run(Softmax { kind: Kind::Softmax, axis: 1, flattened: true }, &x), [0.25; 4]);
        assert_eq!(run(Softmax { kind: Kind::Softmax, axis: 1, flattened: false }, &x), [0.5; 4]);
        assert_eq!(run(Softmax { kind: Kind::Softmax, axis: 3, flattened: true }, &x), [1.0; 4]);
    }

    #[test]
    fn survives_large_inputs_and_marks_the_first_maximum() {
        let x = Tensor::vector(vec![1000f32, 1000.0, 0.0]);
        assert_eq!(run(Softmax { kind: Kind::Softmax, axis: 0, flattened: false }, &x), [0.5, 0.5, 0.0]);
        assert_eq!(run(Softmax { kind: Kind::Hardmax, axis: 0, flattened: false }, &x), [1.0, 0.0, 0.0]);
    }

    #[test]
    fn sums_long_lines_of_bf16_without_stalling() {
        // A plain running sum in bf16 would stay at 256.
        let x = Tensor::from_f64s(DType::Bf16, [1024], &[0.0; 1024]).unwrap();
        let y = run(Softmax { kind: Kind::Softmax, axis: 0, flattened: false }, &x);
        assert!(y.iter().all(|&v| v == 1.0 / 1024.0));
    }

    #[test]
    fn refuses_axes_outside_of_the_rank() {
        let x = Datum::Tensor(Tensor::scalar(1f32));
        let op = Softmax { kind: Kind::Softmax, axis: -1, flattened: false };
        assert!(op.eval(&EvalCx::new(&[Some(&x)], 1)).is_err());
    }
}
