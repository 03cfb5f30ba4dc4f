//! The reductions: ReduceL1, L2, LogSum, LogSumExp, Max, Mean, Min, Prod, Sum and SumSquare.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole, check_size};
use narrowbit_tensor::{DType, Tensor, shape};

use super::axes::{keepdims, mask};

/// Which function a [`Reduce`] computes over the elements that it combines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `Σ |x|`
    L1,
    /// `√Σ x²`
    L2,
    /// `ln Σ x`
    LogSum,
    /// `ln Σ e^x`
    LogSumExp,
    /// The greatest; NaN if there is one.
    Max,
    /// The arithmetic mean.
    Mean,
    /// The least; NaN if there is one.
    Min,
    /// The product.
    Prod,
    /// The sum.
    Sum,
    /// `Σ x²`
    SumSquare,
}

/// Combines all elements along some axes; numeric types (Max and Min also booleans), output of the same type.
///
/// Floating-point types are accumulated in `f64` and rounded once, integers wrap around.
/// The axes are an attribute until opset 17 (ReduceSum: 12), the optional input 1 from then on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reduce {
    /// The function.
    pub kind: Kind,
    /// The axes where they are an attribute.
    pub axes: Option<Vec<i64>>,
    /// Whether reduced axes stay, with extent 1.
    pub keepdims: bool,
    /// Whether no axes mean that nothing is combined, instead of everything.
    pub noop_with_empty_axes: bool,
}

impl Reduce {
    /// Makes the operator from its attributes.
    ///
    /// # Errors
    /// When an attribute has another kind than the operator defines.
    pub fn build(kind: Kind, _opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
        Ok(Arc::new(Reduce {
            kind,
            axes: attrs.ints("axes")?,
            keepdims: keepdims(attrs)?,
            noop_with_empty_axes: attrs.flag("noop_with_empty_axes")?,
        }))
    }

    /// For each dimension whether it is combined.
    fn reduced(&self, axes: &[i64], rank: usize) -> Result<Vec<bool>, OpError> {
        if axes.is_empty() { Ok(vec![!self.noop_with_empty_axes; rank]) } else { mask(axes, rank) }
    }

    /// The axes where they are known; an absent input is known to hold none.
    fn known_axes(&self, cx: &InferCx) -> Option<Vec<i64>> {
        match (&self.axes, cx.opt(1)) {
            (Some(a), _) => Some(a.clone()),
            (None, None) => Some(Vec::new()),
            (None, Some(f)) => f.value.as_ref()?.to_i64s().ok(),
        }
    }

    fn shape_without(&self, dims: &[Dim], reduced: &[bool]) -> Vec<Dim> {
        let each = dims.iter().zip(reduced);
        each.filter(|&(_, &r)| !r || self.keepdims).map(|(d, &r)| if r { Dim::Known(1) } else { d.clone() }).collect()
    }

    /// The element that a shape computation is reduced to.
    fn combine(&self, dims: &[Dim]) -> Option<Dim> {
        let known: Option<Vec<i64>> = dims.iter().map(Dim::as_known).collect();
        match self.kind {
            Kind::Prod => Some(Dim::product(dims)),
            Kind::Sum => Some(dims.iter().fold(Dim::Known(0), |n, d| n.add(d))),
            Kind::Max => known?.into_iter().max().map(Dim::Known),
            Kind::Min => known?.into_iter().min().map(Dim::Known),
            _ => None,
        }
    }
}

