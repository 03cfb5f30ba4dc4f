//! SplitToSequence and ConcatFromSequence: between a tensor and a sequence of its parts.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Datum, Dim, EvalCx, Fact, InferCx, Op, OpError, TensorType, ValueType};
use narrowbit_tensor::Tensor;

use super::sequence::sequence;
use super::support::{axis, concat, slice_axis, stack, tensors};

/// Cuts a tensor along an axis into parts of equal size (`split` a scalar; the last part may be
/// smaller), of given sizes (`split` a vector), or of one element (ONNX SplitToSequence 11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitToSequence {
    /// The axis to cut along.
    pub axis: i64,
    /// Whether parts of one element keep the axis; ignored where `split` is given.
    pub keepdims: bool,
}

/// Makes a SplitToSequence.
pub fn build_split(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(SplitToSequence { axis: attrs.int_or("axis", 0)?, keepdims: attrs.int_or("keepdims", 1)? != 0 }))
}

impl SplitToSequence {
    fn sizes(&self, extent: usize, split: Option<&Tensor>) -> Result<Vec<usize>, OpError> {
        let Some(split) = split else { return Ok(vec![1; extent]) };
        let values = split.to_i64s()?;
        let bad = || OpError::Value(format!("split {values:?} does not fit an extent of {extent}"));
        let sizes: Vec<usize> =
            values.iter().map(|&n| usize::try_from(n).map_err(|_| bad())).collect::<Result<_, _>>()?;
        match (split.rank(), sizes.as_slice()) {
            (0, [n]) if *n > 0 => Ok((0..extent).step_by(*n).map(|i| (*n).min(extent - i)).collect()),
            (1, s) if s.iter().try_fold(0usize, |a, &b| a.checked_add(b)) == Some(extent) => Ok(sizes),
            _ => Err(bad()),
        }
    }
}

impl Op for SplitToSequence {
    fn name(&self) -> &str {
        "SplitToSequence"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let shape = cx.shape(0).and_then(|s| {
            let a = narrowbit_tensor::shape::axis(self.axis, s.len())?;
            let mut s = s.to_vec();
            if cx.opt(1).is_some() {
                s[a] = Dim::Unknown;
            } else if self.keepdims {
                s[a] = Dim::Known(1);
            } else {
                s.remove(a);
            }
            Some(s)
        });
        let part = ValueType::Tensor(TensorType { dtype: cx.dtype(0), shape });
        Ok(vec![Fact { ty: ValueType::Sequence(Box::new(part)), ..Fact::default() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        tensors(self.eval_data(cx)?)
    }

    fn eval_data(&self, cx: &EvalCx) -> Result<Vec<Datum>, OpError> {
        let x = cx.get(0)?;
        let a = axis(self.axis, x.rank(), "axis")?;
        let sizes = self.sizes(x.shape()[a], cx.opt(1))?;
        let mut from = 0;
        let mut parts = Vec::with_capacity(sizes.len());
        for n in sizes {
            let mut part = slice_axis(x, a, from, n)?;
            if cx.opt(1).is_none() && !self.keepdims {
                let mut shape = part.shape().to_vec();
                shape.remove(a);
                part = part.reshaped(shape)?;
            }
            parts.push(Datum::Tensor(part));
            from += n;
        }
        Ok(vec![Datum::Sequence(parts)])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("axis", self.axis, 0).with_unless("keepdims", i64::from(self.keepdims), 1)
    }
}

/// Joins the tensors of a sequence along an existing or a new axis (ONNX ConcatFromSequence 11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConcatFromSequence {
    /// The axis.
    pub axis: i64,
    /// Whether the axis is a new one.
    pub new_axis: bool,
}

/// Makes a ConcatFromSequence.
pub fn build_concat(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let axis = attrs.int("axis")?.ok_or_else(|| OpError::attribute("axis", "is missing"))?;
    Ok(Arc::new(ConcatFromSequence { axis, new_axis: attrs.flag("new_axis")? }))
}

impl Op for ConcatFromSequence {
    fn name(&self) -> &str {
        "ConcatFromSequence"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let Some(ValueType::Sequence(element)) = cx.opt(0).map(|f| &f.ty) else { return Ok(vec![Fact::default()]) };
        let Some(t) = element.tensor() else { return Ok(vec![Fact::default()]) };
        let shape = t.shape.as_ref().and_then(|s| {
            let rank = s.len() + usize::from(self.new_axis);
            let a = narrowbit_tensor::shape::axis(self.axis, rank)?;
            let mut s = s.clone();
            if self.new_axis {
                s.insert(a, Dim::Unknown);
            } else {
                s[a] = Dim::Unknown;
            }
            Some(s)
        });
        Ok(vec![Fact::tensor(t.dtype, shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let parts = tensors(sequence(cx, 0)?.to_vec())?;
        let rank = parts.first().map_or(0, Tensor::rank) + usize::from(self.new_axis);
        let a = axis(self.axis, rank, "axis")?;
        Ok(vec![if self.new_axis { stack(&parts, a)? } else { concat(&parts, a)? }])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with("axis", self.axis).with_unless("new_axis", i64::from(self.new_axis), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_into_equal_parts_and_a_rest() {
        let op = SplitToSequence { axis: 0, keepdims: true };
        assert_eq!(op.sizes(5, Some(&Tensor::scalar(2i64))).unwrap(), [2, 2, 1]);
        assert_eq!(op.sizes(3, Some(&Tensor::vector(vec![1i32, 2]))).unwrap(), [1, 2]);
        assert_eq!(op.sizes(2, None).unwrap(), [1, 1]);
    }

    #[test]
    fn refuses_sizes_that_do_not_add_up() {
        let op = SplitToSequence { axis: 0, keepdims: true };
        assert!(op.sizes(3, Some(&Tensor::vector(vec![1i32, 1]))).is_err());
        assert!(op.sizes(3, Some(&Tensor::scalar(0i64))).is_err());
        assert!(op.sizes(3, Some(&Tensor::vector(vec![-1i64, 4]))).is_err());
    }
}
