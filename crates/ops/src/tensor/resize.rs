//! Resize: resampling by scales or to sizes.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::params;
use super::resample::{Axis, Coordinates, Kernel, Method, Nearest, resample};

/// What becomes of the aspect ratio when sizes are given (opset 18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// It follows the sizes.
    Stretch,
    /// It is kept; no extent is larger than its size.
    NotLarger,
    /// It is kept; no extent is smaller than its size.
    NotSmaller,
}

/// The input resampled by scales (input 2; input 1 in opset 10) or to sizes (input 3). Source: ONNX Resize.
#[derive(Debug, Clone)]
pub struct Resize {
    /// How elements are found and mixed.
    pub method: Method,
    /// The axes that scales, sizes and region speak of (opset 18); all where absent.
    pub axes: Option<Vec<i64>>,
    /// What becomes of the aspect ratio.
    pub policy: Policy,
    /// The opset: there are only scales before 11.
    pub opset: i64,
}

const COORDINATES: [(&str, Coordinates); 7] = [
    ("half_pixel", Coordinates::HalfPixel),
    ("half_pixel_symmetric", Coordinates::HalfPixelSymmetric),
    ("pytorch_half_pixel", Coordinates::PytorchHalfPixel),
    ("align_corners", Coordinates::AlignCorners),
    ("asymmetric", Coordinates::Asymmetric),
    ("tf_half_pixel_for_nn", Coordinates::TfHalfPixelForNn),
    ("tf_crop_and_resize", Coordinates::TfCropAndResize),
];

const NEAREST: [(&str, Nearest); 4] = [
    ("round_prefer_floor", Nearest::RoundPreferFloor),
    ("round_prefer_ceil", Nearest::RoundPreferCeil),
    ("floor", Nearest::Floor),
    ("ceil", Nearest::Ceil),
];

const POLICIES: [(&str, Policy); 3] =
    [("stretch", Policy::Stretch), ("not_larger", Policy::NotLarger), ("not_smaller", Policy::NotSmaller)];

const CUBIC_A: f32 = -0.75;

/// Takes an attribute with a fixed set of names; the first one where it is absent.
fn choice<T: Copy>(attrs: &mut AttrMap, name: &str, all: &[(&str, T)]) -> Result<T, OpError> {
    let Some(text) = attrs.string(name)? else { return Ok(all[0].1) };
    let found = all.iter().find(|(n, _)| *n == text).map(|(_, v)| *v);
    found.ok_or_else(|| OpError::attribute(name, format!("is \"{text}\"")))
}

