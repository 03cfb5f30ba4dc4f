//! Functions of two tensors, with broadcasting.

use super::GRAIN;
use super::walk::Walk;
use crate::buffer::SharedMut;
use crate::error::{Result, exact, product};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "binary";

/// A function of two f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BinaryOp {
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a · b
    Mul,
    /// a / b
    Div,
    /// The smaller; NaN if either is
    Min,
    /// The larger; NaN if either is
    Max,
    /// aᵇ, computed by the scalar `powf` on every tier
    Pow,
    /// a for a ≥ 0, a · b below
    PRelu,
}

/// `y = op(a, b)` with numpy broadcasting: shapes align at the last dimension, and a
/// dimension of 1 (or a missing one) repeats. `y_shape` must be the broadcast shape.
///
/// # Errors
/// The shapes don't broadcast to `y_shape`, have over [`super::MAX_DIMS`] dimensions, or a slice
/// has another length than its shape.
pub fn binary(
    exec: &Exec,
    op: BinaryOp,
    (a, a_shape): (&[f32], &[usize]),
    (b, b_shape): (&[f32], &[usize]),
    (y, y_shape): (&mut [f32], &[usize]),
) -> Result {
    exact(NAME, "a", a.len(), product(NAME, a_shape)?)?;
    exact(NAME, "b", b.len(), product(NAME, b_shape)?)?;
    exact(NAME, "y", y.len(), product(NAME, y_shape)?)?;
    let walk = Walk::new(NAME, [a_shape, b_shape], y_shape)?;
    if !y.is_empty() {
        run(exec, op, &walk, a.as_ptr(), b.as_ptr(), SharedMut::new(y));
    }
    Ok(())
}

