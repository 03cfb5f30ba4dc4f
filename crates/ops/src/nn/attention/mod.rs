//! Attention: scaled dot-product attention with masks and a key/value cache.

mod bias;
mod eval;
mod shape;

pub use shape::AttentionShape;

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use crate::support::show;

/// `Y = softmax(softcap(Q·Kᵀ·scale) + bias)·V` for each head, with `Q` and `K` both scaled by `sqrt(scale)`.
///
/// Inputs: Q, K, V `[batch, heads, sequence, head size]` or `[batch, sequence, heads·head size]`;
/// optional attn_mask (bool, or floats that are added) that broadcasts to `[batch, query heads,
/// query length, total length]`, its last axis may be shorter; past_key and past_value `[batch,
/// kv heads, past length, head size]`; nonpad_kv_seqlen `[batch]` (i64). Outputs: Y, present_key,
/// present_value, qk_matmul_output. Source: ONNX operator Attention (23, 24, 25).
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Whether query `i` sees keys up to `i + offset` only.
    pub is_causal: bool,
    /// Query heads; required where Q has 3 axes.
    pub q_num_heads: Option<usize>,
    /// Key and value heads; required where K has 3 axes.
    pub kv_num_heads: Option<usize>,
    /// The factor of the scores; `1 / sqrt(head size)` where absent.
    pub scale: Option<f32>,
    /// Scores become `softcap · tanh(score / softcap)`; 0 is off.
    pub softcap: f32,
    /// The type of the softmax; that of Q where absent.
    pub softmax_precision: Option<DType>,
    /// What the fourth output has.
    pub qk_output: QkOutput,
    /// How many keys before its own position a query sees (opset 25); all where absent.
    pub left_window: Option<usize>,
    /// How many keys after its own position a query sees (opset 25); all where absent.
    pub right_window: Option<usize>,
}

/// What Attention's output `qk_matmul_output` has (`qk_matmul_output_mode` 0 to 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkOutput {
    /// The products of queries and keys.
    Product,
    /// After the soft cap.
    Capped,
    /// After soft cap and bias.
    Biased,
    /// After the softmax.
    Softmax,
}

/// Makes an Attention.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let qk_output = match attrs.int_or("qk_matmul_output_mode", 0)? {
        0 => QkOutput::Product,
        1 => QkOutput::Capped,
        2 => QkOutput::Biased,
        3 => QkOutput::Softmax,
        m => return Err(OpError::attribute("qk_matmul_output_mode", format!("is {m}, must be 0 to 3"))),
    };
    let softmax_precision = match attrs.int("softmax_precision")? {
        None => None,
        Some(code) => match DType::from_onnx(code) {
            Some(d) if d.is_float() && !d.is_minifloat() => Some(d),
            _ => return Err(OpError::attribute("softmax_precision", format!("is {code}, not 1, 10, 11 or 16"))),
        },
    };
    Ok(Arc::new(Attention {
        is_causal: attrs.flag("is_causal")?,
        q_num_heads: count(attrs, "q_num_heads")?,
        kv_num_heads: count(attrs, "kv_num_heads")?,
        scale: attrs.float("scale")?,
        softcap: attrs.float_or("softcap", 0.0)?,
        softmax_precision,
        qk_output,
        left_window: window(attrs, "left_window_size")?,
        right_window: window(attrs, "right_window_size")?,
    }))
}

fn count(attrs: &mut AttrMap, name: &str) -> Result<Option<usize>, OpError> {
    match attrs.int(name)? {
        None => Ok(None),
        Some(n) if (1..=i64::from(u32::MAX)).contains(&n) => Ok(Some(n as usize)),
        Some(n) => Err(OpError::attribute(name, format!("is {n}, must be at least 1"))),
    }
}

