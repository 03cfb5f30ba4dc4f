//! ScatterElements and its older name Scatter: single elements written along one axis.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::gather_elements::element_offsets;
use super::params;
use super::scatter::{Reduction, scatter};

/// `y = data; y[indices[i][j]][j] = updates[i][j]` for axis 0 of a matrix, likewise for others.
///
/// Source: ONNX ScatterElements.
#[derive(Debug, Clone, Copy)]
pub struct ScatterElements {
    /// The axis, in `[-rank, rank)`.
    pub axis: i64,
    /// What becomes of an element that is updated (opset 16).
    pub reduction: Reduction,
    /// Whether the node is called Scatter, as until opset 10.
    pub old_name: bool,
}

/// Makes a ScatterElements from `axis` and `reduction`.
///
/// # Errors
/// When an attribute is wrong.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let reduction = Reduction::take(attrs)?;
    Ok(Arc::new(ScatterElements { axis: attrs.int_or("axis", 0)?, reduction, old_name: false }))
}

/// Makes a Scatter from `axis`.
///
/// # Errors
/// When the attribute is no integer.
pub fn build_scatter(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(ScatterElements { axis: attrs.int_or("axis", 0)?, reduction: Reduction::None, old_name: true }))
}

impl Op for ScatterElements {
    fn name(&self) -> &str {
        if self.old_name { "Scatter" } else { "ScatterElements" }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        if let Some(s) = x.shape() {
            params::axis(self.axis, s.len())?;
        }
        Ok(vec![Fact::tensor(x.dtype(), x.shape().map(<[_]>::to_vec))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, indices, updates) = (cx.get(0)?, cx.get(1)?, cx.get(2)?);
        if indices.shape() != updates.shape() {
            let message = format!("indices of shape {:?}, but updates of {:?}", indices.shape(), updates.shape());
            return Err(OpError::shape(message));
        }
        let targets = element_offsets(x.shape(), indices, params::axis(self.axis, x.rank())?)?;
        Ok(vec![scatter(x, updates, &targets, 1, self.reduction)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("axis", self.axis, 0).with_unless("reduction", self.reduction.name(), "none")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    fn eval(reduction: &str, indices: Vec<i64>) -> Result<Vec<i64>, OpError> {
        let op = build(18, &mut AttrMap::new().with("reduction", reduction))?;
        let x = Datum::Tensor(Tensor::vector(vec![5u8, 6, 7]));
        let (i, u) = (Datum::Tensor(Tensor::vector(indices)), Datum::Tensor(Tensor::vector(vec![250u8, 2])));
        Ok(op.eval(&EvalCx::new(&[Some(&x), Some(&i), Some(&u)], 1))?[0].to_i64s()?)
    }

    #[test]
    fn reduces_updates_of_one_element_in_order() {
        assert_eq!(eval("none", vec![-1, -1]).unwrap(), [5, 6, 2]);
        assert_eq!(eval("add", vec![1, 1]).unwrap(), [5, 2, 7]);
        assert_eq!(eval("max", vec![0, 1]).unwrap(), [250, 6, 7]);
        assert_eq!(eval("min", vec![0, 1]).unwrap(), [5, 2, 7]);
        assert!(eval("none", vec![3, 0]).is_err());
        assert!(eval("none", vec![0]).is_err());
        assert!(eval("other", vec![0, 0]).is_err());
    }
}
