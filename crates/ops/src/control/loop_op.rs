//! Loop: a subgraph repeated by count and by condition.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Body, Datum, Dim, EvalCx, Fact, InferCx, Op, OpError, TensorType, ValueType, check_size};
use narrowbit_tensor::{DType, Tensor};

use super::support::{
    captured, captured_facts, condition, data, forget_shape, infer_body, join, replacement, run_body, stack, take_body,
    take_captures, tensors, type_only,
};

/// Repeats the body while the count and the condition allow it (ONNX Loop).
///
/// Node inputs: M (optional count), cond (optional boolean), the initial values of the carried
/// dependencies, the captured values. Body inputs: iteration number (i64), condition, carried
/// dependencies, captured values; body outputs: condition, carried dependencies, scan outputs, which
/// are stacked along a new first axis.
#[derive(Debug, Clone)]
pub struct Loop {
    /// One iteration.
    pub body: Body,
}

/// More iterations than this are taken for a model that never ends.
const MAX_TRIPS: i64 = 1 << 26;

/// Makes a Loop.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let captures = take_captures(attrs)?;
    let op = Loop { body: take_body(attrs, "body", captures)? };
    let (ins, outs) = (op.body.graph.inputs().len() - captures, op.body.graph.outputs().len());
    if ins < 2 || outs + 1 < ins {
        let problem = format!("has {ins} inputs and {outs} outputs, which no Loop has");
        return Err(OpError::attribute("body", problem));
    }
    Ok(Arc::new(op))
}

impl Loop {
    /// The number of loop-carried dependencies.
    pub fn carried(&self) -> usize {
        self.body.graph.inputs().len().saturating_sub(2 + self.body.captures)
    }

    /// The number of scan outputs.
    pub fn scans(&self) -> usize {
        self.body.graph.outputs().len().saturating_sub(1 + self.carried())
    }

    /// Facts of the body's inputs, the carried ones from the node's inputs.
    fn body_facts(&self, cx: &InferCx, carried: &[Fact]) -> Vec<Fact> {
        let scalar = |d| Fact::tensor(Some(d), Some(vec![]));
        let mut facts = vec![scalar(DType::I64), scalar(DType::Bool)];
        facts.extend_from_slice(carried);
        facts.extend(captured_facts(cx, self.body.captures));
        facts
    }

    /// A scan output of no iterations: its type is the only thing to go by.
    fn empty_scan(&self, ty: &ValueType) -> Result<Tensor, OpError> {
        let ty = ty.tensor().cloned().unwrap_or_default();
        let dtype =
            ty.dtype.ok_or_else(|| OpError::Unsupported("a scan output of unknown type without iterations".into()))?;
        let inner = ty.shape.unwrap_or_default();
        let mut shape = vec![0];
        shape.extend(inner.iter().map(|d| d.as_usize().unwrap_or(0)));
        Ok(Tensor::zeros(dtype, shape)?)
    }

    fn empty_scans(&self, cx: &EvalCx, carried: &[Datum]) -> Result<Vec<Datum>, OpError> {
        let fact = |d: &Datum| d.tensor().map_or_else(Fact::default, |t| Fact::tensor(Some(t.dtype()), Some(dims(t))));
        let carried: Vec<Fact> = carried.iter().map(fact).collect();
        let captured: Vec<Fact> = captured(cx, self.body.captures)?.iter().map(fact).collect();
        let none = InferCx::new(&[], 0);
        let mut facts = self.body_facts(&none, &carried);
        facts.truncate(2 + carried.len());
        facts.extend(captured);
        let outs = infer_body(&self.body, facts)?;
        outs.iter().skip(1 + carried.len()).map(|f| Ok(Datum::Tensor(self.empty_scan(&f.ty)?))).collect()
    }
}

fn dims(t: &Tensor) -> Vec<Dim> {
    t.shape().iter().map(|&d| d.into()).collect()
}

