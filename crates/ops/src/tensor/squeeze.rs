//! Squeeze: drops axes of extent 1.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::params::{self, Ints, Known};

/// The input without the named axes, which must have extent 1; without all such axes where none are named.
///
/// Source: ONNX Squeeze.
#[derive(Debug, Clone)]
pub struct Squeeze {
    /// The axes: an attribute before opset 13, input 1 from then on.
    pub axes: Ints,
}

/// Makes a Squeeze.
///
/// # Errors
/// When `axes` is no list of integers.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Squeeze { axes: Ints::take(attrs, "axes", 1, opset, 13)? }))
}

impl Op for Squeeze {
    fn name(&self) -> &str {
        "Squeeze"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let shape = match (x.shape(), self.axes.infer(cx).numbers()) {
            (Some(s), Ok(Some(list))) => {
                let axes = params::axes(&list, s.len())?;
                if let Some(a) = axes.iter().find(|&&a| s[a].as_known().is_some_and(|d| d != 1)) {
                    return Err(OpError::shape(format!("axis {a} has extent {}, not 1", s[*a])));
                }
                Some(s.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone()).collect())
            }
            (Some(s), Ok(None)) if s.iter().all(|d| d.as_known().is_some()) => {
                Some(s.iter().filter(|d| **d != Dim::Known(1)).cloned().collect())
            }
            (Some(s), Err(_)) => match self.axes.infer(cx) {
                Known::Dims(axes) => Some(params::unknown(s.len().saturating_sub(axes.len()))),
                _ => None,
            },
            _ => None,
        };
        Ok(vec![Fact::tensor(x.dtype(), shape).with_dims(x.dims.clone())])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let s = x.shape();
        let axes = match self.axes.eval(cx)? {
            Some(list) => params::axes(&list, s.len())?,
            None => (0..s.len()).filter(|&a| s[a] == 1).collect(),
        };
        if let Some(&a) = axes.iter().find(|&&a| s[a] != 1) {
            return Err(OpError::shape(format!("axis {a} of shape {s:?} has extent {}, not 1", s[a])));
        }
        let shape: Vec<usize> = (0..s.len()).filter(|i| !axes.contains(i)).map(|i| s[i]).collect();
        Ok(vec![x.reshaped(shape)?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_opt("axes", self.axes.attr())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, ints};
    use super::*;

    #[test]
    fn takes_axes_from_attribute_or_input() {
        let x = ints(&[1, 2, 1], &[1, 2]);
        let old = eval("Squeeze", 11, AttrMap::new().with("axes", vec![-1i64]), std::slice::from_ref(&x)).unwrap();
        assert_eq!(old[0].shape(), [1, 2]);
        assert_eq!(eval("Squeeze", 13, AttrMap::new(), &[x.clone(), ints(&[1], &[0])]).unwrap()[0].shape(), [2, 1]);
        assert_eq!(eval("Squeeze", 13, AttrMap::new(), std::slice::from_ref(&x)).unwrap()[0].shape(), [2]);
        for axes in [[1, 0], [3, 0], [0, 0]] {
            assert!(eval("Squeeze", 13, AttrMap::new(), &[x.clone(), ints(&[2], &axes)]).is_err());
        }
    }
}
