//! Reductions of floats along neighbouring axes; running sums and the places of extremes along one.

use narrowbit_kernels::reduce::{
    ArgExtreme, ReduceOp, Running, arg_extreme, reduce, running_sum, running_sum_in_place,
};
use narrowbit_ops::math::argmax;
use narrowbit_ops::math::cumulate::Cumulate;
use narrowbit_tensor::shape;

use super::Maybe;
use crate::kernel::{BuildCx, Built, in_place, simple};

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

/// The kernel of a CumSum of floats along a constant axis.
pub fn running(cx: &BuildCx) -> Maybe {
    Ok(running_sums(cx))
}

fn running_sums(cx: &BuildCx) -> Option<Built> {
    let (x, y, dims) = (cx.node.input(0)?, cx.node.output(0)?, cx.f32_shape(0)?);
    cx.f32_out()?;
    let op = cx.node.op.downcast::<Cumulate>().filter(|op| !op.product)?;
    let &[axis] = cx.ints(1)?.as_slice() else { return None };
    let axis = shape::axis(axis, dims.len())?;
    let how = Running { exclusive: op.exclusive, reverse: op.reverse };
    let product = |d: &[usize]| d.iter().product::<usize>();
    let split = [product(&dims[..axis]), dims[axis], product(&dims[axis + 1..])];
    let kernel = in_place("running_sum_f32", move |cx| {
        let exec = cx.exec;
        if cx.is_in_place(0) {
            return Ok(running_sum_in_place(exec, how, cx.out_f32s()?, split)?);
        }
        let x = cx.f32s(0)?;
        Ok(running_sum(exec, how, x, cx.out_f32s()?, split)?)
    });
    Some(Built { kernel, ins: vec![x], outs: vec![y] })
}

/// The kernel of an ArgMax or ArgMin of floats.
pub fn places(cx: &BuildCx) -> Maybe {
    Ok(places_of(cx))
}

fn places_of(cx: &BuildCx) -> Option<Built> {
    let (x, y, dims) = (cx.node.input(0)?, cx.node.output(0)?, cx.f32_shape(0)?);
    let op = cx.node.op.downcast::<argmax::ArgExtreme>()?;
    let axis = shape::axis(op.axis, dims.len()).filter(|&axis| dims[axis] > 0)?;
    let how = ArgExtreme { least: op.min, last: op.select_last_index };
    // With the channels last they are one row of each pixel.
    let last = axis == 1 && cx.is_channels_last(x);
    let product = |d: &[usize]| d.iter().product::<usize>();
    let split = match last {
        true => [product(&dims) / dims[1], dims[1], 1],
        false => [product(&dims[..axis]), dims[axis], product(&dims[axis + 1..])],
    };
    let kernel = simple("arg_extreme_f32", move |cx| {
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        Ok(arg_extreme(exec, how, x, split, y.slice::<i64>()?)?)
    });
    // One place for each pixel: its order is the same in both layouts.
    let x = if last { (cx.channels_last)(x) } else { x };
    Some(Built { kernel, ins: vec![x], outs: vec![y] })
}
