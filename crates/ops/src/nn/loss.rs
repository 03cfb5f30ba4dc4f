//! What NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss share.

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, OpError};
use narrowbit_tensor::Tensor;

use super::stats::floats;

/// How losses are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// One loss per target.
    None,
    /// Their sum.
    Sum,
    /// Their mean, weighted by the weights of their classes.
    Mean,
}

/// The attributes of the losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossAttrs {
    /// How losses are put together.
    pub reduction: Reduction,
    /// Targets of this value have no loss.
    pub ignore_index: Option<i64>,
}

impl LossAttrs {
    pub(super) fn take(attrs: &mut AttrMap) -> Result<LossAttrs, OpError> {
        let reduction = match attrs.string("reduction")?.as_deref() {
            None | Some("mean") => Reduction::Mean,
            Some("sum") => Reduction::Sum,
            Some("none") => Reduction::None,
            Some(r) => return Err(OpError::attribute("reduction", format!("is \"{r}\", not mean, sum or none"))),
        };
        Ok(LossAttrs { reduction, ignore_index: attrs.int("ignore_index")? })
    }

    pub(super) fn put(&self, attrs: AttrMap) -> AttrMap {
        let reduction = match self.reduction {
            Reduction::Mean => None,
            Reduction::Sum => Some("sum"),
            Reduction::None => Some("none"),
        };
        attrs.with_opt("reduction", reduction).with_opt("ignore_index", self.ignore_index)
    }

    pub(super) fn infer(&self, cx: &InferCx) -> Result<Fact, OpError> {
        cx.get(0)?;
        let from_scores =
            |s: &[Dim]| [s.first().cloned().into_iter().collect(), s.get(2..).unwrap_or_default().to_vec()].concat();
        let shape = match self.reduction {
            Reduction::None => cx.shape(1).map(<[_]>::to_vec).or(cx.shape(0).map(from_scores)),
            _ => Some(Vec::new()),
        };
        Ok(Fact::tensor(cx.dtype(0), shape))
    }

    /// The loss of log-probabilities (input 0's shape `[N, C, …]`), targets (input 1, `[N, …]`)
    /// and optional weights by class (input 2).
    pub(super) fn eval(&self, cx: &EvalCx, log_prob: &[f64]) -> Result<Tensor, OpError> {
        let (x, target) = (cx.get(0)?, cx.get(1)?);
        let (n, c, size) = extents(x)?;
        if [&x.shape()[..1], &x.shape()[2..]].concat() != target.shape() {
            let message =
                format!("scores of shape {:?} and targets of shape {:?} don't fit together", x.shape(), target.shape());
            return Err(OpError::shape(message));
        }
        let weights = if cx.opt(2).is_some() { Some(floats(cx, 2)?) } else { None };
        if weights.as_ref().is_some_and(|w| w.len() != c) {
            return Err(OpError::shape(format!("there must be one weight for each of {c} classes")));
        }
        let (mut losses, mut total) = (Vec::with_capacity(n * size), 0.0);
        for (i, t) in target.to_i64s()?.into_iter().enumerate() {
            if Some(t) == self.ignore_index {
                losses.push(0.0);
                continue;
            }
            let problem = || OpError::Value(format!("a target is {t}, there are {c} classes"));
            let class = usize::try_from(t).ok().filter(|&t| t < c).ok_or_else(problem)?;
            let weight = weights.as_ref().map_or(1.0, |w| w[class]);
            total += weight;
            losses.push(-log_prob[(i / size * c + class) * size + i % size] * weight);
        }
        let sum = losses.iter().sum::<f64>();
        Ok(match self.reduction {
            Reduction::None => Tensor::from_f64s(x.dtype(), target.shape(), &losses)?,
            Reduction::Sum => Tensor::from_f64s(x.dtype(), [], &[sum])?,
            Reduction::Mean => Tensor::from_f64s(x.dtype(), [], &[sum / total])?,
        })
    }
}

/// N, C and the number of elements per class and sample.
pub(super) fn extents(x: &Tensor) -> Result<(usize, usize, usize), OpError> {
    match x.shape() {
        [n, c, rest @ ..] if !x.is_empty() => Ok((*n, *c, rest.iter().product())),
        s => Err(OpError::shape(format!("scores of shape {s:?} need at least 2 axes and 1 element"))),
    }
}
