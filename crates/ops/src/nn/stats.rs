//! Means, variances and parameters per channel: what the normalisations share.

use narrowbit_ir::{AttrMap, EvalCx, InferCx, OpError};
use narrowbit_tensor::{DType, Tensor};

use crate::support::show;

/// Mean and population variance, in two passes.
pub(super) fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let (n, sum) = values.clone().fold((0usize, 0.0), |(n, s), x| (n + 1, s + x));
    let mean = sum / n as f64;
    (mean, values.map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64)
}

/// A tensor's floating-point values.
pub(super) fn floats(cx: &EvalCx, i: usize) -> Result<Vec<f64>, OpError> {
    let t = cx.get(i)?;
    match t.dtype() {
        DType::F32 | DType::F64 | DType::F16 | DType::Bf16 => Ok(t.to_f64s()?),
        d => Err(OpError::input(i, d.name(), "f32, f64, f16 or bf16")),
    }
}

/// Input `i` as one value per channel.
pub(super) fn per_channel(cx: &EvalCx, i: usize, channels: usize) -> Result<Vec<f64>, OpError> {
    let v = floats(cx, i)?;
    match v.len() == channels {
        true => Ok(v),
        false => {
            let (name, shape) = (cx.get(i)?.shape(), cx.get(0)?.shape());
            Err(OpError::shape(format!("input {i} of shape {name:?} needs {channels} values for X of shape {shape:?}")))
        }
    }
}

/// Checks in inference that input `i` has as many elements as X (input 0) has channels.
pub(super) fn check_per_channel(cx: &InferCx, i: usize) -> Result<(), OpError> {
    if let (Some(x @ [_, c, ..]), Some(p @ [n])) = (cx.shape(0), cx.shape(i))
        && let (Some(c), Some(n)) = (c.as_usize(), n.as_usize())
        && c != n
    {
        let message = format!("input {i} of shape {} does not fit to X of shape {}", show(p), show(x));
        return Err(OpError::shape(message));
    }
    Ok(())
}

/// N, C and the number of elements per channel of a tensor `[N, C, …]`.
pub(super) fn channels(x: &Tensor) -> Result<(usize, usize, usize), OpError> {
    match x.shape() {
        [n, c, rest @ ..] if !x.is_empty() => Ok((*n, *c, rest.iter().product())),
        // No element is visited: the extents only need to be safe to divide by.
        [_, _, ..] => Ok((0, x.shape()[1], 1)),
        s => Err(OpError::shape(format!("X of shape {s:?} needs at least 2 axes"))),
    }
}

/// Takes `stash_type`, the type of intermediate results.
pub(super) fn take_stash_type(attrs: &mut AttrMap) -> Result<DType, OpError> {
    let code = attrs.int_or("stash_type", 1)?;
    let ok = DType::from_onnx(code).filter(|d| d.is_float() && !d.is_minifloat());
    ok.ok_or_else(|| {
        OpError::attribute("stash_type", format!("is {code}, not a floating-point type of 16 bits or more"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computes_population_moments() {
        assert_eq!(moments([1.0, 2.0, 3.0, 6.0].into_iter()), (3.0, 3.5));
    }

    #[test]
    fn refuses_stash_types_that_are_no_floats() {
        assert_eq!(take_stash_type(&mut AttrMap::new()), Ok(DType::F32));
        assert!(take_stash_type(&mut AttrMap::new().with("stash_type", 6i64)).is_err());
    }
}
