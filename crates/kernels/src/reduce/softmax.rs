//! Softmax and its logarithm along any axis.

use super::rows::{fold, softmax_row};
use crate::buffer::SharedMut;
use crate::elementwise::map;
use crate::error::{Result, exact, product};
use crate::exec::Exec;
use crate::math;
use crate::simd::{Kernel, Simd, low_bits};

/// `y = softmax(x)` along the middle of `[outer, axis, inner]`. Lines whose elements are all −∞ become NaN, or 0 with
/// `guarded`.
///
/// # Errors
/// A slice has another length than the shape.
pub fn softmax(exec: &Exec, x: &[f32], y: &mut [f32], shape: [usize; 3], guarded: bool) -> Result {
    run(exec, x, y, shape, Form { log: false, guarded })
}

/// `y = x − max − ln Σ e^(x − max)` along the middle of `[outer, axis, inner]`.
///
/// # Errors
/// A slice has another length than the shape.
pub fn log_softmax(exec: &Exec, x: &[f32], y: &mut [f32], shape: [usize; 3]) -> Result {
    run(exec, x, y, shape, Form { log: true, guarded: false })
}

/// What a line becomes.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    /// Whether it is the logarithm of the softmax.
    pub log: bool,
    /// Whether a softmax that is not a number is 0.
    pub guarded: bool,
}

fn run(exec: &Exec, x: &[f32], y: &mut [f32], [outer, axis, inner]: [usize; 3], form: Form) -> Result {
    let len = product("softmax", &[outer, axis, inner])?;
    exact("softmax", "x", x.len(), len)?;
    exact("softmax", "y", y.len(), len)?;
    if len == 0 {
        return Ok(());
    }
    let y = SharedMut::new(y);
    if inner == 1 {
        exec.split(outer, (1 << 12) / axis + 1, &|range| {
            for index in range {
                // SAFETY: each outer index owns its row.
                let y = unsafe { y.slice(index * axis, axis) };
                exec.isa().dispatch(Row { x: &x[index * axis..][..axis], y, form });
            }
        });
        return Ok(());
    }
    let (x, width) = (Shared(x.as_ptr()), block_width(axis, inner));
    let blocks = inner.div_ceil(width);
    exec.split(outer * blocks, 1, &|range| {
        for index in range {
            let first = index % blocks * width;
            let at = index / blocks * axis * inner + first;
            let (x, y) = (x.get().wrapping_add(at), y.ptr().wrapping_add(at));
            let block = Columns { x, y, axis, stride: inner, columns: width.min(inner - first), form };
            exec.isa().dispatch(block);
        }
    });
    Ok(())
}

/// An operand that tasks only read.
#[derive(Clone, Copy)]
struct Shared(*const f32);

// SAFETY: only read, while the slice that it came from is borrowed.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(self) -> *const f32 {
        self.0
    }
}

/// Columns of a task: whole cache lines, and enough of them to be worth one.
pub(crate) fn block_width(axis: usize, inner: usize) -> usize {
    ((1 << 12) / axis.max(1)).next_multiple_of(64).clamp(64, inner.next_multiple_of(64))
}

struct Row<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    form: Form,
}

impl Kernel for Row<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, y, len) = (self.x.as_ptr(), self.y.as_mut_ptr(), self.x.len());
        if !self.form.log {
            // SAFETY: both slices have `len` elements.
            unsafe { softmax_row(s, x, y, len, self.form.guarded) };
            return;
        }
        let peak = s.splat(s.hmax(fold(
            s,
            self.x,
            s.splat(f32::NEG_INFINITY),
            #[inline(always)]
            |a, b| s.max(a, b),
            #[inline(always)]
            |a, b| s.max(a, b),
        )));
        let total = fold(
            s,
            self.x,
            s.splat(0.0),
            #[inline(always)]
            |a, v| s.add(a, math::exp_nonpositive(s, s.sub(v, peak))),
            #[inline(always)]
            |a, b| s.add(a, b),
        );
        let log_sum = math::log(s, s.splat(s.sum(total)));
        // SAFETY: both slices have `len` elements.
        unsafe {
            map(
                s,
                x,
                y,
                len,
                #[inline(always)]
                |v| s.sub(s.sub(v, peak), log_sum),
            );
        }
    }
}

/// Some columns of a matrix whose rows are `stride` apart in both operands, one softmax per lane. The operands are valid for
/// them, no other task writes them, and they may be the same.
pub(crate) struct Columns {
    pub x: *const f32,
    pub y: *mut f32,
    pub axis: usize,
    pub stride: usize,
    pub columns: usize,
    pub form: Form,
}

