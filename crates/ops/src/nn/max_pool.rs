//! MaxPool: the maximum over a sliding window, and where it is.

use std::sync::Arc;

use half::{bf16, f16};
use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::{DType, Element, Tensor, shape};

use super::pool::{self, Pool};
use super::window::WindowAttrs;

/// `Y[n, c, o]` = maximum of `X[n, c, o·stride + k·dilation − pad]` over the kernel, pads left out.
///
/// Input X `[N, C, D1, …]` of a floating-point or 8-bit type, output `[N, C, O1, …]`; the
/// optional second output has the flat indices of the maxima in X, as `i64`.
/// Source: ONNX operator MaxPool (1, 8, 10, 11, 12, 22).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaxPool {
    /// Kernel, strides, dilations, pads.
    pub window: WindowAttrs,
    /// Whether indices count the spatial axes in column-major order (`storage_order` 1).
    pub column_major: bool,
}

/// Makes a MaxPool.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let column_major = attrs.flag("storage_order")?;
    Ok(Arc::new(MaxPool { window: WindowAttrs::take_pool(attrs)?, column_major }))
}

impl Op for MaxPool {
    fn name(&self) -> &str {
        "MaxPool"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let shape = pool::infer_shape(&self.window, cx)?;
        Ok(vec![Fact::tensor(cx.dtype(0), shape.clone()), Fact::tensor(Some(DType::I64), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let pool = pool::resolve(&self.window, x)?;
        let indices = cx.n_outputs() > 1;
        match x.dtype() {
            DType::F32 => self.pool(x, &pool, f32::NEG_INFINITY, indices),
            DType::F64 => self.pool(x, &pool, f64::NEG_INFINITY, indices),
            DType::F16 => self.pool(x, &pool, f16::NEG_INFINITY, indices),
            DType::Bf16 => self.pool(x, &pool, bf16::NEG_INFINITY, indices),
            DType::I8 => self.pool(x, &pool, i8::MIN, indices),
            DType::U8 => self.pool(x, &pool, u8::MIN, indices),
            DType::I32 => self.pool(x, &pool, i32::MIN, indices),
            DType::I64 => self.pool(x, &pool, i64::MIN, indices),
            d => Err(OpError::input(0, d.name(), "a floating-point type, i8 or u8")),
        }
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        self.window.put(AttrMap::new()).with_unless("storage_order", i64::from(self.column_major), 0)
    }
}

impl MaxPool {
    fn pool<T: Element + PartialOrd>(
        &self,
        x: &Tensor,
        pool: &Pool,
        least: T,
        indices: bool,
    ) -> Result<Vec<Tensor>, OpError> {
        // The maximum and its offset in the plane; a NaN is never greater, the first of equals stays.
        let best = pool.map(&x.slice::<T>()?, |plane, _, runs| {
            let mut best = (least, None);
            for run in runs {
                for (i, v) in pool.values(plane, run).enumerate() {
                    if v > best.0 || best.1.is_none() {
                        best = (v, Some(run.offset + i * pool.window.step()));
                    }
                }
            }
            best
        });
        let mut out = vec![Tensor::new(pool.output.clone(), best.iter().map(|b| b.0).collect())?];
        if indices {
            let positions = pool.window.positions().max(1);
            let index = |(i, b): (usize, &(T, Option<usize>))| match b.1 {
                Some(offset) => self.index(pool, i / positions, offset),
                None => -1,
            };
            out.push(Tensor::new(pool.output.clone(), best.iter().enumerate().map(index).collect::<Vec<i64>>())?);
        }
        Ok(out)
    }

    /// The flat index in X of an offset in a plane.
    fn index(&self, pool: &Pool, plane: usize, offset: usize) -> i64 {
        let extents = &pool.window.input;
        let mut at = offset;
        if self.column_major {
            let (mut rest, mut stride) = (offset, 1);
            at = 0;
            for (&n, s) in extents.iter().zip(shape::strides(extents)) {
                at += rest / s * stride;
                (rest, stride) = (rest % s, stride * n);
            }
        }
        (plane * extents.iter().product::<usize>() + at) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    fn op(attrs: AttrMap) -> Arc<dyn Op> {
        build(12, &mut attrs.with("kernel_shape", vec![2i64, 2])).unwrap()
    }

    #[test]
    fn finds_maxima_and_their_indices_in_both_orders() {
        let x = tensor([1, 2, 2, 3], &[1., 5., 2., 4., 3., 6., -1., -2., -3., -4., -5., -6.]);
        let y = run(&*op(AttrMap::new()), &[Some(&x)], 2).unwrap();
        assert_eq!(f32s(&y[0]), [5., 6., -1., -2.]);
        assert_eq!(y[1].to_i64s().unwrap(), [1, 5, 6, 7]);
        let y = run(&*op(AttrMap::new().with("storage_order", 1i64)), &[Some(&x)], 2).unwrap();
        assert_eq!(y[1].to_i64s().unwrap(), [2, 5, 6, 8]);
    }

    #[test]
    fn counts_three_axes_in_column_major_order() {
        // As ONNX Runtime's indices.
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let mut attrs = AttrMap::new().with("kernel_shape", vec![2i64, 2, 2]).with("storage_order", 1i64);
        let y = run(&*build(12, &mut attrs).unwrap(), &[Some(&tensor([1, 1, 2, 3, 4], &values))], 2).unwrap();
        assert_eq!(y[1].to_i64s().unwrap(), [9, 15, 21, 11, 17, 23]);
    }

    #[test]
    fn pools_bytes_and_never_takes_pads() {
        let x = Tensor::new([1, 1, 2, 2], vec![-3i8, -5, -7, -128]).unwrap();
        let y = run(&*op(AttrMap::new().with("pads", vec![1i64, 1, 0, 0])), &[Some(&x)], 1).unwrap();
        assert_eq!(y[0].to_i64s().unwrap(), [-3, -3, -3, -3]);
    }

    #[test]
    fn refuses_kernels_of_another_rank() {
        let x = tensor([1, 1, 2], &[0., 0.]);
        assert!(run(&*op(AttrMap::new()), &[Some(&x)], 1).is_err());
    }
}
