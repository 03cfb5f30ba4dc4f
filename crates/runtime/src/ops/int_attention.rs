//! The fused attention on integers, from the codes of queries, keys and values to those of the result.

use narrowbit_ir::ValueId;
use narrowbit_kernels::attention::HeadView;
use narrowbit_kernels::panel::{Factor, IntAttention, IntHeads, int_attention};
use narrowbit_tensor::DType;

use super::attention::{axes, mask_strides, out_strides};
use super::integer::{rows_at, target};
use crate::error::StepError;
use crate::fuse::{Attention, AttentionInts};
use crate::kernel::{BuildCx, Built, Kernel, RunCx};
use crate::lower::QParams;

struct Attend {
    heads: [usize; 2],
    queries: usize,
    keys: usize,
    depth: usize,
    value_depth: usize,
    /// Queries, keys and values: their formats and steps.
    operands: [(QParams, [usize; 4]); 3],
    factor: Factor,
    mask: Option<[usize; 3]>,
    weights: QParams,
    output: Option<QParams>,
    out: [usize; 3],
}

/// The kernel; `fuse` has checked the shapes.
pub(super) fn build(cx: &BuildCx, a: &Attention, ints: &AttentionInts, out: ValueId) -> Option<Built> {
    let ((q, sq), (kt, sk), (v, sv)) = (axes(cx, &a.q)?, axes(cx, &a.kt)?, axes(cx, &a.v)?);
    let full = [q[0], q[1], q[2], kt[3]];
    let mask = match a.mask {
        Some(mask) => Some(mask_strides(cx, mask, full)?),
        None => None,
    };
    let [fq, fk, fv] = ints.operands;
    let kernel = Attend {
        heads: [q[0], q[1]],
        queries: q[2],
        keys: kt[3],
        depth: q[3],
        value_depth: v[3],
        operands: [(fq, sq), (fk, sk), (fv, sv)],
        factor: ints.factor,
        mask,
        weights: ints.weights,
        output: ints.output,
        out: out_strides(a, [q[0], q[1], q[2], v[3]])?,
    };
    let mut ins = vec![a.q.value, a.kt.value, a.v.value];
    ins.extend(a.mask);
    Some(Built { kernel: Box::new(kernel), ins, outs: vec![out] })
}

impl Kernel for Attend {
    fn name(&self) -> &str {
        "attention_i8"
    }

    fn on_integers(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let operand = |i: usize| -> Result<IntHeads<'_>, StepError> {
            let (format, strides) = self.operands[i];
            Ok(IntHeads { data: rows_at(cx, i, format.dtype)?, zero: format.zero, strides })
        };
        let mask = match self.mask {
            Some(strides) => Some(HeadView { data: cx.f32s(3)?, strides }),
            None => None,
        };
        let [q, kt, v] = self.operands.map(|(format, _)| format.scale);
        let w = self.weights;
        let p = IntAttention {
            heads: self.heads,
            queries: self.queries,
            keys: self.keys,
            depth: self.depth,
            value_depth: self.value_depth,
            q: operand(0)?,
            kt: operand(1)?,
            v: operand(2)?,
            scale: q * kt,
            factor: self.factor,
            mask,
            weights: (w.dtype == DType::I8, 1.0 / w.scale, w.zero),
            value_scale: w.scale * v,
        };
        Ok(int_attention(cx.exec, &p, target(self.output, cx)?, self.out)?)
    }
}
