//! BitCast: the same bits read as another type of the same width.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

/// The input's bits under another element type of as many bits; the shape stays. Source: ONNX BitCast.
#[derive(Debug, Clone, Copy)]
pub struct BitCast {
    /// The output's type.
    pub to: DType,
}

/// Makes a BitCast from `to`.
///
/// # Errors
/// When the attribute is missing or no type that is stored as bits.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let code = attrs.int("to")?.ok_or_else(|| OpError::attribute("to", "is missing"))?;
    let to = DType::from_onnx(code).filter(|d| d.bits() > 0);
    Ok(Arc::new(BitCast {
        to: to.ok_or_else(|| OpError::attribute("to", format!("is {code}, no type of fixed width")))?,
    }))
}

impl BitCast {
    fn check(&self, from: DType) -> Result<(), OpError> {
        if from.bits() != self.to.bits() {
            return Err(OpError::input(0, from.name(), format!("a type as wide as {}", self.to)));
        }
        Ok(())
    }
}

impl Op for BitCast {
    fn name(&self) -> &str {
        "BitCast"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        x.dtype().map_or(Ok(()), |d| self.check(d))?;
        Ok(vec![Fact::tensor(Some(self.to), x.shape().map(<[_]>::to_vec))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        self.check(x.dtype())?;
        if self.to == DType::Bool {
            return Ok(vec![Tensor::from_bools(x.shape(), x.bytes().iter().map(|&b| b != 0).collect())?]);
        }
        Ok(vec![Tensor::from_bytes(self.to, x.shape(), x.bytes().clone())?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with("to", i64::from(self.to.to_onnx()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    #[test]
    fn reads_bits_of_the_same_width_only() {
        let x = Datum::Tensor(Tensor::vector(vec![1f32, -0.0]));
        let eval = |to| BitCast { to }.eval(&EvalCx::new(&[Some(&x)], 1));
        assert_eq!(eval(DType::U32).unwrap()[0].to_i64s().unwrap(), [0x3f80_0000, 0x8000_0000]);
        assert!(eval(DType::U16).is_err());
        assert!(build(26, &mut AttrMap::new().with("to", 8i64)).is_err());
    }
}
