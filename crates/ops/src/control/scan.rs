//! Scan: a subgraph applied to successive slices of its inputs, with state.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Body, Datum, Dim, EvalCx, Fact, InferCx, Op, OpError, TensorType, ValueType, check_size};
use narrowbit_tensor::Tensor;

use super::support::{
    axis, captured, captured_facts, concat, data, forget_shape, index_axis, infer_body, join, replacement, run_body,
    stack, take_body, take_captures, tensors, type_only,
};

/// Applies the body to slices of the scan inputs in turn, carrying state (ONNX Scan 8 and 9+).
///
/// Node inputs: (opset 8 only: optional sequence lengths,) initial states, scan inputs, captured
/// values. Body inputs: states, one slice of each scan input, captured values; body outputs: states,
/// one slice of each scan output. In opset 8 everything has a batch dimension in front and axis 1 is
/// scanned.
#[derive(Debug, Clone)]
pub struct Scan {
    /// One step.
    pub body: Body,
    /// How many inputs are scanned.
    pub num_scan_inputs: usize,
    /// For each scan input, 1 to walk backwards (opset 8: `directions`); empty is all forward.
    pub input_directions: Vec<i64>,
    /// For each scan output, 1 to prepend instead of append; empty is all append.
    pub output_directions: Vec<i64>,
    /// The axis that each scan input is walked along; empty is 0.
    pub input_axes: Vec<i64>,
    /// The axis that each scan output is stacked along; empty is 0.
    pub output_axes: Vec<i64>,
    /// Whether this is the form of opset 8.
    pub batched: bool,
}

/// Makes a Scan.
pub fn build(opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let captures = take_captures(attrs)?;
    let body = take_body(attrs, "body", captures)?;
    let n = attrs.int("num_scan_inputs")?.ok_or_else(|| OpError::attribute("num_scan_inputs", "is missing"))?;
    let inputs = body.graph.inputs().len() - captures;
    let num_scan_inputs = usize::try_from(n).ok().filter(|&n| n <= inputs);
    let Some(num_scan_inputs) = num_scan_inputs else {
        return Err(OpError::attribute("num_scan_inputs", format!("is {n}, but the body has {inputs} inputs")));
    };
    let batched = opset < 9;
    let mut list = |name: &str| Ok::<_, OpError>(attrs.ints(name)?.unwrap_or_default());
    let op = Scan {
        num_scan_inputs,
        input_directions: list(if batched { "directions" } else { "scan_input_directions" })?,
        output_directions: if batched { vec![] } else { list("scan_output_directions")? },
        input_axes: if batched { vec![] } else { list("scan_input_axes")? },
        output_axes: if batched { vec![] } else { list("scan_output_axes")? },
        body,
        batched,
    };
    op.check()?;
    Ok(Arc::new(op))
}

impl Scan {
    /// The number of states.
    pub fn states(&self) -> usize {
        self.body.graph.inputs().len().saturating_sub(self.body.captures + self.num_scan_inputs)
    }

    /// The number of scan outputs.
    pub fn scan_outputs(&self) -> usize {
        self.body.graph.outputs().len().saturating_sub(self.states())
    }

    /// The position of the first state among the node's inputs.
    fn first(&self) -> usize {
        usize::from(self.batched)
    }

    fn check(&self) -> Result<(), OpError> {
        if self.body.graph.outputs().len() < self.states() {
            return Err(OpError::attribute("body", format!("has fewer outputs than its {} states", self.states())));
        }
        let (ins, outs) = (self.num_scan_inputs, self.scan_outputs());
        let lists = [
            ("scan_input_directions", &self.input_directions, ins),
            ("scan_output_directions", &self.output_directions, outs),
            ("scan_input_axes", &self.input_axes, ins),
            ("scan_output_axes", &self.output_axes, outs),
        ];
        for (name, list, n) in lists {
            if !list.is_empty() && list.len() != n {
                return Err(OpError::attribute(name, format!("has {} elements, {n} are expected", list.len())));
            }
        }
        Ok(())
    }

    /// Runs the body over `scans`, whose scanned axes are `axes`, for `steps` steps.
    fn steps(
        &self,
        mut states: Vec<Datum>,
        scans: &[&Tensor],
        axes: &[usize],
        steps: usize,
        captured: &[Datum],
    ) -> Result<(Vec<Datum>, Vec<Vec<Tensor>>), OpError> {
        let (n, k) = (self.states(), self.scan_outputs());
        let mut outs: Vec<Vec<Tensor>> = vec![Vec::new(); k];
        for i in 0..steps {
            let mut ins = std::mem::take(&mut states);
            for (j, (t, &a)) in scans.iter().zip(axes).enumerate() {
                let back = self.input_directions.get(j) == Some(&1);
                ins.push(Datum::Tensor(index_axis(t, a, if back { steps - 1 - i } else { i })?));
            }
            ins.extend_from_slice(captured);
            let mut made = run_body(&self.body, &ins, n + k)?.into_iter();
            states = made.by_ref().take(n).collect();
            for (out, t) in outs.iter_mut().zip(tensors(made.collect())?) {
                let mut all = vec![out.len() + 1];
                all.extend_from_slice(t.shape());
                check_size(t.dtype(), &all)?;
                out.push(t);
            }
        }
        for (out, d) in outs.iter_mut().zip(&self.output_directions) {
            if *d == 1 {
                out.reverse();
            }
        }
        Ok((states, outs))
    }

