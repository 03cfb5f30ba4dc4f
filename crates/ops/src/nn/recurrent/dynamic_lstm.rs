//! DynamicQuantizeLSTM: an LSTM that multiplies integers, with ranges found from the data.

use std::borrow::Cow;
use std::sync::Arc;

use narrowbit_ir::{AttrMap, Datum, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::driver::{Cell, Params, run};
use super::{Function, Lstm, RecurrentAttrs};
use crate::quant::dynamic_quantize_linear::dynamic_params;
use crate::quant::params::round_saturate;

/// [`Lstm`] with weights of 8 bits; X is quantized as a whole to u8 as DynamicQuantizeLinear does, and the hidden state anew
/// in each step. The products of integers are exact; sums go on in floats.
///
/// Inputs as LSTM's, but W `[directions, input, 4·hidden]` and R `[directions, hidden, 4·hidden]` of u8 or i8, and behind P:
/// W's scale and zero point, R's scale and zero point, `[directions]` or `[directions, 4·hidden]` each.
/// Source: ONNX Runtime's contrib operator com.microsoft.DynamicQuantizeLSTM, version 1.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicQuantizeLstm(pub Lstm);

/// Makes a DynamicQuantizeLSTM.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let input_forget = attrs.flag("input_forget")?;
    let attrs = RecurrentAttrs::take(attrs, &[Function::Sigmoid, Function::Tanh, Function::Tanh])?;
    Ok(Arc::new(DynamicQuantizeLstm(Lstm { attrs, input_forget })))
}

/// Floats as they are read from the u8 that they are rounded to.
fn rounded(x: &[f32]) -> Vec<f32> {
    let (scale, zero) = dynamic_params(x, (0, 255));
    x.iter().map(|v| (round_saturate(v / scale, zero, (0, 255)) - zero) as f32 * scale).collect()
}

impl Cell for DynamicQuantizeLstm {
    const GATES: usize = Lstm::GATES;
    const STATES: usize = Lstm::STATES;
    const ACTIVATIONS: usize = Lstm::ACTIVATIONS;

    fn seen<'a>(&self, h: &'a [f64]) -> Cow<'a, [f64]> {
        let h: Vec<f32> = h.iter().map(|&v| v as f32).collect();
        rounded(&h).into_iter().map(f64::from).collect()
    }

    fn step(&self, p: &Params, wx: &[f64], rh: &[f64], h: &mut [f64], c: &mut [f64]) {
        self.0.step(p, wx, rh, h, c);
    }
}

/// Weights of input `i` as floats, each gate's a row: `[directions, 4·hidden, columns]`; scale and zero point are inputs
/// `scale` and `scale + 1`.
fn weights(cx: &EvalCx, i: usize, scale: usize) -> Result<Tensor, OpError> {
    let (w, scales) = (cx.get(i)?, cx.get(scale)?.to_f32s()?);
    let &[dirs, columns, rows] = w.shape() else {
        return Err(OpError::shape(format!("input {i} of shape {:?} needs 3 axes", w.shape())));
    };
    if !matches!(w.dtype(), DType::U8 | DType::I8) {
        return Err(OpError::Value(format!("input {i} is {}, it must be u8 or i8", w.dtype())));
    }
    let zeros = cx.opt(scale + 1).map_or(Ok(vec![0; scales.len()]), Tensor::to_i64s)?;
    if ![dirs, dirs * rows].contains(&scales.len()) || zeros.len() != scales.len() {
        let message = format!("input {scale} has {} scales and {} zero points", scales.len(), zeros.len());
        return Err(OpError::shape(format!("{message}, expected {dirs} or {} of each", dirs * rows)));
    }
    let codes = w.to_i64s()?;
    let mut values = Vec::with_capacity(codes.len());
    for d in 0..dirs {
        for row in 0..rows {
            let at = if scales.len() == dirs { d } else { d * rows + row };
            let code = |k: usize| codes[(d * columns + k) * rows + row] - zeros[at];
            values.extend((0..columns).map(|k| code(k) as f32 * scales[at]));
        }
    }
    Ok(Tensor::new(vec![dirs, rows, columns], values)?)
}

