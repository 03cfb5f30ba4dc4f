//! What the pooling operators share.

use narrowbit_ir::{Dim, Fact, InferCx, OpError, check_size};
use narrowbit_tensor::Tensor;

use super::window::{Run, Span, Window, WindowAttrs};

/// A pool over a tensor `[N, C, D1, …]` with everything resolved.
pub(super) struct Pool {
    /// N·C.
    pub planes: usize,
    /// The spatial geometry.
    pub window: Window,
    /// The output's shape.
    pub output: Vec<usize>,
}

/// Resolves a pool for an input.
pub(super) fn resolve(attrs: &WindowAttrs, x: &Tensor) -> Result<Pool, OpError> {
    let [n, c, input @ ..] = x.shape() else {
        return Err(OpError::shape(format!("X of shape {:?} needs at least 3 axes", x.shape())));
    };
    let window = attrs.resolve(input, &attrs.kernel_shape)?;
    let output = [&[*n, *c], &window.output[..]].concat();
    check_size(x.dtype(), &output)?;
    // An empty input has no planes to pool, whatever its other extents are.
    Ok(Pool { planes: n.saturating_mul(*c), window, output })
}

/// The output's shape of a pool.
pub(super) fn infer_shape(attrs: &WindowAttrs, cx: &InferCx) -> Result<Option<Vec<Dim>>, OpError> {
    cx.get(0)?;
    match cx.shape(0) {
        None => Ok(Some(vec![Dim::Unknown; attrs.kernel_shape.len() + 2])),
        Some([n, c, input @ ..]) => {
            let kernel: Vec<Dim> = attrs.kernel_shape.iter().map(|&k| k.into()).collect();
            Ok(Some([vec![n.clone(), c.clone()], attrs.infer(input, &kernel)?].concat()))
        }
        Some(_) => Err(OpError::shape("X needs at least 3 axes")),
    }
}

/// The fact of a pool's output with the type of X.
pub(super) fn infer(attrs: &WindowAttrs, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::tensor(cx.dtype(0), infer_shape(attrs, cx)?)])
}

impl Pool {
    /// One value per output position of each plane of `x`.
    pub(super) fn map<T: Copy, U>(&self, x: &[T], mut f: impl FnMut(&[T], &[Span], &[Run]) -> U) -> Vec<U> {
        let size = self.window.input.iter().product::<usize>();
        if self.output.contains(&0) {
            return Vec::new();
        }
        let mut y = Vec::with_capacity(self.planes * self.window.positions());
        for p in 0..self.planes {
            let plane = &x[p * size..][..size];
            self.window.walk(|_, spans, runs| y.push(f(plane, spans, runs)));
        }
        y
    }

    /// The values that a run reads.
    pub(super) fn values<'a, T: Copy>(&self, plane: &'a [T], run: &Run) -> impl Iterator<Item = T> + use<'a, T> {
        plane[run.offset..].iter().copied().step_by(self.window.step()).take(run.len)
    }
}
