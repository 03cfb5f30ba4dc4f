//! What the tests of this group share.

use narrowbit_ir::{Datum, EvalCx, Op, OpError};
use narrowbit_tensor::Tensor;

/// An `f32` tensor.
pub(super) fn tensor(shape: impl Into<Vec<usize>>, values: &[f32]) -> Tensor {
    Tensor::new(shape, values.to_vec()).expect("as many values as the shape asks for")
}

/// The values of a floating-point tensor.
pub(super) fn f32s(t: &Tensor) -> Vec<f32> {
    t.to_f32s().expect("a numeric tensor").into_owned()
}

/// Runs an operator on tensors.
pub(super) fn run(op: &dyn Op, ins: &[Option<&Tensor>], n_outputs: usize) -> Result<Vec<Tensor>, OpError> {
    let data: Vec<Option<Datum>> = ins.iter().map(|t| t.map(|t| Datum::Tensor(t.clone()))).collect();
    let refs: Vec<Option<&Datum>> = data.iter().map(Option::as_ref).collect();
    op.eval(&EvalCx::new(&refs, n_outputs))
}

/// Checks values up to `tolerance` (absolute).
#[track_caller]
pub(super) fn assert_close(t: &Tensor, expected: &[f32], tolerance: f32) {
    let got = f32s(t);
    let close = got.len() == expected.len() && got.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance);
    assert!(close, "got {got:?}\nexpected {expected:?}");
}
