//! SkipLayerNormalization and SkipSimplifiedLayerNormalization: a residual sum, then a normalisation.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::layer_norm::normalise;
use super::support::{DOMAIN, like, vector};

/// `s = input + skip + bias`, `y = layer_norm(s) * gamma + beta` over the last axis; simplified: the
/// root mean square of `s` and no beta.
///
/// Inputs: input `[.., hidden]`, skip (of that shape, or without or with one batch), gamma, beta (not in
/// the simplified form), optional bias. Outputs: y, mean, inverse standard deviation (both f32), s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SkipLayerNorm {
    /// Keeps the root from zero.
    pub epsilon: f32,
    /// Whether this is the form with the root mean square.
    pub simplified: bool,
}

const EPSILON: f32 = 1e-12;

/// Makes a SkipLayerNormalization.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(SkipLayerNorm { epsilon: attrs.float_or("epsilon", EPSILON)?, simplified: false }))
}

/// Makes a SkipSimplifiedLayerNormalization.
pub fn build_simplified(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(SkipLayerNorm { epsilon: attrs.float_or("epsilon", EPSILON)?, simplified: true }))
}

impl Op for SkipLayerNorm {
    fn name(&self) -> &str {
        if self.simplified { "SkipSimplifiedLayerNormalization" } else { "SkipLayerNormalization" }
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let dtype = cx.get(0)?.dtype();
        let reduced = cx.shape(0).map(|s| {
            let mut s = s.to_vec();
            if let Some(d) = s.last_mut() {
                *d = Dim::Known(1);
            }
            s
        });
        let stats = Fact::tensor(Some(DType::F32), reduced);
        Ok(vec![like(cx, 0, dtype), stats.clone(), stats, like(cx, 0, dtype)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, skip) = (cx.get(0)?, cx.get(1)?);
        let Some(&n) = x.shape().last() else { return Err(OpError::input(0, "a scalar", "a tensor `[.., hidden]`")) };
        let gamma = vector(Some(cx.get(2)?), 2, n)?.unwrap_or_default();
        let (beta, bias) = if self.simplified { (None, 3) } else { (vector(cx.opt(3), 3, n)?, 4) };
        let bias = vector(cx.opt(bias), bias, n)?;
        if !x.is_empty() && (skip.is_empty() || x.len() % skip.len() != 0 || skip.shape().last() != Some(&n)) {
            let message = format!("skip of shape {:?} can't be added to input of shape {:?}", skip.shape(), x.shape());
            return Err(OpError::shape(message));
        }
        let skips = skip.to_f64s()?;
        let mut sum = x.to_f64s()?;
        for (i, v) in sum.iter_mut().enumerate() {
            *v += skips[i % skips.len()] + bias.as_ref().map_or(0.0, |b| f64::from(b[i % n]));
        }
        let out = normalise(&sum, &gamma, beta.as_deref(), self.epsilon, self.simplified);
        let mut reduced = x.shape().to_vec();
        if let Some(d) = reduced.last_mut() {
            *d = 1;
        }
        let stat = |v: &[f64]| Tensor::from_f64s(DType::F32, if n == 0 { vec![0] } else { reduced.clone() }, v);
        Ok(vec![
            Tensor::from_f64s(x.dtype(), x.shape(), &out.y)?,
            stat(&out.mean)?,
            stat(&out.inverse)?,
            Tensor::from_f64s(x.dtype(), x.shape(), &sum)?,
        ])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("epsilon", self.epsilon, EPSILON)
    }
}
