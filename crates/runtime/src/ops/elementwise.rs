//! Functions of one or two float tensors, and Where.

use narrowbit_kernels::elementwise::{BinaryOp, UnaryOp, binary, binary_assign, unary, unary_in_place};
use narrowbit_tensor::{DType, shape};

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
    if cx.node.op.name() == "Where" {
        return Ok(choice(cx));
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

/// Where, of floats: a pass over the result, line by line.
fn choice(cx: &BuildCx) -> Option<Built> {
    let ins = [cx.node.input(0)?, cx.node.input(1)?, cx.node.input(2)?];
    let flags = cx.ty(0).filter(|t| t.dtype == DType::Bool)?.shape;
    let (x, y, dims) = (cx.f32_shape(1)?, cx.f32_shape(2)?, cx.f32_out()?);
    let (&columns, lines) = dims.split_last()?;
    let lines = lines.to_vec();
    let strides = [flags, x, y].map(|of| shape::broadcast_strides(&of, &dims));
    let kernel = simple("where_f32", move |cx| {
        let (flags, x, y) = (cx.view(0)?.bytes, cx.f32s(1)?, cx.f32s(2)?);
        let along = [0, 1, 2].map(|i| strides[i].last().copied().unwrap_or(0));
        let out = cx.out_f32s()?;
        for (i, line) in out.chunks_exact_mut(columns.max(1)).enumerate() {
            let [c, a, b] = [0, 1, 2].map(|operand| offset(i, &lines, &strides[operand]));
            for (j, to) in line.iter_mut().enumerate() {
                let chosen = flags[c + j * along[0]] != 0;
                *to = if chosen { x[a + j * along[1]] } else { y[b + j * along[2]] };
            }
        }
        Ok(())
    });
    Some(Built { kernel, ins: ins.to_vec(), outs: vec![cx.node.output(0)?] })
}

/// Where line `i` of a result starts in an operand with these steps.
fn offset(mut i: usize, lines: &[usize], strides: &[usize]) -> usize {
    let mut at = 0;
    for (&extent, &stride) in lines.iter().zip(strides).rev() {
        at += i % extent * stride;
        i /= extent;
    }
    at
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