/// What a floating-point reduction does: a start, a step per element, an end.
fn reduce_floats(kind: Kind, x: &[f64], plan: &Plan) -> Vec<f64> {
    let count = plan.count as f64;
    let nan_or = |keep: bool, m: f64, v: f64| if m.is_nan() || !(keep || v.is_nan()) { m } else { v };
    match kind {
        Kind::L1 => plan.fold(x, 0.0, |s, v| s + v.abs()),
        Kind::L2 => plan.fold(x, 0.0, |s, v| s + v * v).into_iter().map(f64::sqrt).collect(),
        Kind::LogSum => plan.fold(x, 0.0, |s, v| s + v).into_iter().map(f64::ln).collect(),
        Kind::LogSumExp => {
            plan.fold(x, (f64::NEG_INFINITY, 0.0), log_sum_exp).into_iter().map(|(m, s)| m + s.ln()).collect()
        }
        Kind::Max => plan.fold(x, f64::NEG_INFINITY, |m, v| nan_or(v > m, m, v)),
        Kind::Min => plan.fold(x, f64::INFINITY, |m, v| nan_or(v < m, m, v)),
        Kind::Mean => plan.fold(x, 0.0, |s, v| s + v).into_iter().map(|s| s / count).collect(),
        Kind::Prod => plan.fold(x, 1.0, |p, v| p * v),
        Kind::Sum => plan.fold(x, 0.0, |s, v| s + v),
        Kind::SumSquare => plan.fold(x, 0.0, |s, v| s + v * v),
    }
}

/// One step of `max + ln Σ e^(x - max)`: the maximum so far and the sum relative to it.
fn log_sum_exp((max, sum): (f64, f64), x: f64) -> (f64, f64) {
    if x == f64::NEG_INFINITY {
        (max, sum)
    } else if x == max {
        (max, sum + 1.0)
    } else if x < max {
        (max, sum + (x - max).exp())
    } else {
        (x, sum * (max - x).exp() + 1.0)
    }
}

/// Integers in wrapping `i64`, booleans as 0 and 1; `None` for functions that need floating point.
fn reduce_ints(kind: Kind, dtype: DType, x: &[i64], plan: &Plan) -> Option<Vec<i64>> {
    let (low, high) = match dtype.int_range() {
        // Order is kept by moving the u64 range to that of i64.
        Some(_) if dtype == DType::U64 => (i64::MIN, i64::MAX),
        Some((low, high)) => (low as i64, high as i64),
        None => (0, 1),
    };
    let flip = if dtype == DType::U64 { i64::MIN } else { 0 };
    let restore = |v: Vec<i64>| v.into_iter().map(|v| v ^ flip).collect();
    Some(match kind {
        Kind::L1 if dtype.is_signed_int() => plan.fold(x, 0i64, |s, v| s.wrapping_add(v.wrapping_abs())),
        Kind::L1 | Kind::Sum => plan.fold(x, 0i64, i64::wrapping_add),
        Kind::Max => restore(plan.fold(x, low, |m, v| m.max(v ^ flip))),
        Kind::Min => restore(plan.fold(x, high, |m, v| m.min(v ^ flip))),
        Kind::Mean if plan.count == 0 => return None,
        Kind::Mean => {
            let sums = plan.fold(x, 0i128, |s, v| s + if flip == 0 { i128::from(v) } else { i128::from(v as u64) });
            sums.into_iter().map(|s| (s / plan.count as i128) as i64).collect()
        }
        Kind::Prod => plan.fold(x, 1i64, i64::wrapping_mul),
        Kind::SumSquare => plan.fold(x, 0i64, |s, v| s.wrapping_add(v.wrapping_mul(v))),
        Kind::L2 | Kind::LogSum | Kind::LogSumExp => return None,
    })
}

/// Which elements of a shape are combined into which of the output.
struct Plan {
    /// All dimensions but the last.
    outer: Vec<usize>,
    /// Strides of the output along them.
    strides: Vec<usize>,
    /// The last extent.
    inner: usize,
    /// Whether the last dimension is combined.
    inner_reduced: bool,
    /// Elements of the output.
    len: usize,
    /// Elements combined into each.
    count: usize,
}

