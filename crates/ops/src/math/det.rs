//! Det: the determinant of square matrices.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use crate::support::show;

/// The determinant over the last two dimensions, which are equal; floating-point types,
/// by Gaussian elimination with partial pivoting in `f64`.
#[derive(Debug, Clone, Copy)]
pub struct Det;

/// Makes a Det; it has no attributes.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Det))
}

/// The determinant of the n×n matrix `a`, which is used up.
fn determinant(a: &mut [f64], n: usize) -> f64 {
    let mut det = 1.0;
    for c in 0..n {
        let pivot = (c..n).max_by(|&i, &j| a[i * n + c].abs().total_cmp(&a[j * n + c].abs())).unwrap_or(c);
        let p = a[pivot * n + c];
        if p == 0.0 {
            return 0.0;
        }
        if pivot != c {
            (c..n).for_each(|j| a.swap(pivot * n + j, c * n + j));
            det = -det;
        }
        det *= p;
        for i in c + 1..n {
            let f = a[i * n + c] / p;
            (c..n).for_each(|j| a[i * n + j] -= f * a[c * n + j]);
        }
    }
    det
}

impl Op for Det {
    fn name(&self) -> &str {
        "Det"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let batch = match x.shape() {
            None => None,
            Some([_, .., Dim::Known(a), Dim::Known(b)] | [Dim::Known(a), Dim::Known(b)]) if a != b => {
                return Err(OpError::Shape(format!(
                    "matrices of shape {} are not square",
                    show(x.shape().unwrap_or(&[]))
                )));
            }
            Some([batch @ .., _, _]) => Some(batch.to_vec()),
            Some(s) => return Err(OpError::Shape(format!("shape {} holds no matrices", show(s)))),
        };
        Ok(vec![Fact::tensor(x.dtype(), batch)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let (batch, n) = match x.shape() {
            [batch @ .., a, b] if a == b => (batch, *a),
            s => return Err(OpError::Shape(format!("shape {s:?} holds no square matrices"))),
        };
        if !x.dtype().is_float() {
            return Err(OpError::input(0, x.dtype().name(), "a floating-point type"));
        }
        if n == 0 {
            // The empty product.
            let len = narrowbit_ir::check_size(x.dtype(), batch)?;
            return Ok(vec![Tensor::from_f64s(x.dtype(), batch, &vec![1.0; len])?]);
        }
        let mut data = x.to_f64s()?;
        let y: Vec<f64> = data.chunks_mut(n * n).map(|a| determinant(a, n)).collect();
        Ok(vec![Tensor::from_f64s(x.dtype(), batch, &y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    #[test]
    fn computes_batches_with_pivoting() {
        let x = Tensor::new([2, 2, 2], vec![0f32, 2.0, 3.0, 4.0, 1.0, 2.0, 2.0, 4.0]).unwrap();
        let y = Det.eval(&EvalCx::new(&[Some(&Datum::Tensor(x))], 1)).unwrap();
        assert_eq!(y[0], Tensor::vector(vec![-6f32, 0.0]));
    }

    #[test]
    fn refuses_what_is_not_square() {
        let x = Datum::Tensor(Tensor::new([1, 2], vec![1f32, 2.0]).unwrap());
        assert!(Det.eval(&EvalCx::new(&[Some(&x)], 1)).is_err());
    }
}
