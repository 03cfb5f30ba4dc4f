//! Slice: a range with a step along each of some axes.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::Tensor;

use super::moves;
use super::params::{self, Ints, Known};

/// `x[start:end:step]` along each named axis, with numpy's clamping; any type. Source: ONNX Slice.
#[derive(Debug, Clone)]
pub struct Slice {
    /// The first index per axis: an attribute before opset 10, input 1 from then on.
    pub starts: Ints,
    /// The index after the last per axis: an attribute before opset 10, input 2 from then on.
    pub ends: Ints,
    /// The axes: an attribute before opset 10, input 3 from then on; the first ones where absent.
    pub axes: Ints,
    /// The steps: input 4 from opset 10 on; 1 where absent.
    pub steps: Ints,
}

/// Makes a Slice.
///
/// # Errors
/// When an attribute is no list of integers, or `starts` or `ends` is missing where it is an attribute.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let required = |ints: Ints, name| match ints {
        Ints::Absent => Err(OpError::attribute(name, "is missing")),
        ints => Ok(ints),
    };
    Ok(Arc::new(Slice {
        starts: required(Ints::take(attrs, "starts", 1, opset, 10)?, "starts")?,
        ends: required(Ints::take(attrs, "ends", 2, opset, 10)?, "ends")?,
        axes: Ints::take(attrs, "axes", 3, opset, 10)?,
        steps: if opset >= 10 { Ints::Input(4) } else { Ints::Absent },
    }))
}

/// The part of one axis that is taken: `n` elements from `start` on, `step` apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first index.
    pub start: usize,
    /// The distance between elements, not 0.
    pub step: i64,
    /// The number of elements.
    pub n: usize,
}

impl Run {
    /// The part `start:end:step` of an axis of `extent` elements; negative bounds count from the back.
    ///
    /// # Errors
    /// When the step is 0.
    pub fn new(extent: usize, start: i64, end: i64, step: i64) -> Result<Run, OpError> {
        let extent = extent as i64;
        let wrap = |i: i64| if i < 0 { i.saturating_add(extent) } else { i };
        let (lo, hi) = match step {
            0 => return Err(OpError::Value("a step is 0".into())),
            1.. => (0, extent),
            _ => (-1, extent - 1),
        };
        let end = wrap(end).clamp(lo, hi);
        let start = wrap(start).clamp(0.min(hi), hi.max(0));
        let span = if step > 0 { end - start } else { start - end };
        let n = if span <= 0 || extent == 0 { 0 } else { (span as u64).div_ceil(step.unsigned_abs()) as usize };
        Ok(Run { start: start.max(0) as usize, step, n })
    }

    /// The index of the element at `i` of the result.
    pub fn at(&self, i: usize) -> usize {
        (self.start as i64).saturating_add(self.step.saturating_mul(i as i64)).max(0) as usize
    }
}

/// The extent after slicing, where symbols allow to say it. A symbol stands for an extent that is at least 1
/// and covers the part that is asked for.
fn extent(d: &Dim, start: &Dim, end: &Dim, step: &Dim) -> Result<Dim, OpError> {
    const OPEN: i64 = i32::MAX as i64;
    if let (Some(d), Some(s), Some(e), Some(step)) = (d.as_usize(), start.as_known(), end.as_known(), step.as_known()) {
        return Ok(Run::new(d, s, e, step)?.n.into());
    }
    let (Dim::Known(1), Some(s)) = (step, start.as_known()) else {
        let whole =
            matches!((start, end, step), (Dim::Known(s), Dim::Known(e), Dim::Known(-1)) if *s == -1 && *e < -OPEN);
        return Ok(if whole { d.clone() } else { Dim::Unknown });
    };
    Ok(match (d, end) {
        (Dim::Sym(_), Dim::Known(e)) if *e >= OPEN && s >= 0 => d.sub(start),
        (Dim::Sym(_), Dim::Known(e)) if *e >= OPEN && s == -1 => Dim::Known(1),
        (Dim::Sym(_), Dim::Known(e)) if *e >= OPEN && s < -OPEN => d.clone(),
        (Dim::Sym(_), Dim::Known(e)) if s >= 0 && *e < 0 => d.sub(&Dim::Known(e.saturating_neg())).sub(start),
        (Dim::Sym(_), Dim::Known(1)) if s == 0 => Dim::Known(1),
        (_, Dim::Sym(_)) if s >= 0 => end.sub(start),
        _ => Dim::Unknown,
    })
}

impl Slice {
    fn infer_shape(&self, cx: &InferCx, s: &[Dim]) -> Result<Vec<Dim>, OpError> {
        let mut out = s.to_vec();
        let starts = self.starts.infer(cx);
        let Ok(axes) = self.axes.infer(cx).numbers() else { return Ok(params::unknown(s.len())) };
        let n = match (&starts, &axes) {
            (Known::Dims(d), _) => d.len(),
            (_, Some(a)) => a.len(),
            _ => return Ok(params::unknown(s.len())),
        };
        let axes = axes.unwrap_or_else(|| (0..n.min(s.len() + 1) as i64).collect());
        let part = |k: Known, i: usize, default: Dim| match k {
            Known::Dims(d) => d.get(i).cloned().unwrap_or(default),
            Known::Absent => default,
            Known::Unknown => Dim::Unknown,
        };
        for (i, a) in params::axes(&axes, s.len())?.into_iter().enumerate() {
            let start = part(starts.clone(), i, Dim::Unknown);
            let end = part(self.ends.infer(cx), i, Dim::Unknown);
            let step = part(self.steps.infer(cx), i, Dim::Known(1));
            out[a] = extent(&s[a], &start, &end, &step)?;
        }
        Ok(out)
    }

