//! Reduction along one axis.

use super::rows::fold;
use crate::buffer::SharedMut;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::few::Few;
use crate::simd::{Kernel, Simd, low_bits};

/// What a reduction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReduceOp {
    /// Σ x
    Sum,
    /// Σ x / n
    Mean,
    /// Largest; NaN if any is
    Max,
    /// Smallest; NaN if any is
    Min,
    /// Σ |x|
    L1,
    /// √Σ x²
    L2,
    /// Σ x²
    SumSquare,
}

/// Elements of a long row that are summed at a time; the parts are added in f64.
const CHUNK: usize = 1 << 14;

/// Reduces the middle of `x` `[outer, axis, inner]` into `y` `[outer, inner]`. A sum over
/// an empty axis is 0, a mean NaN; an empty maximum or minimum is refused.
///
/// # Errors
/// A slice has another length than the shape, or an empty axis has no extreme.
pub fn reduce(exec: &Exec, op: ReduceOp, x: &[f32], y: &mut [f32], [outer, axis, inner]: [usize; 3]) -> Result {
    exact("reduce", "x", x.len(), product("reduce", &[outer, axis, inner])?)?;
    exact("reduce", "y", y.len(), product("reduce", &[outer, inner])?)?;
    let extreme = matches!(op, ReduceOp::Max | ReduceOp::Min);
    require("reduce", axis > 0 || !extreme, "an empty axis has no maximum or minimum")?;
    if y.is_empty() {
        return Ok(());
    }
    if inner == 1 && outer == 1 && axis > 2 * CHUNK {
        y[0] = long_row(exec, op, x);
        return Ok(());
    }
    let out = SharedMut::new(y);
    let block = axis * inner;
    exec.split(outer, CHUNK / (block + 1) + 1, &|range| {
        for index in range {
            let x = &x[index * block..][..block];
            // SAFETY: each outer index owns its outputs.
            let y = unsafe { out.slice(index * inner, inner) };
            if inner == 1 {
                y[0] = finish(op, partial(exec, op, x), axis);
            } else {
                exec.isa().dispatch(Columns { op, x, y, axis });
            }
        }
    });
    Ok(())
}

/// Sums long rows chunk by chunk, so that f32 rounding does not grow with the length.
fn partial(exec: &Exec, op: ReduceOp, x: &[f32]) -> f64 {
    x.chunks(CHUNK)
        .map(|chunk| f64::from(exec.isa().dispatch(Row { op, x: chunk })))
        .reduce(|a, b| join(op, a, b))
        .unwrap_or(0.0)
}

fn long_row(exec: &Exec, op: ReduceOp, x: &[f32]) -> f32 {
    let chunks = x.len().div_ceil(CHUNK);
    let mut parts: Few<f64, 128> = (0..chunks).map(|_| 0.0).collect();
    let out = SharedMut::new(&mut parts);
    exec.pool().run(chunks, &|i| {
        let chunk = &x[i * CHUNK..((i + 1) * CHUNK).min(x.len())];
        // SAFETY: each task owns its part.
        unsafe { out.slice(i, 1)[0] = f64::from(exec.isa().dispatch(Row { op, x: chunk })) };
    });
    let total = parts.iter().copied().reduce(|a, b| join(op, a, b)).unwrap_or(0.0);
    finish(op, total, x.len())
}

fn join(op: ReduceOp, a: f64, b: f64) -> f64 {
    match op {
        ReduceOp::Max | ReduceOp::Min if a.is_nan() || b.is_nan() => f64::NAN,
        ReduceOp::Max => a.max(b),
        ReduceOp::Min => a.min(b),
        _ => a + b,
    }
}

fn finish(op: ReduceOp, total: f64, n: usize) -> f32 {
    match op {
        ReduceOp::Mean => (total / n as f64) as f32,
        ReduceOp::L2 => total.sqrt() as f32,
        _ => total as f32,
    }
}

#[inline(always)]
fn start<S: Simd>(s: S, op: ReduceOp) -> S::F {
    s.splat(match op {
        ReduceOp::Max => f32::NEG_INFINITY,
        ReduceOp::Min => f32::INFINITY,
        _ => 0.0,
    })
}

/// One step; the accumulator comes second in `min`/`max`, so that its NaN stays, and a
/// NaN value is selected.
#[inline(always)]
fn step<S: Simd>(s: S, op: ReduceOp, acc: S::F, v: S::F) -> S::F {
    match op {
        ReduceOp::Sum | ReduceOp::Mean => s.add(acc, v),
        ReduceOp::Max => s.select(s.unordered(v, v), v, s.max(v, acc)),
        ReduceOp::Min => s.select(s.unordered(v, v), v, s.min(v, acc)),
        ReduceOp::L1 => s.add(acc, s.abs(v)),
        ReduceOp::L2 | ReduceOp::SumSquare => s.mul_add(v, v, acc),
    }
}

/// A part of a row; gives the unfinished result.
struct Row<'a> {
    op: ReduceOp,
    x: &'a [f32],
}

