//! Unsqueeze: inserts axes of extent 1.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::params::{self, Ints, Known};

/// The input with axes of extent 1 inserted; axes count in the output.
///
/// Source: ONNX Unsqueeze.
#[derive(Debug, Clone)]
pub struct Unsqueeze {
    /// The axes: an attribute before opset 13, input 1 from then on.
    pub axes: Ints,
}

/// Makes an Unsqueeze.
///
/// # Errors
/// When `axes` is no list of integers, or missing where it is an attribute.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let axes = Ints::take(attrs, "axes", 1, opset, 13)?;
    if axes == Ints::Absent {
        return Err(OpError::attribute("axes", "is missing"));
    }
    Ok(Arc::new(Unsqueeze { axes }))
}

fn insert<T>(
    shape: impl IntoIterator<Item = T>,
    rank: usize,
    axes: &[i64],
    one: impl Fn() -> T,
) -> Result<Vec<T>, OpError> {
    let rank = rank + axes.len();
    let mut new = vec![false; rank];
    for a in params::axes(axes, rank)? {
        new[a] = true;
    }
    let mut old = shape.into_iter();
    Ok(new.into_iter().map(|new| if new { one() } else { old.next().unwrap_or_else(&one) }).collect())
}

impl Op for Unsqueeze {
    fn name(&self) -> &str {
        "Unsqueeze"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let axes = self.axes.infer(cx);
        let shape = match (x.shape(), axes.numbers(), &axes) {
            (_, Ok(None), _) => return Err(OpError::MissingInput(1)),
            (Some(s), Ok(Some(axes)), _) => Some(insert(s.iter().cloned(), s.len(), &axes, || Dim::Known(1))?),
            (Some(s), Err(_), Known::Dims(d)) => Some(params::unknown(s.len() + d.len())),
            _ => None,
        };
        let small = shape.as_ref().is_some_and(|s| s.len() <= 1);
        Ok(vec![Fact::tensor(x.dtype(), shape).with_dims(x.dims.clone().filter(|_| small))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let axes = self.axes.eval(cx)?.ok_or(OpError::MissingInput(1))?;
        Ok(vec![x.reshaped(insert(x.shape().iter().copied(), x.rank(), &axes, || 1)?)?])
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
    fn counts_axes_in_the_output() {
        let x = ints(&[2], &[1, 2]);
        assert_eq!(
            eval("Unsqueeze", 13, AttrMap::new(), &[x.clone(), ints(&[2], &[-1, 0])]).unwrap()[0].shape(),
            [1, 2, 1]
        );
        assert!(eval("Unsqueeze", 13, AttrMap::new(), &[x.clone(), ints(&[2], &[0, -3])]).is_err());
        assert!(eval("Unsqueeze", 13, AttrMap::new(), &[x, ints(&[1], &[2])]).is_err());
        assert!(build(11, &mut AttrMap::new()).is_err());
    }
}
