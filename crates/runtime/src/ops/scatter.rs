//! Rows at places that indices name: ScatterElements, ScatterND and GatherND.

use narrowbit_ir::{OpError, ValueId};
use narrowbit_kernels::movement::{Combine, Element, combine_rows, gather_rows, overwrite_rows};
use narrowbit_kernels::{Exec, with_scratch_bytes};
use narrowbit_ops::tensor::gather_nd::GatherNd;
use narrowbit_ops::tensor::scatter::Reduction;
use narrowbit_ops::tensor::scatter_elements::ScatterElements;
use narrowbit_ops::tensor::scatter_nd::ScatterNd;
use narrowbit_tensor::{DType, shape};

use super::Maybe;
use crate::error::StepError;
use crate::kernel::{BuildCx, Built, Kernel, RunCx};
use crate::view::View;

/// What rows the indices name.
enum Places {
    /// Each tuple of indices one: the extent and the step in rows of each of its axes. Batches of so many tuples count from
    /// so many rows further each.
    Tuples { axes: Vec<(usize, usize)>, batch: (usize, usize) },
    /// Each index one along an axis of an extent and a step in rows. They stand in lines of so many, each of which begins at a
    /// row; from one index of a line to the next the rows begin so much further.
    Along { starts: Vec<usize>, line: usize, axis: (usize, usize), step: usize },
}

impl Places {
    fn count(&self, indices: usize) -> usize {
        match self {
            Places::Tuples { axes, .. } => indices.checked_div(axes.len()).unwrap_or(0),
            Places::Along { starts, line, .. } => starts.len() * line,
        }
    }

    /// Writes the row that each of the indices names; only the first of every `repeats` counts.
    fn resolve<I: Copy + Into<i64>>(&self, indices: &[I], repeats: usize, rows: &mut [usize]) -> Result<(), StepError> {
        match self {
            Places::Tuples { axes, batch: (tuples, further) } => {
                for (i, (tuple, row)) in indices.chunks_exact(axes.len().max(1)).zip(rows).enumerate() {
                    *row = i / tuples * further;
                    for (&index, &axis) in tuple.iter().zip(axes) {
                        *row += along(index.into(), axis)?;
                    }
                }
            }
            Places::Along { starts, line, axis, step } => {
                for (l, (&start, rows)) in starts.iter().zip(rows.chunks_exact_mut((*line).max(1))).enumerate() {
                    for (j, row) in rows.iter_mut().enumerate() {
                        *row = start + along(indices[(l * line + j) * repeats].into(), *axis)? + j * step;
                    }
                }
            }
        }
        Ok(())
    }
}

/// How many rows an index along an axis of `len` elements is away, `step` rows each.
fn along(index: i64, (len, step): (usize, usize)) -> Result<usize, StepError> {
    let place = if index < 0 { index.checked_add_unsigned(len as u64) } else { Some(index) };
    let place = place.and_then(|i| usize::try_from(i).ok()).filter(|&i| i < len);
    let problem = || OpError::Value(format!("index {index} is outside of [-{len}, {len}), the extent of its axis"));
    Ok(place.ok_or_else(problem)? * step)
}

/// Some rows of `row` elements each, that tensors of indices name.
struct Rows {
    places: Places,
    row: usize,
}

impl Rows {
    /// Calls `then` with the rows that the indices name; only the first of every `repeats` counts.
    fn with<R>(
        &self,
        indices: View,
        repeats: usize,
        then: impl FnOnce(&[usize]) -> Result<R, StepError>,
    ) -> Result<R, StepError> {
        let count = self.places.count(indices.shape.iter().product::<usize>() / repeats.max(1));
        if count == 0 {
            return then(&[]);
        }
        with_scratch_bytes(count * size_of::<usize>(), |bytes| {
            let rows: &mut [usize] = bytemuck::cast_slice_mut(bytes);
            match indices.dtype {
                DType::I64 => self.places.resolve(indices.slice::<i64>()?, repeats, rows)?,
                _ => self.places.resolve(indices.slice::<i32>()?, repeats, rows)?,
            }
            then(rows)
        })
    }
}

fn is_index(cx: &BuildCx, i: usize) -> bool {
    cx.ty(i).is_some_and(|t| matches!(t.dtype, DType::I64 | DType::I32))
}

/// Rows by tuples of indices behind `batch` axes that data and indices share.
fn tuples(data: &[usize], indices: &[usize], batch: usize) -> Option<Rows> {
    let (&tuple, outer) = indices.split_last()?;
    let end = batch.checked_add(tuple).filter(|&e| e <= data.len())?;
    // Empty tuples would name rows without an index for each.
    if tuple == 0 || batch > outer.len() || data[..batch] != outer[..batch] || data.contains(&0) {
        return None;
    }
    let axes: Vec<usize> = data[batch..end].to_vec();
    let steps = shape::strides(&axes);
    let of_batch = (outer[batch..].iter().product::<usize>().max(1), axes.iter().product());
    let places = Places::Tuples { axes: axes.into_iter().zip(steps).collect(), batch: of_batch };
    Some(Rows { places, row: data[end..].iter().product() })
}

