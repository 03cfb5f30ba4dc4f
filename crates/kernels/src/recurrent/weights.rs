//! Weights of recurrent layers, packed once.

use super::NAME;
use crate::buffer::Buffer;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::isa::Isa;
use crate::panel::{Panels, panel_gemm_pack};
use crate::simd::{Kernel, Simd};

/// What a unit computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cell {
    /// Gates i, o, f, c: `c' = f·c + i·tanh(c)`, `h = o·tanh(c')`.
    Lstm {
        /// Whether f is `1 − i`.
        input_forget: bool,
    },
    /// Gates z, r, h: `h' = (1 − z)·tanh(h) + z·h`.
    Gru {
        /// Whether the reset gate multiplies the product with the hidden state, and not the hidden state.
        linear_before_reset: bool,
    },
}

impl Cell {
    /// Gates of a unit.
    pub fn gates(self) -> usize {
        match self {
            Cell::Lstm { .. } => 4,
            Cell::Gru { .. } => 3,
        }
    }

    /// The numbers of gates that are multiplied with the same state, one after the other.
    fn groups(self) -> &'static [usize] {
        match self {
            Cell::Lstm { .. } => &[4],
            Cell::Gru { linear_before_reset: true } => &[3],
            Cell::Gru { linear_before_reset: false } => &[2, 1],
        }
    }
}

/// The weights of all directions of a layer, packed for one instruction set. Share them between threads and sessions.
#[derive(Debug)]
pub struct RecurrentWeights {
    cell: Cell,
    directions: usize,
    input: usize,
    hidden: usize,
    lanes: usize,
    /// Of the input, all directions side by side.
    panels: Panels,
    /// Of the product of the input.
    bias: Vec<f32>,
    /// By direction, group of gates and vector of units: for each hidden element a vector of weights for each gate.
    packed: Buffer,
    /// By direction and unit: what is added to the product of gate h with the hidden state before r multiplies it (GRU).
    reset_bias: Vec<f32>,
}

/// Lanes of the vectors of an instruction set.
struct Lanes;

impl Kernel for Lanes {
    type Out = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

fn lanes(isa: Isa) -> usize {
    isa.dispatch(Lanes)
}

impl RecurrentWeights {
    /// Packs `w` `[directions, gates · hidden, input]`, `r` `[directions, gates · hidden, hidden]` and, unless it is empty, `b`
    /// `[directions, 2 · gates · hidden]`: the biases of the input's product, then those of the hidden state's.
    ///
    /// # Errors
    /// A slice has another length, or a dimension is 0.
    pub fn new(
        exec: &Exec,
        cell: Cell,
        [directions, input, hidden]: [usize; 3],
        [w, r, b]: [&[f32]; 3],
    ) -> Result<RecurrentWeights> {
        require(NAME, directions > 0 && input > 0 && hidden > 0, "a dimension is 0")?;
        let rows = product(NAME, &[cell.gates(), hidden])?;
        let columns = product(NAME, &[directions, rows])?;
        exact(NAME, "w", w.len(), product(NAME, &[columns, input])?)?;
        exact(NAME, "r", r.len(), product(NAME, &[columns, hidden])?)?;
        if !b.is_empty() {
            exact(NAME, "b", b.len(), product(NAME, &[2, columns])?)?;
        }
        let lanes = lanes(exec.isa());
        let padded = hidden.next_multiple_of(lanes);
        let size = product(NAME, &[cell.gates(), padded, hidden])?;
        let mut packed = Buffer::lasting(product(NAME, &[directions, size])?);
        for (r, to) in r.chunks_exact(rows * hidden).zip(packed.chunks_exact_mut(size)) {
            pack(cell, hidden, lanes, r, to);
        }
        let (bias, reset_bias) = biases(cell, hidden, columns, b);
        let panels = panel_gemm_pack(exec, (input, columns), w, true)?;
        Ok(RecurrentWeights { cell, directions, input, hidden, lanes, panels, bias, packed, reset_bias })
    }

    /// What a unit computes.
    pub fn cell(&self) -> Cell {
        self.cell
    }

    /// Directions.
    pub fn directions(&self) -> usize {
        self.directions
    }

    /// Features of the input.
    pub fn input(&self) -> usize {
        self.input
    }

    /// Units.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Whether the weights are packed as the kernels of `exec` read them.
    pub(super) fn is_for(&self, exec: &Exec) -> bool {
        lanes(exec.isa()) == self.lanes
    }

    pub(super) fn lanes(&self) -> usize {
        self.lanes
    }

    pub(super) fn panels(&self) -> &Panels {
        &self.panels
    }

    pub(super) fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// The packed recurrent weights of direction `d`, one group of gates behind the other.
    pub(super) fn recurrent(&self, d: usize) -> &[f32] {
        let size = self.packed.len() / self.directions;
        &self.packed[d * size..][..size]
    }

    /// What is added before r multiplies, for direction `d`.
    pub(super) fn reset_bias(&self, d: usize) -> &[f32] {
        &self.reset_bias[d * self.hidden..][..self.hidden]
    }
}

/// Packs one direction; units beyond the last stay 0.
fn pack(cell: Cell, hidden: usize, lanes: usize, r: &[f32], to: &mut [f32]) {
    let mut to = to.chunks_exact_mut(lanes);
    let mut first = 0;
    for &gates in cell.groups() {
        for unit in (0..hidden).step_by(lanes) {
            let units = lanes.min(hidden - unit);
            for k in 0..hidden {
                for gate in first..first + gates {
                    let Some(vector) = to.next() else { return };
                    for (i, v) in vector[..units].iter_mut().enumerate() {
                        *v = r[(gate * hidden + unit + i) * hidden + k];
                    }
                }
            }
        }
        first += gates;
    }
}

/// What is added to the input's product, and to gate h's product with the hidden state.
fn biases(cell: Cell, hidden: usize, columns: usize, b: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let rows = cell.gates() * hidden;
    let mut bias = vec![0.0; columns];
    let mut reset = vec![0.0; columns / cell.gates()];
    let apart = matches!(cell, Cell::Gru { linear_before_reset: true });
    for (d, b) in b.chunks_exact(2 * rows).enumerate() {
        for (i, v) in bias[d * rows..][..rows].iter_mut().enumerate() {
            let is_apart = apart && i >= 2 * hidden;
            *v = if is_apart { b[i] } else { b[i] + b[rows + i] };
        }
        if apart {
            reset[d * hidden..][..hidden].copy_from_slice(&b[rows + 2 * hidden..]);
        }
    }
    (bias, reset)
}
