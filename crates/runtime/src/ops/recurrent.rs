//! LSTM and GRU of floats with constant weights and their default functions.

use std::sync::Arc;

use narrowbit_ir::ValueId;
use narrowbit_kernels::recurrent::{Cell, Recurrent, RecurrentOutputs, RecurrentWeights, recurrent};
use narrowbit_ops::nn::recurrent::{Function, Gru, Lstm, RecurrentAttrs};
use narrowbit_tensor::{DType, Tensor};

use super::Maybe;
use crate::error::StepError;
use crate::kernel::{BuildCx, Built, Kernel, RunCx};
use crate::view::ViewMut;

/// Positions of the inputs behind X, W, R and B.
const LENS: usize = 4;
const H: usize = 5;
const C: usize = 6;
const PEEPHOLES: usize = 7;

/// The kernel of a recurrent layer.
pub fn build(cx: &BuildCx) -> Maybe {
    let Some(mut layer) = Layer::new(cx) else { return Ok(None) };
    let mut ins: Vec<ValueId> = cx.node.input(0).into_iter().collect();
    for (at, place) in [(LENS, &mut layer.lens_at), (H, &mut layer.h_at), (C, &mut layer.c_at)] {
        *place = cx.node.input(at).map(|_| ins.len());
        ins.extend(cx.node.input(at));
    }
    layer.made = [0, 1, 2].map(|i| cx.node.output(i).is_some());
    let outs = cx.node.outputs.iter().flatten().copied().collect();
    let (cell, shape) = (layer.cell, layer.weights_shape);
    let weights = cx.weights.get(cx.id, "recurrent", || {
        let (w, r) = (cx.weight(1)?, cx.weight(2)?);
        let b = cx.constant(3).map_or_else(|| Tensor::new([0], Vec::<f32>::new()), Ok)?;
        let packed = RecurrentWeights::new(cx.exec, cell, shape, [&w.to_f32s()?, &r.to_f32s()?, &b.to_f32s()?])?;
        w.release();
        r.release();
        Ok::<_, StepError>(packed)
    })?;
    Ok(Some(Built { kernel: Box::new(Planned { layer, weights }), ins, outs }))
}

/// Sums of all steps at the most: they are made at once, 1 GiB of them.
const MOST_SUMS: usize = 1 << 28;

/// A layer whose shapes fit.
struct Layer {
    cell: Cell,
    /// Directions, features of the input, units.
    weights_shape: [usize; 3],
    steps: usize,
    batch: usize,
    batch_first: bool,
    reverse: Vec<bool>,
    clip: f32,
    lens_at: Option<usize>,
    h_at: Option<usize>,
    c_at: Option<usize>,
    /// Which outputs there are.
    made: [bool; 3],
}

impl Layer {
    fn new(cx: &BuildCx) -> Option<Layer> {
        let (cell, attrs, defaults): (_, _, &[Function]) = match cx.node.op.downcast::<Lstm>() {
            Some(op) => {
                let cell = Cell::Lstm { input_forget: op.input_forget };
                (cell, &op.attrs, &[Function::Sigmoid, Function::Tanh, Function::Tanh])
            }
            None => {
                let op = cx.node.op.downcast::<Gru>()?;
                let cell = Cell::Gru { linear_before_reset: op.linear_before_reset };
                (cell, &op.attrs, &[Function::Sigmoid, Function::Tanh])
            }
        };
        let plain = attrs.activations.iter().map(|a| a.function).eq(defaults
            .iter()
            .copied()
            .cycle()
            .take(attrs.activations.len()));
        if !plain || cx.node.input(PEEPHOLES).is_some() || !cx.is_constant(1) || !cx.is_constant(2) {
            return None;
        }
        let layer = Layer::of_shapes(cx, cell, attrs)?;
        layer.fits(cx).then_some(layer)
    }

    fn of_shapes(cx: &BuildCx, cell: Cell, attrs: &RecurrentAttrs) -> Option<Layer> {
        let [first, second, input] = cx.f32_shape(0)?[..] else { return None };
        let [dirs, rows, columns] = cx.f32_shape(1)?[..] else { return None };
        let [_, _, hidden] = cx.f32_shape(2)?[..] else { return None };
        let (steps, batch) = if attrs.batch_first { (second, first) } else { (first, second) };
        let stated = attrs.hidden_size.is_none_or(|h| usize::try_from(h) == Ok(hidden));
        let whole = cell.gates().checked_mul(hidden) == Some(rows) && cx.f32_shape(2)? == [dirs, rows, hidden];
        let known = dirs == attrs.direction.count() && columns == input && stated;
        let sums = [batch, dirs, rows].iter().try_fold(steps, |n, &d| n.checked_mul(d));
        let small = sums.is_some_and(|n| n <= MOST_SUMS);
        (whole && known && small && input > 0 && hidden > 0).then(|| Layer {
            cell,
            weights_shape: [dirs, input, hidden],
            steps,
            batch,
            batch_first: attrs.batch_first,
            reverse: (0..dirs).map(|d| attrs.direction.is_reverse(d)).collect(),
            clip: attrs.clip.unwrap_or(f32::INFINITY),
            lens_at: None,
            h_at: None,
            c_at: None,
            made: [false; 3],
        })
    }

    /// Whether biases, lengths and states have the types and shapes of the operator.
    fn fits(&self, cx: &BuildCx) -> bool {
        let [dirs, _, hidden] = self.weights_shape;
        let absent = |i: usize| cx.node.input(i).is_none();
        let biases =
            absent(3) || cx.is_constant(3) && cx.f32_shape(3) == Some(vec![dirs, 2 * self.cell.gates() * hidden]);
        let lens = absent(LENS) || cx.ty(LENS).is_some_and(|t| t.dtype == DType::I32 && t.shape == [self.batch]);
        let shape = if self.batch_first { [self.batch, dirs, hidden] } else { [dirs, self.batch, hidden] };
        let state = |i: usize| absent(i) || cx.f32_shape(i).is_some_and(|s| s == shape);
        let outputs = cx.node.outputs.len() <= if matches!(self.cell, Cell::Lstm { .. }) { 3 } else { 2 };
        biases && lens && state(H) && state(C) && outputs && !self.clip.is_nan()
    }
}

/// A layer with its packed weights.
struct Planned {
    layer: Layer,
    weights: Arc<RecurrentWeights>,
}

impl Kernel for Planned {
    fn name(&self) -> &str {
        if matches!(self.layer.cell, Cell::Lstm { .. }) { "lstm_f32" } else { "gru_f32" }
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let l = &self.layer;
        let p = Recurrent {
            steps: l.steps,
            batch: l.batch,
            batch_first: l.batch_first,
            reverse: &l.reverse,
            lens: l.lens_at.map(|i| cx.view(i)?.slice().map_err(StepError::from)).transpose()?,
            h: l.h_at.map(|i| cx.f32s(i)).transpose()?,
            c: l.c_at.map(|i| cx.f32s(i)).transpose()?,
            clip: l.clip,
        };
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        let mut outs = cx.outs.as_mut_slice().iter_mut();
        let mut next = |made: bool| made.then(|| outs.next()).flatten().map(ViewMut::slice).transpose();
        let out = RecurrentOutputs { y: next(l.made[0])?, h: next(l.made[1])?, c: next(l.made[2])? };
        Ok(recurrent(exec, &p, &self.weights, x, out)?)
    }
}
