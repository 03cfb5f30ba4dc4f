//! RNN: the simple recurrent layer.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::driver::{Cell, Params, run};
use super::{Function, RecurrentAttrs};

/// `Ht = f(Xt·Wᵀ + Ht−1·Rᵀ + Wb + Rb)`, by default with f = tanh.
///
/// Inputs: X `[seq, batch, input]`, W `[directions, hidden, input]`, R `[directions, hidden,
/// hidden]`, optional B `[directions, 2·hidden]`, sequence_lens `[batch]` (i32), initial_h
/// `[directions, batch, hidden]`. Outputs: Y `[seq, directions, batch, hidden]`, Y_h
/// `[directions, batch, hidden]`. Source: ONNX operator RNN (7, 14, 22).
#[derive(Debug, Clone, PartialEq)]
pub struct Rnn {
    /// Direction, activations, clipping, layout.
    pub attrs: RecurrentAttrs,
}

/// Makes an RNN.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Rnn { attrs: RecurrentAttrs::take(attrs, &[Function::Tanh])? }))
}

impl Cell for Rnn {
    const GATES: usize = 1;
    const STATES: usize = 1;
    const ACTIVATIONS: usize = 1;

    fn step(&self, p: &Params, wx: &[f64], rh: &[f64], h: &mut [f64], _c: &mut [f64]) {
        for (i, h) in h.iter_mut().enumerate() {
            *h = p.activate(0, wx[i] + rh[i] + p.bw[i] + p.br[i]);
        }
    }
}

impl Op for Rnn {
    fn name(&self) -> &str {
        "RNN"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        self.attrs.infer(cx, 1)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        run(&self.attrs, cx, self)
    }

    fn attrs(&self) -> AttrMap {
        self.attrs.put(AttrMap::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run as eval, tensor};

    fn op(attrs: AttrMap) -> Arc<dyn Op> {
        build(14, &mut attrs.with("activations", vec!["Relu".to_string(); 2])).unwrap()
    }

    #[test]
    fn reads_sequences_of_different_lengths_both_ways() {
        // Ht = relu(Xt + 10·Ht−1).
        let op = op(AttrMap::new().with("direction", "bidirectional"));
        let x = tensor([3, 2, 1], &[1., 4., 2., 5., 3., 6.]);
        let (w, r) = (tensor([2, 1, 1], &[1., 1.]), tensor([2, 1, 1], &[10., 10.]));
        let lens = Tensor::new([2], vec![3i32, 2]).unwrap();
        let y = eval(&*op, &[Some(&x), Some(&w), Some(&r), None, Some(&lens)], 2).unwrap();
        assert_eq!(y[0].shape(), [3, 2, 2, 1]);
        assert_eq!(f32s(&y[0]), [1., 4., 321., 54., 12., 45., 32., 5., 123., 0., 3., 0.]);
        assert_eq!(f32s(&y[1]), [123., 45., 321., 54.]);
    }

    #[test]
    fn takes_the_batch_first_with_layout_1() {
        let op = op(AttrMap::new().with("layout", 1i64));
        let x = tensor([2, 2, 1], &[1., 2., 3., 4.]);
        let (w, r, h) = (tensor([1, 1, 1], &[1.]), tensor([1, 1, 1], &[10.]), tensor([2, 1, 1], &[1., 0.]));
        let y = eval(&*op, &[Some(&x), Some(&w), Some(&r), None, None, Some(&h)], 2).unwrap();
        assert_eq!((y[0].shape(), f32s(&y[0])), (&[2usize, 2, 1, 1][..], vec![11., 112., 3., 34.]));
        assert_eq!((y[1].shape(), f32s(&y[1])), (&[2usize, 1, 1][..], vec![112., 34.]));
    }

    #[test]
    fn refuses_weights_and_lengths_that_do_not_fit() {
        let op = op(AttrMap::new());
        let (x, w, r) = (tensor([1, 1, 2], &[0., 0.]), tensor([1, 1, 2], &[0., 0.]), tensor([1, 1, 1], &[0.]));
        let long = Tensor::new([1], vec![2i32]).unwrap();
        assert!(eval(&*op, &[Some(&x), Some(&w), Some(&r), None, Some(&long)], 1).is_err());
        assert!(eval(&*op, &[Some(&x), Some(&r), Some(&r)], 1).is_err());
        assert!(build(14, &mut AttrMap::new().with("direction", "up")).is_err());
    }
}
