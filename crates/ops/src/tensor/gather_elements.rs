//! GatherElements: one element per index, at the index' own place along the other axes.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::{Tensor, shape};

use super::{moves, params};

/// `y[i][j] = data[indices[i][j]][j]` for axis 0 of a matrix, likewise for others; any type.
///
/// Source: ONNX GatherElements.
#[derive(Debug, Clone, Copy)]
pub struct GatherElements {
    /// The axis, in `[-rank, rank)`.
    pub axis: i64,
}

/// Makes a GatherElements from `axis`, 0 by default.
///
/// # Errors
/// When the attribute is no integer.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(GatherElements { axis: attrs.int_or("axis", 0)? }))
}

/// The offset in a tensor of `shape` that each element of `indices` stands for along `axis`.
///
/// # Errors
/// When the shapes do not fit or an index is out of range.
pub fn element_offsets(shape: &[usize], indices: &Tensor, axis: usize) -> Result<Vec<usize>, OpError> {
    let to = indices.shape();
    let fits = to.len() == shape.len() && (0..to.len()).all(|a| a == axis || to[a] <= shape[a]);
    if !fits && !indices.is_empty() {
        return Err(OpError::shape(format!("indices of shape {to:?} do not fit data of shape {shape:?}")));
    }
    let mut strides = shape::strides(shape);
    let stride = std::mem::take(&mut strides[axis]);
    let list = indices.to_i64s()?;
    list.into_iter()
        .zip(shape::offsets(to, &strides))
        .map(|(i, base)| Ok(base + params::index(i, shape[axis])? * stride))
        .collect()
}

impl Op for GatherElements {
    fn name(&self) -> &str {
        "GatherElements"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let (x, indices) = (cx.get(0)?, cx.get(1)?);
        if let Some(s) = x.shape() {
            params::axis(self.axis, s.len())?;
        }
        let shape = indices.shape().map(<[_]>::to_vec).or_else(|| Some(params::unknown(x.shape()?.len())));
        Ok(vec![Fact::tensor(x.dtype(), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, indices) = (cx.get(0)?, cx.get(1)?);
        let axis = params::axis(self.axis, x.rank())?;
        let offsets = element_offsets(x.shape(), indices, axis)?;
        Ok(vec![moves::take(x, indices.shape(), offsets.into_iter())?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("axis", self.axis, 0)
    }
}
