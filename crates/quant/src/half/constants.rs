//! Constants in half precision.

use std::collections::BTreeMap;

use narrowbit_ir::{ConstId, Graph, ValueId};
use narrowbit_kernels::Exec;
use narrowbit_tensor::{DType, Tensor, TensorError};

use crate::parallel::in_parallel;

/// Half-precision forms of constants, and what was lost.
#[derive(Debug, Default)]
pub(super) struct Constants {
    made: BTreeMap<ConstId, Tensor>,
    /// A sentence for each tensor that lost more than precision.
    pub warnings: Vec<String>,
}

impl Constants {
    /// Converts the constants behind some values.
    pub fn new(graph: &Graph, values: &[ValueId], to: DType, exec: &Exec) -> Result<Constants, TensorError> {
        let mut jobs: BTreeMap<ConstId, (&str, &Tensor)> = BTreeMap::new();
        for &v in values {
            if let (Some(id), Some(t)) = (graph.const_id(v), graph.constant(v)) {
                jobs.insert(id, (&graph.value(v).name, t));
            }
        }
        let (ids, jobs): (Vec<ConstId>, Vec<_>) = jobs.into_iter().unzip();
        let made = in_parallel(exec, &jobs, |(_, t)| {
            let made = convert(t, to);
            t.release();
            made
        });
        let mut all = Constants::default();
        for ((id, (name, _)), made) in ids.into_iter().zip(jobs).zip(made) {
            let (tensor, clamped) = made?;
            if clamped > 0 {
                all.warnings.push(format!("{clamped} values of \"{name}\" are beyond ±65504 and became that"));
            }
            all.made.insert(id, tensor);
        }
        Ok(all)
    }

    /// The half-precision form of a constant.
    pub fn get(&self, graph: &Graph, v: ValueId) -> Option<Tensor> {
        self.made.get(&graph.const_id(v)?).cloned()
    }
}

/// A tensor in half precision, rounded to nearest even, and how many values were beyond its range.
fn convert(t: &Tensor, to: DType) -> Result<(Tensor, usize), TensorError> {
    /// The greatest float16.
    const MOST: f32 = 65504.0;
    let mut values = t.to_f32s()?.into_owned();
    let mut clamped = 0;
    // bfloat16 has the range of float32. An infinity is meant: a mask, say.
    if to == DType::F16 {
        for v in values.iter_mut().filter(|v| v.abs() > MOST && v.is_finite()) {
            *v = MOST.copysign(*v);
            clamped += 1;
        }
    }
    Ok((Tensor::from_f32s(to, t.shape(), values)?, clamped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_even_and_holds_what_is_out_of_range() {
        // 2049 lies between 2048 and 2050: the even one of 11 bits is 2048.
        let t = Tensor::vector(vec![2049f32, 1e6, -7e4, f32::INFINITY, 65504.0, 1e-9]);
        let (half, clamped) = convert(&t, DType::F16).unwrap();
        assert_eq!(half.to_f32s().unwrap().as_ref(), [2048.0, 65504.0, -65504.0, f32::INFINITY, 65504.0, 0.0]);
        assert_eq!(clamped, 2);
        let (half, clamped) = convert(&t, DType::Bf16).unwrap();
        assert_eq!((half.to_f32s().unwrap()[1], clamped), (999_424.0, 0));
    }
}
