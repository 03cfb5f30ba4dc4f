//! RotaryEmbedding: rotates pairs of each head by an angle that depends on the position.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::stats::floats;
use crate::support::infer_same;

/// `(x1, x2) → (cos·x1 − sin·x2, sin·x1 + cos·x2)` for the pairs of each head's first
/// `rotary_embedding_dim` elements: the two halves, or neighbours where interleaved.
///
/// Inputs: X `[batch, heads, sequence, head size]` or `[batch, sequence, heads·head size]`;
/// cos_cache and sin_cache `[positions, dim/2]` with position_ids `[batch, sequence]` (i64), or
/// `[batch, sequence, dim/2]` without. Output as X. Source: ONNX operator RotaryEmbedding (23).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotaryEmbedding {
    /// Whether pairs are neighbours instead of halves.
    pub interleaved: bool,
    /// How many elements of each head are rotated; 0 for all.
    pub rotary_dim: usize,
    /// Heads; required where X has 3 axes.
    pub num_heads: Option<usize>,
}

/// Makes a RotaryEmbedding.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(RotaryEmbedding::take(attrs)?))
}

impl RotaryEmbedding {
    /// Takes the attributes.
    pub(crate) fn take(attrs: &mut AttrMap) -> Result<RotaryEmbedding, OpError> {
        let mut count = |name: &str| -> Result<Option<usize>, OpError> {
            match attrs.int(name)? {
                None | Some(0) => Ok(None),
                Some(n) if (1..=i64::from(u32::MAX)).contains(&n) => Ok(Some(n as usize)),
                Some(n) => Err(OpError::attribute(name, format!("is {n}, must not be negative"))),
            }
        };
        let (rotary_dim, num_heads) = (count("rotary_embedding_dim")?.unwrap_or(0), count("num_heads")?);
        Ok(RotaryEmbedding { interleaved: attrs.flag("interleaved")?, rotary_dim, num_heads })
    }

    /// Batch, heads, sequence, head size; and whether heads come before the sequence.
    fn extents(&self, x: &[usize]) -> Result<([usize; 4], bool), OpError> {
        match (x, self.num_heads) {
            (&[b, h, s, d], _) => Ok(([b, h, s, d], true)),
            (&[b, s, w], Some(h)) if w % h == 0 => Ok(([b, h, s, w / h], false)),
            (&[_, _, w], Some(h)) => Err(OpError::shape(format!("a width of {w} can't be divided into {h} heads"))),
            (&[_, _, _], None) => Err(OpError::attribute("num_heads", "is needed for an X of 3 axes")),
            _ => Err(OpError::shape(format!("X of shape {x:?} needs 3 or 4 axes"))),
        }
    }

    /// The row of the caches for each batch element and sequence position.
    fn rows(&self, cx: &EvalCx, batch: usize, seq: usize, half: usize) -> Result<Vec<usize>, OpError> {
        let (cos, sin) = (cx.get(1)?.shape(), cx.get(2)?.shape());
        let misfit =
            || OpError::shape(format!("cos_cache of shape {cos:?} and sin_cache of shape {sin:?} don't fit to X"));
        let Some(ids) = cx.opt(3) else {
            let ok = cos == [batch, seq, half] && sin == cos;
            return if ok { Ok((0..batch * seq).collect()) } else { Err(misfit()) };
        };
        let &[positions, width] = cos else { return Err(misfit()) };
        if width != half || sin != cos || ids.len() != batch * seq {
            return Err(misfit());
        }
        let check = |p: i64| usize::try_from(p).ok().filter(|&p| p < positions);
        let problem = |p: i64| OpError::Value(format!("position_ids has {p}, the caches have {positions} positions"));
        ids.to_i64s()?.into_iter().map(|p| check(p).ok_or_else(|| problem(p))).collect()
    }
}

impl Op for RotaryEmbedding {
    fn name(&self) -> &str {
        "RotaryEmbedding"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let ([batch, heads, seq, size], heads_first) = self.extents(x.shape())?;
        let dim = if self.rotary_dim == 0 { size } else { self.rotary_dim };
        if dim > size || dim % 2 != 0 {
            return Err(OpError::shape(format!("{dim} elements can't be rotated in heads of {size}")));
        }
        let half = dim / 2;
        let mut y = floats(cx, 0)?;
        if y.is_empty() {
            return Ok(vec![x.clone()]);
        }
        let (cos, sin, rows) = (floats(cx, 1)?, floats(cx, 2)?, self.rows(cx, batch, seq, half)?);
        for (i, head) in y.chunks_exact_mut(size).enumerate() {
            let (b, s) = match heads_first {
                true => (i / (heads * seq), i % seq),
                false => (i / (heads * seq), i / heads % seq),
            };
            let row = rows[b * seq + s] * half;
            for j in 0..half {
                let (p, q) = if self.interleaved { (2 * j, 2 * j + 1) } else { (j, j + half) };
                let (c, s) = (cos[row + j], sin[row + j]);
                (head[p], head[q]) = (c * head[p] - s * head[q], s * head[p] + c * head[q]);
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_unless("interleaved", i64::from(self.interleaved), 0)
            .with_unless("rotary_embedding_dim", self.rotary_dim as i64, 0)
            .with_opt("num_heads", self.num_heads.map(|n| n as i64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    fn eval(interleaved: bool, dim: usize, ids: i64) -> Result<Vec<f32>, OpError> {
        let op = RotaryEmbedding { interleaved, rotary_dim: dim, num_heads: Some(1) };
        let half = dim / 2;
        let (cos, sin) =
            (tensor([2, half], &vec![0.; 2 * half]), tensor([2, half], &[vec![0.; half], vec![1.; half]].concat()));
        let ids = Tensor::new([1, 1], vec![ids]).unwrap();
        let x = tensor([1, 1, 4], &[1., 2., 3., 4.]);
        run(&op, &[Some(&x), Some(&cos), Some(&sin), Some(&ids)], 1).map(|y| f32s(&y[0]))
    }

    #[test]
    fn rotates_halves_or_neighbours() {
        assert_eq!(eval(false, 4, 1).unwrap(), [-3., -4., 1., 2.]);
        assert_eq!(eval(true, 4, 1).unwrap(), [-2., 1., -4., 3.]);
        assert_eq!(eval(false, 2, 1).unwrap(), [-2., 1., 3., 4.]);
    }

    #[test]
    fn refuses_positions_past_the_cache_and_odd_sizes() {
        assert!(eval(false, 4, 2).is_err());
        assert!(eval(false, 6, 0).is_err());
    }
}
