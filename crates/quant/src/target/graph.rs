//! What a float graph holds of what targets mind.

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::{Graph, Node, NodeId, ValueId};

use crate::approach::Approach;
use crate::op_types::RECURRENT;
use crate::options::{Matcher, Override, QuantOptions};

/// The nodes of a graph that have an approach.
pub(super) struct Part<'a> {
    pub options: &'a QuantOptions,
    pub approach: Approach,
    pub graph: &'a Graph,
    /// Those of a mixture; otherwise all have it. With the exceptions that are about each.
    own: Option<BTreeMap<NodeId, Vec<&'a Override>>>,
}

impl<'a> Part<'a> {
    /// The nodes of a graph that have an approach with these settings. Patterns that can't be read are about no node: the plan
    /// refuses them.
    pub fn new(options: &'a QuantOptions, approach: Approach, graph: &'a Graph) -> Part<'a> {
        let matcher = Matcher::new(&options.overrides).ok().filter(|_| options.is_mixture());
        let own = matcher.map(|m| {
            let own = graph.nodes().filter(|(_, n)| options.approach_of(&m, n) == approach);
            own.map(|(id, n)| (id, m.of(n).collect())).collect()
        });
        Part { options, approach, graph, own }
    }

    /// The nodes.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &'a Node)> {
        self.graph.nodes().filter(|(id, _)| self.own.as_ref().is_none_or(|own| own.contains_key(id)))
    }

    /// Whether no node that could be quantized has the approach.
    pub fn is_empty(&self) -> bool {
        let fits = |n: &Node| {
            self.approach.is_half()
                || n.op.name() == "Gather"
                || RECURRENT.contains(&n.op.name())
                || matches!(n.op.quant(), narrowbit_ir::QuantRole::Weighted { .. })
        };
        self.own.is_some() && !self.nodes().any(|(_, n)| fits(n))
    }

    /// The settings that nodes have: those of exceptions, or of the whole job.
    pub fn settings<T: Copy + PartialEq>(&self, of: impl Fn(&Override) -> Option<T>, usual: T) -> Vec<T> {
        let all: Vec<T> = match &self.own {
            None => self.options.overrides.iter().filter_map(&of).chain([usual]).collect(),
            Some(own) => own.values().map(|o| o.iter().find_map(|o| of(o)).unwrap_or(usual)).collect(),
        };
        let mut distinct = Vec::new();
        all.into_iter().for_each(|t| {
            if !distinct.contains(&t) {
                distinct.push(t);
            }
        });
        distinct
    }

    /// Whether there is an operator of a type.
    pub fn has(&self, op: &str) -> bool {
        self.nodes().any(|(_, n)| n.op.name() == op)
    }

    /// Whether operators of a type are quantized, as far as types tell.
    pub fn quantizes(&self, op: &str) -> bool {
        let options = self.options;
        let named = self.own.is_some() || options.op_types.is_empty() || options.op_types.iter().any(|t| t == op);
        let out = |o: &Override| o.float == Some(true) && o.op_type.as_deref() == Some(op);
        let left = options.overrides.iter().any(|o| out(o) && o.name.is_none() && o.regex.is_none());
        named && !left && (self.own.is_none() || self.has(op))
    }
}

/// Whether a MatMul is quantized, as far as operator types tell.
pub(super) fn multiplies(part: &Part) -> bool {
    part.quantizes("MatMul") && part.has("MatMul")
}

/// Whether there is an operator of a type.
fn has(graph: &Graph, op: &str) -> bool {
    graph.nodes().any(|(_, n)| n.op.name() == op)
}

/// The depths of products with a constant matrix.
pub(super) fn depths(part: &Part) -> impl Iterator<Item = usize> {
    let products =
        part.nodes().filter(|(_, n)| matches!(n.op.name(), "MatMul" | "Gemm") && part.quantizes(n.op.name()));
    products.filter_map(|(id, n)| {
        let axis = usize::from(n.op.attrs().int_or("transB", 0) == Ok(1));
        part.graph.const_input(id, 1)?.shape().get(axis).copied()
    })
}

/// Whether a convolution and a MaxPool are in a graph, or a convolution whose results another product reads as they are.
pub(super) fn hands_on_codes(graph: &Graph) -> bool {
    const MOVES: [&str; 6] = ["Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];
    let mut plain = BTreeSet::new();
    let mut convolves = false;
    for (_, n) in graph.nodes() {
        let from = n.input(0).is_some_and(|v| plain.contains(&v));
        match n.op.name() {
            "Conv" | "Gemm" | "MatMul" if from => return true,
            "Conv" => {
                convolves = true;
                plain.extend(n.output(0));
            }
            name if from && MOVES.contains(&name) => plain.extend(n.output(0)),
            _ => {}
        }
    }
    convolves && has(graph, "MaxPool")
}

/// Whether a convolution reads what a Concat makes, perhaps behind a function or a pool.
pub(super) fn convolves_joined(graph: &Graph) -> bool {
    const BETWEEN: [&str; 5] = ["BatchNormalization", "Clip", "LeakyRelu", "MaxPool", "Relu"];
    let mut joined = BTreeSet::new();
    for (_, n) in graph.nodes() {
        let from = n.input(0).is_some_and(|v| joined.contains(&v));
        if from && matches!(n.op.name(), "Conv" | "ConvTranspose") {
            return true;
        }
        if n.op.name() == "Concat" || from && BETWEEN.contains(&n.op.name()) {
            joined.extend(n.output(0));
        }
    }
    false
}

/// Whether a Concat joins a convolution's output, perhaps moved, with something else, as the class token of a vision
/// transformer and its patches.
pub(super) fn joins_codes(part: &Part) -> bool {
    let graph = part.graph;
    const MOVES: [&str; 6] = ["Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"];
    const MOST: usize = 8;
    let from_conv = |v: ValueId| {
        let producer = |v: ValueId| graph.producer(v).map(|(id, _)| graph.node(id));
        let mut at = producer(v);
        for _ in 0..MOST {
            let Some(node) = at else { return false };
            match node.op.name() {
                "Conv" | "ConvTranspose" => return true,
                name if MOVES.contains(&name) => at = node.input(0).and_then(producer),
                _ => return false,
            }
        }
        false
    };
    let joins = |n: &narrowbit_ir::Node| {
        let (of_conv, others) = n.inputs.iter().flatten().partition::<Vec<ValueId>, _>(|&&v| from_conv(v));
        n.op.name() == "Concat" && !of_conv.is_empty() && !others.is_empty()
    };
    part.quantizes("Conv") && graph.nodes().any(|(_, n)| joins(n))
}

/// Whether a Gather reads a constant table.
pub(super) fn has_table(part: &Part) -> bool {
    part.nodes().any(|(id, n)| n.op.name() == "Gather" && part.graph.const_input(id, 0).is_some_and(|t| t.rank() == 2))
}
