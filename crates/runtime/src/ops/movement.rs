//! Operators that move whole elements, of any type of 1, 2, 4 or 8 bytes.

use narrowbit_kernels::elementwise;
use narrowbit_kernels::movement::{self, copy_strided, gather_rows, permute};
use narrowbit_kernels::{Exec, Few};
use narrowbit_ops::tensor::depth_to_space::{DepthToSpace, Mode, SpaceToDepth};
use narrowbit_tensor::{DType, shape};

use super::Maybe;
use crate::error::StepError;
use crate::kernel::{BuildCx, Built, Concrete, RunCx, simple};

/// The kernel of an operator that moves elements.
pub fn build(cx: &BuildCx) -> Maybe {
    let whole = cx.out(0).is_some_and(|t| matches!(t.dtype.bits(), 8 | 16 | 32 | 64));
    if !whole {
        return Ok(None);
    }
    Ok(match cx.node.op.name() {
        "Transpose" => transpose(cx),
        "Concat" => concat(cx),
        "Slice" => slice(cx),
        "Split" => split(cx),
        "Gather" => gather(cx),
        "Expand" => expand(cx),
        "Tile" => tile(cx),
        "DepthToSpace" => depth_to_space(cx),
        "SpaceToDepth" => space_to_depth(cx),
        "GatherElements" => gather_elements(cx),
        "Where" => select(cx),
        _ => None,
    })
}

/// Calls a generic function with the unsigned type as wide as the elements.
macro_rules! by_width {
    ($dtype:expr, $f:ident ( $($arg:expr),* )) => {
        match $dtype.bits() {
            8 => $f::<u8>($($arg),*),
            16 => $f::<u16>($($arg),*),
            32 => $f::<u32>($($arg),*),
            _ => $f::<u64>($($arg),*),
        }
    };
}

trait Word: narrowbit_kernels::movement::Element + bytemuck::Pod {}
impl<T: narrowbit_kernels::movement::Element + bytemuck::Pod> Word for T {}

/// One of two values by a condition, element by element.
fn select(cx: &BuildCx) -> Option<Built> {
    let &[Some(c), Some(a), Some(b)] = cx.node.inputs.as_slice() else { return None };
    let (tc, ta, tb, y) = (cx.ty(0)?, cx.ty(1)?, cx.ty(2)?, cx.out(0)?);
    let fits = y.shape.len() <= elementwise::MAX_DIMS && tc.dtype == DType::Bool;
    if !fits || ta.dtype != y.dtype || tb.dtype != y.dtype {
        return None;
    }
    type Side<'a> = (&'a [u8], &'a [usize]);
    fn run<T: Word>(exec: &Exec, c: Side, a: Side, b: Side, y: (&mut [u8], &[usize])) -> Result<(), StepError> {
        fn cast<'a, T: Word>((bytes, shape): Side<'a>) -> (&'a [T], &'a [usize]) {
            (bytemuck::cast_slice(bytes), shape)
        }
        let to = (bytemuck::cast_slice_mut(y.0), y.1);
        Ok(elementwise::select::<T>(exec, c, cast(a), cast(b), to)?)
    }
    let kernel = simple("select", move |cx| {
        let (exec, c, a, b) = (cx.exec, cx.view(0)?.bytes, cx.view(1)?.bytes, cx.view(2)?.bytes);
        let Some(to) = cx.outs.first_mut() else { return Ok(()) };
        let (c, a, b) = ((c, &*tc.shape), (a, &*ta.shape), (b, &*tb.shape));
        by_width!(y.dtype, run(exec, c, a, b, (to.bytes, &y.shape)))
    });
    Some(Built { kernel, ins: vec![c, a, b], outs: vec![cx.node.output(0)?] })
}

fn transpose(cx: &BuildCx) -> Option<Built> {
    let (x, y, from) = (cx.node.input(0)?, cx.node.output(0)?, cx.ty(0)?);
    let rank = from.shape.len();
    let axes: Vec<usize> = match cx.list("perm") {
        None => (0..rank).rev().collect(),
        Some(p) => p.into_iter().map(usize::try_from).collect::<Result<_, _>>().ok()?,
    };
    fn run<T: Word>(exec: &Exec, x: &[u8], dims: &[usize], axes: &[usize], y: &mut [u8]) -> Result<(), StepError> {
        Ok(permute::<T>(exec, bytemuck::cast_slice(x), dims, axes, bytemuck::cast_slice_mut(y))?)
    }
    let kernel = simple("transpose", move |cx| {
        let (exec, x) = (cx.exec, cx.view(0)?.bytes);
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        by_width!(from.dtype, run(exec, x, &from.shape, &axes, y.bytes))
    });
    Some(Built { kernel, ins: vec![x], outs: vec![y] })
}

