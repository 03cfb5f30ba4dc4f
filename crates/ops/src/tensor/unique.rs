//! Unique: each element or slice once.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor, memory};

use super::keys::sort_keys;
use super::{moves, params};

/// The different slices along `axis` (elements, without an axis), the index at which each comes first, the number
/// of each input slice in the output, and how often each occurs; indices are i64. Source: ONNX Unique.
#[derive(Debug, Clone, Copy)]
pub struct Unique {
    /// The axis, in `[-rank, rank)`; the input is flattened where absent.
    pub axis: Option<i64>,
    /// Whether the output is sorted, rather than in the order of first occurrence.
    pub sorted: bool,
}

/// Makes a Unique from `axis` and `sorted`.
///
/// # Errors
/// When an attribute is no integer.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Unique { axis: attrs.int("axis")?, sorted: attrs.int_or("sorted", 1)? != 0 }))
}

/// Slices that are equal: the first of them, and all in ascending order.
fn groups(keys: &[i64], n: usize, sorted: bool) -> Vec<Vec<usize>> {
    let width = keys.len().checked_div(n).unwrap_or(0);
    let slice = |i: usize| &keys[i * width..(i + 1) * width];
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| slice(a).cmp(slice(b)));
    let mut out: Vec<Vec<usize>> = Vec::new();
    for i in order {
        match out.last_mut() {
            Some(group) if slice(group[0]) == slice(i) => group.push(i),
            _ => out.push(vec![i]),
        }
    }
    if !sorted {
        out.sort_by_key(|group| group[0]);
    }
    out
}

impl Op for Unique {
    fn name(&self) -> &str {
        "Unique"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let shape = match (self.axis, x.shape()) {
            (None, _) => Some(vec![Dim::Unknown]),
            (Some(_), None) => None,
            (Some(a), Some(s)) => {
                let mut out = s.to_vec();
                out[params::axis(a, s.len())?] = Dim::Unknown;
                Some(out)
            }
        };
        let indices = Fact::tensor(Some(DType::I64), Some(vec![Dim::Unknown]));
        Ok(vec![Fact::tensor(x.dtype(), shape), indices.clone(), indices.clone(), indices])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let input = cx.get(0)?;
        let (x, axis) = match self.axis {
            None => (input.reshaped([input.len()])?, 0),
            Some(a) => (input.clone(), params::axis(a, input.rank())?),
        };
        let n = x.shape()[axis];
        // Keys of all elements, and for each slice a list of its own with its place in others.
        memory::check(0, x.len().saturating_mul(16).saturating_add(n.saturating_mul(96)))?;
        let front: Vec<usize> = std::iter::once(axis).chain((0..x.rank()).filter(|&a| a != axis)).collect();
        let groups = groups(&sort_keys(&moves::permute(&x, &front)?)?, n, self.sorted);
        let first: Vec<usize> = groups.iter().map(|g| g[0]).collect();
        let mut inverse = vec![0i64; n];
        for (number, group) in groups.iter().enumerate() {
            group.iter().for_each(|&i| inverse[i] = number as i64);
        }
        Ok(vec![
            moves::take_axis(&x, axis, &first, &[first.len()])?,
            Tensor::vector(first.iter().map(|&i| i as i64).collect()),
            Tensor::vector(inverse),
            Tensor::vector(groups.iter().map(|g| g.len() as i64).collect()),
        ])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_opt("axis", self.axis).with_unless("sorted", i64::from(self.sorted), 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, ints};
    use super::*;

    #[test]
    fn keeps_the_order_of_first_occurrence_when_not_sorted() {
        let x = ints(&[4], &[5, 1, 5, 3]);
        let y = eval("Unique", 11, AttrMap::new().with("sorted", 0i64), &[x]).unwrap();
        let v: Vec<Vec<i64>> = y.iter().map(|t| t.to_i64s().unwrap()).collect();
        assert_eq!(v, [vec![5, 1, 3], vec![0, 1, 3], vec![0, 1, 0, 2], vec![2, 1, 1]]);
        let empty = eval("Unique", 11, AttrMap::new(), &[ints(&[0], &[])]).unwrap();
        assert!(empty.iter().all(Tensor::is_empty));
        assert!(eval("Unique", 11, AttrMap::new().with("axis", 1i64), &[ints(&[1], &[1])]).is_err());
    }
}