/// Rows by one index for each: those of the axes behind `axis` are all the same, or not there.
fn lines(data: &[usize], indices: &[usize], axis: usize) -> Option<Rows> {
    let lead = indices.get(..axis)?;
    let all: usize = data[..axis].iter().product();
    let starts: Vec<usize> = shape::offsets(lead, &shape::strides(&data[..axis])).map(|o| o * data[axis]).collect();
    let places = Places::Along { starts, line: indices[axis], axis: (data[axis], 1), step: 0 };
    let row = data[axis + 1..].iter().product();
    (all > 0 && row > 0).then_some(Rows { places, row })
}

/// Single elements by one index for each.
fn elements(data: &[usize], indices: &[usize], axis: usize) -> Option<Rows> {
    let (&line, lead) = indices.split_last()?;
    let mut strides = shape::strides(data);
    let along = (data[axis], std::mem::take(&mut strides[axis]));
    let (&step, outer) = strides.split_last()?;
    let starts = shape::offsets(lead, outer).collect();
    (!data.contains(&0)).then_some(Rows { places: Places::Along { starts, line, axis: along, step }, row: 1 })
}

/// The kernel of a GatherND.
pub fn gather(cx: &BuildCx) -> Maybe {
    Ok(gathered(cx))
}

struct Gather {
    rows: Rows,
    /// Rows of the data.
    count: usize,
    bits: usize,
}

fn gathered(cx: &BuildCx) -> Option<Built> {
    let (x, indices, y) = (cx.node.input(0)?, cx.node.input(1)?, cx.node.output(0)?);
    let (data, of_indices, out) = (cx.ty(0)?, cx.ty(1)?, cx.out(0)?);
    let op = cx.node.op.downcast::<GatherNd>()?;
    let bits = data.dtype.bits();
    if !is_index(cx, 1) || !matches!(bits, 8 | 16 | 32 | 64) || out.dtype != data.dtype || out.len() == 0 {
        return None;
    }
    let rows = tuples(&data.shape, &of_indices.shape, op.batch_dims)?;
    let count = data.len() / rows.row;
    Some(Built { kernel: Box::new(Gather { rows, count, bits }), ins: vec![x, indices], outs: vec![y] })
}

impl Kernel for Gather {
    fn name(&self) -> &str {
        "gather_rows"
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        fn run<T: Element + bytemuck::Pod>(
            exec: &Exec,
            x: &[u8],
            shape: [usize; 2],
            rows: &[usize],
            y: &mut [u8],
        ) -> Result<(), StepError> {
            Ok(gather_rows::<T>(exec, bytemuck::cast_slice(x), shape, rows, bytemuck::cast_slice_mut(y))?)
        }
        let (exec, x, indices, shape) = (cx.exec, cx.view(0)?.bytes, cx.view(1)?, [self.count, self.rows.row]);
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        self.rows.with(indices, 1, |rows| match self.bits {
            8 => run::<u8>(exec, x, shape, rows, y.bytes),
            16 => run::<u16>(exec, x, shape, rows, y.bytes),
            32 => run::<u32>(exec, x, shape, rows, y.bytes),
            _ => run::<u64>(exec, x, shape, rows, y.bytes),
        })
    }
}

/// The kernel of a ScatterND or ScatterElements: any elements that are overwritten, or floats that are combined.
pub fn build(cx: &BuildCx) -> Maybe {
    Ok(scattered(cx))
}

struct Scatter {
    /// Whole rows of updates; of several indices each, if those are the same.
    rows: Option<(Rows, usize)>,
    /// Element by element, where rows won't do.
    elements: Option<Rows>,
    reduction: Reduction,
    bits: usize,
}

