//! Functions of one or two float tensors.

use narrowbit_kernels::elementwise::{BinaryOp, UnaryOp, binary, binary_assign, unary, unary_in_place};
use narrowbit_tensor::DType;

use super::Maybe;
use crate::kernel::{BuildCx, Built, in_place, simple};

/// The kernel of an elementwise operator.
pub fn build(cx: &BuildCx) -> Maybe {
    if cx.f32_out().is_none() || cx.node.outputs.len() != 1 {
        return Ok(None);
    }
    if let Some(op) = unary_op(cx) {
        return Ok(one(cx, op));
    }
    Ok(match binary_op(cx.node.op.name()) {
        Some(op) if cx.node.inputs.len() == 2 => two(cx, op),
        Some(op) if cx.node.inputs.len() == 1 && op != BinaryOp::Sub => copy(cx),
        _ => None,
    })
}

pub(super) fn unary_op(cx: &BuildCx) -> Option<UnaryOp> {
    let op = |op| Some(op);
    match cx.node.op.name() {
        "Exp" => op(UnaryOp::Exp),
        "Log" => op(UnaryOp::Log),
        "Erf" => op(UnaryOp::Erf),
        "Elu" => op(UnaryOp::Elu { alpha: cx.float("alpha", 1.0) }),
        "Softplus" => op(UnaryOp::Softplus),
        "Softsign" => op(UnaryOp::Softsign),
        "Mish" => op(UnaryOp::Mish),
        "Sqrt" => op(UnaryOp::Sqrt),
        "Reciprocal" => op(UnaryOp::Reciprocal),
        "Neg" => op(UnaryOp::Neg),
        "Abs" => op(UnaryOp::Abs),
        "Floor" => op(UnaryOp::Floor),
        "Ceil" => op(UnaryOp::Ceil),
        "Round" => op(UnaryOp::Round),
        "Sign" => op(UnaryOp::Sign),
        "Pow" => {
            let square = cx.constant(1).filter(|t| t.len() == 1)?.to_f64s().ok()? == [2.0];
            (square && cx.f32_shape(0) == cx.f32_out()).then_some(UnaryOp::Square)
        }
        _ => {
            let known = |v| (cx.consts)(v);
            crate::fuse::activation(cx.node, &known).map(UnaryOp::Activation)
        }
    }
}

fn one(cx: &BuildCx, op: UnaryOp) -> Option<Built> {
    let (x, y) = (cx.node.input(0)?, cx.node.output(0)?);
    if cx.f32_shape(0)? != cx.f32_out()? {
        return None;
    }
    let kernel = in_place("unary_f32", move |cx| {
        if cx.is_in_place(0) {
            let exec = cx.exec;
            unary_in_place(exec, op, cx.out_f32s()?);
            return Ok(());
        }
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        Ok(unary(exec, op, x, cx.out_f32s()?)?)
    });
    let place = |v| if cx.is_channels_last(x) { (cx.channels_last)(v) } else { v };
    Some(Built { kernel, ins: vec![place(x)], outs: vec![place(y)] })
}

fn binary_op(name: &str) -> Option<BinaryOp> {
    Some(match name {
        "Add" | "Sum" => BinaryOp::Add,
        "Sub" => BinaryOp::Sub,
        "Mul" => BinaryOp::Mul,
        "Div" => BinaryOp::Div,
        "Min" => BinaryOp::Min,
        "Max" => BinaryOp::Max,
        "Pow" => BinaryOp::Pow,
        "PRelu" => BinaryOp::PRelu,
        _ => return None,
    })
}

fn two(cx: &BuildCx, op: BinaryOp) -> Option<Built> {
    let (a, b, y) = (cx.node.input(0)?, cx.node.input(1)?, cx.node.output(0)?);
    let (sa, sb, sy) = (cx.f32_shape(0)?, cx.f32_shape(1)?, cx.f32_out()?);
    if sy.len() > 8 {
        return None;
    }
    let whole = |s: &[usize]| s == sy.as_slice();
    let images = match (whole(&sa), whole(&sb)) {
        (true, false) if cx.is_channels_last(a) => by_image(&sy, &sb).map(|s| (last(&sy), s, 0)),
        (false, true) if cx.is_channels_last(b) => by_image(&sy, &sa).map(|s| (s, last(&sy), 1)),
        _ => None,
    };
    if let Some((sa, sb, large)) = images {
        let sy = last(&sy);
        let kernel = simple("binary_f32", move |cx| {
            let (exec, a, b) = (cx.exec, cx.f32s(0)?, cx.f32s(1)?);
            Ok(binary(exec, op, (a, &sa), (b, &sb), (cx.out_f32s()?, &sy))?)
        });
        let mut ins = vec![a, b];
        ins[large] = (cx.channels_last)(ins[large]);
        return Some(Built { kernel, ins, outs: vec![(cx.channels_last)(y)] });
    }
    let run = move |cx: &mut crate::kernel::RunCx| {
        let (exec, b) = (cx.exec, cx.f32s(1)?);
        if cx.is_in_place(0) {
            return Ok(binary_assign(exec, op, (cx.out_f32s()?, &sy), (b, &sb))?);
        }
        let a = cx.f32s(0)?;
        Ok(binary(exec, op, (a, &sa), (b, &sb), (cx.out_f32s()?, &sy))?)
    };
    let kernel = if cx.f32_shape(0) == cx.f32_out() { in_place("binary_f32", run) } else { simple("binary_f32", run) };
    let alike = cx.f32_shape(0) == cx.f32_shape(1) && !cx.is_constant(0) && !cx.is_constant(1);
    let scalar = cx.f32_shape(1)?.iter().product::<usize>() == 1 && cx.f32_shape(0) == cx.f32_out();
    let (last, ins): (bool, &[_]) = match () {
        _ if alike => (cx.is_channels_last(a) || cx.is_channels_last(b), &[true, true]),
        _ if scalar => (cx.is_channels_last(a), &[true, false]),
        _ => (false, &[]),
    };
    let place = |v, moves: bool| if last && moves { (cx.channels_last)(v) } else { v };
    let moves = |i: usize| ins.get(i).copied().unwrap_or(false);
    Some(Built { kernel, ins: vec![place(a, moves(0)), place(b, moves(1))], outs: vec![place(y, true)] })
}

/// A shape with its second axis last.
fn last(dims: &[usize]) -> Vec<usize> {
    let mut dims = dims.to_vec();
    dims[1..].rotate_left(1);
    dims
}

/// The shape, with channels last, of an operand that has one element for each channel, or fewer: it stands in memory as it
/// would in either layout.
fn by_image(full: &[usize], dims: &[usize]) -> Option<Vec<usize>> {
    let mut all = vec![1; full.len().checked_sub(dims.len())?];
    all.extend(dims);
    (full.len() > 2 && all[2..].iter().all(|&d| d == 1)).then(|| last(&all))
}

/// Sum, Min and Max of one tensor are that tensor.
fn copy(cx: &BuildCx) -> Option<Built> {
    let (x, y) = (cx.node.input(0)?, cx.node.output(0)?);
    let same = cx.ty(0)? == cx.out(0)? && cx.ty(0)?.dtype == DType::F32;
    let kernel = simple("copy", |cx| {
        let x = cx.f32s(0)?;
        cx.out_f32s()?.copy_from_slice(x);
        Ok(())
    });
    same.then_some(Built { kernel, ins: vec![x], outs: vec![y] })
}
