//! OneHot: a new axis with one element switched on.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{Tensor, shape};

use super::{moves, params};

/// `values[1]` where the place along the new axis of extent `depth` equals the index, `values[0]` elsewhere.
///
/// Negative indices count from the back; those outside of `[-depth, depth)` switch nothing on. Source: ONNX OneHot.
#[derive(Debug, Clone, Copy)]
pub struct OneHot {
    /// The new axis, counted in the output.
    pub axis: i64,
}

/// Makes a OneHot from `axis`, -1 by default.
///
/// # Errors
/// When the attribute is no integer.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(OneHot { axis: attrs.int_or("axis", -1)? }))
}

/// Integers from a tensor of any numeric type; fractions are cut off.
fn whole(t: &Tensor) -> Result<Vec<i64>, OpError> {
    if t.dtype().is_float() {
        return Ok(t.to_f64s()?.into_iter().map(|v| v as i64).collect());
    }
    Ok(t.to_i64s()?)
}

impl Op for OneHot {
    fn name(&self) -> &str {
        "OneHot"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let indices = cx.get(0)?;
        let depth = match (cx.dims(1), cx.value(1)) {
            (Some([d]), _) => d.clone(),
            (_, Some(v)) => whole(v)?.first().map_or(Dim::Unknown, |&d| Dim::Known(d)),
            _ => Dim::Unknown,
        };
        if let Some(d) = depth.as_known().filter(|&d| d < 0) {
            return Err(OpError::Value(format!("the depth {d} is negative")));
        }
        let shape = match indices.shape() {
            None => None,
            Some(s) => {
                let mut out = s.to_vec();
                out.insert(params::axis(self.axis, s.len() + 1)?, depth);
                Some(out)
            }
        };
        Ok(vec![Fact::tensor(cx.dtype(2), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (indices, values) = (cx.get(0)?, cx.get(2)?);
        let depth = *whole(cx.get(1)?)?.first().ok_or_else(|| OpError::input(1, "an empty tensor", "a scalar"))?;
        let depth = params::extents(&[depth])?[0];
        if values.len() != 2 {
            return Err(OpError::input(2, format!("{} values", values.len()), "the off and the on value"));
        }
        let axis = params::axis(self.axis, indices.rank() + 1)?;
        let mut out = indices.shape().to_vec();
        out.insert(axis, depth);
        narrowbit_ir::check_size(values.dtype(), &out)?;
        let on: Vec<Option<usize>> = whole(indices)?.into_iter().map(|i| params::index(i, depth).ok()).collect();
        let inner = shape::count(&indices.shape()[axis..])?;
        let outer = shape::count(&indices.shape()[..axis])?;
        let outer = if on.is_empty() { 0 } else { outer };
        let on = &on;
        let picks = (0..outer).flat_map(|o| {
            (0..depth).flat_map(move |k| (0..inner).map(move |i| (0, usize::from(on[o * inner + i] == Some(k)))))
        });
        Ok(vec![moves::pick_blocks(&[values], &out, 1, picks)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("axis", self.axis, -1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, ints};
    use super::*;

    #[test]
    fn switches_nothing_on_out_of_range() {
        let run = |depth| {
            eval("OneHot", 11, AttrMap::new(), &[ints(&[3], &[0, -1, 5]), ints(&[], &[depth]), ints(&[2], &[7, 8])])
        };
        assert_eq!(run(2).unwrap()[0].to_i64s().unwrap(), [8, 7, 7, 8, 7, 7]);
        assert_eq!(run(0).unwrap()[0].shape(), [3, 0]);
        assert!(run(-1).is_err());
        assert!(run(1 << 50).is_err());
    }
}
