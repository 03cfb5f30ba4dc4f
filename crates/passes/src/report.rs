use std::collections::BTreeSet;
use std::fmt;

use crate::Stage;

/// A match that a pass recognised but left alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skipped {
    /// The node's name; in a subgraph with the names of the nodes around it in front.
    pub node: String,
    /// Why, as a sentence without a full stop.
    pub reason: String,
}

/// What one pass did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassReport {
    /// The pass.
    pub name: &'static str,
    /// Its stage.
    pub stage: Stage,
    /// How many rewrites it applied.
    pub rewrites: usize,
    /// What it left alone.
    pub skips: BTreeSet<Skipped>,
}

/// What [`crate::sanitize()`] did to a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// One entry per pass, in the order in which they run.
    pub passes: Vec<PassReport>,
    /// Nodes of the main graph before.
    pub nodes_before: usize,
    /// Nodes of the main graph after.
    pub nodes_after: usize,
    /// The version of ONNX's operator set before.
    pub opset_before: i64,
    /// The version of ONNX's operator set after.
    pub opset_after: i64,
    /// Whether the number of rewrites that was asked for is used up.
    pub stopped: bool,
}

impl Report {
    /// How many rewrites all passes applied together.
    pub fn rewrites(&self) -> usize {
        self.passes.iter().map(|p| p.rewrites).sum()
    }

    /// What a pass did.
    pub fn pass(&self, name: &str) -> Option<&PassReport> {
        self.passes.iter().find(|p| p.name == name)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} nodes -> {}", self.nodes_before, self.nodes_after)?;
        if self.opset_before != self.opset_after {
            write!(f, ", opset {} -> {}", self.opset_before, self.opset_after)?;
        }
        for p in self.passes.iter().filter(|p| p.rewrites > 0 || !p.skips.is_empty()) {
            write!(f, "\n  {}: {} rewrites", p.name, p.rewrites)?;
            for s in &p.skips {
                write!(f, "\n    skipped \"{}\": {}", s.node, s.reason)?;
            }
        }
        Ok(())
    }
}
