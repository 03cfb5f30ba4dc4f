//! Exact or rounded conversion of element types.

use narrowbit_tensor::{DType, Tensor};

use crate::{DataError, Place};

/// The tensor with elements of `to`.
///
/// Floating-point targets round to nearest even; integer and boolean targets take whole
/// numbers in their range only.
///
/// # Errors
/// When a value can't be stored in `to`.
pub(crate) fn cast(tensor: Tensor, to: DType, place: &Place) -> Result<Tensor, DataError> {
    if tensor.dtype() == to {
        return Ok(tensor);
    }
    let failed = |e| DataError::tensor(place, e);
    let shape = tensor.shape().to_vec();
    if to == DType::F32 {
        return Tensor::new(shape, tensor.to_f32s().map_err(failed)?.into_owned()).map_err(failed);
    }
    if to.is_float() {
        return Tensor::from_f64s(to, shape, &tensor.to_f64s().map_err(failed)?).map_err(failed);
    }
    let range = if to == DType::Bool { Some((0, 1)) } else { to.int_range() };
    let Some((low, high)) = range else {
        let what = format!("{} can't be converted to {to}", tensor.dtype());
        return Err(DataError::fit(place, what, "give numbers, or change the model's input type"));
    };
    let values = integers(&tensor, place, to)?;
    if let Some((i, v)) = values.iter().enumerate().find(|(_, v)| !(low..=high).contains(*v)) {
        return Err(cant_store(place, i, &v.to_string(), to));
    }
    let values: Vec<i64> = values.into_iter().map(|v| v as i64).collect();
    Tensor::from_i64s(to, shape, &values).map_err(failed)
}

fn cant_store(place: &Place, element: usize, value: &str, to: DType) -> DataError {
    let what = format!("value {value} at element {element} can't be stored as {to}, which the model wants");
    DataError::fit(place, what, "convert the data, or leave out the preprocessing that makes fractions")
}

fn integers(tensor: &Tensor, place: &Place, to: DType) -> Result<Vec<i128>, DataError> {
    let failed = |e| DataError::tensor(place, e);
    if tensor.dtype() == DType::U64 {
        return Ok(tensor.slice::<u64>().map_err(failed)?.iter().map(|&v| i128::from(v)).collect());
    }
    if !tensor.dtype().is_float() {
        return Ok(tensor.to_i64s().map_err(failed)?.into_iter().map(i128::from).collect());
    }
    let values = tensor.to_f64s().map_err(failed)?;
    let whole = |(i, &v): (usize, &f64)| match v.fract() == 0.0 && v.abs() < 1e30 {
        true => Ok(v as i128),
        false => Err(cant_store(place, i, &v.to_string(), to)),
    };
    values.iter().enumerate().map(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_whole_numbers_and_refuses_others() {
        let at = Place::file("x.npy").array("ids");
        let t = Tensor::vector(vec![1f32, 2.0]);
        assert_eq!(cast(t, DType::I64, &at).unwrap(), Tensor::vector(vec![1i64, 2]));
        let e = cast(Tensor::vector(vec![1.5f32]), DType::I64, &at).unwrap_err().to_string();
        assert!(e.contains("1.5") && e.contains("ids") && e.contains("i64"), "{e}");
        assert!(cast(Tensor::vector(vec![256i32]), DType::U8, &at).is_err());
        assert!(cast(Tensor::vector(vec![-1i32]), DType::U8, &at).is_err());
        assert!(cast(Tensor::vector(vec![u64::MAX]), DType::I64, &at).is_err());
        assert!(cast(Tensor::vector(vec![f32::NAN]), DType::I32, &at).is_err());
        assert!(cast(Tensor::vector(vec![2i32]), DType::Bool, &at).is_err());
        assert!(cast(Tensor::vector(vec![2i32]), DType::String, &at).is_err());
        assert_eq!(cast(Tensor::vector(vec![7u8]), DType::F32, &at).unwrap(), Tensor::vector(vec![7f32]));
    }
}
