//! What the tests of this group share.

use narrowbit_ir::{AttrMap, Datum, EvalCx, OpError, OpSource};
use narrowbit_tensor::Tensor;

use crate::Registry;

/// Makes an operator by its name and runs it on tensors.
///
/// # Errors
/// What making or running it gives.
pub fn eval(name: &str, opset: i64, mut attrs: AttrMap, ins: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let op = Registry.build("", name, opset, &mut attrs).ok_or(OpError::Unsupported(name.into()))??;
    let ins: Vec<Datum> = ins.iter().cloned().map(Datum::Tensor).collect();
    op.eval(&EvalCx::new(&ins.iter().map(Some).collect::<Vec<_>>(), 1))
}

/// A tensor of i64.
pub fn ints(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::new(shape, values.to_vec()).unwrap()
}

/// A tensor of f32.
pub fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape, values.to_vec()).unwrap()
}