/// Bytes of all that lies within one index of `axis`.
fn row_bytes(t: &Concrete, axis: usize) -> usize {
    t.shape[axis + 1..].iter().product::<usize>() * t.dtype.bits() / 8
}

fn concat(cx: &BuildCx) -> Option<Built> {
    let (y, out) = (cx.node.output(0)?, cx.out(0)?);
    let axis = shape::axis(cx.int("axis", 1), out.shape.len())?;
    let ins: Option<Vec<_>> = cx.node.inputs.iter().copied().collect();
    let mut ins = ins?;
    let last = axis == 1 && ins.iter().all(|&v| cx.is_channels_last(v));
    let row = if last { out.dtype.bits() / 8 } else { row_bytes(&out, axis) };
    let widths: Option<Vec<usize>> = (0..cx.node.inputs.len())
        .map(|i| cx.ty(i).filter(|t| t.shape.len() == out.shape.len()).map(|t| t.shape[axis] * row))
        .collect();
    let widths = widths?;
    let kernel = simple("concat", move |cx| {
        let part = |(i, &width): (usize, &usize)| Ok((cx.view(i)?.bytes, width));
        let parts: Few<(&[u8], usize), 8> = widths.iter().enumerate().map(part).collect::<Result<_, StepError>>()?;
        let exec = cx.exec;
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        Ok(movement::concat(exec, &parts, y.bytes)?)
    });
    let place = |v| if last { (cx.channels_last)(v) } else { v };
    ins.iter_mut().for_each(|v| *v = place(*v));
    Some(Built { kernel, ins, outs: vec![place(y)] })
}

fn split(cx: &BuildCx) -> Option<Built> {
    let (x, from) = (cx.node.input(0)?, cx.ty(0)?);
    let axis = shape::axis(cx.int("axis", 0), from.shape.len())?;
    let outs: Option<Vec<_>> = cx.node.outputs.iter().copied().collect();
    let row = row_bytes(&from, axis);
    let widths: Option<Vec<usize>> =
        (0..cx.node.outputs.len()).map(|i| cx.out(i).map(|t| t.shape[axis] * row)).collect();
    let widths = widths?;
    let kernel = simple("split", move |cx| {
        let (exec, x) = (cx.exec, cx.view(0)?.bytes);
        let mut parts: Few<(&mut [u8], usize), 8> =
            cx.outs.iter_mut().zip(&widths).map(|(y, &width)| (&mut *y.bytes, width)).collect();
        Ok(movement::split(exec, x, &mut parts)?)
    });
    Some(Built { kernel, ins: vec![x], outs: outs? })
}

/// A copy from a strided view that starts at an element.
fn strided(
    name: &'static str,
    dtype: DType,
    start: usize,
    dims: Vec<(usize, usize)>,
) -> Box<dyn crate::kernel::Kernel> {
    fn run<T: Word>(cx: &mut RunCx, start: usize, dims: &[(usize, usize)]) -> Result<(), StepError> {
        let (exec, x) = (cx.exec, cx.view(0)?.bytes);
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        let x: &[T] = bytemuck::cast_slice(x);
        Ok(copy_strided::<T>(exec, x.get(start..).unwrap_or_default(), dims, bytemuck::cast_slice_mut(y.bytes))?)
    }
    simple(name, move |cx| by_width!(dtype, run(cx, start, &dims)))
}

fn slice(cx: &BuildCx) -> Option<Built> {
    let (x, y, from, out) = (cx.node.input(0)?, cx.node.output(0)?, cx.ty(0)?, cx.out(0)?);
    let list = |i: usize, name: &str| if cx.node.input(i).is_some() { cx.ints(i) } else { cx.list(name) };
    let starts = list(1, "starts")?;
    let axes = list(3, "axes").unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = if cx.node.input(4).is_some() { cx.ints(4)? } else { vec![1; starts.len()] };
    let strides = shape::strides(&from.shape);
    let mut dims: Vec<(usize, usize)> = out.shape.iter().copied().zip(strides.iter().copied()).collect();
    let mut origin = 0;
    for ((&s, &a), &step) in starts.iter().zip(&axes).zip(&steps) {
        let a = shape::axis(a, from.shape.len())?;
        let n = from.shape[a] as i64;
        // Copies go forward; reversed slices run on the reference.
        let step = usize::try_from(step).ok().filter(|&s| s > 0)?;
        let s = if s < 0 { s.saturating_add(n) } else { s }.clamp(0, n);
        origin += s as usize * strides[a];
        dims[a].1 = strides[a].checked_mul(step)?;
    }
    Some(Built { kernel: strided("slice", from.dtype, origin, dims), ins: vec![x], outs: vec![y] })
}

