//! BatchNormalization: a linear function per channel, from statistics over the batch.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::stats::{check_per_channel, floats, moments, per_channel};

/// `Y = (X − mean) / sqrt(var + epsilon) · scale + B`, per channel (axis 1).
///
/// Inputs: X `[N, C, …]`, scale, B, mean and var `[C]`, floating-point types. In training
/// mode mean and var are those of X (population variance), and further outputs have the
/// running statistics `input · momentum + current · (1 − momentum)`; before opset 14 also
/// the current ones. Source: ONNX operator BatchNormalization (7, 9, 14, 15).
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNormalization {
    /// Added to the variance.
    pub epsilon: f32,
    /// The weight of the running statistics.
    pub momentum: f32,
    /// When statistics are taken from X.
    pub training: Training,
    /// Whether parameters are per channel; otherwise (opset 7 and 8, `spatial` 0) one per element of `[C, …]`.
    pub spatial: bool,
}

/// When BatchNormalization takes its statistics from X.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Training {
    /// When the node has more than one output (before opset 14).
    ByOutputs,
    /// As the attribute `training_mode` says.
    Attribute(bool),
}

/// Makes a BatchNormalization.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let training = if opset < 14 { Training::ByOutputs } else { Training::Attribute(attrs.flag("training_mode")?) };
    Ok(Arc::new(BatchNormalization {
        epsilon: attrs.float_or("epsilon", 1e-5)?,
        momentum: attrs.float_or("momentum", 0.9)?,
        training,
        spatial: opset >= 9 || attrs.int_or("spatial", 1)? != 0,
    }))
}

impl BatchNormalization {
    /// Whether a node with this many outputs takes its statistics from X.
    pub fn is_training(&self, n_outputs: usize) -> bool {
        match self.training {
            Training::ByOutputs => n_outputs > 1,
            Training::Attribute(on) => on,
        }
    }

    /// N, C and elements per channel; with parameters per element, all of them are channels.
    fn extents(&self, x: &Tensor) -> Result<(usize, usize, usize), OpError> {
        let product = |s: &[usize]| s.iter().product::<usize>();
        match x.shape() {
            _ if x.is_empty() => Ok((0, x.shape().get(1).copied().unwrap_or(1), 1)),
            [n, rest @ ..] if !self.spatial => Ok((*n, product(rest), 1)),
            [n, c, rest @ ..] => Ok((*n, *c, product(rest))),
            [n] => Ok((*n, 1, 1)),
            [] => Err(OpError::shape("X is a scalar, it needs at least 1 axis")),
        }
    }
}

