//! EyeLike: ones on a diagonal.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor};

/// A matrix of the input's shape with ones where `column − row = k`, zeros elsewhere. Source: ONNX EyeLike.
#[derive(Debug, Clone, Copy)]
pub struct EyeLike {
    /// The output's type; the input's where absent.
    pub dtype: Option<DType>,
    /// The diagonal: 0 is the main one, positive ones lie above it.
    pub k: i64,
}

/// Makes an EyeLike from `dtype` and `k`.
///
/// # Errors
/// When an attribute is no integer or `dtype` no numeric type.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let dtype = match attrs.int("dtype")? {
        None => None,
        Some(code) => Some(
            DType::from_onnx(code)
                .filter(|d| d.is_float() || d.is_int() || *d == DType::Bool)
                .ok_or_else(|| OpError::attribute("dtype", format!("is {code}, not a numeric type")))?,
        ),
    };
    Ok(Arc::new(EyeLike { dtype, k: attrs.int_or("k", 0)? }))
}

impl Op for EyeLike {
    fn name(&self) -> &str {
        "EyeLike"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        Ok(vec![Fact::tensor(self.dtype.or(x.dtype()), x.shape().map(<[_]>::to_vec))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let &[rows, columns] = x.shape() else {
            return Err(OpError::shape(format!("the input has shape {:?}, not two axes", x.shape())));
        };
        let n = check_size(DType::I64, x.shape())?;
        let mut out = vec![0i64; n];
        for r in 0..rows {
            let c = (r as i64).checked_add(self.k).and_then(|c| usize::try_from(c).ok());
            if let Some(c) = c.filter(|&c| c < columns) {
                out[r * columns + c] = 1;
            }
        }
        Ok(vec![Tensor::from_i64s(self.dtype.unwrap_or(x.dtype()), x.shape(), &out)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_opt("dtype", self.dtype.map(|d| i64::from(d.to_onnx()))).with_unless("k", self.k, 0)
    }
}