impl Kernel for Row<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        macro_rules! total {
            ($op:expr) => {
                fold(
                    s,
                    self.x,
                    start(s, $op),
                    #[inline(always)]
                    |a, v| step(s, $op, a, v),
                    #[inline(always)]
                    |a, b| match $op {
                        // Of zeros of both signs the second one stays, as in `hmax` and `hmin`.
                        ReduceOp::Max | ReduceOp::Min => step(s, $op, b, a),
                        _ => s.add(a, b),
                    },
                )
            };
        }
        match self.op {
            ReduceOp::Sum | ReduceOp::Mean => s.sum(total!(ReduceOp::Sum)),
            ReduceOp::L1 => s.sum(total!(ReduceOp::L1)),
            ReduceOp::L2 | ReduceOp::SumSquare => s.sum(total!(ReduceOp::L2)),
            ReduceOp::Max => {
                let v = total!(ReduceOp::Max);
                if s.mask_bits(s.unordered(v, v)) != 0 { f32::NAN } else { s.hmax(v) }
            }
            ReduceOp::Min => {
                let v = total!(ReduceOp::Min);
                if s.mask_bits(s.unordered(v, v)) != 0 { f32::NAN } else { s.hmin(v) }
            }
        }
    }
}

/// Vectors across `inner`.
struct Columns<'a> {
    op: ReduceOp,
    x: &'a [f32],
    y: &'a mut [f32],
    axis: usize,
}

impl Kernel for Columns<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inner = self.y.len();
        let mut column = 0;
        while column < inner {
            let bits = low_bits((inner - column).min(S::LANES));
            let mut acc = start(s, self.op);
            // SAFETY: `bits` keeps within the row of `inner`; rows are in the slices.
            unsafe {
                let x = self.x.as_ptr().wrapping_add(column);
                for i in 0..self.axis {
                    acc = step(s, self.op, acc, s.load_bits(x.add(i * inner), bits));
                }
                let result = match self.op {
                    ReduceOp::Mean => s.div(acc, s.splat(self.axis as f32)),
                    ReduceOp::L2 => s.sqrt(acc),
                    _ => acc,
                };
                s.store_bits(self.y.as_mut_ptr().add(column), result, bits);
            }
            column += S::LANES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, assert_close, execs};

    const OPS: [ReduceOp; 7] =
        [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max, ReduceOp::Min, ReduceOp::L1, ReduceOp::L2, ReduceOp::SumSquare];

    fn reference(op: ReduceOp, x: &[f32], [outer, axis, inner]: [usize; 3]) -> Vec<f32> {
        let mut y = Vec::new();
        for o in 0..outer {
            for i in 0..inner {
                let row = (0..axis).map(|a| f64::from(x[(o * axis + a) * inner + i]));
                let total = match op {
                    ReduceOp::Sum | ReduceOp::Mean => row.sum(),
                    ReduceOp::Max => row.fold(f64::NEG_INFINITY, f64::max),
                    ReduceOp::Min => row.fold(f64::INFINITY, f64::min),
                    ReduceOp::L1 => row.map(f64::abs).sum(),
                    ReduceOp::L2 | ReduceOp::SumSquare => row.map(|v| v * v).sum(),
                };
                y.push(finish(op, total, axis));
            }
        }
        y
    }

    #[test]
    fn equals_the_definition_along_any_axis() {
        let mut r = Random::new(6);
        for exec in execs() {
            for shape in [[1, 1, 1], [3, 50, 1], [2, 9, 31], [4, 49, 16], [1, 70_000, 1], [3, 17_000, 1]] {
                let x = r.vec(shape.iter().product());
                for op in OPS {
                    let want = reference(op, &x, shape);
                    let (mut gx, mut y) = (Guarded::new(&x), Guarded::new(&vec![0.0; want.len()]));
                    reduce(&exec, op, gx.get(), y.get(), shape).unwrap();
                    // Vector sums of up to 17,000 values of magnitude ≤ 1 in f32.
                    assert_close(y.get(), &want, 2e-4, &format!("{op:?} {shape:?} {exec:?}"));
                }
            }
        }
    }

    #[test]
    fn passes_nan_on_and_refuses_an_empty_extreme() {
        for exec in execs() {
            for at in [0, 5, 30] {
                let mut x = vec![1.0; 37];
                x[at] = f32::NAN;
                for op in [ReduceOp::Max, ReduceOp::Min] {
                    let mut y = [0.0];
                    reduce(&exec, op, &x, &mut y, [1, 37, 1]).unwrap();
                    assert!(y[0].is_nan(), "{op:?} {at} {exec:?}");
                    let mut y = [0.0; 37];
                    reduce(&exec, op, &x, &mut y, [1, 1, 37]).unwrap();
                    assert!(y[at].is_nan());
                }
            }
            assert!(reduce(&exec, ReduceOp::Max, &[], &mut [0.0], [1, 0, 1]).is_err());
            let mut y = [1.0];
            reduce(&exec, ReduceOp::Sum, &[], &mut y, [1, 0, 1]).unwrap();
            assert_eq!(y, [0.0]);
        }
    }
}
