//! MatMulInteger: product of 8-bit matrices into int32.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::params::{ints, ints8};
use super::product::{Product, infer_product, mac_i32};

/// `y = (a - a_zero_point) · (b - b_zero_point)` in int32, wrapping (ONNX MatMulInteger 10).
///
/// Inputs: `a` and `b` (i8 or u8), optional `a_zero_point` (scalar or one per row), optional
/// `b_zero_point` (scalar or one per column, or with batch dimensions `[.., 1, n]`).
#[derive(Debug, Clone, Copy)]
pub struct MatMulInteger;

/// Makes a MatMulInteger; it has no attributes.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(MatMulInteger))
}

/// Where the zero points (or scales) of an operand of a product lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// One per row of the left operand.
    Rows,
    /// One per column of the right operand.
    Columns,
}

/// For each element of a matrix operand, which of `count` parameters it takes: one for all, one per
/// row or column, or that for each matrix of the batch.
pub(crate) fn param_index(
    shape: &[usize],
    count: usize,
    side: Side,
) -> Result<impl Fn(usize) -> usize + use<>, OpError> {
    let (rows, columns) = match *shape {
        [.., r, c] => (r, c),
        [k] if side == Side::Rows => (1, k),
        [k] => (k, 1),
        [] => (1, 1),
    };
    let line = if side == Side::Rows { rows } else { columns };
    let batch: usize = shape.iter().rev().skip(2).product();
    if count != 1 && count != line && count != line.saturating_mul(batch) {
        return Err(OpError::shape(format!("{count} scales or zero points do not fit an operand of shape {shape:?}")));
    }
    let per_matrix = count == line.saturating_mul(batch) && count != line;
    Ok(move |i: usize| {
        if count == 1 {
            return 0;
        }
        let at = if side == Side::Rows { i / columns % rows } else { i % columns };
        if per_matrix { i / (rows * columns) * line + at } else { at }
    })
}

/// The operand with its zero point taken off.
pub(crate) fn centred(t: &Tensor, zero: Option<&Tensor>, index: usize, side: Side) -> Result<Vec<i32>, OpError> {
    let mut values = ints8(t, index)?;
    let Some(zero) = zero else { return Ok(values) };
    let zeros = ints(zero)?;
    if let [z] = zeros.as_slice() {
        values.iter_mut().for_each(|v| *v = v.wrapping_sub(*z));
        return Ok(values);
    }
    let at = param_index(t.shape(), zeros.len(), side)?;
    values.iter_mut().enumerate().for_each(|(i, v)| *v = v.wrapping_sub(zeros[at(i)]));
    Ok(values)
}

impl Op for MatMulInteger {
    fn name(&self) -> &str {
        "MatMulInteger"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::tensor(Some(DType::I32), infer_product(cx.shape(0), cx.shape(1))?)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(1)?);
        let product = Product::new(a.shape(), b.shape(), DType::I32)?;
        let (xs, ys) = (centred(a, cx.opt(2), 0, Side::Rows)?, centred(b, cx.opt(3), 1, Side::Columns)?);
        let y = product.run(&xs, &ys, 0, mac_i32);
        Ok(vec![Tensor::new(product.out, y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_zero_points_off_per_row_and_column() {
        let a = Tensor::new([2, 2], vec![5u8, 6, 7, 8]).unwrap();
        let z = Tensor::vector(vec![1u8, 2]);
        assert_eq!(centred(&a, Some(&z), 0, Side::Rows).unwrap(), [4, 5, 5, 6]);
        assert_eq!(centred(&a, Some(&z), 0, Side::Columns).unwrap(), [4, 4, 6, 6]);
    }

    #[test]
    fn refuses_zero_points_that_do_not_fit() {
        let a = Tensor::new([2, 2], vec![5u8, 6, 7, 8]).unwrap();
        assert!(centred(&a, Some(&Tensor::vector(vec![1u8, 2, 3])), 0, Side::Rows).is_err());
        assert!(centred(&Tensor::scalar(1f32), None, 0, Side::Rows).is_err());
    }
}
