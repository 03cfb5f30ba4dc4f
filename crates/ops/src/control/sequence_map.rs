//! SequenceMap: a subgraph applied to each element of a sequence.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Body, Datum, EvalCx, Fact, InferCx, Op, OpError, ValueType};
use narrowbit_tensor::Tensor;

use super::sequence::sequence;
use super::support::{
    captured, captured_facts, forget_shape, infer_body, replacement, run_body, take_body, take_captures, tensors,
};

/// Applies the body to the elements of the first input, a sequence; further inputs are sequences of
/// the same length, taken element by element, or tensors; one sequence per body output (ONNX SequenceMap 17).
#[derive(Debug, Clone)]
pub struct SequenceMap {
    /// Applied to each element.
    pub body: Body,
}

/// Makes a SequenceMap.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let captures = take_captures(attrs)?;
    Ok(Arc::new(SequenceMap { body: take_body(attrs, "body", captures)? }))
}

impl Op for SequenceMap {
    fn name(&self) -> &str {
        "SequenceMap"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let n = cx.len().saturating_sub(self.body.captures);
        let element = |i: usize| match cx.opt(i).map(|f| &f.ty) {
            // Elements may differ in shape from each other.
            Some(ValueType::Sequence(t)) => Fact { ty: (**t).clone(), ..Fact::default() },
            Some(t) => Fact { ty: t.clone(), ..Fact::default() },
            None => Fact::default(),
        };
        let mut ins: Vec<Fact> = (0..n).map(element).collect();
        ins.extend(captured_facts(cx, self.body.captures));
        let outs = infer_body(&self.body, ins)?;
        let of = |f: Fact| Fact { ty: ValueType::Sequence(Box::new(forget_shape(&f.ty))), ..Fact::default() };
        Ok(outs.into_iter().map(of).collect())
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        tensors(self.eval_data(cx)?)
    }

    fn eval_data(&self, cx: &EvalCx) -> Result<Vec<Datum>, OpError> {
        let len = sequence(cx, 0)?.len();
        let captured = captured(cx, self.body.captures)?;
        let n = cx.len() - captured.len();
        let outputs = self.body.graph.outputs().len();
        let mut out: Vec<Vec<Datum>> = vec![Vec::with_capacity(len); outputs];
        for at in 0..len {
            let mut ins = Vec::with_capacity(cx.len());
            for i in 0..n {
                ins.push(match cx.datum(i).ok_or(OpError::MissingInput(i))? {
                    Datum::Sequence(s) => s.get(at).cloned().ok_or_else(|| {
                        OpError::Value(format!("input {i} has {} elements, input 0 has {len}", s.len()))
                    })?,
                    other => other.clone(),
                });
            }
            ins.extend_from_slice(&captured);
            for (o, t) in out.iter_mut().zip(tensors(run_body(&self.body, &ins, outputs)?)?) {
                o.push(Datum::Tensor(t));
            }
        }
        Ok(out.into_iter().map(Datum::Sequence).collect())
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }

    fn bodies(&self) -> Vec<(&'static str, &Body)> {
        vec![("body", &self.body)]
    }

    fn with_bodies(&self, bodies: Vec<Body>) -> Option<Arc<dyn Op>> {
        let [body] = replacement(bodies)?;
        Some(Arc::new(SequenceMap { body }))
    }
}
