//! Compress: the slices that a condition selects.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::{moves, params};

/// The slices of the input along `axis` where input 1 is true; of the flattened input without an axis.
///
/// The condition may be shorter than the axis. Source: ONNX Compress.
#[derive(Debug, Clone, Copy)]
pub struct Compress {
    /// The axis, in `[-rank, rank)`.
    pub axis: Option<i64>,
}

/// Makes a Compress from `axis`.
///
/// # Errors
/// When the attribute is no integer.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Compress { axis: attrs.int("axis")? }))
}

impl Op for Compress {
    fn name(&self) -> &str {
        "Compress"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let n =
            cx.value(1).and_then(|c| c.bools().ok()).map_or(Dim::Unknown, |c| c.iter().filter(|&&b| b).count().into());
        let shape = match (self.axis, x.shape()) {
            (None, _) => Some(vec![n]),
            (Some(_), None) => None,
            (Some(a), Some(s)) => {
                let mut out = s.to_vec();
                out[params::axis(a, s.len())?] = n;
                Some(out)
            }
        };
        Ok(vec![Fact::tensor(x.dtype(), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, condition) = (cx.get(0)?, cx.get(1)?);
        let picked: Vec<usize> =
            condition.bools()?.into_iter().enumerate().filter(|&(_, c)| c).map(|(i, _)| i).collect();
        Ok(vec![match self.axis {
            None => moves::take_axis(&x.reshaped([x.len()])?, 0, &picked, &[picked.len()])?,
            Some(a) => moves::take_axis(x, params::axis(a, x.rank())?, &picked, &[picked.len()])?,
        }])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_opt("axis", self.axis)
    }
}
