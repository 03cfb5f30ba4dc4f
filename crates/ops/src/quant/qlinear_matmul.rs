//! QLinearMatMul: product of quantized matrices, requantized.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor, minifloat};

use super::matmul_integer::{Side, centred, param_index};
use super::params::{bounds, from_ints, ints, round_saturate};
use super::product::{Product, infer_product, mac_f64, mac_i32};

/// `acc = (a - a_zero_point) · (b - b_zero_point)` in int32, wrapping;
/// `y = saturate(round_half_even(acc as f32 * (a_scale * b_scale / y_scale)) + y_zero_point)`,
/// the multiplier formed in f32 in this order as ONNX Runtime forms it (ONNX QLinearMatMul 10, 21).
///
/// Inputs: a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point. Scales and zero
/// points are scalars, one per row of a (and y), or one per column of b. fp8 operands are multiplied
/// as floats.
#[derive(Debug, Clone, Copy)]
pub struct QLinearMatMul;

/// Makes a QLinearMatMul; it has no attributes.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(QLinearMatMul))
}

/// The scales and zero points of the result: one for all, one per row, or that for each matrix.
struct Output {
    dtype: DType,
    scale: Vec<f32>,
    zero: Vec<i32>,
}

impl Output {
    fn read(cx: &EvalCx) -> Result<Output, OpError> {
        let zero = cx.get(7)?;
        let zeros = if zero.dtype().is_int() { ints(zero)? } else { vec![0; zero.len()] };
        Ok(Output { dtype: zero.dtype(), scale: cx.get(6)?.to_f32s()?.into_owned(), zero: zeros })
    }
}

impl QLinearMatMul {
    fn floats(&self, cx: &EvalCx, product: Product) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(3)?);
        let acc: Vec<f32> =
            product.run(&a.to_f32s()?, &b.to_f32s()?, 0f64, mac_f64).into_iter().map(|v| v as f32).collect();
        let out = Output::read(cx)?;
        let scale = scales(cx, &product, &out)?;
        let codes: Vec<u8> =
            acc.iter().enumerate().map(|(i, &v)| minifloat::encode(out.dtype, v * scale(i), true)).collect();
        Ok(vec![Tensor::from_bytes(out.dtype, product.out, codes)?])
    }
}

/// The multiplier of each element of the result.
fn scales(cx: &EvalCx, product: &Product, out: &Output) -> Result<impl Fn(usize) -> f32 + use<>, OpError> {
    let (a, b) = (cx.get(1)?.to_f32s()?.into_owned(), cx.get(4)?.to_f32s()?.into_owned());
    let y = out.scale.clone();
    let matrix = [product.pairs.len(), product.m, product.n];
    let rows = |n: usize| param_index(&matrix, n, Side::Rows);
    let (at_a, at_y) = (rows(a.len())?, rows(y.len())?);
    let at_b = param_index(&matrix, b.len(), Side::Columns)?;
    Ok(move |i: usize| a[at_a(i)] * b[at_b(i)] / y[at_y(i)])
}

impl Op for QLinearMatMul {
    fn name(&self) -> &str {
        "QLinearMatMul"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::tensor(cx.dtype(7), infer_product(cx.shape(0), cx.shape(3))?)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(3)?);
        let out_type = cx.get(7)?.dtype();
        let product = Product::new(a.shape(), b.shape(), DType::I32)?;
        if a.dtype().bits() == 8 && a.dtype().is_minifloat() && b.dtype().is_minifloat() && out_type.is_minifloat() {
            return self.floats(cx, product);
        }
        let xs = centred(a, Some(cx.get(2)?), 0, Side::Rows)?;
        let ys = centred(b, Some(cx.get(5)?), 3, Side::Columns)?;
        let acc = product.run(&xs, &ys, 0, mac_i32);
        let out = Output::read(cx)?;
        let range = bounds(out.dtype).ok_or_else(|| OpError::input(7, out.dtype.name(), "i8 or u8"))?;
        let scale = scales(cx, &product, &out)?;
        let zero_at = param_index(&[product.pairs.len(), product.m, product.n], out.zero.len(), Side::Rows)?;
        let y = acc
            .iter()
            .enumerate()
            .map(|(i, &v)| round_saturate(v as f32 * scale(i), out.zero[zero_at(i)], range))
            .collect();
        Ok(vec![from_ints(out.dtype, &product.out, y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}
