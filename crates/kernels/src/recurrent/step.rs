//! The steps of a few sequences in one direction.

use super::Recurrent;
use super::weights::{Cell, RecurrentWeights};
use crate::buffer::{SharedMut, with_scratch};
use crate::exec::Exec;
use crate::math;
use crate::simd::{Kernel, Simd, low_bits};

/// Sequences of a task at the most: their sums fit into the registers of the widest vectors.
pub(super) const MOST_ROWS: usize = 4;

/// Sequences `first..first + rows` in direction `d`; no other task writes their results.
pub(super) struct Task<'a> {
    pub p: &'a Recurrent<'a>,
    pub w: &'a RecurrentWeights,
    /// The products of the inputs, with biases: `[rows of the input, directions, gates, hidden]`.
    pub gates: &'a [f32],
    pub d: usize,
    pub first: usize,
    pub rows: usize,
    pub y: Option<SharedMut<f32>>,
    pub h: Option<SharedMut<f32>>,
    pub c: Option<SharedMut<f32>>,
}

impl Task<'_> {
    /// Units with those that fill the last vector.
    fn padded(&self) -> usize {
        self.w.hidden().next_multiple_of(self.w.lanes())
    }

    pub fn run(&self, exec: &Exec) {
        let size = self.rows * self.padded();
        with_scratch(4 * size, |states| {
            // Hidden states before and after a step, those of cells, and hidden states that a reset gate multiplied.
            states.fill(0.0);
            let (now, rest) = states.split_at_mut(size);
            self.load(self.p.h, now);
            self.load(self.p.c, &mut rest[size..2 * size]);
            let last = match self.rows {
                1 => exec.isa().dispatch(Steps::<1> { t: self, states }),
                2 => exec.isa().dispatch(Steps::<2> { t: self, states }),
                3 => exec.isa().dispatch(Steps::<3> { t: self, states }),
                _ => exec.isa().dispatch(Steps::<MOST_ROWS> { t: self, states }),
            };
            self.store(self.h, &states[last * size..][..size]);
            self.store(self.c, &states[2 * size..][..size]);
        });
    }

    fn load(&self, from: Option<&[f32]>, to: &mut [f32]) {
        let Some(from) = from else { return };
        let n = self.w.hidden();
        for (i, row) in to.chunks_exact_mut(self.padded()).enumerate() {
            row[..n].copy_from_slice(&from[self.p.state(self.first + i, self.d) * n..][..n]);
        }
    }

    fn store(&self, to: Option<SharedMut<f32>>, from: &[f32]) {
        let Some(to) = to else { return };
        let n = self.w.hidden();
        for (i, row) in from.chunks_exact(self.padded()).enumerate() {
            // SAFETY: the state of a sequence in a direction is one task's.
            unsafe { to.slice(self.p.state(self.first + i, self.d) * n, n) }.copy_from_slice(&row[..n]);
        }
    }
}

/// All steps of `ROWS` sequences; gives which of the two hidden states is the last.
struct Steps<'a, const ROWS: usize> {
    t: &'a Task<'a>,
    states: &'a mut [f32],
}

/// Where the rows of a step stand; `y` is null where nobody asked for it.
#[derive(Clone, Copy)]
struct Row {
    gates: *const f32,
    y: *mut f32,
    /// Whether the sequence goes on.
    active: bool,
}

impl<const ROWS: usize> Kernel for Steps<'_, ROWS> {
    type Out = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let Steps { t, states } = self;
        let (p, w, padded) = (t.p, t.w, t.padded());
        let size = ROWS * padded;
        let longest = (t.first..t.first + ROWS).map(|b| p.len(b)).max().unwrap_or(0);
        let states = states.as_mut_ptr();
        for step in 0..longest {
            let rows = std::array::from_fn(|i| t.row(step, t.first + i));
            let at = |part: usize| states.wrapping_add(part * size);
            let state =
                States { before: at(step % 2), after: at(1 - step % 2), cells: at(2), reset: at(3), stride: padded };
            let layer = Layer { hidden: w.hidden(), clip: p.clip, weights: w.recurrent(t.d).as_ptr() };
            // SAFETY: `Recurrent::check` and `RecurrentWeights::new` covered every slice, the vectors are those that the
            // weights were packed for, and the states have room for whole vectors.
            unsafe {
                match w.cell() {
                    Cell::Lstm { input_forget } => lstm::<S, ROWS>(s, &layer, &state, &rows, input_forget),
                    Cell::Gru { linear_before_reset: true } => {
                        gru_linear::<S, ROWS>(s, &layer, &state, &rows, w.reset_bias(t.d).as_ptr());
                    }
                    Cell::Gru { linear_before_reset: false } => gru::<S, ROWS>(s, &layer, &state, &rows),
                }
            }
        }
        longest % 2
    }
}

