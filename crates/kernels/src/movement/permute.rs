//! Permuting and copying strided tensors of 1-, 2-, 4- or 8-byte elements.

use super::turn::{Turn, blocks};
use crate::buffer::SharedMut;
use crate::error::{Result, at_least, exact, product, product_of, require, span};
use crate::exec::Exec;
use crate::few::Few;

const NAME: &str = "permute";

mod sealed {
    pub trait Sealed: Copy + Send + Sync + Default + 'static {}
    impl Sealed for u8 {}
    impl Sealed for i8 {}
    impl Sealed for bool {}
    impl Sealed for u16 {}
    impl Sealed for i16 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
    impl Sealed for u32 {}
    impl Sealed for i32 {}
    impl Sealed for f32 {}
    impl Sealed for u64 {}
    impl Sealed for i64 {}
    impl Sealed for f64 {}
}

/// An element that can be moved: a plain number of 1, 2, 4 or 8 bytes.
pub trait Element: sealed::Sealed {}
impl<T: sealed::Sealed> Element for T {}

/// Elements that one task moves at least.
const GRAIN: usize = 1 << 14;
/// Side of a block of a blocked transpose.
const BLOCK: usize = 64;

/// `y = transpose(x, axes)`: dimension `i` of `y` is dimension `axes[i]` of `x`, whose
/// shape is `shape` (ONNX `Transpose`).
///
/// # Errors
/// `axes` is not a permutation of the dimensions, or a slice has another length.
pub fn permute<T: Element>(exec: &Exec, x: &[T], shape: &[usize], axes: &[usize], y: &mut [T]) -> Result {
    let len = product(NAME, shape)?;
    exact(NAME, "x", x.len(), len)?;
    exact(NAME, "y", y.len(), len)?;
    let mut seen: Few<bool, 8> = shape.iter().map(|_| false).collect();
    let valid = axes.len() == shape.len()
        && axes.iter().all(|&axis| axis < seen.len() && !std::mem::replace(&mut seen[axis], true));
    require(NAME, valid, "the axes are not a permutation of the dimensions")?;
    let mut strides: Few<usize, 8> = shape.iter().map(|_| 1).collect();
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    let dims: Few<(usize, usize), 8> = axes.iter().map(|&axis| (shape[axis], strides[axis])).collect();
    copy_strided(exec, x, &dims, y)
}

/// Fills dense `y` with the elements of a strided view of `x`: `dims` are its lengths and
/// steps, outermost first; element 0 of `x` is its origin. A step of 0 repeats.
///
/// # Errors
/// The view reaches beyond `x`, or `y` has another length.
pub fn copy_strided<T: Element>(exec: &Exec, x: &[T], dims: &[(usize, usize)], y: &mut [T]) -> Result {
    exact(NAME, "y", y.len(), product_of(NAME, dims.iter().map(|dim| dim.0))?)?;
    at_least(NAME, "x", x.len(), span(NAME, dims)?)?;
    if y.is_empty() {
        return Ok(());
    }
    let mut merged: Few<(usize, usize), 8> = Few::new();
    for &(len, step) in dims.iter().filter(|dim| dim.0 != 1) {
        match merged.last_mut() {
            // The outer dimension steps over the whole of this one: they are one.
            Some(last) if last.1 == step * len && step != 0 => *last = (last.0 * len, step),
            _ => merged.push((len, step)),
        }
    }
    let out = SharedMut::new(y);
    match merged[..] {
        [] => y[0] = x[0],
        [(len, 1)] => exec.split(len, 4 * GRAIN, &|range| {
            // SAFETY: the ranges are disjoint and within both.
            unsafe { out.slice(range.start, range.len()) }.copy_from_slice(&x[range]);
        }),
        _ => copy_planes(exec, x, &mut merged, out),
    }
    Ok(())
}

/// The last two dimensions form a plane; the others, and for a contiguous inner
/// dimension also the rows, are shared out to the tasks.
fn copy_planes<T: Element>(exec: &Exec, x: &[T], dims: &mut Few<(usize, usize), 8>, out: SharedMut<T>) {
    let (columns, col_step) = dims.pop().unwrap_or((1, 1));
    if col_step == 1 {
        let rows: usize = dims.iter().map(|dim| dim.0).product();
        return exec.split(rows, GRAIN / columns + 1, &|range| {
            for row in range {
                let from = &x[origin(dims, row)..][..columns];
                // SAFETY: each row owns its part of the output.
                unsafe { out.slice(row * columns, columns) }.copy_from_slice(from);
            }
        });
    }
    let (rows, row_step) = dims.pop().unwrap_or((1, 0));
    let planes: usize = dims.iter().map(|dim| dim.0).product();
    if row_step == 1 && col_step != 0 {
        let len = rows * columns;
        return blocks(exec, [planes, columns, rows], &|plane, r, c| {
            let (from, y) =
                (origin(dims, plane) + r.start * col_step + c.start, plane * len + c.start * columns + r.start);
            let (x, y) = (x[from..].as_ptr(), out.ptr().wrapping_add(y));
            exec.isa().dispatch(Turn { x, ld_x: col_step, rows: r.len(), columns: c.len(), y, ld_y: columns });
        });
    }
    let bands = rows.div_ceil(BLOCK);
    exec.split(planes * bands, GRAIN / (columns * BLOCK.min(rows)) + 1, &|range| {
        for index in range {
            let (plane, band) = (index / bands, index % bands);
            let first = band * BLOCK;
            let view = Plane {
                x: &x[origin(dims, plane) + first * row_step..],
                rows: BLOCK.min(rows - first),
                columns,
                row_step,
                col_step,
            };
            let at = (plane * rows + first) * columns;
            // SAFETY: each band of rows owns its part of the output.
            view.copy(unsafe { out.slice(at, view.rows * columns) });
        }
    });
}

