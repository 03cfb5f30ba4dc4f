//! Gather: slices of the input by their indices along one axis.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::{moves, params};

/// The slices of `data` at `indices` along `axis`, the index shape in that axis' place; any type.
///
/// Negative indices count from the back. Source: ONNX Gather.
#[derive(Debug, Clone, Copy)]
pub struct Gather {
    /// The axis, in `[-rank, rank)`.
    pub axis: i64,
}

/// Makes a Gather from `axis`, 0 by default.
///
/// # Errors
/// When the attribute is no integer.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Gather { axis: attrs.int_or("axis", 0)? }))
}

fn contents(data: &Fact, indices: Option<Vec<Dim>>) -> Option<Vec<Dim>> {
    let from = data.dims.as_ref().filter(|_| data.shape().is_some_and(|s| s.len() == 1))?;
    let pick = |i: &Dim| from.get(params::index(i.as_known()?, from.len()).ok()?).cloned();
    indices?.iter().map(pick).collect()
}

impl Op for Gather {
    fn name(&self) -> &str {
        "Gather"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let indices = cx.get(1)?;
        let shape = match (x.shape(), indices.shape()) {
            (Some(s), Some(i)) => {
                let axis = params::axis(self.axis, s.len())?;
                Some([&s[..axis], i, &s[axis + 1..]].concat())
            }
            _ => None,
        };
        let small = indices.shape().is_some_and(|s| s.len() <= 1);
        let dims = if small { contents(x, params::dims(cx, 1)) } else { None };
        Ok(vec![Fact::tensor(x.dtype(), shape).with_dims(dims)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, indices) = (cx.get(0)?, cx.get(1)?);
        let axis = params::axis(self.axis, x.rank())?;
        let n = x.shape()[axis];
        let list = indices.to_i64s()?.into_iter().map(|i| params::index(i, n)).collect::<Result<Vec<_>, _>>()?;
        Ok(vec![moves::take_axis(x, axis, &list, indices.shape())?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("axis", self.axis, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;
    use narrowbit_tensor::DType;

    #[test]
    fn takes_extents_out_of_a_shape() {
        let dims = vec![Dim::sym("batch"), Dim::sym("seq")];
        let x = Fact::tensor(Some(DType::I64), Some(vec![Dim::Known(2)])).with_dims(Some(dims));
        for (index, out) in [(Tensor::scalar(-1i64), vec![]), (Tensor::vector(vec![1i64]), vec![Dim::Known(1)])] {
            let index = Fact::constant(index);
            let facts = Gather { axis: 0 }.infer(&InferCx::new(&[Some(&x), Some(&index)], 1)).unwrap();
            assert_eq!(facts[0].dims, Some(vec![Dim::sym("seq")]));
            assert_eq!(facts[0].shape(), Some(&out[..]));
        }
    }

    #[test]
    fn refuses_indices_out_of_range() {
        let x = Datum::Tensor(Tensor::vector(vec![1i32, 2]));
        for i in [2, -3, i64::MIN, i64::MAX] {
            let i = Datum::Tensor(Tensor::scalar(i));
            assert!(Gather { axis: 0 }.eval(&EvalCx::new(&[Some(&x), Some(&i)], 1)).is_err());
        }
    }
}
