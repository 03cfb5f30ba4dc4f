//! InstanceNormalization: each channel of each sample normalised on its own.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::stats::{channels, check_per_channel, floats, moments, per_channel};
use crate::support::infer_same;

/// `Y = scale · (X − mean) / sqrt(var + epsilon) + B`, mean and variance over the spatial axes.
///
/// Inputs: X `[N, C, …]`, scale and B `[C]`, one floating-point type. Source: ONNX operator
/// InstanceNormalization (6, 22).
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceNormalization {
    /// Added to the variance.
    pub epsilon: f32,
}

/// Makes an InstanceNormalization.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(InstanceNormalization { epsilon: attrs.float_or("epsilon", 1e-5)? }))
}

impl Op for InstanceNormalization {
    fn name(&self) -> &str {
        "InstanceNormalization"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        check_per_channel(cx, 1)?;
        check_per_channel(cx, 2)?;
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let (_, c, size) = channels(x)?;
        let (scale, bias) = (per_channel(cx, 1, c)?, per_channel(cx, 2, c)?);
        let mut y = floats(cx, 0)?;
        for (i, plane) in y.chunks_exact_mut(size).enumerate() {
            let (mean, var) = moments(plane.iter().copied());
            let factor = scale[i % c] / (var + f64::from(self.epsilon)).sqrt();
            plane.iter_mut().for_each(|v| *v = (*v - mean) * factor + bias[i % c]);
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("epsilon", self.epsilon, 1e-5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    #[test]
    fn normalises_each_channel_of_each_sample() {
        let op = InstanceNormalization { epsilon: 0. };
        let (x, p) = (tensor([2, 1, 2], &[1., 3., 10., 30.]), tensor([1], &[2.]));
        let y = run(&op, &[Some(&x), Some(&p), Some(&p)], 1).unwrap();
        assert_eq!(f32s(&y[0]), [0., 4., 0., 4.]);
    }

    #[test]
    fn refuses_scales_of_another_length() {
        let op = InstanceNormalization { epsilon: 0. };
        let (x, p) = (tensor([1, 2, 1], &[1., 3.]), tensor([1], &[2.]));
        assert!(run(&op, &[Some(&x), Some(&p), Some(&p)], 1).is_err());
    }
}
