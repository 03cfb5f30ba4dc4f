//! Split: one tensor into several along an axis.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::params::{self, Ints, Known};
use super::{factors, moves};

/// The input cut along `axis` into one piece per output; any type. Source: ONNX Split.
#[derive(Debug, Clone)]
pub struct Split {
    /// The axis, in `[-rank, rank)`.
    pub axis: i64,
    /// The extents of the pieces: an attribute before opset 13, input 1 from then on; equal ones where absent.
    pub split: Ints,
    /// The number of pieces (opset 18); the last may be smaller.
    pub num_outputs: Option<i64>,
    /// Whether equal pieces may leave a smaller last one (opset 18).
    pub uneven: bool,
}

/// Makes a Split from `axis`, `split` and `num_outputs`.
///
/// # Errors
/// When an attribute has another kind or `num_outputs` is less than 1.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let num_outputs = if opset >= 18 { attrs.int("num_outputs")? } else { None };
    if num_outputs.is_some_and(|n| n < 1) {
        return Err(OpError::attribute("num_outputs", "is less than 1"));
    }
    let axis = attrs.int_or("axis", 0)?;
    Ok(Arc::new(Split { axis, split: Ints::take(attrs, "split", 1, opset, 13)?, num_outputs, uneven: opset >= 18 }))
}

impl Split {
    fn equal(&self, extent: i64, n: usize) -> Result<Vec<i64>, OpError> {
        let n = self.count(n)? as i64;
        let piece = extent / n + i64::from(extent % n != 0);
        if extent % n != 0 && !self.uneven {
            return Err(OpError::shape(format!("an extent of {extent} can't be split into {n} equal pieces")));
        }
        Ok((0..n).map(|i| (extent - piece.saturating_mul(i)).clamp(0, piece)).collect())
    }

    /// The number of pieces of a node with `n` outputs.
    fn count(&self, n: usize) -> Result<usize, OpError> {
        match self.num_outputs {
            Some(m) if m != n as i64 => {
                Err(OpError::attribute("num_outputs", format!("is {m}, but there are {n} outputs")))
            }
            _ => Ok(n.max(1)),
        }
    }

    fn infer_pieces(&self, cx: &InferCx, extent: &Dim) -> Result<Vec<Dim>, OpError> {
        let n = cx.n_outputs();
        match (self.split.infer(cx), extent) {
            (Known::Dims(d), _) => {
                if let (Dim::Known(e), Ok(Some(v))) = (extent, Known::Dims(d.clone()).numbers()) {
                    check(*e, &v, n)?;
                }
                match d.iter().find(|p| p.as_known().is_some_and(|p| p < 0)) {
                    Some(piece) => Err(OpError::Value(format!("a piece of {piece} is negative"))),
                    None => Ok(d),
                }
            }
            (Known::Unknown, _) => Ok(params::unknown(n)),
            (Known::Absent, Dim::Known(e)) => Ok(self.equal(*e, n)?.into_iter().map(Dim::Known).collect()),
            (Known::Absent, e) => {
                let parts = self.count(n)? as i64;
                let piece = factors::quotient(std::slice::from_ref(e), &[Dim::Known(parts)]).unwrap_or(Dim::Unknown);
                // A quotient with a remainder may be rounded up, and leave less for the last piece.
                let exact = !matches!(&piece, Dim::Sym(s) if s.contains('/'));
                Ok(vec![if exact { piece } else { Dim::Unknown }; n])
            }
        }
    }
}

fn check(extent: i64, pieces: &[i64], outputs: usize) -> Result<(), OpError> {
    let sum = pieces.iter().try_fold(0i64, |s, &p| s.checked_add(p).filter(|_| p >= 0));
    if sum != Some(extent) || pieces.len() != outputs {
        let message = format!("pieces {pieces:?} do not split an extent of {extent} into {outputs} outputs");
        return Err(OpError::shape(message));
    }
    Ok(())
}

impl Op for Split {
    fn name(&self) -> &str {
        "Split"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let Some(s) = x.shape() else { return Ok(vec![Fact::tensor(x.dtype(), None); cx.n_outputs()]) };
        let axis = params::axis(self.axis, s.len())?;
        let pieces = self.infer_pieces(cx, &s[axis])?;
        let mut contents = if s.len() == 1 { x.dims.as_deref() } else { None };
        let mut out = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let head = match (contents, piece.as_usize()) {
                (Some(c), Some(n)) if n <= c.len() => {
                    let (head, rest) = c.split_at(n);
                    contents = Some(rest);
                    Some(head.to_vec())
                }
                _ => {
                    contents = None;
                    None
                }
            };
            let mut shape = s.to_vec();
            shape[axis] = piece;
            out.push(Fact::tensor(x.dtype(), Some(shape)).with_dims(head));
        }
        Ok(out)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let axis = params::axis(self.axis, x.rank())?;
        let extent = x.shape()[axis] as i64;
        let pieces = match self.split.eval(cx)? {
            Some(v) => v,
            None => self.equal(extent, cx.n_outputs())?,
        };
        check(extent, &pieces, cx.n_outputs())?;
        let mut from = 0;
        let mut out = Vec::with_capacity(pieces.len());
        for n in params::extents(&pieces)? {
            let mut shape = x.shape().to_vec();
            shape[axis] = n;
            out.push(moves::remap(x, &shape, |a, i| Some(if a == axis { i + from } else { i }), None)?);
            from += n;
        }
        Ok(out)
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_unless("axis", self.axis, 0)
            .with_opt("split", self.split.attr())
            .with_opt("num_outputs", self.num_outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    fn split(opset: i64, n: usize) -> Result<Vec<Vec<i64>>, OpError> {
        let x = Datum::Tensor(Tensor::vector(vec![1i64, 2, 3, 4, 5, 6, 7]));
        let op = build(opset, &mut AttrMap::new())?;
        let out = op.eval(&EvalCx::new(&[Some(&x)], n))?;
        Ok(out.iter().map(|t| t.to_i64s().unwrap()).collect())
    }

    #[test]
    fn leaves_a_smaller_last_piece_from_opset_18_on() {
        assert_eq!(split(18, 3).unwrap(), [vec![1, 2, 3], vec![4, 5, 6], vec![7]]);
        assert!(split(13, 3).is_err());
    }

    #[test]
    fn refuses_pieces_that_do_not_add_up() {
        assert!(check(4, &[1, 2], 2).is_err());
        assert!(check(4, &[5, -1], 2).is_err());
        assert!(check(4, &[i64::MAX, i64::MAX], 2).is_err());
        assert!(check(4, &[2, 2], 3).is_err());
        assert!(build(18, &mut AttrMap::new().with("num_outputs", 0i64)).is_err());
    }
}
