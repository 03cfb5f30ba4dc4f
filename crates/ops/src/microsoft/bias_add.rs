//! BiasAdd: a bias and a residual added.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::gelu::add_bias;
use super::support::{DOMAIN, like};

/// `y = x + bias + skip`; x and skip `[n, s, c]`, bias `[c]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BiasAdd;

/// Makes a BiasAdd; it has no attributes.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(BiasAdd))
}

impl Op for BiasAdd {
    fn name(&self) -> &str {
        "BiasAdd"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![like(cx, 0, cx.get(0)?.dtype())])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, skip) = (cx.get(0)?, cx.get(2)?);
        if x.shape() != skip.shape() {
            return Err(OpError::shape(format!("x has shape {:?}, skip {:?}", x.shape(), skip.shape())));
        }
        let mut y = add_bias(x, Some(cx.get(1)?))?;
        y.iter_mut().zip(skip.to_f64s()?).for_each(|(v, s)| *v += s);
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}
