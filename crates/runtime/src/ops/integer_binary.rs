//! Sums, differences and products of quantized tensors.

use narrowbit_ir::ValueId;
use narrowbit_kernels::elementwise::BinaryOp;
use narrowbit_kernels::integer::{Broadcast, Quant, binary};

use super::finish::target;
use super::integer::quant;
use crate::error::StepError;
use crate::fuse::{Fusion, Ints};
use crate::kernel::{BuildCx, Built, RunCx};
use crate::lower::{self, Quantized};

/// An operand of an elementwise function: where it stands, or what it is.
enum Side {
    Ints(Quantized),
    Floats(ValueId),
    Constant(Vec<f32>),
}

impl Side {
    fn value(&self) -> Option<ValueId> {
        match self {
            Side::Ints(q) => Some(q.value),
            Side::Floats(v) => Some(*v),
            Side::Constant(_) => None,
        }
    }

    /// Adds the operand to those of the kernel.
    fn push(&self, ins: &mut Vec<ValueId>, place: &dyn Fn(ValueId) -> ValueId) {
        ins.extend(self.value().map(place));
    }

    fn read<'a>(&'a self, cx: &RunCx<'a>, i: usize) -> Result<Quant<'a>, StepError> {
        match self {
            Side::Ints(q) => quant(cx, i, q.params),
            Side::Floats(_) => Ok(Quant::F32(cx.f32s(i)?)),
            Side::Constant(values) => Ok(Quant::F32(values)),
        }
    }
}

fn side(cx: &BuildCx, i: usize, q: Option<Quantized>) -> Option<Side> {
    Some(match q {
        Some(q) => Side::Ints(q),
        None if cx.is_constant(i) => Side::Constant(cx.floats(i)?),
        None => Side::Floats(cx.node.input(i)?),
    })
}

/// A sum, difference or product in the layout that the operands have: both of one shape, one a constant that
/// repeats over the other, or one with an element for each image and channel.
pub fn build(cx: &BuildCx, f: &Fusion, ints: &Ints) -> Option<Built> {
    let &[a, b] = ints.operands.as_slice() else { return None };
    let (mut a, mut b, out) = (side(cx, 0, a)?, side(cx, 1, b)?, f.output?);
    let op = match cx.node.op.name() {
        "Add" => BinaryOp::Add,
        "Sub" => BinaryOp::Sub,
        "Mul" => BinaryOp::Mul,
        _ => return None,
    };
    let (shape_a, shape_b, y) = (cx.ty(0)?.shape, cx.ty(1)?.shape, cx.out(0)?.shape);
    let last = [&a, &b].iter().any(|s| s.value().is_some_and(|v| cx.is_channels_last(v)));
    let mut small = shape_b;
    if shape_a != y {
        (a, b, small) = (b, a, shape_a);
    }
    let by_image = small != y && lower::is_by_image(&y, &small);
    let last = if by_image { a.value().is_some_and(|v| cx.is_channels_last(v)) } else { last };
    let broadcast = match (&b, lower::spread(&y, &small)) {
        _ if small == y && !(last && matches!(b, Side::Constant(_))) => Broadcast::Same,
        (Side::Constant(_), Some(axis)) if axis == y.len() => Broadcast::Scalar,
        (Side::Constant(_), Some(axis)) if !last => repeated(&y, axis),
        (Side::Constant(_), Some(1)) => {
            Broadcast::Axis { outer: y.iter().product::<usize>() / y[1].max(1), axis: y[1], inner: 1 }
        }
        (Side::Ints(_) | Side::Floats(_), _) if by_image => by_images(&y, last),
        _ => return None,
    };
    let mut ins = Vec::new();
    let place = |v: ValueId| if last { (cx.channels_last)(v) } else { v };
    // One pixel: both layouts are the same.
    let either = |v: ValueId| if cx.is_channels_last(v) { (cx.channels_last)(v) } else { v };
    a.push(&mut ins, &place);
    b.push(&mut ins, if by_image { &either } else { &place });
    let (activation, output) = (f.activation, ints.output);
    let kernel = crate::kernel::simple("binary_i8", move |cx| {
        let (exec, left, right) = (cx.exec, a.read(cx, 0)?, b.read(cx, 1)?);
        Ok(binary(exec, op, left, right, broadcast, activation, target(output, cx)?)?)
    });
    Some(Built { kernel, ins, outs: vec![place(out)] })
}

/// An element for each image and channel.
fn by_images(y: &[usize], last: bool) -> Broadcast {
    let (n, channels, pixels) = (y[0], y[1], y[2..].iter().product());
    match last {
        true => Broadcast::Images { n, pixels, channels },
        false => Broadcast::Axis { outer: 1, axis: n * channels, inner: pixels },
    }
}

/// A vector that goes along an axis.
fn repeated(y: &[usize], axis: usize) -> Broadcast {
    Broadcast::Axis { outer: y[..axis].iter().product(), axis: y[axis], inner: y[axis + 1..].iter().product() }
}
