use narrowbit_ir::{EvalCx, OpError, check_size};
use narrowbit_tensor::{DType, Tensor};

use super::bias::Bias;
use super::{Attention, AttentionShape, QkOutput};
use crate::nn::real::{Packed, rounder};
use crate::nn::stats::floats;

/// Each step of the definition is rounded to the type that ONNX's function body gives it.
pub(super) fn eval(op: &Attention, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
    let (q, k, v) = (cx.get(0)?, cx.get(1)?, cx.get(2)?);
    if cx.opt(4).is_some() != cx.opt(5).is_some() {
        return Err(OpError::Value("past_key and past_value must be given together".into()));
    }
    let s = AttentionShape::resolve(op, q.shape(), k.shape(), v.shape(), cx.opt(4).map(Tensor::shape))?;
    let dtype = q.dtype();
    if q.is_empty() && k.is_empty() && v.is_empty() {
        return nothing(cx, &s, [dtype, k.dtype(), v.dtype()]);
    }
    let keys = present(cx, 1, 4, &s, s.head)?;
    let values = present(cx, 2, 5, &s, s.v_head)?;
    let bias = Bias::new(op, cx, &s)?;
    let mut work = Work::new(op, dtype, &s);
    let mut y = vec![0.0; check_size(dtype, &[s.batch, s.q_heads, s.q_len, s.v_head])?];
    let wanted = cx.n_outputs() > 3;
    let qk_shape = [s.batch, s.q_heads, s.q_len, s.total];
    let mut qk = vec![0.0; if wanted { check_size(dtype, &qk_shape)? } else { 0 }];
    let queries = floats(cx, 0)?;
    let group = s.q_heads / s.kv_heads;
    for b in 0..s.batch {
        for kv in 0..s.kv_heads {
            let head = (b * s.kv_heads + kv) * s.total;
            let (kh, vh) = (&keys[head * s.head..], &values[head * s.v_head..]);
            let k = Packed::new(s.total, s.head, |j, d| (work.round)(kh[j * s.head + d] * work.scale));
            let v = Packed::new(s.v_head, s.total, |d, j| vh[j * s.v_head + d]);
            for h in kv * group..(kv + 1) * group {
                for i in 0..s.q_len {
                    let at = |flat: usize, deep: usize| if s.flat { flat } else { deep };
                    let row = at((b * s.q_len + i) * s.q_heads + h, (b * s.q_heads + h) * s.q_len + i);
                    let seen = bias.row(b, h, i, &mut work.bias);
                    let scores = if wanted {
                        &mut qk[((b * s.q_heads + h) * s.q_len + i) * s.total..][..s.total]
                    } else {
                        &mut []
                    };
                    work.weights(&queries[row * s.head..][..s.head], &k, seen, scores);
                    let round = work.round;
                    let out = &mut y[row * s.v_head..][..s.v_head];
                    v.mul(&work.row, |_, d, sum| out[d] = round(sum));
                }
            }
        }
    }
    let y_shape = match s.flat {
        true => vec![s.batch, s.q_len, s.q_heads * s.v_head],
        false => vec![s.batch, s.q_heads, s.q_len, s.v_head],
    };
    let mut outs = vec![Tensor::from_f64s(dtype, y_shape, &y)?];
    if cx.n_outputs() > 1 {
        outs.push(Tensor::from_f64s(k.dtype(), [s.batch, s.kv_heads, s.total, s.head], &keys)?);
        outs.push(Tensor::from_f64s(v.dtype(), [s.batch, s.kv_heads, s.total, s.v_head], &values)?);
    }
    if wanted {
        outs.push(Tensor::from_f64s(dtype, qk_shape, &qk)?);
    }
    Ok(outs)
}

/// The outputs without queries and keys: nothing bounds the other extents then.
fn nothing(cx: &EvalCx, s: &AttentionShape, [q, k, v]: [DType; 3]) -> Result<Vec<Tensor>, OpError> {
    let y =
        if s.flat { vec![s.batch, s.q_len, s.q_heads * s.v_head] } else { vec![s.batch, s.q_heads, s.q_len, s.v_head] };
    let shapes = [
        (q, y),
        (k, vec![s.batch, s.kv_heads, s.total, s.head]),
        (v, vec![s.batch, s.kv_heads, s.total, s.v_head]),
        (q, vec![s.batch, s.q_heads, s.q_len, s.total]),
    ];
    let zeros = |(dtype, shape): (DType, Vec<usize>)| {
        check_size(dtype, &shape)?;
        Ok(Tensor::zeros(dtype, shape)?)
    };
    shapes.into_iter().take(cx.n_outputs().max(1)).map(zeros).collect()
}

