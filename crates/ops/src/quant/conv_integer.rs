//! ConvInteger: convolution of 8-bit integers into int32.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::params::{ints8, single_int};
use super::product::mac_i32;
use super::window::{Conv, WindowAttrs, infer_conv};

/// `y = conv(x - x_zero_point, w - w_zero_point)` in int32, wrapping; padding adds zeros after the
/// subtraction (ONNX ConvInteger 10).
///
/// Inputs: `x` and `w` (i8 or u8), optional `x_zero_point` (scalar), optional `w_zero_point`
/// (scalar or one per output channel).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvInteger {
    /// Padding, strides and the like.
    pub window: WindowAttrs,
    /// Groups of channels.
    pub group: i64,
}

/// Makes a ConvInteger.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(ConvInteger { window: WindowAttrs::take(attrs)?, group: attrs.int_or("group", 1)? }))
}

/// The weight with its zero point, one or one per output channel, taken off.
pub(crate) fn centred_weight(w: &Tensor, zero: Option<&Tensor>, index: usize) -> Result<Vec<i32>, OpError> {
    let mut values = ints8(w, index)?;
    let Some(zero) = zero else { return Ok(values) };
    let zeros = super::params::ints(zero)?;
    let m = w.shape().first().copied().unwrap_or(0);
    match zeros.as_slice() {
        [z] => values.iter_mut().for_each(|v| *v = v.wrapping_sub(*z)),
        _ if m > 0 && zeros.len() == m => {
            let size = values.len() / m;
            for (row, z) in values.chunks_exact_mut(size.max(1)).zip(zeros) {
                row.iter_mut().for_each(|v| *v = v.wrapping_sub(z));
            }
        }
        _ => return Err(OpError::shape(format!("{} weight zero points for {m} output channels", zeros.len()))),
    }
    Ok(values)
}

impl Op for ConvInteger {
    fn name(&self) -> &str {
        "ConvInteger"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::tensor(Some(DType::I32), infer_conv(cx.shape(0), cx.shape(1), &self.window)?)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, w) = (cx.get(0)?, cx.get(1)?);
        let conv = Conv::new(x.shape(), w.shape(), self.group, &self.window)?;
        let zero = single_int(cx.opt(2), 2)?;
        let xs: Vec<i32> = ints8(x, 0)?.into_iter().map(|v| v.wrapping_sub(zero)).collect();
        let y = conv.run(&xs, &centred_weight(w, cx.opt(3), 1)?, 0, mac_i32)?;
        Ok(vec![Tensor::new(conv.out(), y)?])
    }

    fn attrs(&self) -> AttrMap {
        self.window.attrs().with_unless("group", self.group, 1)
    }
}