    /// The slices of a scan output, stacked; the declared type where there are none.
    fn stacked(&self, i: usize, slices: &[Tensor]) -> Result<Tensor, OpError> {
        let Some(first) = slices.first() else {
            let value = self.body.graph.outputs().get(self.states() + i).map(|&v| self.body.graph.value(v).ty.clone());
            let ty = value.as_ref().and_then(ValueType::tensor).cloned().unwrap_or_default();
            let dtype =
                ty.dtype.ok_or_else(|| OpError::Unsupported("a scan output of unknown type without steps".into()))?;
            let mut shape: Vec<usize> =
                ty.shape.unwrap_or_default().iter().map(|d| d.as_usize().unwrap_or(0)).collect();
            shape.insert(self.output_axis(i, shape.len())?, 0);
            return Ok(Tensor::zeros(dtype, shape)?);
        };
        stack(slices, self.output_axis(i, first.rank())?)
    }

    fn output_axis(&self, i: usize, rank: usize) -> Result<usize, OpError> {
        axis(self.output_axes.get(i).copied().unwrap_or(0), rank + 1, "scan_output_axes")
    }

    fn eval_9(&self, cx: &EvalCx) -> Result<Vec<Datum>, OpError> {
        let n = self.states();
        let scans = (n..n + self.num_scan_inputs).map(|i| cx.get(i)).collect::<Result<Vec<_>, _>>()?;
        let axes = scans
            .iter()
            .enumerate()
            .map(|(i, t)| axis(self.input_axes.get(i).copied().unwrap_or(0), t.rank(), "scan_input_axes"))
            .collect::<Result<Vec<_>, _>>()?;
        let steps = lengths(&scans, &axes)?;
        let (mut out, made) = self.steps(data(cx, 0, n)?, &scans, &axes, steps, &captured(cx, self.body.captures)?)?;
        for (i, slices) in made.iter().enumerate() {
            out.push(Datum::Tensor(self.stacked(i, slices)?));
        }
        Ok(out)
    }

    fn eval_8(&self, cx: &EvalCx) -> Result<Vec<Datum>, OpError> {
        let (n, k) = (self.states(), self.scan_outputs());
        let scans = (1 + n..1 + n + self.num_scan_inputs).map(|i| cx.get(i)).collect::<Result<Vec<_>, _>>()?;
        let initial = (1..1 + n).map(|i| cx.get(i)).collect::<Result<Vec<_>, _>>()?;
        let batch = lengths(&scans, &vec![0; scans.len()])?;
        if scans.iter().any(|t| t.rank() < 2) || initial.iter().any(|t| t.shape().first() != Some(&batch)) {
            return Err(OpError::shape(format!(
                "a scan of batch {batch} needs the batch first in all states and inputs"
            )));
        }
        let longest = lengths(&scans, &vec![1; scans.len()])?;
        let lens = match cx.opt(0) {
            None => vec![longest; batch],
            Some(t) => t.to_i64s()?.iter().map(|&l| usize::try_from(l).map_or(longest, |l| l.min(longest))).collect(),
        };
        if lens.len() != batch {
            return Err(OpError::shape(format!("{} sequence lengths for a batch of {batch}", lens.len())));
        }
        let captured = captured(cx, self.body.captures)?;
        let mut columns: Vec<Vec<Tensor>> = vec![Vec::new(); n + k];
        for (b, &len) in lens.iter().enumerate() {
            let at = |t: &&Tensor| index_axis(t, 0, b);
            let states = initial.iter().map(|t| Ok(Datum::Tensor(at(t)?))).collect::<Result<Vec<_>, OpError>>()?;
            let slices = scans.iter().map(at).collect::<Result<Vec<_>, _>>()?;
            let refs: Vec<&Tensor> = slices.iter().collect();
            let (states, made) = self.steps(states, &refs, &vec![0; refs.len()], len, &captured)?;
            let ends = tensors(states)?;
            let made = made.iter().enumerate().map(|(i, s)| pad_first(self.stacked(i, s)?, longest));
            let row = ends.into_iter().map(Ok).chain(made).collect::<Result<Vec<_>, OpError>>()?;
            columns.iter_mut().zip(row).for_each(|(c, t)| c.push(t));
        }
        columns.iter().map(|c| Ok(Datum::Tensor(stack(c, 0)?))).collect()
    }
}

/// The common extent of the scanned axes.
fn lengths(scans: &[&Tensor], axes: &[usize]) -> Result<usize, OpError> {
    let found: Vec<usize> = scans.iter().zip(axes).map(|(t, &a)| t.shape().get(a).copied().unwrap_or(0)).collect();
    match found.as_slice() {
        [] => Err(OpError::attribute("num_scan_inputs", "is 0, but something must be scanned")),
        [first, rest @ ..] if rest.iter().all(|l| l == first) => Ok(*first),
        _ => Err(OpError::shape(format!("the scanned axes have different extents: {found:?}"))),
    }
}

