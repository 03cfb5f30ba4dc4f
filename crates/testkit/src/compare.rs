//! Comparison of what was computed with what was expected.

use narrowbit_ir::{Datum, Dim, Fact, ValueType};
use narrowbit_tensor::{DType, Tensor};

/// How far floating-point numbers may differ: `|a − b| ≤ atol + rtol·|b|`, `b` being the expected one.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// Relative part.
    pub rtol: f64,
    /// Absolute part.
    pub atol: f64,
}

impl Tolerance {
    /// Equal numbers only (NaN equals NaN, −0 equals 0).
    pub const EXACT: Tolerance = Tolerance { rtol: 0.0, atol: 0.0 };

    fn allows(self, got: f64, want: f64) -> bool {
        got == want
            || got.is_nan() && want.is_nan()
            || got.is_finite() && want.is_finite() && (got - want).abs() <= self.atol + self.rtol * want.abs()
    }
}

/// Compares data: kinds, types and shapes exactly; numbers within `tolerance`, integers, booleans and strings exactly.
///
/// # Errors
/// The first difference, in words.
pub fn data(got: &Datum, want: &Datum, tolerance: Tolerance) -> Result<(), String> {
    match (got, want) {
        (Datum::Tensor(a), Datum::Tensor(b)) => tensors(a, b, tolerance),
        (Datum::Sequence(a), Datum::Sequence(b)) if a.len() == b.len() => {
            let each = |(i, (x, y))| data(x, y, tolerance).map_err(|e| format!("element {i}: {e}"));
            a.iter().zip(b).enumerate().try_for_each(each)
        }
        (Datum::Sequence(a), Datum::Sequence(b)) => Err(format!("{} elements, expected {}", a.len(), b.len())),
        (Datum::Optional(None), Datum::Optional(None)) => Ok(()),
        (Datum::Optional(Some(a)), Datum::Optional(Some(b))) => data(a, b, tolerance),
        (Datum::Optional(a), Datum::Optional(_)) => {
            Err(if a.is_some() { "present, expected absent" } else { "absent, expected present" }.into())
        }
        _ => Err(format!("is {}, expected {}", got.kind(), want.kind())),
    }
}

/// Compares tensors as [`data`] does.
///
/// # Errors
/// The first difference, in words.
pub fn tensors(got: &Tensor, want: &Tensor, tolerance: Tolerance) -> Result<(), String> {
    if (got.dtype(), got.shape()) != (want.dtype(), want.shape()) {
        return Err(format!("is {}{:?}, expected {}{:?}", got.dtype(), got.shape(), want.dtype(), want.shape()));
    }
    match got.dtype() {
        DType::String => first(got.strings().unwrap_or_default(), want.strings().unwrap_or_default(), |a, b| a == b),
        DType::Bool => first(&got.bools().unwrap_or_default(), &want.bools().unwrap_or_default(), |a, b| a == b),
        d if d.is_int() => {
            first(&got.to_i64s().unwrap_or_default(), &want.to_i64s().unwrap_or_default(), |a, b| a == b)
        }
        d if d.is_float() => {
            let (a, b) = (got.to_f64s().unwrap_or_default(), want.to_f64s().unwrap_or_default());
            first(&a, &b, |a, b| tolerance.allows(*a, *b))
        }
        _ => {
            if got.bytes() == want.bytes() {
                Ok(())
            } else {
                Err("bytes differ".into())
            }
        }
    }
}

fn first<T: std::fmt::Debug>(got: &[T], want: &[T], same: impl Fn(&T, &T) -> bool) -> Result<(), String> {
    let wrong = got.iter().zip(want).filter(|(a, b)| !same(a, b)).count();
    match got.iter().zip(want).position(|(a, b)| !same(a, b)) {
        None => Ok(()),
        Some(i) => {
            Err(format!("{wrong} of {} elements differ, first [{i}]: {:?}, expected {:?}", want.len(), got[i], want[i]))
        }
    }
}

/// Checks that an inferred fact does not contradict a datum.
///
/// # Errors
/// The contradiction, in words.
pub fn fact(fact: &Fact, datum: &Datum) -> Result<(), String> {
    value_type(&fact.ty, datum)?;
    let Datum::Tensor(t) = datum else { return Ok(()) };
    if let Some(v) = &fact.value {
        tensors(v, t, Tolerance::EXACT).map_err(|e| format!("inferred content {e}"))?;
    }
    if let Some(dims) = &fact.dims {
        let actual = t.to_i64s().map_err(|e| format!("inferred elements of a shape: {e}"))?;
        let fits = |(d, a): (&Dim, &i64)| d.as_known().is_none_or(|k| k == *a);
        if dims.len() != actual.len() || !dims.iter().zip(&actual).all(fits) {
            return Err(format!("inferred elements {dims:?}, made {actual:?}"));
        }
    }
    Ok(())
}

fn value_type(ty: &ValueType, datum: &Datum) -> Result<(), String> {
    match (ty, datum) {
        (ValueType::Unknown, _) | (ValueType::Optional(_), Datum::Optional(None)) => Ok(()),
        (ValueType::Tensor(t), Datum::Tensor(d)) => {
            let dtype = t.dtype.is_none_or(|x| x == d.dtype());
            let fits = |(d, &n): (&Dim, &usize)| d.as_known().is_none_or(|k| k == n as i64);
            let shape = t.shape.as_ref().is_none_or(|s| s.len() == d.rank() && s.iter().zip(d.shape()).all(fits));
            if dtype && shape { Ok(()) } else { Err(format!("inferred {t}, made {}{:?}", d.dtype(), d.shape())) }
        }
        (ValueType::Sequence(t), Datum::Sequence(s)) => s.iter().try_for_each(|d| value_type(t, d)),
        (ValueType::Optional(t), Datum::Optional(Some(d))) => value_type(t, d),
        _ => Err(format!("inferred {ty}, made {}", datum.kind())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_floats_with_tolerance_and_integers_without() {
        let loose = Tolerance { rtol: 1e-2, atol: 0.0 };
        let f = |v: Vec<f32>| Tensor::vector(v);
        assert!(
            tensors(&f(vec![1.0, f32::NAN, f32::INFINITY]), &f(vec![1.005, f32::NAN, f32::INFINITY]), loose).is_ok()
        );
        assert!(tensors(&f(vec![1.0]), &f(vec![1.05]), loose).is_err());
        assert!(tensors(&f(vec![f32::MAX]), &f(vec![f32::INFINITY]), loose).is_err());
        assert!(tensors(&Tensor::vector(vec![1000i32]), &Tensor::vector(vec![1001i32]), loose).is_err());
        assert!(tensors(&Tensor::vector(vec![1i32]), &Tensor::vector(vec![1i64]), loose).is_err());
    }

    #[test]
    fn finds_facts_that_contradict_data() {
        let datum = Datum::Tensor(Tensor::vector(vec![2i64, 3]));
        let ok = Fact::tensor(Some(DType::I64), Some(vec![Dim::sym("n")]))
            .with_dims(Some(vec![Dim::Unknown, Dim::Known(3)]));
        assert_eq!(fact(&ok, &datum), Ok(()));
        assert!(fact(&Fact::tensor(Some(DType::I32), None), &datum).is_err());
        assert!(fact(&Fact::tensor(None, Some(vec![Dim::Known(3)])), &datum).is_err());
        assert!(fact(&ok.with_dims(Some(vec![Dim::Known(1), Dim::Known(3)])), &datum).is_err());
    }
}