impl Op for Loop {
    fn name(&self) -> &str {
        "Loop"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let n = self.carried();
        let initial: Vec<Fact> = (0..n).map(|i| type_only(cx.opt(2 + i))).collect();
        let outs = infer_body(&self.body, self.body_facts(cx, &initial))?;
        let next: Vec<ValueType> = initial.iter().zip(outs.iter().skip(1)).map(|(a, b)| join(&a.ty, &b.ty)).collect();
        // A carried value that changes its type makes everything inferred from the first one a guess.
        let stable = next.iter().zip(&initial).all(|(a, b)| *a == b.ty);
        let carried = next.into_iter().map(|t| if stable { t } else { forget_shape(&t) });
        let scans = outs.iter().skip(1 + n).map(|f| match (&f.ty, stable) {
            (ValueType::Tensor(TensorType { dtype, shape: Some(s) }), true) => {
                let mut shape = vec![Dim::Unknown];
                shape.extend_from_slice(s);
                ValueType::Tensor(TensorType { dtype: *dtype, shape: Some(shape) })
            }
            (t, _) => forget_shape(t),
        });
        Ok(carried.chain(scans).map(|ty| Fact { ty, ..Fact::default() }).collect())
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        tensors(self.eval_data(cx)?)
    }

    fn eval_data(&self, cx: &EvalCx) -> Result<Vec<Datum>, OpError> {
        let trips = match cx.opt(0) {
            None => i64::MAX,
            Some(m) => match m.to_i64s()?.as_slice() {
                [m] => *m,
                _ => return Err(OpError::input(0, format!("of shape {:?}", m.shape()), "a single integer")),
            },
        };
        let mut go = cx.opt(1).map_or(Ok(true), |c| condition(c, 1))?;
        let n = self.carried();
        if cx.len() != 2 + n + self.body.captures {
            return Err(OpError::Value(format!(
                "the body carries {n} values and captures {}, the node has {} inputs",
                self.body.captures,
                cx.len()
            )));
        }
        let mut carried = data(cx, 2, 2 + n)?;
        let captured = captured(cx, self.body.captures)?;
        let mut scans: Vec<Vec<Tensor>> = vec![Vec::new(); self.scans()];
        let mut i = 0i64;
        while go && i < trips {
            if i >= MAX_TRIPS {
                return Err(OpError::Unsupported(format!("a loop of more than {MAX_TRIPS} iterations")));
            }
            let mut ins = vec![Datum::Tensor(Tensor::scalar(i)), Datum::Tensor(Tensor::from_bools([], vec![go])?)];
            ins.append(&mut carried);
            ins.extend_from_slice(&captured);
            let mut outs = run_body(&self.body, &ins, 1 + n + scans.len())?.into_iter();
            go = match outs.next() {
                Some(Datum::Tensor(c)) => condition(&c, 0)?,
                _ => return Err(OpError::Value("the body's condition is no tensor".into())),
            };
            carried = outs.by_ref().take(n).collect();
            for (scan, t) in scans.iter_mut().zip(tensors(outs.collect())?) {
                // The stacked result must be allowed before its parts are kept.
                let mut all = vec![scan.len() + 1];
                all.extend_from_slice(t.shape());
                check_size(t.dtype(), &all)?;
                scan.push(t);
            }
            i += 1;
        }
        if i == 0 && !scans.is_empty() {
            let empty = self.empty_scans(cx, &carried)?;
            return Ok(carried.into_iter().chain(empty).collect());
        }
        for scan in &scans {
            carried.push(Datum::Tensor(stack(scan, 0)?));
        }
        Ok(carried)
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }

    fn bodies(&self) -> Vec<(&'static str, &Body)> {
        vec![("body", &self.body)]
    }

    fn with_bodies(&self, bodies: Vec<Body>) -> Option<Arc<dyn Op>> {
        let [body] = replacement(bodies)?;
        Some(Arc::new(Loop { body }))
    }
}
