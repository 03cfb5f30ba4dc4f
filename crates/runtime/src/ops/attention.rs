//! The fused attention, reading queries, keys and values through the transposes around them.

use narrowbit_ir::ValueId;
use narrowbit_kernels::attention::{AttentionParams, HeadView, attention};
use narrowbit_tensor::{DType, shape};

use super::Maybe;
use crate::error::StepError;
use crate::fuse::{Attention, Fusion, Operand};
use crate::kernel::{BuildCx, Built, Kernel, RunCx};

struct Attend {
    p: AttentionParams,
    q: [usize; 3],
    /// `None`: keys stand as `[…, depth, keys]` in memory and are turned first.
    k: Option<[usize; 3]>,
    /// The steps of keys that were turned.
    turned: [usize; 3],
    v: [usize; 3],
    mask: Option<[usize; 3]>,
    out: [usize; 3],
    bf16: bool,
}

/// The kernel of a fused attention.
pub fn build(cx: &BuildCx, f: &Fusion) -> Maybe {
    let (Some(a), Some(out)) = (&f.attention, f.output) else { return Ok(None) };
    if let Some(ints) = &a.ints {
        return Ok(super::int_attention::build(cx, a, ints, out));
    }
    let Some(kernel) = plan(cx, a) else { return Ok(None) };
    let mut ins = vec![a.q.value, a.kt.value, a.v.value];
    ins.extend(a.mask);
    let outs = [Some(out), a.weights].into_iter().flatten().collect();
    Ok(Some(Built { kernel: Box::new(kernel), ins, outs }))
}

/// Extents and steps.
type Strided = ([usize; 4], [usize; 4]);

/// Extents and steps of an operand as `[batch, head, row, column]`.
pub(super) fn axes(cx: &BuildCx, o: &Operand) -> Option<Strided> {
    let source = (cx.types)(o.value)?.shape;
    let strides = shape::strides(&source);
    let pick = |of: &[usize]| -> Vec<usize> {
        match &o.perm {
            Some(p) => p.iter().map(|&a| of[a]).collect(),
            None => of.to_vec(),
        }
    };
    Some((four(&pick(&source), 1)?, four(&pick(&strides), 0)?))
}

/// Four axes; a missing batch axis is `lead`.
fn four(v: &[usize], lead: usize) -> Option<[usize; 4]> {
    match *v {
        [h, r, c] => Some([lead, h, r, c]),
        [b, h, r, c] => Some([b, h, r, c]),
        _ => None,
    }
}

/// The heads of keys and values, where an attention has `q`, `kt` and `v` as extents; steps over batch entries that share them
/// become 0. `None` where the shapes don't fit.
pub(super) fn share(q: [usize; 4], kt: &mut Strided, v: &mut Strided) -> Option<usize> {
    for (dims, strides) in [&mut *kt, &mut *v] {
        if dims[0] == 1 && q[0] > 1 {
            (dims[0], strides[0]) = (q[0], 0);
        }
    }
    let ([kb, heads, depth, keys], [vb, vh, rows, _]) = (kt.0, v.0);
    let same = [kb, vb] == [q[0]; 2] && vh == heads && depth == q[3] && rows == keys;
    (same && heads > 0 && q[1].is_multiple_of(heads)).then_some(heads)
}

fn plan(cx: &BuildCx, a: &Attention) -> Option<Attend> {
    let ((q, sq), mut kt, mut v) = (axes(cx, &a.q)?, axes(cx, &a.kt)?, axes(cx, &a.v)?);
    let kv_heads = share(q, &mut kt, &mut v)?;
    let ((kt, sk), (v, sv)) = (kt, v);
    let rows = |s: [usize; 4], columns: usize| (s[3] == 1 || columns == 1).then_some([s[0], s[1], s[2]]);
    if kt[3] == 0 {
        return None;
    }
    let k = match sk {
        [b, h, 1, row] => Some([b, h, row]),
        // Dense transposed keys are turned; any other order has no kernel.
        _ if a.kt.perm.is_none() => None,
        _ => return None,
    };
    let p = AttentionParams {
        batch: q[0],
        heads: q[1],
        kv_heads,
        queries: q[2],
        keys: kt[3],
        depth: q[3],
        value_depth: v[3],
        scale: a.scale,
        causal: false,
        guarded: a.guarded,
    };
    let out = out_strides(a, [q[0], q[1], q[2], v[3]])?;
    let bf16 = cx.exec.bf16();
    // Keys that are turned are dense again, but for what batch entries share.
    let turned = [sk[0], kt[2] * kt[3], kt[2]];
    Some(Attend { p, q: rows(sq, q[3])?, k, turned, v: rows(sv, v[3])?, mask: mask(cx, a, &p)?, out, bf16 })
}

