//! Elementwise functions of two operands under ONNX's multidirectional broadcasting.

use narrowbit_ir::{Dim, Fact, InferCx, OpError, check_size};
use narrowbit_tensor::{DType, Element, Tensor, shape};

use crate::support::broadcast_all;

/// Applies `f` to each pair of elements of two operands, in row-major order of `out`.
///
/// Each operand is its elements and its shape; `out` is the shape that both broadcast to.
/// Runs along the innermost dimensions over which both operands are contiguous or constant.
pub(crate) fn zip_with<A: Copy, B: Copy, O>(
    a: (&[A], &[usize]),
    b: (&[B], &[usize]),
    out: &[usize],
    f: impl Fn(A, B) -> O,
) -> Vec<O> {
    let n = shape::count(out).unwrap_or(0);
    if n == 0 {
        return Vec::new();
    }
    if a.1 == b.1 {
        return a.0.iter().zip(b.0).map(|(&x, &y)| f(x, y)).collect();
    }
    let (sa, sb) = (shape::broadcast_strides(a.1, out), shape::broadcast_strides(b.1, out));
    let run = Run::new(out, &sa, &sb);
    let k = run.outer;
    let mut result = Vec::with_capacity(n);
    for (i, j) in shape::offsets(&out[..k], &sa[..k]).zip(shape::offsets(&out[..k], &sb[..k])) {
        match (run.a_constant, run.b_constant) {
            (false, false) => {
                let pairs = a.0[i..i + run.len].iter().zip(&b.0[j..j + run.len]);
                result.extend(pairs.map(|(&x, &y)| f(x, y)));
            }
            (false, true) => {
                let y = b.0[j];
                result.extend(a.0[i..i + run.len].iter().map(|&x| f(x, y)));
            }
            (true, false) => {
                let x = a.0[i];
                result.extend(b.0[j..j + run.len].iter().map(|&y| f(x, y)));
            }
            (true, true) => result.extend((0..run.len).map(|_| f(a.0[i], b.0[j]))),
        }
    }
    result
}

/// The innermost dimensions along which each operand is either contiguous or constant.
struct Run {
    /// How many dimensions are outside of the run.
    outer: usize,
    /// Elements of the run.
    len: usize,
    a_constant: bool,
    b_constant: bool,
}

impl Run {
    fn new(out: &[usize], sa: &[usize], sb: &[usize]) -> Run {
        let mut run = Run { outer: out.len(), len: 1, a_constant: false, b_constant: false };
        let mut started = false;
        for d in (0..out.len()).rev() {
            if out[d] != 1 {
                let constant = (sa[d] == 0, sb[d] == 0);
                if started && constant != (run.a_constant, run.b_constant) {
                    break;
                }
                (run.a_constant, run.b_constant) = constant;
                started = true;
            }
            run.len *= out[d];
            run.outer = d;
        }
        run
    }
}

/// The broadcast shape of two tensors, checked to be small enough for an output of `dtype`.
///
/// # Errors
/// When the shapes can't be broadcast together or the output would be too large.
pub(crate) fn output_shape(a: &Tensor, b: &Tensor, dtype: DType) -> Result<Vec<usize>, OpError> {
    let out = shape::broadcast(a.shape(), b.shape())?;
    check_size(dtype, &out)?;
    Ok(out)
}

/// `f` of each pair of elements of two tensors broadcast together.
///
/// # Errors
/// When the tensors hold other types than `A` and `B`, can't be broadcast together, or the output would be too large.
pub(crate) fn map2<A: Element, B: Element, O: Element>(
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(A, B) -> O,
) -> Result<Tensor, OpError> {
    let out = output_shape(a, b, O::DTYPE)?;
    let y = zip_with((&a.slice::<A>()?, a.shape()), (&b.slice::<B>()?, b.shape()), &out, f);
    Ok(Tensor::new(out, y)?)
}

