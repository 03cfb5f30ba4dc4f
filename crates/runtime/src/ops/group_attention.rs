//! GroupQueryAttention of floats: new keys and values are rotated into the cache that is handed on, which attention then reads.

use std::sync::Arc;

use narrowbit_ir::{Op, OpError};
use narrowbit_kernels::attention::{AttentionParams, HeadView, attention, attention_of_few};
use narrowbit_kernels::rotate::{RotateParams, rotate};
use narrowbit_kernels::{Exec, Few, with_scratch_bytes};
use narrowbit_ops::microsoft::group_query_attention::{Cache, GroupQueryAttention};
use narrowbit_tensor::DType;

use super::Maybe;
use super::rotary::{by_head, positions};
use crate::error::StepError;
use crate::kernel::{BuildCx, Built, Kernel, RunCx};

/// New rows for which packing the cache would take longer than the products.
const FEW: usize = 2;

struct GroupAttention {
    op: Arc<dyn Op>,
    batch: usize,
    /// New rows.
    length: usize,
    /// Elements of a head's row.
    size: usize,
    /// Pairs of it that are rotated.
    pairs: usize,
    /// Rows of the cache that comes in, and of the one that is handed on.
    past: usize,
    total: usize,
    at: At,
}

/// Places among the operands; queries are the first.
#[derive(Default)]
struct At {
    /// Keys and values, where they are not packed with the queries.
    kv: Option<[usize; 2]>,
    past: Option<[usize; 2]>,
    lengths: usize,
    all: usize,
    caches: Option<[usize; 2]>,
    positions: Option<usize>,
}

/// The kernel of a GroupQueryAttention without a bias and a cap of scores.
pub fn build(cx: &BuildCx) -> Maybe {
    Ok(plan(cx))
}

fn plan(cx: &BuildCx) -> Option<Built> {
    let op = cx.node.op.downcast::<GroupQueryAttention>()?;
    let others = (10..14).any(|i| cx.node.input(i).is_some());
    let outs = [0, 1, 2].map(|i| cx.node.output(i));
    let [Some(y), Some(k), Some(v)] = outs else { return None };
    let &[batch, length, width] = cx.f32_shape(0)?.as_slice() else { return None };
    let packed = cx.node.input(1).is_none();
    let (heads, kv) = (op.num_heads, op.kv_num_heads);
    let all = if packed { heads + 2 * kv } else { heads };
    if others || op.softcap != 0.0 || width == 0 || width % all != 0 || batch * length == 0 {
        return None;
    }
    let size = width / all;
    let present = cx.out(1).filter(|t| t.dtype == DType::F32)?.shape;
    let &[b, h, total, s] = present.as_slice() else { return None };
    if [b, h, s] != [batch, kv, size] || cx.out(2)?.shape != present || cx.f32_out()? != [batch, length, heads * size] {
        return None;
    }
    let (mut ins, mut at) = (vec![cx.node.input(0)?], At::default());
    let mut push = |i: usize| {
        ins.push(cx.node.input(i)?);
        Some(ins.len() - 1)
    };
    if !packed {
        let fits = |i: usize| cx.f32_shape(i).is_some_and(|s| s == [batch, length, kv * size]);
        at.kv = (fits(1) && fits(2)).then(|| Some([push(1)?, push(2)?]))??.into();
    }
    let mut past = 0;
    if let Some(shape) = cx.node.input(3).and_then(|_| cx.f32_shape(3)) {
        let &[pb, ph, rows, ps] = shape.as_slice() else { return None };
        if [pb, ph, ps] != [batch, kv, size] || cx.f32_shape(4)? != shape {
            return None;
        }
        (past, at.past) = (rows, Some([push(3)?, push(4)?]));
    } else if cx.node.input(3).is_some() || cx.node.input(4).is_some() {
        return None;
    }
    let int = |i: usize| cx.ty(i).is_some_and(|t| matches!(t.dtype, DType::I32 | DType::I64));
    if !int(5) || !int(6) || cx.ty(5)?.len() != batch || cx.ty(6)?.len() != 1 {
        return None;
    }
    (at.lengths, at.all) = (push(5)?, push(6)?);
    let mut pairs = 0;
    if op.do_rotary {
        let &[_, half] = cx.f32_shape(7)?.as_slice() else { return None };
        if cx.f32_shape(8) != cx.f32_shape(7) || half == 0 || 2 * half > size {
            return None;
        }
        (pairs, at.caches) = (half, Some([push(7)?, push(8)?]));
        if let Some(ids) = cx.node.input(9).and_then(|_| cx.ty(9)) {
            if ids.dtype != DType::I64 || ids.shape != [batch, length] {
                return None;
            }
            at.positions = Some(push(9)?);
        }
    }
    let kernel = GroupAttention { op: cx.node.op.clone(), batch, length, size, pairs, past, total, at };
    Some(Built { kernel: Box::new(kernel), ins, outs: vec![y, k, v] })
}

