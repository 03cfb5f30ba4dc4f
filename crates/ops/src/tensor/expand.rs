//! Expand: broadcasts the input to a shape.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::{Tensor, shape};

use super::{moves, params};
use crate::support::show;

/// The input broadcast together with the shape that input 1 gives; any type. Source: ONNX Expand.
#[derive(Debug, Clone, Copy)]
pub struct Expand;

/// Makes an Expand; it has no attributes.
///
/// # Errors
/// None.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Expand))
}

impl Op for Expand {
    fn name(&self) -> &str {
        "Expand"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        cx.get(1)?;
        let out = match (x.shape(), params::shape_input(cx, 1)?) {
            (Some(a), Some(b)) => Some(
                Dim::broadcast_shapes(a, &b)
                    .ok_or_else(|| OpError::shape(format!("shape {} can't be broadcast to {}", show(a), show(&b))))?,
            ),
            _ => None,
        };
        let dims = match (&x.dims, out.as_deref()) {
            (Some(d), Some([])) => Some(d.clone()),
            (Some(d), Some([Dim::Known(n)])) if *n >= 0 && *n <= Fact::MAX_DIMS as i64 => match d.as_slice() {
                [one] => Some(vec![one.clone(); *n as usize]),
                all => Some(all.to_vec()),
            },
            _ => None,
        };
        Ok(vec![Fact::tensor(x.dtype(), out).with_dims(dims)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let to = params::extents(&cx.get(1)?.to_i64s()?)?;
        Ok(vec![moves::broadcast_to(x, &shape::broadcast(x.shape(), &to)?)?])
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
    fn broadcasts_both_ways_or_refuses() {
        let x = ints(&[2, 1], &[1, 2]);
        let y = eval("Expand", 13, AttrMap::new(), &[x.clone(), ints(&[3], &[2, 1, 2])]).unwrap();
        assert_eq!(y[0].to_i64s().unwrap(), [1, 1, 2, 2, 1, 1, 2, 2]);
        for shape in [[3, 1], [-1, 1], [2, 1 << 50]] {
            assert!(eval("Expand", 13, AttrMap::new(), &[x.clone(), ints(&[2], &shape)]).is_err());
        }
    }
}