impl Op for BatchNormalization {
    fn name(&self) -> &str {
        "BatchNormalization"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let mut outs = vec![Fact { ty: x.ty.clone(), ..Fact::default() }];
        if self.spatial {
            (1..5).try_for_each(|i| check_per_channel(cx, i))?;
        }
        for i in 1..cx.n_outputs() {
            // Running and current statistics both have the type of the inputs 3 and 4.
            let of = cx.get(3 + (i + 1) % 2)?;
            outs.push(Fact { ty: of.ty.clone(), ..Fact::default() });
        }
        Ok(outs)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, xs) = (cx.get(0)?, floats(cx, 0)?);
        let (n, c, size) = self.extents(x)?;
        let p: Vec<Vec<f64>> = (1..5).map(|i| per_channel(cx, i, c)).collect::<Result<_, _>>()?;
        let [scale, bias, mean, var] = &p[..] else { return Err(OpError::MissingInput(4)) };
        let training = self.is_training(cx.n_outputs());
        let channel = |ch: usize| (0..n).flat_map(move |b| (b * c + ch) * size..(b * c + ch + 1) * size);
        let current: Vec<(f64, f64)> = match training {
            true => (0..c).map(|ch| moments(channel(ch).map(|i| xs[i]))).collect(),
            false => mean.iter().zip(var).map(|(&m, &v)| (m, v)).collect(),
        };
        let mut y = xs;
        for ch in 0..c {
            let (m, v) = current[ch];
            let factor = scale[ch] / (v + f64::from(self.epsilon)).sqrt();
            channel(ch).for_each(|i| y[i] = (y[i] - m) * factor + bias[ch]);
        }
        let mut outs = vec![Tensor::from_f64s(x.dtype(), x.shape(), &y)?];
        if training {
            let (means, vars): (Vec<f64>, Vec<f64>) = current.into_iter().unzip();
            let keep = f64::from(self.momentum);
            let run = |old: &[f64], new: &[f64]| -> Vec<f64> {
                old.iter().zip(new).map(|(o, n)| o * keep + n * (1.0 - keep)).collect()
            };
            for (i, v) in [(3, run(mean, &means)), (4, run(var, &vars)), (3, means), (4, vars)] {
                outs.push(Tensor::from_f64s(cx.get(i)?.dtype(), cx.get(i)?.shape(), &v)?);
            }
        }
        outs.truncate(cx.n_outputs().max(1));
        Ok(outs)
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_unless("epsilon", self.epsilon, 1e-5)
            .with_unless("momentum", self.momentum, 0.9)
            .with_unless("training_mode", i64::from(self.training == Training::Attribute(true)), 0)
            .with_unless("spatial", i64::from(self.spatial), 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{assert_close, f32s, run, tensor};

    fn eval(opset: i64, attrs: AttrMap, n_outputs: usize) -> Result<Vec<Tensor>, OpError> {
        let op = build(opset, &mut attrs.with("epsilon", 0f32).with("momentum", 0.5f32)).unwrap();
        let x = tensor([2, 2, 2], &[1., 3., 0., 0., 5., 7., 2., 2.]);
        let p = [[1., 2.], [0., 1.], [4., 0.], [4., 16.]].map(|v| tensor([2], &v));
        let ins: Vec<Option<&Tensor>> = std::iter::once(Some(&x)).chain(p.iter().map(Some)).collect();
        run(&*op, &ins, n_outputs)
    }

    #[test]
    fn normalises_with_given_statistics() {
        let y = eval(15, AttrMap::new(), 1).unwrap();
        assert_eq!(f32s(&y[0]), [-1.5, -0.5, 1., 1., 0.5, 1.5, 2., 2.]);
    }

    #[test]
    fn takes_statistics_from_the_batch_when_training() {
        let y = eval(15, AttrMap::new().with("training_mode", 1i64), 3).unwrap();
        let s = 5f32.sqrt();
        // Roundings of a division and a root.
        assert_close(&y[0], &[-3. / s, -1. / s, -1., -1., 1. / s, 3. / s, 3., 3.], 1e-6);
        assert_eq!((f32s(&y[1]), f32s(&y[2])), (vec![4., 0.5], vec![4.5, 8.5]));
        let old = eval(9, AttrMap::new(), 5).unwrap();
        assert_eq!((f32s(&old[1]), f32s(&old[3]), f32s(&old[4])), (vec![4., 0.5], vec![4., 1.], vec![5., 1.]));
    }

    #[test]
    fn takes_parameters_per_element_in_opset_7() {
        let op = build(7, &mut AttrMap::new().with("spatial", 0i64).with("epsilon", 0f32)).unwrap();
        let x = tensor([1, 1, 2], &[3., 5.]);
        let p = [[1., 2.], [0., 1.], [1., 1.], [4., 4.]].map(|v| tensor([1, 2], &v));
        let y = run(&*op, &[Some(&x), Some(&p[0]), Some(&p[1]), Some(&p[2]), Some(&p[3])], 1).unwrap();
        assert_eq!(f32s(&y[0]), [1., 5.]);
        assert!(op.attrs().get("spatial").is_some());
    }

    #[test]
    fn refuses_parameters_of_another_length() {
        let op = build(15, &mut AttrMap::new()).unwrap();
        let (x, p) = (tensor([1, 3], &[0.; 3]), tensor([2], &[0.; 2]));
        assert!(run(&*op, &[Some(&x), Some(&p), Some(&p), Some(&p), Some(&p)], 1).is_err());
    }
}
