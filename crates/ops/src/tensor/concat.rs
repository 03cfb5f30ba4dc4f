//! Concat: tensors side by side along one axis.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::{Tensor, shape};

use super::{moves, params};

/// The inputs one after the other along `axis`; all other extents must agree. Source: ONNX Concat.
#[derive(Debug, Clone, Copy)]
pub struct Concat {
    /// The axis, in `[-rank, rank)`.
    pub axis: i64,
}

/// Makes a Concat from `axis`.
///
/// # Errors
/// When the attribute is missing or no integer.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let axis = attrs.int("axis")?.ok_or_else(|| OpError::attribute("axis", "is missing"))?;
    Ok(Arc::new(Concat { axis }))
}

impl Concat {
    fn infer_shape(&self, shapes: &[&[Dim]]) -> Result<Option<Vec<Dim>>, OpError> {
        let Some((first, rest)) = shapes.split_first() else { return Ok(None) };
        let axis = params::axis(self.axis, first.len())?;
        let mut out = first.to_vec();
        for s in rest {
            if s.len() != out.len() {
                return Err(OpError::shape(format!("inputs have {} and {} axes", out.len(), s.len())));
            }
            for (i, d) in s.iter().enumerate() {
                out[i] = if i == axis { out[i].add(d) } else { params::unify(&out[i], d)? };
            }
        }
        Ok(Some(out))
    }
}

/// The elements of all inputs: how Unsqueeze and Concat build a shape.
fn contents(cx: &InferCx) -> Option<Vec<Dim>> {
    let mut out = Vec::new();
    for i in 0..cx.len() {
        match cx.dims(i) {
            Some(d) => out.extend_from_slice(d),
            None => {
                let n = params::vector_len(cx, i).filter(|&n| n <= Fact::MAX_DIMS)?;
                out.extend(params::unknown(n));
            }
        }
        if out.len() > Fact::MAX_DIMS {
            return None;
        }
    }
    out.iter().any(|d| *d != Dim::Unknown).then_some(out)
}

impl Op for Concat {
    fn name(&self) -> &str {
        "Concat"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        cx.get(0)?;
        let dtype = (0..cx.len()).find_map(|i| cx.dtype(i));
        let shapes: Option<Vec<&[Dim]>> = (0..cx.len()).map(|i| cx.shape(i)).collect();
        let shape = match shapes {
            Some(s) => self.infer_shape(&s)?,
            None => (0..cx.len()).find_map(|i| cx.shape(i)).map(|s| params::unknown(s.len())),
        };
        let vector = shape.as_ref().is_some_and(|s| s.len() == 1) && dtype.is_some_and(|d| d.is_int());
        Ok(vec![Fact::tensor(dtype, shape).with_dims(if vector { contents(cx) } else { None })])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let parts = cx.all()?;
        let first = parts.first().ok_or(OpError::MissingInput(0))?;
        let axis = params::axis(self.axis, first.rank())?;
        let mut out = first.shape().to_vec();
        for t in &parts[1..] {
            let fits = t.rank() == out.len() && (0..out.len()).all(|i| i == axis || out[i] == t.shape()[i]);
            if !fits {
                let message =
                    format!("shapes {:?} and {:?} can't be joined along axis {axis}", first.shape(), t.shape());
                return Err(OpError::shape(message));
            }
            out[axis] = out[axis].saturating_add(t.shape()[axis]);
        }
        Ok(vec![join(&parts, axis, &out)?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Arithmetic { same_scale: true }
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with("axis", self.axis)
    }
}

/// Copies the runs that each input has between two steps of the outer axes; the run lengths' common divisor is one block.
fn join(parts: &[&Tensor], axis: usize, out: &[usize]) -> Result<Tensor, OpError> {
    if out.contains(&0) {
        return Ok(Tensor::zeros(parts[0].dtype(), out)?);
    }
    let outer = shape::count(&out[..axis])?;
    let runs: Vec<usize> = parts.iter().map(|t| t.shape()[axis..].iter().product()).collect();
    let block = runs.iter().fold(0, |a, &b| gcd(a, b)).max(1);
    let runs = &runs;
    let picks = (0..outer).flat_map(move |o| {
        runs.iter().enumerate().flat_map(move |(s, &run)| (0..run / block).map(move |k| (s, o * run + k * block)))
    });
    moves::pick_blocks(parts, out, block, picks)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;
    use narrowbit_tensor::DType;

    #[test]
    fn builds_shapes_of_symbols() {
        let n = Fact::tensor(Some(DType::I64), Some(vec![Dim::Known(1)])).with_dims(Some(vec![Dim::sym("batch")]));
        let c = Fact::constant(Tensor::vector(vec![-1i64, 12]));
        let facts = Concat { axis: 0 }.infer(&InferCx::new(&[Some(&n), Some(&c)], 1)).unwrap();
        assert_eq!(facts[0].dims, Some(vec![Dim::sym("batch"), Dim::Known(-1), Dim::Known(12)]));
        assert_eq!(facts[0].shape(), Some(&[Dim::Known(3)][..]));
    }

    #[test]
    fn refuses_extents_that_differ() {
        let a = Datum::Tensor(Tensor::zeros(DType::F32, [2, 3]).unwrap());
        let b = Datum::Tensor(Tensor::zeros(DType::F32, [2, 4]).unwrap());
        let eval = |axis| Concat { axis }.eval(&EvalCx::new(&[Some(&a), Some(&b)], 1));
        assert_eq!(eval(-1).unwrap()[0].shape(), [2, 7]);
        assert!(eval(0).is_err());
        assert!(eval(2).is_err());
    }
}