/// Zeros added at the end of the first axis.
fn pad_first(t: Tensor, to: usize) -> Result<Tensor, OpError> {
    let mut shape = t.shape().to_vec();
    let Some(missing) = shape.first().and_then(|&n| to.checked_sub(n)).filter(|&n| n > 0) else { return Ok(t) };
    shape[0] = missing;
    check_size(t.dtype(), &shape)?;
    let zeros = Tensor::zeros(t.dtype(), shape)?;
    concat(&[t, zeros], 0)
}

/// A type without the axis `a`.
fn without(fact: &Fact, a: Option<i64>) -> Fact {
    let ValueType::Tensor(TensorType { dtype, shape }) = &fact.ty else { return Fact::default() };
    let shape = shape.as_ref().zip(a).and_then(|(s, a)| {
        let mut s = s.clone();
        s.remove(narrowbit_tensor::shape::axis(a, s.len())?);
        Some(s)
    });
    Fact::tensor(*dtype, shape)
}

impl Op for Scan {
    fn name(&self) -> &str {
        "Scan"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let (n, first) = (self.states(), self.first());
        let scanned = |i: usize| cx.opt(first + n + i);
        let axis_in = |i: usize| Some(self.input_axes.get(i).copied().unwrap_or(0));
        let batch = |f: Fact| if self.batched { without(&f, Some(0)) } else { f };
        let initial: Vec<Fact> = (0..n).map(|i| batch(type_only(cx.opt(first + i)))).collect();
        let mut ins = initial.clone();
        ins.extend((0..self.num_scan_inputs).map(|i| without(&batch(type_only(scanned(i))), axis_in(i))));
        ins.extend(captured_facts(cx, self.body.captures));
        let outs = infer_body(&self.body, ins)?;
        let next: Vec<ValueType> = initial.iter().zip(&outs).map(|(a, b)| join(&a.ty, &b.ty)).collect();
        let stable = next.iter().zip(&initial).all(|(a, b)| *a == b.ty);
        if self.batched || !stable {
            // Opset 8 is too rare to be worth more than the element types.
            let tys = next.iter().chain(outs.iter().skip(n).map(|f| &f.ty));
            return Ok(tys.map(|t| Fact { ty: forget_shape(t), ..Fact::default() }).collect());
        }
        let steps = (0..self.num_scan_inputs).find_map(|i| {
            let s = scanned(i)?.shape()?;
            s.get(narrowbit_tensor::shape::axis(axis_in(i)?, s.len())?).cloned()
        });
        let scans = outs.iter().skip(n).enumerate().map(|(i, f)| match &f.ty {
            ValueType::Tensor(TensorType { dtype, shape: Some(s) }) => {
                let at = self.output_axis(i, s.len())?;
                let mut s = s.clone();
                s.insert(at, steps.clone().unwrap_or(Dim::Unknown));
                Ok(Fact::tensor(*dtype, Some(s)))
            }
            t => Ok(Fact { ty: forget_shape(t), ..Fact::default() }),
        });
        next.into_iter().map(|ty| Ok(Fact { ty, ..Fact::default() })).chain(scans).collect()
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        tensors(self.eval_data(cx)?)
    }

    fn eval_data(&self, cx: &EvalCx) -> Result<Vec<Datum>, OpError> {
        if self.batched { self.eval_8(cx) } else { self.eval_9(cx) }
    }

    fn attrs(&self) -> AttrMap {
        let list = |v: &Vec<i64>| (!v.is_empty()).then(|| v.clone());
        let directions = if self.batched { "directions" } else { "scan_input_directions" };
        AttrMap::new()
            .with("num_scan_inputs", self.num_scan_inputs as i64)
            .with_opt(directions, list(&self.input_directions))
            .with_opt("scan_output_directions", list(&self.output_directions))
            .with_opt("scan_input_axes", list(&self.input_axes))
            .with_opt("scan_output_axes", list(&self.output_axes))
    }

    fn bodies(&self) -> Vec<(&'static str, &Body)> {
        vec![("body", &self.body)]
    }

    fn with_bodies(&self, bodies: Vec<Body>) -> Option<Arc<dyn Op>> {
        let [body] = replacement(bodies)?;
        Some(Arc::new(Scan { body, ..self.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_tensor::DType;

    #[test]
    fn pads_short_scans_with_zeros() {
        let t = pad_first(Tensor::vector(vec![1i32, 2]), 3).unwrap();
        assert_eq!(t.to_i64s().unwrap(), [1, 2, 0]);
        assert_eq!(pad_first(Tensor::zeros(DType::F32, [2]).unwrap(), 2).unwrap().len(), 2);
    }

    #[test]
    fn refuses_scans_of_different_lengths() {
        let (a, b) = (Tensor::vector(vec![1f32]), Tensor::vector(vec![1f32, 2.0]));
        assert!(lengths(&[&a, &b], &[0, 0]).is_err());
        assert!(lengths(&[], &[]).is_err());
    }
}
