//! AffineGrid: the places that an affine map samples, for GridSample.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor};

use super::params;

/// `grid[n, o…, :] = theta[n] · [x, y, (z,) 1]` over the places of an image of the given size, from −1 to 1.
///
/// Inputs: `theta` `[n, 2, 3]` or `[n, 3, 4]`, the size `[n, c, h, w]` or `[n, c, d, h, w]`. Source: ONNX AffineGrid.
#[derive(Debug, Clone, Copy)]
pub struct AffineGrid {
    /// Whether −1 and 1 are the centers of the border elements rather than their outer edges.
    pub align_corners: bool,
}

/// Makes an AffineGrid from `align_corners`.
///
/// # Errors
/// When the attribute is no integer.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(AffineGrid { align_corners: attrs.flag("align_corners")? }))
}

impl AffineGrid {
    /// The place of element `i` of `n` along one axis.
    fn place(&self, i: usize, n: usize) -> f64 {
        match (self.align_corners, n) {
            (true, 1) => -1.0,
            (true, n) => -1.0 + 2.0 * i as f64 / (n as f64 - 1.0),
            (false, n) => -1.0 + (2.0 * i as f64 + 1.0) / n as f64,
        }
    }
}

impl Op for AffineGrid {
    fn name(&self) -> &str {
        "AffineGrid"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let theta = cx.get(0)?;
        let shape = params::shape_input(cx, 1)?.and_then(|s| match s.as_slice() {
            [n, _, space @ ..] => Some([std::slice::from_ref(n), space, &[Dim::from(space.len())]].concat()),
            _ => None,
        });
        Ok(vec![Fact::tensor(theta.dtype(), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (theta, size) = (cx.get(0)?, params::extents(&cx.get(1)?.to_i64s()?)?);
        let bad = || OpError::shape(format!("theta of shape {:?} does not fit a size of {size:?}", theta.shape()));
        let [n, _, space @ ..] = size.as_slice() else { return Err(bad()) };
        let rank = space.len();
        if !(2..=3).contains(&rank) || theta.shape() != [*n, rank, rank + 1] {
            return Err(bad());
        }
        let out = [&[*n], space, &[rank]].concat();
        let count = check_size(DType::F64, &out)?;
        let maps = theta.to_f64s()?;
        let mut y = Vec::with_capacity(count);
        let mut at = vec![0usize; rank];
        for map in maps.chunks_exact(rank * (rank + 1)) {
            for p in 0..if count == 0 { 0 } else { space.iter().product() } {
                let mut rest: usize = p;
                for (a, &d) in space.iter().enumerate().rev() {
                    at[a] = rest % d;
                    rest /= d;
                }
                for row in map.chunks_exact(rank + 1) {
                    // Coordinates come in the opposite order of the axes: x lies along the last one.
                    let places = (0..rank).map(|k| self.place(at[rank - 1 - k], space[rank - 1 - k]));
                    y.push(row[rank] + places.zip(row).map(|(v, w)| v * w).sum::<f64>());
                }
            }
        }
        Ok(vec![Tensor::from_f64s(theta.dtype(), out, &y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("align_corners", i64::from(self.align_corners), 0)
    }
}