/// The elements of an integer operand.
fn ints(cx: &RunCx, i: usize) -> Result<Few<i64, 16>, StepError> {
    let view = cx.view(i)?;
    Ok(match view.dtype {
        DType::I32 => view.slice::<i32>()?.iter().map(|&n| n.into()).collect(),
        _ => view.slice::<i64>()?.iter().copied().collect(),
    })
}

/// What a run knows of its operands.
struct Run<'a> {
    exec: &'a Exec,
    op: &'a GroupQueryAttention,
    x: &'a [f32],
    caches: [&'a [f32]; 2],
    /// Positions of all new rows.
    positions: &'a [usize],
}

impl Kernel for GroupAttention {
    fn name(&self) -> &str {
        "group_attention_f32"
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let missing = || OpError::MissingInput(0);
        let op = self.op.downcast::<GroupQueryAttention>().ok_or_else(missing)?;
        let (lengths, all) = (ints(cx, self.at.lengths)?, ints(cx, self.at.all)?);
        let cache = op.cache_of(&lengths, all.first().copied().unwrap_or(0), self.past, self.length)?;
        if cache.total != self.total {
            let inferred = format!("{} rows", self.total);
            return Err(StepError::Inferred { index: 1, inferred, actual: format!("{} rows", cache.total) });
        }
        let rows: Few<usize, 64> = match self.at.positions {
            Some(i) => positions(&cx.view(i)?, self.batch, self.length)?,
            None => cache.valid.iter().flat_map(|&(_, before)| before..before + self.length).collect(),
        };
        let caches = match self.at.caches {
            Some([cos, sin]) => [cx.f32s(cos)?, cx.f32s(sin)?],
            None => [[].as_slice(); 2],
        };
        let run = Run { exec: cx.exec, op, x: cx.f32s(0)?, caches, positions: &rows };
        let past = match self.at.past {
            Some(at) => at.map(|i| cx.f32s(i)).map(Some),
            None => [None, None],
        };
        let new = match self.at.kv {
            Some([k, v]) => [Some(cx.f32s(k)?), Some(cx.f32s(v)?)],
            None => [None, None],
        };
        let mut outs = cx.outs.iter_mut();
        let mut out = || outs.next().ok_or_else(missing);
        let (y, k, v) = (out()?.slice()?, out()?.slice()?, out()?.slice()?);
        let [past_k, past_v] = past;
        self.present(&run, &cache, (past_k.transpose()?, new[0], 0), k)?;
        self.present(&run, &cache, (past_v.transpose()?, new[1], 1), v)?;
        self.attend(&run, &cache, k, v, y)
    }
}

