//! QGemm: Gemm on 8-bit integers.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor, shape};

use super::fused_gemm::{infer_gemm, matrix};
use super::support::{DOMAIN, extents};
use crate::quant::params::{bounds, from_ints, ints, ints8, round_saturate, single_f32, single_int};
use crate::quant::product::{Product, mac_i32};

/// `acc = (a' - a_zero) · (b' - b_zero[n]) + c` in int32, wrapping; `y = acc * (alpha * a_scale * b_scale[n])`
/// in f32, or, where y_scale and y_zero_point are given,
/// `y = saturate(round_half_even(acc * (alpha * a_scale * b_scale[n] / y_scale)) + y_zero)`.
///
/// Inputs: a, a_scale, a_zero_point, b, b_scale, b_zero_point, optional c (i32, broadcasts to `[m, n]`),
/// optional y_scale, optional y_zero_point. `'` transposes on demand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QGemm {
    /// Factor of the product.
    pub alpha: f32,
    /// Whether a is `[k, m]`.
    pub trans_a: bool,
    /// Whether b is `[n, k]`.
    pub trans_b: bool,
}

/// Makes a QGemm.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let (trans_a, trans_b) = (attrs.flag("transA")?, attrs.flag("transB")?);
    Ok(Arc::new(QGemm { alpha: attrs.float_or("alpha", 1.0)?, trans_a, trans_b }))
}

/// One element, or one per column.
pub(crate) fn per_column<T: Copy>(v: &[T], n: usize, what: &str) -> Result<Vec<T>, OpError> {
    match v {
        [x] => Ok(vec![*x; n]),
        _ if v.len() == n => Ok(v.to_vec()),
        _ => Err(OpError::shape(format!("{} {what} were given for {n} columns", v.len()))),
    }
}

impl Op for QGemm {
    fn name(&self) -> &str {
        "QGemm"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let dtype = match cx.opt(8) {
            Some(z) => z.dtype(),
            None => Some(DType::F32),
        };
        Ok(vec![Fact::tensor(dtype, infer_gemm(cx.shape(0), cx.shape(3), self.trans_a, self.trans_b)?)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(3)?);
        let (sa, mut xs) = matrix(&ints8(a, 0)?, extents(a, 0)?, self.trans_a);
        let (sb, mut ys) = matrix(&ints8(b, 3)?, extents(b, 3)?, self.trans_b);
        let product = Product::new(&sa, &sb, DType::I32)?;
        let (za, n) = (single_int(cx.opt(2), 2)?, product.n);
        let zb = per_column(&cx.opt(5).map_or_else(|| Ok(vec![0]), ints)?, n, "zero points")?;
        xs.iter_mut().for_each(|v| *v = v.wrapping_sub(za));
        ys.iter_mut().enumerate().for_each(|(i, v)| *v = v.wrapping_sub(zb[i % n]));
        let mut acc = product.run(&xs, &ys, 0, mac_i32);
        if let Some(c) = cx.opt(6) {
            if shape::broadcast(c.shape(), &product.out)? != product.out {
                return Err(OpError::shape(format!(
                    "c of shape {:?} does not broadcast to {:?}",
                    c.shape(),
                    product.out
                )));
            }
            let cs = ints(c)?;
            let strides = shape::broadcast_strides(c.shape(), &product.out);
            for (v, o) in acc.iter_mut().zip(shape::offsets(&product.out, &strides)) {
                *v = v.wrapping_add(cs[o]);
            }
        }
        let scale_a = single_f32(cx.get(1)?, 1)?;
        let scales = per_column(&cx.get(4)?.to_f32s()?, n, "scales")?;
        let scales: Vec<f32> = scales.iter().map(|s| self.alpha * scale_a * s).collect();
        let Some(zero) = cx.opt(8) else {
            let y = acc.iter().enumerate().map(|(i, &v)| v as f32 * scales[i % n]).collect();
            return Ok(vec![Tensor::new(product.out, y)?]);
        };
        let (y_scale, y_zero) = (single_f32(cx.get(7)?, 7)?, single_int(Some(zero), 8)?);
        let range = bounds(zero.dtype()).ok_or_else(|| OpError::input(8, zero.dtype().name(), "i8 or u8"))?;
        let y = acc
            .iter()
            .enumerate()
            .map(|(i, &v)| round_saturate(v as f32 * (scales[i % n] / y_scale), y_zero, range))
            .collect();
        Ok(vec![from_ints(zero.dtype(), &product.out, y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_unless("alpha", self.alpha, 1.0)
            .with_unless("transA", i64::from(self.trans_a), 0)
            .with_unless("transB", i64::from(self.trans_b), 0)
    }
}
