use std::borrow::Cow;

use narrowbit_ir::{EvalCx, OpError, check_size};
use narrowbit_tensor::Tensor;

use super::{Activation, RecurrentAttrs};
use crate::nn::real::{Packed, rounder};
use crate::nn::stats::floats;

/// What a cell computes with in one direction.
pub(super) struct Params<'a> {
    pub hidden: usize,
    /// The weight of the recurrence of the last gate.
    pub last: Packed,
    /// Biases of the input products, gate by gate.
    pub bw: Vec<f64>,
    /// Biases of the recurrent products, gate by gate.
    pub br: Vec<f64>,
    /// Peepholes (LSTM), gate by gate.
    pub peepholes: Vec<f64>,
    pub activations: &'a [Activation],
    clip: Option<f32>,
}

impl Params<'_> {
    /// Activation `i` of a sum, clipped before.
    pub(super) fn activate(&self, i: usize, sum: f64) -> f64 {
        let clipped = match self.clip {
            Some(c) => sum.clamp(-f64::from(c), f64::from(c)),
            None => sum,
        };
        self.activations[i].apply(clipped)
    }
}

/// One step of one sequence.
pub(super) trait Cell {
    /// Gates: row blocks of W and R.
    const GATES: usize;
    /// Final states: 1 (hidden) or 2 (hidden and cell).
    const STATES: usize;
    /// Activations per direction.
    const ACTIVATIONS: usize;

    /// The hidden states of a batch as the product with R reads them.
    fn seen<'a>(&self, h: &'a [f64]) -> Cow<'a, [f64]> {
        Cow::Borrowed(h)
    }

    /// Updates the hidden state `h` and the cell state `c` from the products of the input (`wx`)
    /// and of the hidden state (`rh`), gate by gate, without biases.
    fn step(&self, p: &Params, wx: &[f64], rh: &[f64], h: &mut [f64], c: &mut [f64]);
}

struct Extents {
    seq: usize,
    batch: usize,
    input: usize,
    hidden: usize,
    dirs: usize,
}

/// Runs a cell over all sequences: inputs X, W, R, B, sequence_lens, initial_h, initial_c, P.
pub(super) fn run<C: Cell>(attrs: &RecurrentAttrs, cx: &EvalCx, cell: &C) -> Result<Vec<Tensor>, OpError> {
    let e = extents(attrs, cx, C::GATES)?;
    let dtype = cx.get(0)?.dtype();
    let round = rounder(dtype);
    check_size(dtype, &[e.seq, e.dirs, e.batch, e.hidden])?;
    check_size(dtype, &[e.dirs, e.batch, e.hidden])?;
    if e.hidden == 0 {
        return Err(OpError::shape("R has no hidden units"));
    }
    let x = floats(cx, 0)?;
    let lens = sequence_lens(cx, &e)?;
    let mut y = vec![0.0; e.seq * e.dirs * e.batch * e.hidden];
    let mut h = initial(attrs, cx, 5, &e)?;
    let mut c = initial(attrs, cx, 6, &e)?;
    let (rows, size) = (C::GATES * e.hidden, e.batch * e.hidden);
    for d in 0..e.dirs {
        let (w, r, p) = params::<C>(attrs, cx, &e, d)?;
        let (mut xs, mut wx, mut rh) = (Vec::new(), vec![0.0; e.batch * rows], vec![0.0; e.batch * rows]);
        let (h, c) = (&mut h[d * size..][..size], &mut c[d * size..][..size]);
        for s in 0..e.seq {
            // The element that each sequence of the batch is at; nothing past its end.
            let at = |b: usize| {
                let len = lens[b];
                (s < len).then(|| if attrs.direction.is_reverse(d) { len - 1 - s } else { s })
            };
            xs.clear();
            for b in 0..e.batch {
                let t = at(b).unwrap_or(0);
                let offset = if attrs.batch_first { b * e.seq + t } else { t * e.batch + b };
                xs.extend_from_slice(&x[offset * e.input..][..e.input]);
            }
            w.mul(&xs, |b, row, sum| wx[b * rows + row] = sum);
            r.mul(&cell.seen(h), |b, row, sum| rh[b * rows + row] = sum);
            for b in 0..e.batch {
                let Some(t) = at(b) else { continue };
                let (hb, cb) = (&mut h[b * e.hidden..][..e.hidden], &mut c[b * e.hidden..][..e.hidden]);
                cell.step(&p, &wx[b * rows..][..rows], &rh[b * rows..][..rows], hb, cb);
                hb.iter_mut().chain(cb.iter_mut()).for_each(|v| *v = round(*v));
                let out = match attrs.batch_first {
                    true => (b * e.seq + t) * e.dirs + d,
                    false => (t * e.dirs + d) * e.batch + b,
                };
                y[out * e.hidden..][..e.hidden].copy_from_slice(hb);
            }
        }
    }
    let y_shape = match attrs.batch_first {
        true => [e.batch, e.seq, e.dirs, e.hidden],
        false => [e.seq, e.dirs, e.batch, e.hidden],
    };
    let mut outs = vec![Tensor::from_f64s(dtype, y_shape, &y)?];
    for state in [h, c].into_iter().take(C::STATES) {
        let (shape, state) = match attrs.batch_first {
            true => ([e.batch, e.dirs, e.hidden], swap(&state, e.dirs, e.batch, e.hidden)),
            false => ([e.dirs, e.batch, e.hidden], state),
        };
        outs.push(Tensor::from_f64s(dtype, shape, &state)?);
    }
    Ok(outs)
}

