//! Scales and zero points: reading them, which element they belong to, rounding.

use narrowbit_ir::OpError;
use narrowbit_tensor::{DType, Tensor, minifloat, shape};

/// How many elements share one scale, resolved against the shape of the data.
///
/// The data is seen as `[outer, extent, inner]` around the quantization axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grain {
    /// One scale for all.
    Tensor,
    /// One scale per index of the axis.
    Axis { extent: usize, inner: usize },
    /// One scale per `block` indices of the axis, `blocks` of them.
    Block { extent: usize, inner: usize, block: usize, blocks: usize },
}

/// A run of consecutive elements; the first has parameter `param`, each next one `step` further.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub start: usize,
    pub len: usize,
    pub param: usize,
    pub step: usize,
}

impl Grain {
    /// The granularity that a scale of shape `scale` means for data of shape `data`.
    ///
    /// `axis` is `None` where the operator has no axis (per tensor only).
    pub fn resolve(data: &[usize], scale: &[usize], axis: Option<i64>, block: usize) -> Result<Grain, OpError> {
        let n = shape::count(scale)?;
        if block == 0 && n == 1 && scale.len() <= 1 {
            return Ok(Grain::Tensor);
        }
        let wrong = |why: &str| {
            OpError::shape(format!("a scale of shape {scale:?} does not fit data of shape {data:?}: {why}"))
        };
        let Some(axis) = axis else { return Err(wrong("one scale for the whole tensor is expected")) };
        let axis = shape::axis(axis, data.len()).ok_or_else(|| {
            OpError::attribute("axis", format!("is {axis}, but the data has {} dimensions", data.len()))
        })?;
        let extent = data[axis];
        let inner = shape::count(&data[axis + 1..])?;
        if block == 0 {
            return match scale {
                [n] if *n == extent => Ok(Grain::Axis { extent, inner }),
                _ => Err(wrong(&format!("one scale per index of axis {axis} is expected"))),
            };
        }
        let blocks = extent.div_ceil(block);
        let fits = scale.len() == data.len()
            && scale.iter().zip(data).enumerate().all(|(i, (s, d))| *s == if i == axis { blocks } else { *d });
        if !fits {
            return Err(wrong(&format!("{blocks} blocks of {block} along axis {axis} are expected")));
        }
        Ok(Grain::Block { extent, inner, block, blocks })
    }

    /// The runs that cover `len` elements, in order.
    pub fn runs(self, len: usize) -> Box<dyn Iterator<Item = Run>> {
        match self {
            _ if len == 0 => Box::new(std::iter::empty()),
            Grain::Tensor => Box::new(std::iter::once(Run { start: 0, len, param: 0, step: 0 })),
            // The last axis: whole rows, or a matrix would fall into runs of one element.
            Grain::Axis { extent, inner: 1 } => {
                Box::new((0..len / extent).map(move |r| Run { start: r * extent, len: extent, param: 0, step: 1 }))
            }
            Grain::Axis { extent, inner } => Box::new((0..len / inner).map(move |r| Run {
                start: r * inner,
                len: inner,
                param: r % extent,
                step: 0,
            })),
            Grain::Block { extent, inner, block, blocks } => Box::new((0..len / inner).map(move |r| {
                let param = (r / extent * blocks + r % extent / block) * inner;
                Run { start: r * inner, len: inner, param, step: 1 }
            })),
        }
    }
}

/// The bounds of an integer type of at most 16 bits: the types that values are quantized to.
pub(crate) fn bounds(dtype: DType) -> Option<(i32, i32)> {
    let (lo, hi) = dtype.int_range().filter(|_| dtype.bits() <= 16)?;
    Some((i32::try_from(lo).ok()?, i32::try_from(hi).ok()?))
}

/// `saturate(round_half_even(x) + zero)`, as ONNX Runtime's kernels do it: clamped in `f32`
/// before rounding. NaN becomes the least code, as the kernels' `max(x, lo)` makes it on x86.
#[inline]
pub(crate) fn round_saturate(x: f32, zero: i32, (lo, hi): (i32, i32)) -> i32 {
    let (min, max) = ((lo.wrapping_sub(zero)) as f32, (hi.wrapping_sub(zero)) as f32);
    // f32::max returns the number where one side is NaN.
    (x.max(min).min(max).round_ties_even() as i32).wrapping_add(zero)
}

/// The integers of a tensor of an integer type of at most 32 bits.
pub(crate) fn ints(t: &Tensor) -> Result<Vec<i32>, OpError> {
    Ok(match t.dtype() {
        DType::U8 | DType::Bool => t.slice::<u8>()?.iter().map(|&v| i32::from(v)).collect(),
        DType::I8 => t.slice::<i8>()?.iter().map(|&v| i32::from(v)).collect(),
        DType::I32 => t.slice::<i32>()?.into_owned(),
        _ => t.to_i64s()?.into_iter().map(|v| v as i32).collect(),
    })
}

