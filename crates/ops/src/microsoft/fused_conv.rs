//! FusedConv: Conv, a sum and an activation in one.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::activation::Fused;
use super::support::{DOMAIN, vector};
use crate::quant::product::mac_f64;
use crate::quant::window::{Conv, WindowAttrs, infer_conv};

/// `y = activation(conv(x, w) + bias + z)`; inputs x, w, optional bias `[m]`, optional z of the output's shape.
#[derive(Debug, Clone, PartialEq)]
pub struct FusedConv {
    /// Padding, strides and the like.
    pub window: WindowAttrs,
    /// Groups of channels.
    pub group: i64,
    /// What is applied last.
    pub activation: Fused,
}

/// Makes a FusedConv.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let (window, group) = (WindowAttrs::take(attrs)?, attrs.int_or("group", 1)?);
    let name = attrs.string("activation")?.unwrap_or_default();
    let activation = Fused::new(name, attrs.floats("activation_params")?.unwrap_or_default())?;
    Ok(Arc::new(FusedConv { window, group, activation }))
}

impl Op for FusedConv {
    fn name(&self) -> &str {
        "FusedConv"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::tensor(cx.get(0)?.dtype(), infer_conv(cx.shape(0), cx.shape(1), &self.window)?)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, w) = (cx.get(0)?, cx.get(1)?);
        let conv = Conv::new(x.shape(), w.shape(), self.group, &self.window)?;
        let mut y = conv.run(&x.to_f32s()?, &w.to_f32s()?, 0f64, mac_f64)?;
        if let Some(bias) = vector(cx.opt(2), 2, conv.m)? {
            for (i, plane) in y.chunks_mut(conv.window.positions().max(1)).enumerate() {
                plane.iter_mut().for_each(|v| *v += f64::from(bias[i % conv.m]));
            }
        }
        if let Some(z) = cx.opt(3) {
            if z.shape() != conv.out() {
                let message = format!("z has shape {:?}, the convolution {:?}", z.shape(), conv.out());
                return Err(OpError::shape(message));
            }
            y.iter_mut().zip(z.to_f32s()?.iter()).for_each(|(v, z)| *v += f64::from(*z));
        }
        self.activation.apply(&mut y);
        Ok(vec![Tensor::from_f64s(x.dtype(), conv.out(), &y)?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Float
    }

    fn attrs(&self) -> AttrMap {
        let params = (!self.activation.params.is_empty()).then(|| self.activation.params.clone());
        self.window
            .attrs()
            .with_unless("group", self.group, 1)
            .with_unless("activation", self.activation.name.clone(), String::new())
            .with_opt("activation_params", params)
    }
}
