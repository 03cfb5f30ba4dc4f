//! Elements as integers in the same order, so that sorting needs no knowledge of their type.

use std::collections::BTreeMap;

use narrowbit_tensor::{DType, Tensor, TensorError};

/// One key per element: keys compare as the elements do. Both zeros are equal; NaN is equal to
/// itself and greater than everything else, as numpy sorts.
///
/// # Errors
/// For complex types.
pub fn sort_keys(x: &Tensor) -> Result<Vec<i64>, TensorError> {
    match x.dtype() {
        DType::String => Ok(ranks(x.strings()?)),
        DType::U64 => Ok(x.to_i64s()?.into_iter().map(|v| v ^ i64::MIN).collect()),
        d if d.is_float() => Ok(x.to_f64s()?.into_iter().map(float_key).collect()),
        _ => x.to_i64s(),
    }
}

fn float_key(v: f64) -> i64 {
    if v.is_nan() {
        return i64::MAX;
    }
    // Adding zero turns -0 into +0.
    let bits = (v + 0.0).to_bits() as i64;
    if bits < 0 { bits ^ i64::MAX } else { bits }
}

fn ranks(v: &[String]) -> Vec<i64> {
    let mut order: BTreeMap<&str, i64> = v.iter().map(|s| (s.as_str(), 0)).collect();
    order.values_mut().enumerate().for_each(|(i, rank)| *rank = i as i64);
    v.iter().map(|s| order.get(s.as_str()).copied().unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_order_of_each_type() {
        let v = vec![f64::NAN, f64::NEG_INFINITY, -1.5, -0.0, 0.0, 1e-300, 2.0, f64::INFINITY];
        let k = sort_keys(&Tensor::vector(v)).unwrap();
        assert!(k[1] < k[2] && k[2] < k[3] && k[3] == k[4] && k[4] < k[5] && k[5] < k[6] && k[6] < k[7] && k[7] < k[0]);
        let k = sort_keys(&Tensor::vector(vec![0u64, u64::MAX, 1 << 63])).unwrap();
        assert!(k[0] < k[2] && k[2] < k[1]);
        let s = Tensor::from_strings([3], vec!["b".into(), "a".into(), "b".into()]).unwrap();
        assert_eq!(sort_keys(&s).unwrap(), [1, 0, 1]);
    }
}
