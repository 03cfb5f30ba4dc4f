//! LayerNormalization and SimplifiedLayerNormalization as ONNX Runtime writes them.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor, shape};

use super::support::{DOMAIN, vector};

/// `y = (x - mean) / sqrt(var + epsilon) * scale + bias` over the axes from `axis` on; simplified:
/// `y = x / sqrt(mean(x^2) + epsilon) * scale` (root mean square).
///
/// Inputs: x, scale, optional bias. Outputs: y of scale's type; mean (not in the simplified form) and
/// inverse standard deviation, f32 (f64 for f64). ONNX Runtime writes the simplified form both in
/// its own and in ONNX's domain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNorm {
    /// The first normalised axis.
    pub axis: i64,
    /// Keeps the root from zero.
    pub epsilon: f32,
    /// Whether the mean is left alone.
    pub simplified: bool,
    /// Whether the node is of ONNX Runtime's domain.
    pub microsoft: bool,
    /// The attribute of the file, 1 where absent.
    pub stash_type: i64,
}

fn make(attrs: &mut AttrMap, simplified: bool, microsoft: bool) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(LayerNorm {
        axis: attrs.int_or("axis", -1)?,
        epsilon: attrs.float_or("epsilon", EPSILON)?,
        simplified,
        microsoft,
        stash_type: attrs.int_or("stash_type", 1)?,
    }))
}

const EPSILON: f32 = 1e-5;

/// Makes a LayerNormalization of the `com.microsoft` domain.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    make(attrs, false, true)
}

/// Makes a SimplifiedLayerNormalization of the `com.microsoft` domain.
pub fn build_simplified(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    make(attrs, true, true)
}

/// Makes a SimplifiedLayerNormalization of ONNX's domain, where ONNX Runtime also puts it.
pub fn build_simplified_onnx(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    make(attrs, true, false)
}

/// Rows normalised, with their means and inverse standard deviations.
pub(crate) struct Normalised {
    pub y: Vec<f64>,
    pub mean: Vec<f64>,
    pub inverse: Vec<f64>,
}

/// Normalises each row of `scale.len()` elements.
pub(crate) fn normalise(x: &[f64], scale: &[f32], bias: Option<&[f32]>, epsilon: f32, simplified: bool) -> Normalised {
    let n = scale.len().max(1);
    let mut out = Normalised { y: Vec::with_capacity(x.len()), mean: Vec::new(), inverse: Vec::new() };
    for row in x.chunks_exact(n) {
        let mean = if simplified { 0.0 } else { row.iter().sum::<f64>() / n as f64 };
        let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
        let inverse = 1.0 / (var + f64::from(epsilon)).sqrt();
        for (i, (v, s)) in row.iter().zip(scale).enumerate() {
            let b = bias.map_or(0.0, |b| f64::from(b[i]));
            out.y.push((v - mean) * inverse * f64::from(*s) + b);
        }
        out.mean.push(mean);
        out.inverse.push(inverse);
    }
    out
}

impl Op for LayerNorm {
    fn name(&self) -> &str {
        if self.simplified { "SimplifiedLayerNormalization" } else { "LayerNormalization" }
    }

    fn domain(&self) -> &str {
        if self.microsoft { DOMAIN } else { "" }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let stat = if x.dtype() == Some(DType::F64) { DType::F64 } else { DType::F32 };
        let reduced = x.shape().and_then(|s| {
            let a = shape::axis(self.axis, s.len())?;
            let mut s = s.to_vec();
            s[a..].fill(Dim::Known(1));
            Some(s)
        });
        let stats = Fact::tensor(Some(stat), reduced);
        let y = Fact::tensor(cx.dtype(1).or(x.dtype()), x.shape().map(<[Dim]>::to_vec));
        Ok(if self.simplified { vec![y, stats] } else { vec![y, stats.clone(), stats] })
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, scale) = (cx.get(0)?, cx.get(1)?);
        let a = shape::axis(self.axis, x.rank()).ok_or_else(|| {
            OpError::attribute("axis", format!("is {}, but x has {} dimensions", self.axis, x.rank()))
        })?;
        let n: usize = x.shape()[a..].iter().product();
        let scales = vector(Some(scale), 1, n)?.unwrap_or_default();
        let bias = vector(cx.opt(2).filter(|_| !self.simplified), 2, n)?;
        let out = normalise(&x.to_f64s()?, &scales, bias.as_deref(), self.epsilon, self.simplified);
        let mut reduced = x.shape().to_vec();
        reduced[a..].fill(1);
        let stat = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let y = Tensor::from_f64s(scale.dtype(), x.shape(), &out.y)?;
        if n == 0 {
            return Ok(vec![y]);
        }
        let inverse = Tensor::from_f64s(stat, reduced.clone(), &out.inverse)?;
        if self.simplified {
            return Ok(vec![y, inverse]);
        }
        Ok(vec![y, Tensor::from_f64s(stat, reduced, &out.mean)?, inverse])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("axis", self.axis, -1).with_unless("epsilon", self.epsilon, EPSILON).with_unless(
            "stash_type",
            self.stash_type,
            1,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_rows() {
        let out = normalise(&[1.0, 3.0], &[2.0, 1.0], Some(&[0.0, 5.0]), 0.0, false);
        assert_eq!((out.y, out.mean, out.inverse), (vec![-2.0, 6.0], vec![2.0], vec![1.0]));
        assert_eq!(normalise(&[3.0, 3.0], &[1.0, 1.0], None, 0.0, true).y, [1.0, 1.0]);
    }
}