fn name_of<T: PartialEq>(all: &[(&'static str, T)], value: &T) -> &'static str {
    all.iter().find(|(_, v)| v == value).map_or(all[0].0, |(n, _)| n)
}

/// Makes a Resize.
///
/// # Errors
/// When an attribute is wrong.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let old = opset < 11;
    let nearest = if old { Nearest::Simple } else { choice(attrs, "nearest_mode", &NEAREST)? };
    let a = attrs.float_or("cubic_coeff_a", CUBIC_A)?;
    let kernels = [("nearest", Kernel::Nearest(nearest)), ("linear", Kernel::Linear), ("cubic", Kernel::Cubic(a))];
    let method = Method {
        coordinates: if old {
            Coordinates::Asymmetric
        } else {
            choice(attrs, "coordinate_transformation_mode", &COORDINATES)?
        },
        kernel: choice(attrs, "mode", &kernels[..if old { 2 } else { 3 }])?,
        antialias: attrs.flag("antialias")?,
        exclude_outside: attrs.flag("exclude_outside")?,
        extrapolation: attrs.float_or("extrapolation_value", 0.0)?,
    };
    let policy = choice(attrs, "keep_aspect_ratio_policy", &POLICIES)?;
    Ok(Arc::new(Resize { method, axes: attrs.ints("axes")?, policy, opset }))
}

/// The output's extent for a scale, as ONNX Runtime computes it.
pub(super) fn scaled(extent: usize, scale: f32) -> Result<usize, OpError> {
    let out = scale * extent as f32;
    if !(scale > 0.0 && out.is_finite()) {
        return Err(OpError::Value(format!("the scale {scale} is not a positive number")));
    }
    Ok(out as usize)
}

/// The symbolic extent for a scale, where it can be said.
pub(super) fn scaled_dim(d: &Dim, scale: f32) -> Result<Dim, OpError> {
    Ok(match d {
        Dim::Known(_) => d.as_usize().map(|n| scaled(n, scale)).transpose()?.map_or(Dim::Unknown, Dim::from),
        d if scale == 1.0 => d.clone(),
        Dim::Sym(_) if scale.fract() == 0.0 && (1.0..1e6).contains(&scale) => d.mul(&Dim::Known(scale as i64)),
        _ => Dim::Unknown,
    })
}

impl Resize {
    /// Whether elements are only selected, never mixed.
    pub fn is_nearest(&self) -> bool {
        matches!(self.method.kernel, Kernel::Nearest(_))
    }

    fn scales_input(&self) -> usize {
        if self.opset < 11 { 1 } else { 2 }
    }

    fn axes(&self, rank: usize) -> Result<Vec<usize>, OpError> {
        match &self.axes {
            Some(list) => params::axes(list, rank),
            None => Ok((0..rank).collect()),
        }
    }

    fn check(what: &str, found: usize, axes: usize) -> Result<(), OpError> {
        if found != axes {
            return Err(OpError::shape(format!("{found} {what} for {axes} axes")));
        }
        Ok(())
    }

    /// Extents and scales of all axes.
    fn plan(&self, shape: &[usize], scales: &[f32], sizes: &[usize]) -> Result<Vec<Axis>, OpError> {
        let axes = self.axes(shape.len())?;
        let mut out: Vec<Axis> = shape.iter().map(|&n| Axis { from: n, to: n, scale: 1.0, roi: (0.0, 1.0) }).collect();
        if !scales.is_empty() {
            Self::check("scales", scales.len(), axes.len())?;
            for (&a, &scale) in axes.iter().zip(scales) {
                out[a] = Axis { to: scaled(shape[a], scale)?, scale, ..out[a] };
            }
            return Ok(out);
        }
        Self::check("sizes", sizes.len(), axes.len())?;
        let ratio = |(&a, &size): (&usize, &usize)| size as f32 / shape[a] as f32;
        let ratios: Vec<f32> = axes.iter().zip(sizes).map(ratio).collect();
        let common = match self.policy {
            Policy::Stretch => None,
            Policy::NotLarger => ratios.iter().copied().reduce(f32::min),
            Policy::NotSmaller => ratios.iter().copied().reduce(f32::max),
        };
        for (i, &a) in axes.iter().enumerate() {
            out[a] = match common {
                None => Axis { to: sizes[i], scale: ratios[i], ..out[a] },
                Some(scale) => Axis { to: (scale * shape[a] as f32 + 0.5).floor() as usize, scale, ..out[a] },
            };
        }
        Ok(out)
    }

    fn infer_shape(&self, cx: &InferCx, s: &[Dim]) -> Result<Vec<Dim>, OpError> {
        let axes = self.axes(s.len())?;
        let mut out = s.to_vec();
        if self.opset >= 11 && cx.opt(3).is_some() {
            let sizes = params::shape_input(cx, 3)?.unwrap_or_else(|| params::unknown(axes.len()));
            if !sizes.is_empty() {
                Self::check("sizes", sizes.len(), axes.len())?;
                let numbers: Option<Vec<usize>> = sizes.iter().map(Dim::as_usize).collect();
                let shape: Option<Vec<usize>> = s.iter().map(Dim::as_usize).collect();
                if let (Some(numbers), Some(shape)) = (numbers, shape) {
                    return Ok(self.plan(&shape, &[], &numbers)?.iter().map(|a| a.to.into()).collect());
                }
                for (&a, d) in axes.iter().zip(sizes) {
                    out[a] = if self.policy == Policy::Stretch { d } else { Dim::Unknown };
                }
                return Ok(out);
            }
        }
        let scales = cx.value(self.scales_input()).and_then(|v| v.to_f32s().ok());
        match scales {
            Some(scales) => {
                Self::check("scales", scales.len(), axes.len())?;
                for (&a, &scale) in axes.iter().zip(scales.iter()) {
                    out[a] = scaled_dim(&s[a], scale)?;
                }
            }
            None => axes.iter().for_each(|&a| out[a] = Dim::Unknown),
        }
        Ok(out)
    }

    fn set_roi(&self, roi: Option<&Tensor>, rank: usize, plan: &mut [Axis]) -> Result<(), OpError> {
        if self.method.coordinates != Coordinates::TfCropAndResize {
            return Ok(());
        }
        let roi = roi.ok_or(OpError::MissingInput(1))?.to_f32s()?;
        let axes = self.axes(rank)?;
        Self::check("bounds of the region", roi.len(), 2 * axes.len())?;
        for (i, &a) in axes.iter().enumerate() {
            plan[a].roi = (roi[i], roi[i + axes.len()]);
        }
        Ok(())
    }

    /// The axes of an input of `shape`; `input` gives the region, the scales and the sizes by their position.
    ///
    /// # Errors
    /// When an input is missing, or does not fit the shape.
    pub fn sampling(&self, shape: &[usize], input: &dyn Fn(usize) -> Option<Tensor>) -> Result<Vec<Axis>, OpError> {
        let sizes = match input(3) {
            Some(t) if self.opset >= 11 => params::extents(&t.to_i64s()?)?,
            _ => Vec::new(),
        };
        let scales = match input(self.scales_input()) {
            Some(t) if sizes.is_empty() => t.to_f32s()?.into_owned(),
            _ => Vec::new(),
        };
        let mut plan = self.plan(shape, &scales, &sizes)?;
        self.set_roi(input(1).as_ref(), shape.len(), &mut plan)?;
        Ok(plan)
    }
}

impl Op for Resize {
    fn name(&self) -> &str {
        "Resize"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let shape = x.shape().map(|s| self.infer_shape(cx, s)).transpose()?;
        Ok(vec![Fact::tensor(x.dtype(), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let plan = self.sampling(x.shape(), &|i| cx.opt(i).cloned())?;
        Ok(vec![resample(x, &plan, &self.method)?])
    }

    fn quant(&self) -> QuantRole {
        if self.is_nearest() { QuantRole::Transparent } else { QuantRole::Float }
    }

    fn attrs(&self) -> AttrMap {
        let m = &self.method;
        let (mode, nearest, a) = match m.kernel {
            Kernel::Nearest(n) => ("nearest", name_of(&NEAREST, &n), CUBIC_A),
            Kernel::Linear => ("linear", NEAREST[0].0, CUBIC_A),
            Kernel::Cubic(a) => ("cubic", NEAREST[0].0, a),
        };
        let map = AttrMap::new().with_unless("mode", mode, "nearest");
        if self.opset < 11 {
            return map;
        }
        map.with_unless("nearest_mode", nearest, NEAREST[0].0)
            .with_unless("coordinate_transformation_mode", name_of(&COORDINATES, &m.coordinates), COORDINATES[0].0)
            .with_unless("cubic_coeff_a", a, CUBIC_A)
            .with_unless("antialias", i64::from(m.antialias), 0)
            .with_unless("exclude_outside", i64::from(m.exclude_outside), 0)
            .with_unless("extrapolation_value", m.extrapolation, 0.0)
            .with_unless("keep_aspect_ratio_policy", name_of(&POLICIES, &self.policy), POLICIES[0].0)
            .with_opt("axes", self.axes.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;
    use narrowbit_tensor::DType;

    fn eval(opset: i64, mut attrs: AttrMap, scales: Vec<f32>) -> Result<Tensor, OpError> {
        let op = build(opset, &mut attrs)?;
        let x = Datum::Tensor(Tensor::new([1, 4], vec![1f32, 2.0, 3.0, 4.0]).unwrap());
        let s = Datum::Tensor(Tensor::vector(scales));
        let ins = if opset < 11 { vec![Some(&x), Some(&s)] } else { vec![Some(&x), None, Some(&s)] };
        Ok(op.eval(&EvalCx::new(&ins, 1))?.remove(0))
    }

    #[test]
    fn takes_the_element_after_when_shrinking_before_opset_11() {
        assert_eq!(eval(10, AttrMap::new(), vec![1.0, 0.6]).unwrap().to_f64s().unwrap(), [1.0, 3.0]);
        let up = eval(10, AttrMap::new().with("mode", "linear"), vec![1.0, 2.0]).unwrap();
        assert_eq!(up.to_f64s().unwrap(), [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.0]);
    }

    #[test]
    fn refuses_scales_that_do_not_fit() {
        assert!(eval(13, AttrMap::new(), vec![1.0]).is_err());
        assert!(eval(13, AttrMap::new(), vec![1.0, -1.0]).is_err());
        assert!(eval(13, AttrMap::new(), vec![1.0, f32::NAN]).is_err());
        assert!(eval(13, AttrMap::new(), vec![1.0, 1e30]).is_err());
        assert!(eval(13, AttrMap::new(), vec![]).is_err());
        assert!(build(13, &mut AttrMap::new().with("mode", "other")).is_err());
    }

    #[test]
    fn infers_from_symbolic_sizes() {
        let x = Fact::tensor(Some(DType::F32), Some(vec![Dim::sym("n"), Dim::Known(4)]));
        let dims = vec![Dim::sym("n"), Dim::sym("w")];
        let sizes = Fact::tensor(Some(DType::I64), Some(vec![Dim::Known(2)])).with_dims(Some(dims.clone()));
        let op = build(13, &mut AttrMap::new()).unwrap();
        let facts = op.infer(&InferCx::new(&[Some(&x), None, None, Some(&sizes)], 1)).unwrap();
        assert_eq!(facts[0].shape(), Some(&dims[..]));
        let scales = Fact::constant(Tensor::vector(vec![1f32, 2.0]));
        let facts = op.infer(&InferCx::new(&[Some(&x), None, Some(&scales)], 1)).unwrap();
        assert_eq!(facts[0].shape(), Some(&[Dim::sym("n"), Dim::Known(8)][..]));
    }
}
