//! RotaryEmbedding of floats, ONNX's own and `com.microsoft`'s.

use narrowbit_kernels::Few;
use narrowbit_kernels::rotate::{RotateParams, rotate};
use narrowbit_ops::microsoft::rotary_embedding::RotaryEmbedding as Microsoft;
use narrowbit_ops::nn::rotary_embedding::RotaryEmbedding;
use narrowbit_tensor::DType;

use super::Maybe;
use crate::error::StepError;
use crate::kernel::{BuildCx, Built, Kernel, RunCx};
use crate::view::View;

struct Rotary {
    p: RotateParams,
    /// Where the caches and the positions stand among the operands; without positions, rows have a place of their own.
    caches: [usize; 2],
    positions: Option<usize>,
}

/// The kernel of a RotaryEmbedding.
pub fn build(cx: &BuildCx) -> Maybe {
    Ok(plan(cx))
}

fn plan(cx: &BuildCx) -> Option<Built> {
    let (op, caches, ids) = match (cx.node.op.downcast::<Microsoft>(), cx.node.op.downcast::<RotaryEmbedding>()) {
        (Some(op), _) => (&op.rotation, [2, 3], 1),
        (_, Some(op)) => (op, [1, 2], 3),
        _ => return None,
    };
    let (dims, out) = (cx.f32_shape(0)?, cx.f32_out()?);
    let angles = cx.f32_shape(caches[0]).filter(|c| cx.f32_shape(caches[1]).as_ref() == Some(c))?;
    let half = *angles.last()?;
    // `com.microsoft` may leave it to the caches how many heads there are.
    let heads = |width: usize| op.num_heads.or_else(|| width.checked_div(2 * half).filter(|_| caches[0] == 2));
    let (p, seq) = match *dims {
        [batch, heads, rows, size] => (by_head([batch, heads, rows, size]), rows),
        [batch, rows, width] => {
            let heads = heads(width).filter(|&h| h > 0 && width % h == 0)?;
            let size = width / heads;
            let steps = [rows * width, size, width];
            (RotateParams { from: steps, to: steps, ..by_head([batch, heads, rows, size]) }, rows)
        }
        _ => return None,
    };
    let dim = if op.rotary_dim == 0 { p.size } else { op.rotary_dim };
    let given = cx.node.input(ids).is_some();
    let caches_fit = if given { angles.len() == 2 } else { angles == [p.batch, seq, half] };
    let ids_fit = !given
        || cx.ty(ids).is_some_and(|t| {
            let count: usize = t.shape.iter().product();
            let first = caches[0] == 2 && t.shape == [1];
            t.dtype == DType::I64 && (first || count == p.batch * seq && t.shape.len() == 2)
        });
    if out != dims || dim > p.size || dim != 2 * half || !caches_fit || !ids_fit {
        return None;
    }
    let (p, mut ins) = (RotateParams { pairs: half, interleaved: op.interleaved, ..p }, vec![cx.node.input(0)?]);
    for i in caches {
        ins.push(cx.node.input(i)?);
    }
    ins.extend(cx.node.input(ids));
    let kernel = Rotary { p, caches: [1, 2], positions: given.then_some(3) };
    Some(Built { kernel: Box::new(kernel), ins, outs: vec![cx.node.output(0)?] })
}

/// Dense `[batch, heads, rows, size]` in and out.
pub(super) fn by_head([batch, heads, rows, size]: [usize; 4]) -> RotateParams {
    let steps = [heads * rows * size, rows * size, size];
    RotateParams { batch, heads, rows, size, pairs: 0, interleaved: false, from: steps, to: steps }
}

/// The error of a position that the caches don't have.
fn outside(position: i64) -> StepError {
    let message = format!("position_ids has {position}, which the caches do not have");
    narrowbit_ir::OpError::Value(message).into()
}

/// The positions of all rows: as given, or from the single one on.
pub(super) fn positions(ids: &View, batch: usize, rows: usize) -> Result<Few<usize, 64>, StepError> {
    let ids: &[i64] = ids.slice()?;
    let single = ids.len() == 1 && batch * rows != 1;
    let place = |i: usize| {
        let at = if single { ids[0].saturating_add((i % rows) as i64) } else { ids[i] };
        usize::try_from(at).map_err(|_| outside(at))
    };
    (0..batch * rows).map(place).collect()
}

impl Kernel for Rotary {
    fn name(&self) -> &str {
        "rotate_f32"
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let p = &self.p;
        let (exec, x, cos, sin) = (cx.exec, cx.f32s(0)?, cx.f32s(self.caches[0])?, cx.f32s(self.caches[1])?);
        let at = match self.positions {
            Some(i) => positions(&cx.view(i)?, p.batch, p.rows)?,
            None => (0..p.batch * p.rows).collect(),
        };
        let most = cos.len() / p.pairs.max(1);
        if let Some(&at) = at.iter().find(|&&at| at >= most) {
            return Err(outside(at as i64));
        }
        Ok(rotate(exec, p, x, [cos, sin], &at, cx.out_f32s()?)?)
    }
}