impl Task<'_> {
    fn row(&self, step: usize, b: usize) -> Row {
        let (p, d, hidden) = (self.p, self.d, self.w.hidden());
        let element = p.element(step, b, d);
        // What is computed behind the end is dropped.
        let (active, t) = (element.is_some(), element.unwrap_or(0));
        let place = (p.row(t, b) * p.reverse.len() + d) * self.w.cell().gates() * hidden;
        let y = self.y.map_or(std::ptr::null_mut(), |y| y.ptr().wrapping_add(p.place(t, b, d) * hidden));
        Row { gates: self.gates[place..].as_ptr(), y, active }
    }
}

/// The states of the rows, `stride` apart.
struct States {
    before: *mut f32,
    after: *mut f32,
    cells: *mut f32,
    reset: *mut f32,
    stride: usize,
}

struct Layer {
    hidden: usize,
    clip: f32,
    weights: *const f32,
}

/// The products of `G` gates of one vector of units with the states of all rows: `w` has a vector for each gate and each of
/// `k` elements.
#[inline(always)]
unsafe fn products<S: Simd, const ROWS: usize, const G: usize>(
    s: S,
    w: *const f32,
    (h, stride, k): (*const f32, usize, usize),
) -> [[S::F; G]; ROWS] {
    let mut sums = [[s.splat(0.0); G]; ROWS];
    for i in 0..k {
        // SAFETY: the caller vouches for `k` vectors of each gate, and as many elements of each row.
        unsafe {
            let mut gates = [s.splat(0.0); G];
            for (g, v) in gates.iter_mut().enumerate() {
                *v = s.load(w.add((i * G + g) * S::LANES));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = s.splat(*h.add(row * stride + i));
                for (sum, &v) in sums.iter_mut().zip(&gates) {
                    *sum = s.mul_add(x, v, *sum);
                }
            }
        }
    }
    sums
}

/// A gate's argument: its product with the state, the input's part, clipped.
#[inline(always)]
unsafe fn argument<S: Simd>(s: S, l: &Layer, row: &Row, gate: usize, unit: usize, sum: S::F, bits: u32) -> S::F {
    // SAFETY: the caller vouches for the units of `bits`.
    let x = unsafe { s.load_bits(row.gates.add(gate * l.hidden + unit), bits) };
    within(s, l.clip, s.add(x, sum))
}

/// A gate's argument clipped to ± `clip`.
#[inline(always)]
pub(super) fn within<S: Simd>(s: S, clip: f32, x: S::F) -> S::F {
    // NaN passes: `min` and `max` give their second operand then.
    s.min(s.splat(clip), s.max(s.splat(-clip), x))
}

/// The new states of cells and the new hidden states of an LSTM's units, from the arguments of the gates i, o, f and c.
#[inline(always)]
pub(super) fn lstm_unit<S: Simd>(s: S, [i, o, f, c]: [S::F; 4], cell: S::F, input_forget: bool) -> (S::F, S::F) {
    let input = math::sigmoid(s, i);
    let output = math::sigmoid(s, o);
    let forget = match input_forget {
        true => s.sub(s.splat(1.0), input),
        false => math::sigmoid(s, f),
    };
    let cell = s.mul_add(forget, cell, s.mul(input, math::tanh(s, c)));
    (cell, s.mul(output, math::tanh(s, cell)))
}

/// Writes the new state of a row's units, or keeps the old one behind the end of its sequence.
#[inline(always)]
unsafe fn finish<S: Simd>(s: S, state: &States, row: &Row, at: usize, unit: usize, h: S::F, bits: u32) {
    // SAFETY: states have whole vectors; `y` has the units of `bits`.
    unsafe {
        if !row.active {
            s.store(state.after.add(at), s.load(state.before.add(at)));
            return;
        }
        s.store(state.after.add(at), h);
        if !row.y.is_null() {
            s.store_bits(row.y.add(unit), h, bits);
        }
    }
}

