//! RotaryEmbedding: ONNX's own operator with other inputs.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Datum, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor};

use super::support::DOMAIN;
use crate::nn::rotary_embedding::RotaryEmbedding as Onnx;
use crate::support::infer_same;

/// Rotates pairs of each head by an angle that depends on the position.
///
/// Inputs: X `[batch, heads, sequence, head size]` or `[batch, sequence, heads * head size]`; position_ids (i64)
/// `[batch, sequence]`, or `[1]` with the position of the first element; cos_cache and sin_cache `[positions, rotated / 2]`.
/// Output as X. Source: ONNX Runtime, com.microsoft.RotaryEmbedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryEmbedding {
    /// Pairs, rotated part and heads; without heads, an X of 3 axes has heads that are rotated as a whole.
    pub rotation: Onnx,
}

/// Makes a RotaryEmbedding.
///
/// # Errors
/// When an attribute is wrong, or asks for packed batches or a scale.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    if attrs.flag("is_packed_batching")? {
        return Err(OpError::Unsupported("attribute \"is_packed_batching\"".into()));
    }
    if attrs.float_or("scale", 1.0)? != 1.0 {
        return Err(OpError::Unsupported("attribute \"scale\" other than 1".into()));
    }
    Ok(Arc::new(RotaryEmbedding { rotation: Onnx::take(attrs)? }))
}

/// A row of positions for each batch element: as given, or from the first one on.
fn positions(ids: &Tensor, [batch, sequence]: [usize; 2]) -> Result<Tensor, OpError> {
    let given = ids.to_i64s()?;
    let all = match *ids.shape() {
        [b, s] if [b, s] == [batch, sequence] => given,
        [1] => {
            check_size(DType::I64, &[batch, sequence])?;
            let row = || (0..sequence as i64).map(|i| given[0].saturating_add(i));
            (0..batch).flat_map(|_| row()).collect()
        }
        _ => {
            let expected = format!("[{batch}, {sequence}] or [1]");
            return Err(OpError::input(1, format!("of shape {:?}", ids.shape()), expected));
        }
    };
    Ok(Tensor::new([batch, sequence], all)?)
}

/// Rotates `x` `[batch, heads, sequence, size]` or `[batch, sequence, heads * size]` by the angles of positions
/// `[batch, sequence]`.
pub(super) fn rotate(op: &Onnx, x: &Tensor, caches: [&Tensor; 2], ids: Tensor) -> Result<Tensor, OpError> {
    let data = [x, caches[0], caches[1], &ids].map(|t| Datum::Tensor(t.clone()));
    let refs: Vec<Option<&Datum>> = data.iter().map(Some).collect();
    op.eval(&EvalCx::new(&refs, 1))?.pop().ok_or(OpError::MissingInput(0))
}

impl Op for RotaryEmbedding {
    fn name(&self) -> &str {
        "RotaryEmbedding"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, ids, cos, sin) = (cx.get(0)?, cx.get(1)?, cx.get(2)?, cx.get(3)?);
        let mut op = self.rotation.clone();
        let extents = match *x.shape() {
            [b, _, s, _] => [b, s],
            [b, s, width] => {
                let size = cos.shape().last().map_or(0, |half| half.saturating_mul(2));
                op.num_heads = op.num_heads.or(width.checked_div(size).filter(|&heads| heads > 0));
                [b, s]
            }
            _ => return Err(OpError::shape(format!("X of shape {:?} needs 3 or 4 axes", x.shape()))),
        };
        Ok(vec![rotate(&op, x, [cos, sin], positions(ids, extents)?)?])
    }

    fn attrs(&self) -> AttrMap {
        self.rotation.attrs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ids: Tensor, x: &Tensor) -> Result<Vec<f32>, OpError> {
        let op = build(1, &mut AttrMap::new())?;
        let cos = Tensor::new([3, 1], vec![1f32, 0.0, -1.0]).unwrap();
        let sin = Tensor::new([3, 1], vec![0f32, 1.0, 0.0]).unwrap();
        let data = [x.clone(), ids, cos, sin].map(Datum::Tensor);
        let refs: Vec<Option<&Datum>> = data.iter().map(Some).collect();
        Ok(op.eval(&EvalCx::new(&refs, 1))?[0].to_f32s()?.into_owned())
    }

    #[test]
    fn counts_positions_from_the_first_one() {
        let x = Tensor::new([1, 2, 4], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]).unwrap();
        let want = [-2.0, 1.0, -4.0, 3.0, -5.0, -6.0, -7.0, -8.0];
        assert_eq!(run(Tensor::vector(vec![1i64]), &x).unwrap(), want);
        assert_eq!(run(Tensor::new([1, 2], vec![1i64, 2]).unwrap(), &x).unwrap(), want);
        let by_head = Tensor::new([1, 1, 2, 2], vec![1f32, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(run(Tensor::vector(vec![0i64]), &by_head).unwrap(), [1.0, 2.0, -4.0, 3.0]);
    }

    #[test]
    fn refuses_positions_and_attributes_that_do_not_fit() {
        let x = Tensor::new([1, 2, 4], vec![0f32; 8]).unwrap();
        for ids in [vec![2i64], vec![-1], vec![i64::MAX], vec![0, 1]] {
            assert!(run(Tensor::vector(ids), &x).is_err());
        }
        assert!(build(1, &mut AttrMap::new().with("is_packed_batching", 1i64)).is_err());
        assert!(build(1, &mut AttrMap::new().with("scale", 2f32)).is_err());
    }
}
