//! NegativeLogLikelihoodLoss: the loss of log-probabilities.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::loss::LossAttrs;
use super::stats::floats;

/// `loss[n, …] = −weight[t]·input[n, t, …]` with `t = target[n, …]`, reduced as asked.
///
/// Inputs: log-probabilities `[N, C, …]` of a floating-point type, targets `[N, …]` (i32 or
/// i64), optional weights `[C]`. Source: ONNX operator NegativeLogLikelihoodLoss (12, 13, 22).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NegativeLogLikelihoodLoss {
    /// Reduction and ignored targets.
    pub loss: LossAttrs,
}

/// Makes a NegativeLogLikelihoodLoss.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(NegativeLogLikelihoodLoss { loss: LossAttrs::take(attrs)? }))
}

impl Op for NegativeLogLikelihoodLoss {
    fn name(&self) -> &str {
        "NegativeLogLikelihoodLoss"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![self.loss.infer(cx)?])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        Ok(vec![self.loss.eval(cx, &floats(cx, 0)?)?])
    }

    fn attrs(&self) -> AttrMap {
        self.loss.put(AttrMap::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    fn eval(attrs: AttrMap, targets: [i64; 2]) -> Result<Vec<f32>, OpError> {
        let op = build(13, &mut attrs.clone()).unwrap();
        let (x, w) = (tensor([2, 2], &[-1., -2., -3., -4.]), tensor([2], &[1., 3.]));
        let t = Tensor::vector(targets.to_vec());
        run(&*op, &[Some(&x), Some(&t), Some(&w)], 1).map(|y| f32s(&y[0]))
    }

    #[test]
    fn weights_and_reduces_losses() {
        assert_eq!(eval(AttrMap::new(), [0, 1]).unwrap(), [13. / 4.]);
        assert_eq!(eval(AttrMap::new().with("reduction", "none"), [0, 1]).unwrap(), [1., 12.]);
        let ignore = AttrMap::new().with("reduction", "sum").with("ignore_index", -1i64);
        assert_eq!(eval(ignore, [-1, 1]).unwrap(), [12.]);
    }

    #[test]
    fn refuses_targets_that_are_no_class() {
        assert!(eval(AttrMap::new(), [0, 2]).is_err());
        assert!(eval(AttrMap::new(), [-1, 0]).is_err());
        assert!(build(13, &mut AttrMap::new().with("reduction", "max")).is_err());
    }
}
