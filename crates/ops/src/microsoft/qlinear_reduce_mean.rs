//! QLinearReduceMean: the mean of a quantized tensor over axes.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{Tensor, shape};

use super::support::{DOMAIN, Params};
use crate::quant::params::{from_ints, ints};

/// `y = quantize(mean(dequantize(x)))` over `axes`; 8 bits.
///
/// Inputs: data, data_scale, data_zero_point, reduced_scale, reduced_zero_point; absent zero points are 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QLinearReduceMean {
    /// The axes; `None` is all.
    pub axes: Option<Vec<i64>>,
    /// Whether reduced axes stay with extent 1.
    pub keepdims: bool,
}

/// Makes a QLinearReduceMean.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let keepdims = attrs.int_or("keepdims", 1)? != 0;
    Ok(Arc::new(QLinearReduceMean { axes: attrs.ints("axes")?, keepdims }))
}

impl QLinearReduceMean {
    /// For each axis whether it is reduced.
    fn reduced(&self, rank: usize) -> Result<Vec<bool>, OpError> {
        let Some(axes) = self.axes.as_deref().filter(|a| !a.is_empty()) else { return Ok(vec![true; rank]) };
        let mut out = vec![false; rank];
        for &a in axes {
            let problem = || OpError::attribute("axes", format!("names {a}, but there are {rank} dimensions"));
            out[shape::axis(a, rank).ok_or_else(problem)?] = true;
        }
        Ok(out)
    }

    fn shape<T: Clone>(&self, s: &[T], one: T) -> Result<Vec<T>, OpError> {
        let reduced = self.reduced(s.len())?;
        let keep = |(d, r): (&T, bool)| match (r, self.keepdims) {
            (false, _) => Some(d.clone()),
            (true, true) => Some(one.clone()),
            (true, false) => None,
        };
        Ok(s.iter().zip(reduced).filter_map(keep).collect())
    }
}

impl Op for QLinearReduceMean {
    fn name(&self) -> &str {
        "QLinearReduceMean"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        Ok(vec![Fact::tensor(x.dtype(), x.shape().map(|s| self.shape(s, Dim::Known(1))).transpose()?)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let (px, py) = (Params::read(cx, 1, x.dtype())?, Params::read(cx, 3, x.dtype())?);
        let kept: Vec<usize> =
            x.shape().iter().zip(self.reduced(x.rank())?).map(|(&d, r)| if r { 1 } else { d }).collect();
        let total = shape::count(&kept)?;
        let count = x.len().checked_div(total).unwrap_or(0);
        if count == 0 && total > 0 {
            return Err(OpError::shape(format!("the mean of no elements (input of shape {:?})", x.shape())));
        }
        let mut sums = vec![0f64; total];
        let strides = shape::broadcast_strides(&kept, x.shape());
        for (c, o) in ints(x)?.into_iter().zip(shape::offsets(x.shape(), &strides)) {
            sums[o] += f64::from(px.dequantize(c));
        }
        let y = sums.iter().map(|s| py.quantize((s / count as f64) as f32)).collect();
        Ok(vec![from_ints(x.dtype(), &self.shape(x.shape(), 1)?, y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_opt("axes", self.axes.clone()).with_unless("keepdims", i64::from(self.keepdims), 1)
    }
}
