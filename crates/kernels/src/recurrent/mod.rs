//! LSTM and GRU of floats (ONNX operators of these names, with their default functions), and LSTM whose products are of 8-bit
//! integers ([`int_lstm`]).
//!
//! The products of the inputs of all steps are one matrix product. What is left of a step is a product with the hidden state,
//! whose weights are packed so that all gates of a vector of units stand together: a unit's gates end in registers, and its new
//! state is made there. Each sequence of a batch and each direction is independent of the others: they are the tasks.

mod integer;
mod step;
mod weights;

pub use integer::{IntLstmWeights, IntMatrix, int_lstm};
pub use weights::{Cell, RecurrentWeights};

use crate::buffer::{SharedMut, with_scratch};
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::panel::{Epilogue, Rows, Target, panel_gemm};
use step::{MOST_ROWS, Task};

const NAME: &str = "recurrent";

/// A recurrent layer, without weights, input and outputs.
#[derive(Clone, Copy, Debug)]
pub struct Recurrent<'a> {
    /// Elements of a sequence.
    pub steps: usize,
    /// Sequences.
    pub batch: usize,
    /// Whether the sequences are the first axis of all tensors, and not the steps or directions.
    pub batch_first: bool,
    /// By direction, whether it goes from the last element to the first.
    pub reverse: &'a [bool],
    /// By sequence its elements; all where absent.
    pub lens: Option<&'a [i32]>,
    /// The hidden state before the first step, as [`RecurrentOutputs::h`]; zeros where absent.
    pub h: Option<&'a [f32]>,
    /// The state of the cells before the first step (LSTM), as [`RecurrentOutputs::c`]; zeros where absent.
    pub c: Option<&'a [f32]>,
    /// The arguments of the gates' functions are clipped to ± this.
    pub clip: f32,
}

/// What a recurrent layer makes; absent parts are not written.
#[derive(Debug, Default)]
pub struct RecurrentOutputs<'a> {
    /// The hidden state of each step `[steps, directions, batch, hidden]`, zeros behind the end of a sequence;
    /// `[batch, steps, directions, hidden]` with the batch first.
    pub y: Option<&'a mut [f32]>,
    /// The last hidden state `[directions, batch, hidden]`; `[batch, directions, hidden]` with the batch first.
    pub h: Option<&'a mut [f32]>,
    /// The last state of the cells, likewise (LSTM).
    pub c: Option<&'a mut [f32]>,
}

impl Recurrent<'_> {
    /// Checks all lengths against weights of so many directions, inputs, units and gates.
    fn check(&self, [directions, input, hidden, gates]: [usize; 4], x: usize, out: &RecurrentOutputs<'_>) -> Result {
        let dirs = self.reverse.len();
        require(NAME, dirs == directions, "the weights are for another number of directions")?;
        let rows = product(NAME, &[self.steps, self.batch])?;
        let state = product(NAME, &[dirs, self.batch, hidden])?;
        exact(NAME, "x", x, product(NAME, &[rows, input])?)?;
        let all = product(NAME, &[rows, dirs, hidden])?;
        product(NAME, &[all, gates])?;
        out.y.as_ref().map_or(Ok(()), |y| exact(NAME, "y", y.len(), all))?;
        for (what, given) in
            [("initial h", self.h), ("initial c", self.c), ("h", out.h.as_deref()), ("c", out.c.as_deref())]
        {
            given.map_or(Ok(()), |s| exact(NAME, what, s.len(), state))?;
        }
        if let Some(lens) = self.lens {
            exact(NAME, "the lengths of the sequences", lens.len(), self.batch)?;
            let fits = lens.iter().all(|&n| usize::try_from(n).is_ok_and(|n| n <= self.steps));
            require(NAME, fits, "a sequence is longer than the steps or has a negative length")?;
        }
        Ok(())
    }

    /// The place of element `t` of sequence `b` among the rows of the input.
    fn row(&self, t: usize, b: usize) -> usize {
        if self.batch_first { b * self.steps + t } else { t * self.batch + b }
    }

    /// The place of that element's state in direction `d` among those of all steps.
    fn place(&self, t: usize, b: usize, d: usize) -> usize {
        let dirs = self.reverse.len();
        if self.batch_first { self.row(t, b) * dirs + d } else { (t * dirs + d) * self.batch + b }
    }

    /// The place of a sequence's state among the final ones.
    fn state(&self, b: usize, d: usize) -> usize {
        if self.batch_first { b * self.reverse.len() + d } else { d * self.batch + b }
    }

    fn len(&self, b: usize) -> usize {
        self.lens.map_or(self.steps, |lens| lens[b].max(0) as usize)
    }

    /// The element that a sequence is at in a step of direction `d`, unless it has ended.
    fn element(&self, step: usize, b: usize, d: usize) -> Option<usize> {
        let len = self.len(b);
        let from = if self.reverse[d] { len.checked_sub(step + 1) } else { Some(step) };
        from.filter(|_| step < len)
    }
}

/// Runs a recurrent layer over `x` `[steps, batch, input]`, or `[batch, steps, input]` with the batch first.
///
/// # Errors
/// A slice has another length than the shapes, a sequence is longer than the steps, or the weights were packed for
/// another instruction set.
pub fn recurrent(exec: &Exec, p: &Recurrent<'_>, w: &RecurrentWeights, x: &[f32], out: RecurrentOutputs<'_>) -> Result {
    p.check([w.directions(), w.input(), w.hidden(), w.cell().gates()], x.len(), &out)?;
    require(NAME, w.is_for(exec), "the weights were packed for another instruction set")?;
    let dirs = p.reverse.len();
    let (rows, columns) = (p.steps * p.batch, dirs * w.cell().gates() * w.hidden());
    let shared = |s: &mut [f32]| SharedMut::new(s);
    let RecurrentOutputs { mut y, h, c } = out;
    if let (Some(y), Some(_)) = (&mut y, p.lens) {
        y.fill(0.0);
    }
    let (y, h, c) = (y.map(shared), h.map(shared), c.map(shared));
    with_scratch(rows * columns, |gates| {
        if rows > 0 {
            let epilogue = Epilogue { bias: w.bias(), ..Epilogue::default() };
            let shape = (rows, w.input(), w.input());
            panel_gemm(exec, Rows::F32(x), shape, w.panels(), &epilogue, Target::F32(&mut *gates))?;
        }
        // Enough tasks for all threads before rows share what is loaded of the weights.
        let each = (dirs * p.batch).div_ceil(exec.threads()).clamp(1, MOST_ROWS);
        let chunks = p.batch.div_ceil(each);
        exec.pool().run(dirs * chunks, &|task| {
            let (d, first) = (task / chunks, task % chunks * each);
            let rows = each.min(p.batch - first);
            Task { p, w, gates, d, first, rows, y, h, c }.run(exec);
        });
        Ok(())
    })
}

#[cfg(test)]
mod tests;
