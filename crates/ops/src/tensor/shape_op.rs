//! Shape: the extents of the input.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

/// The extents `start..end` of the input as a vector of i64; both count from the back where negative and are clamped.
///
/// Source: ONNX Shape.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// The first axis.
    pub start: i64,
    /// The axis after the last; the rank where absent.
    pub end: Option<i64>,
}

/// Makes a Shape from `start` and `end` (opset 15).
///
/// # Errors
/// When an attribute is no integer.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Shape { start: attrs.int_or("start", 0)?, end: attrs.int("end")? }))
}

impl Shape {
    /// The axes of an input of `rank` axes whose extents are given.
    pub fn range(&self, rank: usize) -> std::ops::Range<usize> {
        let clamp = |a: i64| {
            let a = if a < 0 { a.saturating_add(rank as i64) } else { a };
            a.clamp(0, rank as i64) as usize
        };
        let start = clamp(self.start);
        start..self.end.map_or(rank, clamp).max(start)
    }
}

impl Op for Shape {
    fn name(&self) -> &str {
        "Shape"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let dims = cx.get(0)?.shape().map(|s| s[self.range(s.len())].to_vec());
        if let Some(known) = dims.as_ref().and_then(|d| d.iter().map(Dim::as_known).collect::<Option<Vec<i64>>>()) {
            return Ok(vec![Fact::constant(Tensor::vector(known))]);
        }
        let n = dims.as_ref().map_or(Dim::Unknown, |d| d.len().into());
        Ok(vec![Fact::tensor(Some(DType::I64), Some(vec![n])).with_dims(dims)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let s = cx.get(0)?.shape();
        Ok(vec![Tensor::vector(s[self.range(s.len())].iter().map(|&d| d as i64).collect())])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("start", self.start, 0).with_opt("end", self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clamps_start_and_end() {
        let range = |start, end| Shape { start, end }.range(3);
        assert_eq!(range(-10, Some(10)), 0..3);
        assert_eq!(range(1, Some(-1)), 1..2);
        assert_eq!(range(2, Some(1)), 2..2);
        assert_eq!(range(i64::MIN, Some(i64::MAX)), 0..3);
    }
}
