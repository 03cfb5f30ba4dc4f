//! EmbedLayerNormalization: the embedding layer of BERT, normalised.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::layer_norm::normalise;
use super::support::{DOMAIN, extents, vector};

/// `s = word[input_ids] + position[position_ids] + segment[segment_ids]`, `y = layer_norm(s) * gamma + beta`.
///
/// Inputs: input_ids `[batch, sequence]` (i32), optional segment_ids, word, position and optional
/// segment embeddings `[.., hidden]`, gamma, beta, optional mask `[batch, sequence]` (i32), optional
/// position_ids. Outputs: y `[batch, sequence, hidden]`, the number of ones of each mask row (i32), s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbedLayerNorm {
    /// Keeps the root from zero.
    pub epsilon: f32,
    /// The attribute of the file; `None` where absent.
    pub mask_index_type: Option<i64>,
}

const EPSILON: f32 = 1e-12;

/// Makes an EmbedLayerNormalization.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let epsilon = attrs.float_or("epsilon", EPSILON)?;
    Ok(Arc::new(EmbedLayerNorm { epsilon, mask_index_type: attrs.int("mask_index_type")? }))
}

/// A table of vectors, looked up by number.
struct Table<'a> {
    index: usize,
    values: std::borrow::Cow<'a, [f32]>,
    rows: usize,
    width: usize,
}

impl<'a> Table<'a> {
    fn new(t: &'a Tensor, index: usize) -> Result<Table<'a>, OpError> {
        let [rows, width] = extents(t, index)?;
        Ok(Table { index, values: t.to_f32s()?, rows, width })
    }

    fn add(&self, id: i64, to: &mut [f64]) -> Result<(), OpError> {
        let Some(row) = usize::try_from(id).ok().filter(|&r| r < self.rows) else {
            let message = format!("id {id} is outside of the {} rows of input {}", self.rows, self.index);
            return Err(OpError::Value(message));
        };
        let values = &self.values[row * self.width..(row + 1) * self.width];
        to.iter_mut().zip(values).for_each(|(t, v)| *t += f64::from(*v));
        Ok(())
    }
}

impl Op for EmbedLayerNorm {
    fn name(&self) -> &str {
        "EmbedLayerNormalization"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let hidden = cx.shape(2).and_then(<[Dim]>::last).cloned().unwrap_or(Dim::Unknown);
        let ids = cx.get(0)?.shape();
        let out = ids.map(|s| s.iter().cloned().chain([hidden]).collect());
        let batch = ids.and_then(<[Dim]>::first).map(|d| vec![d.clone()]);
        let y = Fact::tensor(cx.dtype(2), out);
        Ok(vec![y.clone(), Fact::tensor(Some(DType::I32), batch), y])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let ids = cx.get(0)?;
        let [batch, length] = extents(ids, 0)?;
        let words = Table::new(cx.get(2)?, 2)?;
        let positions = Table::new(cx.get(3)?, 3)?;
        let segments = cx.opt(4).map(|t| Table::new(t, 4)).transpose()?;
        let width = words.width;
        if positions.width != width || segments.as_ref().is_some_and(|s| s.width != width) {
            return Err(OpError::shape(format!("the embeddings do not all have {width} columns")));
        }
        let gamma = vector(Some(cx.get(5)?), 5, width)?.unwrap_or_default();
        let beta = vector(Some(cx.get(6)?), 6, width)?;
        let ints = |i: usize| cx.opt(i).map(|t| t.to_i64s().map_err(OpError::from)).transpose();
        let (word_ids, segment_ids, position_ids) = (ids.to_i64s()?, ints(1)?, ints(8)?);
        let out = [batch, length, width];
        let total = narrowbit_ir::check_size(DType::F64, &out)?;
        let mut sum = vec![0f64; total];
        let pick = |v: &[i64], i: usize| v.get(if v.len() == length { i % length } else { i }).copied().unwrap_or(-1);
        for (i, row) in sum.chunks_exact_mut(width.max(1)).enumerate() {
            words.add(word_ids[i], row)?;
            positions.add(position_ids.as_ref().map_or((i % length) as i64, |p| pick(p, i)), row)?;
            if let Some(table) = &segments {
                table.add(segment_ids.as_ref().map_or(0, |s| pick(s, i)), row)?;
            }
        }
        let y = normalise(&sum, &gamma, beta.as_deref(), self.epsilon, false).y;
        let ones = match ints(7)? {
            Some(mask) if mask.len() == batch * length => {
                mask.chunks_exact(length.max(1)).map(|r| r.iter().filter(|&&v| v == 1).count() as i32).collect()
            }
            Some(mask) => {
                return Err(OpError::shape(format!("a mask of {} elements for ids {:?}", mask.len(), ids.shape())));
            }
            None => vec![0i32; batch],
        };
        let dtype = cx.get(2)?.dtype();
        Ok(vec![
            Tensor::from_f64s(dtype, out, &y)?,
            Tensor::new([ones.len()], ones)?,
            Tensor::from_f64s(dtype, out, &sum)?,
        ])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("epsilon", self.epsilon, EPSILON).with_opt("mask_index_type", self.mask_index_type)
    }
}
