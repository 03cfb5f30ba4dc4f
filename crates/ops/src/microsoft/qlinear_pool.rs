//! QLinearAveragePool, QLinearGlobalAveragePool, NhwcMaxPool: pooling of quantized tensors.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor};

use super::support::{DOMAIN, Params};
use crate::quant::params::{from_ints, ints8};
use crate::quant::qlinear_conv::{to_back, to_front};
use crate::quant::window::{Window, WindowAttrs, move_channels};

/// Pooling of an 8-bit tensor `[n, c, spatial..]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pool {
    /// `y = saturate(round(mean(x_scale * (x - x_zero)) / y_scale + y_zero))`, sums in f32 in the order
    /// of the window (QLinearAveragePool). Inputs: x, x_scale, x_zero_point, y_scale, y_zero_point.
    Average {
        /// Padding, strides and the like.
        window: WindowAttrs,
        /// Whether padding counts as elements.
        count_include_pad: bool,
        /// Whether x and y are `[n, spatial.., c]`.
        channels_last: bool,
    },
    /// `y = saturate(round(sum(x - x_zero) * (x_scale / (y_scale * count))) + y_zero)` over all spatial
    /// axes (QLinearGlobalAveragePool). Inputs as above.
    GlobalAverage {
        /// Whether x and y are `[n, spatial.., c]`.
        channels_last: bool,
    },
    /// The greatest code of each window of `[n, spatial.., c]` (NhwcMaxPool). Input: x.
    Max {
        /// Padding, strides and the like.
        window: WindowAttrs,
    },
}

/// Makes a QLinearAveragePool.
pub fn build_average(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let window = WindowAttrs::take(attrs)?;
    let count_include_pad = attrs.flag("count_include_pad")?;
    Ok(Arc::new(Pool::Average { window, count_include_pad, channels_last: attrs.flag("channels_last")? }))
}

/// Makes a QLinearGlobalAveragePool.
pub fn build_global(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Pool::GlobalAverage { channels_last: attrs.flag("channels_last")? }))
}

/// Makes an NhwcMaxPool.
pub fn build_max(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Pool::Max { window: WindowAttrs::take(attrs)? }))
}

/// The planes of a tensor, channels moved to the front where they are last.
struct Planes {
    n: usize,
    c: usize,
    spatial: Vec<usize>,
    codes: Vec<i32>,
}

impl Planes {
    fn read(x: &Tensor, last: bool) -> Result<Planes, OpError> {
        if x.rank() < 2 {
            return Err(OpError::input(0, format!("of shape {:?}", x.shape()), "at least two dimensions"));
        }
        let shape = if last { to_front(x.shape()) } else { x.shape().to_vec() };
        let (n, c) = (shape[0], shape[1]);
        let codes = ints8(x, 0)?;
        let codes = if last { move_channels(&codes, n, c, true) } else { codes };
        Ok(Planes { n, c, spatial: shape[2..].to_vec(), codes })
    }

    /// The result of `self.n * self.c` planes, channels moved back.
    fn write(&self, dtype: DType, spatial: &[usize], y: Vec<i32>, last: bool) -> Result<Tensor, OpError> {
        let shape = [&[self.n, self.c], spatial].concat();
        if last {
            return from_ints(dtype, &to_back(&shape), move_channels(&y, self.n, self.c, false));
        }
        from_ints(dtype, &shape, y)
    }

    fn plane(&self) -> usize {
        self.spatial.iter().product()
    }

    /// Folds each window of each plane in the window's order: the results, and how many elements each position has.
    fn fold<A: Copy>(&self, w: &Window, start: A, f: impl Fn(A, i32) -> A) -> Result<(Vec<A>, Vec<usize>), OpError> {
        let (p, plane) = (w.positions(), self.plane());
        let planes = self.n * self.c;
        check_size(DType::Complex128, &[planes.max(1), p])?;
        let (mut sums, mut counts) = (vec![start; planes * p], vec![0usize; p]);
        w.for_each_tap(0, p, |_, offsets| {
            for (count, o) in counts.iter_mut().zip(offsets) {
                *count += usize::from(o.is_some());
            }
            for (out, x) in sums.chunks_exact_mut(p.max(1)).zip(self.codes.chunks_exact(plane.max(1))) {
                for (s, o) in out.iter_mut().zip(offsets) {
                    if let Some(o) = o {
                        *s = f(*s, x[*o]);
                    }
                }
            }
        });
        Ok((sums, counts))
    }
}

