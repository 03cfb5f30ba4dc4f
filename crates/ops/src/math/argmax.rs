//! ArgMax and ArgMin: where the greatest or least element lies along an axis.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::axes::{Along, keepdims, resolve};
use super::num::{Num, with_num};

/// The position along `axis` of the greatest (or least) element, as `i64`; numeric types.
/// A NaN counts as the extreme, as in numpy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArgExtreme {
    /// The least instead of the greatest.
    pub min: bool,
    /// The axis, from the back where negative.
    pub axis: i64,
    /// Whether the axis stays, with extent 1.
    pub keepdims: bool,
    /// Whether the last of equal elements is taken instead of the first.
    pub select_last_index: bool,
}

impl ArgExtreme {
    /// Makes the operator from its attributes.
    ///
    /// # Errors
    /// When an attribute is no integer.
    pub fn build(min: bool, _opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
        Ok(Arc::new(ArgExtreme {
            min,
            axis: attrs.int_or("axis", 0)?,
            keepdims: keepdims(attrs)?,
            select_last_index: attrs.flag("select_last_index")?,
        }))
    }

    fn apply<T: Num>(self, x: &Tensor, axis: usize) -> Result<Tensor, OpError> {
        let along = Along::new(x.shape(), axis);
        let data = x.slice::<T>()?;
        let beats = |x: T, best: T| {
            let further = if self.min { x < best } else { x > best };
            further || x.is_nan() && !best.is_nan() || self.select_last_index && (x == best || x.is_nan())
        };
        let position = |start: usize| {
            let mut best = (0usize, data[start]);
            for (k, i) in along.line(start).enumerate().skip(1) {
                if beats(data[i], best.1) {
                    best = (k, data[i]);
                }
            }
            best.0 as i64
        };
        let mut out = x.shape().to_vec();
        if self.keepdims {
            out[axis] = 1;
        } else {
            out.remove(axis);
        }
        if along.len == 0 && along.outer > 0 && along.inner > 0 {
            return Err(OpError::Shape(format!("axis {axis} of shape {:?} has no elements to choose from", x.shape())));
        }
        Ok(Tensor::new(out, along.lines().map(position).collect::<Vec<i64>>())?)
    }
}

impl Op for ArgExtreme {
    fn name(&self) -> &str {
        if self.min { "ArgMin" } else { "ArgMax" }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        cx.get(0)?;
        let Some(s) = cx.shape(0) else { return Ok(vec![Fact::tensor(Some(DType::I64), None)]) };
        let axis = resolve(self.axis, s.len())?;
        let mut out = s.to_vec();
        if self.keepdims {
            out[axis] = Dim::Known(1);
        } else {
            out.remove(axis);
        }
        Ok(vec![Fact::tensor(Some(DType::I64), Some(out))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let axis = resolve(self.axis, x.rank())?;
        Ok(vec![with_num!(x.dtype(), 0, T => self.apply::<T>(x, axis))?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_unless("axis", self.axis, 0)
            .with_unless("keepdims", i64::from(self.keepdims), 1)
            .with_unless("select_last_index", i64::from(self.select_last_index), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_between_equal_elements_as_asked() {
        let x = Tensor::new([2, 3], vec![3f32, 1.0, 3.0, 2.0, 2.0, 0.0]).unwrap();
        let run = |min, select_last_index, axis: usize| {
            let op = ArgExtreme { min, axis: axis as i64, keepdims: false, select_last_index };
            op.apply::<f32>(&x, axis).unwrap().to_i64s().unwrap()
        };
        assert_eq!(run(false, false, 1), [0, 0]);
        assert_eq!(run(false, true, 1), [2, 1]);
        assert_eq!(run(true, false, 0), [1, 0, 1]);
    }

    #[test]
    fn refuses_an_empty_axis() {
        let x = Tensor::zeros(DType::F32, [2, 0]).unwrap();
        let op = ArgExtreme { min: false, axis: 1, keepdims: true, select_last_index: false };
        assert!(op.apply::<f32>(&x, 1).is_err());
        assert_eq!(ArgExtreme { axis: 0, ..op }.apply::<f32>(&x, 0).unwrap().shape(), [1, 0]);
    }
}
