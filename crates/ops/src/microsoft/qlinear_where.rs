//! QLinearWhere: a selection of two quantized tensors, requantized.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::support::{DOMAIN, Params, broadcast};
use crate::quant::params::{from_ints, ints};

/// `z = quantize(condition ? dequantize(x) : dequantize(y))`, broadcast; 8 bits, one type.
///
/// Inputs: condition, x, x_scale, x_zero_point, y, y_scale, y_zero_point, z_scale, z_zero_point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QLinearWhere;

/// Makes a QLinearWhere; it has no attributes.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(QLinearWhere))
}

/// The codes of a tensor in the parameters of an output; the same codes where they agree.
pub(crate) fn requantize(x: &Tensor, from: &Params, to: &Params) -> Result<Vec<i32>, OpError> {
    let codes = ints(x)?;
    if from == to {
        return Ok(codes);
    }
    let table = from.table(to, |v| v);
    Ok(codes.into_iter().map(|c| table[(c - from.least()) as usize]).collect())
}

impl Op for QLinearWhere {
    fn name(&self) -> &str {
        "QLinearWhere"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let shape = [0, 1, 4].iter().try_fold(Some(Vec::new()), |out: Option<Vec<Dim>>, &i| {
            let (Some(a), Some(b)) = (out, cx.shape(i)) else { return Ok(None) };
            Dim::broadcast_shapes(&a, b)
                .map(Some)
                .ok_or_else(|| OpError::shape(format!("input {i} can't be broadcast to {}", crate::support::show(&a))))
        })?;
        Ok(vec![Fact::tensor(cx.get(1)?.dtype(), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (c, x, y) = (cx.get(0)?, cx.get(1)?, cx.get(4)?);
        let out = Params::read(cx, 7, x.dtype())?;
        let xs = requantize(x, &Params::read(cx, 2, x.dtype())?, &out)?;
        let ys = requantize(y, &Params::read(cx, 5, x.dtype())?, &out)?;
        let conditions = c.bools()?;
        let (shape, at) = broadcast(x.dtype(), &[c.shape(), x.shape(), y.shape()])?;
        let z = (0..at[0].len()).map(|i| if conditions[at[0][i]] { xs[at[1][i]] } else { ys[at[2][i]] }).collect();
        Ok(vec![from_ints(x.dtype(), &shape, z)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}