/// A tensor of an integer type from values within its range.
pub(crate) fn from_ints(dtype: DType, shape: &[usize], values: Vec<i32>) -> Result<Tensor, OpError> {
    Ok(match dtype {
        DType::U8 => Tensor::new(shape, values.into_iter().map(|v| v as u8).collect())?,
        DType::I8 => Tensor::new(shape, values.into_iter().map(|v| v as i8).collect())?,
        DType::I32 => Tensor::new(shape, values)?,
        d => Tensor::from_i64s(d, shape, &values.into_iter().map(i64::from).collect::<Vec<_>>())?,
    })
}

/// Quantizes `x / scale` values to `dtype`, integer or minifloat.
pub(crate) fn quantize_all(
    dtype: DType,
    shape: &[usize],
    x: &[f32],
    zero: &[i32],
    grain: Grain,
    saturate: bool,
    divide: impl Fn(f32, usize) -> f32,
) -> Result<Tensor, OpError> {
    let runs = grain.runs(x.len());
    let at = |r: &Run, i: usize| r.param + i * r.step;
    if let Some(range) = bounds(dtype) {
        let mut out = Vec::with_capacity(x.len());
        for r in runs {
            let xs = &x[r.start..r.start + r.len];
            out.extend(xs.iter().enumerate().map(|(i, &v)| {
                let p = at(&r, i);
                round_saturate(divide(v, p), zero.get(p).copied().unwrap_or(0), range)
            }));
        }
        return from_ints(dtype, shape, out);
    }
    if !dtype.is_minifloat() || dtype == DType::F8E8M0 {
        return Err(OpError::Unsupported(format!("quantization to {dtype}")));
    }
    let mut codes = Vec::with_capacity(x.len());
    for r in runs {
        let xs = &x[r.start..r.start + r.len];
        codes.extend(xs.iter().enumerate().map(|(i, &v)| minifloat::encode(dtype, divide(v, at(&r, i)), saturate)));
    }
    if dtype.is_packed() {
        return Ok(Tensor::from_codes(dtype, shape, &codes)?);
    }
    Ok(Tensor::from_bytes(dtype, shape, codes)?)
}

/// The only element of a tensor that must have one.
pub(crate) fn single_f32(t: &Tensor, index: usize) -> Result<f32, OpError> {
    match t.to_f32s()?.as_ref() {
        [v] => Ok(*v),
        _ => Err(OpError::input(index, format!("of shape {:?}", t.shape()), "a single number")),
    }
}

/// The only element of an integer tensor that must have one; 0 where the input is absent.
pub(crate) fn single_int(t: Option<&Tensor>, index: usize) -> Result<i32, OpError> {
    let Some(t) = t else { return Ok(0) };
    match ints(t)?.as_slice() {
        [v] => Ok(*v),
        _ => Err(OpError::input(index, format!("of shape {:?}", t.shape()), "a single integer")),
    }
}

/// Checks that an 8-bit integer tensor was given, and gives its values.
pub(crate) fn ints8(t: &Tensor, index: usize) -> Result<Vec<i32>, OpError> {
    match t.dtype() {
        DType::U8 | DType::I8 => ints(t),
        d => Err(OpError::input(index, d.name(), "i8 or u8")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_half_to_even_and_saturates() {
        let u8r = (0, 255);
        assert_eq!(round_saturate(0.5, 0, u8r), 0);
        assert_eq!(round_saturate(1.5, 0, u8r), 2);
        assert_eq!(round_saturate(-0.5, 3, u8r), 3);
        assert_eq!(round_saturate(f32::INFINITY, 3, u8r), 255);
        assert_eq!(round_saturate(f32::NEG_INFINITY, 3, u8r), 0);
        assert_eq!(round_saturate(f32::NAN, 3, u8r), 0);
    }

    #[test]
    fn resolves_each_granularity() {
        assert_eq!(Grain::resolve(&[2, 3], &[], Some(1), 0).unwrap(), Grain::Tensor);
        assert_eq!(Grain::resolve(&[2, 3], &[3], Some(-1), 0).unwrap(), Grain::Axis { extent: 3, inner: 1 });
        let block = Grain::resolve(&[2, 5], &[2, 2], Some(1), 4).unwrap();
        let params: Vec<usize> = block.runs(10).map(|r| r.param).collect();
        assert_eq!(params, [0, 0, 0, 0, 1, 2, 2, 2, 2, 3]);
    }

    #[test]
    fn refuses_scales_that_do_not_fit() {
        assert!(Grain::resolve(&[2, 3], &[2], Some(1), 0).is_err());
        assert!(Grain::resolve(&[2, 3], &[3], None, 0).is_err());
        assert!(Grain::resolve(&[2, 3], &[3], Some(2), 0).is_err());
        assert!(Grain::resolve(&[2, 5], &[2, 1], Some(1), 4).is_err());
    }
}
