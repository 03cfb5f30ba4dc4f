//! How operands of other shapes repeat over a result.

use crate::error::{Result, require};
use crate::few::Few;

/// Most dimensions of a broadcast.
pub const MAX_DIMS: usize = 8;

/// A length, and the steps of all operands.
#[derive(Clone, Copy)]
struct Dim<const N: usize> {
    len: usize,
    steps: [usize; N],
}

impl<const N: usize> Default for Dim<N> {
    fn default() -> Self {
        Dim { len: 0, steps: [0; N] }
    }
}

/// The loops of a broadcast of `N` operands: outer dimensions, and an inner one in which each operand either advances or
/// stays.
pub(super) struct Walk<const N: usize> {
    outer: Few<Dim<N>, MAX_DIMS>,
    /// Elements of a row.
    pub inner: usize,
    /// By operand, whether it advances along a row.
    pub advance: [bool; N],
}

impl<const N: usize> Walk<N> {
    /// With numpy's broadcasting: shapes align at the last dimension, and a dimension of 1 (or a missing one) repeats.
    pub fn new(name: &'static str, shapes: [&[usize]; N], result: &[usize]) -> Result<Walk<N>> {
        let rank = result.len();
        require(name, rank <= MAX_DIMS, "at most 8 dimensions are supported")?;
        let fits = shapes.iter().all(|s| s.len() <= rank);
        require(name, fits, "an operand has more dimensions than the result")?;
        let mut dims: Few<Dim<N>, MAX_DIMS> = Few::new();
        let mut behind = [1; N];
        for i in 0..rank {
            let len = result[rank - 1 - i];
            let lens = shapes.map(|shape| if i < shape.len() { shape[shape.len() - 1 - i] } else { 1 });
            let ok = lens.iter().all(|&l| l == len || l == 1);
            require(name, ok, "the shapes do not broadcast to the result's")?;
            let steps = std::array::from_fn(|k| if lens[k] == 1 { 0 } else { behind[k] });
            (0..N).for_each(|k| behind[k] *= lens[k]);
            if len != 1 {
                merge(&mut dims, Dim { len, steps });
            }
        }
        dims.reverse();
        let inner = dims.pop().unwrap_or(Dim { len: 1, steps: [0; N] });
        Ok(Walk { outer: dims, inner: inner.len, advance: inner.steps.map(|s| s != 0) })
    }

    /// Where the operands start in outer row `row`.
    pub fn start(&self, mut row: usize) -> [usize; N] {
        let mut at = [0; N];
        for dim in self.outer.iter().rev() {
            let index = row % dim.len;
            row /= dim.len;
            (0..N).for_each(|k| at[k] += index * dim.steps[k]);
        }
        at
    }

    /// Outer rows.
    pub fn rows(&self) -> usize {
        self.outer.iter().map(|dim| dim.len).product()
    }
}

/// Appends a dimension outside of the others, joining it to the last if all operands go on evenly. Dimensions are kept
/// innermost first.
fn merge<const N: usize>(dims: &mut Few<Dim<N>, MAX_DIMS>, dim: Dim<N>) {
    if let Some(last) = dims.last_mut() {
        let joins = (0..N).all(|k| dim.steps[k] == last.steps[k] * last.len);
        if joins {
            last.len *= dim.len;
            return;
        }
    }
    dims.push(dim);
}
