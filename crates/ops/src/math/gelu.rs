//! Gelu: `x` times the Gaussian distribution function of `x`.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::num::Real;
use super::unary::map_real;
use crate::support::infer_same;

/// `y = x/2 * (1 + erf(x/√2))`, or its approximation `x/2 * (1 + tanh(√(2/π) * (x + 0.044715 x³)))`;
/// floating-point types, output of the same type and shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gelu {
    /// Whether the tanh approximation is used.
    pub tanh: bool,
}

/// Makes a Gelu from its attribute `approximate`.
///
/// # Errors
/// When the approximation is neither `none` nor `tanh`.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    match attrs.string("approximate")?.as_deref() {
        None | Some("none") => Ok(Arc::new(Gelu { tanh: false })),
        Some("tanh") => Ok(Arc::new(Gelu { tanh: true })),
        Some(other) => Err(OpError::attribute("approximate", format!("is {other:?}, not \"none\" or \"tanh\""))),
    }
}

/// The exact form at `x`.
pub(crate) fn gelu<T: Real>(x: T) -> T {
    T::of(0.5) * x * (T::one() + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

/// The tanh approximation at `x`.
pub(crate) fn gelu_tanh<T: Real>(x: T) -> T {
    let inner = T::of((2.0 / std::f64::consts::PI).sqrt()) * (x + T::of(0.044715) * x * x * x);
    T::of(0.5) * x * (T::one() + inner.tanh())
}

impl Op for Gelu {
    fn name(&self) -> &str {
        "Gelu"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let y = if self.tanh { map_real(x, gelu_tanh, gelu_tanh) } else { map_real(x, gelu, gelu) };
        Ok(vec![y?])
    }

    fn attrs(&self) -> AttrMap {
        if self.tanh { AttrMap::new().with("approximate", "tanh") } else { AttrMap::new() }
    }
}
