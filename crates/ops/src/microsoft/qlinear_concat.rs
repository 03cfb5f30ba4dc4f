//! QLinearConcat: quantized tensors joined and requantized.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{Tensor, shape};

use super::qlinear_where::requantize;
use super::support::{DOMAIN, Params};
use crate::quant::params::from_ints;

/// Joins 8-bit tensors of one type along an axis, each requantized to the output's scale.
///
/// Inputs: y_scale, y_zero_point, then x, x_scale, x_zero_point for each tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QLinearConcat {
    /// The axis.
    pub axis: i64,
}

/// Makes a QLinearConcat.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let axis = attrs.int("axis")?.ok_or_else(|| OpError::attribute("axis", "is missing"))?;
    Ok(Arc::new(QLinearConcat { axis }))
}

impl QLinearConcat {
    fn axis(&self, rank: usize) -> Result<usize, OpError> {
        let problem = || OpError::attribute("axis", format!("is {}, but there are {rank} dimensions", self.axis));
        shape::axis(self.axis, rank).ok_or_else(problem)
    }
}

impl Op for QLinearConcat {
    fn name(&self) -> &str {
        "QLinearConcat"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let shapes: Option<Vec<&[Dim]>> = (2..cx.len()).step_by(3).map(|i| cx.shape(i)).collect();
        let Some([first, rest @ ..]) = shapes.as_deref() else { return Ok(vec![Fact::tensor(cx.dtype(1), None)]) };
        let a = self.axis(first.len())?;
        let mut out = first.to_vec();
        for s in rest {
            if s.len() != out.len() {
                return Err(OpError::shape(format!(
                    "inputs of {} and {} dimensions can't be joined",
                    out.len(),
                    s.len()
                )));
            }
            out[a] = out[a].add(&s[a]);
        }
        Ok(vec![Fact::tensor(cx.dtype(1), Some(out))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let dtype = cx.get(1)?.dtype();
        let out = Params::read(cx, 0, dtype)?;
        if cx.len() < 5 || cx.len() % 3 != 2 {
            return Err(OpError::Value(format!("{} inputs: expected two and three for each tensor", cx.len())));
        }
        let tensors = (2..cx.len()).step_by(3).map(|i| Ok((i, cx.get(i)?))).collect::<Result<Vec<_>, OpError>>()?;
        let mut shape = tensors[0].1.shape().to_vec();
        let a = self.axis(shape.len())?;
        shape[a] = 0;
        let mut parts = Vec::new();
        for &(i, t) in &tensors {
            let fits = t.rank() == shape.len() && (0..t.rank()).all(|d| d == a || t.shape()[d] == shape[d]);
            if !fits || t.dtype() != dtype {
                return Err(OpError::input(
                    i,
                    format!("{} of shape {:?}", t.dtype(), t.shape()),
                    "the others' type and shape",
                ));
            }
            shape[a] = shape[a].saturating_add(t.shape()[a]);
            let inner: usize = t.shape()[a..].iter().product();
            parts.push((requantize(t, &Params::read(cx, i + 1, dtype)?, &out)?, inner));
        }
        check_size(dtype, &shape)?;
        let outer: usize = shape[..a].iter().product();
        let y = (0..outer).flat_map(|o| parts.iter().flat_map(move |(p, n)| p[o * n..(o + 1) * n].iter().copied()));
        Ok(vec![from_ints(dtype, &shape, y.collect())?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with("axis", self.axis)
    }
}