fn scattered(cx: &BuildCx) -> Option<Built> {
    let (x, mut indices, updates, y) = (cx.node.input(0)?, cx.node.input(1)?, cx.node.input(2)?, cx.node.output(0)?);
    let (data, named, new, out) = (cx.ty(0)?, cx.ty(1)?, cx.ty(2)?, cx.out(0)?);
    let (bits, to) = (data.dtype.bits(), &data.shape);
    let typed = new.dtype == data.dtype && out == data && matches!(bits, 8 | 16 | 32 | 64);
    if !is_index(cx, 1) || !typed || to.contains(&0) || new.shape.contains(&0) {
        return None;
    }
    let mut scatter = Scatter { rows: None, elements: None, reduction: Reduction::None, bits };
    if let Some(op) = cx.node.op.downcast::<ScatterNd>() {
        let rows = tuples(to, &named.shape, 0)?;
        let (tuple, outer) = named.shape.split_last()?;
        if [outer, &to[*tuple..]].concat() != new.shape {
            return None;
        }
        (scatter.rows, scatter.reduction) = (Some((rows, 1)), op.reduction);
    } else {
        let op = cx.node.op.downcast::<ScatterElements>()?;
        let axis = shape::axis(op.axis, to.len())?;
        let fits = |a: usize| a == axis || named.shape[a] <= to[a];
        if named.shape != new.shape || named.shape.len() != to.len() || !(0..to.len()).all(fits) {
            return None;
        }
        scatter.reduction = op.reduction;
        scatter.elements = elements(to, &named.shape, axis);
        if named.shape[axis + 1..] == to[axis + 1..] && axis + 1 < to.len() {
            let rows = lines(to, &named.shape, axis)?;
            let repeats = rows.row;
            scatter.rows = Some((rows, repeats));
            if let Some(column) = expanded(cx, indices, axis) {
                indices = column;
                (scatter.elements, scatter.rows) = (None, scatter.rows.map(|(rows, _)| (rows, 1)));
            }
        }
    }
    let combines = scatter.reduction != Reduction::None;
    if combines && data.dtype != DType::F32 {
        return None;
    }
    Some(Built { kernel: Box::new(scatter), ins: vec![x, indices, updates], outs: vec![y] })
}

/// The column that an Expand repeats along all axes behind `axis` to make the indices.
fn expanded(cx: &BuildCx, indices: ValueId, axis: usize) -> Option<ValueId> {
    let node = cx.graph.node(cx.graph.producer(indices)?.0);
    let from = node.input(0).filter(|_| node.op.name() == "Expand" && node.op.domain().is_empty())?;
    let (of, to) = ((cx.types)(from)?, (cx.types)(indices)?);
    let column = of.shape.len() == to.shape.len()
        && of.shape[..=axis] == to.shape[..=axis]
        && of.shape[axis + 1..].iter().all(|&n| n == 1);
    column.then_some(from)
}

impl Kernel for Scatter {
    fn name(&self) -> &str {
        if self.rows.is_some() { "scatter_rows" } else { "scatter" }
    }

    fn in_place(&self) -> Option<usize> {
        Some(0)
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let (exec, indices, updates) = (cx.exec, cx.view(1)?, cx.view(2)?);
        let data = if cx.is_in_place(0) { None } else { Some(cx.view(0)?) };
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        if let Some(data) = data {
            y.bytes.copy_from_slice(data.bytes);
        }
        let by_row = self.rows.as_ref().filter(|(_, repeats)| repeat(indices, *repeats));
        let missing = || OpError::Value("no kernel scatters these indices".into());
        let (rows, repeats) = match (by_row, &self.elements) {
            (Some((rows, repeats)), _) => (rows, *repeats),
            (None, elements) => (elements.as_ref().ok_or_else(missing)?, 1),
        };
        rows.with(indices, repeats, |places| {
            let how = match self.reduction {
                Reduction::None => return self.overwrite(exec, updates.bytes, places, rows.row, y.bytes),
                Reduction::Add => Combine::Add,
                Reduction::Mul => Combine::Mul,
                Reduction::Max => Combine::Max,
                Reduction::Min => Combine::Min,
            };
            Ok(combine_rows(exec, how, updates.slice()?, places, rows.row, y.slice()?)?)
        })
    }
}

impl Scatter {
    fn overwrite(
        &self,
        exec: &Exec,
        updates: &[u8],
        places: &[usize],
        row: usize,
        y: &mut [u8],
    ) -> Result<(), StepError> {
        fn run<T: Element + bytemuck::Pod>(
            exec: &Exec,
            updates: &[u8],
            places: &[usize],
            row: usize,
            y: &mut [u8],
        ) -> Result<(), StepError> {
            let (updates, y) = (bytemuck::cast_slice(updates), bytemuck::cast_slice_mut(y));
            Ok(overwrite_rows::<T>(exec, updates, places, row, y)?)
        }
        match self.bits {
            8 => run::<u8>(exec, updates, places, row, y),
            16 => run::<u16>(exec, updates, places, row, y),
            32 => run::<u32>(exec, updates, places, row, y),
            _ => run::<u64>(exec, updates, places, row, y),
        }
    }
}

/// Whether each index stands so many times in a row, as an Expand of a column has it.
fn repeat(indices: View, times: usize) -> bool {
    fn all<T: PartialEq>(x: &[T], times: usize) -> bool {
        x.chunks_exact(times).all(|row| row.iter().all(|i| *i == row[0]))
    }
    match (indices.slice::<i64>(), indices.slice::<i32>()) {
        _ if times == 1 => true,
        (Ok(x), _) => all(x, times),
        (_, Ok(x)) => all(x, times),
        _ => false,
    }
}
