//! LSTM: long short-term memory.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::driver::{Cell, Params, run};
use super::{Function, RecurrentAttrs};

/// `it = f(Xt·Wiᵀ + Ht−1·Riᵀ + Pi ⊙ Ct−1 + b)`, `ft` alike, `ct = g(Xt·Wcᵀ + Ht−1·Rcᵀ + b)`,
/// `Ct = ft ⊙ Ct−1 + it ⊙ ct`, `ot = f(Xt·Woᵀ + Ht−1·Roᵀ + Po ⊙ Ct + b)`, `Ht = ot ⊙ h(Ct)`.
/// By default f = sigmoid, g = h = tanh.
///
/// Inputs as RNN's, with `4·hidden` rows of gates i, o, f, c, then initial_c as initial_h and
/// peepholes P `[directions, 3·hidden]` (i, o, f). Outputs as RNN's, then Y_c as Y_h.
/// Source: ONNX operator LSTM (7, 14, 22).
#[derive(Debug, Clone, PartialEq)]
pub struct Lstm {
    /// Direction, activations, clipping, layout.
    pub attrs: RecurrentAttrs,
    /// Whether the forget gate is `1 − it`.
    pub input_forget: bool,
}

/// Makes an LSTM.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let input_forget = attrs.flag("input_forget")?;
    let attrs = RecurrentAttrs::take(attrs, &[Function::Sigmoid, Function::Tanh, Function::Tanh])?;
    Ok(Arc::new(Lstm { attrs, input_forget }))
}

impl Cell for Lstm {
    const GATES: usize = 4;
    const STATES: usize = 2;
    const ACTIVATIONS: usize = 3;

    fn step(&self, p: &Params, wx: &[f64], rh: &[f64], h: &mut [f64], c: &mut [f64]) {
        let n = p.hidden;
        let sum = |g: usize, i: usize| wx[g * n + i] + rh[g * n + i] + p.bw[g * n + i] + p.br[g * n + i];
        for i in 0..n {
            let peep = |g: usize, c: f64| p.peepholes[g * n + i] * c;
            let input = p.activate(0, sum(0, i) + peep(0, c[i]));
            let forget = if self.input_forget { 1.0 - input } else { p.activate(0, sum(2, i) + peep(2, c[i])) };
            c[i] = forget * c[i] + input * p.activate(1, sum(3, i));
            let output = p.activate(0, sum(1, i) + peep(1, c[i]));
            h[i] = output * p.activations[2].apply(c[i]);
        }
    }
}

impl Op for Lstm {
    fn name(&self) -> &str {
        "LSTM"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        self.attrs.infer(cx, 2)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        run(&self.attrs, cx, self)
    }

    fn attrs(&self) -> AttrMap {
        self.attrs.put(AttrMap::new()).with_unless("input_forget", i64::from(self.input_forget), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run as eval, tensor};

    fn ins() -> [Tensor; 6] {
        [
            tensor([1, 1, 1], &[1.]),
            tensor([1, 4, 1], &[0.5, 0.25, 0.125, 2.]),
            tensor([1, 4, 1], &[0., 0.5, 0., 1.]),
            tensor([1, 1, 1], &[1.]),
            tensor([1, 1, 1], &[4.]),
            tensor([1, 3], &[0.25, 0.5, 0.]),
        ]
    }

    fn lstm(attrs: AttrMap) -> Vec<f32> {
        let acts = ["Affine", "Affine", "Affine"].map(String::from).to_vec();
        let op = build(14, &mut attrs.with("activations", acts)).unwrap();
        let [x, w, r, h, c, p] = &ins();
        let y = eval(&*op, &[Some(x), Some(w), Some(r), None, None, Some(h), Some(c), Some(p)], 3).unwrap();
        [f32s(&y[1]), f32s(&y[2])].concat()
    }

    #[test]
    fn uses_peepholes_and_couples_gates() {
        // i = 0.5 + 0.25·4, f = 0.125, c = 2 + 1, C = f·4 + i·3, o = 0.75 + 0.5·C.
        assert_eq!(lstm(AttrMap::new()), [3.25 * 5., 5.]);
        // f = 1 − i.
        assert_eq!(lstm(AttrMap::new().with("input_forget", 1i64)), [2. * 2.5, 2.5]);
    }

    #[test]
    fn clips_inputs_of_activations() {
        // i = 1 (clipped), f = 0.125, c = 1, C = 1.5, o = 1.
        assert_eq!(lstm(AttrMap::new().with("clip", 1f32)), [1.5, 1.5]);
    }

    #[test]
    fn refuses_peepholes_of_another_shape() {
        let [x, w, r, h, c, _] = &ins();
        let op = build(14, &mut AttrMap::new()).unwrap();
        assert!(eval(&*op, &[Some(x), Some(w), Some(r), None, None, Some(h), Some(c), Some(h)], 1).is_err());
    }
}