    /// The part of a small vector whose contents are extents.
    fn infer_contents(&self, cx: &InferCx, contents: &[Dim]) -> Option<Vec<Dim>> {
        let one = |p: &Ints| match p.infer(cx).numbers() {
            Ok(Some(v)) if v.len() == 1 => Some(v[0]),
            _ => None,
        };
        let step = match self.steps.infer(cx) {
            Known::Absent => 1,
            _ => one(&self.steps)?,
        };
        let run = Run::new(contents.len(), one(&self.starts)?, one(&self.ends)?, step).ok()?;
        Some((0..run.n).map(|i| contents[run.at(i)].clone()).collect())
    }
}

/// The part of each axis of `shape` that a slice takes; `axes` may be left out, `steps` too.
///
/// # Errors
/// When the lists differ in length, an axis is wrong or a step is 0.
pub fn runs(
    shape: &[usize],
    starts: &[i64],
    ends: &[i64],
    axes: Option<Vec<i64>>,
    steps: Option<Vec<i64>>,
) -> Result<Vec<Run>, OpError> {
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()].iter().any(|&n| n != starts.len()) {
        let message =
            format!("{} starts, {} ends, {} axes, {} steps", starts.len(), ends.len(), axes.len(), steps.len());
        return Err(OpError::shape(message));
    }
    let mut out: Vec<Run> = shape.iter().map(|&n| Run { start: 0, step: 1, n }).collect();
    for (i, a) in params::axes(&axes, shape.len())?.into_iter().enumerate() {
        out[a] = Run::new(shape[a], starts[i], ends[i], steps[i])?;
    }
    Ok(out)
}

impl Op for Slice {
    fn name(&self) -> &str {
        "Slice"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let shape = x.shape().map(|s| self.infer_shape(cx, s)).transpose()?;
        let contents = match (&x.dims, x.shape()) {
            (Some(d), Some([_])) => self.infer_contents(cx, d),
            _ => None,
        };
        Ok(vec![Fact::tensor(x.dtype(), shape).with_dims(contents)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let starts = self.starts.eval(cx)?.ok_or(OpError::MissingInput(1))?;
        let ends = self.ends.eval(cx)?.ok_or(OpError::MissingInput(2))?;
        let runs = runs(x.shape(), &starts, &ends, self.axes.eval(cx)?, self.steps.eval(cx)?)?;
        let shape: Vec<usize> = runs.iter().map(|r| r.n).collect();
        Ok(vec![moves::remap(x, &shape, |a, i| Some(runs[a].at(i)), None)?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_opt("starts", self.starts.attr())
            .with_opt("ends", self.ends.attr())
            .with_opt("axes", self.axes.attr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(extent: usize, start: i64, end: i64, step: i64) -> Vec<usize> {
        let run = Run::new(extent, start, end, step).unwrap();
        (0..run.n).map(|i| run.at(i)).collect()
    }

    #[test]
    fn clamps_like_numpy() {
        assert_eq!(taken(4, 1, 100, 2), [1, 3]);
        assert_eq!(taken(4, -1, i64::MIN, -1), [3, 2, 1, 0]);
        assert_eq!(taken(4, 100, 0, -3), [3]);
        assert_eq!(taken(4, i64::MIN, i64::MAX, i64::MAX), [0]);
        assert_eq!(taken(4, i64::MAX, i64::MIN, i64::MIN), [3]);
        assert_eq!(taken(4, 3, 1, 1), []);
        assert_eq!(taken(0, 0, 5, 1), []);
        assert_eq!(taken(0, -1, -5, -1), []);
        assert!(Run::new(4, 0, 1, 0).is_err());
    }

    #[test]
    fn slices_symbolic_extents() {
        let seq = Dim::sym("seq");
        let get = |s: i64, e: Dim| extent(&seq, &Dim::Known(s), &e, &Dim::Known(1)).unwrap().to_string();
        assert_eq!(get(0, Dim::Known(i64::MAX)), "seq");
        assert_eq!(get(1, Dim::Known(i64::MAX)), "seq - 1");
        assert_eq!(get(0, Dim::Known(-1)), "seq - 1");
        assert_eq!(get(-1, Dim::Known(i64::MAX)), "1");
        assert_eq!(get(i64::MIN, Dim::Known(i64::MAX)), "seq");
        assert_eq!(get(-5, Dim::Known(i64::MAX)), "?");
        assert_eq!(get(0, Dim::Known(7)), "?");
        assert_eq!(extent(&Dim::Known(512), &Dim::Known(0), &seq, &Dim::Known(1)).unwrap(), seq);
    }
}
