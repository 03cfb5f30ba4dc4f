//! Activation functions with parameters: Celu, Elu, HardSigmoid, LeakyRelu, Selu, Shrink, Swish, ThresholdedRelu.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::num::Real;
use super::unary::{clamp, map_real, sigmoid};
use crate::support::infer_same;

/// Which function an [`Activation`] computes; `a` and `b` are its parameters in the order of [`Kind::parameters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `max(0, x) + min(0, a * (e^(x/a) - 1))`
    Celu,
    /// `a * (e^x - 1)` below 0, else `x`
    Elu,
    /// `max(0, min(1, a * x + b))`
    HardSigmoid,
    /// `a * x` below 0, else `x`
    LeakyRelu,
    /// `b * (a * e^x - a)` up to 0, else `b * x`
    Selu,
    /// `x + b` below `-a`, `x - b` above `a`, else 0
    Shrink,
    /// `x / (1 + e^(-a * x))`
    Swish,
    /// `x` above `a`, else 0
    ThresholdedRelu,
}

impl Kind {
    /// The parameters' attribute names and defaults.
    pub fn parameters(self) -> &'static [(&'static str, f32)] {
        match self {
            Kind::Celu | Kind::Elu | Kind::Swish | Kind::ThresholdedRelu => &[("alpha", 1.0)],
            Kind::HardSigmoid => &[("alpha", 0.2), ("beta", 0.5)],
            Kind::LeakyRelu => &[("alpha", 0.01)],
            Kind::Selu => &[("alpha", 1.673_263_2), ("gamma", 1.050_701)],
            Kind::Shrink => &[("lambd", 0.5), ("bias", 0.0)],
        }
    }
}

/// An activation function with its parameters; floating-point types (Shrink also integers),
/// output of the same type and shape. The formulas are those of the ONNX operators.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activation {
    /// The function.
    pub kind: Kind,
    /// The first parameter.
    pub a: f32,
    /// The second parameter; 0 where there is none.
    pub b: f32,
}

impl Activation {
    /// Makes the operator from its parameters' attributes.
    ///
    /// # Errors
    /// When an attribute is no float.
    pub fn build(kind: Kind, _opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
        let mut values = [0f32; 2];
        for (v, &(name, default)) in values.iter_mut().zip(kind.parameters()) {
            *v = attrs.float_or(name, default)?;
        }
        Ok(Arc::new(Activation { kind, a: values[0], b: values[1] }))
    }

    /// The function at `x`, in the precision of `T`.
    fn function<T: Real>(self) -> impl Fn(T) -> T {
        let (a, b, zero, one) = (T::of(self.a.into()), T::of(self.b.into()), T::zero(), T::one());
        move |x| match self.kind {
            Kind::Celu if x < zero => a * (x / a).exp_m1(),
            Kind::Elu if x < zero => a * x.exp_m1(),
            Kind::HardSigmoid => clamp(a * x + b, zero, one),
            Kind::LeakyRelu if x < zero => a * x,
            Kind::Selu if x <= zero => b * (a * x.exp_m1()),
            Kind::Selu => b * x,
            Kind::Shrink if x < -a => x + b,
            Kind::Shrink if x > a => x - b,
            Kind::Shrink if !x.is_nan() => zero,
            Kind::Swish => x * sigmoid(a * x),
            Kind::ThresholdedRelu if x <= a => zero,
            _ => x,
        }
    }
}

impl Op for Activation {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Celu => "Celu",
            Kind::Elu => "Elu",
            Kind::HardSigmoid => "HardSigmoid",
            Kind::LeakyRelu => "LeakyRelu",
            Kind::Selu => "Selu",
            Kind::Shrink => "Shrink",
            Kind::Swish => "Swish",
            Kind::ThresholdedRelu => "ThresholdedRelu",
        }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        if self.kind == Kind::Shrink && x.dtype().is_int() {
            let f = self.function::<f64>();
            let y: Vec<i64> = x.to_f64s()?.into_iter().map(|v| f(v) as i64).collect();
            return Ok(vec![Tensor::from_i64s(x.dtype(), x.shape(), &y)?]);
        }
        Ok(vec![map_real(x, self.function::<f32>(), self.function::<f64>())?])
    }

    fn quant(&self) -> QuantRole {
        match self.kind {
            Kind::LeakyRelu | Kind::HardSigmoid => QuantRole::Arithmetic { same_scale: false },
            _ => QuantRole::Float,
        }
    }

    fn attrs(&self) -> AttrMap {
        let values = [self.a, self.b];
        let named = self.kind.parameters().iter().zip(values);
        named.fold(AttrMap::new(), |m, (&(name, default), v)| m.with_unless(name, v, default))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_attributes_that_differ_from_the_defaults() {
        let mut attrs = AttrMap::new().with("gamma", 2f32);
        let op = Activation::build(Kind::Selu, 22, &mut attrs).unwrap();
        assert!(attrs.is_empty());
        let names: Vec<String> = op.attrs().into_iter().map(|(k, _)| k).collect();
        assert_eq!(names, ["gamma"]);
        assert!(Activation::build(Kind::Elu, 22, &mut AttrMap::new().with("alpha", 1i64)).is_err());
    }

    #[test]
    fn computes_each_side_of_the_threshold() {
        let f = Activation { kind: Kind::Shrink, a: 0.5, b: 0.25 }.function::<f32>();
        assert_eq!([f(-1.0), f(0.5), f(2.0)], [-0.75, 0.0, 1.75]);
        let f = Activation { kind: Kind::ThresholdedRelu, a: 1.0, b: 0.0 }.function::<f32>();
        assert_eq!([f(1.0), f(1.5), f(-3.0)], [0.0, 1.5, 0.0]);
        let f = Activation { kind: Kind::LeakyRelu, a: 0.5, b: 0.0 }.function::<f32>();
        assert_eq!([f(-2.0), f(3.0)], [-1.0, 3.0]);
    }
}
