//! MeanVarianceNormalization: mean 0 and variance 1 over a set of axes.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{Tensor, shape};

use super::stats::floats;
use crate::support::infer_same;

/// `Y = (X − mean) / (sqrt(mean(X²) − mean²) + 1e-9)`, means over `axes`.
///
/// Input of any shape and floating-point type. Source: ONNX operator
/// MeanVarianceNormalization (9, 13), function body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeanVarianceNormalization {
    /// The axes that means are taken over; counted from the back where negative.
    pub axes: Vec<i64>,
}

const DEFAULT_AXES: [i64; 3] = [0, 2, 3];

/// Makes a MeanVarianceNormalization.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let axes = attrs.ints("axes")?.unwrap_or_else(|| DEFAULT_AXES.to_vec());
    Ok(Arc::new(MeanVarianceNormalization { axes }))
}

impl MeanVarianceNormalization {
    fn check(&self, rank: usize) -> Result<Vec<usize>, OpError> {
        let problem = |a: i64| OpError::attribute("axes", format!("has {a}, out of range for a tensor of {rank} axes"));
        self.axes.iter().map(|&a| shape::axis(a, rank).ok_or_else(|| problem(a))).collect()
    }
}

impl Op for MeanVarianceNormalization {
    fn name(&self) -> &str {
        "MeanVarianceNormalization"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        if let Some(x) = cx.shape(0) {
            self.check(x.len())?;
        }
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, mut y) = (cx.get(0)?, floats(cx, 0)?);
        let axes = self.check(x.rank())?;
        // Elements with the same offset in the tensor of means belong together.
        let extent = |(a, &n): (usize, &usize)| if axes.contains(&a) { 1 } else { n };
        let kept: Vec<usize> = x.shape().iter().enumerate().map(extent).collect();
        let strides = shape::broadcast_strides(&kept, x.shape());
        let groups = if x.is_empty() { 0 } else { kept.iter().product() };
        let count = y.len() as f64 / groups.max(1) as f64;
        let mut sums = vec![(0.0, 0.0); groups];
        for (g, v) in shape::offsets(x.shape(), &strides).zip(&y) {
            sums[g].0 += v;
            sums[g].1 += v * v;
        }
        for (g, v) in shape::offsets(x.shape(), &strides).zip(y.iter_mut()) {
            let (mean, square) = (sums[g].0 / count, sums[g].1 / count);
            *v = (*v - mean) / ((square - mean * mean).max(0.0).sqrt() + 1e-9);
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("axes", self.axes.clone(), DEFAULT_AXES.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{assert_close, run, tensor};

    #[test]
    fn normalises_over_the_given_axes() {
        let x = tensor([2, 2], &[1., 10., 3., 30.]);
        let y = run(&MeanVarianceNormalization { axes: vec![0] }, &[Some(&x)], 1).unwrap();
        // The summand 1e-9 vanishes in f32.
        assert_close(&y[0], &[-1., -1., 1., 1.], 1e-6);
    }

    #[test]
    fn refuses_axes_out_of_range() {
        assert!(run(&MeanVarianceNormalization { axes: vec![2] }, &[Some(&tensor([1, 1], &[1.]))], 1).is_err());
    }
}
