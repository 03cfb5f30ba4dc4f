use narrowbit_ir::{EvalCx, OpError};
use narrowbit_tensor::{DType, Tensor, shape};

use super::{Attention, AttentionShape};

/// What is added to the scores: the mask, −∞ where a key may not be seen.
pub(super) struct Bias {
    /// The mask as floats with its last axis, and its strides for batch, head, query.
    mask: Option<(Vec<f64>, usize, [usize; 3])>,
    causal: bool,
    left: Option<usize>,
    right: Option<usize>,
    /// By batch element: valid keys, and the absolute position of the first query.
    valid: Vec<(usize, i64)>,
}

impl Bias {
    pub(super) fn new(op: &Attention, cx: &EvalCx, s: &AttentionShape) -> Result<Bias, OpError> {
        let valid = match cx.opt(6) {
            None => vec![(s.total, s.past as i64); s.batch],
            Some(_) if cx.opt(4).is_some() => {
                return Err(OpError::Value("nonpad_kv_seqlen can't be combined with past_key".into()));
            }
            Some(t) => valid_keys(t, s)?,
        };
        let mask = cx.opt(3).map(|m| read_mask(m, s)).transpose()?;
        Ok(Bias { mask, causal: op.is_causal, left: op.left_window, right: op.right_window, valid })
    }

    /// The bias of query `i` of head `h` of batch element `b`, one value per key; gives
    /// whether any key may be seen.
    pub(super) fn row(&self, b: usize, h: usize, i: usize, out: &mut [f64]) -> bool {
        match &self.mask {
            None => out.fill(0.0),
            Some((values, width, [sb, sh, sq])) => {
                let row = &values[b * sb + h * sh + i * sq..][..*width];
                out.fill(f64::NEG_INFINITY);
                out[..*width].copy_from_slice(row);
            }
        }
        let (valid, first) = self.valid[b];
        let position = first.saturating_add(i as i64);
        let below = |limit: i64| usize::try_from(limit).unwrap_or(0).min(out.len());
        let reach = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
        let mut end = valid.min(out.len());
        if self.causal {
            end = end.min(below(position.saturating_add(1)));
        }
        if let Some(right) = self.right {
            end = end.min(below(position.saturating_add(reach(right)).saturating_add(1)));
        }
        let start = self.left.map_or(0, |left| below(position.saturating_sub(reach(left))));
        // Added, not set: a NaN in the mask stays one, as in the definition.
        out[..start].iter_mut().for_each(|v| *v += f64::NEG_INFINITY);
        out[end.max(start)..].iter_mut().for_each(|v| *v += f64::NEG_INFINITY);
        out.iter().any(|&v| v != f64::NEG_INFINITY)
    }
}

fn valid_keys(t: &Tensor, s: &AttentionShape) -> Result<Vec<(usize, i64)>, OpError> {
    let v = t.to_i64s()?;
    if v.len() != s.batch {
        let message = format!("nonpad_kv_seqlen has shape {:?}, the batch has {} elements", t.shape(), s.batch);
        return Err(OpError::shape(message));
    }
    let problem = |n: i64| OpError::Value(format!("nonpad_kv_seqlen has {n}, there are {} keys", s.total));
    let check = |n: i64| usize::try_from(n).ok().filter(|&n| n <= s.total).ok_or_else(|| problem(n));
    v.into_iter().map(|n| Ok((check(n)?, n - s.q_len as i64))).collect()
}

fn read_mask(mask: &Tensor, s: &AttentionShape) -> Result<(Vec<f64>, usize, [usize; 3]), OpError> {
    let full = [s.batch, s.q_heads, s.q_len, s.total];
    let misfit = || OpError::shape(format!("attn_mask of shape {:?} does not broadcast to {full:?}", mask.shape()));
    let (&width, outer) = mask.shape().split_last().ok_or_else(misfit)?;
    if mask.rank() > 4 || width > s.total {
        return Err(misfit());
    }
    let mut padded = [1; 3];
    padded[3 - outer.len()..].copy_from_slice(outer);
    if padded.iter().zip(&full).any(|(&m, &n)| m != n && m != 1) {
        return Err(misfit());
    }
    let own = shape::strides(&[padded[0], padded[1], padded[2], width]);
    let stride = |a: usize| if padded[a] == 1 { 0 } else { own[a] };
    let values = match mask.dtype() {
        DType::Bool => mask.bools()?.into_iter().map(|seen| if seen { 0.0 } else { f64::NEG_INFINITY }).collect(),
        _ => mask.to_f64s()?,
    };
    Ok((values, width, [stride(0), stride(1), stride(2)]))
}
