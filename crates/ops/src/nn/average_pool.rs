//! AveragePool: the mean over a sliding window.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::pool;
use super::real::{Real, with_real};
use super::window::WindowAttrs;

/// `Y[n, c, o]` = mean of `X[n, c, o·stride + k·dilation − pad]` over the kernel.
///
/// Input X `[N, C, D1, …]` of a floating-point type, output `[N, C, O1, …]`.
/// Source: ONNX operator AveragePool (7, 10, 11, 19, 22).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AveragePool {
    /// Kernel, strides, dilations, pads.
    pub window: WindowAttrs,
    /// Whether pads count as zeros; otherwise only elements of the input are averaged.
    pub count_include_pad: bool,
}

/// Makes an AveragePool.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let count_include_pad = attrs.flag("count_include_pad")?;
    Ok(Arc::new(AveragePool { window: WindowAttrs::take_pool(attrs)?, count_include_pad }))
}

impl Op for AveragePool {
    fn name(&self) -> &str {
        "AveragePool"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        pool::infer(&self.window, cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let pool = pool::resolve(&self.window, x)?;
        with_real!(x, 0, T => {
            let y = pool.map(&x.slice::<T>()?, |plane, spans, runs| {
                let sum: f64 = runs.iter().flat_map(|r| pool.values(plane, r)).map(Real::get).sum();
                let count = |s: &super::window::Span| if self.count_include_pad { s.padded } else { s.len };
                T::put(sum / spans.iter().map(|s| count(s) as f64).product::<f64>())
            });
            Ok(vec![Tensor::new(pool.output, y)?])
        })
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Arithmetic { same_scale: false }
    }

    fn attrs(&self) -> AttrMap {
        self.window.put(AttrMap::new()).with_unless("count_include_pad", i64::from(self.count_include_pad), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    fn op(attrs: AttrMap) -> Arc<dyn Op> {
        build(19, &mut attrs.with("kernel_shape", vec![2i64])).unwrap()
    }

    #[test]
    fn leaves_out_or_counts_pads() {
        let x = tensor([1, 1, 3], &[2., 4., 6.]);
        let pads = AttrMap::new().with("pads", vec![1i64, 1]);
        assert_eq!(f32s(&run(&*op(pads.clone()), &[Some(&x)], 1).unwrap()[0]), [2., 3., 5., 6.]);
        let y = run(&*op(pads.with("count_include_pad", 1i64)), &[Some(&x)], 1).unwrap();
        assert_eq!(f32s(&y[0]), [1., 3., 5., 3.]);
    }

    #[test]
    fn divides_by_what_an_overhanging_window_covers() {
        let x = tensor([1, 1, 3], &[2., 4., 6.]);
        let ceil = AttrMap::new().with("ceil_mode", 1i64).with("strides", vec![2i64]).with("count_include_pad", 1i64);
        assert_eq!(f32s(&run(&*op(ceil), &[Some(&x)], 1).unwrap()[0]), [3., 6.]);
    }

    #[test]
    fn matches_onnx_runtime_with_auto_pad() {
        let x = tensor([1, 1, 6], &[1., 2., 3., 4., 5., 6.]);
        let pool = |kernel: i64, stride: i64, attrs: AttrMap| {
            let mut attrs = attrs.with("kernel_shape", vec![kernel]).with("strides", vec![stride]);
            f32s(&run(&*build(17, &mut attrs).unwrap(), &[Some(&x)], 1).unwrap()[0])
        };
        let auto = |name: &str| AttrMap::new().with("auto_pad", name);
        assert_eq!(pool(3, 2, auto("VALID").with("ceil_mode", 1i64)), [2.0, 4.0, 5.5]);
        assert_eq!(pool(3, 2, auto("SAME_LOWER")), [1.5, 3.0, 5.0]);
        assert_eq!(pool(4, 3, auto("SAME_UPPER").with("count_include_pad", 1i64)), [2.5, 3.75]);
    }

    #[test]
    fn refuses_missing_kernels_and_integers() {
        assert!(build(19, &mut AttrMap::new()).is_err());
        let x = Tensor::new([1, 1, 2], vec![1i32, 2]).unwrap();
        assert!(run(&*op(AttrMap::new()), &[Some(&x)], 1).is_err());
    }
}
