//! NonMaxSuppression: the best boxes that do not overlap too much.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::params;

/// The boxes with the highest scores of each batch and class, leaving out those whose intersection over union with
/// one that is already chosen exceeds a threshold: rows `[batch, class, box]` of i64.
///
/// Inputs: boxes `[batch, n, 4]`, scores `[batch, classes, n]`, the number of boxes per class, the threshold of the
/// overlap, the threshold of the score. Source: ONNX NonMaxSuppression.
#[derive(Debug, Clone, Copy)]
pub struct NonMaxSuppression {
    /// Whether boxes are `[x center, y center, width, height]` rather than two opposite corners.
    pub center_point_box: bool,
}

/// Makes a NonMaxSuppression from `center_point_box`.
///
/// # Errors
/// When the attribute is neither 0 nor 1.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    match attrs.int_or("center_point_box", 0)? {
        v @ (0 | 1) => Ok(Arc::new(NonMaxSuppression { center_point_box: v == 1 })),
        v => Err(OpError::attribute("center_point_box", format!("is {v}, neither 0 nor 1"))),
    }
}

/// A box by its lower and upper corner.
#[derive(Debug, Clone, Copy)]
struct Corners {
    low: [f32; 2],
    high: [f32; 2],
}

impl NonMaxSuppression {
    fn corners(&self, b: &[f32]) -> Corners {
        let &[a, b, c, d] = b else { return Corners { low: [0.0; 2], high: [0.0; 2] } };
        if self.center_point_box {
            let (w, h) = (c / 2.0, d / 2.0);
            return Corners { low: [a - w, b - h], high: [a + w, b + h] };
        }
        Corners { low: [a.min(c), b.min(d)], high: [a.max(c), b.max(d)] }
    }
}

/// Whether the intersection over the union of two boxes exceeds the threshold.
fn overlaps(a: &Corners, b: &Corners, threshold: f32) -> bool {
    let area = |c: &Corners| (c.high[0] - c.low[0]) * (c.high[1] - c.low[1]);
    let side = |k: usize| a.high[k].min(b.high[k]) - a.low[k].max(b.low[k]);
    let (w, h) = (side(0), side(1));
    if w <= 0.0 || h <= 0.0 {
        return false;
    }
    let (area_a, area_b) = (area(a), area(b));
    let union = area_a + area_b - w * h;
    area_a > 0.0 && area_b > 0.0 && union > 0.0 && w * h / union > threshold
}

impl Op for NonMaxSuppression {
    fn name(&self) -> &str {
        "NonMaxSuppression"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        cx.get(1)?;
        Ok(vec![Fact::tensor(Some(DType::I64), Some(vec![Dim::Unknown, Dim::Known(3)]))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (boxes, scores) = (cx.get(0)?, cx.get(1)?);
        let (&[batch, n, 4], &[batch2, classes, n2]) = (boxes.shape(), scores.shape()) else {
            let message = format!("boxes of shape {:?} and scores of {:?}", boxes.shape(), scores.shape());
            return Err(OpError::shape(message));
        };
        if batch != batch2 || n != n2 {
            let message = format!("boxes of shape {:?} do not fit scores of {:?}", boxes.shape(), scores.shape());
            return Err(OpError::shape(message));
        }
        let most = if cx.datum(2).is_some() { params::scalar(cx, 2)?.max(0) as usize } else { 0 };
        let threshold = params::float(cx, 3)?.unwrap_or(0.0) as f32;
        let least = params::float(cx, 4)?.map(|v| v as f32);
        let (boxes, scores) = (boxes.to_f32s()?, scores.to_f32s()?);
        let corners: Vec<Corners> = boxes.chunks_exact(4).map(|b| self.corners(b)).collect();
        let mut out = Vec::new();
        for b in 0..if n == 0 { 0 } else { batch } {
            for c in 0..classes {
                let scores = &scores[(b * classes + c) * n..][..n];
                let mut order: Vec<usize> = (0..n).filter(|&i| least.is_none_or(|t| scores[i] > t)).collect();
                order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
                let mut chosen: Vec<usize> = Vec::new();
                for i in order {
                    if chosen.len() >= most {
                        break;
                    }
                    let own = &corners[b * n + i];
                    if !chosen.iter().any(|&j| overlaps(own, &corners[b * n + j], threshold)) {
                        chosen.push(i);
                    }
                }
                out.extend(chosen.into_iter().flat_map(|i| [b as i64, c as i64, i as i64]));
            }
        }
        Ok(vec![Tensor::new([out.len() / 3, 3], out)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("center_point_box", i64::from(self.center_point_box), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, floats, ints};
    use super::*;

    #[test]
    fn leaves_out_boxes_that_overlap() {
        let boxes = floats(&[1, 3, 4], &[0., 0., 1., 1., 0., 0.1, 1., 1.1, 0., 5., 1., 6.]);
        let run = |n: usize, most: i64| {
            let scores = floats(&[1, 1, n], &[0.5, 0.9, f32::NAN][..n]);
            eval(
                "NonMaxSuppression",
                11,
                AttrMap::new(),
                &[boxes.clone(), scores, ints(&[1], &[most]), floats(&[1], &[0.5])],
            )
        };
        assert_eq!(run(3, 9).unwrap()[0].to_i64s().unwrap(), [0, 0, 2, 0, 0, 1]);
        assert_eq!(run(3, -1).unwrap()[0].shape(), [0, 3]);
        assert!(run(2, 1).is_err());
    }
}
