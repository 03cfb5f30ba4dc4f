//! SoftmaxCrossEntropyLoss: the loss of scores, through a log-softmax over the classes.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::loss::{LossAttrs, extents};
use super::stats::floats;

/// `log_prob = scores − ln Σ exp(scores)` over the classes, then as NegativeLogLikelihoodLoss.
///
/// Inputs: scores `[N, C, …]` of a floating-point type, labels `[N, …]` (i32 or i64), optional
/// weights `[C]`. Outputs: the loss, and optionally log_prob as scores. Source: ONNX operator
/// SoftmaxCrossEntropyLoss (12, 13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoftmaxCrossEntropyLoss {
    /// Reduction and ignored labels.
    pub loss: LossAttrs,
}

/// Makes a SoftmaxCrossEntropyLoss.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(SoftmaxCrossEntropyLoss { loss: LossAttrs::take(attrs)? }))
}

impl Op for SoftmaxCrossEntropyLoss {
    fn name(&self) -> &str {
        "SoftmaxCrossEntropyLoss"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let log_prob = Fact { ty: cx.get(0)?.ty.clone(), ..Fact::default() };
        Ok(vec![self.loss.infer(cx)?, log_prob])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let (_, c, size) = extents(x)?;
        let mut log_prob = floats(cx, 0)?;
        for sample in log_prob.chunks_exact_mut(c * size) {
            for i in 0..size {
                let scores = sample[i..].iter().step_by(size);
                let max = scores.clone().copied().fold(f64::NEG_INFINITY, f64::max);
                let norm = max + scores.map(|v| (v - max).exp()).sum::<f64>().ln();
                sample[i..].iter_mut().step_by(size).for_each(|v| *v -= norm);
            }
        }
        let mut outs = vec![self.loss.eval(cx, &log_prob)?];
        if cx.n_outputs() > 1 {
            outs.push(Tensor::from_f64s(x.dtype(), x.shape(), &log_prob)?);
        }
        Ok(outs)
    }

    fn attrs(&self) -> AttrMap {
        self.loss.put(AttrMap::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{assert_close, run, tensor};

    #[test]
    fn takes_the_log_softmax_over_classes() {
        let op = build(13, &mut AttrMap::new()).unwrap();
        let (x, t) = (tensor([1, 2, 2], &[0., 1000., 0., 1000.]), Tensor::new([1, 2], vec![0i64, 1]).unwrap());
        let y = run(&*op, &[Some(&x), Some(&t)], 2).unwrap();
        let ln2 = 2f32.ln();
        // One rounding of a logarithm in f64.
        assert_close(&y[0], &[ln2], 1e-6);
        assert_close(&y[1], &[-ln2; 4], 1e-6);
    }

    #[test]
    fn refuses_labels_of_another_shape() {
        let op = build(13, &mut AttrMap::new()).unwrap();
        let t = Tensor::new([2], vec![0i64, 1]).unwrap();
        assert!(run(&*op, &[Some(&tensor([1, 2], &[0., 0.])), Some(&t)], 1).is_err());
    }
}
