//! GatherND: slices of the input by index tuples.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole, check_size};
use narrowbit_tensor::{DType, Tensor, shape};

use super::{moves, params};
use crate::support::show;

/// `y[b…, i…] = data[b…, indices[b…, i…, :]]`, the first `batch_dims` axes shared; any type.
///
/// Source: ONNX GatherND.
#[derive(Debug, Clone, Copy)]
pub struct GatherNd {
    /// The number of leading axes that data and indices share (opset 12).
    pub batch_dims: usize,
}

/// Makes a GatherND from `batch_dims`, 0 by default.
///
/// # Errors
/// When the attribute is no integer or negative.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let b = attrs.int_or("batch_dims", 0)?;
    let batch_dims =
        usize::try_from(b).map_err(|_| OpError::attribute("batch_dims", format!("is {b}, not a count")))?;
    Ok(Arc::new(GatherNd { batch_dims }))
}

/// The offsets in a tensor of `shape` of the slices that the tuples of `indices` name after `batch` shared axes.
///
/// # Errors
/// When the shapes do not fit or an index is out of range.
pub fn tuple_offsets(shape: &[usize], indices: &Tensor, batch: usize) -> Result<Vec<usize>, OpError> {
    let bad = || OpError::shape(format!("indices of shape {:?} do not fit data of shape {shape:?}", indices.shape()));
    let (&tuple, outer) = indices.shape().split_last().ok_or_else(bad)?;
    let end = batch.checked_add(tuple).filter(|&e| e <= shape.len()).ok_or_else(bad)?;
    if batch > outer.len() || shape[..batch] != outer[..batch] {
        return Err(bad());
    }
    let strides = shape::strides(shape);
    let batches = shape::count(&outer[..batch])?;
    let per_batch = shape::count(&outer[batch..])?;
    let list = indices.to_i64s()?;
    if shape.contains(&0) && batches.saturating_mul(per_batch) > 0 && shape[batch..end].contains(&0) {
        return Err(bad());
    }
    let batch_stride = if batch == 0 { 0 } else { strides[batch - 1] };
    if tuple == 0 {
        // Empty tuples take no memory themselves: nothing else bounds their number.
        check_size(DType::I64, &[batches, per_batch])?;
        return Ok((0..batches).flat_map(|b| std::iter::repeat_n(b * batch_stride, per_batch)).collect());
    }
    let mut out = Vec::with_capacity(list.len() / tuple);
    for (i, t) in list.chunks_exact(tuple).enumerate() {
        let mut at = (i / per_batch.max(1)) * batch_stride;
        for (k, &v) in t.iter().enumerate() {
            at += params::index(v, shape[batch + k])? * strides[batch + k];
        }
        out.push(at);
    }
    Ok(out)
}

impl Op for GatherNd {
    fn name(&self) -> &str {
        "GatherND"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let (x, indices) = (cx.get(0)?, cx.get(1)?);
        let shape = match (x.shape(), indices.shape()) {
            (Some(s), Some(i)) => match i.split_last() {
                Some((Dim::Known(n), outer)) => {
                    let end = usize::try_from(*n).ok().and_then(|n| n.checked_add(self.batch_dims));
                    let end = end.filter(|&e| e <= s.len()).ok_or_else(|| {
                        OpError::shape(format!("indices of shape {} do not fit data of shape {}", show(i), show(s)))
                    })?;
                    Some([outer, &s[end..]].concat())
                }
                Some(_) => None,
                None => return Err(OpError::shape("the indices have no axis")),
            },
            _ => None,
        };
        Ok(vec![Fact::tensor(x.dtype(), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, indices) = (cx.get(0)?, cx.get(1)?);
        let offsets = tuple_offsets(x.shape(), indices, self.batch_dims)?;
        let (tuple, outer) = indices.shape().split_last().ok_or(OpError::MissingInput(1))?;
        let inner = &x.shape()[self.batch_dims + tuple..];
        let out = [outer, inner].concat();
        if out.contains(&0) {
            return Ok(vec![Tensor::zeros(x.dtype(), out)?]);
        }
        Ok(vec![moves::pick_blocks(&[x], &out, shape::count(inner)?, offsets.into_iter().map(|o| (0, o)))?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("batch_dims", self.batch_dims as i64, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    #[test]
    fn takes_elements_and_slices() {
        let x = Datum::Tensor(Tensor::new([2, 2], vec![0i32, 1, 2, 3]).unwrap());
        let run = |batch_dims, shape: &[usize], v: Vec<i64>| {
            let i = Datum::Tensor(Tensor::new(shape, v).unwrap());
            GatherNd { batch_dims }.eval(&EvalCx::new(&[Some(&x), Some(&i)], 1)).map(|t| t[0].to_i64s().unwrap())
        };
        assert_eq!(run(0, &[2, 2], vec![0, 0, -1, -1]).unwrap(), [0, 3]);
        assert_eq!(run(0, &[1, 1], vec![1]).unwrap(), [2, 3]);
        assert_eq!(run(1, &[2, 1], vec![1, 0]).unwrap(), [1, 2]);
        assert!(run(0, &[1, 3], vec![0, 0, 0]).is_err());
        assert!(run(0, &[1, 1], vec![2]).is_err());
        assert!(run(2, &[1, 1], vec![0]).is_err());
    }
}
