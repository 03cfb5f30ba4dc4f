//! Pad with one value, of elements of any width.

use narrowbit_kernels::Exec;
use narrowbit_kernels::movement::{Element, Padding, pad};
use narrowbit_ops::tensor::pad::{Pad, PadMode};
use narrowbit_tensor::Tensor;

use super::Maybe;
use crate::error::StepError;
use crate::kernel::{BuildCx, Built, simple};

/// The kernel of a Pad with constant pads that cut nothing off, in the layout that the input has.
pub fn build(cx: &BuildCx) -> Maybe {
    Ok(padded(cx))
}

fn padded(cx: &BuildCx) -> Option<Built> {
    let (x, y, ty, out) = (cx.node.input(0)?, cx.node.output(0)?, cx.ty(0)?, cx.out(0)?);
    let op = cx.node.op.downcast::<Pad>().filter(|op| op.mode == PadMode::Constant)?;
    // Axes that are computed would pass for absent ones.
    let known = |i: usize| cx.node.input(i).is_none() || cx.is_constant(i);
    let pads = op.sides(ty.shape.len(), &|i| cx.constant(i)).ok()?.filter(|_| known(3))?;
    let axis = |(&len, (before, after)): (&usize, (i64, i64))| {
        Some(Padding { len, before: usize::try_from(before).ok()?, after: usize::try_from(after).ok()? })
    };
    let mut axes: Vec<Padding> = ty.shape.iter().zip(pads).map(axis).collect::<Option<_>>()?;
    let whole = axes.iter().map(|a| a.len.checked_add(a.before)?.checked_add(a.after));
    if !whole.eq(out.shape.iter().map(|&d| Some(d))) || out.dtype != ty.dtype {
        return None;
    }
    let value = match cx.node.input(2) {
        None => Tensor::zeros(ty.dtype, [1]).ok()?,
        Some(_) => cx.constant(2).filter(|t| t.len() == 1 && t.dtype() == ty.dtype)?,
    };
    let last = cx.is_channels_last(x);
    if last {
        axes[1..].rotate_left(1);
    }
    let (bits, value) = (ty.dtype.bits(), value.bytes().to_vec());
    let kernel = simple("pad", move |cx| {
        let (exec, x) = (cx.exec, cx.view(0)?.bytes);
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        match bits {
            8 => run::<u8>(exec, x, &axes, &value, y.bytes),
            16 => run::<u16>(exec, x, &axes, &value, y.bytes),
            32 => run::<u32>(exec, x, &axes, &value, y.bytes),
            _ => run::<u64>(exec, x, &axes, &value, y.bytes),
        }
    });
    let place = |v| if last { (cx.channels_last)(v) } else { v };
    let fits = matches!(bits, 8 | 16 | 32 | 64) && op.value.is_none();
    fits.then(|| Built { kernel, ins: vec![place(x)], outs: vec![place(y)] })
}

fn run<T: Element + bytemuck::Pod>(
    exec: &Exec,
    x: &[u8],
    axes: &[Padding],
    value: &[u8],
    y: &mut [u8],
) -> Result<(), StepError> {
    let value = bytemuck::pod_read_unaligned::<T>(value);
    Ok(pad::<T>(exec, bytemuck::cast_slice(x), axes, value, bytemuck::cast_slice_mut(y))?)
}
