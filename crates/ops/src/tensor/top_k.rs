//! TopK: the largest or smallest elements along an axis.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor, memory, shape};

use super::keys::sort_keys;
use super::{moves, params};

/// The `k` largest (or smallest) elements along an axis and their indices (i64); equal ones in order of their index.
///
/// The result is sorted whether that is asked for or not. Source: ONNX TopK.
#[derive(Debug, Clone, Copy)]
pub struct TopK {
    /// The axis, in `[-rank, rank)`.
    pub axis: i64,
    /// Whether the largest are taken (an attribute from opset 11 on).
    pub largest: bool,
    /// Whether they must be sorted (an attribute from opset 11 on).
    pub sorted: bool,
    /// The number of elements as an attribute, before opset 10; input 1 from then on.
    pub k: Option<i64>,
}

/// Makes a TopK.
///
/// # Errors
/// When an attribute is no integer, or `k` is missing where it is an attribute.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let k = if opset < 10 { Some(attrs.int("k")?.ok_or_else(|| OpError::attribute("k", "is missing"))?) } else { None };
    Ok(Arc::new(TopK {
        axis: attrs.int_or("axis", -1)?,
        largest: attrs.int_or("largest", 1)? != 0,
        sorted: attrs.int_or("sorted", 1)? != 0,
        k,
    }))
}

impl Op for TopK {
    fn name(&self) -> &str {
        "TopK"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let k = match (self.k, cx.dims(1)) {
            (Some(k), _) => Dim::Known(k),
            (None, Some([k])) => k.clone(),
            _ => Dim::Unknown,
        };
        let shape = match x.shape() {
            None => None,
            Some(s) => {
                let axis = params::axis(self.axis, s.len())?;
                let most = s[axis].as_known().unwrap_or(i64::MAX);
                if k.as_known().is_some_and(|k| !(0..=most).contains(&k)) {
                    return Err(OpError::shape(format!("{k} elements of an axis of {} are asked for", s[axis])));
                }
                let mut out = s.to_vec();
                out[axis] = k;
                Some(out)
            }
        };
        Ok(vec![Fact::tensor(x.dtype(), shape.clone()), Fact::tensor(Some(DType::I64), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let axis = params::axis(self.axis, x.rank())?;
        let n = x.shape()[axis];
        let k = match self.k {
            Some(k) => k,
            None => params::scalar(cx, 1)?,
        };
        let k = usize::try_from(k).ok().filter(|&k| k <= n);
        let k = k.ok_or_else(|| OpError::Value(format!("k does not lie in [0, {n}], the extent of axis {axis}")))?;
        let mut out = x.shape().to_vec();
        out[axis] = k;
        if out.contains(&0) {
            return Ok(vec![Tensor::zeros(x.dtype(), out.clone())?, Tensor::zeros(DType::I64, out)?]);
        }
        let (outer, inner) = (shape::count(&x.shape()[..axis])?, shape::count(&x.shape()[axis + 1..])?);
        let selected = check_size(DType::I64, &out)?;
        // Keys and places of all elements; places, offsets and indices of those that are selected.
        let places = |n: usize, each: usize| n.saturating_mul(each * size_of::<usize>());
        memory::check(0, places(x.len(), 2).saturating_add(places(n, 1)).saturating_add(places(selected, 3)))?;
        let keys = sort_keys(x)?;
        let mut places = vec![0usize; outer * k * inner];
        let mut order: Vec<usize> = Vec::with_capacity(n);
        for o in 0..outer {
            for i in 0..inner {
                let key = |j: usize| keys[(o * n + j) * inner + i];
                order.clear();
                order.extend(0..n);
                let compare = |&a: &usize, &b: &usize| {
                    let by_key = if self.largest { key(b).cmp(&key(a)) } else { key(a).cmp(&key(b)) };
                    by_key.then(a.cmp(&b))
                };
                if k < n {
                    order.select_nth_unstable_by(k - 1, compare);
                }
                order[..k].sort_unstable_by(compare);
                (0..k).for_each(|j| places[(o * k + j) * inner + i] = order[j]);
            }
        }
        let indices: Vec<i64> = places.iter().map(|&j| j as i64).collect();
        let offsets = places.iter().enumerate().map(|(at, &j)| (at / (k * inner) * n + j) * inner + at % inner);
        Ok(vec![moves::take(x, &out, offsets)?, Tensor::new(out, indices)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_unless("axis", self.axis, -1)
            .with_unless("largest", i64::from(self.largest), 1)
            .with_unless("sorted", i64::from(self.sorted), 1)
            .with_opt("k", self.k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    #[test]
    fn takes_the_first_of_equal_elements() {
        let x = Datum::Tensor(Tensor::new([2, 3], vec![1f32, 3.0, 3.0, -0.0, 0.0, -1.0]).unwrap());
        let op = build(9, &mut AttrMap::new().with("k", 2i64)).unwrap();
        let out = op.eval(&EvalCx::new(&[Some(&x)], 2)).unwrap();
        assert_eq!(out[0].to_f64s().unwrap(), [3.0, 3.0, 0.0, 0.0]);
        assert_eq!(out[1].to_i64s().unwrap(), [1, 2, 0, 1]);
        for k in [4i64, -1] {
            let op = build(9, &mut AttrMap::new().with("k", k)).unwrap();
            assert!(op.eval(&EvalCx::new(&[Some(&x)], 2)).is_err());
        }
    }
}
