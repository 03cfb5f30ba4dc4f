//! Running sums along an axis (ONNX `CumSum`).

use crate::buffer::SharedMut;
use crate::error::{Result, exact, product};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "running_sum";
/// Columns that a task takes at a time: some vectors of every tier, whole cache lines.
const COLUMNS: usize = 64;
/// Rows that run side by side where they are contiguous, so that additions need not wait for each other.
const ROWS: usize = 8;
/// Elements that a task sums at least.
const GRAIN: usize = 1 << 14;

/// How sums run along an axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// An element's own value is left out.
    pub exclusive: bool,
    /// From the last element to the first.
    pub reverse: bool,
}

/// Running sums of the middle axis of `x` `[outer, axis, inner]`; each starts from 0 and adds one element after the other,
/// so that the bits are those of the definition.
///
/// # Errors
/// A slice has another length than the shape.
pub fn running_sum(exec: &Exec, how: Running, x: &[f32], y: &mut [f32], shape: [usize; 3]) -> Result {
    exact(NAME, "x", x.len(), product(NAME, &shape)?)?;
    exact(NAME, "y", y.len(), x.len())?;
    run(exec, how, x.as_ptr(), SharedMut::new(y), shape);
    Ok(())
}

/// As [`running_sum`], over the operand.
///
/// # Errors
/// `y` has another length than the shape.
pub fn running_sum_in_place(exec: &Exec, how: Running, y: &mut [f32], shape: [usize; 3]) -> Result {
    exact(NAME, "y", y.len(), product(NAME, &shape)?)?;
    let y = SharedMut::new(y);
    run(exec, how, y.ptr(), y, shape);
    Ok(())
}

/// The operand as tasks on several threads read it.
#[derive(Clone, Copy)]
struct Source(*const f32);

// SAFETY: each task reads the elements that it alone writes, if they are the same memory.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

impl Source {
    fn at(self, i: usize) -> *const f32 {
        self.0.wrapping_add(i)
    }
}

/// `x` and `y` are as long as the shape says, and either the same memory or apart.
fn run(exec: &Exec, how: Running, x: *const f32, y: SharedMut<f32>, [outer, axis, inner]: [usize; 3]) {
    if outer == 0 || axis == 0 || inner == 0 {
        return;
    }
    let x = Source(x);
    if inner == 1 {
        let blocks = outer.div_ceil(ROWS);
        exec.split(blocks, GRAIN / (ROWS * axis) + 1, &|range| {
            for row in (range.start * ROWS..range.end * ROWS).step_by(ROWS) {
                let at = row * axis;
                let rows = Rows { how, x: x.at(at), y: y.ptr().wrapping_add(at), axis, rows: ROWS.min(outer - row) };
                exec.isa().dispatch(rows);
            }
        });
        return;
    }
    let blocks = inner.div_ceil(COLUMNS);
    exec.split(outer * blocks, GRAIN / (axis * inner.min(COLUMNS)) + 1, &|range| {
        for block in range {
            let column = block % blocks * COLUMNS;
            let at = block / blocks * axis * inner + column;
            let width = COLUMNS.min(inner - column);
            exec.isa().dispatch(Columns { how, x: x.at(at), y: y.ptr().wrapping_add(at), axis, inner, width });
        }
    });
}

/// Some neighbouring lines of contiguous elements; the pointers cover `rows * axis`.
struct Rows {
    how: Running,
    x: *const f32,
    y: *mut f32,
    axis: usize,
    rows: usize,
}

impl Kernel for Rows {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        if self.rows == ROWS {
            self.lines::<ROWS>(0);
        } else {
            for row in 0..self.rows {
                self.lines::<1>(row);
            }
        }
    }
}

