//! Max, Mean, Min and Sum of any number of tensors.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::broadcast::{combine_dims, infer_elementwise, map2, same_dtype};
use super::num::{Num, with_num};

/// A function of one or more tensors of one numeric type, broadcast together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variadic {
    /// The greatest; NaN if there is one.
    Max,
    /// The arithmetic mean.
    Mean,
    /// The least; NaN if there is one.
    Min,
    /// The sum.
    Sum,
}

impl Variadic {
    /// Makes the operator; it has no attributes.
    pub fn build(self, _opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
        Ok(Arc::new(self))
    }

    fn apply<T: Num>(self, ins: &[&Tensor]) -> Result<Tensor, OpError> {
        let f = match self {
            Variadic::Max => T::larger,
            Variadic::Min => T::smaller,
            Variadic::Mean | Variadic::Sum => T::plus,
        };
        let (first, rest) = ins.split_first().ok_or(OpError::MissingInput(0))?;
        let y = rest.iter().try_fold((*first).clone(), |y, x| map2(&y, x, f))?;
        if self == Variadic::Mean {
            return map2(&y, &Tensor::scalar(T::from_f64(ins.len() as f64)), T::over);
        }
        Ok(y)
    }
}

impl Op for Variadic {
    fn name(&self) -> &str {
        match self {
            Variadic::Max => "Max",
            Variadic::Mean => "Mean",
            Variadic::Min => "Min",
            Variadic::Sum => "Sum",
        }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let pick = |a: &Dim, b: &Dim| match (self, a, b) {
            (Variadic::Sum, _, _) => a.add(b),
            (Variadic::Max, Dim::Known(x), Dim::Known(y)) => Dim::Known(*x.max(y)),
            (Variadic::Min, Dim::Known(x), Dim::Known(y)) => Dim::Known(*x.min(y)),
            (Variadic::Max | Variadic::Min, a, b) if a.same(b) => a.clone(),
            _ => Dim::Unknown,
        };
        let dims = match cx.len() {
            1 if *self != Variadic::Mean => cx.dims(0).map(<[_]>::to_vec),
            2 => combine_dims(cx, pick),
            _ => None,
        };
        Ok(vec![infer_elementwise(cx, None)?.with_dims(dims)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let ins = cx.all()?;
        let dtype = cx.get(0)?.dtype();
        for (i, x) in ins.iter().enumerate() {
            same_dtype(ins[0], x).map_err(|_| OpError::input(i, x.dtype().name(), dtype.name()))?;
        }
        Ok(vec![with_num!(dtype, 0, T => self.apply::<T>(&ins))?])
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
    fn takes_any_number_of_inputs_but_none() {
        let t: Vec<Datum> = [1f32, 5.0, 3.0].map(|v| Datum::Tensor(Tensor::scalar(v))).into();
        let ins: Vec<Option<&Datum>> = t.iter().map(Some).collect();
        let run = |op: Variadic, n: usize| op.eval(&EvalCx::new(&ins[..n], 1));
        assert_eq!(run(Variadic::Mean, 3), Ok(vec![Tensor::scalar(3f32)]));
        assert_eq!(run(Variadic::Max, 3), Ok(vec![Tensor::scalar(5f32)]));
        assert_eq!(run(Variadic::Sum, 1), Ok(vec![Tensor::scalar(1f32)]));
        assert!(run(Variadic::Min, 0).is_err());
    }
}
