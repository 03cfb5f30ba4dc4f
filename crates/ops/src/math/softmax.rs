//! Softmax, LogSoftmax and Hardmax.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

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

/// One line, in place.
fn normalize(kind: Kind, line: &mut [f64]) {
    let max = line.iter().fold(f64::NEG_INFINITY, |m, &x| if x > m || x.is_nan() { x } else { m });
    match kind {
        Kind::Softmax => {
            line.iter_mut().for_each(|x| *x = (*x - max).exp());
            let sum: f64 = line.iter().sum();
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
            y.chunks_mut(along.len).for_each(|line| normalize(self.kind, line));
        } else if !y.is_empty() {
            let mut line = vec![0.0; along.len];
            for start in along.lines() {
                line.iter_mut().zip(along.line(start)).for_each(|(v, i)| *v = y[i]);
                normalize(self.kind, &mut line);
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
    fn refuses_axes_outside_of_the_rank() {
        let x = Datum::Tensor(Tensor::scalar(1f32));
        let op = Softmax { kind: Kind::Softmax, axis: -1, flattened: false };
        assert!(op.eval(&EvalCx::new(&[Some(&x)], 1)).is_err());
    }
}
