//! LSTM and GRU of floats with constant weights and their default functions.

use std::sync::Arc;

use narrowbit_ir::ValueId;
use narrowbit_kernels::KernelError;
use narrowbit_kernels::recurrent::{Cell, Recurrent, RecurrentOutputs, RecurrentWeights, recurrent};
use narrowbit_ops::nn::recurrent::{Function, Gru, Lstm, RecurrentAttrs};
use narrowbit_tensor::DType;

use super::Maybe;
use crate::error::StepError;
use crate::kernel::{BuildCx, Built, Kernel, RunCx};
use crate::view::ViewMut;

/// Positions of the inputs behind X, W and R.
const BIASES: usize = 3;
const LENS: usize = 4;
const H: usize = 5;
const C: usize = 6;
const PEEPHOLES: usize = 7;

/// The kernel of a recurrent layer.
pub fn build(cx: &BuildCx) -> Maybe {
    let Some((cell, layer)) = plan(cx) else { return Ok(None) };
    let shape = layer.weights;
    let weights = cx.weights.get(cx.id, "recurrent", || {
        let (w, r) = (cx.weight(1)?, cx.weight(2)?);
        let b = layer.biases(cx)?;
        let packed = RecurrentWeights::new(cx.exec, cell, shape, [&w.to_f32s()?, &r.to_f32s()?, &b])?;
        w.release();
        r.release();
        Ok::<_, StepError>(packed)
    })?;
    Ok(Some(layer.built(cx, |layer| Box::new(Planned { layer, weights }))))
}

/// The layer of an LSTM or a GRU that the kernel takes.
fn plan(cx: &BuildCx) -> Option<(Cell, Layer)> {
    let (cell, form) = match cx.node.op.downcast::<Lstm>() {
        Some(op) => (Cell::Lstm { input_forget: op.input_forget }, Form::lstm(&op.attrs)),
        None => {
            let op = cx.node.op.downcast::<Gru>()?;
            let defaults: &[Function] = &[Function::Sigmoid, Function::Tanh];
            let form = Form { attrs: &op.attrs, gates: 3, states: 1, defaults };
            (Cell::Gru { linear_before_reset: op.linear_before_reset }, form)
        }
    };
    let [dirs, rows, input] = cx.f32_shape(1)?[..] else { return None };
    let [_, _, hidden] = cx.f32_shape(2)?[..] else { return None };
    let whole = form.gates.checked_mul(hidden) == Some(rows) && cx.f32_shape(2)? == [dirs, rows, hidden];
    let constant = cx.is_constant(1) && cx.is_constant(2);
    Some((cell, Layer::new(cx, &form, [dirs, input, hidden])?)).filter(|_| whole && constant)
}

/// Sums of all steps at the most: they are made at once, 1 GiB of them.
const MOST_SUMS: usize = 1 << 28;

/// What a layer's operator says.
pub struct Form<'a> {
    pub attrs: &'a RecurrentAttrs,
    /// Gates of a unit.
    pub gates: usize,
    /// Final states: the hidden one, and that of the cells.
    pub states: usize,
    /// The functions of one direction that the kernel has.
    pub defaults: &'a [Function],
}

impl<'a> Form<'a> {
    /// That of an LSTM.
    pub fn lstm(attrs: &'a RecurrentAttrs) -> Form<'a> {
        Form { attrs, gates: 4, states: 2, defaults: &[Function::Sigmoid, Function::Tanh, Function::Tanh] }
    }
}

/// A layer whose shapes fit.
pub struct Layer {
    /// Directions, features of the input, units.
    weights: [usize; 3],
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
    /// The layer of a node with weights of so many directions, features and units; `None` if it has functions, peepholes, shapes or
    /// types that no kernel takes.
    pub fn new(cx: &BuildCx, form: &Form, weights: [usize; 3]) -> Option<Layer> {
        let attrs = form.attrs;
        let defaults = form.defaults.iter().copied().cycle();
        let plain = attrs.activations.iter().map(|a| a.function).eq(defaults.take(attrs.activations.len()));
        if !plain || cx.node.input(PEEPHOLES).is_some() {
            return None;
        }
        let layer = Layer::of_shapes(cx, form, weights)?;
        layer.fits(cx, form).then_some(layer)
    }

