//! ReverseSequence: sequences of different lengths turned around.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::{Tensor, shape};

use super::{moves, params};

/// The first `lengths[b]` steps of each sequence `b` in reverse order, the others as they are; any type.
///
/// Source: ONNX ReverseSequence.
#[derive(Debug, Clone, Copy)]
pub struct ReverseSequence {
    /// Whether axis 0 is the batch and axis 1 the time, rather than the other way round.
    pub batch_first: bool,
}

/// Makes a ReverseSequence from `batch_axis` (1 by default) and `time_axis` (0 by default).
///
/// # Errors
/// When they are not 0 and 1 in either order.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    match (attrs.int_or("batch_axis", 1)?, attrs.int_or("time_axis", 0)?) {
        (1, 0) => Ok(Arc::new(ReverseSequence { batch_first: false })),
        (0, 1) => Ok(Arc::new(ReverseSequence { batch_first: true })),
        (b, t) => Err(OpError::attribute("batch_axis", format!("is {b} and time_axis {t}, expected 0 and 1"))),
    }
}

impl Op for ReverseSequence {
    fn name(&self) -> &str {
        "ReverseSequence"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        Ok(vec![Fact::tensor(x.dtype(), x.shape().map(<[_]>::to_vec))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, lengths) = (cx.get(0)?, cx.get(1)?);
        let [first, second, inner @ ..] = x.shape() else {
            return Err(OpError::shape(format!("the input has shape {:?}, fewer than two axes", x.shape())));
        };
        let (first, second, inner) = (*first, *second, shape::count(inner)?);
        let (batch, time) = if self.batch_first { (first, second) } else { (second, first) };
        let lengths = params::extents(&lengths.to_i64s()?)?;
        if lengths.len() != batch || lengths.iter().any(|&n| n > time) {
            return Err(OpError::Value(format!("lengths {lengths:?} do not fit {batch} sequences of {time} steps")));
        }
        if x.is_empty() {
            return Ok(vec![x.clone()]);
        }
        let picks = (0..first * second).map(|at| {
            let (i, j) = (at / second, at % second);
            let (b, t) = if self.batch_first { (i, j) } else { (j, i) };
            let t = if t < lengths[b] { lengths[b] - 1 - t } else { t };
            (0, if self.batch_first { b * second + t } else { t * second + b } * inner)
        });
        Ok(vec![moves::pick_blocks(&[x], x.shape(), inner, picks)?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        let (batch, time) = if self.batch_first { (0i64, 1i64) } else { (1, 0) };
        AttrMap::new().with_unless("batch_axis", batch, 1).with_unless("time_axis", time, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, ints};
    use super::*;

    #[test]
    fn refuses_lengths_that_do_not_fit() {
        let x = ints(&[3, 1], &[1, 2, 3]);
        let run = |n| eval("ReverseSequence", 10, AttrMap::new(), &[x.clone(), ints(&[1], &[n])]);
        assert_eq!(run(2).unwrap()[0].to_i64s().unwrap(), [2, 1, 3]);
        assert_eq!(run(0).unwrap()[0].to_i64s().unwrap(), [1, 2, 3]);
        assert!(run(4).is_err());
        assert!(run(-1).is_err());
        assert!(build(10, &mut AttrMap::new().with("batch_axis", 2i64)).is_err());
    }
}
