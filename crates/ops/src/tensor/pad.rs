//! Pad: elements added before and after each axis, or cut off.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::moves;
use super::params::{self, Ints};

/// What stands in the added elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PadMode {
    /// One value.
    Constant,
    /// The input mirrored at its border elements.
    Reflect,
    /// The border elements.
    Edge,
    /// The input again from its other end (opset 19).
    Wrap,
}

impl PadMode {
    const NAMES: [(&'static str, PadMode); 4] = [
        ("constant", PadMode::Constant),
        ("reflect", PadMode::Reflect),
        ("edge", PadMode::Edge),
        ("wrap", PadMode::Wrap),
    ];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, m)| *m == self).map_or("constant", |(n, _)| n)
    }

    /// The place in an axis of `n` elements (at least 1, unless constant) that is seen at place `i`, which may lie outside;
    /// `None` for the constant.
    pub fn place(self, i: i64, n: i64) -> Option<i64> {
        match self {
            PadMode::Constant => (0..n).contains(&i).then_some(i),
            PadMode::Edge => Some(i.clamp(0, n - 1)),
            PadMode::Wrap => Some(i.rem_euclid(n)),
            PadMode::Reflect if n == 1 => Some(0),
            PadMode::Reflect => {
                let at = i.rem_euclid(2 * (n - 1));
                Some(at.min(2 * (n - 1) - at))
            }
        }
    }
}

/// The input with `pads[a]` elements before and `pads[a + n]` after the `a`-th of `n` axes; negative pads cut off.
///
/// Source: ONNX Pad.
#[derive(Debug, Clone)]
pub struct Pad {
    /// What stands in the added elements.
    pub mode: PadMode,
    /// The pads, first all before, then all after: an attribute before opset 11, input 1 from then on.
    pub pads: Ints,
    /// The constant: an attribute before opset 11, input 2 from then on.
    pub value: Option<f32>,
    /// The axes that `pads` speaks of: input 3 from opset 18 on; all where absent.
    pub axes: Ints,
}

/// Makes a Pad.
///
/// # Errors
/// When an attribute is wrong, or `pads` is missing where it is an attribute.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let name = attrs.string("mode")?.unwrap_or_else(|| "constant".into());
    let mode = PadMode::NAMES.iter().find(|(n, _)| *n == name).map(|(_, m)| *m);
    let mode = mode.ok_or_else(|| OpError::attribute("mode", format!("is \"{name}\"")))?;
    let pads = Ints::take(attrs, "pads", 1, opset, 11)?;
    if pads == Ints::Absent {
        return Err(OpError::attribute("pads", "is missing"));
    }
    let value = if opset < 11 { attrs.float("value")? } else { None };
    Ok(Arc::new(Pad { mode, pads, value, axes: if opset >= 18 { Ints::Input(3) } else { Ints::Absent } }))
}

/// Pads in the order of all axes, zero where not named: `(before, after)` per axis.
fn spread(pads: &[i64], axes: Option<Vec<i64>>, rank: usize) -> Result<Vec<(i64, i64)>, OpError> {
    let axes = match axes {
        Some(list) => params::axes(&list, rank)?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(OpError::shape(format!("{} pads for {} axes, expected two each", pads.len(), axes.len())));
    }
    let mut out = vec![(0, 0); rank];
    for (i, &a) in axes.iter().enumerate() {
        out[a] = (pads[i], pads[i + axes.len()]);
    }
    Ok(out)
}

impl Pad {
    /// The pads before and after each axis of an input of `rank` axes, where known when types are inferred.
    ///
    /// # Errors
    /// When they do not fit the rank.
    pub fn known_pads(&self, cx: &InferCx, rank: usize) -> Result<Option<Vec<(i64, i64)>>, OpError> {
        match (self.pads.infer(cx).numbers(), self.axes.infer(cx).numbers()) {
            (Ok(Some(pads)), Ok(axes)) => spread(&pads, axes, rank).map(Some),
            _ => Ok(None),
        }
    }

    /// The pads before and after each axis of an input of `rank` axes, from the contents of inputs; `None` where those are absent
    /// that hold them.
    ///
    /// # Errors
    /// When they are no integers or do not fit the rank.
    pub fn sides(
        &self,
        rank: usize,
        input: &dyn Fn(usize) -> Option<Tensor>,
    ) -> Result<Option<Vec<(i64, i64)>>, OpError> {
        let list = |ints: &Ints| match ints {
            Ints::Input(i) => input(*i).map(|t| t.to_i64s()).transpose(),
            other => Ok(other.attr()),
        };
        let Some(pads) = list(&self.pads)? else { return Ok(None) };
        spread(&pads, list(&self.axes)?, rank).map(Some)
    }