    fn of_shapes(cx: &BuildCx, form: &Form, weights: [usize; 3]) -> Option<Layer> {
        let (attrs, [dirs, columns, hidden]) = (form.attrs, weights);
        let [first, second, input] = cx.f32_shape(0)?[..] else { return None };
        let (steps, batch) = if attrs.batch_first { (second, first) } else { (first, second) };
        let stated = attrs.hidden_size.is_none_or(|h| usize::try_from(h) == Ok(hidden));
        let known = dirs == attrs.direction.count() && columns == input && stated;
        let sums = [batch, dirs, form.gates, hidden].iter().try_fold(steps, |n, &d| n.checked_mul(d));
        let small = sums.is_some_and(|n| n <= MOST_SUMS);
        let place = |i: usize| (LENS..i).filter(|&i| cx.node.input(i).is_some()).count() + 1;
        let at = |i: usize| cx.node.input(i).map(|_| place(i));
        (known && small && input > 0 && hidden > 0).then(|| Layer {
            weights,
            steps,
            batch,
            batch_first: attrs.batch_first,
            reverse: (0..dirs).map(|d| attrs.direction.is_reverse(d)).collect(),
            clip: attrs.clip.unwrap_or(f32::INFINITY),
            lens_at: at(LENS),
            h_at: at(H),
            c_at: at(C),
            made: [0, 1, 2].map(|i| cx.node.output(i).is_some()),
        })
    }

    /// Whether biases, lengths and states have the types and shapes of the operator.
    fn fits(&self, cx: &BuildCx, form: &Form) -> bool {
        let [dirs, _, hidden] = self.weights;
        let absent = |i: usize| cx.node.input(i).is_none();
        let biases = absent(BIASES)
            || cx.is_constant(BIASES) && cx.f32_shape(BIASES) == Some(vec![dirs, 2 * form.gates * hidden]);
        let lens = absent(LENS) || cx.ty(LENS).is_some_and(|t| t.dtype == DType::I32 && t.shape == [self.batch]);
        let shape = if self.batch_first { [self.batch, dirs, hidden] } else { [dirs, self.batch, hidden] };
        let state = |i: usize| absent(i) || cx.f32_shape(i).is_some_and(|s| s == shape);
        let outputs = cx.node.outputs.len() <= 1 + form.states;
        biases && lens && state(H) && state(C) && outputs && !self.clip.is_nan()
    }

    /// The biases, or none.
    pub fn biases(&self, cx: &BuildCx) -> Result<Vec<f32>, StepError> {
        Ok(cx.constant(BIASES).map_or(Ok(Vec::new()), |b| b.to_f32s().map(|b| b.into_owned()))?)
    }

    /// The step of the layer: its operands are X, the lengths and the first states, as far as there are any.
    pub fn built(self, cx: &BuildCx, kernel: impl FnOnce(Layer) -> Box<dyn Kernel>) -> Built {
        let ins: Vec<ValueId> = [0, LENS, H, C].iter().filter_map(|&i| cx.node.input(i)).collect();
        let outs = cx.node.outputs.iter().flatten().copied().collect();
        Built { kernel: kernel(self), ins, outs }
    }

    /// Runs `body` on the layer with the operands of a run, on X and on the outputs.
    pub fn run(
        &self,
        cx: &mut RunCx,
        body: impl FnOnce(&Recurrent, &[f32], RecurrentOutputs) -> Result<(), KernelError>,
    ) -> Result<(), StepError> {
        let p = Recurrent {
            steps: self.steps,
            batch: self.batch,
            batch_first: self.batch_first,
            reverse: &self.reverse,
            lens: self.lens_at.map(|i| cx.view(i)?.slice().map_err(StepError::from)).transpose()?,
            h: self.h_at.map(|i| cx.f32s(i)).transpose()?,
            c: self.c_at.map(|i| cx.f32s(i)).transpose()?,
            clip: self.clip,
        };
        let x = cx.f32s(0)?;
        let mut outs = cx.outs.as_mut_slice().iter_mut();
        let mut next = |made: bool| made.then(|| outs.next()).flatten().map(ViewMut::slice).transpose();
        let out = RecurrentOutputs { y: next(self.made[0])?, h: next(self.made[1])?, c: next(self.made[2])? };
        Ok(body(&p, x, out)?)
    }
}

/// A layer with its packed weights.
struct Planned {
    layer: Layer,
    weights: Arc<RecurrentWeights>,
}

impl Kernel for Planned {
    fn name(&self) -> &str {
        if matches!(self.weights.cell(), Cell::Lstm { .. }) { "lstm_f32" } else { "gru_f32" }
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let exec = cx.exec;
        self.layer.run(cx, |p, x, out| recurrent(exec, p, &self.weights, x, out))
    }
}
