//! Col2Im: columns of blocks added up to an image.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor, shape};

use super::{factors, params};

/// `[n, c·Πblock, l]` to `[n, c, image…]`: each column is a block of the image, and where blocks overlap they add up.
///
/// Inputs: the columns, the image's shape, the block's shape. Source: ONNX Col2Im.
#[derive(Debug, Clone)]
pub struct Col2Im {
    /// The distance of a block's elements per axis; 1 where absent.
    pub dilations: Option<Vec<i64>>,
    /// Elements that the image is padded with, first all before, then all after; 0 where absent.
    pub pads: Option<Vec<i64>>,
    /// The distance of blocks per axis; 1 where absent.
    pub strides: Option<Vec<i64>>,
}

/// Makes a Col2Im from `dilations`, `pads` and `strides`.
///
/// # Errors
/// When an attribute is no list of integers in range.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let mut list = |name: &str, least: i64| {
        let v = attrs.ints(name)?;
        match v.iter().flatten().find(|&&v| v < least || v > i64::from(i32::MAX)) {
            Some(bad) => Err(OpError::attribute(name, format!("has {bad}, not in [{least}, 2^31)"))),
            None => Ok(v),
        }
    };
    Ok(Arc::new(Col2Im { dilations: list("dilations", 1)?, pads: list("pads", 0)?, strides: list("strides", 1)? }))
}

/// One spatial axis.
struct Axis {
    image: i64,
    block: i64,
    dilation: i64,
    pad: i64,
    stride: i64,
    /// The number of blocks along it.
    steps: i64,
}

impl Col2Im {
    fn axes(&self, image: &[i64], block: &[i64]) -> Result<Vec<Axis>, OpError> {
        let rank = image.len();
        let get = |v: &Option<Vec<i64>>, i: usize, n: usize, default: i64| match v {
            Some(v) if v.len() != n => Err(OpError::shape(format!("{v:?} does not fit an image of {rank} axes"))),
            Some(v) => Ok(v[i]),
            None => Ok(default),
        };
        if block.len() != rank || rank == 0 {
            return Err(OpError::shape(format!("blocks of shape {block:?} do not fit an image of shape {image:?}")));
        }
        let axis = |a: usize| {
            let (pad, after) = (get(&self.pads, a, 2 * rank, 0)?, get(&self.pads, a + rank, 2 * rank, 0)?);
            let (dilation, stride) = (get(&self.dilations, a, rank, 1)?, get(&self.strides, a, rank, 1)?);
            let reach = (block[a] - 1).checked_mul(dilation).and_then(|r| r.checked_add(1));
            let padded = image[a].checked_add(pad + after);
            let room = padded.zip(reach).and_then(|(p, r)| p.checked_sub(r)).filter(|&r| r >= 0 && block[a] > 0);
            let room = room.ok_or_else(|| {
                OpError::shape(format!("a block of {} does not fit an image of {} along axis {a}", block[a], image[a]))
            })?;
            Ok(Axis { image: image[a], block: block[a], dilation, pad, stride, steps: room / stride + 1 })
        };
        (0..rank).map(axis).collect()
    }
}

/// The places of the image that one element of the blocks falls on, one per column, row-major; `None` in the padding.
fn places(axes: &[Axis], element: &[usize], out: &mut Vec<Option<usize>>) {
    out.clear();
    out.push(Some(0));
    for (axis, &e) in axes.iter().zip(element) {
        let held = std::mem::take(out);
        for before in held {
            for step in 0..axis.steps {
                let at = step * axis.stride + e as i64 * axis.dilation - axis.pad;
                let inside = before.filter(|_| (0..axis.image).contains(&at));
                out.push(inside.map(|b| b * axis.image as usize + at as usize));
            }
        }
    }
}

impl Op for Col2Im {
    fn name(&self) -> &str {
        "Col2Im"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let shape = match (x.shape(), params::shape_input(cx, 1)?) {
            (Some([n, c, _]), Some(image)) => {
                let c = match params::shape_input(cx, 2)? {
                    Some(block) => factors::quotient(std::slice::from_ref(c), &block)
                        .map_err(|(a, b)| OpError::shape(format!("{a} rows are no multiple of {b}")))?,
                    None => Dim::Unknown,
                };
                Some([&[n.clone(), c], image.as_slice()].concat())
            }
            (_, Some(image)) => Some(params::unknown(image.len() + 2)),
            _ => None,
        };
        Ok(vec![Fact::tensor(x.dtype(), shape)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let (image, block) = (cx.get(1)?.to_i64s()?, cx.get(2)?.to_i64s()?);
        let space = params::extents(&image)?;
        let axes = self.axes(&image, &block)?;
        let block = params::extents(&block)?;
        let (size, pixels) = (shape::count(&block)?, shape::count(&space)?);
        let columns = axes.iter().try_fold(1usize, |n, a| n.checked_mul(a.steps as usize));
        let &[n, rows, found] = x.shape() else {
            return Err(OpError::shape(format!("the columns have shape {:?}, not three axes", x.shape())));
        };
        if columns != Some(found) || rows % size != 0 {
            let message = format!("columns of shape {:?} do not make an image of shape {image:?}", x.shape());
            return Err(OpError::shape(message));
        }
        let channels = rows / size;
        let out = [&[n, channels], space.as_slice()].concat();
        let data = x.to_f64s()?;
        let mut y = vec![0f64; check_size(DType::F64, &out)?];
        let mut at = Vec::new();
        for e in 0..if data.is_empty() { 0 } else { size } {
            let mut rest = e;
            let mut element = vec![0; block.len()];
            for (a, axis) in axes.iter().enumerate().rev() {
                element[a] = rest % axis.block as usize;
                rest /= axis.block as usize;
            }
            places(&axes, &element, &mut at);
            for c in 0..n * channels {
                let image = &mut y[c * pixels..][..pixels];
                for (v, p) in data[(c * size + e) * found..][..found].iter().zip(&at) {
                    if let Some(p) = p {
                        image[*p] += v;
                    }
                }
            }
        }
        if x.dtype().is_float() {
            return Ok(vec![Tensor::from_f64s(x.dtype(), out, &y)?]);
        }
        Ok(vec![Tensor::from_i64s(x.dtype(), out, &y.iter().map(|&v| v as i64).collect::<Vec<_>>())?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_opt("dilations", self.dilations.clone())
            .with_opt("pads", self.pads.clone())
            .with_opt("strides", self.strides.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, ints};
    use super::*;

    #[test]
    fn refuses_blocks_that_do_not_fit() {
        let run = |image: [i64; 2], block: [i64; 2], shape: [usize; 3]| {
            let x = ints(&shape, &vec![1; shape.iter().product()]);
            eval("Col2Im", 18, AttrMap::new(), &[x, ints(&[2], &image), ints(&[2], &block)])
        };
        assert_eq!(run([1, 3], [1, 2], [1, 2, 2]).unwrap()[0].to_i64s().unwrap(), [1, 2, 1]);
        assert!(run([1, 3], [1, 2], [1, 2, 3]).is_err());
        assert!(run([1, 3], [1, 4], [1, 4, 1]).is_err());
        assert!(run([1, 3], [0, 1], [1, 2, 3]).is_err());
        assert!(run([-1, 3], [1, 1], [1, 1, 3]).is_err());
        assert!(run([i64::MAX, i64::MAX], [1, 1], [1, 1, 3]).is_err());
        assert!(build(18, &mut AttrMap::new().with("strides", vec![0i64, 1])).is_err());
    }
}