fn window(attrs: &mut AttrMap, name: &str) -> Result<Option<usize>, OpError> {
    match attrs.int_or(name, -1)? {
        -1 => Ok(None),
        n => usize::try_from(n).map(Some).map_err(|_| OpError::attribute(name, format!("is {n}, must be −1 or more"))),
    }
}

impl Attention {
    /// Multiply-accumulates of both products for shapes of Q, K, V and past_key; `None` where they don't fit together.
    pub fn macs(&self, q: &[usize], k: &[usize], v: &[usize], past: Option<&[usize]>) -> Option<u64> {
        let s = AttentionShape::resolve(self, q, k, v, past).ok()?;
        let scores = [s.batch, s.q_heads, s.q_len, s.total].iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        u64::try_from(scores.checked_mul(s.head.checked_add(s.v_head)?)?).ok()
    }
}

/// Batch, heads, length and head size of an input of 3 or 4 axes.
fn split(s: &[Dim], heads: Option<usize>) -> Result<[Dim; 4], OpError> {
    match (s, heads) {
        ([b, h, l, d], _) => Ok([b.clone(), h.clone(), l.clone(), d.clone()]),
        ([b, l, w], Some(h)) => Ok([b.clone(), h.into(), l.clone(), w.div(&h.into())]),
        ([_, _, _], None) => Err(OpError::attribute("q_num_heads", "and kv_num_heads are needed for inputs of 3 axes")),
        _ => Err(OpError::shape(format!("Q, K and V need 3 or 4 axes, one has shape {}", show(s)))),
    }
}

impl Op for Attention {
    fn name(&self) -> &str {
        "Attention"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let dtype = cx.get(0)?.dtype();
        let (_, k_dtype) = (cx.get(2)?, cx.get(1)?.dtype());
        let (Some(q), Some(k), Some(v)) = (cx.shape(0), cx.shape(1), cx.shape(2)) else {
            return Ok([dtype, k_dtype, cx.dtype(2), dtype].map(|d| Fact::tensor(d, None)).to_vec());
        };
        let rank = q.len();
        let [batch, q_heads, q_len, _] = split(q, self.q_num_heads)?;
        let [_, kv_heads, kv_len, head] = split(k, self.kv_num_heads)?;
        let [_, _, _, v_head] = split(v, self.kv_num_heads)?;
        let total = match (cx.opt(4), cx.shape(4)) {
            (None, _) => kv_len,
            (Some(_), Some([_, _, past, _])) => past.add(&kv_len),
            _ => Dim::Unknown,
        };
        let y = match rank {
            3 => vec![batch.clone(), q_len.clone(), q_heads.mul(&v_head)],
            _ => vec![batch.clone(), q_heads.clone(), q_len.clone(), v_head.clone()],
        };
        Ok(vec![
            Fact::tensor(dtype, Some(y)),
            Fact::tensor(k_dtype, Some(vec![batch.clone(), kv_heads.clone(), total.clone(), head])),
            Fact::tensor(cx.dtype(2), Some(vec![batch.clone(), kv_heads, total.clone(), v_head])),
            Fact::tensor(dtype, Some(vec![batch, q_heads, q_len, total])),
        ])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        eval::eval(self, cx)
    }

