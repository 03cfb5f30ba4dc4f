//! Pooling over one to three axes, and of whole planes.

use narrowbit_kernels::integer::{
    Divisor, PoolDepth, PoolNhwcParams, Quant, avg_pool2d_nhwc, global_avg_pool_nhwc, max_pool2d_nhwc,
};
use narrowbit_kernels::panel::Target;
use narrowbit_kernels::pooling::{Pool2dParams, average_pool2d, global_average_pool, global_max_pool, max_pool2d};

use narrowbit_tensor::DType;

use super::Maybe;
use super::images::{Along, axes};
use crate::kernel::{BuildCx, Built, simple};

/// The kernel of a pooling.
pub fn build(cx: &BuildCx) -> Maybe {
    if cx.node.output(1).is_none()
        && let Some(built) = channels_last(cx)
    {
        return Ok(Some(built));
    }
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
    let (x, y, dims) = (cx.node.input(0)?, cx.node.output(0)?, cx.f32_shape(0)?);
    let max = cx.node.op.name() == "MaxPool";
    let q = params(cx, &dims).filter(|q| q.depth == PoolDepth::ONE)?;
    let p = Pool2dParams {
        planes: q.n * q.c,
        h: q.h,
        w: q.w,
        window: q.window,
        strides: q.strides,
        pads: q.pads,
        dilations: q.dilations,
        out: q.out,
    };
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

/// The kernel of a pooling of integers, or of floats whose channels stand last.
fn channels_last(cx: &BuildCx) -> Option<Built> {
    let (x, y, ty) = (cx.node.input(0)?, cx.node.output(0)?, cx.ty(0)?);
    let name = cx.node.op.name();
    // Windows over volumes have no other kernel.
    let volumes = ty.shape.len() == 5 && matches!(name, "MaxPool" | "AveragePool");
    let floats = ty.dtype == DType::F32 && (cx.is_channels_last(x) || volumes);
    let place = |v| (cx.channels_last)(v);
    if name == "GlobalAveragePool" && floats {
        let (shape, ins) = (image(&ty.shape)?, vec![place(x)]);
        let kernel = simple("global_pool_nhwc_f32", move |cx| {
            let (exec, x) = (cx.exec, cx.f32s(0)?);
            Ok(global_avg_pool_nhwc(exec, Quant::F32(x), shape, Target::F32(cx.out_f32s()?))?)
        });
        // One pixel: both layouts are the same.
        return Some(Built { kernel, ins, outs: vec![y] });
    }
    let whole = matches!(ty.dtype, DType::U8 | DType::I8) && name == "MaxPool";
    if !(floats || whole) || !matches!(name, "MaxPool" | "AveragePool") {
        return None;
    }
    let p = params(cx, &ty.shape)?;
    let divisor = divisor(cx);
    let (dtype, max) = (ty.dtype, name == "MaxPool");
    let kernel = simple(if max { "max_pool_nhwc" } else { "average_pool_nhwc_f32" }, move |cx| {
        let (exec, x) = (cx.exec, cx.view(0)?);
        let Some(out) = cx.outs.first_mut() else { return Ok(()) };
        let done = match (max, dtype) {
            (true, DType::U8) => max_pool2d_nhwc::<u8>(exec, &p, x.slice()?, out.slice()?),
            (true, DType::I8) => max_pool2d_nhwc::<i8>(exec, &p, x.slice()?, out.slice()?),
            (true, _) => max_pool2d_nhwc::<f32>(exec, &p, x.slice()?, out.slice()?),
            _ => avg_pool2d_nhwc(exec, &p, divisor, Quant::F32(x.slice()?), Target::F32(out.slice()?)),
        };
        Ok(done?)
    });
    Some(Built { kernel, ins: vec![place(x)], outs: vec![place(y)] })
}

/// Images, pixels and channels.
pub(super) fn image(shape: &[usize]) -> Option<[usize; 3]> {
    let &[n, c, ref pixels @ ..] = shape else { return None };
    let pixels = pixels.iter().product();
    (shape.len() >= 3 && pixels > 0).then_some([n, pixels, c])
}

/// The window of a pooling over one to three axes of `dims`.
pub(super) fn params(cx: &BuildCx, dims: &[usize]) -> Option<PoolNhwcParams> {
    let out = cx.out(0)?.shape;
    let kernel: Vec<usize> =
        cx.list("kernel_shape")?.into_iter().map(usize::try_from).collect::<Result<_, _>>().ok()?;
    // The helper reads kernels as the tail of a weight's shape.
    let weight: Vec<usize> = [1, 1].into_iter().chain(kernel).collect();
    let mut along = axes(cx, dims, &weight, &out, false).filter(|a| (1..=3).contains(&a.len()))?;
    let missing = 3 - along.len();
    along.splice(0..0, std::iter::repeat_n(Along::ONE, missing));
    let extents = |s: &[usize]| std::iter::repeat_n(1, missing).chain(s[2..].iter().copied()).collect::<Vec<usize>>();
    let &[depth, down, across] = along.as_slice() else { return None };
    let (from, to) = (extents(dims), extents(&out));
    let Along { kernel: window, stride, dilation, pads } = depth;
    Some(PoolNhwcParams {
        n: dims[0],
        h: from[1],
        w: from[2],
        c: dims[1],
        window: [down.kernel, across.kernel],
        strides: [down.stride, across.stride],
        pads: [down.pads[0], across.pads[0], down.pads[1], across.pads[1]],
        dilations: [down.dilation, across.dilation],
        out: [to[1], to[2]],
        depth: PoolDepth { len: from[0], window, stride, pads, dilation, out: to[0] },
    })
}

/// What the sums of a pooling's windows are divided by.
pub(super) fn divisor(cx: &BuildCx) -> Divisor {
    if cx.int("count_include_pad", 0) != 0 { Divisor::Padded } else { Divisor::Inside }
}
