//! What a pass is, and what it sees and edits.

use std::collections::BTreeSet;

use narrowbit_ir::infer::{self, Facts};
use narrowbit_ir::{Graph, NodeId, OpError, Patch};
use narrowbit_tensor::TensorError;

use crate::{PassError, SanitizeOptions, Skipped, View};

/// When a pass runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Brings the file into one form: one operator set, no functions, no constant chains.
    Prepare,
    /// Removes and merges what costs time and changes nothing.
    Sanitize,
    /// Recognises functions that are written in primitive operators, then does what would hide them.
    Fuse,
    /// Makes a clean model easier to quantize; only by [`crate::equalize()`].
    Equalize,
}

/// A named rewrite of graphs.
pub trait Pass: Sync {
    /// The name, for reports and flags: `batchnorm-into-conv`.
    fn name(&self) -> &'static str;

    /// When it runs.
    fn stage(&self) -> Stage;

    /// What it does, when it applies, the numerical effect and an example, as Markdown.
    fn doc(&self) -> &'static str;

    /// The opset of the newest operator that it makes; models below it are raised when it applies.
    fn opset(&self) -> i64 {
        13
    }

    /// Rewrites one graph; subgraphs are graphs of their own, given one by one.
    ///
    /// # Errors
    /// When an edit does not fit the graph.
    fn run(&self, cx: &mut PassCx) -> Result<(), PassError>;
}

/// Declares a pass: its documentation is the doc comment, its body a rule that is tried at each node.
macro_rules! pass {
    ($(#[doc = $doc:literal])* $name:ident = $text:literal, $stage:ident $(@ $opset:literal)?, $rule:path) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl $crate::Pass for $name {
            fn name(&self) -> &'static str {
                $text
            }

            fn stage(&self) -> $crate::Stage {
                $crate::Stage::$stage
            }

            fn doc(&self) -> &'static str {
                concat!($($doc, "\n"),*)
            }

            $(fn opset(&self) -> i64 {
                $opset
            })?

            fn run(&self, cx: &mut $crate::PassCx) -> Result<(), $crate::PassError> {
                cx.rewrite(self, $rule)
            }
        }
    };
}
pub(crate) use pass;

/// Why a rule gives no edit at a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// The node is not what the rule looks for.
    No,
    /// It is, but the rule must not apply; the reason goes into the report.
    Skip(String),
}

impl From<OpError> for Miss {
    fn from(e: OpError) -> Miss {
        Miss::Skip(e.to_string())
    }
}

impl From<TensorError> for Miss {
    fn from(e: TensorError) -> Miss {
        Miss::Skip(e.to_string())
    }
}

/// What a rule finds.
pub type Found<T> = Result<T, Miss>;

/// Goes on only where the condition holds.
///
/// # Errors
/// [`Miss::No`] where it does not.
pub fn when(condition: bool) -> Found<()> {
    if condition { Ok(()) } else { Err(Miss::No) }
}

/// Goes on only where the condition holds; the report says why not.
///
/// # Errors
/// [`Miss::Skip`] where it does not.
pub fn unless_skipped(condition: bool, reason: impl Into<String>) -> Found<()> {
    if condition { Ok(()) } else { Err(Miss::Skip(reason.into())) }
}

/// Lets `?` leave a rule where there is nothing.
pub trait OrNo<T> {
    /// The content.
    ///
    /// # Errors
    /// [`Miss::No`] where there is none.
    fn or_no(self) -> Found<T>;
}

impl<T> OrNo<T> for Option<T> {
    fn or_no(self) -> Found<T> {
        self.ok_or(Miss::No)
    }
}

/// Sweeps of one pass over one graph before it gives up reaching a fixed point.
const MAX_SWEEPS: usize = 16;

/// One graph with what is known of it, and the record of what a pass does to it.
pub struct PassCx<'a> {
    pub(crate) graph: &'a mut Graph,
    pub(crate) facts: Facts,
    pub(crate) stale: bool,
    pub(crate) opset: i64,
    pub(crate) options: &'a SanitizeOptions,
    pub(crate) place: &'a str,
    /// Rewrites that may still be applied.
    pub(crate) budget: &'a mut usize,
    pub(crate) rewrites: usize,
    pub(crate) skips: BTreeSet<Skipped>,
}

impl PassCx<'_> {
    /// The graph.
    pub fn graph(&self) -> &Graph {
        self.graph
    }

    /// The options.
    pub fn options(&self) -> &SanitizeOptions {
        self.options
    }

    /// The graph and what is known of it.
    pub fn view(&mut self) -> View<'_> {
        self.refresh();
        View { graph: self.graph, facts: &self.facts, opset: self.opset, options: self.options }
    }

    /// Whether no further rewrite may be applied.
    pub fn stopped(&self) -> bool {
        *self.budget == 0
    }

    /// Records a match that is left alone.
    pub fn skip(&mut self, node: &str, reason: impl Into<String>) {
        self.skips.insert(Skipped { node: format!("{}{node}", self.place), reason: reason.into() });
    }

    /// Applies one rewrite and counts it.
    ///
    /// # Errors
    /// When it does not fit the graph.
    pub fn apply(&mut self, pass: &dyn Pass, patch: Patch) -> Result<(), PassError> {
        self.graph.apply(patch).map_err(|error| PassError::Patch { pass: pass.name(), error })?;
        self.count(1);
        Ok(())
    }

    /// Removes nodes that nobody reads, as one rewrite.
    pub fn remove_dead(&mut self) {
        if !self.stopped() && self.graph.remove_dead() > 0 {
            self.count(1);
        }
    }

    fn count(&mut self, n: usize) {
        self.rewrites += n;
        self.stale = true;
        *self.budget = self.budget.saturating_sub(n);
    }

    fn refresh(&mut self) {
        if self.stale {
            self.facts = facts_of(self.graph);
            self.stale = false;
        }
    }

    /// Tries `rule` at each node, applies what it gives, and goes on until nothing changes.
    ///
    /// # Errors
    /// When an edit does not fit the graph.
    pub fn rewrite(&mut self, pass: &dyn Pass, rule: fn(&View, NodeId) -> Found<Patch>) -> Result<(), PassError> {
        for _ in 0..MAX_SWEEPS {
            self.refresh();
            let before = self.rewrites;
            let opset = self.opset.max(pass.opset());
            for id in self.graph.order().to_vec() {
                if self.stopped() {
                    return Ok(());
                }
                if self.graph.get_node(id).is_none() {
                    continue;
                }
                let view = View { graph: self.graph, facts: &self.facts, opset, options: self.options };
                match rule(&view, id) {
                    Ok(patch) => self.apply(pass, patch)?,
                    Err(Miss::No) => {}
                    Err(Miss::Skip(reason)) => {
                        let node = self.graph.node(id).name.clone();
                        self.skip(&node, reason);
                    }
                }
            }
            if self.rewrites == before {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Infers what is known of a graph; nodes with contradictions have unknown outputs.
pub(crate) fn facts_of(graph: &Graph) -> Facts {
    let options = infer::Options { strict: false, ..infer::Options::default() };
    infer::infer(graph, &Default::default(), options).unwrap_or_default()
}