impl Pool {
    fn window(&self) -> Option<&WindowAttrs> {
        match self {
            Pool::Average { window, .. } | Pool::Max { window } => Some(window),
            Pool::GlobalAverage { .. } => None,
        }
    }

    fn channels_last(&self) -> bool {
        match self {
            Pool::Average { channels_last, .. } | Pool::GlobalAverage { channels_last } => *channels_last,
            Pool::Max { .. } => true,
        }
    }

    fn resolve(&self, spatial: &[usize]) -> Result<Window, OpError> {
        let attrs = self.window().cloned().unwrap_or_default();
        attrs.resolve(spatial, &attrs.kernel(None, spatial.len())?)
    }
}

fn average(planes: &Planes, w: &Window, px: Params, py: Params, include_pad: bool) -> Result<Vec<i32>, OpError> {
    let (sums, counts) = planes.fold(w, 0f32, |s, c| s + px.dequantize(c))?;
    let quantize = |(i, s): (usize, &f32)| {
        let n = if include_pad { w.taps() } else { counts[i % counts.len()] };
        py.saturate(s / n as f32 / py.scale + py.zero as f32)
    };
    Ok(sums.iter().enumerate().map(quantize).collect())
}

impl Op for Pool {
    fn name(&self) -> &str {
        match self {
            Pool::Average { .. } => "QLinearAveragePool",
            Pool::GlobalAverage { .. } => "QLinearGlobalAveragePool",
            Pool::Max { .. } => "NhwcMaxPool",
        }
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let Some(shape) = x.shape().filter(|s| s.len() >= 2) else { return Ok(vec![Fact::tensor(x.dtype(), None)]) };
        let shape = if self.channels_last() { to_front(shape) } else { shape.to_vec() };
        let spatial = match self.window() {
            None => vec![Dim::Known(1); shape.len() - 2],
            Some(w) => {
                let kernel = w.kernel(None, shape.len() - 2)?;
                w.infer(&shape[2..], &kernel.into_iter().map(Some).collect::<Vec<_>>())?
            }
        };
        let out: Vec<Dim> = shape[..2].iter().cloned().chain(spatial).collect();
        Ok(vec![Fact::tensor(x.dtype(), Some(if self.channels_last() { to_back(&out) } else { out }))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let last = self.channels_last();
        let planes = Planes::read(x, last)?;
        let params = || Ok::<_, OpError>((Params::read(cx, 1, x.dtype())?, Params::read(cx, 3, x.dtype())?));
        let y = match self {
            Pool::GlobalAverage { .. } => {
                let (px, py) = params()?;
                let n = planes.plane();
                let scale = px.scale / (py.scale * n as f32);
                let sum = |p: &[i32]| p.iter().fold(0i32, |s, c| s.wrapping_add(c.wrapping_sub(px.zero)));
                let quantize = |s: i32| py.saturate((s as f32 * scale).round_ties_even() + py.zero as f32);
                let y = planes.codes.chunks_exact(n.max(1)).map(|p| quantize(sum(p))).collect();
                if n == 0 {
                    return Err(OpError::shape(format!("the mean of no elements (input of shape {:?})", x.shape())));
                }
                planes.write(x.dtype(), &vec![1; planes.spatial.len()], y, last)?
            }
            Pool::Average { count_include_pad, .. } => {
                let (px, py) = params()?;
                let w = self.resolve(&planes.spatial)?;
                planes.write(x.dtype(), &w.out, average(&planes, &w, px, py, *count_include_pad)?, last)?
            }
            Pool::Max { .. } => {
                let w = self.resolve(&planes.spatial)?;
                let (y, counts) = planes.fold(&w, i32::MIN, i32::max)?;
                if counts.contains(&0) {
                    return Err(OpError::shape("a window lies wholly in the padding".to_string()));
                }
                planes.write(x.dtype(), &w.out, y, last)?
            }
        };
        Ok(vec![y])
    }

    fn attrs(&self) -> AttrMap {
        let attrs = self.window().map(WindowAttrs::attrs).unwrap_or_default();
        let flag = |v: bool| i64::from(v);
        match self {
            Pool::Average { count_include_pad, channels_last, .. } => attrs
                .with_unless("count_include_pad", flag(*count_include_pad), 0)
                .with_unless("channels_last", flag(*channels_last), 0),
            Pool::GlobalAverage { channels_last } => attrs.with_unless("channels_last", flag(*channels_last), 0),
            Pool::Max { .. } => attrs,
        }
    }
}
