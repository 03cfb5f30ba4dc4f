//! MatMulIntegerToFloat and DynamicQuantizeMatMul: integer products with float results.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::qgemm::per_column;
use super::support::{DOMAIN, vector};
use crate::quant::dynamic_quantize_linear::dynamic_params;
use crate::quant::matmul_integer::{Side, centred};
use crate::quant::params::{round_saturate, single_f32};
use crate::quant::product::{Product, infer_product, mac_i32};

/// `y = acc * (a_scale * b_scale[n]) + bias[n]`, `acc = (a - a_zero) · (b - b_zero[n])` in int32, wrapping.
///
/// Inputs: a, b (8 bits), a_scale, b_scale, optional a_zero_point, optional b_zero_point, optional bias `[n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatMulIntegerToFloat;

/// Makes a MatMulIntegerToFloat; it has no attributes.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(MatMulIntegerToFloat))
}

/// Scales the accumulators of a product and adds a bias.
pub(crate) fn scale_bias(acc: Vec<i32>, a_scale: f32, b_scale: &[f32], bias: Option<&[f32]>, n: usize) -> Vec<f32> {
    let scales: Vec<f32> = b_scale.iter().map(|s| a_scale * s).collect();
    let value = |(i, v): (usize, i32)| {
        let y = v as f32 * scales[i % n];
        bias.map_or(y, |b| y + b[i % n])
    };
    acc.into_iter().enumerate().map(value).collect()
}

impl Op for MatMulIntegerToFloat {
    fn name(&self) -> &str {
        "MatMulIntegerToFloat"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::tensor(cx.dtype(2), infer_product(cx.shape(0), cx.shape(1))?)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(1)?);
        let product = Product::new(a.shape(), b.shape(), DType::I32)?;
        let xs = centred(a, cx.opt(4), 0, Side::Rows)?;
        let ys = centred(b, cx.opt(5), 1, Side::Columns)?;
        let acc = product.run(&xs, &ys, 0, mac_i32);
        let scales = per_column(&cx.get(3)?.to_f32s()?, product.n, "scales")?;
        let bias = vector(cx.opt(6), 6, product.n)?;
        let y = scale_bias(acc, single_f32(cx.get(2)?, 2)?, &scales, bias.as_deref(), product.n);
        Ok(vec![Tensor::from_f32s(cx.get(2)?.dtype(), product.out, y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

/// As [`MatMulIntegerToFloat`] with a quantized to u8 on the way, as DynamicQuantizeLinear does.
///
/// Inputs: a (f32), b (8 bits), b_scale, optional b_zero_point, optional bias `[n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DynamicQuantizeMatMul;

/// Makes a DynamicQuantizeMatMul; it has no attributes.
pub fn build_dynamic(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(DynamicQuantizeMatMul))
}

impl Op for DynamicQuantizeMatMul {
    fn name(&self) -> &str {
        "DynamicQuantizeMatMul"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::tensor(Some(DType::F32), infer_product(cx.shape(0), cx.shape(1))?)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(1)?);
        let product = Product::new(a.shape(), b.shape(), DType::I32)?;
        let values = a.slice::<f32>()?;
        let (scale, zero) = dynamic_params(&values, (0, 255));
        let xs: Vec<i32> = values.iter().map(|v| round_saturate(v / scale, zero, (0, 255)) - zero).collect();
        let acc = product.run(&xs, &centred(b, cx.opt(3), 1, Side::Columns)?, 0, mac_i32);
        let scales = per_column(&cx.get(2)?.to_f32s()?, product.n, "scales")?;
        let bias = vector(cx.opt(4), 4, product.n)?;
        Ok(vec![Tensor::new(product.out.clone(), scale_bias(acc, scale, &scales, bias.as_deref(), product.n))?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}
