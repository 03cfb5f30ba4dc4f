//! The fused attention on integers, from the codes of queries, keys and values to those of the result.

use narrowbit_ir::ValueId;
use narrowbit_kernels::attention::HeadView;
use narrowbit_kernels::panel::{
    CodeMask, CodeWeights, CodedScores, Factor, IntAttention, IntHeads, Rounded, ValueHeads, Values, Weights,
    int_attention,
};
use narrowbit_ops::microsoft::qlinear_softmax::{exponentials, steps_of_one};
use narrowbit_tensor::DType;

use super::attention::{axes, mask_strides, out_strides, share};
use super::finish::{Codes, rows_at, runtime_params, target};
use crate::error::StepError;
use crate::fuse::{self, Attention, AttentionInts, Coded, Format, IntValues};
use crate::kernel::{BuildCx, Built, Kernel, RunCx};
use crate::lower::QParams;

struct Attend {
    heads: [usize; 2],
    queries: usize,
    keys: usize,
    depth: usize,
    value_depth: usize,
    /// Heads of keys and values.
    kv_heads: usize,
    /// Queries and keys: their formats and steps.
    operands: [(Scaled, [usize; 4]); 2],
    /// The steps of the values.
    v: [usize; 4],
    /// Set where the values are integers.
    values: Option<Rounding>,
    guarded: bool,
    factor: Factor,
    mask: Option<[usize; 3]>,
    /// What scores go through that are rounded to codes, and the table of a softmax of codes.
    coded: Option<Coded>,
    exponentials: Option<Box<[f32; 256]>>,
    output: Option<Codes>,
    /// The steps that results are in before they are rounded: those of the output where all formats are known.
    steps: f32,
    out: [usize; 3],
}

/// The formats of values and weights, and whether weights are parts of the greatest one in their row.
struct Rounding {
    values: Scaled,
    weights: Scaled,
    by_row: bool,
}

/// A format; where it is made at run time, the place of its scale among the inputs, and whether its zero point comes after.
#[derive(Clone, Copy)]
struct Scaled {
    known: QParams,
    at: Option<(usize, bool)>,
}

impl Scaled {
    /// A format whose values become inputs.
    fn new((known, runtime): Format, ins: &mut Vec<ValueId>) -> Scaled {
        let at = runtime.map(|r| {
            ins.push(r.scale);
            ins.extend(r.zero);
            (ins.len() - 1 - usize::from(r.zero.is_some()), r.zero.is_some())
        });
        Scaled { known, at }
    }

    /// The scale and the zero point.
    fn get(&self, cx: &RunCx) -> Result<(f32, i32), StepError> {
        match self.at {
            Some((at, zero)) => runtime_params(cx, at, zero),
            None => Ok((self.known.scale, self.known.zero)),
        }
    }
}

/// The kernel; `fuse` has checked the shapes.
pub(super) fn build(cx: &BuildCx, a: &Attention, ints: &AttentionInts, out: ValueId) -> Option<Built> {
    let ((q, sq), mut kt, mut v) = (axes(cx, &a.q)?, axes(cx, &a.kt)?, axes(cx, &a.v)?);
    let kv_heads = share(q, &mut kt, &mut v)?;
    let ((kt, sk), (v, sv)) = (kt, v);
    let full = [q[0], q[1], q[2], kt[3]];
    let mask = match a.mask {
        Some(mask) => {
            let dtype = ints.coded.as_ref().and_then(|c| c.mask).map_or(DType::F32, |m| m.1.dtype);
            Some(mask_strides(cx, mask, dtype, full)?)
        }
        None => None,
    };
    let mut ins = vec![a.q.value, a.kt.value, a.v.value];
    ins.extend(a.mask);
    let (mut output, mut steps) = (ints.output.map(Codes::from), 1.0);
    // As the product alone does it: `scale_w · scale_v / scale_y` at once.
    if let (Some(codes), Some(q), Some(IntValues { values: (v, None), weights: (w, None), .. })) =
        (&mut output, ints.output, &ints.values)
        && (w.scale * v.scale / q.scale).is_finite()
    {
        (codes.inverse, steps) = (1.0, q.scale);
    }
    let [fq, fk] = [ints.operands[0].0, ints.operands[1].0];
    if ints.coded.as_ref().is_some_and(|c| !(fq.scale * fk.scale / c.product.scale).is_finite()) {
        return None;
    }
    let exponentials = match ints.coded.as_ref().and_then(|c| c.softmax) {
        Some(softmax) => Some(Box::<[f32; 256]>::try_from(exponentials(softmax.scale, kt[3]).into_boxed_slice()).ok()?),
        None => None,
    };
    let [fq, fk] = ints.operands.map(|format| Scaled::new(format, &mut ins));
    let values = ints.values.as_ref().map(|i| Rounding {
        values: Scaled::new(i.values, &mut ins),
        weights: Scaled::new(i.weights, &mut ins),
        by_row: i.by_row,
    });
    let kernel = Attend {
        heads: [q[0], q[1]],
        queries: q[2],
        keys: kt[3],
        depth: q[3],
        value_depth: v[3],
        kv_heads,
        operands: [(fq, sq), (fk, sk)],
        v: sv,
        values,
        guarded: a.guarded,
        factor: ints.factor,
        mask,
        coded: ints.coded.clone(),
        exponentials,
        output,
        steps,
        out: out_strides(a, [q[0], q[1], q[2], v[3]])?,
    };
    Some(Built { kernel: Box::new(kernel), ins, outs: vec![out] })
}

