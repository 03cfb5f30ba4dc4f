//! Writing rows at places that data name (ONNX `ScatterND`, `ScatterElements`).

use std::ops::Range;

use super::permute::Element;
use crate::buffer::SharedMut;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "scatter";
/// Elements of a row from which looking at every place costs a thread little beside its own part of the rows.
const WIDE: usize = 16;
/// Elements of all updates that are worth another thread.
const GRAIN: usize = 1 << 14;

/// What becomes of an element `a` that an update `b` meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Combine {
    /// `a + b`
    Add,
    /// `a · b`
    Mul,
    /// `b > a ? b : a`; `b` where that is NaN
    Max,
    /// `b < a ? b : a`; `b` where that is NaN
    Min,
}

/// Writes each row of `updates` over row `targets[i]` of `y` `[rows, columns]`, in order.
///
/// # Errors
/// A target is not below the number of rows, or a slice has another length.
pub fn overwrite_rows<T: Element>(
    exec: &Exec,
    updates: &[T],
    targets: &[usize],
    columns: usize,
    y: &mut [T],
) -> Result {
    let rows = check(updates.len(), targets, columns, y.len())?;
    let y = SharedMut::new(y);
    split(exec, rows, columns, updates.len(), &|own| {
        for (update, target) in updates.chunks_exact(columns).zip(targets).filter(|(_, t)| own.contains(t)) {
            // SAFETY: a row below `rows`, which only this task writes.
            unsafe { y.slice(target * columns, columns).copy_from_slice(update) };
        }
    });
    Ok(())
}

/// Combines row `targets[i]` of `y` `[rows, columns]` with each row of `updates`, in order: the bits of one update after
/// the other.
///
/// # Errors
/// As [`overwrite_rows`].
pub fn combine_rows(
    exec: &Exec,
    how: Combine,
    updates: &[f32],
    targets: &[usize],
    columns: usize,
    y: &mut [f32],
) -> Result {
    let rows = check(updates.len(), targets, columns, y.len())?;
    let y = SharedMut::new(y);
    split(exec, rows, columns, updates.len(), &|own| {
        exec.isa().dispatch(Rows { how, updates, targets, columns, own, y });
    });
    Ok(())
}

/// Checks all lengths and places; the number of rows.
fn check(updates: usize, targets: &[usize], columns: usize, len: usize) -> Result<usize> {
    exact(NAME, "updates", updates, product(NAME, &[targets.len(), columns])?)?;
    let rows = len.checked_div(columns).unwrap_or(0);
    require(NAME, rows * columns == len, "the rows do not fill the tensor")?;
    require(NAME, columns == 0 || targets.iter().all(|&t| t < rows), "a place is out of range")?;
    Ok(rows)
}

/// Runs `body` on disjoint ranges of rows that cover them all: each takes the updates of its own, so that those of a row
/// stay in order whatever the number of threads.
fn split(exec: &Exec, rows: usize, columns: usize, updates: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
    if columns == 0 || updates == 0 {
        return;
    }
    let parts = if columns < WIDE { 1 } else { exec.threads().min(updates / GRAIN + 1).min(rows) };
    if parts <= 1 {
        return body(0..rows);
    }
    exec.pool().run(parts, &|i| body(rows * i / parts..rows * (i + 1) / parts));
}

/// The updates of the rows `own`.
struct Rows<'a> {
    how: Combine,
    updates: &'a [f32],
    targets: &'a [usize],
    columns: usize,
    own: Range<usize>,
    y: SharedMut<f32>,
}

impl Kernel for Rows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.how {
            Combine::Add => self.each(s, Combine::Add),
            Combine::Mul => self.each(s, Combine::Mul),
            Combine::Max => self.each(s, Combine::Max),
            Combine::Min => self.each(s, Combine::Min),
        }
    }
}

impl Rows<'_> {
    /// One loop per function, so that the choice is not made per vector.
    #[inline(always)]
    fn each<S: Simd>(&self, s: S, how: Combine) {
        for i in 0..self.targets.len() {
            let target = self.targets[i];
            if target < self.own.start || target >= self.own.end {
                continue;
            }
            let (x, y) = (self.updates[i * self.columns..].as_ptr(), self.y.ptr().wrapping_add(target * self.columns));
            let mut column = 0;
            while column < self.columns {
                let bits = low_bits((self.columns - column).min(S::LANES));
                // SAFETY: `bits` keeps within the row of both, and this row is one of `own`, this task's.
                unsafe {
                    let (a, b) = (s.load_bits(y.add(column), bits), s.load_bits(x.add(column), bits));
                    s.store_bits(y.add(column), combine(s, how, a, b), bits);
                }
                column += S::LANES;
            }
        }
    }
}

#[inline(always)]
fn combine<S: Simd>(s: S, how: Combine, a: S::F, b: S::F) -> S::F {
    match how {
        Combine::Add => s.add(a, b),
        Combine::Mul => s.mul(a, b),
        // The second one is taken where the first is no larger.
        Combine::Max => s.select(s.unordered(b, b), b, s.max(b, a)),
        Combine::Min => s.select(s.unordered(b, b), b, s.min(b, a)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, assert_same_everywhere, bits, with_special};

    fn reference(how: Option<Combine>, a: f32, b: f32) -> f32 {
        match how {
            None => b,
            Some(Combine::Add) => a + b,
            Some(Combine::Mul) => a * b,
            Some(Combine::Max) if b > a || b.is_nan() => b,
            Some(Combine::Min) if b < a || b.is_nan() => b,
            Some(_) => a,
        }
    }

    #[test]
    fn equals_one_update_after_the_other_everywhere() {
        let mut r = Random::new(72);
        for [rows, columns, count] in [[1, 1, 3], [9, 7, 40], [5, 33, 12], [50, 128, 300], [3, 0, 2], [4, 16, 0]] {
            let (y, updates) = (with_special(r.vec(rows * columns)), with_special(r.vec(count * columns)));
            let targets: Vec<usize> = (0..count).map(|_| r.below(rows)).collect();
            for how in [None, Some(Combine::Add), Some(Combine::Mul), Some(Combine::Max), Some(Combine::Min)] {
                let mut want = y.clone();
                for (i, t) in targets.iter().enumerate() {
                    for c in 0..columns {
                        want[t * columns + c] = reference(how, want[t * columns + c], updates[i * columns + c]);
                    }
                }
                assert_same_everywhere(&format!("{how:?} {rows} {columns} {count}"), &|exec, edge| {
                    let (mut gu, mut gy) = (Guarded::at(edge, &updates), Guarded::at(edge, &y));
                    match how {
                        None => overwrite_rows(exec, gu.get(), &targets, columns, gy.get()).unwrap(),
                        Some(how) => combine_rows(exec, how, gu.get(), &targets, columns, gy.get()).unwrap(),
                    }
                    assert_eq!(bits(gy.get()), bits(&want));
                    bits(gy.get())
                });
            }
        }
    }

    #[test]
    fn refuses_places_and_lengths_that_do_not_fit() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        assert!(overwrite_rows(&exec, &[1u8; 4], &[0, 2], 2, &mut [0; 4]).is_err());
        assert!(overwrite_rows(&exec, &[1u8; 3], &[0, 1], 2, &mut [0; 4]).is_err());
        assert!(combine_rows(&exec, Combine::Add, &[1.0; 2], &[0], 2, &mut [0.0; 3]).is_err());
    }
}
