//! What operators share: type dispatch, elementwise maps, broadcasting, inference of common shapes.
//!
//! Reference evaluation computes in the output's own type where ONNX says so: `f32`
//! arithmetic is done in `f32`, half types are computed in `f32` and rounded once.

use narrowbit_ir::{Dim, Fact, InferCx, OpError};
use narrowbit_tensor::{DType, Tensor};

/// The fact of an output with the type and shape of input 0.
///
/// # Errors
/// When input 0 is absent.
pub fn infer_same(cx: &InferCx) -> Result<Vec<Fact>, OpError> {
    let x = cx.get(0)?;
    Ok(vec![Fact { ty: x.ty.clone(), ..Fact::default() }])
}

/// The fact of an output with the type of input 0 and the broadcast shape of all inputs.
///
/// # Errors
/// When the inputs can't be broadcast together.
pub fn infer_broadcast(cx: &InferCx) -> Result<Vec<Fact>, OpError> {
    let dtype = (0..cx.len()).find_map(|i| cx.dtype(i));
    Ok(vec![Fact::tensor(dtype, broadcast_all(cx)?)])
}

/// The shape that all inputs broadcast to, where all ranks are known.
///
/// # Errors
/// When the inputs can't be broadcast together.
pub fn broadcast_all(cx: &InferCx) -> Result<Option<Vec<Dim>>, OpError> {
    let mut out: Vec<Dim> = Vec::new();
    for i in 0..cx.len() {
        let Some(s) = cx.shape(i) else { return Ok(None) };
        out = Dim::broadcast_shapes(&out, s).ok_or_else(|| {
            OpError::shape(format!("inputs of shapes {} and {} can't be broadcast together", show(&out), show(s)))
        })?;
    }
    Ok(Some(out))
}

/// A shape for messages, for instance `[batch, 3]`.
pub fn show(dims: &[Dim]) -> String {
    let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// Maps each element of a numeric tensor in its own type: floating-point types through
/// `f32` (`f64` in its own precision), integers through `i64`, wrapping to their width.
///
/// # Errors
/// For strings, booleans and complex types.
pub fn map_numeric(x: &Tensor, f: impl Fn(f64) -> f64, g: impl Fn(i64) -> i64) -> Result<Tensor, OpError> {
    match x.dtype() {
        DType::F32 => {
            let y = x.slice::<f32>()?.iter().map(|&v| f(f64::from(v)) as f32).collect();
            Ok(Tensor::new(x.shape(), y)?)
        }
        d if d.is_float() => {
            let y: Vec<f64> = x.to_f64s()?.into_iter().map(f).collect();
            Ok(Tensor::from_f64s(d, x.shape(), &y)?)
        }
        d if d.is_int() => {
            let y: Vec<i64> = x.to_i64s()?.into_iter().map(g).collect();
            Ok(Tensor::from_i64s(d, x.shape(), &y)?)
        }
        d => Err(OpError::input(0, d.name(), "a numeric type")),
    }
}
