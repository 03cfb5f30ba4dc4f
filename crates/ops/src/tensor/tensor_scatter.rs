//! TensorScatter: new keys or values written into a cache.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{Tensor, shape};

use super::params;
use super::scatter::{Reduction, scatter};

/// The cache with `update[b]` written from `write_indices[b]` (0 where absent) on along `axis`; any type.
///
/// Source: ONNX TensorScatter.
#[derive(Debug, Clone, Copy)]
pub struct TensorScatter {
    /// The axis of the sequence, in `[-rank, rank)`; not the batch axis 0.
    pub axis: i64,
    /// Whether writing goes on at the start when it comes to the end.
    pub circular: bool,
}

/// Makes a TensorScatter from `axis` (-2 by default) and `mode`.
///
/// # Errors
/// When an attribute is wrong.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let circular = match attrs.string("mode")?.as_deref() {
        None | Some("linear") => false,
        Some("circular") => true,
        Some(other) => return Err(OpError::attribute("mode", format!("is \"{other}\", neither linear nor circular"))),
    };
    Ok(Arc::new(TensorScatter { axis: attrs.int_or("axis", -2)?, circular }))
}

impl TensorScatter {
    fn axis(&self, rank: usize) -> Result<usize, OpError> {
        match params::axis(self.axis, rank)? {
            0 => Err(OpError::shape("the axis is the batch axis")),
            a => Ok(a),
        }
    }

    /// The step of a sequence of `n` that step `t` after `start` falls on.
    fn step(&self, start: i64, t: usize, n: usize) -> Result<usize, OpError> {
        let at = usize::try_from(start).ok().and_then(|s| s.checked_add(t));
        let at = if self.circular { at.and_then(|at| at.checked_rem(n)) } else { at };
        at.filter(|&at| at < n).ok_or_else(|| {
            OpError::Value(format!("step {t} written from {start} on does not fit a cache of {n} steps"))
        })
    }
}

impl Op for TensorScatter {
    fn name(&self) -> &str {
        "TensorScatter"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        if let Some(s) = x.shape() {
            self.axis(s.len())?;
        }
        Ok(vec![Fact::tensor(x.dtype(), x.shape().map(<[_]>::to_vec))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, update) = (cx.get(0)?, cx.get(1)?);
        let (s, u) = (x.shape(), update.shape());
        let axis = self.axis(s.len())?;
        if u.len() != s.len() || (0..s.len()).any(|a| a != axis && u[a] != s[a]) || u[axis] > s[axis] {
            return Err(OpError::shape(format!("an update of shape {u:?} does not fit a cache of shape {s:?}")));
        }
        let starts = match cx.opt(2) {
            Some(t) => t.to_i64s()?,
            None => vec![0; s[0]],
        };
        if starts.len() != s[0] {
            return Err(OpError::shape(format!("{} write indices for a batch of {}", starts.len(), s[0])));
        }
        if update.is_empty() {
            return Ok(vec![x.clone()]);
        }
        let (middle, inner) = (shape::count(&s[1..axis])?, shape::count(&s[axis + 1..])?);
        let mut targets = Vec::with_capacity(s[0] * middle * u[axis]);
        for (b, &start) in starts.iter().enumerate() {
            for m in 0..middle {
                for t in 0..u[axis] {
                    let row = (b * middle + m) * s[axis] + self.step(start, t, s[axis])?;
                    targets.push(row * inner);
                }
            }
        }
        Ok(vec![scatter(x, update, &targets, inner, Reduction::None)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("axis", self.axis, -2).with_unless(
            "mode",
            if self.circular { "circular" } else { "linear" },
            "linear",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, ints};
    use super::*;

    #[test]
    fn wraps_around_only_when_circular() {
        let run = |mode: &str, start: i64| {
            let attrs = AttrMap::new().with("mode", mode);
            eval(
                "TensorScatter",
                24,
                attrs,
                &[ints(&[1, 3, 1], &[1, 2, 3]), ints(&[1, 2, 1], &[8, 9]), ints(&[1], &[start])],
            )
        };
        assert_eq!(run("circular", 2).unwrap()[0].to_i64s().unwrap(), [9, 2, 8]);
        assert_eq!(run("linear", 1).unwrap()[0].to_i64s().unwrap(), [1, 8, 9]);
        assert!(run("linear", 2).is_err());
        assert!(run("circular", -1).is_err());
    }
}
