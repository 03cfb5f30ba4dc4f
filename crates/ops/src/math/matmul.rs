//! MatMul: the matrix product of numpy's `matmul`.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, ChannelAxis, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole, check_size};
use narrowbit_tensor::{DType, Tensor, shape};

use super::broadcast::same_dtype;
use super::num::Num;
use super::product::multiply;
use crate::support::show;

/// `y = a · b` over the last two dimensions, the others broadcast; a vector is a row on the left, a column on the right.
/// One numeric type; floating-point sums are accumulated in `f64` and rounded once, integers wrap around.
#[derive(Debug, Clone, Copy)]
pub struct MatMul;

/// Makes a MatMul; it has no attributes.
pub fn build(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(MatMul))
}

/// The shape of a matrix product, of extents of any kind.
fn product_shape<D: Clone>(
    a: &[D],
    b: &[D],
    one: D,
    agree: impl Fn(&D, &D) -> bool,
    broadcast: impl Fn(&[D], &[D]) -> Option<Vec<D>>,
) -> Option<Vec<D>> {
    let a2 = if a.len() == 1 { vec![one.clone(), a[0].clone()] } else { a.to_vec() };
    let b2 = if b.len() == 1 { vec![b[0].clone(), one] } else { b.to_vec() };
    let ([batch_a @ .., m, k], [batch_b @ .., l, n]) = (a2.as_slice(), b2.as_slice()) else { return None };
    if !agree(k, l) {
        return None;
    }
    let mut out = broadcast(batch_a, batch_b)?;
    if a.len() > 1 {
        out.push(m.clone());
    }
    if b.len() > 1 {
        out.push(n.clone());
    }
    Some(out)
}

/// The shape of the matrix product of two shapes with symbols.
///
/// # Errors
/// When they can't be multiplied.
pub(crate) fn infer_product(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let agree = |x: &Dim, y: &Dim| !matches!((x, y), (Dim::Known(x), Dim::Known(y)) if x != y);
    product_shape(a, b, Dim::Known(1), agree, Dim::broadcast_shapes)
        .ok_or_else(|| OpError::Shape(format!("matrices of shapes {} and {} can't be multiplied", show(a), show(b))))
}

/// `a · b` in the arithmetic of `T`, with numpy's rules for shapes.
///
/// # Errors
/// When the shapes can't be multiplied or the output would be too large.
pub(crate) fn product<T: Num>(a: (&[T], &[usize]), b: (&[T], &[usize])) -> Result<(Vec<T>, Vec<usize>), OpError> {
    let out = product_shape(a.1, b.1, 1, |x, y| x == y, |x, y| shape::broadcast(x, y).ok())
        .ok_or_else(|| OpError::Shape(format!("matrices of shapes {:?} and {:?} can't be multiplied", a.1, b.1)))?;
    let len = check_size(DType::F64, &out)?;
    let mut y = vec![T::ZERO; len];
    let (batch_a, m, k) = split(a.1, true);
    let (batch_b, _, n) = split(b.1, false);
    if len == 0 || k == 0 {
        return Ok((y, out));
    }
    let batch = shape::broadcast(batch_a, batch_b)?;
    let (sa, sb) = (shape::broadcast_strides(batch_a, &batch), shape::broadcast_strides(batch_b, &batch));
    if sb.iter().all(|&s| s == 0) && batch_a == batch {
        // One matrix on the right: the batch is more rows.
        multiply(a.0.len() / k, k, n, a.0, &b.0[..k * n], &mut y);
        return Ok((y, out));
    }
    let pairs = shape::offsets(&batch, &sa).zip(shape::offsets(&batch, &sb));
    for ((i, j), y) in pairs.zip(y.chunks_mut(m * n)) {
        multiply(m, k, n, &a.0[i * m * k..][..m * k], &b.0[j * k * n..][..k * n], y);
    }
    Ok((y, out))
}

/// The batch dimensions, rows and columns of an operand (rank at least 1).
fn split(s: &[usize], left: bool) -> (&[usize], usize, usize) {
    match s {
        [batch @ .., r, c] => (batch, *r, *c),
        [n] if left => (&[], 1, *n),
        [n] => (&[], *n, 1),
        [] => (&[], 1, 1),
    }
}

impl Op for MatMul {
    fn name(&self) -> &str {
        "MatMul"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let dtype = cx.get(0)?.dtype().or(cx.get(1)?.dtype());
        let shape = match (cx.shape(0), cx.shape(1)) {
            (Some(a), Some(b)) => Some(infer_product(a, b)?),
            _ => None,
        };
        Ok(vec![Fact::tensor(dtype, shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(1)?);
        same_dtype(a, b)?;
        let y = match a.dtype() {
            d if d.is_float() => {
                let (y, s) = product((&a.to_f64s()?, a.shape()), (&b.to_f64s()?, b.shape()))?;
                Tensor::from_f64s(d, s, &y)?
            }
            d if d.is_int() => {
                let (y, s) = product((&a.to_i64s()?, a.shape()), (&b.to_i64s()?, b.shape()))?;
                Tensor::from_i64s(d, s, &y)?
            }
            d => return Err(OpError::input(0, d.name(), "a numeric type")),
        };
        Ok(vec![y])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Weighted { data: 0, weight: 1, bias: None, channel: ChannelAxis::Back(1) }
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(a: &[usize], b: &[usize]) -> Result<(Vec<i64>, Vec<usize>), OpError> {
        let fill = |s: &[usize]| (0..s.iter().product::<usize>() as i64).collect::<Vec<_>>();
        product((&fill(a), a), (&fill(b), b))
    }

    #[test]
    fn multiplies_vectors_matrices_and_batches() {
        assert_eq!(run(&[3], &[3]), Ok((vec![5], vec![])));
        assert_eq!(run(&[2, 2], &[2]), Ok((vec![1, 3], vec![2])));
        assert_eq!(run(&[2], &[2, 2]), Ok((vec![2, 3], vec![2])));
        assert_eq!(run(&[2, 1, 2], &[2, 1]), Ok((vec![1, 3], vec![2, 1, 1])));
        assert_eq!(run(&[1, 1, 2], &[2, 2, 1]), Ok((vec![1, 3], vec![2, 1, 1])));
        assert_eq!(run(&[2, 0], &[0, 1]), Ok((vec![0, 0], vec![2, 1])));
    }

    #[test]
    fn refuses_shapes_that_do_not_fit() {
        assert!(run(&[2, 3], &[2, 3]).is_err());
        assert!(run(&[2, 2, 2], &[3, 2, 2]).is_err());
        assert!(run(&[], &[2]).is_err());
        let known = [Dim::Known(2), Dim::Known(3)];
        assert!(infer_product(&known, &known).is_err());
        assert!(infer_product(&[], &known).is_err());
        assert_eq!(infer_product(&[Dim::sym("n"), Dim::Known(2)], &known), Ok(vec![Dim::sym("n"), Dim::Known(3)]));
    }
}
