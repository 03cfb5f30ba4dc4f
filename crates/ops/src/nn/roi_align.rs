//! RoiAlign: bilinear samples over a grid of cells of each region, averaged or their maximum.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::Tensor;

use super::stats::floats;

/// Divides each region into cells, samples each by bilinear interpolation and pools the samples.
///
/// Inputs: X `[N, C, H, W]`, rois `[R, 4]` as x1, y1, x2, y2, batch_indices `[R]` (i64).
/// Output `[R, C, output_height, output_width]`. Source: ONNX operator RoiAlign (10, 16, 22),
/// Mask R-CNN (He et al., 2017).
#[derive(Debug, Clone, PartialEq)]
pub struct RoiAlign {
    /// Whether samples are pooled by their maximum instead of their mean.
    pub max: bool,
    /// Rows and columns of cells.
    pub output: [usize; 2],
    /// Samples per cell and axis; 0 for `ceil(region / cells)`.
    pub sampling_ratio: usize,
    /// The factor from region coordinates to those of X.
    pub spatial_scale: f32,
    /// How coordinates are shifted.
    pub coordinates: Coordinates,
}

/// How RoiAlign shifts coordinates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coordinates {
    /// By half a pixel (the default from opset 16 on).
    HalfPixel,
    /// Not at all (stated, opset 16).
    OutputHalfPixel,
    /// Not at all, as always before opset 16.
    Old,
}

/// Makes a RoiAlign.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let max = match attrs.string("mode")?.as_deref() {
        None | Some("avg") => false,
        Some("max") => true,
        Some(m) => return Err(OpError::attribute("mode", format!("is \"{m}\", not avg or max"))),
    };
    let coordinates = match (opset < 16, attrs.string("coordinate_transformation_mode")?.as_deref()) {
        (true, None) => Coordinates::Old,
        (false, None) | (_, Some("half_pixel")) => Coordinates::HalfPixel,
        (_, Some("output_half_pixel")) => Coordinates::OutputHalfPixel,
        (_, Some(m)) => {
            let problem = format!("is \"{m}\", not half_pixel or output_half_pixel");
            return Err(OpError::attribute("coordinate_transformation_mode", problem));
        }
    };
    let mut count = |name: &str, default: i64| {
        let n = attrs.int_or(name, default)?;
        let ok = usize::try_from(n).ok().filter(|_| n >= default && n <= i64::from(u32::MAX));
        ok.ok_or_else(|| OpError::attribute(name, format!("is {n}, must be at least {default}")))
    };
    let output = [count("output_height", 1)?, count("output_width", 1)?];
    let sampling_ratio = count("sampling_ratio", 0)?;
    let spatial_scale = attrs.float_or("spatial_scale", 1.0)?;
    Ok(Arc::new(RoiAlign { max, output, sampling_ratio, spatial_scale, coordinates }))
}

/// Four neighbours' offsets in a plane and their weights.
type Sample = [(usize, f64); 4];

/// More samples per region than this are refused: regions come from data.
const MAX_SAMPLES: f64 = 1e7;

impl RoiAlign {
    /// The samples of a region, cell by cell; and how many each cell has.
    fn samples(&self, roi: &[f64], height: usize, width: usize) -> Result<(Vec<Sample>, usize), OpError> {
        let half = self.coordinates == Coordinates::HalfPixel;
        let corner = |v: f64| v * f64::from(self.spatial_scale) - if half { 0.5 } else { 0.0 };
        let (x, y) = (corner(roi[0]), corner(roi[1]));
        let least = |size: f64| if half { size } else { size.max(1.0) };
        let (w, h) = (least(corner(roi[2]) - x), least(corner(roi[3]) - y));
        let [ph, pw] = self.output;
        let (cell_h, cell_w) = (h / ph as f64, w / pw as f64);
        let grid = |cell: f64| if self.sampling_ratio > 0 { self.sampling_ratio as f64 } else { cell.ceil().max(0.0) };
        let (gh, gw) = (grid(cell_h), grid(cell_w));
        let total = gh * gw * (ph * pw) as f64;
        if total.is_nan() || total > MAX_SAMPLES {
            return Err(OpError::Value(format!("region {roi:?} would take {total} samples")));
        }
        let (nh, nw) = (gh as usize, gw as usize);
        let mut samples = Vec::with_capacity(total as usize);
        for cell in 0..ph * pw {
            for s in 0..nh * nw {
                let at = |start: f64, i: usize, size: f64, j: usize, n: f64| {
                    start + i as f64 * size + (j as f64 + 0.5) * size / n
                };
                let (sy, sx) = (at(y, cell / pw, cell_h, s / nw, gh), at(x, cell % pw, cell_w, s % nw, gw));
                samples.push(bilinear(sy, sx, height, width));
            }
        }
        Ok((samples, nh * nw))
    }
}

/// The neighbours of a point; all weights are 0 where it is more than a pixel outside.
fn bilinear(y: f64, x: f64, height: usize, width: usize) -> Sample {
    if y < -1.0 || y > height as f64 || x < -1.0 || x > width as f64 {
        return [(0, 0.0); 4];
    }
    let split = |v: f64, n: usize| {
        let low = (v.max(0.0) as usize).min(n - 1);
        let high = (low + 1).min(n - 1);
        let rest = if low == n - 1 { 0.0 } else { v.max(0.0) - low as f64 };
        (low, high, rest)
    };
    let ((y0, y1, ly), (x0, x1, lx)) = (split(y, height), split(x, width));
    [
        (y0 * width + x0, (1.0 - ly) * (1.0 - lx)),
        (y0 * width + x1, (1.0 - ly) * lx),
        (y1 * width + x0, ly * (1.0 - lx)),
        (y1 * width + x1, ly * lx),
    ]
}

