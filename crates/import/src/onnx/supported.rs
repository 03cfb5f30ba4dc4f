use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use narrowbit_ir::{Graph, Model, Opaque};

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
    let mut search = Search { model, missing: BTreeMap::new(), seen: BTreeSet::new() };
    search.graph(&model.graph);
    let missing: Vec<MissingOperator> =
        search.missing.into_iter().map(|((domain, name), nodes)| MissingOperator { domain, name, nodes }).collect();
    if missing.is_empty() { Ok(()) } else { Err(MissingOperators(missing)) }
}

struct Search<'a> {
    model: &'a Model,
    missing: BTreeMap<(String, String), Vec<String>>,
    seen: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> Search<'a> {
    fn graph(&mut self, graph: &'a Graph) {
        for (_, node) in graph.nodes() {
            for (_, body) in node.op.bodies() {
                self.graph(&body.graph);
            }
            let Some(op) = node.op.downcast::<Opaque>() else { continue };
            let called = |f: &&narrowbit_ir::Function| f.domain == op.domain && f.name == op.name;
            if self.model.functions.iter().any(|f| called(&f)) {
                if self.seen.insert((&op.domain, &op.name)) {
                    self.model.functions.iter().filter(called).for_each(|f| self.function(&f.graph));
                }
                continue;
            }
            self.missing.entry((op.domain.clone(), op.name.clone())).or_default().push(node.name.clone());
        }
    }

    /// In functions all nodes are opaque until they are inlined: what counts is whether the operator is known.
    fn function(&mut self, graph: &'a Graph) {
        for (_, node) in graph.nodes() {
            let Some(op) = node.op.downcast::<Opaque>() else { continue };
            for (_, attr) in op.attrs.iter() {
                if let narrowbit_ir::Attr::Graph(g) = attr {
                    self.function(g);
                }
            }
            let called = |f: &&narrowbit_ir::Function| f.domain == op.domain && f.name == op.name;
            if self.model.functions.iter().any(|f| called(&f)) {
                if self.seen.insert((&op.domain, &op.name)) {
                    self.model.functions.iter().filter(called).for_each(|f| self.function(&f.graph));
                }
            } else if !narrowbit_ops::Registry::knows(&op.domain, &op.name) {
                self.missing.entry((op.domain.clone(), op.name.clone())).or_default().push(node.name.clone());
            }
        }
    }
}
