//! Pad of elements of any width.

use narrowbit_kernels::Exec;
use narrowbit_kernels::movement::{Element, Padding, Places, pad, pick};
use narrowbit_ops::tensor::pad::{Pad, PadMode};
use narrowbit_tensor::Tensor;

use super::Maybe;
use crate::error::StepError;
use crate::kernel::{BuildCx, Built, Concrete, simple};

/// Entries of all tables of a Pad; beyond, they would be large beside the tensor.
const MAX_PLACES: usize = 1 << 24;

/// The kernel of a Pad with constant pads, in the layout that the input has.
pub fn build(cx: &BuildCx) -> Maybe {
    Ok(padded(cx))
}

/// Where the elements of the result come from.
enum Plan {
    /// The input with one value around it.
    Around(Vec<Padding>),
    /// By a table for each axis: parts that are cut off, or elements that stand twice.
    Tables(Vec<Places>),
}

fn padded(cx: &BuildCx) -> Option<Built> {
    let (x, y, ty, out) = (cx.node.input(0)?, cx.node.output(0)?, cx.ty(0)?, cx.out(0)?);
    let op = cx.node.op.downcast::<Pad>().filter(|op| op.value.is_none())?;
    let bits = ty.dtype.bits();
    if !matches!(bits, 8 | 16 | 32 | 64) || out.dtype != ty.dtype {
        return None;
    }
    // Axes that are computed would pass for absent ones.
    let known = |i: usize| cx.node.input(i).is_none() || cx.is_constant(i);
    let pads = op.sides(ty.shape.len(), &|i| cx.constant(i)).ok()?.filter(|_| known(3))?;
    let last = cx.is_channels_last(x);
    let mut plan = plan(op.mode, &pads, &ty, &out)?;
    if last {
        match &mut plan {
            Plan::Around(axes) => axes[1..].rotate_left(1),
            Plan::Tables(axes) => axes[1..].rotate_left(1),
        }
    }
    let place = |v| if last { (cx.channels_last)(v) } else { v };
    let mut ins = vec![place(x)];
    let value = match cx.node.input(2).filter(|_| op.mode == PadMode::Constant) {
        None => Some(Tensor::zeros(ty.dtype, [1]).ok()?),
        Some(v) => {
            cx.ty(2).filter(|t| t.len() == 1 && t.dtype == ty.dtype)?;
            let value = cx.constant(2);
            ins.extend(value.is_none().then_some(v));
            value
        }
    };
    let value = value.map(|t| t.bytes().to_vec());
    let kernel = simple("pad", move |cx| {
        let (exec, x) = (cx.exec, cx.view(0)?.bytes);
        let value = match &value {
            Some(known) => known.as_slice(),
            None => cx.view(1)?.bytes,
        };
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        match bits {
            8 => run::<u8>(exec, x, &plan, value, y.bytes),
            16 => run::<u16>(exec, x, &plan, value, y.bytes),
            32 => run::<u32>(exec, x, &plan, value, y.bytes),
            _ => run::<u64>(exec, x, &plan, value, y.bytes),
        }
    });
    Some(Built { kernel, ins, outs: vec![place(y)] })
}

fn plan(mode: PadMode, pads: &[(i64, i64)], from: &Concrete, to: &Concrete) -> Option<Plan> {
    let whole = from.shape.iter().zip(pads).map(|(&n, &(before, after))| {
        usize::try_from(i64::try_from(n).ok()?.checked_add(before)?.checked_add(after)?).ok()
    });
    if !whole.eq(to.shape.iter().map(|&d| Some(d))) {
        return None;
    }
    let around = |(&len, &(before, after)): (&usize, &(i64, i64))| {
        Some(Padding { len, before: usize::try_from(before).ok()?, after: usize::try_from(after).ok()? })
    };
    let axes: Option<Vec<Padding>> = from.shape.iter().zip(pads).map(around).collect();
    if let Some(axes) = axes.filter(|_| mode == PadMode::Constant) {
        return Some(Plan::Around(axes));
    }
    let places = to.shape.iter().fold(0usize, |n, &d| n.saturating_add(d));
    // Nothing can be copied from an axis without elements; the operator says so.
    if places > MAX_PLACES || mode != PadMode::Constant && from.shape.contains(&0) {
        return None;
    }
    let table = |((&n, &to), &(before, _)): ((&usize, &usize), &(i64, i64))| {
        let place = |i: usize| mode.place((i as i64).saturating_sub(before), n as i64).map(|p| p as usize);
        Places::new(n, (0..to).map(place)).ok()
    };
    from.shape.iter().zip(&to.shape).zip(pads).map(table).collect::<Option<_>>().map(Plan::Tables)
}

fn run<T: Element + bytemuck::Pod>(
    exec: &Exec,
    x: &[u8],
    plan: &Plan,
    value: &[u8],
    y: &mut [u8],
) -> Result<(), StepError> {
    let (x, y, value) =
        (bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y), bytemuck::pod_read_unaligned::<T>(value));
    match plan {
        Plan::Around(axes) => pad::<T>(exec, x, axes, value, y)?,
        Plan::Tables(axes) => pick::<T>(exec, x, axes, value, y)?,
    }
    Ok(())
}
