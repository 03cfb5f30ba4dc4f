use narrowbit_ir::OpError;
use narrowbit_tensor::shape::count;

use super::Attention;

/// The extents of an Attention with everything resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// The batch size.
    pub batch: usize,
    /// Query heads.
    pub q_heads: usize,
    /// Key and value heads; each serves `q_heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Queries.
    pub q_len: usize,
    /// New keys.
    pub kv_len: usize,
    /// Keys of the past.
    pub past: usize,
    /// All keys: `past + kv_len`.
    pub total: usize,
    /// The size of a head of Q and K.
    pub head: usize,
    /// The size of a head of V.
    pub v_head: usize,
    /// Whether Q, K, V and Y have 3 axes instead of 4.
    pub flat: bool,
}

impl AttentionShape {
    /// Resolves the extents for shapes of Q, K, V and past_key.
    ///
    /// # Errors
    /// When they contradict each other or the attributes.
    pub fn resolve(
        op: &Attention,
        q: &[usize],
        k: &[usize],
        v: &[usize],
        past: Option<&[usize]>,
    ) -> Result<AttentionShape, OpError> {
        let misfit =
            || OpError::shape(format!("Q of shape {q:?}, K of shape {k:?} and V of shape {v:?} don't fit together"));
        let [batch, q_heads, q_len, head] = split(q, op.q_num_heads)?;
        let [kb, kv_heads, kv_len, k_head] = split(k, op.kv_num_heads)?;
        let [vb, v_heads, v_len, v_head] = split(v, op.kv_num_heads)?;
        let fits = (batch, batch, head, kv_heads, kv_len) == (kb, vb, k_head, v_heads, v_len);
        if !fits
            || head == 0
            || v_head == 0
            || q.len() != k.len()
            || q.len() != v.len()
            || kv_heads == 0
            || q_heads % kv_heads != 0
        {
            return Err(misfit());
        }
        let past = match past {
            None => 0,
            Some(&[b, h, past, d]) if (b, h, d) == (batch, kv_heads, head) => past,
            Some(s) => return Err(OpError::shape(format!("past_key of shape {s:?} does not fit to K of shape {k:?}"))),
        };
        let total = past.checked_add(kv_len).ok_or_else(misfit)?;
        for extents in [
            [batch, q_heads, q_len, total],
            [batch, kv_heads, total, head.max(v_head)],
            [batch, q_heads, q_len, v_head],
        ] {
            // Every part of the product counts, also where another extent is 0.
            count(&extents.map(|d| d.max(1)))?;
        }
        Ok(AttentionShape { batch, q_heads, kv_heads, q_len, kv_len, past, total, head, v_head, flat: q.len() == 3 })
    }
}

fn split(s: &[usize], heads: Option<usize>) -> Result<[usize; 4], OpError> {
    match (s, heads) {
        (&[b, h, l, d], _) => Ok([b, h, l, d]),
        (&[b, l, w], Some(h)) if w % h == 0 => Ok([b, h, l, w / h]),
        (&[_, _, w], Some(h)) => Err(OpError::shape(format!("a width of {w} can't be divided into {h} heads"))),
        (&[_, _, _], None) => {
            Err(OpError::attribute("q_num_heads", "and kv_num_heads are needed for inputs of 3 axes"))
        }
        _ => Err(OpError::shape(format!("Q, K and V need 3 or 4 axes, one has shape {s:?}"))),
    }
}
