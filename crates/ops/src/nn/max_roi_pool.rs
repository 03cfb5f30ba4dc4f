//! MaxRoiPool: the maximum over a grid of cells of each region.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::Tensor;

use super::stats::floats;

/// Divides each region into `pooled_shape` cells and takes the maximum of each; 0 for empty cells.
///
/// Inputs: X `[N, C, H, W]`, rois `[R, 5]` as batch index, x1, y1, x2, y2, scaled by
/// `spatial_scale` and rounded, end included; floating-point types. Output `[R, C, h, w]`.
/// Source: ONNX operator MaxRoiPool (1, 22), as in Fast R-CNN (Girshick, 2015).
#[derive(Debug, Clone, PartialEq)]
pub struct MaxRoiPool {
    /// Rows and columns of cells.
    pub pooled_shape: [usize; 2],
    /// The factor from region coordinates to those of X.
    pub spatial_scale: f32,
}

/// Makes a MaxRoiPool.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let shape = attrs.ints("pooled_shape")?.unwrap_or_default();
    let size = |n: i64| usize::try_from(n).ok().filter(|&n| n > 0);
    let pooled_shape = match shape[..] {
        [h, w] => size(h).zip(size(w)).map(|(h, w)| [h, w]),
        _ => None,
    };
    let problem = || OpError::attribute("pooled_shape", format!("is {shape:?}, two extents of at least 1 are needed"));
    let pooled_shape = pooled_shape.ok_or_else(problem)?;
    Ok(Arc::new(MaxRoiPool { pooled_shape, spatial_scale: attrs.float_or("spatial_scale", 1.0)? }))
}

impl Op for MaxRoiPool {
    fn name(&self) -> &str {
        "MaxRoiPool"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        cx.get(0)?;
        let axis = |i: usize, a: usize| cx.shape(i).and_then(|s| s.get(a)).cloned().unwrap_or(Dim::Unknown);
        let [h, w] = self.pooled_shape.map(Dim::from);
        Ok(vec![Fact::tensor(cx.dtype(0), Some(vec![axis(1, 0), axis(0, 1), h, w]))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, rois) = (cx.get(0)?, cx.get(1)?);
        let (&[n, c, height, width], &[count, 5]) = (x.shape(), rois.shape()) else {
            let message = format!("X of shape {:?} and rois of shape {:?} don't fit together", x.shape(), rois.shape());
            return Err(OpError::shape(message));
        };
        let [ph, pw] = self.pooled_shape;
        let shape = [count, c, ph, pw];
        let mut y = Vec::with_capacity(check_size(x.dtype(), &shape)?);
        let (xs, rois) = (floats(cx, 0)?, floats(cx, 1)?);
        for roi in rois.chunks_exact(5) {
            if !(roi[0] >= 0.0 && roi[0] < n as f64) {
                return Err(OpError::Value(format!("rois has batch index {}, X has {n} elements", roi[0])));
            }
            let corner = |v: f64| (v * f64::from(self.spatial_scale)).round();
            let rows = cells(corner(roi[2]), corner(roi[4]), ph, height);
            let cols = cells(corner(roi[1]), corner(roi[3]), pw, width);
            for ch in 0..c {
                let plane = &xs[(roi[0] as usize * c + ch) * height * width..][..height * width];
                for row in &rows {
                    for col in &cols {
                        let values = row.clone().flat_map(|r| &plane[r * width..][col.clone()]);
                        let max = values.copied().fold(f64::NEG_INFINITY, f64::max);
                        y.push(if row.is_empty() || col.is_empty() { 0.0 } else { max });
                    }
                }
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), shape, &y)?])
    }

    fn attrs(&self) -> AttrMap {
        let shape: Vec<i64> = self.pooled_shape.iter().map(|&d| d as i64).collect();
        AttrMap::new().with("pooled_shape", shape).with_unless("spatial_scale", self.spatial_scale, 1.0)
    }
}

/// The indices that each of `n` cells between two corners covers, within `0..limit`.
fn cells(first: f64, last: f64, n: usize, limit: usize) -> Vec<std::ops::Range<usize>> {
    let size = (last - first + 1.0).max(1.0) / n as f64;
    // Casts saturate, so that far corners and NaN are clipped to the plane.
    let clip = |v: f64| (v.max(0.0) as usize).min(limit);
    (0..n)
        .map(|i| {
            let (start, end) = ((i as f64 * size).floor() + first, ((i + 1) as f64 * size).ceil() + first);
            clip(start)..clip(end).max(clip(start))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    #[test]
    fn takes_the_maximum_of_each_cell() {
        let op = MaxRoiPool { pooled_shape: [1, 2], spatial_scale: 0.5 };
        let x = tensor([1, 1, 2, 3], &[1., 2., 3., 4., 5., 6.]);
        let rois = tensor([2, 5], &[0., 0., 0., 2., 2., 0., 4., 0., 20., 0.]);
        let y = run(&op, &[Some(&x), Some(&rois)], 1).unwrap();
        // The second region lies mostly outside: its second cell is empty.
        assert_eq!(f32s(&y[0]), [4., 5., 3., 0.]);
    }

    #[test]
    fn refuses_batch_indices_out_of_range() {
        let op = MaxRoiPool { pooled_shape: [1, 1], spatial_scale: 1. };
        let x = tensor([1, 1, 1, 1], &[1.]);
        for bad in [1., -1., f32::NAN] {
            assert!(run(&op, &[Some(&x), Some(&tensor([1, 5], &[bad, 0., 0., 0., 0.]))], 1).is_err());
        }
        assert!(build(1, &mut AttrMap::new()).is_err());
    }
}
