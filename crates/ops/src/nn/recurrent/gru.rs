//! GRU: the gated recurrent unit.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::driver::{Cell, Params, run};
use super::{Function, RecurrentAttrs};

/// `zt = f(Xt·Wzᵀ + Ht−1·Rzᵀ + b)`, `rt = f(Xt·Wrᵀ + Ht−1·Rrᵀ + b)`,
/// `ht = g(Xt·Whᵀ + (rt ⊙ Ht−1)·Rhᵀ + Rbh + Wbh)`, or `g(Xt·Whᵀ + rt ⊙ (Ht−1·Rhᵀ + Rbh) + Wbh)`
/// with `linear_before_reset`; `Ht = (1 − zt) ⊙ ht + zt ⊙ Ht−1`. By default f = sigmoid, g = tanh.
///
/// Inputs and outputs as RNN's, with `3·hidden` rows of gates z, r, h. Source: ONNX operator GRU (7, 14, 22).
#[derive(Debug, Clone, PartialEq)]
pub struct Gru {
    /// Direction, activations, clipping, layout.
    pub attrs: RecurrentAttrs,
    /// Whether the reset gate is applied after the recurrent product.
    pub linear_before_reset: bool,
}

/// Makes a GRU.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let linear_before_reset = attrs.flag("linear_before_reset")?;
    let attrs = RecurrentAttrs::take(attrs, &[Function::Sigmoid, Function::Tanh])?;
    Ok(Arc::new(Gru { attrs, linear_before_reset }))
}

impl Cell for Gru {
    const GATES: usize = 3;
    const STATES: usize = 1;
    const ACTIVATIONS: usize = 2;

    fn step(&self, p: &Params, wx: &[f64], rh: &[f64], h: &mut [f64], _c: &mut [f64]) {
        let n = p.hidden;
        let gate =
            |g: usize, i: usize| p.activate(0, wx[g * n + i] + rh[g * n + i] + p.bw[g * n + i] + p.br[g * n + i]);
        let reset: Vec<f64> = (0..n).map(|i| gate(1, i)).collect();
        let mut products: Vec<f64> = (0..n).map(|i| reset[i] * (rh[2 * n + i] + p.br[2 * n + i])).collect();
        if !self.linear_before_reset {
            let kept: Vec<f64> = reset.iter().zip(&*h).map(|(r, h)| r * h).collect();
            p.last.mul(&kept, |_, i, sum| products[i] = sum + p.br[2 * n + i]);
        }
        for i in 0..n {
            let (z, new) = (gate(0, i), p.activate(1, wx[2 * n + i] + products[i] + p.bw[2 * n + i]));
            h[i] = (1.0 - z) * new + z * h[i];
        }
    }
}

impl Op for Gru {
    fn name(&self) -> &str {
        "GRU"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        self.attrs.infer(cx, 1)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        run(&self.attrs, cx, self)
    }

    fn attrs(&self) -> AttrMap {
        let lbr = i64::from(self.linear_before_reset);
        self.attrs.put(AttrMap::new()).with_unless("linear_before_reset", lbr, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{assert_close, f32s, run as eval, tensor};

    #[test]
    fn resets_before_or_after_the_recurrent_product() {
        let x = tensor([1, 1, 1], &[1.]);
        // Gates z = x / 4, r = x / 2 + h / 4; new value x + … with weight 8 and bias 4.
        let (w, r) = (tensor([1, 3, 1], &[0.25, 0.5, 1.]), tensor([1, 3, 1], &[0., 0.25, 8.]));
        let (b, h) = (tensor([1, 6], &[0., 0., 0., 0., 0., 4.]), tensor([1, 1, 1], &[-1.]));
        let ins = [Some(&x), Some(&w), Some(&r), Some(&b), None, Some(&h)];
        for (linear, new) in [(0i64, 1. + 0.25 * -8. + 4.), (1, 1. + 0.25 * (-8. + 4.))] {
            let acts = vec!["Affine".to_string(), "Affine".to_string()];
            let mut attrs = AttrMap::new().with("linear_before_reset", linear).with("activations", acts);
            let y = eval(&*build(14, &mut attrs).unwrap(), &ins, 2).unwrap();
            assert_eq!(f32s(&y[1]), [0.75 * new - 0.25]);
        }
    }

    #[test]
    fn matches_onnx_runtime_both_ways_with_clipping_and_lengths() {
        let x = [1.8, 0.4, 1.0, 2.2, 1.9, -1.0, 1.0, -0.2, -0.1, 0.4, 0.1, 1.5];
        let w = [
            0.8, 0.1, 0.4, 0.3, 1.5, -0.2, 0.3, -0.9, -2.6, 0.7, 0.9, -0.7, 2.3, -1.5, 0.0, -0.2, 1.5, 1.5, 0.2, 0.4,
            -0.9, -2.0, -0.3, 0.2,
        ];
        let r = [
            1.2, 1.2, -0.4, -0.3, -1.0, -1.4, -1.7, 2.0, -0.5, -0.4, -1.3, 0.8, -1.6, -0.2, -0.9, 0.4, -0.5, -1.2, 0.0,
            0.4, 0.1, 0.3, -0.6, -0.4,
        ];
        let b = [
            -0.7, -0.4, -0.8, -1.7, 0.2, -0.4, -1.6, 0.5, -0.9, 0.1, 0.7, 0.1, 1.1, -1.2, 0.4, -0.7, -0.9, -0.6, -0.3,
            0.1, -1.2, 0.9, 0.5, -1.5,
        ];
        let (x, w, r, b) = (tensor([3, 2, 2], &x), tensor([2, 6, 2], &w), tensor([2, 6, 2], &r), tensor([2, 12], &b));
        let lens = Tensor::vector(vec![3i32, 1]);
        let attrs = AttrMap::new().with("linear_before_reset", 1i64).with("direction", "bidirectional");
        let op = build(14, &mut attrs.with("clip", 0.9f32)).unwrap();
        let y = eval(&*op, &[Some(&x), Some(&w), Some(&r), Some(&b), Some(&lens)], 2).unwrap();
        let last = [0.3205043, 0.1423556, -0.3909955, -0.2070463, -0.4669223, -0.6974421, -0.3938449, -0.5092516];
        // ONNX Runtime approximates tanh and the logistic function in f32.
        assert_close(&y[1], &last, 1e-5);
        let second = [-0.6529906, 0.3763839, 0.0, 0.0, -0.3655338, -0.6510643, 0.0, 0.0];
        assert_close(&y[0], &[&f32s(&y[0])[..8], &second, &f32s(&y[0])[16..]].concat(), 1e-5);
    }

    #[test]
    fn refuses_a_hidden_size_that_contradicts_the_weights() {
        let op = build(14, &mut AttrMap::new().with("hidden_size", 2i64)).unwrap();
        let (x, w, r) = (tensor([1, 1, 1], &[1.]), tensor([1, 3, 1], &[0.; 3]), tensor([1, 3, 1], &[0.; 3]));
        assert!(eval(&*op, &[Some(&x), Some(&w), Some(&r)], 1).is_err());
    }
}