/// Steps of the output over batch, head and row, in the order that the following Transpose asks for.
pub(super) fn out_strides(a: &Attention, natural: [usize; 4]) -> Option<[usize; 3]> {
    let Some(perm) = &a.out_perm else {
        let s = shape::strides(&natural);
        return Some([s[0], s[1], s[2]]);
    };
    let shift = 4 - perm.len();
    let perm: Vec<usize> = (0..shift).chain(perm.iter().map(|&p| p + shift)).collect();
    let moved: Vec<usize> = perm.iter().map(|&p| natural[p]).collect();
    let s = shape::strides(&moved);
    let step = |axis: usize| perm.iter().position(|&p| p == axis).map(|i| s[i]);
    (step(3)? == 1 || natural[3] == 1).then_some([step(0)?, step(1)?, step(2)?])
}

/// Steps of the mask; `Some(None)` without a mask, `None` where its form has no kernel.
fn mask(cx: &BuildCx, a: &Attention, p: &AttentionParams) -> Option<Option<[usize; 3]>> {
    let Some(m) = a.mask else { return Some(None) };
    mask_strides(cx, m, DType::F32, [p.batch, p.heads, p.queries, p.keys]).map(Some)
}

/// Steps of a mask of scores of `[batch, heads, queries, keys]`.
pub(super) fn mask_strides(cx: &BuildCx, mask: ValueId, dtype: DType, full: [usize; 4]) -> Option<[usize; 3]> {
    let m = (cx.types)(mask).filter(|t| t.dtype == dtype)?.shape;
    // The kernel reads mask rows as they are: the last axis must not be broadcast.
    if m.last() != Some(&full[3]) || m.len() > 4 || shape::broadcast(&m, &full).ok()? != full {
        return None;
    }
    let s = shape::broadcast_strides(&m, &full);
    Some([s[0], s[1], s[2]])
}

impl Kernel for Attend {
    fn name(&self) -> &str {
        if self.bf16 { "attention_bf16" } else { "attention_f32" }
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let (q, kt, v) = (cx.f32s(0)?, cx.f32s(1)?, cx.f32s(2)?);
        let (depth, keys, p) = (self.p.depth, self.p.keys, &self.p);
        let turned = if self.k.is_none() { turn(kt, depth, keys) } else { Vec::new() };
        let k = match self.k {
            Some(strides) => HeadView { data: kt, strides },
            None => HeadView { data: &turned, strides: self.turned },
        };
        let mask = match self.mask {
            Some(strides) => Some(HeadView { data: cx.f32s(3)?, strides }),
            None => None,
        };
        let (q, v) = (HeadView { data: q, strides: self.q }, HeadView { data: v, strides: self.v });
        let missing = narrowbit_ir::OpError::MissingInput(0);
        let (out, weights) = cx.outs.split_first_mut().ok_or(missing)?;
        let weights = weights.first_mut().map(|w| w.slice()).transpose()?;
        Ok(attention(cx.exec, p, [q, k, v], mask, weights, out.slice()?, self.out)?)
    }
}

/// Each `depth × keys` matrix transposed.
fn turn(kt: &[f32], depth: usize, keys: usize) -> Vec<f32> {
    let mut out = vec![0.0; kt.len()];
    for (from, to) in kt.chunks_exact(depth * keys).zip(out.chunks_exact_mut(depth * keys)) {
        for (d, row) in from.chunks_exact(keys).enumerate() {
            row.iter().enumerate().for_each(|(k, &x)| to[k * depth + d] = x);
        }
    }
    out
}
