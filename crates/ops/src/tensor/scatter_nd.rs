//! ScatterND: slices written at index tuples.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{Tensor, shape};

use super::gather_nd::tuple_offsets;
use super::scatter::{Reduction, scatter};

/// `y = data; y[indices[i…, :]] = updates[i…]`. Source: ONNX ScatterND.
#[derive(Debug, Clone, Copy)]
pub struct ScatterNd {
    /// What becomes of an element that is updated (opset 16).
    pub reduction: Reduction,
}

/// Makes a ScatterND from `reduction`.
///
/// # Errors
/// When the attribute is wrong.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(ScatterNd { reduction: Reduction::take(attrs)? }))
}

impl Op for ScatterNd {
    fn name(&self) -> &str {
        "ScatterND"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        Ok(vec![Fact::tensor(x.dtype(), x.shape().map(<[_]>::to_vec))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, indices, updates) = (cx.get(0)?, cx.get(1)?, cx.get(2)?);
        let targets = tuple_offsets(x.shape(), indices, 0)?;
        let Some((&tuple, outer)) = indices.shape().split_last() else {
            return Err(OpError::shape("the indices have no axis"));
        };
        let inner = &x.shape()[tuple..];
        if [outer, inner].concat() != updates.shape() {
            let message = format!("updates of shape {:?}, expected {:?}", updates.shape(), [outer, inner].concat());
            return Err(OpError::shape(message));
        }
        Ok(vec![scatter(x, updates, &targets, shape::count(inner)?, self.reduction)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("reduction", self.reduction.name(), "none")
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, ints};
    use super::*;

    #[test]
    fn refuses_updates_of_another_shape() {
        let run = |index: i64, n: usize| {
            let attrs = AttrMap::new().with("reduction", "add");
            eval(
                "ScatterND",
                16,
                attrs,
                &[ints(&[2, 2], &[1, 2, 3, 4]), ints(&[1, 1], &[index]), ints(&[1, n], &vec![5; n])],
            )
        };
        assert_eq!(run(-1, 2).unwrap()[0].to_i64s().unwrap(), [1, 2, 8, 9]);
        assert!(run(0, 1).is_err());
        assert!(run(2, 2).is_err());
    }
}
