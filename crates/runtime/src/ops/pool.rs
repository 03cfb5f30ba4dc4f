//! Pooling of float images: 1-D and 2-D windows, and whole planes.

use narrowbit_kernels::pooling::{Pool2dParams, average_pool2d, global_average_pool, global_max_pool, max_pool2d};

use super::Maybe;
use super::conv::{Window, plane, window};
use crate::kernel::{BuildCx, Built, simple};

/// The kernel of a pooling.
pub fn build(cx: &BuildCx) -> Maybe {
    if cx.f32_out().is_none() || cx.node.output(1).is_some() {
        return Ok(None);
    }
    Ok(match cx.node.op.name() {
        "GlobalAveragePool" => global(cx, false),
        "GlobalMaxPool" => global(cx, true),
        _ => windowed(cx),
    })
}

fn global(cx: &BuildCx, max: bool) -> Option<Built> {
    let (x, y, dims) = (cx.node.input(0)?, cx.node.output(0)?, cx.f32_shape(0)?);
    let planes = dims.get(..2)?.iter().product();
    let len = dims[2..].iter().product::<usize>();
    if len == 0 {
        return None;
    }
    let kernel = simple("global_pool_f32", move |cx| {
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        let f = if max { global_max_pool } else { global_average_pool };
        Ok(f(exec, x, cx.out_f32s()?, planes, len)?)
    });
    Some(Built { kernel, ins: vec![x], outs: vec![y] })
}

fn windowed(cx: &BuildCx) -> Option<Built> {
    let (x, y, dims, out) = (cx.node.input(0)?, cx.node.output(0)?, cx.f32_shape(0)?, cx.f32_out()?);
    if !(3..=4).contains(&dims.len()) {
        return None;
    }
    let max = cx.node.op.name() == "MaxPool";
    let kernel: Vec<usize> =
        cx.list("kernel_shape")?.into_iter().map(usize::try_from).collect::<Result<_, _>>().ok()?;
    // The window helper reads kernels as the tail of a weight's shape.
    let weight: Vec<usize> = [1, 1].into_iter().chain(kernel).collect();
    if weight.len() != dims.len() {
        return None;
    }
    let Window { kernel, strides, dilations, pads } = window(cx, &dims, &weight, &out, false)?;
    let [h, w] = plane(&dims);
    let p =
        Pool2dParams { planes: dims[0] * dims[1], h, w, window: kernel, strides, pads, dilations, out: plane(&out) };
    let include = cx.int("count_include_pad", 0) != 0;
    let kernel = simple(if max { "max_pool_f32" } else { "average_pool_f32" }, move |cx| {
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        match max {
            true => max_pool2d(exec, &p, x, cx.out_f32s()?)?,
            false => average_pool2d(exec, &p, include, x, cx.out_f32s()?)?,
        }
        Ok(())
    });
    Some(Built { kernel, ins: vec![x], outs: vec![y] })
}
