//! Scaled dot-product attention with masks, as the attention operators of this domain share it.

use narrowbit_ir::{OpError, check_size};
use narrowbit_tensor::{DType, Tensor};

/// What is added where a key is masked out, unless the file says otherwise.
pub(crate) const FILTER: f32 = -10000.0;

/// Queries, keys and values by head: `q [batch, heads, length, size]`, `k [batch, heads, total, size]`,
/// `v [batch, heads, total, v_size]`.
pub(crate) struct Heads {
    pub batch: usize,
    pub heads: usize,
    pub length: usize,
    pub total: usize,
    pub size: usize,
    pub v_size: usize,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

/// What is added to the products of queries and keys.
pub(crate) struct Bias {
    /// `[batch, length, total]`; empty for none.
    pub mask: Vec<f32>,
    /// Broadcasts to `[batch, heads, length, total]`: its values and the extents of its first two axes.
    pub added: Option<(Vec<f32>, usize, usize)>,
}

/// Splits `[batch, length, heads * size]` into `[batch, heads, length, size]`.
pub(crate) fn split_heads(x: &[f32], batch: usize, length: usize, heads: usize, size: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for b in 0..batch {
        for h in 0..heads {
            for s in 0..length {
                let at = ((b * length + s) * heads + h) * size;
                out.extend_from_slice(&x[at..at + size]);
            }
        }
    }
    out
}

/// Puts the past before the present along the length of `[batch * heads, length, size]`.
pub(crate) fn append(past: &[f32], present: &[f32], groups: usize) -> Vec<f32> {
    let (a, b) = (past.len() / groups.max(1), present.len() / groups.max(1));
    (0..groups).flat_map(|g| [&past[g * a..(g + 1) * a], &present[g * b..(g + 1) * b]].concat()).collect()
}

/// The mask of ONNX Runtime's forms: `[batch]` lengths, `[2 * batch]` ends then starts,
/// `[batch, total]` or `[batch, length, total]` with 0 for masked keys, `[batch, 1, m, m]` from which the
/// rows of the queries are taken; with `causal`, keys after the query's position are masked too.
pub(crate) fn mask(
    given: Option<&Tensor>,
    index: usize,
    [batch, length, total]: [usize; 3],
    causal: bool,
    filter: f32,
) -> Result<Vec<f32>, OpError> {
    if given.is_none() && !causal {
        return Ok(Vec::new());
    }
    let n = check_size(DType::F32, &[batch, length, total])?;
    let mut out = vec![0f32; n];
    let past = total.saturating_sub(length);
    let at = |b: usize, s: usize, t: usize| (b * length + s) * total + t;
    let rows = || (0..batch).flat_map(|b| (0..length).map(move |s| (b, s)));
    if let Some(t) = given {
        let m = t.to_i64s()?;
        let keep: Box<dyn Fn(usize, usize, usize) -> bool> = match *t.shape() {
            [n] if n == batch => Box::new(|b, _, t| (t as i64) < m[b]),
            [n] if n == 2 * batch => Box::new(|b, _, t| (t as i64) < m[b] && t as i64 >= m[batch + b]),
            [b, t] if b == batch && t == total => Box::new(|b, _, t| m[b * total + t] > 0),
            [b, s, t] if b == batch && s == length && t == total => Box::new(|b, s, t| m[at(b, s, t)] > 0),
            [b, 1, r, c] if b == batch && r >= total && c >= total => {
                Box::new(move |b, s, t| m[(b * r + past + s) * c + t] > 0)
            }
            _ => {
                let expected = format!("a mask for a batch of {batch}, {length} queries and {total} keys");
                return Err(OpError::input(index, format!("of shape {:?}", t.shape()), expected));
            }
        };
        for (b, s) in rows() {
            for t in (0..total).filter(|&t| !keep(b, s, t)) {
                out[at(b, s, t)] = filter;
            }
        }
    }
    if causal {
        for (b, s) in rows() {
            out[at(b, s, 0)..at(b, s, 0) + total].iter_mut().skip(past + s + 1).for_each(|v| *v = f32::MIN);
        }
    }
    Ok(out)
}

/// A bias `[batch or 1, heads or 1, length, total]`.
pub(crate) fn added(
    t: Option<&Tensor>,
    index: usize,
    [batch, heads, length, total]: [usize; 4],
) -> Result<Option<(Vec<f32>, usize, usize)>, OpError> {
    let Some(t) = t else { return Ok(None) };
    match *t.shape() {
        [b, h, s, k] if (b == 1 || b == batch) && (h == 1 || h == heads) && s == length && k == total => {
            Ok(Some((t.to_f32s()?.into_owned(), b, h)))
        }
        _ => Err(OpError::input(
            index,
            format!("of shape {:?}", t.shape()),
            format!("[{batch} or 1, {heads} or 1, {length}, {total}]"),
        )),
    }
}

/// `softmax(scale * q · kᵗ + bias) · v` for each head, as `[batch, length, heads * v_size]`, and the scores
/// before the softmax `[batch, heads, length, total]` where asked for.
pub(crate) fn attend(h: &Heads, scale: f32, bias: &Bias, scores: bool) -> Result<(Vec<f32>, Vec<f32>), OpError> {
    let total = check_size(DType::F32, &[h.batch, h.length, h.heads, h.v_size])?;
    let mut out = vec![0f32; total];
    let mut kept = Vec::new();
    let mut row = vec![0f64; h.total];
    let mut sum = vec![0f64; h.v_size];
    for b in 0..h.batch {
        for n in 0..h.heads {
            let head = b * h.heads + n;
            let k = &h.k[head * h.total * h.size..][..h.total * h.size];
            let v = &h.v[head * h.total * h.v_size..][..h.total * h.v_size];
            for s in 0..h.length {
                let q = &h.q[(head * h.length + s) * h.size..][..h.size];
                for (t, r) in row.iter_mut().enumerate() {
                    let key = &k[t * h.size..(t + 1) * h.size];
                    let dot = q.iter().zip(key).fold(0f64, |d, (x, y)| d + f64::from(*x) * f64::from(*y));
                    *r = dot * f64::from(scale) + bias.at(h, [b, n, s, t]);
                }
                if scores {
                    kept.extend(row.iter().map(|&r| r as f32));
                }
                softmax(&mut row);
                sum.fill(0.0);
                for (p, line) in row.iter().zip(v.chunks_exact(h.v_size.max(1))) {
                    sum.iter_mut().zip(line).for_each(|(a, x)| *a += p * f64::from(*x));
                }
                let to = ((b * h.length + s) * h.heads + n) * h.v_size;
                out[to..to + h.v_size].iter_mut().zip(&sum).for_each(|(o, a)| *o = *a as f32);
            }
        }
    }
    Ok((out, kept))
}

impl Bias {
    fn at(&self, h: &Heads, [b, n, s, t]: [usize; 4]) -> f64 {
        let masked = self.mask.get((b * h.length + s) * h.total + t).copied().unwrap_or(0.0);
        let added = self.added.as_ref().map_or(0.0, |(v, batch, heads)| {
            let (b, n) = (if *batch == 1 { 0 } else { b }, if *heads == 1 { 0 } else { n });
            v[((b * heads + n) * h.length + s) * h.total + t]
        });
        f64::from(masked) + f64::from(added)
    }
}

fn softmax(row: &mut [f64]) {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row.iter_mut().for_each(|r| *r = (*r - max).exp());
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|r| *r /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_keys_by_length_and_by_position() {
        let ends = Tensor::vector(vec![1i32]);
        assert_eq!(mask(Some(&ends), 3, [1, 1, 2], false, -5.0).unwrap(), [0.0, -5.0]);
        let both = Tensor::vector(vec![2i32, 1]);
        assert_eq!(mask(Some(&both), 3, [1, 1, 3], false, -5.0).unwrap(), [-5.0, 0.0, -5.0]);
        assert_eq!(mask(None, 3, [1, 2, 2], true, -5.0).unwrap(), [0.0, f32::MIN, 0.0, 0.0]);
        assert!(mask(Some(&Tensor::vector(vec![1i32; 5])), 3, [1, 1, 2], false, -5.0).is_err());
    }

    #[test]
    fn attends_to_the_only_key_that_is_left() {
        let h = Heads {
            batch: 1,
            heads: 1,
            length: 1,
            total: 2,
            size: 1,
            v_size: 1,
            q: vec![1.0],
            k: vec![1.0, 1.0],
            v: vec![3.0, 5.0],
        };
        let bias = Bias { mask: vec![0.0, f32::MIN], added: None };
        assert_eq!(attend(&h, 1.0, &bias, false).unwrap().0, [3.0]);
        let none = Bias { mask: vec![], added: None };
        assert_eq!(attend(&h, 1.0, &none, false).unwrap().0, [4.0]);
    }
}
