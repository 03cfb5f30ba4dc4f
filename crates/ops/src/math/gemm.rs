//! Gemm: `alpha * a · b + beta * c` of matrices.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, ChannelAxis, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole, check_size};
use narrowbit_tensor::{DType, Tensor, shape};

use super::broadcast::{same_dtype, zip_with};
use super::num::Num;
use super::product::{multiply, transpose};
use crate::support::show;

/// `y = alpha * a · b + beta * c` of matrices of one numeric type, `a` and `b` transposed where asked for;
/// `c` is optional and broadcasts to the product. Accumulated in `f64` (integers: wrapping) and rounded once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gemm {
    /// The factor of the product.
    pub alpha: f32,
    /// The factor of `c`.
    pub beta: f32,
    /// Whether `a` is given as k×m instead of m×k.
    pub trans_a: bool,
    /// Whether `b` is given as n×k instead of k×n.
    pub trans_b: bool,
}

/// Makes a Gemm from its attributes.
///
/// # Errors
/// When an attribute has another kind than the operator defines.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Gemm {
        alpha: attrs.float_or("alpha", 1.0)?,
        beta: attrs.float_or("beta", 1.0)?,
        trans_a: attrs.flag("transA")?,
        trans_b: attrs.flag("transB")?,
    }))
}

impl Gemm {
    /// Rows and columns of the output for operands of these shapes.
    fn extents<D: Clone>(&self, a: &[D], b: &[D], agree: impl Fn(&D, &D) -> bool) -> Option<(D, D, D)> {
        let ([a0, a1], [b0, b1]) = (a, b) else { return None };
        let (m, k) = if self.trans_a { (a1, a0) } else { (a0, a1) };
        let (l, n) = if self.trans_b { (b1, b0) } else { (b0, b1) };
        agree(k, l).then(|| (m.clone(), k.clone(), n.clone()))
    }

    fn product<T: Num>(&self, a: &[T], b: &[T], (m, k, n): (usize, usize, usize)) -> Vec<T> {
        let mut y = vec![T::ZERO; m * n];
        let (ta, tb);
        let a = if self.trans_a { (ta = transpose(a, k, m), &ta[..]).1 } else { a };
        let b = if self.trans_b { (tb = transpose(b, n, k), &tb[..]).1 } else { b };
        multiply(m, k, n, a, b, &mut y);
        y
    }

    /// `alpha * y + beta * c`.
    fn epilogue(&self, y: Vec<f64>, c: Option<&Tensor>, out: &[usize]) -> Result<Vec<f64>, OpError> {
        let (alpha, beta) = (f64::from(self.alpha), f64::from(self.beta));
        match c {
            Some(c) => Ok(zip_with((&y, out), (&c.to_f64s()?, c.shape()), out, |y, c| alpha * y + beta * c)),
            None => Ok(y.into_iter().map(|y| alpha * y).collect()),
        }
    }

    /// As [`Gemm::epilogue`] on integers; exact where alpha and beta are whole.
    fn int_epilogue(&self, y: Vec<i64>, c: Option<&Tensor>, out: &[usize]) -> Result<Vec<i64>, OpError> {
        let scaled = |f: f32, v: i64| {
            if f.fract() == 0.0 { (f as i64).wrapping_mul(v) } else { (f64::from(f) * v as f64) as i64 }
        };
        let f = |y: i64, c: i64| scaled(self.alpha, y).wrapping_add(scaled(self.beta, c));
        match c {
            Some(c) => Ok(zip_with((&y, out), (&c.to_i64s()?, c.shape()), out, f)),
            None => Ok(y.into_iter().map(|y| f(y, 0)).collect()),
        }
    }
}

