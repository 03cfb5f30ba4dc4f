//! QLinearSoftmax: softmax of a quantized tensor by a table of exponentials.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{Tensor, shape};

use super::support::{DOMAIN, Params, like};
use crate::quant::params::{from_ints, ints};

/// Softmax along `axis` of 8-bit x, quantized to y: `y = saturate(round(e * floor(1 / y_scale) / sum(e)) + y_zero)`
/// with `e = exp((x - max(x)) * x_scale)` times a constant that cancels, as ONNX Runtime computes it.
///
/// Inputs: x, x_scale, x_zero_point (not needed), y_scale, y_zero_point. Before opset 13 the axes from
/// `axis` on are taken as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QLinearSoftmax {
    /// The axis; `None` is -1, before opset 13 it is 1.
    pub axis: Option<i64>,
    /// The opset of the Softmax that this replaces.
    pub opset: i64,
}

/// Makes a QLinearSoftmax.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let opset = attrs.int("opset")?.ok_or_else(|| OpError::attribute("opset", "is missing"))?;
    Ok(Arc::new(QLinearSoftmax { axis: attrs.int("axis")?, opset }))
}

/// Exponentials of the distance (0 to 255 codes) from the greatest of `len` elements in steps of `scale`.
pub fn exponentials(scale: f32, len: usize) -> Vec<f32> {
    // Scaled up as far as the sum of `len` of them allows, so that small ones do not vanish.
    let room = f64::from((f32::MAX / len as f32).ln());
    let shift = (room - 5.0).max(0.0) / f64::from(scale);
    (0..256).map(|d| ((shift - f64::from(d)) * f64::from(scale)).exp() as f32).collect()
}

/// How many steps of the result's `scale` make up 1, as ONNX Runtime counts them.
pub fn steps_of_one(scale: f32) -> f32 {
    (1.0 / scale).floor()
}

impl Op for QLinearSoftmax {
    fn name(&self) -> &str {
        "QLinearSoftmax"
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
        let given = self.axis.unwrap_or(if self.opset < 13 { 1 } else { -1 });
        let a = shape::axis(given, x.rank())
            .ok_or_else(|| OpError::attribute("axis", format!("is {given}, but x has {} dimensions", x.rank())))?;
        let tail: usize = x.shape()[a + 1..].iter().product();
        // Before opset 13 one row spans all axes from `a` on.
        let (len, inner) = if self.opset < 13 { (x.shape()[a] * tail, 1) } else { (x.shape()[a], tail) };
        let codes = ints(x)?;
        let mut y = vec![0i32; codes.len()];
        if codes.is_empty() {
            return Ok(vec![from_ints(x.dtype(), x.shape(), y)?]);
        }
        let table = exponentials(px.scale, len);
        let steps = steps_of_one(py.scale);
        for row in 0..codes.len() / len {
            let start = row / inner * len * inner + row % inner;
            let at = |i: usize| start + i * inner;
            let max = (0..len).map(|i| codes[at(i)]).max().unwrap_or(0);
            let e = |i: usize| table[(max - codes[at(i)]) as usize];
            let sum = (0..len).fold(0f32, |s, i| s + e(i));
            for i in 0..len {
                let q = (e(i) * steps / sum).round_ties_even();
                y[at(i)] = py.saturate(q + py.zero as f32);
            }
        }
        Ok(vec![from_ints(x.dtype(), x.shape(), y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_opt("axis", self.axis).with("opset", self.opset)
    }
}
