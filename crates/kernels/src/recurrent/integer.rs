//! LSTM whose products are of 8-bit integers (ONNX Runtime's com.microsoft.DynamicQuantizeLSTM).
//!
//! X becomes u8 with one range for all of it, and the hidden states of all sequences of a direction do anew in each step, both as
//! [`dynamic_quantize`] does. With `W` the weights of a gate and `w` its products, a gate's argument is `(w_x + w_h) + (b_w + b_r)`, where
//! `w = f32(Σ (code − zero) · (W − zero_W)) · (scale · scale_W)`: ONNX Runtime's order, so that few hidden states come to
//! lie on another side of a rounding. The range of the hidden states makes the sequences of a batch depend on each other, and each
//! step on the whole one before; what is independent are directions.

use std::sync::{Mutex, PoisonError};

use super::step::{lstm_unit, within};
use super::{NAME, Recurrent, RecurrentOutputs};
use crate::buffer::{SharedMut, with_scratch, with_scratch_bytes};
use crate::dynamic::dynamic_quantize;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::panel::{Epilogue, Panels, RowParams, Rows, Target, panel_gemm, panel_gemm_pack};
use crate::simd::{Kernel, Simd, low_bits};

const GATES: usize = 4;
/// The longest sum of products of two 8-bit codes less their zero points that 32 bits hold for certain.
const DEEPEST: usize = i32::MAX as usize / (255 * 255);
/// Units whose gates one task makes at the least.
const GRAIN: usize = 1 << 12;
/// Multiply-adds of a step from which its product is worth several threads more than the directions are.
const LARGE: usize = 1 << 22;

/// Quantized weights of all directions of an LSTM, W or R.
#[derive(Clone, Copy, Debug)]
pub struct IntMatrix<'a> {
    /// `[directions, rows, 4 · hidden]`, the columns of gates i, o, f and c in this order. Of u8, 128 less.
    pub codes: &'a [i8],
    /// One of each direction, or one of each column `[directions, 4 · hidden]`.
    pub scales: &'a [f32],
    /// As many zero points, 128 less where the codes are; none where all are 0.
    pub zeros: &'a [i32],
}

/// The weights of a quantized LSTM, packed for one instruction set. Share them between threads and sessions.
#[derive(Debug)]
pub struct IntLstmWeights {
    input: usize,
    hidden: usize,
    /// Whether the forget gate is one minus the input gate.
    input_forget: bool,
    /// Of the input, all directions side by side.
    w: Product,
    /// Of the hidden state, by direction.
    r: Vec<Product>,
    /// Both biases of each gate `[directions, 4 · hidden]`.
    bias: Vec<f32>,
}

impl IntLstmWeights {
    /// The deepest product that can be exact: inputs and units at the most.
    pub const DEEPEST: usize = DEEPEST;

    /// Packs `w` of `input` rows, `r` of `hidden` rows and, unless it is empty, `b` `[directions, 8 · hidden]`: the biases of the input's
    /// product, then those of the hidden state's.
    ///
    /// # Errors
    /// A slice has another length, a dimension is 0, or sums of [`IntLstmWeights::DEEPEST`] products are not enough.
    pub fn new(
        exec: &Exec,
        input_forget: bool,
        [directions, input, hidden]: [usize; 3],
        [w, r]: [&IntMatrix<'_>; 2],
        b: &[f32],
    ) -> Result<IntLstmWeights> {
        require(NAME, directions > 0 && input > 0 && hidden > 0, "a dimension is 0")?;
        require(NAME, input.max(hidden) <= DEEPEST, "the sums of the products do not fit in 32 bits")?;
        let columns = product(NAME, &[GATES, hidden])?;
        let all = product(NAME, &[directions, columns])?;
        let w_scales = w.check([directions, input, columns])?;
        let r_scales = r.check([directions, hidden, columns])?;
        if !b.is_empty() {
            exact(NAME, "b", b.len(), product(NAME, &[2, all])?)?;
        }
        let mut bias = vec![0.0; all];
        for (to, b) in bias.chunks_exact_mut(columns).zip(b.chunks_exact(2 * columns)) {
            to.iter_mut().zip(b.iter().zip(&b[columns..])).for_each(|(to, (w, r))| *to = w + r);
        }
        let mut codes = vec![0; w.codes.len()];
        for (i, row) in w.codes.chunks_exact(columns).enumerate() {
            let (d, k) = (i / input, i % input);
            codes[(k * directions + d) * columns..][..columns].copy_from_slice(row);
        }
        let w = Product::new(exec, (input, all), &codes, w_scales)?;
        let r = (0..directions).map(|d| {
            let (scales, zeros) = &r_scales;
            let of = d * columns..(d + 1) * columns;
            let zeros = if zeros.is_empty() { Vec::new() } else { zeros[of.clone()].to_vec() };
            let codes = &r.codes[d * hidden * columns..][..hidden * columns];
            Product::new(exec, (hidden, columns), codes, (scales[of].to_vec(), zeros))
        });
        Ok(IntLstmWeights { input, hidden, input_forget, w, r: r.collect::<Result<_>>()?, bias })
    }

    fn columns(&self) -> usize {
        GATES * self.hidden
    }
}

impl IntMatrix<'_> {
    /// A scale and a zero point of each column of all directions; no zero points where all are 0.
    fn check(&self, [directions, rows, columns]: [usize; 3]) -> Result<(Vec<f32>, Vec<i32>)> {
        let all = directions * columns;
        exact(NAME, "the codes of a weight", self.codes.len(), product(NAME, &[all, rows])?)?;
        let count = self.scales.len();
        require(NAME, count == directions || count == all, "a weight needs a scale for each direction or column")?;
        require(
            NAME,
            matches!(self.zeros.len(), n if n == 0 || n == count),
            "a weight needs as many zero points as scales",
        )?;
        require(NAME, self.zeros.iter().all(|z| (-256..=256).contains(z)), "a zero point is none of 8 bits")?;
        let at = |i: usize| if count == all { i } else { i / columns };
        let zeros = if self.zeros.iter().all(|&z| z == 0) { 0 } else { all };
        Ok(((0..all).map(|i| self.scales[at(i)]).collect(), (0..zeros).map(|i| self.zeros[at(i)]).collect()))
    }
}

