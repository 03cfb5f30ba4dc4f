//! Resize and Upsample: nearest of elements of any width, linear and cubic of floats and 8-bit integers.

use narrowbit_kernels::movement::{self, Sample, resample, resize_nearest};
use narrowbit_ops::tensor::resample::{Axis, Kernel, Method, Nearest, Taps, order};
use narrowbit_ops::tensor::resize::Resize;
use narrowbit_ops::tensor::upsample::Upsample;
use narrowbit_tensor::{DType, Element};

use super::Maybe;
use crate::error::StepError;
use crate::kernel::{BuildCx, Built, RunCx, simple};

/// Entries of a table at the most; a longer one would take more memory than the result.
const LONGEST: usize = 1 << 24;

/// The kernel of a resampling along at most two neighbouring axes, in the layout that the input has.
pub fn build(cx: &BuildCx) -> Maybe {
    Ok(resize(cx))
}

/// The axes and the method of a Resize or Upsample whose scales or sizes are constant.
fn sampling(cx: &BuildCx, shape: &[usize]) -> Option<(Vec<Axis>, Method)> {
    let input = |i: usize| cx.constant(i);
    if let Some(op) = cx.node.op.downcast::<Resize>() {
        return Some((op.sampling(shape, &input).ok()?, op.method));
    }
    let op = cx.node.op.downcast::<Upsample>()?;
    Some((op.sampling(shape, &input).ok()?, op.method()))
}

fn resize(cx: &BuildCx) -> Option<Built> {
    let (x, y, ty, out) = (cx.node.input(0)?, cx.node.output(0)?, cx.ty(0)?, cx.out(0)?);
    let (mut axes, method) = sampling(cx, &ty.shape)?;
    let fits = axes.iter().map(|a| a.to).eq(out.shape.iter().copied());
    if !fits || ty.len() == 0 || out.len() == 0 || axes.iter().any(|a| a.to > LONGEST) {
        return None;
    }
    // What leaves the model must be plain in the end: the smaller image changes its layout at less cost.
    let leaves = out.len() > ty.len() && cx.graph.outputs().contains(&y);
    let last = cx.is_channels_last(x) && !leaves;
    if last {
        axes[1..].rotate_left(1);
    }
    let kernel = match method.kernel {
        Kernel::Nearest(nearest) => select(&axes, &method, nearest, ty.dtype)?,
        _ => mix(&axes, &method, ty.dtype)?,
    };
    let place = |v| if last { (cx.channels_last)(v) } else { v };
    Some(Built { kernel, ins: vec![place(x)], outs: vec![place(y)] })
}

/// The images of a tensor `[planes, h, w, c]` of which only `h` and `w` change, and which axes these are: the first alone
/// where it changes alone and is not the last one. `None` where other axes change.
fn images(axes: &[Axis], changes: &[bool]) -> Option<([usize; 4], [Option<usize>; 2])> {
    let count = |axes: &[Axis]| axes.iter().map(|a| a.from).product::<usize>();
    let first = changes.iter().position(|&c| c)?;
    let end = changes.iter().rposition(|&c| c)? + 1;
    let (planes, behind) = (count(&axes[..first]), count(&axes[end..]));
    match end - first {
        1 if end == axes.len() => Some(([planes, 1, axes[first].from, 1], [None, Some(first)])),
        1 => Some(([planes, axes[first].from, 1, behind], [Some(first), None])),
        2 => Some(([planes, axes[first].from, axes[first + 1].from, behind], [Some(first), Some(first + 1)])),
        _ => None,
    }
}

/// The kernel that takes single elements.
fn select(axes: &[Axis], method: &Method, nearest: Nearest, dtype: DType) -> Option<Box<dyn crate::kernel::Kernel>> {
    let mut tables: Vec<Vec<usize>> = axes.iter().map(|a| a.places(method, nearest)).collect::<Option<_>>()?;
    let same = |(table, axis): (&Vec<usize>, &Axis)| table.len() == axis.from && table.iter().copied().eq(0..axis.from);
    let mut changes: Vec<bool> = tables.iter().zip(axes).map(|p| !same(p)).collect();
    if !changes.contains(&true) {
        // A copy is one as well.
        *changes.last_mut()? = true;
    }
    let (shape, places) = images(axes, &changes)?;
    let [rows, columns] = places.map(|a| a.map_or_else(|| vec![0], |a| std::mem::take(&mut tables[a])));
    let run = move |cx: &mut RunCx| {
        let (exec, x) = (cx.exec, cx.view(0)?.bytes);
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        macro_rules! run {
            ($t:ty) => {{
                let (x, y) = (bytemuck::cast_slice::<u8, $t>(x), bytemuck::cast_slice_mut(y.bytes));
                resize_nearest(exec, x, shape, &rows, &columns, y)?
            }};
        }
        match dtype.bits() {
            8 => run!(u8),
            16 => run!(u16),
            32 => run!(u32),
            _ => run!(u64),
        }
        Ok(())
    };
    matches!(dtype.bits(), 8 | 16 | 32 | 64).then(|| simple("resize_nearest", run))
}

/// The kernel that mixes elements.
fn mix(axes: &[Axis], method: &Method, dtype: DType) -> Option<Box<dyn crate::kernel::Kernel>> {
    if axes.iter().any(|a| a.most_taps(method) > LONGEST as f64) {
        return None;
    }
    let mut taps: Vec<Taps> = axes.iter().map(|a| Taps::new(a, method)).collect();
    let sequence = order(axes, &taps);
    if sequence.is_empty() && !taps.iter().any(Taps::leaves_input) {
        return Some(simple("copy", |cx| {
            let x = cx.view(0)?.bytes;
            cx.outs.iter_mut().for_each(|y| y.bytes.copy_from_slice(x));
            Ok(())
        }));
    }
    let changes: Vec<bool> = (0..axes.len()).map(|a| sequence.contains(&a)).collect();
    let (shape, places) = images(axes, &changes)?;
    if taps.iter().any(Taps::leaves_input) {
        return None;
    }
    let columns_first = places[1].is_some() && sequence.first() == places[1].as_ref();
    let one = || Taps::new(&Axis { from: 1, to: 1, scale: 1.0, roi: (0.0, 1.0) }, method);
    let mut take = |a: Option<usize>| a.map_or_else(one, |a| std::mem::replace(&mut taps[a], one()));
    let (rows, columns) = (take(places[0]), take(places[1]));
    let plan = Plan { shape, rows, columns, columns_first, round: method.antialias };
    match dtype {
        DType::F32 => Some(simple("resize_f32", move |cx| plan.run::<f32>(cx))),
        DType::U8 => Some(simple("resize_u8", move |cx| plan.run::<u8>(cx))),
        DType::I8 => Some(simple("resize_i8", move |cx| plan.run::<i8>(cx))),
        _ => None,
    }
}

/// A resampling with the tables that it owns.
struct Plan {
    shape: [usize; 4],
    rows: Taps,
    columns: Taps,
    columns_first: bool,
    round: bool,
}

impl Plan {
    fn run<T: Sample + Element>(&self, cx: &mut RunCx) -> Result<(), StepError> {
        fn view(t: &Taps) -> movement::Taps<'_> {
            movement::Taps { starts: &t.starts, index: &t.index, weight: &t.weight }
        }
        let p = movement::Resample {
            shape: self.shape,
            rows: view(&self.rows),
            columns: view(&self.columns),
            columns_first: self.columns_first,
            round: self.round,
        };
        let (exec, x) = (cx.exec, cx.view(0)?.slice::<T>()?);
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        Ok(resample(exec, &p, x, y.slice::<T>()?)?)
    }
}