fn expand(cx: &BuildCx) -> Option<Built> {
    let (x, y, from, out) = (cx.node.input(0)?, cx.node.output(0)?, cx.ty(0)?, cx.out(0)?);
    if from.shape.len() > out.shape.len() || shape::broadcast(&from.shape, &out.shape).ok()? != out.shape {
        return None;
    }
    let steps = shape::broadcast_strides(&from.shape, &out.shape);
    let dims = out.shape.iter().copied().zip(steps).collect();
    Some(Built { kernel: strided("expand", from.dtype, 0, dims), ins: vec![x], outs: vec![y] })
}

/// Each axis is one that repeats, and the axis itself in it.
fn tile(cx: &BuildCx) -> Option<Built> {
    let (x, y, from, out) = (cx.node.input(0)?, cx.node.output(0)?, cx.ty(0)?, cx.out(0)?);
    if from.shape.len() != out.shape.len() {
        return None;
    }
    let steps = shape::strides(&from.shape);
    let mut dims = Vec::new();
    for ((&len, &to), step) in from.shape.iter().zip(&out.shape).zip(steps) {
        let repeats = to.checked_div(len).filter(|r| r * len == to)?;
        dims.extend([(repeats, 0), (len, step)]);
    }
    Some(Built { kernel: strided("tile", from.dtype, 0, dims), ins: vec![x], outs: vec![y] })
}

/// Lengths and steps of what a deep pixel has: the channels of each place in its block, and the rows and columns of the block.
struct Block {
    channels: (usize, usize),
    rows: (usize, usize),
    columns: (usize, usize),
}

impl Block {
    /// Of channels that are `step` apart.
    fn new(mode: Mode, (b, c): (usize, usize), step: usize) -> Block {
        let (channels, place) = match mode {
            Mode::Dcr => (step, c * step),
            Mode::Crd => (b * b * step, step),
        };
        Block { channels: (c, channels), rows: (b, b * place), columns: (b, place) }
    }
}

fn depth_to_space(cx: &BuildCx) -> Option<Built> {
    let (x, y, from) = (cx.node.input(0)?, cx.node.output(0)?, cx.ty(0)?);
    let op = cx.node.op.downcast::<DepthToSpace>()?;
    let &[n, depth, h, w] = from.shape.as_slice() else { return None };
    let (b, last) = (op.block, cx.is_channels_last(x));
    let c = depth / (b * b);
    let dims = if last {
        let of = Block::new(op.mode, (b, c), 1);
        vec![(n * h, w * depth), of.rows, (w, depth), of.columns, of.channels]
    } else {
        let of = Block::new(op.mode, (b, c), h * w);
        vec![(n, depth * h * w), of.channels, (h, w), of.rows, (w, 1), of.columns]
    };
    let place = |v| if last { (cx.channels_last)(v) } else { v };
    Some(Built { kernel: strided("depth_to_space", from.dtype, 0, dims), ins: vec![place(x)], outs: vec![place(y)] })
}

fn space_to_depth(cx: &BuildCx) -> Option<Built> {
    let (x, y, from) = (cx.node.input(0)?, cx.node.output(0)?, cx.ty(0)?);
    let op = cx.node.op.downcast::<SpaceToDepth>()?;
    let &[n, c, high, wide] = from.shape.as_slice() else { return None };
    let (b, last) = (op.block, cx.is_channels_last(x));
    let (h, w) = (high / b, wide / b);
    // Elements from a pixel to the next one of its row.
    let pixel = if last { c } else { 1 };
    let channels = (c, if last { 1 } else { high * wide });
    let (rows, columns) = ((b, wide * pixel), (b, pixel));
    let depth = match op.mode {
        Mode::Dcr => [rows, columns, channels],
        Mode::Crd => [channels, rows, columns],
    };
    let pixels = [(h, b * wide * pixel), (w, b * pixel)];
    let image = [(n, c * high * wide)];
    let dims = if last { [&image[..], &pixels, &depth] } else { [&image[..], &depth, &pixels] }.concat();
    let place = |v| if last { (cx.channels_last)(v) } else { v };
    Some(Built { kernel: strided("space_to_depth", from.dtype, 0, dims), ins: vec![place(x)], outs: vec![place(y)] })
}