impl Op for DynamicQuantizeLstm {
    fn name(&self) -> &str {
        "DynamicQuantizeLSTM"
    }

    fn domain(&self) -> &str {
        "com.microsoft"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let mut attrs = self.0.attrs.clone();
        // R lies the other way round.
        if let (None, Some([_, hidden, _])) = (attrs.hidden_size, cx.shape(2)) {
            attrs.hidden_size = match hidden {
                Dim::Known(h) => Some(*h),
                _ => None,
            };
        }
        attrs.infer(cx, Self::STATES)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let x = Tensor::new(x.shape(), rounded(&x.slice::<f32>()?))?;
        let mut ins: Vec<Option<Datum>> = [x, weights(cx, 1, 8)?, weights(cx, 2, 10)?].map(|t| Some(t.into())).into();
        ins.extend((3..8).map(|i| cx.opt(i).cloned().map(Datum::from)));
        let ins: Vec<Option<&Datum>> = ins.iter().map(Option::as_ref).collect();
        run(&self.0.attrs, &EvalCx::new(&ins, 1 + Self::STATES), self)
    }

    fn attrs(&self) -> AttrMap {
        self.0.attrs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{assert_close, run as eval, tensor};

    fn codes(shape: impl Into<Vec<usize>>, values: &[i64]) -> Tensor {
        Tensor::from_i64s(DType::U8, shape, values).unwrap()
    }

    fn operands() -> [Tensor; 7] {
        [
            // 0 to 2.55 in steps of 0.01: 1.234 is 1.23.
            tensor([2, 1, 2], &[1.234, 2.55, 0.0, 0.5]),
            codes([1, 2, 4], &[130, 120, 127, 200, 128, 129, 131, 100]),
            codes([1, 1, 4], &[128, 130, 126, 110]),
            tensor([1], &[0.01]),
            codes([1], &[128]),
            tensor([1, 4], &[0.01, 0.02, 0.03, 0.04]),
            codes([1, 4], &[128, 127, 126, 125]),
        ]
    }

    fn lstm([x, w, r, ws, wz, rs, rz]: &[Tensor; 7]) -> Result<Vec<Tensor>, OpError> {
        let op = build(1, &mut AttrMap::new().with("hidden_size", 1i64)).unwrap();
        let ins = [Some(x), Some(w), Some(r), None, None, None, None, None, Some(ws), Some(wz), Some(rs), Some(rz)];
        eval(&*op, &ins, 3)
    }

    #[test]
    fn rounds_the_input_and_the_hidden_state_before_they_are_multiplied() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let gates = |x: [f64; 2], h: f64| {
            let w = [[2.0, 0.0], [-8.0, 1.0], [-1.0, 3.0], [72.0, -28.0]];
            let r = [0.0, 3.0 * 0.02, 0.0, -15.0 * 0.04];
            [0, 1, 2, 3].map(|g| 0.01 * (w[g][0] * x[0] + w[g][1] * x[1]) + r[g] * h)
        };
        let [i, o, _, g] = gates([1.23, 2.55], 0.0);
        let c = sigmoid(i) * g.tanh();
        // A single value is the end of its range: it stays as it is.
        let h = sigmoid(o) * c.tanh();
        let [i, o, f, g] = gates([0.0, 0.5], h);
        let c2 = sigmoid(f) * c + sigmoid(i) * g.tanh();
        let y = lstm(&operands()).unwrap();
        assert_close(&y[0], &[h as f32, (sigmoid(o) * c2.tanh()) as f32], 1e-6);
        assert_close(&y[2], &[c2 as f32], 1e-6);
    }

    #[test]
    fn refuses_scales_that_do_not_fit() {
        let mut ins = operands();
        ins[5] = tensor([1, 3], &[0.01, 0.02, 0.03]);
        assert!(lstm(&ins).is_err());
        let mut ins = operands();
        ins[1] = tensor([1, 2, 4], &[0.0; 8]);
        assert!(lstm(&ins).is_err());
    }
}
