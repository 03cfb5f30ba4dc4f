//! Equal, Greater, GreaterOrEqual, Less and LessOrEqual with broadcasting.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::broadcast::{combine_dims, infer_elementwise, map2_bool, output_shape, same_dtype, zip_with};
use super::num::{Num, with_num};

/// Compares elements of one type, broadcast together; the output is boolean. Equal also takes booleans and strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// `a == b`
    Equal,
    /// `a > b`
    Greater,
    /// `a >= b`
    GreaterOrEqual,
    /// `a < b`
    Less,
    /// `a <= b`
    LessOrEqual,
}

impl Compare {
    /// Makes the operator; it has no attributes.
    pub fn build(self, _opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
        Ok(Arc::new(self))
    }

    fn apply<T: Num>(self, a: &Tensor, b: &Tensor) -> Result<Tensor, OpError> {
        match self {
            Compare::Equal => map2_bool(a, b, |x: T, y: T| x == y),
            Compare::Greater => map2_bool(a, b, |x: T, y: T| x > y),
            Compare::GreaterOrEqual => map2_bool(a, b, |x: T, y: T| x >= y),
            Compare::Less => map2_bool(a, b, |x: T, y: T| x < y),
            Compare::LessOrEqual => map2_bool(a, b, |x: T, y: T| x <= y),
        }
    }

    /// What is known of a comparison of two elements of a shape computation, as 0 or 1.
    fn known(self, a: &Dim, b: &Dim) -> Dim {
        let truth = match (a, b) {
            (Dim::Known(a), Dim::Known(b)) => match self {
                Compare::Equal => a == b,
                Compare::Greater => a > b,
                Compare::GreaterOrEqual => a >= b,
                Compare::Less => a < b,
                Compare::LessOrEqual => a <= b,
            },
            (a, b) if a.same(b) => matches!(self, Compare::Equal | Compare::GreaterOrEqual | Compare::LessOrEqual),
            (Dim::Sym(s), Dim::Known(n)) if *n < 0 && is_extent(s) => {
                matches!(self, Compare::Greater | Compare::GreaterOrEqual)
            }
            (Dim::Known(n), Dim::Sym(s)) if *n < 0 && is_extent(s) => {
                matches!(self, Compare::Less | Compare::LessOrEqual)
            }
            _ => return Dim::Unknown,
        };
        Dim::Known(truth.into())
    }
}

/// Whether a symbol is certainly not negative: sums, products and quotients of extents are not, differences may be.
fn is_extent(symbol: &str) -> bool {
    !symbol.contains('-')
}

fn strings_equal(a: &Tensor, b: &Tensor) -> Result<Tensor, OpError> {
    let out = output_shape(a, b, DType::Bool)?;
    let (x, y): (Vec<&str>, Vec<&str>) =
        (a.strings()?.iter().map(String::as_str).collect(), b.strings()?.iter().map(String::as_str).collect());
    let z = zip_with((&x, a.shape()), (&y, b.shape()), &out, |x, y| x == y);
    Ok(Tensor::from_bools(out, z)?)
}

impl Op for Compare {
    fn name(&self) -> &str {
        match self {
            Compare::Equal => "Equal",
            Compare::Greater => "Greater",
            Compare::GreaterOrEqual => "GreaterOrEqual",
            Compare::Less => "Less",
            Compare::LessOrEqual => "LessOrEqual",
        }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let fact = infer_elementwise(cx, Some(DType::Bool))?;
        Ok(vec![fact.with_dims(combine_dims(cx, |a, b| self.known(a, b)))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(1)?);
        same_dtype(a, b)?;
        let y = match (self, a.dtype()) {
            (Compare::Equal, DType::String) => strings_equal(a, b),
            (Compare::Equal, DType::Bool) => map2_bool(a, b, |x: u8, y: u8| (x != 0) == (y != 0)),
            (_, d) => with_num!(d, 0, T => self.apply::<T>(a, b)),
        };
        Ok(vec![y?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    #[test]
    fn compares_strings_with_broadcasting() {
        let a = Datum::Tensor(Tensor::from_strings([2], vec!["a".into(), "b".into()]).unwrap());
        let b = Datum::Tensor(Tensor::from_strings([], vec!["b".into()]).unwrap());
        let cx = [Some(&a), Some(&b)];
        assert_eq!(Compare::Equal.eval(&EvalCx::new(&cx, 1)).unwrap()[0].bools().unwrap(), [false, true]);
        assert!(Compare::Less.eval(&EvalCx::new(&cx, 1)).is_err());
    }

    #[test]
    fn finds_nan_unequal_to_itself() {
        let x = Datum::Tensor(Tensor::scalar(f32::NAN));
        let y = Compare::Equal.eval(&EvalCx::new(&[Some(&x), Some(&x)], 1)).unwrap();
        assert_eq!(y[0].bools().unwrap(), [false]);
    }
}