/// Swaps the first two axes of `[a, b, n]`.
fn swap(v: &[f64], a: usize, b: usize, n: usize) -> Vec<f64> {
    (0..b).flat_map(|j| (0..a).flat_map(move |i| v[(i * b + j) * n..][..n].iter().copied())).collect()
}

fn extents(attrs: &RecurrentAttrs, cx: &EvalCx, gates: usize) -> Result<Extents, OpError> {
    let (x, w, r) = (cx.get(0)?.shape(), cx.get(1)?.shape(), cx.get(2)?.shape());
    let dirs = attrs.direction.count();
    match (x, w, r) {
        (&[a, b, input], &[wd, wr, wi], &[rd, rr, hidden])
            if [wd, rd] == [dirs, dirs] && wi == input && Some(wr) == gates.checked_mul(hidden) && rr == wr =>
        {
            let (seq, batch) = if attrs.batch_first { (b, a) } else { (a, b) };
            if attrs.hidden_size.is_some_and(|h| h != hidden as i64) {
                return Err(OpError::attribute("hidden_size", format!("contradicts R of shape {r:?}")));
            }
            Ok(Extents { seq, batch, input, hidden, dirs })
        }
        _ => Err(OpError::shape(format!(
            "X of shape {x:?}, W of shape {w:?} and R of shape {r:?} don't fit together with {dirs} directions and {gates} gates"
        ))),
    }
}

/// An optional input of an exact shape, or nothing.
fn optional(cx: &EvalCx, i: usize, shape: &[usize]) -> Result<Option<Vec<f64>>, OpError> {
    match cx.opt(i) {
        None => Ok(None),
        Some(t) if t.shape() == shape => floats(cx, i).map(Some),
        Some(t) => Err(OpError::shape(format!("input {i} has shape {:?}, expected {shape:?}", t.shape()))),
    }
}

fn initial(attrs: &RecurrentAttrs, cx: &EvalCx, i: usize, e: &Extents) -> Result<Vec<f64>, OpError> {
    let zeros = vec![0.0; e.dirs * e.batch * e.hidden];
    Ok(match attrs.batch_first {
        true => optional(cx, i, &[e.batch, e.dirs, e.hidden])?.map_or(zeros, |v| swap(&v, e.batch, e.dirs, e.hidden)),
        false => optional(cx, i, &[e.dirs, e.batch, e.hidden])?.unwrap_or(zeros),
    })
}

fn sequence_lens(cx: &EvalCx, e: &Extents) -> Result<Vec<usize>, OpError> {
    let Some(t) = cx.opt(4) else { return Ok(vec![e.seq; e.batch]) };
    if t.shape() != [e.batch] {
        let message = format!("sequence_lens has shape {:?}, the batch has {} sequences", t.shape(), e.batch);
        return Err(OpError::shape(message));
    }
    let check = |n: i64| usize::try_from(n).ok().filter(|&n| n <= e.seq);
    let problem = |n: i64| OpError::Value(format!("sequence_lens has {n}, sequences have {} elements", e.seq));
    t.to_i64s()?.into_iter().map(|n| check(n).ok_or_else(|| problem(n))).collect()
}

/// The packed weights and the parameters of one direction.
fn params<'a, C: Cell>(
    attrs: &'a RecurrentAttrs,
    cx: &EvalCx,
    e: &Extents,
    d: usize,
) -> Result<(Packed, Packed, Params<'a>), OpError> {
    let rows = C::GATES * e.hidden;
    let (w, r) = (floats(cx, 1)?, floats(cx, 2)?);
    let (w, r) = (&w[d * rows * e.input..], &r[d * rows * e.hidden..]);
    let bias = optional(cx, 3, &[e.dirs, 2 * rows])?.unwrap_or_else(|| vec![0.0; e.dirs * 2 * rows]);
    let bias = &bias[d * 2 * rows..][..2 * rows];
    let peepholes = match C::STATES {
        2 => optional(cx, 7, &[e.dirs, 3 * e.hidden])?.unwrap_or_else(|| vec![0.0; e.dirs * 3 * e.hidden]),
        _ => Vec::new(),
    };
    let last = rows - e.hidden.min(rows);
    let p = Params {
        hidden: e.hidden,
        last: Packed::new(e.hidden, e.hidden, |i, k| r[(last + i) * e.hidden + k]),
        bw: bias[..rows].to_vec(),
        br: bias[rows..].to_vec(),
        peepholes: peepholes.get(d * 3 * e.hidden..).unwrap_or_default().to_vec(),
        activations: &attrs.activations[d * C::ACTIVATIONS..],
        clip: attrs.clip,
    };
    let w = Packed::new(rows, e.input, |i, k| w[i * e.input + k]);
    Ok((w, Packed::new(rows, e.hidden, |i, k| r[i * e.hidden + k]), p))
}
