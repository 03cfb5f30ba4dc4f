//! QLinearAdd and QLinearMul: arithmetic on quantized tensors.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::support::{DOMAIN, Params, broadcast};
use crate::quant::params::{from_ints, ints};

/// Arithmetic on two 8-bit tensors of one type, broadcast, requantized.
///
/// Inputs: a, a_scale, a_zero_point, b, b_scale, b_zero_point, c_scale, c_zero_point; absent zero
/// points are 0. With `rA = a_scale / c_scale` and `rB = b_scale / c_scale`, in f32 and in the order of
/// ONNX Runtime's AVX2 kernels (rounding half to even, zero point added before):
/// - Add: `c = saturate(round(fma(a, rA, fma(b, rB, c_zero - fma(rA, a_zero, rB * b_zero)))))`
/// - Mul: `c = saturate(round((a - a_zero) * (b - b_zero) * (a_scale * b_scale / c_scale) + c_zero))`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QLinearBinary {
    /// QLinearAdd.
    Add,
    /// QLinearMul.
    Mul,
}

/// Makes a QLinearAdd.
pub fn build_add(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(QLinearBinary::Add))
}

/// Makes a QLinearMul.
pub fn build_mul(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(QLinearBinary::Mul))
}

impl QLinearBinary {
    fn function(self, a: Params, b: Params, c: Params) -> Box<dyn Fn(i32, i32) -> i32> {
        let zero = c.zero as f32;
        match self {
            QLinearBinary::Add => {
                let (ra, rb) = (a.scale / c.scale, b.scale / c.scale);
                let fixed = zero - ra.mul_add(a.zero as f32, rb * b.zero as f32);
                Box::new(move |x, y| c.saturate((x as f32).mul_add(ra, (y as f32).mul_add(rb, fixed))))
            }
            QLinearBinary::Mul => {
                let ratio = a.scale * b.scale / c.scale;
                Box::new(move |x, y| {
                    let product = x.wrapping_sub(a.zero).wrapping_mul(y.wrapping_sub(b.zero));
                    c.saturate(product as f32 * ratio + zero)
                })
            }
        }
    }
}

/// The broadcast shape of inputs `i` and `j`.
fn infer_two(cx: &InferCx, i: usize, j: usize) -> Result<Option<Vec<Dim>>, OpError> {
    let (Some(a), Some(b)) = (cx.shape(i), cx.shape(j)) else { return Ok(None) };
    let show = crate::support::show;
    Dim::broadcast_shapes(a, b)
        .map(Some)
        .ok_or_else(|| OpError::shape(format!("shapes {} and {} can't be broadcast together", show(a), show(b))))
}

impl Op for QLinearBinary {
    fn name(&self) -> &str {
        match self {
            QLinearBinary::Add => "QLinearAdd",
            QLinearBinary::Mul => "QLinearMul",
        }
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::tensor(cx.get(0)?.dtype(), infer_two(cx, 0, 3)?)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(3)?);
        let (pa, pb) = (Params::read(cx, 1, a.dtype())?, Params::read(cx, 4, b.dtype())?);
        if a.dtype() != b.dtype() {
            return Err(OpError::input(3, b.dtype().name(), a.dtype().name()));
        }
        let f = self.function(pa, pb, Params::read(cx, 6, a.dtype())?);
        let (shape, at) = broadcast(a.dtype(), &[a.shape(), b.shape()])?;
        let (xs, ys) = (ints(a)?, ints(b)?);
        let c = at[0].iter().zip(&at[1]).map(|(&i, &j)| f(xs[i], ys[j])).collect();
        Ok(vec![from_ints(a.dtype(), &shape, c)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_tensor::DType;

    fn params(scale: f32, zero: i32) -> Params {
        Params { scale, zero, dtype: DType::U8 }
    }

    #[test]
    fn adds_and_multiplies_in_units_of_the_output() {
        let (a, b, c) = (params(0.5, 10), params(0.25, 0), params(1.0, 3));
        // 0.5 * 10 + 0.25 * 4 = 6; 5 * 1 = 5.
        assert_eq!(QLinearBinary::Add.function(a, b, c)(20, 4), 9);
        assert_eq!(QLinearBinary::Mul.function(a, b, c)(20, 4), 8);
        assert_eq!(QLinearBinary::Add.function(a, b, c)(255, 255), 189);
        assert_eq!(QLinearBinary::Mul.function(a, b, c)(255, 255), 255);
    }

    /// What ONNX Runtime 1.31.1 gives where its order of operations decides between two codes.
    #[test]
    fn adds_in_the_order_of_onnx_runtime() {
        let format = |bits: u32, zero| params(f32::from_bits(bits), zero);
        let add =
            QLinearBinary::Add.function(format(0x3d1a4bd0, 141), format(0x3cb508bf, 122), format(0x3d4491fd, 141));
        assert_eq!((add(147, 102), add(135, 142)), (137, 146));
        let add =
            QLinearBinary::Add.function(format(0x3d4491fd, 141), format(0x3c811508, 130), format(0x3d4e7e0d, 134));
        assert_eq!((add(163, 39), add(119, 221)), (126, 141));
    }
}
