//! DepthToSpace and SpaceToDepth: channels to blocks of pixels and back.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::{factors, moves, params};

/// How channels are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Depth, column, row: the block's place is the slower part of the channel.
    Dcr,
    /// Column, row, depth: the block's place is the faster part of the channel.
    Crd,
}

/// `[n, c·b², h, w]` to `[n, c, h·b, w·b]`; any type. Source: ONNX DepthToSpace.
#[derive(Debug, Clone, Copy)]
pub struct DepthToSpace {
    /// The side of a block, `b`.
    pub block: usize,
    /// The layout of the input's channels.
    pub mode: Mode,
}

/// `[n, c, h·b, w·b]` to `[n, c·b², h, w]`; any type. Source: ONNX SpaceToDepth.
#[derive(Debug, Clone, Copy)]
pub struct SpaceToDepth {
    /// The side of a block, `b`.
    pub block: usize,
    /// The layout of the output's channels.
    pub mode: Mode,
}

fn take(attrs: &mut AttrMap) -> Result<(usize, Mode), OpError> {
    let block = attrs.int("blocksize")?.ok_or_else(|| OpError::attribute("blocksize", "is missing"))?;
    let size = usize::try_from(block).ok().filter(|&b| (1..1 << 20).contains(&b));
    let size = size.ok_or_else(|| OpError::attribute("blocksize", format!("is {block}, not in 1..2^20")))?;
    let mode = match attrs.string("mode")?.as_deref() {
        None | Some("DCR") => Mode::Dcr,
        Some("CRD") => Mode::Crd,
        Some(other) => return Err(OpError::attribute("mode", format!("is \"{other}\", neither DCR nor CRD"))),
    };
    Ok((size, mode))
}

fn attrs(block: usize, mode: Mode) -> AttrMap {
    AttrMap::new().with("blocksize", block as i64).with_opt("mode", (mode == Mode::Crd).then_some("CRD"))
}

/// Makes a DepthToSpace from `blocksize` and `mode`.
///
/// # Errors
/// When an attribute is wrong.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let (block, mode) = take(attrs)?;
    Ok(Arc::new(DepthToSpace { block, mode }))
}

/// Makes a SpaceToDepth from `blocksize` and `mode`.
///
/// # Errors
/// When an attribute is wrong.
pub fn build_space_to_depth(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let (block, mode) = take(attrs)?;
    Ok(Arc::new(SpaceToDepth { block, mode }))
}

fn four<T: Clone + std::fmt::Debug>(s: &[T]) -> Result<[T; 4], OpError> {
    <[T; 4]>::try_from(s.to_vec()).map_err(|s| OpError::shape(format!("the input has {} axes, not 4", s.len())))
}

fn divided(what: &str, extent: usize, by: usize) -> Result<usize, OpError> {
    if !extent.is_multiple_of(by) {
        return Err(OpError::shape(format!("{what} {extent} is no multiple of {by}")));
    }
    Ok(extent / by)
}

fn divided_dim(what: &str, d: &Dim, by: usize) -> Result<Dim, OpError> {
    factors::quotient(std::slice::from_ref(d), &[by.into()])
        .map_err(|_| OpError::shape(format!("{what} {d} is no multiple of {by}")))
}

impl Op for DepthToSpace {
    fn name(&self) -> &str {
        "DepthToSpace"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let b = Dim::from(self.block);
        let shape = match x.shape() {
            None => params::unknown(4),
            Some(s) => {
                let [n, c, h, w] = four(s)?;
                vec![n, divided_dim("the number of channels", &c, self.block * self.block)?, h.mul(&b), w.mul(&b)]
            }
        };
        Ok(vec![Fact::tensor(x.dtype(), Some(shape))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let b = self.block;
        let [n, c, h, w] = four(x.shape())?;
        let c = divided("the number of channels", c, b * b)?;
        let y = match self.mode {
            Mode::Dcr => moves::permute(&x.reshaped([n, b, b, c, h, w])?, &[0, 3, 4, 1, 5, 2])?,
            Mode::Crd => moves::permute(&x.reshaped([n, c, b, b, h, w])?, &[0, 1, 4, 2, 5, 3])?,
        };
        Ok(vec![y.reshaped([n, c, h.saturating_mul(b), w.saturating_mul(b)])?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        attrs(self.block, self.mode)
    }
}

impl Op for SpaceToDepth {
    fn name(&self) -> &str {
        "SpaceToDepth"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let shape = match x.shape() {
            None => params::unknown(4),
            Some(s) => {
                let [n, c, h, w] = four(s)?;
                let c = c.mul(&(self.block * self.block).into());
                vec![n, c, divided_dim("the height", &h, self.block)?, divided_dim("the width", &w, self.block)?]
            }
        };
        Ok(vec![Fact::tensor(x.dtype(), Some(shape))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let b = self.block;
        let [n, c, h, w] = four(x.shape())?;
        let (h, w) = (divided("the height", h, b)?, divided("the width", w, b)?);
        let perm = match self.mode {
            Mode::Dcr => [0, 3, 5, 1, 2, 4],
            Mode::Crd => [0, 1, 3, 5, 2, 4],
        };
        let y = moves::permute(&x.reshaped([n, c, h, b, w, b])?, &perm)?;
        Ok(vec![y.reshaped([n, c.saturating_mul(b * b), h, w])?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        attrs(self.block, self.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    #[test]
    fn undoes_each_other() {
        let x = Tensor::new([1, 8, 1, 2], (0..16).collect::<Vec<i32>>()).unwrap();
        for mode in [Mode::Dcr, Mode::Crd] {
            let d = Datum::Tensor(x.clone());
            let y = DepthToSpace { block: 2, mode }.eval(&EvalCx::new(&[Some(&d)], 1)).unwrap().remove(0);
            assert_eq!(y.shape(), [1, 2, 2, 4]);
            let d = Datum::Tensor(y);
            let back = SpaceToDepth { block: 2, mode }.eval(&EvalCx::new(&[Some(&d)], 1)).unwrap();
            assert_eq!(back[0], x);
        }
    }

    #[test]
    fn refuses_channels_that_make_no_block() {
        let d = Datum::Tensor(Tensor::zeros(narrowbit_tensor::DType::F32, [1, 6, 1, 1]).unwrap());
        assert!(DepthToSpace { block: 2, mode: Mode::Dcr }.eval(&EvalCx::new(&[Some(&d)], 1)).is_err());
        assert!(build(13, &mut AttrMap::new().with("blocksize", 0i64)).is_err());
        assert!(build(13, &mut AttrMap::new().with("blocksize", 2i64).with("mode", "X")).is_err());
    }
}
