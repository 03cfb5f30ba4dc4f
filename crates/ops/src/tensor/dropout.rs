//! Dropout: the input itself at inference; random zeros in training.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::{DType, Tensor};

use super::mt19937::Mt19937;
use super::params;

/// `y = x` at inference. In training `y = x·mask / (1 − ratio)`, the mask being false with probability `ratio`.
///
/// Training draws the mask as ONNX's reference implementation does (MT19937 with the seed). Source: ONNX Dropout.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// The ratio as an attribute, before opset 12.
    pub ratio: Option<f32>,
    /// The seed (opset 12).
    pub seed: Option<i64>,
    /// The opset: ratio and training mode are inputs from 12 on, the mask is boolean from 10 on.
    pub opset: i64,
}

/// Makes a Dropout from `ratio` or `seed`.
///
/// # Errors
/// When an attribute has another kind.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let (ratio, seed) = if opset < 12 { (attrs.float("ratio")?, None) } else { (None, attrs.int("seed")?) };
    Ok(Arc::new(Dropout { ratio, seed, opset }))
}

impl Dropout {
    fn is_training(&self, cx: &EvalCx) -> Result<bool, OpError> {
        Ok(match cx.opt(2) {
            Some(flag) if self.opset >= 12 => params::first_bool(flag, 2)?,
            _ => false,
        })
    }

    fn mask(&self, x: &Tensor, keep: Vec<bool>) -> Result<Tensor, OpError> {
        if self.opset >= 10 {
            return Ok(Tensor::from_bools(x.shape(), keep)?);
        }
        Ok(Tensor::from_i64s(x.dtype(), x.shape(), &keep.into_iter().map(i64::from).collect::<Vec<_>>())?)
    }
}

impl Op for Dropout {
    fn name(&self) -> &str {
        "Dropout"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let mask = if self.opset >= 10 { Some(DType::Bool) } else { x.dtype() };
        let shape = x.shape().map(<[_]>::to_vec);
        Ok(vec![Fact::tensor(x.dtype(), shape.clone()), Fact::tensor(mask, shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let ratio = params::float(cx, 1)?.unwrap_or(0.5);
        if !self.is_training(cx)? || ratio == 0.0 {
            let mut out = vec![x.clone()];
            if cx.n_outputs() > 1 {
                out.push(self.mask(x, vec![true; x.len()])?);
            }
            return Ok(out);
        }
        if !(0.0..1.0).contains(&ratio) {
            return Err(OpError::Value(format!("the ratio is {ratio}, not in [0, 1)")));
        }
        let mut random = Mt19937::new(self.seed.unwrap_or(0) as u32);
        let keep: Vec<bool> = (0..x.len()).map(|_| random.uniform() >= ratio).collect();
        let scale = 1.0 / (1.0 - ratio);
        let y: Vec<f64> = x.to_f64s()?.into_iter().zip(&keep).map(|(v, &k)| if k { v * scale } else { 0.0 }).collect();
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &y)?, self.mask(x, keep)?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_opt("ratio", self.ratio).with_opt("seed", self.seed)
    }

    fn is_deterministic(&self) -> bool {
        self.opset < 12 || self.seed.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, floats};
    use super::*;

    #[test]
    fn passes_on_at_inference_and_checks_the_ratio_in_training() {
        let x = floats(&[2], &[1.0, 2.0]);
        let old = eval("Dropout", 7, AttrMap::new().with("ratio", 0.3f32), std::slice::from_ref(&x)).unwrap();
        assert_eq!(old[0], x);
        let run = |ratio: f32| {
            let training = Tensor::from_bools([], vec![true]).unwrap();
            eval("Dropout", 13, AttrMap::new().with("seed", 0i64), &[x.clone(), floats(&[], &[ratio]), training])
        };
        assert_eq!(run(0.0).unwrap()[0], x);
        assert!(run(1.0).is_err());
        assert!(run(f32::NAN).is_err());
    }
}
