//! Gelu and its kin: elementwise activations, some after adding a bias.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::support::{DOMAIN, erf, like, map_floats};

/// An activation of ONNX Runtime's `com.microsoft` domain; x is floating-point of any width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `y = x/2 (1 + erf(x / sqrt 2))`.
    Gelu,
    /// `y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, after adding an optional bias (input 1) along the last axis.
    FastGelu,
    /// Gelu after adding a bias (input 1) along the last axis.
    BiasGelu,
    /// `y = x sigmoid(alpha x)`.
    QuickGelu {
        /// The factor in the sigmoid.
        alpha: f32,
    },
    /// After adding a bias (input 1) along the last axis, its first half times Gelu of its second half.
    BiasSplitGelu,
}

/// QuickGelu's default factor.
const ALPHA: f32 = 1.702;

/// Makes a Gelu.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Activation::Gelu))
}

/// Makes a FastGelu.
pub fn build_fast(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Activation::FastGelu))
}

/// Makes a BiasGelu.
pub fn build_bias(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Activation::BiasGelu))
}

/// Makes a QuickGelu.
pub fn build_quick(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Activation::QuickGelu { alpha: attrs.float_or("alpha", ALPHA)? }))
}

/// Makes a BiasSplitGelu.
pub fn build_split(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Activation::BiasSplitGelu))
}

pub(crate) fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn tanh_gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// `x + bias`, the bias along the last axis.
pub(crate) fn add_bias(x: &Tensor, bias: Option<&Tensor>) -> Result<Vec<f64>, OpError> {
    let mut xs = x.to_f64s()?;
    let Some(b) = bias else { return Ok(xs) };
    if x.shape().last() != Some(&b.len()) {
        let message = format!("a bias of shape {:?} does not fit the last axis of {:?}", b.shape(), x.shape());
        return Err(OpError::shape(message));
    }
    let bs = b.to_f64s()?;
    for row in xs.chunks_exact_mut(bs.len().max(1)) {
        row.iter_mut().zip(&bs).for_each(|(v, b)| *v += b);
    }
    Ok(xs)
}

fn split_gelu(x: &Tensor, bias: &Tensor) -> Result<Tensor, OpError> {
    let mut shape = x.shape().to_vec();
    let width = shape.last().copied().unwrap_or(0);
    let Some(last) = shape.last_mut().filter(|w| **w % 2 == 0) else {
        return Err(OpError::input(0, format!("of shape {shape:?}"), "an even last extent"));
    };
    *last /= 2;
    let xs = add_bias(x, Some(bias))?;
    let halves = |row: &[f64]| {
        let (left, right) = row.split_at(width / 2);
        left.iter().zip(right).map(|(l, r)| l * gelu(*r)).collect::<Vec<_>>()
    };
    let y: Vec<f64> = xs.chunks_exact(width.max(1)).flat_map(halves).collect();
    Ok(Tensor::from_f64s(x.dtype(), shape, &y)?)
}

impl Op for Activation {
    fn name(&self) -> &str {
        match self {
            Activation::Gelu => "Gelu",
            Activation::FastGelu => "FastGelu",
            Activation::BiasGelu => "BiasGelu",
            Activation::QuickGelu { .. } => "QuickGelu",
            Activation::BiasSplitGelu => "BiasSplitGelu",
        }
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let mut fact = like(cx, 0, cx.get(0)?.dtype());
        if *self == Activation::BiasSplitGelu {
            let halved = cx.shape(0).map(|s| {
                let mut s = s.to_vec();
                if let Some(d) = s.last_mut() {
                    *d = d.div(&Dim::Known(2));
                }
                s
            });
            fact = Fact::tensor(cx.dtype(0), halved);
        }
        Ok(vec![fact])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let biased = |b: Option<&Tensor>, f: fn(f64) -> f64| {
            let y: Vec<f64> = add_bias(x, b)?.into_iter().map(f).collect();
            Ok::<_, OpError>(Tensor::from_f64s(x.dtype(), x.shape(), &y)?)
        };
        let y = match *self {
            Activation::Gelu => map_floats(x, gelu)?,
            Activation::FastGelu => biased(cx.opt(1), tanh_gelu)?,
            Activation::BiasGelu => biased(Some(cx.get(1)?), gelu)?,
            Activation::QuickGelu { alpha } => map_floats(x, |v| v / (1.0 + (-f64::from(alpha) * v).exp()))?,
            Activation::BiasSplitGelu => split_gelu(x, cx.get(1)?)?,
        };
        Ok(vec![y])
    }

    fn attrs(&self) -> AttrMap {
        match *self {
            Activation::QuickGelu { alpha } => AttrMap::new().with_unless("alpha", alpha, ALPHA),
            _ => AttrMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    fn run(op: Activation, ins: &[Tensor]) -> Result<Vec<f32>, OpError> {
        let data: Vec<Datum> = ins.iter().cloned().map(Datum::Tensor).collect();
        let refs: Vec<Option<&Datum>> = data.iter().map(Some).collect();
        Ok(op.eval(&EvalCx::new(&refs, 1))?[0].to_f32s()?.into_owned())
    }

    #[test]
    fn matches_known_values() {
        let x = Tensor::vector(vec![0f32, 1.0, -1.0]);
        assert_eq!(run(Activation::Gelu, std::slice::from_ref(&x)).unwrap(), [0.0, 0.841_344_8, -0.15865526]);
        assert_eq!(run(Activation::FastGelu, std::slice::from_ref(&x)).unwrap(), [0.0, 0.841192, -0.158_808_01]);
        let bias = Tensor::vector(vec![1f32, 0.0, 1.0]);
        assert_eq!(run(Activation::BiasGelu, &[x, bias]).unwrap(), [0.841_344_8, 0.841_344_8, 0.0]);
    }

    #[test]
    fn splits_after_the_bias() {
        let x = Tensor::new([1, 1, 2], vec![2f32, 0.0]).unwrap();
        assert_eq!(run(Activation::BiasSplitGelu, &[x, Tensor::vector(vec![1f32, 1.0])]).unwrap(), [2.524_034_2]);
    }

    #[test]
    fn refuses_a_bias_of_another_length() {
        let x = Tensor::vector(vec![0f32, 1.0]);
        assert!(run(Activation::BiasGelu, &[x.clone(), x.clone().reshaped([2]).unwrap()]).is_ok());
        assert!(run(Activation::BiasGelu, &[x, Tensor::vector(vec![1f32])]).is_err());
    }
}