impl Kernel for Columns {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (inner, axis) = (self.stride, self.axis);
        let mut column = 0;
        while column < self.columns {
            let bits = low_bits((self.columns - column).min(S::LANES));
            // SAFETY: `bits` keeps within the columns, for which the operands are valid.
            unsafe {
                let x = self.x.add(column);
                let y = self.y.add(column);
                let mut peak = s.splat(f32::NEG_INFINITY);
                for i in 0..axis {
                    peak = s.max(peak, s.load_bits(x.add(i * inner), bits));
                }
                let mut total = s.splat(0.0);
                for i in 0..axis {
                    let e = math::exp_nonpositive(s, s.sub(s.load_bits(x.add(i * inner), bits), peak));
                    total = s.add(total, e);
                    if !self.form.log {
                        s.store_bits(y.add(i * inner), e, bits);
                    }
                }
                if self.form.log {
                    let log_sum = math::log(s, total);
                    for i in 0..axis {
                        let v = s.sub(s.load_bits(x.add(i * inner), bits), peak);
                        let v = s.sub(v, log_sum);
                        s.store_bits(y.add(i * inner), v, bits);
                    }
                } else {
                    let factor = s.div(s.splat(1.0), total);
                    for i in 0..axis {
                        let mut v = s.mul(s.load_bits(y.add(i * inner), bits), factor);
                        if self.form.guarded {
                            v = s.select(s.unordered(total, total), s.splat(0.0), v);
                        }
                        s.store_bits(y.add(i * inner), v, bits);
                    }
                }
            }
            column += S::LANES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, assert_close, execs};

    fn reference(x: &[f32], [outer, axis, inner]: [usize; 3], log: bool) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        for o in 0..outer {
            for i in 0..inner {
                let at = |a: usize| (o * axis + a) * inner + i;
                let peak = (0..axis).map(|a| x[at(a)]).fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = (0..axis).map(|a| f64::from(x[at(a)] - peak).exp()).sum();
                for a in 0..axis {
                    let d = f64::from(x[at(a)] - peak);
                    y[at(a)] = if log { d - sum.ln() } else { d.exp() / sum } as f32;
                }
            }
        }
        y
    }

    #[test]
    fn equals_the_definition_along_any_axis() {
        let mut r = Random::new(3);
        for exec in execs() {
            for shape in [
                [1, 1, 1],
                [3, 197, 1],
                [5, 16, 1],
                [2, 7, 19],
                [2, 3, 64],
                [1, 16, 1000],
                [2, 70, 130],
                [300, 33, 1],
                [0, 3, 2],
            ] {
                let x: Vec<f32> = r.vec(shape.iter().product()).iter().map(|v| v * 20.0).collect();
                for log in [false, true] {
                    let want = reference(&x, shape, log);
                    let (mut gx, mut y) = (Guarded::new(&x), Guarded::new(&x));
                    run(&exec, gx.get(), y.get(), shape, Form { log, guarded: false }).unwrap();
                    assert_close(y.get(), &want, 1e-6, &format!("{shape:?} {exec:?}"));
                }
            }
        }
    }

    #[test]
    fn gives_the_same_bits_on_every_tier() {
        let mut r = Random::new(4);
        for shape in [[2, 1, 1], [3, 10, 1], [2, 33, 1], [3, 197, 1], [2, 5, 37]] {
            let x: Vec<f32> = r.vec(shape.iter().product()).iter().map(|v| v * 9.0).collect();
            let mut first: Option<Vec<u32>> = None;
            for exec in execs() {
                let mut y = vec![0.0; x.len()];
                softmax(&exec, &x, &mut y, shape, false).unwrap();
                let bits: Vec<u32> = y.iter().map(|v| v.to_bits()).collect();
                assert_eq!(&bits, first.get_or_insert_with(|| bits.clone()), "{shape:?} {exec:?}");
            }
        }
    }

    #[test]
    fn gives_zero_to_masked_elements() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let mut y = [1.0; 3];
        softmax(&exec, &[0.0, f32::NEG_INFINITY, -1e4], &mut y, [1, 3, 1], false).unwrap();
        assert_eq!(y, [1.0, 0.0, 0.0]);
    }

    #[test]
    fn gives_zero_instead_of_nan_to_lines_without_an_element_where_asked_to() {
        let (none, some) = (f32::NEG_INFINITY, 2.0);
        for exec in execs() {
            // The same two lines as rows and as columns.
            for (shape, x, want) in [
                ([2, 3, 1], [none, none, none, none, some, none], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
                ([1, 3, 2], [none, none, none, some, none, none], [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
            ] {
                let mut y = [9.0; 6];
                softmax(&exec, &x, &mut y, shape, true).unwrap();
                assert_eq!(y, want, "{shape:?} {exec:?}");
                softmax(&exec, &x, &mut y, shape, false).unwrap();
                assert_eq!(y.iter().filter(|v| v.is_nan()).count(), 3, "{shape:?} {exec:?}");
            }
        }
    }
}
