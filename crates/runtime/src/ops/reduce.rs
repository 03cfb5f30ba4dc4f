//! Reductions of floats along neighbouring axes.

use narrowbit_kernels::reduce::{ReduceOp, reduce};
use narrowbit_tensor::shape;

use super::Maybe;
use crate::kernel::{BuildCx, Built, simple};

/// The kernel of a reduction; axes that are not neighbours run on the reference.
pub fn build(cx: &BuildCx) -> Maybe {
    Ok(plan(cx))
}

fn plan(cx: &BuildCx) -> Option<Built> {
    let (x, y, dims) = (cx.node.input(0)?, cx.node.output(0)?, cx.f32_shape(0)?);
    cx.f32_out()?;
    let op = match cx.node.op.name() {
        "ReduceMean" => ReduceOp::Mean,
        "ReduceSum" => ReduceOp::Sum,
        "ReduceMax" => ReduceOp::Max,
        "ReduceMin" => ReduceOp::Min,
        "ReduceL2" => ReduceOp::L2,
        "ReduceSumSquare" => ReduceOp::SumSquare,
        _ => return None,
    };
    let axes = match cx.node.input(1) {
        Some(_) => Some(cx.ints(1)?),
        None => cx.list("axes"),
    };
    let axes = match axes.filter(|a| !a.is_empty()) {
        None if cx.int("noop_with_empty_axes", 0) != 0 => return None,
        None => (0..dims.len()).collect(),
        Some(list) => {
            let mut axes: Vec<usize> = list.into_iter().map(|a| shape::axis(a, dims.len())).collect::<Option<_>>()?;
            axes.sort_unstable();
            axes.dedup();
            axes
        }
    };
    let (first, last) = (*axes.first()?, *axes.last()?);
    if last - first + 1 != axes.len() || dims.contains(&0) {
        return None;
    }
    let product = |d: &[usize]| d.iter().product::<usize>();
    let split = [product(&dims[..first]), product(&dims[first..=last]), product(&dims[last + 1..])];
    let kernel = simple("reduce_f32", move |cx| {
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        Ok(reduce(exec, op, x, cx.out_f32s()?, split)?)
    });
    Some(Built { kernel, ins: vec![x], outs: vec![y] })
}