/// Packed weights and what their sums are corrected by.
#[derive(Debug)]
struct Product {
    panels: Panels,
    depth: usize,
    /// Zeros: sums have no offset of their own.
    offsets: Vec<i32>,
    scales: Vec<f32>,
    zeros: Vec<i32>,
    column_sums: Vec<i32>,
}

impl Product {
    /// Packs row-major codes; a scale, and a zero point unless there are none, for each column.
    fn new(
        exec: &Exec,
        (depth, n): (usize, usize),
        codes: &[i8],
        (scales, zeros): (Vec<f32>, Vec<i32>),
    ) -> Result<Product> {
        let panels = panel_gemm_pack(exec, (depth, n), codes, false)?;
        let zero = |j: usize| zeros.get(j).map_or(0, |z| z * depth as i32);
        let column_sums = panels.column_sums().iter().enumerate().map(|(j, s)| s - zero(j)).collect();
        Ok(Product { panels, depth, offsets: vec![0; n], scales, zeros, column_sums })
    }

    /// The products of `rows` rows of codes of one scale and zero point.
    fn multiply(&self, exec: &Exec, rows: usize, codes: &[u8], (scale, zero): (f32, i32), y: &mut [f32]) -> Result {
        let format = RowParams { scales: &[scale], zeros: &[zero], column_sums: &self.column_sums };
        let epilogue = Epilogue {
            offsets: &self.offsets,
            scales: &self.scales,
            weight_zeros: &self.zeros,
            rows: Some(format),
            ..Epilogue::default()
        };
        let shape = (rows, self.depth, self.depth);
        panel_gemm(exec, Rows::U8(codes), shape, &self.panels, &epilogue, Target::F32(y))
    }
}

/// Runs a quantized LSTM over `x` `[steps, batch, input]`, or `[batch, steps, input]` with the batch first.
///
/// # Errors
/// A slice has another length than the shapes, or a sequence is longer than the steps.
pub fn int_lstm(exec: &Exec, p: &Recurrent<'_>, w: &IntLstmWeights, x: &[f32], out: RecurrentOutputs<'_>) -> Result {
    let dirs = p.reverse.len();
    p.check([w.r.len(), w.input, w.hidden, GATES], x.len(), &out)?;
    let rows = p.steps * p.batch;
    let shared = |s: &mut [f32]| SharedMut::new(s);
    let RecurrentOutputs { mut y, h, c } = out;
    if let (Some(y), Some(_)) = (&mut y, p.lens) {
        y.fill(0.0);
    }
    let (y, h, c) = (y.map(shared), h.map(shared), c.map(shared));
    with_scratch(rows * dirs * w.columns(), |products| {
        with_scratch_bytes(x.len(), |codes| {
            let format = dynamic_quantize(exec, x, codes)?;
            w.w.multiply(exec, rows, codes, format, &mut *products)
        })?;
        let direction = |d: usize| Direction { p, w, products, d, y, h, c };
        // A step's product is shared by the threads where it is large; the directions are where it is not.
        if p.batch * w.hidden * w.columns() >= LARGE {
            return (0..dirs).try_for_each(|d| direction(d).run(exec));
        }
        let failed = Mutex::new(Ok(()));
        exec.pool().run_if(dirs > 1, dirs, &|d| {
            if let Err(e) = direction(d).run(exec) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Err(e);
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner)
    })
}

/// All sequences in one direction; no other task writes their results.
struct Direction<'a> {
    p: &'a Recurrent<'a>,
    w: &'a IntLstmWeights,
    /// The products of the input: `[rows of the input, directions, gates, hidden]`.
    products: &'a [f32],
    d: usize,
    y: Option<SharedMut<f32>>,
    h: Option<SharedMut<f32>>,
    c: Option<SharedMut<f32>>,
}

