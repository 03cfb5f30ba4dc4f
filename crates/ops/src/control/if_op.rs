//! If: one of two subgraphs.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Body, Datum, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::support::{
    captured, captured_facts, condition, infer_body, join, replacement, run_body, take_body, take_captures, tensors,
};

/// The outputs of `then_branch` where the condition holds, else those of `else_branch` (ONNX If).
///
/// Node inputs: the condition (one boolean), then the captured values of both branches.
#[derive(Debug, Clone)]
pub struct If {
    /// Runs where the condition is true.
    pub then_branch: Body,
    /// Runs where it is false.
    pub else_branch: Body,
}

/// Makes an If.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let captures = take_captures(attrs)?;
    let then_branch = take_body(attrs, "then_branch", captures)?;
    let else_branch = take_body(attrs, "else_branch", captures)?;
    let (t, e) = (then_branch.graph.outputs().len(), else_branch.graph.outputs().len());
    if t != e {
        return Err(OpError::attribute("else_branch", format!("has {e} outputs, then_branch has {t}")));
    }
    Ok(Arc::new(If { then_branch, else_branch }))
}

impl If {
    fn branch(&self, taken: bool) -> &Body {
        if taken { &self.then_branch } else { &self.else_branch }
    }
}

impl Op for If {
    fn name(&self) -> &str {
        "If"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let facts = || captured_facts(cx, self.then_branch.captures);
        if let Some(c) = cx.value(0) {
            return infer_body(self.branch(condition(c, 0)?), facts());
        }
        let (t, e) = (infer_body(&self.then_branch, facts())?, infer_body(&self.else_branch, facts())?);
        Ok(t.iter().zip(&e).map(|(t, e)| Fact { ty: join(&t.ty, &e.ty), ..Fact::default() }).collect())
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        tensors(self.eval_data(cx)?)
    }

    fn eval_data(&self, cx: &EvalCx) -> Result<Vec<Datum>, OpError> {
        let body = self.branch(condition(cx.get(0)?, 0)?);
        run_body(body, &captured(cx, body.captures)?, cx.n_outputs())
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }

    fn bodies(&self) -> Vec<(&'static str, &Body)> {
        vec![("then_branch", &self.then_branch), ("else_branch", &self.else_branch)]
    }

    fn with_bodies(&self, bodies: Vec<Body>) -> Option<Arc<dyn Op>> {
        let [then_branch, else_branch] = replacement(bodies)?;
        Some(Arc::new(If { then_branch, else_branch }))
    }
}
