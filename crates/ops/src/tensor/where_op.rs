//! Where: one of two inputs per element.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::{Tensor, shape};

use super::moves;
use crate::support::broadcast_all;

/// `y = condition ? x : y`, all three broadcast together; any type. Source: ONNX Where.
#[derive(Debug, Clone, Copy)]
pub struct Where;

/// Makes a Where; it has no attributes.
///
/// # Errors
/// None.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Where))
}

/// The contents of a shape computation: where both sides are the same the condition need not be known.
fn contents(cx: &InferCx, n: usize) -> Option<Vec<Dim>> {
    let condition: Option<Vec<Dim>> = match (cx.dims(0), cx.value(0)) {
        (Some(d), _) => Some(d.to_vec()),
        (None, Some(v)) if v.len() <= Fact::MAX_DIMS => Some(v.to_i64s().ok()?.into_iter().map(Dim::Known).collect()),
        _ => None,
    };
    let at = |v: &[Dim], i: usize| v.get(if v.len() == 1 { 0 } else { i }).cloned();
    let pick = |i: usize| {
        let a = cx.dims(1).and_then(|d| at(d, i));
        let b = cx.dims(2).and_then(|d| at(d, i));
        match condition.as_ref().and_then(|c| at(c, i)) {
            Some(Dim::Known(0)) => b,
            Some(Dim::Known(_)) => a,
            _ => a.filter(|a| b.is_some_and(|b| a.same(&b))),
        }
        .unwrap_or(Dim::Unknown)
    };
    let out: Vec<Dim> = (0..n).map(pick).collect();
    out.iter().any(|d| *d != Dim::Unknown).then_some(out)
}

impl Op for Where {
    fn name(&self) -> &str {
        "Where"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        cx.get(2)?;
        let shape = broadcast_all(cx)?;
        let n = match shape.as_deref() {
            Some([]) => Some(1),
            Some([d]) => d.as_usize().filter(|&n| n <= Fact::MAX_DIMS),
            _ => None,
        };
        let dtype = cx.dtype(1).or(cx.dtype(2));
        let dims = n.filter(|_| dtype.is_some_and(|d| d.is_int())).and_then(|n| contents(cx, n));
        Ok(vec![Fact::tensor(dtype, shape).with_dims(dims)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (c, a, b) = (cx.get(0)?, cx.get(1)?, cx.get(2)?);
        let out = shape::broadcast(&shape::broadcast(c.shape(), a.shape())?, b.shape())?;
        let flags = c.bools()?;
        let strides = [c, a, b].map(|t| shape::broadcast_strides(t.shape(), &out));
        let [c, x, y] = strides.each_ref().map(|s| shape::offsets(&out, s));
        let picks = c.zip(x.zip(y)).map(|(c, (x, y))| if flags[c] { (0, x) } else { (1, y) });
        Ok(vec![moves::pick_blocks(&[a, b], &out, 1, picks)?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Float
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_tensor::DType;

    #[test]
    fn keeps_extents_that_a_known_condition_picks() {
        let vector = |d: Vec<Dim>| Fact::tensor(Some(DType::I64), Some(vec![d.len().into()])).with_dims(Some(d));
        let c = Fact::constant(Tensor::from_bools([2], vec![true, false]).unwrap());
        let a = vector(vec![Dim::Known(1), Dim::Known(1)]);
        let b = vector(vec![Dim::sym("n"), Dim::sym("m")]);
        let facts = Where.infer(&InferCx::new(&[Some(&c), Some(&a), Some(&b)], 1)).unwrap();
        assert_eq!(facts[0].dims, Some(vec![Dim::Known(1), Dim::sym("m")]));
        let unknown = Fact::tensor(Some(DType::Bool), Some(vec![Dim::Known(2)]));
        let facts = Where.infer(&InferCx::new(&[Some(&unknown), Some(&b), Some(&b)], 1)).unwrap();
        assert_eq!(facts[0].dims, b.dims);
    }
}