/// The past followed by the new keys or values, `[batch, kv heads, total, size]`.
fn present(cx: &EvalCx, new: usize, past: usize, s: &AttentionShape, size: usize) -> Result<Vec<f64>, OpError> {
    let fresh = floats(cx, new)?;
    let old = match cx.opt(past) {
        None => Vec::new(),
        Some(t) if t.shape() == [s.batch, s.kv_heads, s.past, size] => floats(cx, past)?,
        Some(t) => {
            let expected = [s.batch, s.kv_heads, s.past, size];
            return Err(OpError::shape(format!("input {past} has shape {:?}, expected {expected:?}", t.shape())));
        }
    };
    let shape = [s.batch, s.kv_heads, s.total, size];
    let mut out = Vec::with_capacity(check_size(cx.get(new)?.dtype(), &shape)?);
    for b in 0..s.batch {
        for h in 0..s.kv_heads {
            out.extend_from_slice(&old[(b * s.kv_heads + h) * s.past * size..][..s.past * size]);
            for i in 0..s.kv_len {
                let row =
                    if s.flat { (b * s.kv_len + i) * s.kv_heads + h } else { (b * s.kv_heads + h) * s.kv_len + i };
                out.extend_from_slice(&fresh[row * size..][..size]);
            }
        }
    }
    Ok(out)
}

/// Scratch and constants of one evaluation.
struct Work<'a> {
    op: &'a Attention,
    round: fn(f64) -> f64,
    precise: fn(f64) -> f64,
    /// Whether the softmax's sum is rounded after each addition: the expected outputs of
    /// ONNX's node tests add bf16 values so, and those of the wider types not.
    narrow_sum: bool,
    /// The square root of the scores' factor.
    scale: f64,
    softcap: f64,
    query: Vec<f64>,
    bias: Vec<f64>,
    row: Vec<f64>,
}

impl<'a> Work<'a> {
    fn new(op: &'a Attention, dtype: DType, s: &AttentionShape) -> Work<'a> {
        let round = rounder(dtype);
        let scale = op.scale.map_or(1.0 / (s.head as f64).sqrt(), f64::from);
        Work {
            op,
            round,
            precise: rounder(op.softmax_precision.unwrap_or(dtype)),
            narrow_sum: op.softmax_precision.unwrap_or(dtype) == DType::Bf16,
            scale: round(scale.sqrt()),
            softcap: round(f64::from(op.softcap)),
            query: vec![0.0; s.head],
            bias: vec![0.0; s.total],
            row: vec![0.0; s.total],
        }
    }

    /// Leaves the attention weights of a query in `row`; `scores` gets what the fourth output wants.
    fn weights(&mut self, query: &[f64], keys: &Packed, seen: bool, scores: &mut [f64]) {
        let (round, cap) = (self.round, self.softcap);
        let keep = |mode: QkOutput, row: &[f64], scores: &mut [f64]| {
            if self.op.qk_output == mode && !scores.is_empty() {
                scores.copy_from_slice(row);
            }
        };
        self.query.iter_mut().zip(query).for_each(|(o, &v)| *o = round(v * self.scale));
        let row = &mut self.row;
        row.fill(0.0);
        keys.mul(&self.query, |_, j, sum| row[j] = round(sum));
        keep(QkOutput::Product, row, scores);
        if cap > 0.0 {
            row.iter_mut().for_each(|v| *v = round(round(round(*v / cap).tanh()) * cap));
        }
        keep(QkOutput::Capped, row, scores);
        row.iter_mut().zip(&self.bias).for_each(|(v, b)| *v = round(*v + b));
        keep(QkOutput::Biased, row, scores);
        if seen {
            softmax(row, self.precise, self.narrow_sum);
            row.iter_mut().for_each(|v| *v = round(*v));
        } else {
            row.fill(0.0);
        }
        keep(QkOutput::Softmax, row, scores);
    }
}

fn softmax(row: &mut [f64], round: fn(f64) -> f64, narrow_sum: bool) {
    row.iter_mut().for_each(|v| *v = round(*v));
    let max = row.iter().copied().fold(f64::NEG_INFINITY, |m, v| if v > m || v.is_nan() { v } else { m });
    if max == f64::NEG_INFINITY {
        row.fill(0.0);
        return;
    }
    row.iter_mut().for_each(|v| *v = round(round(*v - max).exp()));
    let sum = match narrow_sum {
        true => row.iter().fold(0.0, |sum, v| round(sum + v)),
        false => round(row.iter().sum()),
    };
    row.iter_mut().for_each(|v| *v = round(*v / sum));
}
