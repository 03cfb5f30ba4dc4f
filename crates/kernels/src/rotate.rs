//! Rotation of pairs of elements by the angles of their positions (ONNX `RotaryEmbedding`).

use crate::attention::require_apart;
use crate::buffer::SharedMut;
use crate::error::{Result, at_least, exact, product, require, span};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "rotate";
/// Elements of a task at the least.
const GRAIN: usize = 1 << 14;

/// Shape of a rotation; heads are `[batch, heads, rows, size]` in any order of the first three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotateParams {
    /// Batch entries.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Rows of a head.
    pub rows: usize,
    /// Elements of a row.
    pub size: usize,
    /// Pairs that are rotated, of the first `2 · pairs` elements of a row; the others are copied.
    pub pairs: usize,
    /// Whether pairs are neighbours instead of elements of both halves.
    pub interleaved: bool,
    /// Elements of `x` from one batch entry, head and row to the next.
    pub from: [usize; 3],
    /// Those of `y`.
    pub to: [usize; 3],
}

/// `(a, b) → (cos · a − sin · b, sin · a + cos · b)` for the pairs of each row, each product and sum rounded. `cos` and `sin` are
/// `[positions, pairs]`; `positions` has the position of each row of each batch entry, or is empty where `pairs` is 0.
///
/// # Errors
/// A slice is too short for its steps, rows of `y` overlap, a position is not in the caches, or rows have fewer pairs.
pub fn rotate(
    exec: &Exec,
    p: &RotateParams,
    x: &[f32],
    [cos, sin]: [&[f32]; 2],
    positions: &[usize],
    y: &mut [f32],
) -> Result {
    let need = |[b, h, r]: [usize; 3]| span(NAME, &[(p.batch, b), (p.heads, h), (p.rows, r), (p.size, 1)]);
    at_least(NAME, "x", x.len(), need(p.from)?)?;
    at_least(NAME, "y", y.len(), need(p.to)?)?;
    require_apart(NAME, [p.batch, p.heads, p.rows, p.size], p.to)?;
    require(NAME, p.pairs <= p.size / 2, "rows have fewer pairs")?;
    let all = product(NAME, &[p.batch, p.heads, p.rows, p.size])?;
    if let Some(most) = cos.len().min(sin.len()).checked_div(p.pairs) {
        exact(NAME, "positions", positions.len(), p.batch * p.rows)?;
        require(NAME, positions.iter().all(|&at| at < most), "a position is not in the caches")?;
    }
    if all == 0 {
        return Ok(());
    }
    let out = SharedMut::new(y);
    exec.split(p.batch * p.heads * p.rows, GRAIN / p.size + 1, &|range| {
        for i in range {
            let (b, h, r) = (i / p.rows / p.heads, i / p.rows % p.heads, i % p.rows);
            let at = |[of_b, of_h, of_r]: [usize; 3]| b * of_b + h * of_h + r * of_r;
            let angles = if p.pairs > 0 { positions[b * p.rows + r] * p.pairs } else { 0 };
            exec.isa().dispatch(Row {
                p,
                x: &x[at(p.from)..][..p.size],
                cos: &cos[angles..][..p.pairs],
                sin: &sin[angles..][..p.pairs],
                // SAFETY: rows lie in `y` and don't overlap, as was checked; each is one task's.
                y: unsafe { out.slice(at(p.to), p.size) },
            });
        }
    });
    Ok(())
}