impl GroupAttention {
    /// The cache of keys (`which` 0) or values (1) that is handed on: what is valid of the past, new rows behind it, zeros then.
    fn present(
        &self,
        run: &Run,
        cache: &Cache,
        (past, new, which): (Option<&[f32]>, Option<&[f32]>, usize),
        out: &mut [f32],
    ) -> Result<(), StepError> {
        let (heads, kv, size) = (run.op.num_heads, run.op.kv_num_heads, self.size);
        // Rows of packed queries, keys and values, or of keys or values alone.
        let (from, skip, width) = match new {
            Some(x) => (x, 0, kv * size),
            None => (run.x, (heads + which * kv) * size, (heads + 2 * kv) * size),
        };
        let (of_entry, row) = (kv * self.total * size, self.length * width);
        for (b, (out, &(_, before))) in out.chunks_exact_mut(of_entry.max(1)).zip(&cache.valid).enumerate() {
            for (h, out) in out.chunks_exact_mut(self.total * size).enumerate() {
                if let Some(past) = past {
                    let from = &past[(b * kv + h) * self.past * size..][..before * size];
                    out[..from.len()].copy_from_slice(from);
                }
                out[(before + self.length) * size..].fill(0.0);
            }
            let p = RotateParams {
                pairs: if which == 0 { self.pairs } else { 0 },
                interleaved: run.op.rotary_interleaved,
                from: [row, size, width],
                to: [of_entry, self.total * size, size],
                ..by_head([1, kv, self.length, size])
            };
            let positions = &run.positions[b * self.length..][..self.length];
            rotate(run.exec, &p, &from[b * row + skip..], run.caches, positions, &mut out[before * size..])?;
        }
        Ok(())
    }

    /// Attention of the new queries on the cache.
    fn attend(&self, run: &Run, cache: &Cache, k: &[f32], v: &[f32], y: &mut [f32]) -> Result<(), StepError> {
        let (heads, kv, size) = (run.op.num_heads, run.op.kv_num_heads, self.size);
        let width = if self.at.kv.is_some() { heads * size } else { (heads + 2 * kv) * size };
        let row = self.length * heads * size;
        with_scratch_bytes(if self.pairs > 0 { row * size_of::<f32>() } else { 0 }, |scratch| {
            let turned: &mut [f32] = bytemuck::cast_slice_mut(scratch);
            for (b, (y, &(_, before))) in y.chunks_exact_mut(row).zip(&cache.valid).enumerate() {
                let x = &run.x[b * self.length * width..];
                let mut q = HeadView { data: x, strides: [0, size, width] };
                if self.pairs > 0 {
                    let by_row = [row, size, heads * size];
                    let p = RotateParams {
                        pairs: self.pairs,
                        interleaved: run.op.rotary_interleaved,
                        from: [self.length * width, size, width],
                        to: by_row,
                        ..by_head([1, heads, self.length, size])
                    };
                    let positions = &run.positions[b * self.length..][..self.length];
                    rotate(run.exec, &p, x, run.caches, positions, turned)?;
                    q = HeadView { data: turned, strides: by_row };
                }
                let keys = before + self.length;
                let p = AttentionParams {
                    batch: 1,
                    heads,
                    kv_heads: kv,
                    queries: self.length,
                    keys,
                    depth: size,
                    value_depth: size,
                    scale: run.op.scale.filter(|&s| s != 0.0).unwrap_or(1.0 / (size as f32).sqrt()),
                    causal: true,
                    guarded: false,
                };
                let hidden = run.op.window.filter(|&w| w < keys).map(|w| out_of_window(self.length, before, w));
                let mask = hidden.as_ref().map(|m| HeadView { data: m, strides: [0, 0, keys] });
                let entry = kv * self.total * size;
                let of_cache = |x| HeadView { data: x, strides: [entry, self.total * size, size] };
                let kv = [of_cache(&k[b * entry..]), of_cache(&v[b * entry..])];
                let (views, to) = ([q, kv[0], kv[1]], [row, size, heads * size]);
                match self.length <= FEW && !run.exec.bf16() {
                    true => attention_of_few(run.exec, &p, views, mask, y, to)?,
                    false => attention(run.exec, &p, views, mask, None, y, to)?,
                }
            }
            Ok(())
        })
    }
}

/// −∞ for keys that are further back than a query sees, `[length, before + length]`.
fn out_of_window(length: usize, before: usize, window: usize) -> Vec<f32> {
    let keys = before + length;
    let seen = |query: usize, key: usize| key + window > before + query;
    let row = |q: usize| (0..keys).map(move |k| if seen(q, k) { 0.0 } else { f32::NEG_INFINITY });
    (0..length).flat_map(row).collect()
}