impl Plan {
    /// `kept` is `dims` with 1 where `reduced`; it has `len` elements.
    fn new(dims: &[usize], reduced: &[bool], kept: &[usize], len: usize) -> Plan {
        let mut strides = shape::strides(kept);
        strides.iter_mut().zip(reduced).filter(|(_, r)| **r).for_each(|(s, _)| *s = 0);
        let count = dims.iter().zip(reduced).filter(|(_, r)| **r).fold(1usize, |n, (&d, _)| n.saturating_mul(d));
        let (inner, outer) = dims.split_last().map_or((1, dims), |(&last, rest)| (last, rest));
        strides.truncate(outer.len());
        let inner_reduced = reduced.last().copied().unwrap_or(false);
        Plan { outer: outer.to_vec(), strides, inner, inner_reduced, len, count }
    }

    fn fold<T: Copy, A: Copy>(&self, x: &[T], start: A, f: impl Fn(A, T) -> A) -> Vec<A> {
        let mut acc = vec![start; self.len];
        if x.is_empty() {
            return acc;
        }
        for (row, at) in x.chunks(self.inner).zip(shape::offsets(&self.outer, &self.strides)) {
            if self.inner_reduced {
                acc[at] = row.iter().fold(acc[at], |a, &v| f(a, v));
            } else {
                acc[at..].iter_mut().zip(row).for_each(|(a, &v)| *a = f(*a, v));
            }
        }
        acc
    }
}

