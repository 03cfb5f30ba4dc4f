//! DynamicQuantizeLinear: quantization to uint8 with a scale found from the data.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::params::round_saturate;

/// `scale = (max(x, 0) - min(x, 0)) / 255`, `zero = saturate(round(-min / scale))`,
/// `y = saturate(round_half_even(x / scale) + zero)`; x is f32, outputs y (u8), scale (f32), zero (u8)
/// (ONNX DynamicQuantizeLinear 11).
#[derive(Debug, Clone, Copy)]
pub struct DynamicQuantizeLinear;

/// Makes a DynamicQuantizeLinear; it has no attributes.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(DynamicQuantizeLinear))
}

/// The scale and zero point that cover `x` and 0 with the codes `lo..=hi`, in ONNX Runtime's order of operations.
pub(crate) fn dynamic_params(x: &[f32], (lo, hi): (i32, i32)) -> (f32, i32) {
    let min = x.iter().copied().fold(0f32, f32::min);
    let max = x.iter().copied().fold(0f32, f32::max);
    let scale = if max == min { 1.0 } else { (max - min) / (hi - lo) as f32 };
    let zero = (lo as f32 - min / scale).max(lo as f32).min(hi as f32);
    (scale, zero.round_ties_even() as i32)
}

impl Op for DynamicQuantizeLinear {
    fn name(&self) -> &str {
        "DynamicQuantizeLinear"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let shape = cx.get(0)?.shape().map(<[_]>::to_vec);
        Ok(vec![
            Fact::tensor(Some(DType::U8), shape),
            Fact::tensor(Some(DType::F32), Some(vec![])),
            Fact::tensor(Some(DType::U8), Some(vec![])),
        ])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let xs = x.slice::<f32>()?;
        let (scale, zero) = dynamic_params(&xs, (0, 255));
        let y = xs.iter().map(|&v| round_saturate(v / scale, zero, (0, 255)) as u8).collect();
        Ok(vec![Tensor::new(x.shape(), y)?, Tensor::scalar(scale), Tensor::scalar(zero as u8)])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_zero_whatever_the_range() {
        assert_eq!(dynamic_params(&[1.0, 2.0], (0, 255)), (2.0 / 255.0, 0));
        assert_eq!(dynamic_params(&[-2.55, -1.0], (0, 255)), (2.55 / 255.0, 255));
        assert_eq!(dynamic_params(&[0.0], (0, 255)), (1.0, 0));
        assert_eq!(dynamic_params(&[], (0, 255)), (1.0, 0));
    }
}