/// `y = op(y, b)`, `b` broadcast to the shape of `y`.
///
/// # Errors
/// As [`binary`].
pub fn binary_assign(
    exec: &Exec,
    op: BinaryOp,
    (y, y_shape): (&mut [f32], &[usize]),
    (b, b_shape): (&[f32], &[usize]),
) -> Result {
    exact(NAME, "y", y.len(), product(NAME, y_shape)?)?;
    exact(NAME, "b", b.len(), product(NAME, b_shape)?)?;
    let walk = Walk::new(NAME, [y_shape, b_shape], y_shape)?;
    if !y.is_empty() {
        let y = SharedMut::new(y);
        run(exec, op, &walk, y.ptr(), b.as_ptr(), y);
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Pointers(*const f32, *const f32);

// SAFETY: the operands are only read, or (in place) only where the same task writes.
unsafe impl Sync for Pointers {}

impl Pointers {
    fn get(&self, a: usize, b: usize) -> (*const f32, *const f32) {
        (self.0.wrapping_add(a), self.1.wrapping_add(b))
    }
}

fn run(exec: &Exec, op: BinaryOp, walk: &Walk<2>, a: *const f32, b: *const f32, y: SharedMut<f32>) {
    let (rows, inner) = (walk.rows(), walk.inner);
    let operands = Pointers(a, b);
    let work = |row: usize, from: usize, len: usize| {
        let [a, b] = walk.start(row);
        let skip = |advance: bool| if advance { from } else { 0 };
        let (a, b) = operands.get(a + skip(walk.advance[0]), b + skip(walk.advance[1]));
        let y = y.ptr().wrapping_add(row * inner + from);
        exec.isa().dispatch(Binary { op, a, b, y, len, advance: walk.advance.into() });
    };
    let grain = if op == BinaryOp::Pow { GRAIN / 8 } else { GRAIN };
    if rows == 1 {
        exec.split(inner, grain, &|range| work(0, range.start, range.len()));
    } else {
        exec.split(rows, grain / inner + 1, &|range| range.for_each(|row| work(row, 0, inner)));
    }
}

/// Pointers cover `len` elements (one, where the operand does not advance).
pub(crate) struct Binary {
    pub op: BinaryOp,
    pub a: *const f32,
    pub b: *const f32,
    pub y: *mut f32,
    pub len: usize,
    pub advance: (bool, bool),
}

macro_rules! each {
    ($s:ident, $self:ident, |$a:ident, $b:ident| $body:expr) => {
        match $self.advance {
            (true, true) => $self.zip::<_, true, true>(
                $s,
                #[inline(always)]
                |$a, $b| $body,
            ),
            (true, false) => $self.zip::<_, true, false>(
                $s,
                #[inline(always)]
                |$a, $b| $body,
            ),
            (false, true) => $self.zip::<_, false, true>(
                $s,
                #[inline(always)]
                |$a, $b| $body,
            ),
            (false, false) => $self.zip::<_, false, false>(
                $s,
                #[inline(always)]
                |$a, $b| $body,
            ),
        }
    };
}

impl Kernel for Binary {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.op {
            BinaryOp::Add => each!(s, self, |a, b| s.add(a, b)),
            BinaryOp::Sub => each!(s, self, |a, b| s.sub(a, b)),
            BinaryOp::Mul => each!(s, self, |a, b| s.mul(a, b)),
            BinaryOp::Div => each!(s, self, |a, b| s.div(a, b)),
            BinaryOp::Min => {
                each!(s, self, |a, b| s.select(s.unordered(a, a), a, s.min(a, b)));
            }
            BinaryOp::Max => {
                each!(s, self, |a, b| s.select(s.unordered(a, a), a, s.max(a, b)));
            }
            BinaryOp::PRelu => {
                each!(s, self, |a, b| s.select(s.lt(a, s.splat(0.0)), s.mul(a, b), a));
            }
            BinaryOp::Pow => self.power(),
        }
    }
}

impl Binary {
    #[inline(always)]
    fn zip<S: Simd, const A: bool, const B: bool>(self, s: S, f: impl Fn(S::F, S::F) -> S::F) {
        // SAFETY: the struct's contract; an operand that stays has one element.
        unsafe {
            let (first_a, first_b) = (s.splat(*self.a), s.splat(*self.b));
            let mut i = 0;
            while i + S::LANES <= self.len {
                let a = if A { s.load(self.a.add(i)) } else { first_a };
                let b = if B { s.load(self.b.add(i)) } else { first_b };
                s.store(self.y.add(i), f(a, b));
                i += S::LANES;
            }
            if i < self.len {
                let bits = low_bits(self.len - i);
                let a = if A { s.load_bits(self.a.add(i), bits) } else { first_a };
                let b = if B { s.load_bits(self.b.add(i), bits) } else { first_b };
                s.store_bits(self.y.add(i), f(a, b), bits);
            }
        }
    }

    #[inline(always)]
    fn power(self) {
        for i in 0..self.len {
            let at = |advance: bool| if advance { i } else { 0 };
            // SAFETY: the struct's contract.
            unsafe {
                let (a, b) = (*self.a.add(at(self.advance.0)), *self.b.add(at(self.advance.1)));
                *self.y.add(i) = power(a, b);
            }
        }
    }
}

/// aᵇ; the squares, cubes and roots that models use are computed directly.
fn power(a: f32, b: f32) -> f32 {
    match b {
        2.0 => a * a,
        3.0 => a * a * a,
        1.0 => a,
        _ => a.powf(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, broadcast, execs};

    fn scalar(op: BinaryOp, a: f32, b: f32) -> f32 {
        match op {
            BinaryOp::Add => a + b,
            BinaryOp::Sub => a - b,
            BinaryOp::Mul => a * b,
            BinaryOp::Div => a / b,
            BinaryOp::Min | BinaryOp::Max if a.is_nan() || b.is_nan() => f32::NAN,
            BinaryOp::Min => a.min(b),
            BinaryOp::Max => a.max(b),
            BinaryOp::Pow => power(a, b),
            BinaryOp::PRelu => {
                if a < 0.0 {
                    a * b
                } else {
                    a
                }
            }
        }
    }

    fn reference(op: BinaryOp, a: (&[f32], &[usize]), b: (&[f32], &[usize]), shape: &[usize]) -> Vec<f32> {
        let total: usize = shape.iter().product();
        let pick = |(data, dims): (&[f32], &[usize]), index: usize| data[broadcast(dims, shape, index)];
        (0..total).map(|i| scalar(op, pick(a, i), pick(b, i))).collect()
    }

    type Shapes = (&'static [usize], &'static [usize], &'static [usize]);
    const SHAPES: &[Shapes] = &[
        (&[], &[], &[]),
        (&[5], &[5], &[5]),
        (&[3, 37], &[1], &[3, 37]),
        (&[1], &[3, 37], &[3, 37]),
        (&[4, 5, 19], &[19], &[4, 5, 19]),
        (&[2, 3, 4, 5], &[3, 1, 1], &[2, 3, 4, 5]),
        (&[2, 1, 4, 1], &[3, 1, 33], &[2, 3, 4, 33]),
        (&[2, 1, 1, 3, 1, 2, 1, 5], &[1, 2, 1, 3, 4, 1, 1, 5], &[2, 2, 1, 3, 4, 2, 1, 5]),
        (&[7, 1], &[1, 9], &[7, 9]),
        (&[40_000], &[40_000], &[40_000]),
        (&[0, 3], &[3], &[0, 3]),
    ];

    #[test]
    fn broadcasts_like_the_definition() {
        let ops = [
            BinaryOp::Add,
            BinaryOp::Sub,
            BinaryOp::Mul,
            BinaryOp::Div,
            BinaryOp::Min,
            BinaryOp::Max,
            BinaryOp::Pow,
            BinaryOp::PRelu,
        ];
        let mut r = Random::new(11);
        for exec in execs() {
            for &(sa, sb, sy) in SHAPES {
                let (mut a, b) = (r.vec(sa.iter().product()), r.vec(sb.iter().product()));
                if let Some(last) = a.last_mut() {
                    *last = f32::NAN;
                }
                for op in ops {
                    let want = reference(op, (&a, sa), (&b, sb), sy);
                    let mut y = Guarded::new(&vec![0.0; want.len()]);
                    binary(&exec, op, (&a, sa), (&b, sb), (y.get(), sy)).unwrap();
                    // Single operations round alike: compare bits (any NaN is a NaN).
                    let same = y.get().iter().zip(&want).all(|(g, w)| g == w || (g.is_nan() && w.is_nan()));
                    assert!(same, "{op:?} {sa:?} {sb:?} {exec:?}");
                    if sa == sy {
                        let mut y = a.clone();
                        binary_assign(&exec, op, (&mut y, sy), (&b, sb)).unwrap();
                        assert!(y.iter().zip(&want).all(|(g, w)| g == w || (g.is_nan() && w.is_nan())));
                    }
                }
            }
        }
    }

    #[test]
    fn refuses_shapes_that_do_not_broadcast() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let mut y = [0.0; 6];
        let run = |a: &[usize], b: &[usize], y: (&mut [f32], &[usize])| {
            let (x, z) = (vec![0.0; a.iter().product()], vec![0.0; b.iter().product()]);
            binary(&exec, BinaryOp::Add, (&x, a), (&z, b), y)
        };
        assert!(run(&[2], &[3], (&mut y, &[2, 3])).is_err());
        assert!(run(&[2, 3], &[2, 3], (&mut y, &[6])).is_err());
        assert!(run(&[1; 9], &[1; 9], (&mut y[..1], &[1; 9])).is_err());
    }
}
