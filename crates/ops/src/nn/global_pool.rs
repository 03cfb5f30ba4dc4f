//! GlobalAveragePool, GlobalMaxPool, GlobalLpPool: one value per channel.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::{DType, Tensor};

use super::lp_pool::{norm, take_p};
use super::real::{Real, with_real};

/// `Y[n, c, 1, …]` = mean of `X[n, c, …]`; floating-point types. Source: ONNX operator GlobalAveragePool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GlobalAveragePool;

/// `Y[n, c, 1, …]` = maximum of `X[n, c, …]`; floating-point types and integers of at most
/// 32 bits. Source: ONNX operator GlobalMaxPool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GlobalMaxPool;

/// `Y[n, c, 1, …] = (Σ |X[n, c, …]|^p)^(1/p)`; floating-point types. Source: ONNX operator GlobalLpPool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GlobalLpPool {
    /// The norm's order, at least 1.
    pub p: i64,
}

/// Makes a GlobalAveragePool; it has no attributes.
pub fn build_average(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(GlobalAveragePool))
}

/// Makes a GlobalMaxPool; it has no attributes.
pub fn build_max(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(GlobalMaxPool))
}

/// Makes a GlobalLpPool.
pub fn build_lp(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(GlobalLpPool { p: take_p(attrs)? }))
}

fn infer_global(cx: &InferCx) -> Result<Vec<Fact>, OpError> {
    cx.get(0)?;
    let shape = match cx.shape(0) {
        None => None,
        Some([n, c, spatial @ ..]) => Some([vec![n.clone(), c.clone()], vec![Dim::Known(1); spatial.len()]].concat()),
        Some(_) => return Err(OpError::shape("X needs at least 2 axes")),
    };
    Ok(vec![Fact::tensor(cx.dtype(0), shape)])
}

/// The number of elements per channel, and the output's shape.
fn planes(x: &Tensor) -> Result<(usize, Vec<usize>), OpError> {
    let [n, c, spatial @ ..] = x.shape() else {
        return Err(OpError::shape(format!("X of shape {:?} needs at least 2 axes", x.shape())));
    };
    let output = [vec![*n, *c], vec![1; spatial.len()]].concat();
    match spatial.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) {
        Some(size) if size > 0 => Ok((size, output)),
        _ => Err(OpError::shape(format!("X of shape {:?} has no elements to pool", x.shape()))),
    }
}

fn reduce(x: &Tensor, f: impl Fn(&mut dyn Iterator<Item = f64>, usize) -> f64) -> Result<Vec<Tensor>, OpError> {
    let (size, shape) = planes(x)?;
    with_real!(x, 0, T => {
        let x = x.slice::<T>()?;
        let y = x.chunks_exact(size).map(|p| T::put(f(&mut p.iter().map(|v| v.get()), size))).collect();
        Ok(vec![Tensor::new(shape, y)?])
    })
}

impl Op for GlobalAveragePool {
    fn name(&self) -> &str {
        "GlobalAveragePool"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_global(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        reduce(cx.get(0)?, |values, n| values.sum::<f64>() / n as f64)
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Arithmetic { same_scale: false }
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

impl Op for GlobalMaxPool {
    fn name(&self) -> &str {
        "GlobalMaxPool"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_global(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        if matches!(x.dtype(), DType::I8 | DType::U8 | DType::I16 | DType::U16 | DType::I32) {
            let (size, shape) = planes(x)?;
            let y: Vec<i64> = x.to_i64s()?.chunks_exact(size).filter_map(|p| p.iter().max().copied()).collect();
            return Ok(vec![Tensor::from_i64s(x.dtype(), shape, &y)?]);
        }
        reduce(x, |values, _| values.fold(f64::NEG_INFINITY, f64::max))
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

impl Op for GlobalLpPool {
    fn name(&self) -> &str {
        "GlobalLpPool"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_global(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        reduce(cx.get(0)?, |values, _| norm(values, self.p))
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("p", self.p, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    #[test]
    fn pools_whole_channels() {
        let x = tensor([1, 2, 2, 1], &[3., 4., -6., -8.]);
        let pool = |op: &dyn Op| {
            let y = run(op, &[Some(&x)], 1).unwrap();
            assert_eq!(y[0].shape(), [1, 2, 1, 1]);
            f32s(&y[0])
        };
        assert_eq!(pool(&GlobalAveragePool), [3.5, -7.]);
        assert_eq!(pool(&GlobalMaxPool), [4., -6.]);
        assert_eq!(pool(&GlobalLpPool { p: 2 }), [5., 10.]);
    }

    #[test]
    fn refuses_channels_without_elements() {
        assert!(run(&GlobalMaxPool, &[Some(&tensor([1, 1, 0], &[]))], 1).is_err());
        assert!(run(&GlobalAveragePool, &[Some(&tensor([2], &[0., 0.]))], 1).is_err());
    }
}
