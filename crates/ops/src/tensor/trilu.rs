//! Trilu: the upper or lower triangle of matrices.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::{moves, params};

/// The input with zeros below (`upper`) or above the diagonal `k` of its last two axes; any type.
///
/// Source: ONNX Trilu.
#[derive(Debug, Clone, Copy)]
pub struct Trilu {
    /// Whether the upper triangle is kept.
    pub upper: bool,
}

/// Makes a Trilu from `upper`, true by default.
///
/// # Errors
/// When the attribute is no integer.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Trilu { upper: attrs.int_or("upper", 1)? != 0 }))
}

impl Op for Trilu {
    fn name(&self) -> &str {
        "Trilu"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        Ok(vec![Fact::tensor(x.dtype(), x.shape().map(<[_]>::to_vec))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let [.., rows, columns] = *x.shape() else {
            return Err(OpError::shape(format!("the input has shape {:?}, fewer than two axes", x.shape())));
        };
        let k = if cx.datum(1).is_some() { params::scalar(cx, 1)? } else { 0 };
        let k = k.clamp(-(rows as i64) - 1, columns as i64 + 1);
        let zero = Tensor::zeros(x.dtype(), [1])?;
        let picks = (0..x.len()).map(|at| {
            let (r, c) = ((at / columns % rows) as i64, (at % columns) as i64);
            let keep = if self.upper { c - r >= k } else { c - r <= k };
            if keep { (0, at) } else { (1, 0) }
        });
        Ok(vec![moves::pick_blocks(&[x, &zero], x.shape(), 1, picks)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("upper", i64::from(self.upper), 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, ints};
    use super::*;

    #[test]
    fn survives_diagonals_far_outside() {
        let x = ints(&[2, 2], &[1, 2, 3, 4]);
        let run =
            |k: i64| eval("Trilu", 14, AttrMap::new(), &[x.clone(), ints(&[], &[k])]).unwrap()[0].to_i64s().unwrap();
        assert_eq!(run(0), [1, 2, 0, 4]);
        assert_eq!(run(i64::MAX), [0; 4]);
        assert_eq!(run(i64::MIN), [1, 2, 3, 4]);
        assert!(eval("Trilu", 14, AttrMap::new(), &[ints(&[2], &[1, 2])]).is_err());
        assert!(eval("Trilu", 14, AttrMap::new(), &[ints(&[0, 0], &[])]).is_ok());
    }
}
