//! Tile: the input repeated along each axis.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::{moves, params};

/// The input `repeats[a]` times along each axis `a`; any type. Source: ONNX Tile.
#[derive(Debug, Clone, Copy)]
pub struct Tile;

/// Makes a Tile; it has no attributes.
///
/// # Errors
/// None.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Tile))
}

impl Op for Tile {
    fn name(&self) -> &str {
        "Tile"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        cx.get(1)?;
        let shape = match (x.shape(), params::shape_input(cx, 1)?) {
            (Some(s), Some(r)) if s.len() == r.len() => Some(s.iter().zip(&r).map(|(d, r)| d.mul(r)).collect()),
            (Some(s), Some(r)) => {
                return Err(OpError::shape(format!("{} repeats for an input of {} axes", r.len(), s.len())));
            }
            (Some(s), None) => Some(params::unknown(s.len())),
            (None, r) => r.map(|r| params::unknown(r.len())),
        };
        let dims = match (&x.dims, shape.as_deref()) {
            (Some(d), Some([Dim::Known(n)])) if *n >= 0 && *n <= Fact::MAX_DIMS as i64 => {
                Some(d.iter().cycle().take(*n as usize).cloned().collect())
            }
            _ => None,
        };
        Ok(vec![Fact::tensor(x.dtype(), shape).with_dims(dims)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let repeats = params::extents(&cx.get(1)?.to_i64s()?)?;
        if repeats.len() != x.rank() {
            return Err(OpError::shape(format!("{} repeats for an input of {} axes", repeats.len(), x.rank())));
        }
        let shape: Vec<usize> = x.shape().iter().zip(&repeats).map(|(&d, &r)| d.saturating_mul(r)).collect();
        Ok(vec![moves::remap(x, &shape, |a, i| Some(i % x.shape()[a]), None)?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, ints};
    use super::*;

    #[test]
    fn repeats_or_refuses() {
        let x = ints(&[2], &[1, 2]);
        let y = eval("Tile", 13, AttrMap::new(), &[x.clone(), ints(&[1], &[2])]).unwrap();
        assert_eq!(y[0].to_i64s().unwrap(), [1, 2, 1, 2]);
        for repeats in [vec![-1], vec![1, 1], vec![i64::MAX]] {
            assert!(eval("Tile", 13, AttrMap::new(), &[x.clone(), ints(&[repeats.len()], &repeats)]).is_err());
        }
    }
}
