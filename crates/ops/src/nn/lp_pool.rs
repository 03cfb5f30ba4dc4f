//! LpPool: the p-norm over a sliding window.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::pool;
use super::real::{Real, with_real};
use super::window::WindowAttrs;

/// `Y[n, c, o] = (Σ |X[n, c, o·stride + k·dilation − pad]|^p)^(1/p)` over the kernel.
///
/// Input X `[N, C, D1, …]` of a floating-point type, output `[N, C, O1, …]`.
/// Source: ONNX operator LpPool (2, 11, 18, 22).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LpPool {
    /// Kernel, strides, dilations, pads.
    pub window: WindowAttrs,
    /// The norm's order, at least 1.
    pub p: i64,
}

/// Makes an LpPool.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(LpPool { p: take_p(attrs)?, window: WindowAttrs::take_pool(attrs)? }))
}

/// Takes the order `p` of a norm.
pub(super) fn take_p(attrs: &mut AttrMap) -> Result<i64, OpError> {
    match attrs.int_or("p", 2)? {
        p if p < 1 => Err(OpError::attribute("p", format!("is {p}, must be at least 1"))),
        p => Ok(p),
    }
}

/// `(Σ |x|^p)^(1/p)`.
pub(super) fn norm(values: impl Iterator<Item = f64>, p: i64) -> f64 {
    match p {
        1 => values.map(f64::abs).sum(),
        2 => values.map(|x| x * x).sum::<f64>().sqrt(),
        _ => values.map(|x| x.abs().powf(p as f64)).sum::<f64>().powf(1.0 / p as f64),
    }
}

impl Op for LpPool {
    fn name(&self) -> &str {
        "LpPool"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        pool::infer(&self.window, cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let pool = pool::resolve(&self.window, x)?;
        with_real!(x, 0, T => {
            let y = pool.map(&x.slice::<T>()?, |plane, _, runs| {
                T::put(norm(runs.iter().flat_map(|r| pool.values(plane, r)).map(Real::get), self.p))
            });
            Ok(vec![Tensor::new(pool.output, y)?])
        })
    }

    fn attrs(&self) -> AttrMap {
        self.window.put(AttrMap::new()).with_unless("p", self.p, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{assert_close, run, tensor};

    #[test]
    fn takes_norms_of_each_order() {
        let x = tensor([1, 1, 3], &[3., -4., 0.]);
        for (p, expected) in [(1i64, [7., 4.]), (2, [5., 4.]), (3, [91f32.cbrt(), 4.])] {
            let mut attrs = AttrMap::new().with("kernel_shape", vec![2i64]).with("p", p);
            let y = run(&*build(18, &mut attrs).unwrap(), &[Some(&x)], 1).unwrap();
            // One rounding of a power and a root in f64.
            assert_close(&y[0], &expected, 1e-6);
        }
    }

    #[test]
    fn refuses_orders_below_one() {
        assert!(build(18, &mut AttrMap::new().with("kernel_shape", vec![2i64]).with("p", 0i64)).is_err());
    }
}