impl Op for Reduce {
    fn name(&self) -> &str {
        match self.kind {
            Kind::L1 => "ReduceL1",
            Kind::L2 => "ReduceL2",
            Kind::LogSum => "ReduceLogSum",
            Kind::LogSumExp => "ReduceLogSumExp",
            Kind::Max => "ReduceMax",
            Kind::Mean => "ReduceMean",
            Kind::Min => "ReduceMin",
            Kind::Prod => "ReduceProd",
            Kind::Sum => "ReduceSum",
            Kind::SumSquare => "ReduceSumSquare",
        }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let Some(dims) = x.shape() else { return Ok(vec![Fact::tensor(x.dtype(), None)]) };
        let Some(axes) = self.known_axes(cx) else {
            let unknown = self.keepdims.then(|| vec![Dim::Unknown; dims.len()]);
            return Ok(vec![Fact::tensor(x.dtype(), unknown)]);
        };
        let reduced = self.reduced(&axes, dims.len())?;
        let fact = Fact::tensor(x.dtype(), Some(self.shape_without(dims, &reduced)));
        let content = match &x.dims {
            Some(d) if reduced == [true] => self.combine(d).map(|d| vec![d]),
            _ => None,
        };
        Ok(vec![fact.with_dims(content)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let axes = match (&self.axes, cx.opt(1)) {
            (Some(a), _) => a.clone(),
            (None, Some(t)) => t.to_i64s()?,
            (None, None) => Vec::new(),
        };
        let reduced = self.reduced(&axes, x.rank())?;
        let kept: Vec<usize> = x.shape().iter().zip(&reduced).map(|(&d, &r)| if r { 1 } else { d }).collect();
        let out: Vec<usize> =
            kept.iter().zip(&reduced).filter(|&(_, &r)| !r || self.keepdims).map(|(&d, _)| d).collect();
        let plan = Plan::new(x.shape(), &reduced, &kept, check_size(DType::F64, &kept)?);
        let order = matches!(self.kind, Kind::Max | Kind::Min);
        let y = match x.dtype() {
            d if d.is_float() => Tensor::from_f64s(d, out, &reduce_floats(self.kind, &x.to_f64s()?, &plan))?,
            d if d.is_int() || d == DType::Bool && order => match reduce_ints(self.kind, d, &x.to_i64s()?, &plan) {
                Some(y) => Tensor::from_i64s(d, out, &y)?,
                None => {
                    let y = reduce_floats(self.kind, &x.to_f64s()?, &plan);
                    Tensor::from_i64s(d, out, &y.into_iter().map(|v| v as i64).collect::<Vec<_>>())?
                }
            },
            d => return Err(OpError::input(0, d.name(), "a numeric type")),
        };
        Ok(vec![y])
    }

    fn quant(&self) -> QuantRole {
        match self.kind {
            Kind::Mean => QuantRole::Arithmetic { same_scale: false },
            _ => QuantRole::Float,
        }
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_opt("axes", self.axes.clone())
            .with_unless("keepdims", i64::from(self.keepdims), 1)
            .with_unless("noop_with_empty_axes", i64::from(self.noop_with_empty_axes), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    fn reduce(kind: Kind, axes: Option<Vec<i64>>) -> Reduce {
        Reduce { kind, axes, keepdims: false, noop_with_empty_axes: false }
    }

    fn run(op: &Reduce, x: Tensor) -> Result<Tensor, OpError> {
        Ok(op.eval(&EvalCx::new(&[Some(&Datum::Tensor(x))], 1))?.remove(0))
    }

    #[test]
    fn combines_inner_outer_and_middle_axes() {
        let x = Tensor::new([2, 2, 2], (1..=8).map(|v| v as f32).collect()).unwrap();
        let sum = |axes: &[i64]| run(&reduce(Kind::Sum, Some(axes.to_vec())), x.clone()).unwrap().to_f64s().unwrap();
        assert_eq!(sum(&[0]), [6.0, 8.0, 10.0, 12.0]);
        assert_eq!(sum(&[1]), [4.0, 6.0, 12.0, 14.0]);
        assert_eq!(sum(&[-1]), [3.0, 7.0, 11.0, 15.0]);
        assert_eq!(sum(&[0, 2]), [14.0, 22.0]);
        assert_eq!(sum(&[]), [36.0]);
    }

    #[test]
    fn gives_the_neutral_element_of_empty_sets() {
        let x = Tensor::zeros(DType::F32, [2, 0]).unwrap();
        let on = |kind| run(&reduce(kind, Some(vec![1])), x.clone()).unwrap().to_f64s().unwrap()[0];
        assert_eq!(on(Kind::Max), f64::NEG_INFINITY);
        assert_eq!(on(Kind::LogSumExp), f64::NEG_INFINITY);
        assert_eq!((on(Kind::Sum), on(Kind::Prod)), (0.0, 1.0));
        assert!(on(Kind::Mean).is_nan());
    }

    #[test]
    fn keeps_integers_exact_and_unsigned_order() {
        let x = Tensor::vector(vec![u64::MAX, 1, 2]);
        let on = |kind| run(&reduce(kind, None), x.clone()).unwrap();
        assert_eq!(on(Kind::Max), Tensor::scalar(u64::MAX));
        assert_eq!(on(Kind::Min), Tensor::scalar(1u64));
        assert_eq!(on(Kind::Sum), Tensor::scalar(2u64));
        assert_eq!(on(Kind::Mean), Tensor::scalar(((u128::from(u64::MAX) + 3) / 3) as u64));
    }

    #[test]
    fn propagates_nan_and_infinities() {
        let x = Tensor::vector(vec![1f32, f32::NAN, 3.0]);
        assert!(run(&reduce(Kind::Max, None), x).unwrap().to_f64s().unwrap()[0].is_nan());
        let x = Tensor::vector(vec![f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY]);
        assert_eq!(run(&reduce(Kind::LogSumExp, None), x), Ok(Tensor::scalar(f32::INFINITY)));
    }

    #[test]
    fn multiplies_symbols_of_a_shape() {
        let x = Fact::tensor(Some(DType::I64), Some(vec![Dim::Known(2)]))
            .with_dims(Some(vec![Dim::sym("n"), Dim::Known(3)]));
        let out = reduce(Kind::Prod, None).infer(&InferCx::new(&[Some(&x)], 1)).unwrap();
        assert_eq!(out[0].dims, Some(vec![Dim::Known(3).mul(&Dim::sym("n"))]));
        assert!(reduce(Kind::Prod, Some(vec![1])).infer(&InferCx::new(&[Some(&x)], 1)).is_err());
    }
}