    fn fill(&self, cx: &EvalCx, x: &Tensor) -> Result<Tensor, OpError> {
        match (self.value, cx.opt(2)) {
            (Some(v), _) if self.pads.attr().is_some() => {
                if x.dtype().is_float() {
                    return Ok(Tensor::from_f64s(x.dtype(), [1], &[f64::from(v)])?);
                }
                Ok(Tensor::from_i64s(x.dtype(), [1], &[v as i64])?)
            }
            (_, Some(t)) if t.len() == 1 && t.dtype() == x.dtype() => Ok(t.reshaped([1])?),
            (_, Some(t)) => Err(OpError::input(2, format!("{t:?}"), format!("one element of type {}", x.dtype()))),
            _ => Ok(Tensor::zeros(x.dtype(), [1])?),
        }
    }
}

impl Op for Pad {
    fn name(&self) -> &str {
        "Pad"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let Some(s) = x.shape() else { return Ok(vec![Fact::tensor(x.dtype(), None)]) };
        let shape = match self.known_pads(cx, s.len())? {
            None => params::unknown(s.len()),
            Some(pads) => s
                .iter()
                .zip(pads)
                .map(|(d, (a, b))| match (d, a.checked_add(b)) {
                    (_, None) => Dim::Unknown,
                    (d, Some(p)) if p < 0 => d.sub(&Dim::Known(p.saturating_neg())),
                    (d, Some(p)) => d.add(&Dim::Known(p)),
                })
                .collect(),
        };
        if let Some(d) = shape.iter().find(|d| d.as_known().is_some_and(|n| n < 0)) {
            return Err(OpError::shape(format!("pads leave an extent of {d}")));
        }
        Ok(vec![Fact::tensor(x.dtype(), Some(shape))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let pads = self.pads.eval(cx)?.ok_or(OpError::MissingInput(1))?;
        let pads = spread(&pads, self.axes.eval(cx)?, x.rank())?;
        let mut shape = Vec::with_capacity(x.rank());
        for (&d, &(before, after)) in x.shape().iter().zip(&pads) {
            let n = (d as i64).checked_add(before).and_then(|n| n.checked_add(after));
            let n = n.and_then(|n| usize::try_from(n).ok());
            shape.push(
                n.ok_or_else(|| OpError::shape(format!("pads {before} and {after} do not fit an extent of {d}")))?,
            );
            if d == 0 && self.mode != PadMode::Constant && n != Some(0) {
                return Err(OpError::shape("an axis without elements can only be padded with a constant"));
            }
        }
        let fill = self.fill(cx, x)?;
        let at = |a: usize, i: usize| {
            let place = (i as i64).saturating_sub(pads[a].0);
            self.mode.place(place, x.shape()[a] as i64).map(|i| i as usize)
        };
        Ok(vec![moves::remap(x, &shape, at, Some(&fill))?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_unless("mode", self.mode.name(), "constant")
            .with_opt("pads", self.pads.attr())
            .with_opt("value", self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    fn pad(mode: &str, pads: Vec<i64>) -> Result<Vec<i64>, OpError> {
        let mut attrs = AttrMap::new().with("mode", mode).with("pads", pads).with("value", 9f32);
        let op = build(10, &mut attrs)?;
        let x = Datum::Tensor(Tensor::vector(vec![1i32, 2, 3]));
        Ok(op.eval(&EvalCx::new(&[Some(&x)], 1))?[0].to_i64s()?)
    }

    #[test]
    fn fills_in_each_mode() {
        assert_eq!(pad("constant", vec![1, 2]).unwrap(), [9, 1, 2, 3, 9, 9]);
        assert_eq!(pad("reflect", vec![3, 1]).unwrap(), [2, 3, 2, 1, 2, 3, 2]);
        assert_eq!(pad("edge", vec![2, 1]).unwrap(), [1, 1, 1, 2, 3, 3]);
        assert_eq!(pad("wrap", vec![2, 4]).unwrap(), [2, 3, 1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(pad("constant", vec![-1, 1]).unwrap(), [2, 3, 9]);
    }

    #[test]
    fn refuses_pads_that_do_not_fit() {
        assert!(pad("constant", vec![1]).is_err());
        assert!(pad("constant", vec![-2, -2]).is_err());
        assert!(pad("edge", vec![i64::MAX, i64::MAX]).is_err());
        assert!(pad("edge", vec![1 << 40, 0]).is_err());
        assert!(pad("other", vec![0, 0]).is_err());
    }
}
