//! MaxUnpool: puts values back where MaxPool found them.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::Tensor;

use super::real::{Real, with_real};
use super::window::WindowAttrs;

/// `Y[I[i]] = X[i]`, 0 elsewhere; spatial extents `(D − 1)·stride + kernel − pads`.
///
/// Inputs: X `[N, C, D1, …]` of a floating-point type, I of the same shape with flat indices
/// into the output (i64), optional output_shape (i64), which may be larger: the rest is 0.
/// Source: ONNX operator MaxUnpool (9, 11, 22).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaxUnpool {
    /// Kernel, strides and pads of the MaxPool that is undone.
    pub window: WindowAttrs,
}

/// Makes a MaxUnpool.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(MaxUnpool { window: WindowAttrs::take_pool(attrs)? }))
}

impl MaxUnpool {
    fn extent(&self, axis: usize, input: i64) -> Option<i64> {
        let rank = self.window.kernel_shape.len();
        let (begin, end) = self.window.pad(axis, rank);
        let full = (i128::from(input) - 1) * self.window.stride(axis) as i128
            + *self.window.kernel_shape.get(axis)? as i128
            - begin as i128
            - end as i128;
        i64::try_from(full).ok().filter(|&n| n >= 0)
    }

    fn check_rank(&self, rank: usize) -> Result<(), OpError> {
        if rank != self.window.kernel_shape.len() + 2 {
            let k = &self.window.kernel_shape;
            return Err(OpError::shape(format!("a kernel of extents {k:?} does not fit to an X of {rank} axes")));
        }
        Ok(())
    }
}

impl Op for MaxUnpool {
    fn name(&self) -> &str {
        "MaxUnpool"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        cx.get(0)?;
        let shape = match (cx.opt(2), cx.shape(0)) {
            (Some(_), x) => cx.dims(2).map(<[_]>::to_vec).or(x.map(|x| vec![Dim::Unknown; x.len()])),
            (None, Some(x)) => {
                self.check_rank(x.len())?;
                let extent = |(a, d): (usize, &Dim)| match (a.checked_sub(2), d.as_known()) {
                    (None, _) => d.clone(),
                    (Some(a), Some(n)) => self.extent(a, n).map_or(Dim::Unknown, Dim::Known),
                    _ => Dim::Unknown,
                };
                Some(x.iter().enumerate().map(extent).collect())
            }
            (None, None) => None,
        };
        Ok(vec![Fact::tensor(cx.dtype(0), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, indices) = (cx.get(0)?, cx.get(1)?);
        if x.shape() != indices.shape() {
            let message = format!("X of shape {:?} and I of shape {:?} differ", x.shape(), indices.shape());
            return Err(OpError::shape(message));
        }
        self.check_rank(x.rank())?;
        let mut own = x.shape()[..2].to_vec();
        for (a, &d) in x.shape()[2..].iter().enumerate() {
            let extent = i64::try_from(d).ok().and_then(|d| self.extent(a, d));
            let extent =
                extent.ok_or_else(|| OpError::shape(format!("spatial axis {a} would have a negative extent")))?;
            own.push(extent as usize);
        }
        let n = check_size(x.dtype(), &own)?;
        let indices = indices.to_i64s()?;
        with_real!(x, 0, T => {
            let mut y = vec![T::put(0.0); n];
            for (&i, &v) in indices.iter().zip(x.slice::<T>()?.iter()) {
                let place = usize::try_from(i).ok().and_then(|i| y.get_mut(i));
                let problem = || OpError::Value(format!("I has {i}, the output has {n} elements"));
                *place.ok_or_else(problem)? = v;
            }
            let y = Tensor::new(own.clone(), y)?;
            match cx.opt(2) {
                None => Ok(vec![y]),
                Some(shape) => Ok(vec![embed::<T>(&y, &shape.to_i64s()?)?]),
            }
        })
    }

    fn attrs(&self) -> AttrMap {
        self.window.put(AttrMap::new())
    }
}

/// The tensor at the origin of a larger one of zeros.
fn embed<T: Real>(y: &Tensor, shape: &[i64]) -> Result<Tensor, OpError> {
    let larger: Vec<usize> = shape.iter().filter_map(|&d| usize::try_from(d).ok()).collect();
    if larger.len() != y.rank() || shape.len() != y.rank() || larger.iter().zip(y.shape()).any(|(l, s)| l < s) {
        let message = format!("output_shape {shape:?} can't hold the unpooled shape {:?}", y.shape());
        return Err(OpError::shape(message));
    }
    let mut out = vec![T::put(0.0); check_size(y.dtype(), &larger)?];
    let strides = narrowbit_tensor::shape::strides(&larger);
    let offsets = narrowbit_tensor::shape::offsets(y.shape(), &strides);
    offsets.zip(y.slice::<T>()?.iter()).for_each(|(i, &v)| out[i] = v);
    Ok(Tensor::new(larger, out)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    fn op() -> Arc<dyn Op> {
        build(11, &mut AttrMap::new().with("kernel_shape", vec![2i64]).with("strides", vec![2i64])).unwrap()
    }

    #[test]
    fn puts_values_at_their_indices() {
        let (x, i) = (tensor([1, 1, 2], &[5., 6.]), Tensor::new([1, 1, 2], vec![1i64, 2]).unwrap());
        assert_eq!(f32s(&run(&*op(), &[Some(&x), Some(&i)], 1).unwrap()[0]), [0., 5., 6., 0.]);
        let shape = Tensor::vector(vec![1i64, 1, 5]);
        let y = run(&*op(), &[Some(&x), Some(&i), Some(&shape)], 1).unwrap();
        assert_eq!(f32s(&y[0]), [0., 5., 6., 0., 0.]);
    }

    #[test]
    fn refuses_indices_and_shapes_out_of_range() {
        let x = tensor([1, 1, 2], &[5., 6.]);
        for bad in [4i64, -1] {
            let i = Tensor::new([1, 1, 2], vec![0, bad]).unwrap();
            assert!(run(&*op(), &[Some(&x), Some(&i)], 1).is_err());
        }
        let (i, small) = (Tensor::new([1, 1, 2], vec![0i64, 1]).unwrap(), Tensor::vector(vec![1i64, 1, 3]));
        assert!(run(&*op(), &[Some(&x), Some(&i), Some(&small)], 1).is_err());
    }
}
