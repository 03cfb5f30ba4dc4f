//! PRelu: LeakyRelu with a slope per element or channel.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{Tensor, shape};

use super::broadcast::{infer_elementwise, map2, same_dtype};
use super::num::{Num, with_num};

/// `y = slope * x` where `x < 0`, else `x`; the slope broadcasts to the shape of `x`.
#[derive(Debug, Clone, Copy)]
pub struct PRelu;

/// Makes a PRelu; it has no attributes.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(PRelu))
}

fn apply<T: Num>(x: &Tensor, slope: &Tensor) -> Result<Tensor, OpError> {
    map2(x, slope, |x: T, s: T| if x < T::ZERO { x.times(s) } else { x })
}

impl Op for PRelu {
    fn name(&self) -> &str {
        "PRelu"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let fact = infer_elementwise(cx, None)?;
        Ok(vec![Fact::tensor(fact.dtype(), cx.shape(0).map(<[_]>::to_vec))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, slope) = (cx.get(0)?, cx.get(1)?);
        same_dtype(x, slope)?;
        if shape::broadcast(x.shape(), slope.shape())? != x.shape() {
            let message = format!("a slope of shape {:?} does not broadcast to {:?}", slope.shape(), x.shape());
            return Err(OpError::Shape(message));
        }
        Ok(vec![with_num!(x.dtype(), 0, T => apply::<T>(x, slope))?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}
