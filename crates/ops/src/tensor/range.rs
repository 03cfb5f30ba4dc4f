//! Range: an arithmetic sequence.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor};

/// `start + i·delta` for `i` in `0..max(ceil((limit − start) / delta), 0)`; f32, f64, half types and integers.
///
/// Source: ONNX Range.
#[derive(Debug, Clone)]
pub struct Range {
    /// `stash_type` as the file has it (opset 27); half types are always computed in f32 or wider.
    pub stash_type: Option<i64>,
}

/// Makes a Range.
///
/// # Errors
/// When `stash_type` is no integer.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Range { stash_type: attrs.int("stash_type")? }))
}

fn infer_count(cx: &InferCx) -> Dim {
    let one = |i: usize| match cx.dims(i) {
        Some([d]) => d.clone(),
        _ => Dim::Unknown,
    };
    match (one(0), one(1), one(2)) {
        (Dim::Known(start), Dim::Known(limit), Dim::Known(delta)) => {
            count_ints(start, limit, delta).map_or(Dim::Unknown, Dim::from)
        }
        (start, limit, Dim::Known(1)) => limit.sub(&start),
        _ => match [0, 1, 2].map(|i| cx.value(i).and_then(|v| v.to_f64s().ok()?.first().copied())) {
            [Some(start), Some(limit), Some(delta)] => {
                count_floats(start, limit, delta).map_or(Dim::Unknown, Dim::from)
            }
            _ => Dim::Unknown,
        },
    }
}

fn count_ints(start: i64, limit: i64, delta: i64) -> Result<usize, OpError> {
    if delta == 0 {
        return Err(OpError::Value("the step is 0".into()));
    }
    let (span, step) = (i128::from(limit) - i128::from(start), i128::from(delta));
    let n = if (span > 0) == (step > 0) { span.unsigned_abs().div_ceil(step.unsigned_abs()) } else { 0 };
    Ok(usize::try_from(n).unwrap_or(usize::MAX))
}

fn count_floats(start: f64, limit: f64, delta: f64) -> Result<usize, OpError> {
    let n = ((limit - start) / delta).ceil();
    if !n.is_finite() {
        return Err(OpError::Value(format!("a range from {start} to {limit} in steps of {delta} has no length")));
    }
    Ok(n.max(0.0) as usize)
}

fn first<T: Copy>(v: &[T], i: usize) -> Result<T, OpError> {
    v.first().copied().ok_or_else(|| OpError::input(i, "an empty tensor", "a scalar"))
}

impl Op for Range {
    fn name(&self) -> &str {
        "Range"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        cx.get(2)?;
        let dtype = (0..3).find_map(|i| cx.dtype(i));
        Ok(vec![Fact::tensor(dtype, Some(vec![infer_count(cx)]))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let ins = [cx.get(0)?, cx.get(1)?, cx.get(2)?];
        let dtype = ins[0].dtype();
        if dtype.is_float() {
            let [start, limit, delta] = [0, 1, 2].map(|i| first(&ins[i].to_f64s()?, i));
            let (start, limit, delta) = (start?, limit?, delta?);
            let n = count_floats(start, limit, delta)?;
            check_size(DType::F64, &[n])?;
            let at = |i: usize| match dtype {
                DType::F32 => f64::from(start as f32 + i as f32 * delta as f32),
                _ => start + i as f64 * delta,
            };
            return Ok(vec![Tensor::from_f64s(dtype, [n], &(0..n).map(at).collect::<Vec<_>>())?]);
        }
        let [start, limit, delta] = [0, 1, 2].map(|i| first(&ins[i].to_i64s()?, i));
        let (start, delta) = (start?, delta?);
        let n = count_ints(start, limit?, delta)?;
        check_size(DType::I64, &[n])?;
        let values: Vec<i64> = (0..n as i64).map(|i| start.wrapping_add(i.wrapping_mul(delta))).collect();
        Ok(vec![Tensor::from_i64s(dtype, [n], &values)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_opt("stash_type", self.stash_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_steps_in_both_directions() {
        assert_eq!(count_ints(10, 6, -3).unwrap(), 2);
        assert_eq!(count_ints(0, 10, -1).unwrap(), 0);
        assert_eq!(count_ints(i64::MIN, i64::MAX, i64::MAX).unwrap(), 3);
        assert!(count_ints(0, 1, 0).is_err());
        assert!(count_floats(0.0, 1.0, 0.0).is_err());
        assert!(count_floats(0.0, f64::NAN, 1.0).is_err());
    }

    #[test]
    fn infers_symbolic_lengths() {
        let scalar = |d: Dim| Fact::tensor(Some(DType::I64), Some(vec![])).with_dims(Some(vec![d]));
        let (zero, seq, one) = (scalar(Dim::Known(0)), scalar(Dim::sym("seq")), scalar(Dim::Known(1)));
        let op = Range { stash_type: None };
        let facts = op.infer(&InferCx::new(&[Some(&zero), Some(&seq), Some(&one)], 1)).unwrap();
        assert_eq!(facts[0].shape(), Some(&[Dim::sym("seq")][..]));
    }
}
