//! Operators on codes that have an arithmetic of their own: sums, products, softmax and means of QLinear form.

use narrowbit_ir::ValueId;
use narrowbit_kernels::integer::{
    CodeFormat, CodeOp, CodePair, Divisor, PoolNhwcParams, avg_pool2d_nhwc, qlinear_binary, softmax_codes,
};
use narrowbit_ops::microsoft::qlinear_pool::Pool;
use narrowbit_ops::microsoft::qlinear_softmax::{QLinearSoftmax, exponentials, steps_of_one};
use narrowbit_tensor::{DType, shape};

use super::finish::target;
use super::integer::quant;
use crate::kernel::{BuildCx, Built, simple};
use crate::lower::{self, CodeBinary, QParams};
use crate::view::View;

/// How an operand repeats over a result: the result is `outer` times runs of `run` elements; each time, runs meet in turn
/// what the operand holds of as many elements, or single ones.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Repeat {
    outer: usize,
    run: usize,
    single: bool,
}

/// How a tensor of shape `x` repeats over one of shape `y`: behind leading axes that both have, along one stretch of axes.
fn repeat(y: &[usize], x: &[usize]) -> Option<Repeat> {
    let x: Vec<usize> = std::iter::repeat_n(1, y.len().checked_sub(x.len())?).chain(x.iter().copied()).collect();
    let both = (0..y.len()).take_while(|&i| x[i] == y[i]).count();
    (0..=both).find_map(|lead| {
        let (run, single) = stretch(&y[lead..], &x[lead..])?;
        Some(Repeat { outer: y[..lead].iter().product(), run, single })
    })
}

/// The length of a run, and whether each meets a single element, where all axes of `x` but one stretch are 1.
fn stretch(y: &[usize], x: &[usize]) -> Option<(usize, bool)> {
    let count = |dims: &[usize]| dims.iter().product::<usize>();
    let Some(first) = x.iter().position(|&d| d != 1) else { return Some((count(y), true)) };
    let end = (first..y.len()).find(|&i| x[i] != y[i]).unwrap_or(y.len());
    let single = end < y.len();
    let run = count(&y[if single { end } else { first }..]);
    x[end..].iter().all(|&d| d == 1).then_some((run, single))
}

/// Codes of an operand: in memory, or constant.
enum Codes {
    At(ValueId),
    Constant(Vec<u8>),
}

impl Codes {
    fn read<'a>(&'a self, view: Option<View<'a>>) -> &'a [u8] {
        match (self, view) {
            (Codes::Constant(bytes), _) => bytes,
            (_, Some(view)) => view.bytes,
            _ => &[],
        }
    }
}

/// Channels behind what they have before.
fn to_back(dims: &[usize]) -> Vec<usize> {
    let mut dims = dims.to_vec();
    if dims.len() > 2 {
        dims[1..].rotate_left(1);
    }
    dims
}

/// QLinearAdd and QLinearMul of tensors of which one has the result's shape.
pub(super) fn binary(cx: &BuildCx) -> Option<Built> {
    let found = lower::code_binary(cx.facts, cx.node)?;
    let (y, out) = (cx.out(0)?, cx.node.output(0)?);
    let of = |i: usize| (cx.types)(found.operands[i].0).map(|t| t.shape);
    let shapes = [of(0)?, of(1)?];
    let swapped = shapes[0] != y.shape;
    let (all, part) = (usize::from(swapped), usize::from(!swapped));
    if shapes[all] != y.shape {
        return None;
    }
    let codes = |i: usize| match (cx.consts)(found.operands[i].0) {
        Some(t) => Codes::Constant(t.bytes().to_vec()),
        None => Codes::At(found.operands[i].0),
    };
    let (whole, small) = (codes(all), codes(part));
    let is_last = |c: &Codes| matches!(c, Codes::At(v) if cx.is_channels_last(*v));
    // A constant stands with its channels first: that is the same where it has one pixel.
    let movable = |c: &Codes, dims: &[usize]| {
        let padded = y.shape.len() == dims.len() && dims.iter().skip(2).all(|&d| d == 1);
        matches!(c, Codes::At(_)) && dims.len() == y.shape.len() || padded || dims.iter().all(|&d| d == 1)
    };
    let last =
        [&whole, &small].into_iter().any(is_last) && movable(&whole, &shapes[all]) && movable(&small, &shapes[part]);
    let dims = |s: &[usize]| {
        let padded: Vec<usize> = std::iter::repeat_n(1, y.shape.len() - s.len()).chain(s.iter().copied()).collect();
        if last { to_back(&padded) } else { padded }
    };
    let fits = shapes[part].len() <= y.shape.len();
    let repeat = fits.then(|| repeat(&dims(&y.shape), &dims(&shapes[part])))??;
    let place = |v: ValueId| if last { (cx.channels_last)(v) } else { v };
    let ins: Vec<ValueId> = [&whole, &small]
        .into_iter()
        .filter_map(|c| if let Codes::At(v) = c { Some(place(*v)) } else { None })
        .collect();
    let (op, signed) = (code_op(cx, &found), y.dtype == DType::I8);
    let kernel = simple("qlinear_binary_i8", move |cx| {
        let small_at = usize::from(matches!(whole, Codes::At(_)));
        let [first, second] = [0, small_at].map(|i| cx.ins.get(i).copied().flatten());
        let (exec, all, part) = (cx.exec, whole.read(first), small.read(second));
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        let (per, per_part) = (y.bytes.len() / repeat.outer.max(1), part.len() / repeat.outer.max(1));
        for (i, y) in y.bytes.chunks_mut(per.max(1)).enumerate() {
            let all = all.get(i * per..(i + 1) * per).unwrap_or_default();
            let part = part.get(i * per_part..(i + 1) * per_part).unwrap_or_default();
            let pair = CodePair { all, part, run: repeat.run, single: repeat.single, swapped, signed };
            qlinear_binary(exec, op, &pair, y)?;
        }
        Ok(())
    });
    Some(Built { kernel, ins, outs: vec![place(out)] })
}

