//! DynamicQuantizeLSTM with constant weights and the default functions.

use std::sync::Arc;

use narrowbit_kernels::recurrent::{IntLstmWeights, IntMatrix, int_lstm};
use narrowbit_ops::nn::recurrent::DynamicQuantizeLstm;
use narrowbit_tensor::{DType, Tensor};

use super::Maybe;
use super::recurrent::{Form, Layer};
use crate::error::StepError;
use crate::kernel::{BuildCx, Kernel, RunCx};

/// Positions of the weights W and R; their scales follow at 8 and 10, each with its zero point behind it.
const WEIGHTS: [(usize, usize); 2] = [(1, 8), (2, 10)];

/// The kernel of a quantized LSTM.
pub fn build(cx: &BuildCx) -> Maybe {
    let Some((input_forget, shape, layer)) = plan(cx) else { return Ok(None) };
    let weights = cx.weights.get(cx.id, "lstm_int8", || {
        let [w, r] = WEIGHTS.map(|(i, scale)| Loaded::new(cx, i, scale));
        let (w, r) = (w?, r?);
        let packed = IntLstmWeights::new(cx.exec, input_forget, shape, [&w.matrix(), &r.matrix()], &layer.biases(cx)?)?;
        w.tensor.release();
        r.tensor.release();
        Ok::<_, StepError>(packed)
    })?;
    Ok(Some(layer.built(cx, |layer| Box::new(Planned { layer, weights }))))
}

/// Whether the forget gate is one minus the input gate, the shape of the weights (directions, features of the input, units), and the
/// layer, if the kernel takes it.
fn plan(cx: &BuildCx) -> Option<(bool, [usize; 3], Layer)> {
    let DynamicQuantizeLstm(op) = cx.node.op.downcast::<DynamicQuantizeLstm>()?;
    let [dirs, input, _] = cx.ty(1)?.shape[..] else { return None };
    let [_, hidden, columns] = cx.ty(2)?.shape[..] else { return None };
    let whole = hidden.checked_mul(4) == Some(columns)
        && cx.ty(1)?.shape == [dirs, input, columns]
        && cx.ty(2)?.shape == [dirs, hidden, columns]
        && input.max(hidden) <= IntLstmWeights::DEEPEST;
    let quantized = WEIGHTS.iter().all(|&(i, scale)| is_quantized(cx, (i, scale), [dirs, dirs * columns]));
    let layer = Layer::new(cx, &Form::lstm(&op.attrs), [dirs, input, hidden])?;
    (whole && quantized).then_some((op.input_forget, [dirs, input, hidden], layer))
}

/// Whether a weight, its scales and its zero points are constants of the operator's types, and as many as one of `counts`.
fn is_quantized(cx: &BuildCx, (i, scale): (usize, usize), counts: [usize; 2]) -> bool {
    let (codes, scales, zeros) = (cx.ty(i), cx.ty(scale), cx.ty(scale + 1));
    let eight = |d: DType| matches!(d, DType::U8 | DType::I8);
    let zeros_fit = match zeros {
        None => cx.node.input(scale + 1).is_none(),
        Some(t) => eight(t.dtype) && scales.as_ref().is_some_and(|s| s.len() == t.len()) && cx.is_constant(scale + 1),
    };
    codes.is_some_and(|t| eight(t.dtype))
        && scales.is_some_and(|t| t.dtype == DType::F32 && counts.contains(&t.len()))
        && cx.is_constant(i)
        && cx.is_constant(scale)
        && zeros_fit
}

/// A weight as the kernel reads it: i8, u8 less 128.
struct Loaded {
    tensor: Tensor,
    codes: Vec<i8>,
    scales: Vec<f32>,
    zeros: Vec<i32>,
}

impl Loaded {
    fn new(cx: &BuildCx, i: usize, scale: usize) -> Result<Loaded, StepError> {
        let (tensor, scales) = (cx.weight(i)?, cx.weight(scale)?.to_f32s()?.into_owned());
        let (flip, less) = if tensor.dtype() == DType::U8 { (0x80, 128) } else { (0, 0) };
        let codes = tensor.bytes().iter().map(|code| (code ^ flip) as i8).collect();
        // Codes without a zero point of u8 are 128 more than what is multiplied, too.
        let zeros = match cx.constant(scale + 1) {
            Some(zeros) => zeros.to_i64s()?.iter().map(|&zero| zero as i32 - less).collect(),
            None => vec![-less; scales.len()],
        };
        Ok(Loaded { tensor, codes, scales, zeros })
    }

    fn matrix(&self) -> IntMatrix<'_> {
        IntMatrix { codes: &self.codes, scales: &self.scales, zeros: &self.zeros }
    }
}

/// A layer with its packed weights.
struct Planned {
    layer: Layer,
    weights: Arc<IntLstmWeights>,
}

impl Kernel for Planned {
    fn name(&self) -> &str {
        "lstm_int8"
    }

    fn on_integers(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let exec = cx.exec;
        self.layer.run(cx, |p, x, out| int_lstm(exec, p, &self.weights, x, out))
    }
}