impl Op for RoiAlign {
    fn name(&self) -> &str {
        "RoiAlign"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        cx.get(0)?;
        let axis = |i: usize, a: usize| cx.shape(i).and_then(|s| s.get(a)).cloned().unwrap_or(Dim::Unknown);
        let rois = if axis(1, 0) == Dim::Unknown { axis(2, 0) } else { axis(1, 0) };
        let [h, w] = self.output.map(Dim::from);
        Ok(vec![Fact::tensor(cx.dtype(0), Some(vec![rois, axis(0, 1), h, w]))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, rois, batch) = (cx.get(0)?, cx.get(1)?, cx.get(2)?);
        let (&[n, c, height, width], &[count, 4]) = (x.shape(), rois.shape()) else {
            let message = format!("X of shape {:?} and rois of shape {:?} don't fit together", x.shape(), rois.shape());
            return Err(OpError::shape(message));
        };
        if batch.shape() != [count] || (x.is_empty() && count > 0) {
            let message = format!(
                "X of shape {:?} and batch_indices of shape {:?} don't fit to {count} regions",
                x.shape(),
                batch.shape()
            );
            return Err(OpError::shape(message));
        }
        let shape = [count, c, self.output[0], self.output[1]];
        let mut y = Vec::with_capacity(check_size(x.dtype(), &shape)?);
        let (xs, rois) = (floats(cx, 0)?, floats(cx, 1)?);
        for (roi, b) in rois.chunks_exact(4).zip(batch.to_i64s()?) {
            let b = usize::try_from(b)
                .ok()
                .filter(|&b| b < n)
                .ok_or_else(|| OpError::Value(format!("batch_indices has {b}, X has a batch of {n}")))?;
            let (samples, per_cell) = self.samples(roi, height, width)?;
            for plane in xs[b * c * height * width..].chunks_exact(height * width).take(c) {
                for cell in 0..self.output[0] * self.output[1] {
                    y.push(self.pool(plane, &samples[cell * per_cell..][..per_cell]));
                }
            }
        }
        Ok(vec![Tensor::from_f64s(x.dtype(), shape, &y)?])
    }

    fn attrs(&self) -> AttrMap {
        let coordinates = (self.coordinates == Coordinates::OutputHalfPixel).then_some("output_half_pixel");
        AttrMap::new()
            .with_opt("mode", self.max.then_some("max"))
            .with_unless("output_height", self.output[0] as i64, 1)
            .with_unless("output_width", self.output[1] as i64, 1)
            .with_unless("sampling_ratio", self.sampling_ratio as i64, 0)
            .with_unless("spatial_scale", self.spatial_scale, 1.0)
            .with_opt("coordinate_transformation_mode", coordinates)
    }
}

impl RoiAlign {
    fn pool(&self, plane: &[f64], samples: &[Sample]) -> f64 {
        let weighted = |s: &Sample| s.map(|(i, w)| w * plane[i]);
        if self.max {
            // ONNX takes the maximum over the weighted neighbours, not over the samples.
            let max = samples.iter().flat_map(weighted).fold(f64::NEG_INFINITY, f64::max);
            return if samples.is_empty() { 0.0 } else { max };
        }
        samples.iter().flat_map(weighted).sum::<f64>() / samples.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{f32s, run, tensor};

    fn eval(attrs: AttrMap, opset: i64, roi: [f32; 4]) -> Result<Vec<f32>, OpError> {
        let op = build(opset, &mut attrs.with("output_width", 2i64).with("sampling_ratio", 1i64)).unwrap();
        let x = tensor([1, 1, 1, 4], &[0., 1., 2., 3.]);
        let batch = Tensor::vector(vec![0i64]);
        run(&*op, &[Some(&x), Some(&tensor([1, 4], &roi)), Some(&batch)], 1).map(|y| f32s(&y[0]))
    }

    #[test]
    fn samples_with_and_without_the_half_pixel() {
        let roi = [0.5, 0., 2.5, 1.];
        assert_eq!(eval(AttrMap::new(), 16, roi).unwrap(), [0.5, 1.5]);
        assert_eq!(eval(AttrMap::new(), 10, roi).unwrap(), [1., 2.]);
    }

    #[test]
    fn refuses_regions_of_endless_samples() {
        let op = build(16, &mut AttrMap::new()).unwrap();
        let (x, roi) = (tensor([1, 1, 1, 1], &[1.]), tensor([1, 4], &[0., 0., 1e30, 1e30]));
        let batch = Tensor::vector(vec![0i64]);
        assert!(run(&*op, &[Some(&x), Some(&roi), Some(&batch)], 1).is_err());
        let far = Tensor::vector(vec![1i64]);
        let roi = tensor([1, 4], &[0.; 4]);
        assert!(run(&*op, &[Some(&x), Some(&roi), Some(&far)], 1).is_err());
    }
}
