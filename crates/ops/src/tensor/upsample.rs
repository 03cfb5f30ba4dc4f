//! Upsample: what Resize was before opset 10.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::params;
use super::resample::{Axis, Coordinates, Kernel, Method, Nearest, resample};
use super::resize::{scaled, scaled_dim};

/// The input resampled by scales, an attribute before opset 9 and input 1 in it; place `x` lies at `x / scale`.
///
/// Source: ONNX Upsample.
#[derive(Debug, Clone)]
pub struct Upsample {
    /// Whether elements are mixed (linear) rather than selected (nearest).
    pub linear: bool,
    /// The scales as an attribute.
    pub scales: Option<Vec<f32>>,
}

/// Makes an Upsample from `mode` and `scales`.
///
/// # Errors
/// When an attribute is wrong, or `scales` is missing where it is an attribute.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let linear = match attrs.string("mode")?.as_deref() {
        None | Some("nearest") => false,
        Some("linear" | "bilinear") => true,
        Some(other) => return Err(OpError::attribute("mode", format!("is \"{other}\", neither nearest nor linear"))),
    };
    let scales = if opset < 9 { attrs.floats("scales")? } else { None };
    if opset < 9 && scales.is_none() {
        return Err(OpError::attribute("scales", "is missing"));
    }
    Ok(Arc::new(Upsample { linear, scales }))
}

fn check(scales: usize, rank: usize) -> Result<(), OpError> {
    if scales != rank {
        return Err(OpError::shape(format!("{scales} scales for an input of {rank} axes")));
    }
    Ok(())
}

impl Upsample {
    /// How elements are found and mixed.
    pub fn method(&self) -> Method {
        Method {
            coordinates: Coordinates::Asymmetric,
            kernel: if self.linear { Kernel::Linear } else { Kernel::Nearest(Nearest::Simple) },
            antialias: false,
            exclude_outside: false,
            extrapolation: 0.0,
        }
    }

    /// The axes of an input of `shape`; `input` gives the scales by their position, where they are no attribute.
    ///
    /// # Errors
    /// When the scales are missing, or do not fit the shape.
    pub fn sampling(&self, shape: &[usize], input: &dyn Fn(usize) -> Option<Tensor>) -> Result<Vec<Axis>, OpError> {
        let scales = match &self.scales {
            Some(s) => s.clone(),
            None => input(1).ok_or(OpError::MissingInput(1))?.to_f32s()?.into_owned(),
        };
        check(scales.len(), shape.len())?;
        let axis = |(&from, &scale)| Ok(Axis { from, to: scaled(from, scale)?, scale, roi: (0.0, 1.0) });
        shape.iter().zip(&scales).map(axis).collect()
    }
}

impl Op for Upsample {
    fn name(&self) -> &str {
        "Upsample"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let given = cx.value(1).and_then(|v| v.to_f32s().ok().map(|v| v.into_owned()));
        let scales = self.scales.clone().or(given);
        let shape = match (x.shape(), scales) {
            (Some(s), Some(scales)) => {
                check(scales.len(), s.len())?;
                Some(s.iter().zip(scales).map(|(d, f)| scaled_dim(d, f)).collect::<Result<Vec<Dim>, _>>()?)
            }
            (s, _) => s.map(|s| params::unknown(s.len())),
        };
        Ok(vec![Fact::tensor(x.dtype(), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let axes = self.sampling(x.shape(), &|i| cx.opt(i).cloned())?;
        Ok(vec![resample(x, &axes, &self.method())?])
    }

    fn quant(&self) -> QuantRole {
        if self.linear { QuantRole::Float } else { QuantRole::Transparent }
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_unless("mode", if self.linear { "linear" } else { "nearest" }, "nearest")
            .with_opt("scales", self.scales.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, floats};
    use super::*;

    /// Values of ONNX Runtime 1.31, rounded to f32 there: 1e-5 covers that.
    #[test]
    fn takes_scales_from_attribute_or_input() {
        let x = floats(&[1, 4], &[1., 2., 3., 4.]);
        let near = eval("Upsample", 9, AttrMap::new(), &[x.clone(), floats(&[2], &[1.0, 1.5])]).unwrap();
        assert_eq!(near[0].to_f64s().unwrap(), [1.0, 1.0, 2.0, 3.0, 3.0, 4.0]);
        let attrs = AttrMap::new().with("mode", "linear").with("scales", vec![1f32, 1.5]);
        let linear = eval("Upsample", 7, attrs, std::slice::from_ref(&x)).unwrap()[0].to_f64s().unwrap();
        let expected = [1.0, 1.666_667, 2.333_333, 3.0, 3.666_667, 4.0];
        assert!(linear.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{linear:?}");
        assert!(eval("Upsample", 9, AttrMap::new(), &[x, floats(&[1], &[2.0])]).is_err());
        assert!(build(7, &mut AttrMap::new()).is_err());
    }
}