/// The arithmetic of the node, in the order of ONNX Runtime.
fn code_op(cx: &BuildCx, found: &CodeBinary) -> CodeOp {
    let [(_, a), (_, b)] = found.operands;
    if cx.node.op.name() == "QLinearAdd" {
        let (ratios, fixed) = found.sum();
        return CodeOp::Add { ratios, fixed };
    }
    let ratio = a.scale * b.scale / found.output.scale;
    CodeOp::Mul { zeros: [a.zero, b.zero], ratio, zero: found.output.zero as f32 }
}

/// The formats of a function's operand and result, at inputs 1 and 3.
fn formats(cx: &BuildCx) -> Option<(QParams, QParams)> {
    let dtype = cx.ty(0)?.dtype;
    Some((lower::params_at(cx.facts, cx.node, 1, dtype)?, lower::params_at(cx.facts, cx.node, 3, dtype)?))
}

/// QLinearSoftmax along the last axis, or the last ones.
pub(super) fn softmax(cx: &BuildCx) -> Option<Built> {
    let op = cx.node.op.downcast::<QLinearSoftmax>()?;
    let (dims, (from, to)) = (cx.ty(0)?.shape, formats(cx)?);
    let (x, y) = (cx.node.input(0)?, cx.node.output(0)?);
    let rows_span = op.opset < 13;
    let axis = shape::axis(op.axis.unwrap_or(if rows_span { 1 } else { -1 }), dims.len())?;
    let columns: usize = dims[axis..].iter().product();
    if columns == 0 || !rows_span && dims[axis + 1..].iter().any(|&d| d != 1) {
        return None;
    }
    let shape = [dims[..axis].iter().product(), columns];
    let table: [f32; 256] = exponentials(from.scale, columns).try_into().ok()?;
    let format = CodeFormat { signed: from.dtype == DType::I8, steps: steps_of_one(to.scale), zero: to.zero };
    let kernel = simple("softmax_codes_i8", move |cx| {
        let (exec, x) = (cx.exec, cx.view(0)?.bytes);
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        Ok(softmax_codes(exec, x, shape, &table, format, y.bytes)?)
    });
    Some(Built { kernel, ins: vec![x], outs: vec![y] })
}

/// QLinearGlobalAveragePool: `round(sum · (scale_x / (scale_y · pixels)))`.
pub(super) fn global_average_pool(cx: &BuildCx) -> Option<Built> {
    let Pool::GlobalAverage { channels_last } = cx.node.op.downcast::<Pool>()? else { return None };
    let (x, y, (from, to)) = (cx.node.input(0)?, cx.node.output(0)?, formats(cx)?);
    let mut dims = cx.ty(0)?.shape;
    if *channels_last && dims.len() > 2 {
        dims[1..].rotate_right(1);
    }
    let image @ [_, pixels, _] = super::pool::image(&dims)?;
    if image.contains(&0) {
        return None;
    }
    let p = PoolNhwcParams::whole(image);
    let from = QParams { scale: from.scale / (to.scale * pixels as f32), ..from };
    let to = QParams { scale: 1.0, ..to };
    let kernel = simple("average_pool_nhwc_i8", move |cx| {
        let (exec, x) = (cx.exec, quant(cx, 0, from)?);
        Ok(avg_pool2d_nhwc(exec, &p, Divisor::One, x, target(Some(to), cx)?)?)
    });
    // One pixel: both layouts of the result are the same.
    let x = if *channels_last { x } else { (cx.channels_last)(x) };
    Some(Built { kernel, ins: vec![x], outs: vec![y] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_how_an_operand_repeats() {
        let of = |outer, run, single| Some(Repeat { outer, run, single });
        assert_eq!(repeat(&[2, 3, 4], &[2, 3, 4]), of(1, 24, false));
        assert_eq!(repeat(&[2, 3, 4], &[4]), of(1, 4, false));
        assert_eq!(repeat(&[2, 3, 4], &[]), of(1, 24, true));
        assert_eq!(repeat(&[2, 3, 4], &[1, 3, 1]), of(1, 4, true));
        assert_eq!(repeat(&[2, 3, 4, 4], &[2, 1, 4, 4]), of(2, 16, false));
        assert_eq!(repeat(&[1, 3, 4, 5], &[1, 1, 4, 5]), of(1, 20, false));
        assert_eq!(repeat(&[2, 3, 4, 5], &[2, 1, 4, 1]), of(2, 5, true));
        assert_eq!(repeat(&[2, 3, 4, 5], &[1, 3, 1, 5]), None);
        assert_eq!(repeat(&[2, 3], &[1, 2, 3]), None);
    }
}