/// Where item `index` of the outer dimensions starts.
fn origin(dims: &[(usize, usize)], mut index: usize) -> usize {
    let mut at = 0;
    for &(len, step) in dims.iter().rev() {
        at += index % len * step;
        index /= len;
    }
    at
}

/// A plane whose columns are not contiguous.
struct Plane<'a, T> {
    x: &'a [T],
    rows: usize,
    columns: usize,
    row_step: usize,
    col_step: usize,
}

impl<T: Element> Plane<'_, T> {
    fn copy(&self, y: &mut [T]) {
        for (r, row) in y.chunks_exact_mut(self.columns).enumerate() {
            let from = &self.x[r * self.row_step..];
            match self.col_step {
                0 => row.fill(from[0]),
                step => row.iter_mut().zip(from.iter().step_by(step)).for_each(|(out, &v)| *out = v),
            }
        }
    }
}

/// `y[i] = x[indices[i]]` for rows of `columns` elements (ONNX `Gather` on axis 0).
///
/// # Errors
/// An index is not below `rows`, or a slice has another length.
pub fn gather_rows<T: Element>(
    exec: &Exec,
    x: &[T],
    [rows, columns]: [usize; 2],
    indices: &[usize],
    y: &mut [T],
) -> Result {
    exact("gather", "x", x.len(), product("gather", &[rows, columns])?)?;
    exact("gather", "y", y.len(), product("gather", &[indices.len(), columns])?)?;
    require("gather", indices.iter().all(|&i| i < rows), "an index is out of range")?;
    if columns == 0 {
        return Ok(());
    }
    let out = SharedMut::new(y);
    exec.split(indices.len(), GRAIN / columns + 1, &|range| {
        for i in range {
            // SAFETY: each row owns its part of the output.
            let row = unsafe { out.slice(i * columns, columns) };
            row.copy_from_slice(&x[indices[i] * columns..][..columns]);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    fn reference<T: Element>(x: &[T], shape: &[usize], axes: &[usize]) -> Vec<T> {
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        let dims: Vec<_> = axes.iter().map(|&a| (shape[a], strides[a])).collect();
        (0..x.len()).map(|i| x[origin(&dims, i)]).collect()
    }

    fn check<T: Element + PartialEq + std::fmt::Debug>(shape: &[usize], axes: &[usize], make: impl Fn(u64) -> T) {
        let mut r = Random::new(1);
        let x: Vec<T> = (0..shape.iter().product()).map(|_| make(r.next())).collect();
        let want = reference(&x, shape, axes);
        for exec in execs() {
            let (mut gx, mut y) = (Guarded::new(&x), Guarded::new(&vec![T::default(); x.len()]));
            permute(&exec, gx.get(), shape, axes, y.get()).unwrap();
            assert!(y.get() == want, "{shape:?} {axes:?} {exec:?}");
        }
    }

    #[test]
    fn permutes_every_element_size() {
        let cases: &[(&[usize], &[usize])] = &[
            (&[], &[]),
            (&[7], &[0]),
            (&[37, 65], &[1, 0]),
            (&[130, 200], &[1, 0]),
            (&[2, 50, 3, 16], &[0, 2, 1, 3]),
            (&[2, 3, 50, 16], &[0, 1, 3, 2]),
            (&[2, 9, 11, 5], &[0, 3, 1, 2]),
            (&[2, 6, 7], &[0, 2, 1]),
            (&[2, 300, 70], &[0, 2, 1]),
            (&[70, 260, 2], &[2, 1, 0]),
            (&[17, 1024], &[1, 0]),
            (&[2, 9, 11, 5], &[3, 2, 1, 0]),
            (&[4, 1, 6, 1, 3], &[4, 1, 0, 3, 2]),
            (&[3, 0, 2], &[2, 0, 1]),
        ];
        for &(shape, axes) in cases {
            check(shape, axes, |v| v as u8);
            check(shape, axes, |v| v as i16);
            // Signalling NaN patterns must survive.
            check(shape, axes, |v| v as u32 | 0x7f80_0000);
            check(shape, axes, |v| v as i64);
        }
    }

    #[test]
    fn copies_slices_and_repeats() {
        let x: Vec<u32> = (0..100).collect();
        for exec in execs() {
            let mut y = vec![0; 12];
            copy_strided(&exec, &x[5..], &[(3, 20), (4, 2)], &mut y).unwrap();
            assert_eq!(y, [5, 7, 9, 11, 25, 27, 29, 31, 45, 47, 49, 51]);
            copy_strided(&exec, &x, &[(2, 1), (6, 0)], &mut y).unwrap();
            assert_eq!(y, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
            copy_strided(&exec, &x, &[(4, 0), (3, 1)], &mut y).unwrap();
            assert_eq!(y, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
            gather_rows(&exec, &x, [25, 4], &[24, 0, 3], &mut y).unwrap();
            assert_eq!(y, [96, 97, 98, 99, 0, 1, 2, 3, 12, 13, 14, 15]);
        }
    }

    #[test]
    fn refuses_bad_axes_indices_and_reach() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let mut y = [0u8; 6];
        assert!(permute(&exec, &[0; 6], &[2, 3], &[0, 0], &mut y).is_err());
        assert!(permute(&exec, &[0; 6], &[2, 3], &[0, 2], &mut y).is_err());
        assert!(copy_strided(&exec, &[0; 6], &[(2, 4), (3, 1)], &mut y).is_err());
        assert!(gather_rows(&exec, &[0; 6], [3, 2], &[0, 3, 1], &mut y).is_err());
    }
}
