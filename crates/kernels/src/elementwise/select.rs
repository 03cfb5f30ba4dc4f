//! One of two tensors, element by element.

use super::GRAIN;
use super::walk::Walk;
use crate::buffer::SharedMut;
use crate::error::{Result, exact, product};
use crate::exec::Exec;
use crate::movement::Element;
use crate::simd::{Kernel, Simd};

const NAME: &str = "select";

/// `y = condition ? a : b` with numpy broadcasting (see [`super::binary`]); bytes of the condition other than 0 are true.
/// `y_shape` must be the broadcast shape.
///
/// # Errors
/// The shapes don't broadcast to `y_shape`, have over [`super::MAX_DIMS`] dimensions, or a slice has another length than
/// its shape.
pub fn select<T: Element>(
    exec: &Exec,
    (condition, condition_shape): (&[u8], &[usize]),
    (a, a_shape): (&[T], &[usize]),
    (b, b_shape): (&[T], &[usize]),
    (y, y_shape): (&mut [T], &[usize]),
) -> Result {
    exact(NAME, "condition", condition.len(), product(NAME, condition_shape)?)?;
    exact(NAME, "a", a.len(), product(NAME, a_shape)?)?;
    exact(NAME, "b", b.len(), product(NAME, b_shape)?)?;
    exact(NAME, "y", y.len(), product(NAME, y_shape)?)?;
    let walk = Walk::new(NAME, [condition_shape, a_shape, b_shape], y_shape)?;
    if y.is_empty() {
        return Ok(());
    }
    let (rows, inner, y) = (walk.rows(), walk.inner, SharedMut::new(y));
    let work = |row: usize, from: usize, len: usize| {
        let at = walk.start(row);
        let place = |k: usize| if walk.advance[k] { (at[k] + from, len) } else { (at[k], 1) };
        // SAFETY: each part of each row is one task's.
        let y = unsafe { y.slice(row * inner + from, len) };
        let [(c, c_len), (i, i_len), (j, j_len)] = [place(0), place(1), place(2)];
        exec.isa().dispatch(Select {
            condition: &condition[c..][..c_len],
            a: &a[i..][..i_len],
            b: &b[j..][..j_len],
            y,
        });
    };
    if rows == 1 {
        exec.split(inner, GRAIN, &|range| work(0, range.start, range.len()));
    } else {
        exec.split(rows, GRAIN / inner + 1, &|range| range.for_each(|row| work(row, 0, inner)));
    }
    Ok(())
}

/// A row; operands that do not advance have one element, as all have in a row of one.
struct Select<'a, T> {
    condition: &'a [u8],
    a: &'a [T],
    b: &'a [T],
    y: &'a mut [T],
}

impl<T: Element> Kernel for Select<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let n = self.y.len();
        if self.condition.len() < n {
            let (from, all) = if self.condition[0] != 0 { (self.a, self.a.len()) } else { (self.b, self.b.len()) };
            if all == n {
                self.y.copy_from_slice(from)
            } else {
                self.y.fill(from[0])
            }
            return;
        }
        match (self.a.len() == n, self.b.len() == n) {
            (true, true) => self.zip::<true, true>(),
            (true, false) => self.zip::<true, false>(),
            (false, true) => self.zip::<false, true>(),
            (false, false) => self.zip::<false, false>(),
        }
    }
}

impl<T: Element> Select<'_, T> {
    #[inline(always)]
    fn zip<const A: bool, const B: bool>(self) {
        let n = self.y.len();
        let (first_a, first_b) = (self.a[0], self.b[0]);
        // Slices of one length, so that the loop needs no checks.
        let (a, b) = (&self.a[..if A { n } else { 0 }], &self.b[..if B { n } else { 0 }]);
        for i in 0..n {
            let x = if A { a[i] } else { first_a };
            let z = if B { b[i] } else { first_b };
            self.y[i] = if self.condition[i] != 0 { x } else { z };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, assert_same_everywhere, broadcast};

    fn check<T: Element + PartialEq + std::fmt::Debug + Default>(make: &dyn Fn(u64) -> T) {
        let shapes: &[[&[usize]; 4]] = &[
            [&[], &[], &[], &[]],
            [&[5], &[5], &[1], &[5]],
            [&[1], &[37], &[37], &[37]],
            [&[1, 1, 7, 33], &[2, 3, 7, 33], &[], &[2, 3, 7, 33]],
            [&[7, 1], &[1, 9], &[7, 9], &[7, 9]],
            [&[2, 1, 1, 9], &[], &[2, 4, 5, 9], &[2, 4, 5, 9]],
            [&[40_000], &[1], &[1], &[40_000]],
            [&[0, 3], &[3], &[1], &[0, 3]],
        ];
        let mut r = Random::new(91);
        for &[sc, sa, sb, sy] in shapes {
            let len = |s: &[usize]| s.iter().product::<usize>();
            let condition: Vec<u8> = (0..len(sc)).map(|_| [0, 1, 255][r.below(3)]).collect();
            let a: Vec<T> = (0..len(sa)).map(|_| make(r.next())).collect();
            let b: Vec<T> = (0..len(sb)).map(|_| make(r.next())).collect();
            let pick = |i: usize| match condition[broadcast(sc, sy, i)] {
                0 => b[broadcast(sb, sy, i)],
                _ => a[broadcast(sa, sy, i)],
            };
            let want: Vec<T> = (0..len(sy)).map(pick).collect();
            assert_same_everywhere(&format!("{sc:?} {sa:?} {sb:?}"), &|exec, edge| {
                let (mut c, mut a, mut b) =
                    (Guarded::at(edge, &condition), Guarded::at(edge, &a), Guarded::at(edge, &b));
                let mut y = Guarded::at(edge, &vec![T::default(); want.len()]);
                select(exec, (c.get(), sc), (a.get(), sa), (b.get(), sb), (y.get(), sy)).unwrap();
                assert_eq!(y.get(), want);
                Vec::new()
            });
        }
    }

    #[test]
    fn selects_elements_of_every_size_as_the_definition_does() {
        check(&|x| x as u8);
        check(&|x| x as u16);
        check(&|x| x as u32);
        check(&|x| x);
    }

    #[test]
    fn refuses_shapes_that_do_not_broadcast_and_other_lengths() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let (c, x, mut y) = ([1u8; 6], [0u32; 6], [0u32; 6]);
        let mut run = |sc: &[usize], n: usize| {
            select(&exec, (&c[..n], sc), (&x, &[2, 3]), (&x, &[2, 3]), (&mut y, &[2, 3])).is_err()
        };
        assert!(run(&[2], 2));
        assert!(run(&[3], 2));
        assert!(!run(&[3], 3));
    }
}
