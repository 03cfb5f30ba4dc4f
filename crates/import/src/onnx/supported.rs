use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use narrowbit_ir::{Attr, Function, Graph, Model, Opaque};
use narrowbit_ops::Registry;

/// An operator that narrowbit can't run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingOperator {
    /// Its domain; empty for ONNX's own.
    pub domain: String,
    /// Its name.
    pub name: String,
    /// The nodes that apply it.
    pub nodes: Vec<String>,
}

/// All operators of a model that narrowbit can't run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingOperators(pub Vec<MissingOperator>);

impl std::error::Error for MissingOperators {}

impl fmt::Display for MissingOperators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        writeln!(f, "the model uses {} operator(s) that narrowbit can't run:", self.0.len())?;
        for op in &self.0 {
            let domain = if op.domain.is_empty() { String::new() } else { format!("{}.", op.domain) };
            let shown: Vec<String> = op.nodes.iter().take(SHOWN).map(|n| format!("\"{n}\"")).collect();
            let more = op.nodes.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            writeln!(f, "  {domain}{} in node(s) {}{more}", op.name, shown.join(", "))?;
        }
        f.write_str("help: cut the model before these nodes, or replace them by operators that narrowbit knows")
    }
}

/// Checks that each operator of the model can be run, subgraphs and called functions included.
///
/// # Errors
/// All operators that can't, each with its nodes.
pub fn check_supported(model: &Model) -> Result<(), MissingOperators> {
    let mut search = Search { model, missing: BTreeMap::new(), seen: BTreeSet::new(), called: Vec::new() };
    search.graph(&model.graph, true);
    while let Some(f) = search.called.pop() {
        search.graph(&f.graph, false);
    }
    let missing = search.missing.into_iter().map(|((domain, name), nodes)| MissingOperator { domain, name, nodes });
    let missing: Vec<MissingOperator> = missing.collect();
    if missing.is_empty() { Ok(()) } else { Err(MissingOperators(missing)) }
}

struct Search<'a> {
    model: &'a Model,
    missing: BTreeMap<(String, String), Vec<String>>,
    /// Functions that are called, and those of them that are still to be looked into.
    seen: BTreeSet<(&'a str, &'a str)>,
    called: Vec<&'a Function>,
}

impl<'a> Search<'a> {
    /// In functions nothing is `built`: all nodes are opaque until they are inlined, and what counts is whether
    /// the operator is known.
    fn graph(&mut self, graph: &'a Graph, built: bool) {
        for (_, node) in graph.nodes() {
            for (_, body) in node.op.bodies() {
                self.graph(&body.graph, built);
            }
            let Some(op) = node.op.downcast::<Opaque>() else { continue };
            let subgraphs = op.attrs.iter().filter_map(|(_, a)| match a {
                Attr::Graph(g) => Some(g),
                _ => None,
            });
            subgraphs.for_each(|g| self.graph(g, built));
            if self.function(op) || !built && Registry::knows(&op.domain, &op.name) {
                continue;
            }
            self.missing.entry((op.domain.clone(), op.name.clone())).or_default().push(node.name.clone());
        }
    }

    /// Whether an operator is a function of the model, which is then looked into once.
    fn function(&mut self, op: &'a Opaque) -> bool {
        let called = |f: &&Function| f.domain == op.domain && f.name == op.name;
        let functions = &self.model.functions;
        let known = functions.iter().any(|f| called(&f));
        if known && self.seen.insert((&op.domain, &op.name)) {
            self.called.extend(functions.iter().filter(called));
        }
        known
    }
}
