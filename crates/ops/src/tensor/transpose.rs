//! Transpose: permutes the axes.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::{moves, params};

/// Axis `i` of the output is axis `perm[i]` of the input; any type.
///
/// Source: ONNX Transpose.
#[derive(Debug, Clone)]
pub struct Transpose {
    /// The permutation; the axes reversed where absent.
    pub perm: Option<Vec<i64>>,
}

/// Makes a Transpose from `perm`.
///
/// # Errors
/// When the attribute is no list of integers.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Transpose { perm: attrs.ints("perm")? }))
}

impl Transpose {
    /// The permutation for an input of `rank` axes.
    ///
    /// # Errors
    /// When `perm` is no permutation of that many axes.
    pub fn perm(&self, rank: usize) -> Result<Vec<usize>, OpError> {
        let Some(perm) = &self.perm else { return Ok((0..rank).rev().collect()) };
        if perm.len() != rank {
            return Err(OpError::shape(format!("perm {perm:?} does not fit an input of {rank} axes")));
        }
        params::axes(perm, rank)
    }
}

impl Op for Transpose {
    fn name(&self) -> &str {
        "Transpose"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let shape = match x.shape() {
            Some(s) => Some(self.perm(s.len())?.into_iter().map(|p| s[p].clone()).collect()),
            None => self.perm.as_ref().map(|p| params::unknown(p.len())),
        };
        Ok(vec![Fact::tensor(x.dtype(), shape).with_dims(x.dims.clone())])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        Ok(vec![moves::permute(x, &self.perm(x.rank())?)?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_opt("perm", self.perm.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_permutation() {
        let t = |perm: &[i64]| Transpose { perm: Some(perm.to_vec()) };
        assert!(t(&[0, 0]).perm(2).is_err());
        assert!(t(&[0]).perm(2).is_err());
        assert!(t(&[0, 2]).perm(2).is_err());
        assert_eq!(t(&[1, 0]).perm(2).unwrap(), [1, 0]);
        assert_eq!(Transpose { perm: None }.perm(3).unwrap(), [2, 1, 0]);
    }
}