fn gather(cx: &BuildCx) -> Option<Built> {
    let (x, indices, y) = (cx.node.input(0)?, cx.node.input(1)?, cx.node.output(0)?);
    let (from, index) = (cx.ty(0)?, cx.ty(1)?);
    let axis = shape::axis(cx.int("axis", 0), from.shape.len())?;
    if !matches!(index.dtype, DType::I64 | DType::I32) {
        return None;
    }
    let (rows, row) = (from.shape[axis], row_bytes(&from, axis));
    let outer: usize = from.shape[..axis].iter().product();
    let kernel = simple("gather", move |cx| {
        let (exec, x, index) = (cx.exec, cx.view(0)?.bytes, cx.view(1)?);
        let indices: Few<i64, 16> = match index.dtype {
            DType::I64 => index.slice::<i64>()?.iter().copied().collect(),
            _ => index.slice::<i32>()?.iter().map(|&i| i.into()).collect(),
        };
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        let places: Option<Few<usize, 16>> = indices
            .iter()
            .map(|&i| usize::try_from(if i < 0 { i + rows as i64 } else { i }).ok().filter(|&i| i < rows))
            .collect();
        let places = places.ok_or_else(|| {
            narrowbit_ir::OpError::Value(format!("an index is outside of [-{rows}, {rows}), the extent of axis {axis}"))
        })?;
        if outer == 1 {
            return Ok(gather_rows(exec, x, [rows, row], &places, y.bytes)?);
        }
        for o in 0..outer {
            for (k, &i) in places.iter().enumerate() {
                let (to, from) = ((o * places.len() + k) * row, (o * rows + i) * row);
                y.bytes[to..to + row].copy_from_slice(&x[from..from + row]);
            }
        }
        Ok(())
    });
    Some(Built { kernel, ins: vec![x, indices], outs: vec![y] })
}

/// One element of each line along an axis, by an index for each element of the result.
fn gather_elements(cx: &BuildCx) -> Option<Built> {
    let (x, indices, y) = (cx.node.input(0)?, cx.node.input(1)?, cx.node.output(0)?);
    let (from, index) = (cx.ty(0)?, cx.ty(1)?);
    let axis = shape::axis(cx.int("axis", 0), from.shape.len())?;
    let (&inner, lead) = index.shape.split_last()?;
    let fits = (0..from.shape.len()).all(|a| a == axis || index.shape.get(a).is_some_and(|&n| n <= from.shape[a]));
    if !fits || index.shape.len() != from.shape.len() || !matches!(index.dtype, DType::I64 | DType::I32) {
        return None;
    }
    let strides = shape::strides(&from.shape);
    let last_stride = if axis + 1 == from.shape.len() { 0 } else { 1 };
    let along = (from.shape[axis], strides[axis]);
    let steps: Vec<usize> = strides.iter().enumerate().map(|(a, &s)| if a == axis { 0 } else { s }).collect();
    // Where the lines of the indices start in `x`.
    let starts: Vec<usize> = shape::offsets(lead, &steps[..lead.len()]).collect();
    let kernel = simple("gather_elements", move |cx| {
        let (x, index) = (cx.view(0)?.bytes, cx.view(1)?);
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        let lines = Lines { starts: &starts, inner, last_stride, along };
        match index.dtype {
            DType::I64 => by_width!(from.dtype, take(x, index.slice::<i64>()?, &lines, y.bytes)),
            _ => by_width!(from.dtype, take_i32(x, index.slice::<i32>()?, &lines, y.bytes)),
        }
    });
    Some(Built { kernel, ins: vec![x, indices], outs: vec![y] })
}

/// Lines of `inner` indices each; an index goes along an axis of so many elements in steps of so many.
struct Lines<'a> {
    starts: &'a [usize],
    inner: usize,
    last_stride: usize,
    along: (usize, usize),
}

fn take_i32<T: Word>(x: &[u8], indices: &[i32], lines: &Lines, y: &mut [u8]) -> Result<(), StepError> {
    let wide: Few<i64, 16> = indices.iter().map(|&i| i.into()).collect();
    take::<T>(x, &wide, lines, y)
}

fn take<T: Word>(x: &[u8], indices: &[i64], lines: &Lines, y: &mut [u8]) -> Result<(), StepError> {
    let (x, y): (&[T], &mut [T]) = (bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y));
    let (len, stride) = lines.along;
    if lines.inner == 0 {
        return Ok(());
    }
    let rows = indices.chunks_exact(lines.inner).zip(y.chunks_exact_mut(lines.inner));
    for ((indices, y), &start) in rows.zip(lines.starts) {
        for (j, (&i, y)) in indices.iter().zip(y).enumerate() {
            let place = usize::try_from(if i < 0 { i + len as i64 } else { i }).ok().filter(|&i| i < len);
            let element = place.and_then(|i| x.get(start + i * stride + j * lines.last_stride));
            *y = *element.ok_or_else(|| {
                narrowbit_ir::OpError::Value(format!("index {i} is outside of [-{len}, {len}), the extent of its axis"))
            })?;
        }
    }
    Ok(())
}