    fn attrs(&self) -> AttrMap {
        let window = |w: Option<usize>| w.map(|w| w as i64);
        AttrMap::new()
            .with_unless("is_causal", i64::from(self.is_causal), 0)
            .with_opt("q_num_heads", window(self.q_num_heads))
            .with_opt("kv_num_heads", window(self.kv_num_heads))
            .with_opt("scale", self.scale)
            .with_unless("softcap", self.softcap, 0.0)
            .with_opt("softmax_precision", self.softmax_precision.map(|d| i64::from(d.to_onnx())))
            .with_unless("qk_matmul_output_mode", self.qk_output as i64, 0)
            .with_opt("left_window_size", window(self.left_window))
            .with_opt("right_window_size", window(self.right_window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{assert_close, f32s, run, tensor};

    fn op(attrs: AttrMap) -> Arc<dyn Op> {
        build(25, &mut attrs.with("scale", 1f32)).unwrap()
    }

    /// One query head of size 1; V has the values 1, 2, 4.
    fn values() -> [Tensor; 3] {
        let (q, k) = (tensor([1, 1, 3, 1], &[0.; 3]), tensor([1, 1, 3, 1], &[0.; 3]));
        [q, k, tensor([1, 1, 3, 1], &[1., 2., 4.])]
    }

    /// Weights and sums are rounded one by one.
    #[track_caller]
    fn check(attrs: AttrMap, mask: Option<Tensor>, expected: [f32; 3]) {
        let [q, k, v] = &values();
        let y = run(&*op(attrs), &[Some(q), Some(k), Some(v), mask.as_ref()], 1).unwrap();
        assert_close(&y[0], &expected, 1e-6);
    }

    #[test]
    fn averages_the_keys_that_masks_and_windows_leave() {
        check(AttrMap::new().with("is_causal", 1i64), None, [1., 1.5, 7. / 3.]);
        check(AttrMap::new().with("left_window_size", 0i64), None, [7. / 3., 3., 4.]);
        let mask = Tensor::from_bools([3, 2], vec![true, false, true, true, false, false]).unwrap();
        // The missing third column and the row without keys give nothing.
        check(AttrMap::new(), Some(mask), [1., 1.5, 0.]);
        let far = tensor([3], &[0., -1e4, -1e4]);
        check(AttrMap::new(), Some(far), [1.; 3]);
    }

    #[test]
    fn shares_key_heads_and_appends_to_the_past() {
        let op = op(AttrMap::new().with("q_num_heads", 2i64).with("kv_num_heads", 1i64));
        let q = tensor([1, 1, 2], &[0., 1000.]);
        let (k, v) = (tensor([1, 1, 1], &[1.]), tensor([1, 1, 1], &[5.]));
        let (pk, pv) = (tensor([1, 1, 1, 1], &[0.]), tensor([1, 1, 1, 1], &[3.]));
        let y = run(&*op, &[Some(&q), Some(&k), Some(&v), None, Some(&pk), Some(&pv)], 4).unwrap();
        assert_eq!((y[0].shape(), f32s(&y[0])), (&[1usize, 1, 2][..], vec![4., 5.]));
        assert_eq!((f32s(&y[1]), f32s(&y[2])), (vec![0., 1.], vec![3., 5.]));
        // Products of the square roots of the scale, each rounded.
        assert_close(&y[3], &[0., 0., 0., 1000.], 1e-3);
    }

    #[test]
    fn counts_from_the_valid_keys_of_an_outer_cache() {
        let [_, k, v] = &values();
        let q = tensor([1, 1, 1, 1], &[0.]);
        let valid = Tensor::new([1], vec![2i64]).unwrap();
        let op = op(AttrMap::new().with("is_causal", 1i64));
        let y = run(&*op, &[Some(&q), Some(k), Some(v), None, None, None, Some(&valid)], 1).unwrap();
        assert_eq!(f32s(&y[0]), [1.5]);
    }

    #[test]
    fn refuses_heads_and_masks_that_do_not_fit() {
        let [q, k, v] = &values();
        let mask = tensor([2, 3], &[0.; 6]);
        assert!(run(&*op(AttrMap::new()), &[Some(q), Some(k), Some(v), Some(&mask)], 1).is_err());
        assert!(run(&*op(AttrMap::new()), &[Some(q), Some(k), Some(v), None, Some(k)], 1).is_err());
        let flat = tensor([1, 3, 1], &[0.; 3]);
        assert!(run(&*op(AttrMap::new()), &[Some(&flat), Some(&flat), Some(&flat)], 1).is_err());
        assert!(build(25, &mut AttrMap::new().with("left_window_size", -2i64)).is_err());
    }
}
