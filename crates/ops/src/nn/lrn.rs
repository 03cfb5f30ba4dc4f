//! LRN: local response normalisation across channels.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::stats::{channels, floats};
use crate::support::infer_same;

/// `Y = X / (bias + alpha / size · Σ X²)^beta`, the sum over the `size` channels around each.
///
/// Input X `[N, C, …]` of a floating-point type. Source: ONNX operator LRN (1, 13).
#[derive(Debug, Clone, PartialEq)]
pub struct Lrn {
    /// The scale of the mean square.
    pub alpha: f32,
    /// The exponent.
    pub beta: f32,
    /// The summand.
    pub bias: f32,
    /// The number of channels that are summed over; with an even number one more comes after than before.
    pub size: usize,
}

/// Makes an LRN.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let size = attrs.int("size")?.ok_or_else(|| OpError::attribute("size", "is missing"))?;
    let problem = || OpError::attribute("size", format!("is {size}, must be at least 1"));
    Ok(Arc::new(Lrn {
        alpha: attrs.float_or("alpha", 1e-4)?,
        beta: attrs.float_or("beta", 0.75)?,
        bias: attrs.float_or("bias", 1.0)?,
        size: usize::try_from(size).ok().filter(|&s| s > 0).ok_or_else(problem)?,
    }))
}

impl Op for Lrn {
    fn name(&self) -> &str {
        "LRN"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, xs) = (cx.get(0)?, floats(cx, 0)?);
        let (n, c, size) = channels(x)?;
        let (before, after) = ((self.size - 1) / 2, self.size / 2);
        let (alpha, beta) = (f64::from(self.alpha) / self.size as f64, f64::from(self.beta));
        let mut y = Vec::with_capacity(xs.len());
        let mut sums = vec![0.0; size];
        for sample in xs.chunks_exact((c * size).max(1)).take(n) {
            for ch in 0..c {
                sums.fill(0.0);
                for other in ch.saturating_sub(before)..c.min(ch.saturating_add(after).saturating_add(1)) {
                    let plane = &sample[other * size..][..size];
                    sums.iter_mut().zip(plane).for_each(|(s, v)| *s += v * v);
                }
                let plane = &sample[ch * size..][..size];
                y.extend(plane.iter().zip(&sums).map(|(v, s)| v / (f64::from(self.bias) + alpha * s).powf(beta)));
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with("size", self.size as i64)
            .with_unless("alpha", self.alpha, 1e-4)
            .with_unless("beta", self.beta, 0.75)
            .with_unless("bias", self.bias, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{assert_close, run, tensor};

    #[test]
    fn sums_over_neighbouring_channels() {
        let op = Lrn { alpha: 2., beta: 1., bias: 1., size: 2 };
        let y = run(&op, &[Some(&tensor([1, 3, 1], &[1., 2., 3.]))], 1).unwrap();
        // Even sizes reach one channel further up than down; results are rounded once.
        assert_close(&y[0], &[1. / 6., 2. / 14., 3. / 10.], 1e-7);
    }

    #[test]
    fn refuses_sizes_below_one() {
        assert!(build(13, &mut AttrMap::new()).is_err());
        assert!(build(13, &mut AttrMap::new().with("size", 0i64)).is_err());
    }
}