impl Op for Gemm {
    fn name(&self) -> &str {
        "Gemm"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let dtype = cx.get(0)?.dtype().or(cx.get(1)?.dtype());
        let (Some(a), Some(b)) = (cx.shape(0), cx.shape(1)) else {
            return Ok(vec![Fact::tensor(dtype, Some(vec![Dim::Unknown; 2]))]);
        };
        let agree = |x: &Dim, y: &Dim| !matches!((x, y), (Dim::Known(x), Dim::Known(y)) if x != y);
        let (m, _, n) = self.extents(a, b, agree).ok_or_else(|| {
            OpError::Shape(format!("Gemm can't multiply shapes {} and {} ({self:?})", show(a), show(b)))
        })?;
        let out = vec![m, n];
        if let Some(c) = cx.shape(2) {
            let fits = c.len() <= 2 && Dim::broadcast_shapes(c, &out).is_some();
            if !fits {
                let message = format!("C of shape {} does not broadcast to {}", show(c), show(&out));
                return Err(OpError::Shape(message));
            }
        }
        Ok(vec![Fact::tensor(dtype, Some(out))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b, c) = (cx.get(0)?, cx.get(1)?, cx.opt(2));
        same_dtype(a, b)?;
        let sizes = self.extents(a.shape(), b.shape(), |x, y| x == y).ok_or_else(|| {
            OpError::Shape(format!("Gemm can't multiply shapes {:?} and {:?} ({self:?})", a.shape(), b.shape()))
        })?;
        let out = vec![sizes.0, sizes.2];
        check_size(DType::F64, &out)?;
        if let Some(c) = c {
            same_dtype(a, c).map_err(|_| OpError::input(2, c.dtype().name(), a.dtype().name()))?;
            if shape::broadcast(c.shape(), &out).ok().as_ref() != Some(&out) {
                let message = format!("C of shape {:?} does not broadcast to {out:?}", c.shape());
                return Err(OpError::Shape(message));
            }
        }
        let y = match a.dtype() {
            d if d.is_float() => {
                let y = self.product(&a.to_f64s()?, &b.to_f64s()?, sizes);
                Tensor::from_f64s(d, out.clone(), &self.epilogue(y, c, &out)?)?
            }
            d if d.is_int() => {
                let y = self.product(&a.to_i64s()?, &b.to_i64s()?, sizes);
                Tensor::from_i64s(d, out.clone(), &self.int_epilogue(y, c, &out)?)?
            }
            d => return Err(OpError::input(0, d.name(), "a numeric type")),
        };
        Ok(vec![y])
    }

    fn quant(&self) -> QuantRole {
        let channel = ChannelAxis::Front(if self.trans_b { 0 } else { 1 });
        QuantRole::Weighted { data: 0, weight: 1, bias: Some(2), channel }
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_unless("alpha", self.alpha, 1.0)
            .with_unless("beta", self.beta, 1.0)
            .with_unless("transA", i64::from(self.trans_a), 0)
            .with_unless("transB", i64::from(self.trans_b), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    fn run(op: Gemm, ins: &[Tensor]) -> Result<Tensor, OpError> {
        let data: Vec<Datum> = ins.iter().cloned().map(Datum::Tensor).collect();
        let refs: Vec<Option<&Datum>> = data.iter().map(Some).collect();
        Ok(op.eval(&EvalCx::new(&refs, 1))?.remove(0))
    }

    const PLAIN: Gemm = Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false };

    #[test]
    fn transposes_scales_and_adds() {
        let a = Tensor::new([2, 1], vec![1f32, 2.0]).unwrap();
        let b = Tensor::new([2, 2], vec![1f32, 2.0, 3.0, 4.0]).unwrap();
        let c = Tensor::vector(vec![1f32, 10.0]);
        let op = Gemm { alpha: 2.0, beta: 0.5, trans_a: true, trans_b: true };
        assert_eq!(run(op, &[a, b, c]), Ok(Tensor::new([1, 2], vec![10.5f32, 27.0]).unwrap()));
    }

    #[test]
    fn refuses_operands_that_do_not_fit() {
        let a = Tensor::zeros(DType::F32, [2, 3]).unwrap();
        assert!(run(PLAIN, &[a.clone(), a.clone()]).is_err());
        let b = Tensor::zeros(DType::F32, [3, 2]).unwrap();
        assert!(run(PLAIN, &[a.clone(), b.clone(), Tensor::zeros(DType::F32, [3]).unwrap()]).is_err());
        assert!(run(PLAIN, &[a, b, Tensor::zeros(DType::F32, [1, 2, 2]).unwrap()]).is_err());
    }
}