impl Attend {
    /// What happens to scores that are rounded to codes.
    fn coded_scores<'a>(&'a self, cx: &RunCx<'a>) -> Result<Option<CodedScores<'a>>, StepError> {
        let Some(c) = &self.coded else { return Ok(None) };
        let signed = |q: QParams| q.dtype == DType::I8;
        let rounded = |q: QParams, inverse| Rounded { signed: signed(q), inverse, zero: q.zero, scale: q.scale };
        let mask = match (c.mask, self.mask) {
            (Some((sum, q)), Some(strides)) => {
                Some(CodeMask { data: cx.view(3)?.bytes, signed: signed(q), strides, sum, ratio: q.scale })
            }
            _ => None,
        };
        let weights = match (&self.exponentials, c.softmax) {
            (Some(table), Some(s)) => Some(CodeWeights { table, steps: steps_of_one(s.output.scale) }),
            _ => None,
        };
        Ok(Some(CodedScores {
            product: rounded(c.product, 1.0),
            values: match &c.values {
                fuse::Codes::Scaled => Values::Scaled,
                fuse::Codes::Table(table) => Values::Table(table),
                &fuse::Codes::Linear { ratio, bounds, scale, offset } => {
                    Values::Linear { ratio, bounds, scale, offset }
                }
            },
            mask,
            sum: c.sum.map(|q| rounded(q, 1.0 / q.scale)),
            weights,
        }))
    }
}

impl Attend {
    /// Values, and the integers that weights are rounded to.
    fn value_heads<'a>(&self, cx: &RunCx<'a>) -> Result<ValueHeads<'a>, StepError> {
        let Some(r) = &self.values else {
            let [batch, head, row, _] = self.v;
            return Ok(ValueHeads::Floats(HeadView { data: cx.f32s(2)?, strides: [batch, head, row] }));
        };
        let ((v_scale, zero), (w_scale, w_zero)) = (r.values.get(cx)?, r.weights.get(cx)?);
        let v = IntHeads { data: rows_at(cx, 2, r.values.known.dtype)?, zero, strides: self.v };
        // A softmax of codes counts in steps of its result.
        let inverse = if self.exponentials.is_some() { 1.0 } else { 1.0 / w_scale };
        let fixed = Weights::Fixed(r.weights.known.dtype == DType::I8, inverse, w_zero);
        let weights = if r.by_row { Weights::ByRow } else { fixed };
        Ok(ValueHeads::Codes { v, weights, scale: w_scale * v_scale / self.steps })
    }
}

impl Kernel for Attend {
    fn name(&self) -> &str {
        if self.values.is_some() { "attention_i8" } else { "attention_i8_f32" }
    }

    fn on_integers(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let operand = |i: usize| -> Result<(IntHeads<'_>, f32), StepError> {
            let (format, strides) = self.operands[i];
            let (scale, zero) = format.get(cx)?;
            Ok((IntHeads { data: rows_at(cx, i, format.known.dtype)?, zero, strides }, scale))
        };
        let of_codes = self.coded.as_ref().is_some_and(|c| c.mask.is_some());
        let mask = match self.mask {
            Some(strides) if !of_codes => Some(HeadView { data: cx.f32s(3)?, strides }),
            _ => None,
        };
        let [(q, q_scale), (kt, k_scale)] = [operand(0)?, operand(1)?];
        let coded = self.coded_scores(cx)?;
        let unit = self.coded.as_ref().map_or(1.0, |c| c.product.scale);
        let p = IntAttention {
            heads: self.heads,
            kv_heads: self.kv_heads,
            queries: self.queries,
            keys: self.keys,
            depth: self.depth,
            value_depth: self.value_depth,
            q,
            kt,
            v: self.value_heads(cx)?,
            scale: q_scale * k_scale / unit,
            factor: self.factor,
            mask,
            guarded: self.guarded,
            coded,
        };
        Ok(int_attention(cx.exec, &p, target(self.output, cx)?, self.out)?)
    }
}
