//! GroupNormalization: groups of channels of each sample normalised together.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::stats::{channels, floats, moments, per_channel, take_stash_type};
use crate::support::infer_same;

/// `Y = scale · (X − mean) / sqrt(var + epsilon) + bias`, mean and variance over each group of channels.
///
/// Inputs: X `[N, C, …]`, scale and bias `[C]` (`[num_groups]` before opset 21), one
/// floating-point type. Source: ONNX operator GroupNormalization (18, 21).
#[derive(Debug, Clone, PartialEq)]
pub struct GroupNormalization {
    /// Added to the variance.
    pub epsilon: f32,
    /// The number of groups that the channels are divided into.
    pub num_groups: usize,
    /// Whether scale and bias have one value per group (before opset 21) instead of per channel.
    pub per_group: bool,
    /// The type that the file asks intermediate results to have; here they are `f64`.
    pub stash_type: DType,
}

/// Makes a GroupNormalization.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let groups = attrs.int("num_groups")?.ok_or_else(|| OpError::attribute("num_groups", "is missing"))?;
    let num_groups = usize::try_from(groups).ok().filter(|&g| g > 0);
    let problem = || OpError::attribute("num_groups", format!("is {groups}, must be at least 1"));
    Ok(Arc::new(GroupNormalization {
        epsilon: attrs.float_or("epsilon", 1e-5)?,
        num_groups: num_groups.ok_or_else(problem)?,
        per_group: opset < 21,
        stash_type: take_stash_type(attrs)?,
    }))
}

impl Op for GroupNormalization {
    fn name(&self) -> &str {
        "GroupNormalization"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        infer_same(cx)
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let (_, c, size) = channels(x)?;
        if c % self.num_groups != 0 {
            let message = format!("{c} channels can't be divided into {} groups", self.num_groups);
            return Err(OpError::shape(message));
        }
        let per = c / self.num_groups;
        let parameters = if self.per_group { self.num_groups } else { c };
        let (scale, bias) = (per_channel(cx, 1, parameters)?, per_channel(cx, 2, parameters)?);
        let mut y = floats(cx, 0)?;
        for (i, group) in y.chunks_exact_mut((per * size).max(1)).enumerate() {
            let (mean, var) = moments(group.iter().copied());
            let deviation = (var + f64::from(self.epsilon)).sqrt();
            for (j, plane) in group.chunks_exact_mut(size).enumerate() {
                let g = i % self.num_groups;
                let p = if self.per_group { g } else { g * per + j };
                plane.iter_mut().for_each(|v| *v = (*v - mean) / deviation * scale[p] + bias[p]);
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), x.shape(), &y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with("num_groups", self.num_groups as i64)
            .with_unless("epsilon", self.epsilon, 1e-5)
            .with_unless("stash_type", i64::from(self.stash_type.to_onnx()), 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    fn eval(opset: i64, groups: i64, scale: &[f32]) -> Result<Vec<Tensor>, OpError> {
        let op = build(opset, &mut AttrMap::new().with("num_groups", groups).with("epsilon", 0f32))?;
        let x = tensor([1, 4, 1], &[1., 3., 10., 30.]);
        let bias = tensor([scale.len()], &vec![0.5; scale.len()]);
        run(&*op, &[Some(&x), Some(&tensor([scale.len()], scale)), Some(&bias)], 1)
    }

    #[test]
    fn scales_per_channel_or_per_group_by_opset() {
        assert_eq!(f32s(&eval(21, 2, &[1., 2., 3., 4.]).unwrap()[0]), [-0.5, 2.5, -2.5, 4.5]);
        assert_eq!(f32s(&eval(18, 2, &[1., 2.]).unwrap()[0]), [-0.5, 1.5, -1.5, 2.5]);
    }

    #[test]
    fn refuses_groups_that_do_not_divide_the_channels() {
        assert!(eval(21, 3, &[1.; 4]).is_err());
        assert!(eval(21, 0, &[1.; 4]).is_err());
        assert!(eval(21, 2, &[1.; 2]).is_err());
    }
}