struct Row<'a> {
    p: &'a RotateParams,
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let pairs = self.p.pairs;
        self.y[2 * pairs..].copy_from_slice(&self.x[2 * pairs..]);
        if self.p.interleaved {
            let (x, y) = (self.x.chunks_exact(2), self.y.chunks_exact_mut(2));
            for (((x, y), &cos), &sin) in x.zip(y).zip(self.cos).zip(self.sin) {
                (y[0], y[1]) = (cos * x[0] - sin * x[1], sin * x[0] + cos * x[1]);
            }
            return;
        }
        let (x, y) = (self.x.as_ptr(), self.y.as_mut_ptr());
        let mut i = 0;
        while i < pairs {
            let bits = low_bits((pairs - i).min(S::LANES));
            // SAFETY: both halves, and the angles, have `pairs` elements.
            unsafe {
                let (a, b) = (s.load_bits(x.add(i), bits), s.load_bits(x.add(pairs + i), bits));
                let cos = s.load_bits(self.cos.as_ptr().add(i), bits);
                let sin = s.load_bits(self.sin.as_ptr().add(i), bits);
                s.store_bits(y.add(i), s.sub(s.mul(cos, a), s.mul(sin, b)), bits);
                s.store_bits(y.add(pairs + i), s.add(s.mul(sin, a), s.mul(cos, b)), bits);
            }
            i += S::LANES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, assert_close, assert_same_everywhere, bits, execs};

    const BASE: RotateParams = RotateParams {
        batch: 2,
        heads: 3,
        rows: 4,
        size: 70,
        pairs: 35,
        interleaved: false,
        from: [3 * 4 * 70, 4 * 70, 70],
        to: [3 * 4 * 70, 4 * 70, 70],
    };

    #[test]
    fn rotates_in_any_order_of_heads_and_rows() {
        let mut r = Random::new(9);
        let turned = RotateParams { to: [4 * 3 * 70 + 5, 70, 3 * 70], ..BASE };
        for p in [BASE, turned, RotateParams { pairs: 16, ..BASE }, RotateParams { pairs: 0, ..turned }] {
            for p in [p, RotateParams { interleaved: true, ..p }] {
                let (x, cos, sin) = (r.vec(2 * 3 * 4 * 70), r.vec(6 * p.pairs), r.vec(6 * p.pairs));
                let positions: Vec<usize> = (0..8).map(|_| r.below(6)).collect();
                let positions = if p.pairs == 0 { &[] } else { positions.as_slice() };
                let mut want = vec![7f32; 2 * p.to[0]];
                for i in 0..2 * 3 * 4 {
                    let (b, h, row) = (i / 12, i / 4 % 3, i % 4);
                    let from = &x[b * p.from[0] + h * p.from[1] + row * p.from[2]..][..70];
                    let to = &mut want[b * p.to[0] + h * p.to[1] + row * p.to[2]..][..70];
                    to.copy_from_slice(from);
                    for j in 0..p.pairs {
                        let (a, b2) = if p.interleaved { (2 * j, 2 * j + 1) } else { (j, j + p.pairs) };
                        let at = positions[b * 4 + row] * p.pairs + j;
                        let (c, s) = (f64::from(cos[at]), f64::from(sin[at]));
                        let (x, y) = (f64::from(from[a]), f64::from(from[b2]));
                        (to[a], to[b2]) = ((c * x - s * y) as f32, (s * x + c * y) as f32);
                    }
                }
                for exec in execs() {
                    let mut y = vec![7.0; want.len()];
                    rotate(&exec, &p, &x, [&cos, &sin], positions, &mut y).unwrap();
                    assert_close(&y, &want, 3e-7, &format!("{p:?} {exec:?}"));
                }
                assert_same_everywhere(&format!("{p:?}"), &|exec, edge| {
                    let (mut x, mut y) = (Guarded::at(edge, &x), Guarded::at(edge, &vec![7f32; want.len()]));
                    let [mut cos, mut sin] = [&cos, &sin].map(|v| Guarded::at(edge, v));
                    rotate(exec, &p, x.get(), [cos.get(), sin.get()], positions, y.get()).unwrap();
                    bits(y.get())
                });
            }
        }
    }

    #[test]
    fn refuses_positions_and_rows_that_do_not_fit() {
        let exec = &execs()[0];
        let (x, mut y, angles) = (vec![0.0; 1680], vec![0.0; 1680], vec![0.0; 6 * 35]);
        let mut run = |p: &RotateParams, at: usize, x: &[f32]| rotate(exec, p, x, [&angles, &angles], &[at; 8], &mut y);
        assert!(run(&BASE, 5, &x).is_ok());
        assert!(run(&BASE, 6, &x).is_err());
        assert!(run(&BASE, 5, &x[1..]).is_err());
        assert!(run(&RotateParams { pairs: 36, ..BASE }, 0, &x).is_err());
        assert!(run(&RotateParams { to: [840, 280, 69], ..BASE }, 0, &x).is_err());
        assert!(run(&RotateParams { batch: 3, ..BASE }, 0, &x).is_err());
    }
}
