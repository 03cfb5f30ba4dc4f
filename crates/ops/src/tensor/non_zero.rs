//! NonZero: where the input is not zero.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor};

/// The indices of all non-zero elements in row-major order, one column each: `[rank, n]` of i64.
///
/// A scalar gives `[0, n]`. Source: ONNX NonZero.
#[derive(Debug, Clone, Copy)]
pub struct NonZero;

/// Makes a NonZero; it has no attributes.
///
/// # Errors
/// None.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(NonZero))
}

impl Op for NonZero {
    fn name(&self) -> &str {
        "NonZero"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let rank = cx.get(0)?.shape().map_or(Dim::Unknown, |s| s.len().into());
        Ok(vec![Fact::tensor(Some(DType::I64), Some(vec![rank, Dim::Unknown]))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let set: Vec<usize> = match x.dtype() {
            DType::String => places(x.strings()?, |s| !s.is_empty()),
            d if d.is_float() => places(&x.to_f64s()?, |&v| v != 0.0),
            _ => places(&x.to_i64s()?, |&v| v != 0),
        };
        let n = set.len();
        check_size(DType::I64, &[x.rank(), n])?;
        let mut out = vec![0i64; x.rank() * n];
        for (column, mut at) in set.into_iter().enumerate() {
            for (a, &d) in x.shape().iter().enumerate().rev() {
                out[a * n + column] = (at % d) as i64;
                at /= d;
            }
        }
        Ok(vec![Tensor::new([x.rank(), n], out)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

fn places<T>(v: &[T], set: impl Fn(&T) -> bool) -> Vec<usize> {
    v.iter().enumerate().filter(|(_, x)| set(x)).map(|(i, _)| i).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, ints};
    use super::*;

    #[test]
    fn gives_one_column_per_element() {
        let y = eval("NonZero", 13, AttrMap::new(), &[ints(&[2, 2], &[1, 0, 1, 1])]).unwrap();
        assert_eq!((y[0].shape(), y[0].to_i64s().unwrap()), (&[2, 3][..], vec![0, 1, 1, 0, 0, 1]));
        assert_eq!(eval("NonZero", 13, AttrMap::new(), &[ints(&[], &[3])]).unwrap()[0].shape(), [0, 1]);
        assert_eq!(eval("NonZero", 13, AttrMap::new(), &[ints(&[2, 0], &[])]).unwrap()[0].shape(), [2, 0]);
    }
}