impl Direction<'_> {
    fn run(&self, exec: &Exec) -> Result {
        let (p, n) = (self.p, self.w.hidden);
        let (size, columns) = (p.batch * n, self.w.columns());
        let longest = (0..p.batch).map(|b| p.len(b)).max().unwrap_or(0);
        with_scratch(2 * size + p.batch * columns, |states| {
            let (h, rest) = states.split_at_mut(size);
            let (c, sums) = rest.split_at_mut(size);
            self.load(p.h, h);
            self.load(p.c, c);
            with_scratch_bytes(size, |codes| {
                for step in 0..longest {
                    let format = dynamic_quantize(exec, h, codes)?;
                    self.w.r[self.d].multiply(exec, p.batch, codes, format, sums)?;
                    self.step(exec, step, sums, [&mut *h, &mut *c]);
                }
                Ok(())
            })?;
            self.store(self.h, h);
            self.store(self.c, c);
            Ok(())
        })
    }

    /// Makes the new states from the products of the old ones.
    fn step(&self, exec: &Exec, step: usize, sums: &[f32], [h, c]: [&mut [f32]; 2]) {
        let n = self.w.hidden;
        let (h, c) = (SharedMut::new(h), SharedMut::new(c));
        exec.split(self.p.batch, GRAIN / n + 1, &|range| {
            for b in range {
                let Some(t) = self.p.element(step, b, self.d) else { continue };
                let (p, columns) = (self.p, self.w.columns());
                let from = &self.products[(p.row(t, b) * p.reverse.len() + self.d) * columns..][..columns];
                // SAFETY: the states of a sequence, and its place in `y`, are one task's, and lie in the slices.
                unsafe {
                    let (h, c) = (h.slice(b * n, n), c.slice(b * n, n));
                    let bias = &self.w.bias[self.d * columns..][..columns];
                    let parts = [from, &sums[b * columns..][..columns], bias];
                    let (clip, input_forget) = (p.clip, self.w.input_forget);
                    exec.isa().dispatch(Units { parts, clip, input_forget, h: &mut *h, c });
                    if let Some(y) = self.y {
                        y.slice(p.place(t, b, self.d) * n, n).copy_from_slice(h);
                    }
                }
            }
        });
    }

    fn load(&self, from: Option<&[f32]>, to: &mut [f32]) {
        let Some(from) = from else { return to.fill(0.0) };
        for (b, row) in to.chunks_exact_mut(self.w.hidden).enumerate() {
            row.copy_from_slice(&from[self.p.state(b, self.d) * row.len()..][..row.len()]);
        }
    }

    fn store(&self, to: Option<SharedMut<f32>>, from: &[f32]) {
        let Some(to) = to else { return };
        for (b, row) in from.chunks_exact(self.w.hidden).enumerate() {
            // SAFETY: the state of a sequence in a direction is one task's.
            unsafe { to.slice(self.p.state(b, self.d) * row.len(), row.len()) }.copy_from_slice(row);
        }
    }
}

/// The units of one sequence in one step.
struct Units<'a> {
    /// What a gate's argument is the sum of, each `[gates, hidden]`: products of the input, of the hidden state, biases.
    parts: [&'a [f32]; 3],
    clip: f32,
    input_forget: bool,
    /// The new hidden state; the old one is in the products.
    h: &'a mut [f32],
    c: &'a mut [f32],
}

impl Kernel for Units<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.h.len();
        let [x, sum, bias] = self.parts.map(<[f32]>::as_ptr);
        let (h, c) = (self.h.as_mut_ptr(), self.c.as_mut_ptr());
        let mut unit = 0;
        while unit < n {
            let bits = low_bits((n - unit).min(S::LANES));
            let mut gates = [s.splat(0.0); GATES];
            // SAFETY: the parts have `n` units of each gate and the states `n`, of which `bits` are left.
            unsafe {
                for (g, gate) in gates.iter_mut().enumerate() {
                    let at = g * n + unit;
                    let products = s.add(s.load_bits(x.add(at), bits), s.load_bits(sum.add(at), bits));
                    *gate = within(s, self.clip, s.add(products, s.load_bits(bias.add(at), bits)));
                }
                let (cell, hidden) = lstm_unit(s, gates, s.load_bits(c.add(unit), bits), self.input_forget);
                s.store_bits(c.add(unit), cell, bits);
                s.store_bits(h.add(unit), hidden, bits);
            }
            unit += S::LANES;
        }
    }
}

#[cfg(test)]
#[path = "integer_tests.rs"]
mod tests;