/// One step of an LSTM.
#[inline(always)]
unsafe fn lstm<S: Simd, const ROWS: usize>(s: S, l: &Layer, state: &States, rows: &[Row; ROWS], input_forget: bool) {
    let mut unit = 0;
    while unit < l.hidden {
        let bits = low_bits((l.hidden - unit).min(S::LANES));
        // SAFETY: the caller vouches for weights, rows and states of all units.
        unsafe {
            let w = l.weights.add(unit * l.hidden * 4);
            let sums = products::<S, ROWS, 4>(s, w, (state.before, state.stride, l.hidden));
            for (i, (row, sum)) in rows.iter().zip(&sums).enumerate() {
                let at = i * state.stride + unit;
                let mut gates = *sum;
                for (g, gate) in gates.iter_mut().enumerate() {
                    *gate = argument(s, l, row, g, unit, *gate, bits);
                }
                let (cell, h) = lstm_unit(s, gates, s.load(state.cells.add(at)), input_forget);
                if row.active {
                    s.store(state.cells.add(at), cell);
                }
                finish(s, state, row, at, unit, h, bits);
            }
        }
        unit += S::LANES;
    }
}

/// `(1 − z)·candidate + z·before`.
#[inline(always)]
fn blend<S: Simd>(s: S, z: S::F, candidate: S::F, before: S::F) -> S::F {
    s.mul_add(z, before, s.mul(s.sub(s.splat(1.0), z), candidate))
}

/// One step of a GRU whose reset gate multiplies a product.
#[inline(always)]
unsafe fn gru_linear<S: Simd, const ROWS: usize>(
    s: S,
    l: &Layer,
    state: &States,
    rows: &[Row; ROWS],
    bias: *const f32,
) {
    let mut unit = 0;
    while unit < l.hidden {
        let bits = low_bits((l.hidden - unit).min(S::LANES));
        // SAFETY: the caller vouches for weights, rows, states and biases of all units.
        unsafe {
            let w = l.weights.add(unit * l.hidden * 3);
            let sums = products::<S, ROWS, 3>(s, w, (state.before, state.stride, l.hidden));
            let bias = s.load_bits(bias.add(unit), bits);
            for (i, (row, sum)) in rows.iter().zip(&sums).enumerate() {
                let at = i * state.stride + unit;
                let z = math::sigmoid(s, argument(s, l, row, 0, unit, sum[0], bits));
                let r = math::sigmoid(s, argument(s, l, row, 1, unit, sum[1], bits));
                let product = s.mul(r, s.add(sum[2], bias));
                let candidate = math::tanh(s, argument(s, l, row, 2, unit, product, bits));
                let h = blend(s, z, candidate, s.load(state.before.add(at)));
                finish(s, state, row, at, unit, h, bits);
            }
        }
        unit += S::LANES;
    }
}

/// One step of a GRU whose reset gate multiplies the state.
#[inline(always)]
unsafe fn gru<S: Simd, const ROWS: usize>(s: S, l: &Layer, state: &States, rows: &[Row; ROWS]) {
    let mut unit = 0;
    // z waits where the new state will stand.
    while unit < l.hidden {
        let bits = low_bits((l.hidden - unit).min(S::LANES));
        // SAFETY: the caller vouches for weights, rows and states of all units.
        unsafe {
            let w = l.weights.add(unit * l.hidden * 2);
            let sums = products::<S, ROWS, 2>(s, w, (state.before, state.stride, l.hidden));
            for (i, (row, sum)) in rows.iter().zip(&sums).enumerate() {
                let at = i * state.stride + unit;
                let r = math::sigmoid(s, argument(s, l, row, 1, unit, sum[1], bits));
                s.store(state.after.add(at), math::sigmoid(s, argument(s, l, row, 0, unit, sum[0], bits)));
                s.store(state.reset.add(at), s.mul(r, s.load(state.before.add(at))));
            }
        }
        unit += S::LANES;
    }
    // The two gates before have filled whole vectors of units.
    let second = l.weights.wrapping_add(unit * l.hidden * 2);
    let mut unit = 0;
    while unit < l.hidden {
        let bits = low_bits((l.hidden - unit).min(S::LANES));
        // SAFETY: as above.
        unsafe {
            let w = second.add(unit * l.hidden);
            let sums = products::<S, ROWS, 1>(s, w, (state.reset, state.stride, l.hidden));
            for (i, (row, sum)) in rows.iter().zip(&sums).enumerate() {
                let at = i * state.stride + unit;
                let candidate = math::tanh(s, argument(s, l, row, 2, unit, sum[0], bits));
                let h = blend(s, s.load(state.after.add(at)), candidate, s.load(state.before.add(at)));
                finish(s, state, row, at, unit, h, bits);
            }
        }
        unit += S::LANES;
    }
}