impl Rows {
    #[inline(always)]
    fn lines<const N: usize>(&self, first: usize) {
        let mut sums = [0f32; N];
        for i in 0..self.axis {
            let i = if self.how.reverse { self.axis - 1 - i } else { i };
            for (n, sum) in sums.iter_mut().enumerate() {
                let at = (first + n) * self.axis + i;
                // SAFETY: `at` is below `rows * axis`.
                unsafe {
                    let next = *sum + *self.x.add(at);
                    *self.y.add(at) = if self.how.exclusive { *sum } else { next };
                    *sum = next;
                }
            }
        }
    }
}

/// Some columns of a matrix `[axis, inner]`; the pointers cover them from its first row to its last.
struct Columns {
    how: Running,
    x: *const f32,
    y: *mut f32,
    axis: usize,
    inner: usize,
    width: usize,
}

impl Kernel for Columns {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut column = 0;
        while column < self.width {
            let left = self.width - column;
            if left >= 4 * S::LANES {
                self.vectors::<S, 4>(s, column, low_bits(S::LANES));
                column += 4 * S::LANES;
            } else {
                self.vectors::<S, 1>(s, column, low_bits(left.min(S::LANES)));
                column += S::LANES;
            }
        }
    }
}

impl Columns {
    /// `N` vectors of columns, of which the last has the lanes in `bits`.
    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(&self, s: S, column: usize, bits: u32) {
        let mut sums = [s.splat(0.0); N];
        for i in 0..self.axis {
            let i = if self.how.reverse { self.axis - 1 - i } else { i };
            for (n, sum) in sums.iter_mut().enumerate() {
                let at = i * self.inner + column + n * S::LANES;
                // SAFETY: `bits` keeps within the columns; the row is below `axis`.
                unsafe {
                    let next = s.add(*sum, s.load_bits(self.x.add(at), bits));
                    s.store_bits(self.y.add(at), if self.how.exclusive { *sum } else { next }, bits);
                    *sum = next;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, assert_same_everywhere, bits, with_special};

    fn reference(how: Running, x: &[f32], [outer, axis, inner]: [usize; 3]) -> Vec<f32> {
        let mut y = x.to_vec();
        for line in (0..outer).flat_map(|o| (0..inner).map(move |i| o * axis * inner + i)) {
            let mut sum = 0.0;
            for i in 0..axis {
                let at = line + inner * if how.reverse { axis - 1 - i } else { i };
                y[at] = if how.exclusive { sum } else { sum + x[at] };
                sum += x[at];
            }
        }
        y
    }

    #[test]
    fn equals_the_definition_everywhere_and_in_place() {
        let mut r = Random::new(71);
        let shapes = [[1, 1, 1], [1, 50, 1], [19, 33, 1], [3, 9, 2], [2, 40, 15], [1, 64, 16], [2, 7, 65], [1, 5, 200]];
        for shape in shapes {
            let x = with_special(r.vec(shape.iter().product()));
            for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
                let how = Running { exclusive, reverse };
                let want = bits(&reference(how, &x, shape));
                assert_same_everywhere(&format!("{how:?} {shape:?}"), &|exec, edge| {
                    let (mut gx, mut y) = (Guarded::at(edge, &x), Guarded::at(edge, &vec![9.0; x.len()]));
                    running_sum(exec, how, gx.get(), y.get(), shape).unwrap();
                    running_sum_in_place(exec, how, gx.get(), shape).unwrap();
                    assert_eq!(bits(y.get()), want);
                    assert_eq!(bits(gx.get()), want);
                    bits(y.get())
                });
            }
        }
    }

    #[test]
    fn refuses_other_lengths() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let how = Running::default();
        assert!(running_sum(&exec, how, &[1.0; 6], &mut [0.0; 5], [1, 2, 3]).is_err());
        assert!(running_sum(&exec, how, &[1.0; 5], &mut [0.0; 5], [1, 2, 3]).is_err());
        assert!(running_sum_in_place(&exec, how, &mut [0.0; 5], [usize::MAX, 2, 3]).is_err());
        assert!(running_sum(&exec, how, &[], &mut [], [2, 0, 3]).is_ok());
    }
}
