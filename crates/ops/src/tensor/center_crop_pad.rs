//! CenterCropPad: cut or padded with zeros around the center to a shape.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::{moves, params};

/// The input with the extents that input 1 gives, cut or padded with zeros on both sides; any type.
///
/// Of an odd difference the larger half is at the end. Source: ONNX CenterCropPad.
#[derive(Debug, Clone)]
pub struct CenterCropPad {
    /// The axes that the extents are for; all where absent.
    pub axes: Option<Vec<i64>>,
}

/// Makes a CenterCropPad from `axes`.
///
/// # Errors
/// When the attribute is no list of integers.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(CenterCropPad { axes: attrs.ints("axes")? }))
}

impl CenterCropPad {
    fn axes(&self, rank: usize, given: usize) -> Result<Vec<usize>, OpError> {
        let axes = match &self.axes {
            Some(list) => params::axes(list, rank)?,
            None => (0..rank).collect(),
        };
        if axes.len() != given {
            return Err(OpError::shape(format!("{given} extents for {} axes", axes.len())));
        }
        Ok(axes)
    }
}

impl Op for CenterCropPad {
    fn name(&self) -> &str {
        "CenterCropPad"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let shape = match (x.shape(), params::shape_input(cx, 1)?) {
            (Some(s), Some(to)) => {
                let mut out = s.to_vec();
                for (a, d) in self.axes(s.len(), to.len())?.into_iter().zip(to) {
                    out[a] = d;
                }
                Some(out)
            }
            (Some(s), None) => Some(params::unknown(s.len())),
            _ => None,
        };
        Ok(vec![Fact::tensor(x.dtype(), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, to) = (cx.get(0)?, params::extents(&cx.get(1)?.to_i64s()?)?);
        let mut out = x.shape().to_vec();
        for (a, d) in self.axes(x.rank(), to.len())?.into_iter().zip(to) {
            out[a] = d;
        }
        let at = |a: usize, i: usize| {
            let (from, to) = (x.shape()[a], out[a]);
            match from >= to {
                true => Some(i + (from - to) / 2),
                false => i.checked_sub((to - from) / 2).filter(|&i| i < from),
            }
        };
        Ok(vec![moves::remap(x, &out, at, Some(&Tensor::zeros(x.dtype(), [1])?))?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_opt("axes", self.axes.clone())
    }
}