/// As [`map2`] with a tensor of booleans as the result.
///
/// # Errors
/// As [`map2`].
pub(crate) fn map2_bool<A: Element, B: Element>(
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(A, B) -> bool,
) -> Result<Tensor, OpError> {
    let out = output_shape(a, b, DType::Bool)?;
    let y = zip_with((&a.slice::<A>()?, a.shape()), (&b.slice::<B>()?, b.shape()), &out, |x, y| u8::from(f(x, y)));
    Ok(Tensor::from_bytes(DType::Bool, out, y)?)
}

/// Checks that two tensors have one element type.
///
/// # Errors
/// When they have not.
pub(crate) fn same_dtype(a: &Tensor, b: &Tensor) -> Result<(), OpError> {
    if a.dtype() == b.dtype() { Ok(()) } else { Err(OpError::input(1, b.dtype().name(), a.dtype().name())) }
}

/// The fact of an elementwise operator on inputs of one type: that type (or `dtype`), the broadcast shape.
///
/// # Errors
/// When the inputs' types differ or their shapes can't be broadcast together.
pub(crate) fn infer_elementwise(cx: &InferCx, dtype: Option<DType>) -> Result<Fact, OpError> {
    let mut common: Option<DType> = None;
    for i in 0..cx.len() {
        match (common, cx.dtype(i)) {
            (Some(a), Some(b)) if a != b => return Err(OpError::input(i, b.name(), a.name())),
            (a, b) => common = a.or(b),
        }
    }
    Ok(Fact::tensor(dtype.or(common), broadcast_all(cx)?))
}

/// The elements of a shape computation on two inputs, where both are known.
pub(crate) fn combine_dims(cx: &InferCx, f: impl Fn(&Dim, &Dim) -> Dim) -> Option<Vec<Dim>> {
    let (a, b) = (cx.dims(0)?, cx.dims(1)?);
    let dtype = cx.dtype(0)?;
    let n = match (a.len(), b.len()) {
        (x, y) if x == y => x,
        (1, n) | (n, 1) => n,
        _ => return None,
    };
    let at = |s: &[Dim], i: usize| s.get(if s.len() == 1 { 0 } else { i }).cloned().unwrap_or(Dim::Unknown);
    Some((0..n).map(|i| fit(f(&at(a, i), &at(b, i)), dtype)).collect())
}

/// A number that the type can't hold would wrap: it is not worth following.
fn fit(d: Dim, dtype: DType) -> Dim {
    match (&d, dtype.int_range()) {
        (Dim::Known(n), Some((lo, hi))) if !(lo..=hi).contains(&i128::from(*n)) => Dim::Unknown,
        _ => d,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_every_kind_of_run() {
        let a: Vec<i64> = (0..6).collect();
        let zip = |sa: &[usize], sb: &[usize], out: &[usize]| {
            let (na, nb) = (sa.iter().product(), sb.iter().product());
            zip_with((&a[..na], sa), (&a[..nb], sb), out, |x, y| 10 * x + y)
        };
        assert_eq!(zip(&[2, 3], &[3], &[2, 3]), [0, 11, 22, 30, 41, 52]);
        assert_eq!(zip(&[2, 3], &[2, 1], &[2, 3]), [0, 10, 20, 31, 41, 51]);
        assert_eq!(zip(&[2, 1], &[1, 3], &[2, 3]), [0, 1, 2, 10, 11, 12]);
        assert_eq!(zip(&[1, 3, 1], &[2, 1, 1], &[2, 3, 1]), [0, 10, 20, 1, 11, 21]);
        assert_eq!(zip(&[], &[2], &[2]), [0, 1]);
        assert_eq!(zip(&[], &[1, 1], &[1, 1]), [0]);
        assert_eq!(zip(&[0, 1], &[3], &[0, 3]), [0i64; 0]);
    }

    #[test]
    fn refuses_shapes_and_types_that_do_not_fit() {
        let a = Tensor::vector(vec![1f32, 2.0]);
        let b = Tensor::vector(vec![1f32, 2.0, 3.0]);
        assert!(map2(&a, &b, |x: f32, y: f32| x + y).is_err());
        assert!(map2(&a, &a, |x: i32, y: i32| x + y).is_err());
    }
}
