//! QLinearSigmoid and QLinearLeakyRelu: functions of one quantized tensor, by table.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::support::{DOMAIN, Params, like};
use crate::quant::params::{from_ints, ints};

/// `y = quantize(f(dequantize(x)))` element by element, for 8-bit x and y of one type.
///
/// Inputs: x, x_scale, x_zero_point, y_scale, y_zero_point; absent zero points are 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QLinearUnary {
    /// `f(x) = 1 / (1 + exp(-x))`.
    Sigmoid,
    /// `f(x) = x` for positive x, else `alpha x`.
    LeakyRelu {
        /// Slope for negative x.
        alpha: f32,
    },
}

const ALPHA: f32 = 0.01;

/// Makes a QLinearSigmoid.
pub fn build_sigmoid(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(QLinearUnary::Sigmoid))
}

/// Makes a QLinearLeakyRelu.
pub fn build_leaky_relu(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(QLinearUnary::LeakyRelu { alpha: attrs.float_or("alpha", ALPHA)? }))
}

impl QLinearUnary {
    fn value(self, x: f32) -> f32 {
        match self {
            QLinearUnary::Sigmoid => (1.0 / (1.0 + (-f64::from(x)).exp())) as f32,
            QLinearUnary::LeakyRelu { alpha } => {
                if x >= 0.0 {
                    x
                } else {
                    alpha * x
                }
            }
        }
    }
}

impl Op for QLinearUnary {
    fn name(&self) -> &str {
        match self {
            QLinearUnary::Sigmoid => "QLinearSigmoid",
            QLinearUnary::LeakyRelu { .. } => "QLinearLeakyRelu",
        }
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![like(cx, 0, cx.get(0)?.dtype())])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let (px, py) = (Params::read(cx, 1, x.dtype())?, Params::read(cx, 3, x.dtype())?);
        let table = px.table(&py, |v| self.value(v));
        let y = ints(x)?.into_iter().map(|c| table[(c - px.least()) as usize]).collect();
        Ok(vec![from_ints(x.dtype(), x.shape(), y)?])
    }

    fn attrs(&self) -> AttrMap {
        match *self {
            QLinearUnary::LeakyRelu { alpha } => AttrMap::new().with_unless("alpha", alpha, ALPHA),
            QLinearUnary::Sigmoid => AttrMap::new(),
        }
    }
}
