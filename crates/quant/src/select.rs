//! Which nodes the approaches without calibration work on: products with a constant weight, and tables.

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::{Model, Node, NodeId, QuantRole};
use narrowbit_tensor::{DType, Tensor};

use crate::approach::Approach;
use crate::op_types;
use crate::options::{Matcher, QuantOptions};
use crate::plan::{Kind, Layout, Reason, all_finite};
use crate::quantize::{QuantizeError, facts, refuse_quantized};

/// What is worked on, and why the rest is not.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    /// Products with a constant weight, in topological order.
    pub products: Vec<NodeId>,
    /// Gathers from a constant table, in topological order.
    pub tables: Vec<NodeId>,
    /// Recurrent operators with constant weights, in topological order.
    pub recurrent: Vec<NodeId>,
    /// Why each other node stays as it is.
    pub reasons: BTreeMap<NodeId, Reason>,
}

/// Selects the nodes of an approach among the operator types that the user names, or else among `usual`.
///
/// # Errors
/// When the model is quantized already, or an override can't be read.
pub(crate) fn select(
    model: &Model,
    options: &QuantOptions,
    approach: Approach,
    usual: &[&str],
) -> Result<Selection, QuantizeError> {
    op_types::check_weights(&options.op_types)?;
    refuse_quantized(&model.graph)?;
    let mut options = options.clone();
    let matcher_of = options.clone();
    let matcher = Matcher::new(&matcher_of.overrides)?;
    if options.op_types.is_empty() {
        options.op_types = usual.iter().chain(&op_types::RECURRENT).map(ToString::to_string).collect();
    }
    let layout = Layout::new(&model.graph, &facts(model)?, &options, approach)?;
    let mut found =
        Selection { products: Vec::new(), tables: Vec::new(), recurrent: Vec::new(), reasons: BTreeMap::new() };
    for (id, node) in model.graph.nodes() {
        if op_types::RECURRENT.contains(&node.op.name()) && node.op.domain().is_empty() {
            let own = options.approach_of(&matcher, node) == approach;
            let weights = || recurrent_weights(model, id);
            match if own {
                options.selects(&matcher, node).and_then(|()| weights())
            } else {
                Err(Reason::OtherApproach)
            } {
                Ok(()) => found.recurrent.push(id),
                Err(reason) => drop(found.reasons.insert(id, reason)),
            }
            continue;
        }
        match layout.kinds.get(&id) {
            Some(Kind::Embedding) => found.tables.push(id),
            Some(Kind::Product) => match weight(model, id, node) {
                Ok(_) => found.products.push(id),
                Err(reason) => {
                    found.reasons.insert(id, reason);
                }
            },
            _ => {
                let weighted = matches!(node.op.quant(), QuantRole::Weighted { .. }) || node.op.name() == "Gather";
                let said = layout.reasons.get(&id).copied();
                let reason = match said {
                    Some(Reason::NotFloatData) => Reason::NotFloatData,
                    Some(reason) if weighted => reason,
                    _ => Reason::NoWeight,
                };
                found.reasons.insert(id, reason);
            }
        }
    }
    Ok(found)
}

impl Selection {
    /// Whether nothing is selected.
    pub fn is_empty(&self) -> bool {
        self.products.is_empty() && self.tables.is_empty() && self.recurrent.is_empty()
    }

    /// The selection, if it is of anything.
    ///
    /// # Errors
    /// Why it is of nothing.
    pub fn filled(self, model: &Model) -> Result<Selection, QuantizeError> {
        if !self.is_empty() {
            return Ok(self);
        }
        let weighted = |id: &NodeId| matches!(model.graph.node(*id).op.quant(), QuantRole::Weighted { .. });
        let products = || self.reasons.iter().filter(|(id, _)| weighted(id));
        let text = match products().map(|(_, r)| r).max() {
            // Who has convolutions alone learns here that they have to be asked for.
            Some(r @ Reason::TypeNotSelected) => {
                let types: BTreeSet<&str> = products().map(|(&id, _)| model.graph.node(id).op.name()).collect();
                format!(" ({r}; those with weights are {})", types.into_iter().collect::<Vec<_>>().join(", "))
            }
            Some(r) => format!(" ({r})"),
            None => String::new(),
        };
        Err(QuantizeError::Nothing(text))
    }
}

/// Whether both weights of a recurrent operator, W and R, are constant matrices by direction.
fn recurrent_weights(model: &Model, id: NodeId) -> Result<(), Reason> {
    [1, 2].into_iter().try_for_each(|i| match model.graph.const_input(id, i) {
        None => Err(Reason::WeightNotConstant),
        Some(w) if w.dtype() != DType::F32 => Err(Reason::NotFloatData),
        Some(w) if w.rank() != 3 || w.is_empty() => Err(Reason::Form),
        Some(w) if !all_finite(w) => Err(Reason::WeightNotFinite),
        Some(_) => Ok(()),
    })
}

/// The constant weight of a product: a matrix, or the windows of a convolution.
fn weight<'a>(model: &'a Model, id: NodeId, node: &Node) -> Result<&'a Tensor, Reason> {
    let QuantRole::Weighted { weight, .. } = node.op.quant() else { return Err(Reason::Form) };
    let w = model.graph.const_input(id, weight).ok_or(Reason::WeightNotConstant)?;
    let fits = match node.op.name() {
        "MatMul" | "Gemm" => w.rank() == 2,
        "Conv" => w.rank() >= 3,
        _ => false,
    };
    if fits && !w.is_empty() { Ok(w) } else { Err(Reason::Form) }
}

#[cfg(test)]
mod tests {
    use narrowbit_ir::text;
    use narrowbit_ops::Registry;

    use super::*;
    use crate::options::Override;

    fn model() -> Model {
        let text = r#"model opset=21 graph "g" {
            input %x: f32[n, 8] input %i: i64[n] input %p: f32[n, 1, 8, 8]
            const %w: f32[8, 8] = random(1) const %t: f32[1024, 8] = random(2) const %k: f32[2, 1, 3, 3] = random(3)
            %a = MatMul(%x, %w) @"first"
            %e = Gather(%t, %i) @"table"
            %b = Gemm(%a, %w) {transB=1} @"second"
            %s = MatMul(%a, %b) @"scores"
            %c = Conv(%p, %k) @"conv"
            %r = Relu(%b) @"relu"
            output %r output %e output %s output %c
        }"#;
        text::parse_model(text, &Registry).unwrap()
    }

    fn names(model: &Model, ids: &[NodeId]) -> Vec<String> {
        ids.iter().map(|&id| model.graph.node(id).name.clone()).collect()
    }

    fn reason(model: &Model, s: &Selection, name: &str) -> Option<&'static str> {
        s.reasons.get(&model.graph.node_named(name).unwrap()).map(|r| r.code())
    }

    #[test]
    fn takes_products_with_weights_and_tables_and_says_why_not_the_others() {
        let m = model();
        let s = select(&m, &QuantOptions::default(), Approach::Static, &["MatMul", "Gemm", "Gather"]).unwrap();
        assert_eq!(names(&m, &s.products), ["first", "second"]);
        assert_eq!(names(&m, &s.tables), ["table"]);
        assert_eq!(reason(&m, &s, "scores"), Some("weight-not-constant"));
        assert_eq!(reason(&m, &s, "conv"), Some("type-not-selected"));
        assert_eq!(reason(&m, &s, "relu"), Some("no-weight"));
    }

    #[test]
    fn follows_types_and_exceptions_of_the_user() {
        let m = model();
        let excluded = Override { name: Some("first".into()), float: Some(true), ..Override::default() };
        let options = QuantOptions {
            op_types: vec!["MatMul".into(), "Conv".into()],
            overrides: vec![excluded],
            ..QuantOptions::default()
        };
        let s = select(&m, &options, Approach::Static, &["MatMul", "Gemm", "Gather"]).unwrap();
        assert_eq!(names(&m, &s.products), ["conv"]);
        assert!(s.tables.is_empty());
        assert_eq!(reason(&m, &s, "first"), Some("excluded"));
        assert_eq!(reason(&m, &s, "second"), Some("type-not-selected"));
        let none = QuantOptions { op_types: vec!["Relu".into()], ..QuantOptions::default() };
        let found = select(&m, &none, Approach::Static, &[]).unwrap();
        let Err(QuantizeError::Nothing(why)) = found.filled(&m) else { panic!("it has no Relu with weights") };
        assert_eq!(why, " (its type is not among --op-types; those with weights are Conv, Gemm, MatMul)");
    }
}
